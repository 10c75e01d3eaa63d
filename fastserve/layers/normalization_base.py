"""What normalisations have in common: gamma and beta, and the axes they are over."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fastserve.core import (
    Array,
    Layer,
    Parameter,
    Shape,
    constraints,
    initializers,
    regularizers,
)
from fastserve.core.constraints import Constraint
from fastserve.core.initializers import Initializer
from fastserve.core.regularizers import Regularizer
from fastserve.errors import ArgumentError, ShapeError

Axis = int | Sequence[int]


def check_epsilon(kind: str, epsilon: float) -> float:
    if not 0 < epsilon < float("inf"):
        raise ArgumentError(
            f"{kind}: expected an epsilon above 0",
            str(epsilon),
            "leave it out, or give for example 1e-5",
        )
    return epsilon


class AxesLast:
    """Some axes of an array behind the others, where operations on rows need them.

    Args:
        axis: counted with the batch as axis 0, or from the end.

    Raises ArgumentError for axes that an input of ``shape`` (without the batch) doesn't
    have, ShapeError for those whose length isn't known.

    Attributes:
        shape: the lengths of the axes.
    """

    def __init__(self, kind: str, axis: Axis, shape: Shape) -> None:
        rank = len(shape) + 1
        given = axis if isinstance(axis, Sequence) else [axis]
        axes = sorted({a + rank if a < 0 else a for a in given})
        if not axes or len(axes) < len(given) or not 1 <= axes[0] <= axes[-1] < rank:
            raise ArgumentError(
                f"{kind}: expected axes from 1 to {rank - 1}, or from {1 - rank} to "
                f"-1, each once, for an input of shape {shape} besides the batch",
                f"axis={axis}",
                "the batch is axis 0; images are (batch, height, width, channels)",
            )
        lengths = [shape[a - 1] for a in axes]
        if any(n is None for n in lengths):
            raise ShapeError(
                f"{kind}: expected axes {axes} of a known length (a known last axis)",
                f"shape {shape} besides the batch",
                "give the first layer an input_shape, or reshape the data",
            )
        self.shape = tuple(int(n or 0) for n in lengths)
        self._order = [a for a in range(rank) if a not in axes] + axes
        self.trailing = self._order == list(range(rank))

    def move(self, layer: Layer, name: str, x: Array) -> Array:
        """Return x with these axes last; in the layer's buffer if it is a copy."""
        if self.trailing:
            return x
        moved = x.transpose(self._order)
        out = layer.buffer(name, moved.shape, x.dtype)
        np.copyto(out, moved)
        return out

    def room(self, layer: Layer, y: Array) -> Array:
        """Return memory to compute y in, which is to be given to ``back``."""
        if self.trailing:
            return y
        return layer.scratch(y.transpose(self._order).shape)

    def back(self, moved: Array, y: Array) -> Array:
        """Write into y what was computed in ``room``; return y."""
        if not self.trailing:
            np.copyto(y.transpose(self._order), moved)
        return y


class Affine(Layer):
    """Base of normalisations: y = gamma h + beta, either of which may be left out."""

    gamma: Parameter
    beta: Parameter

    def __init__(
        self,
        epsilon: float,
        center: bool,
        scale: bool,
        beta_initializer: str | Initializer,
        gamma_initializer: str | Initializer,
        beta_regularizer: str | Regularizer | None,
        gamma_regularizer: str | Regularizer | None,
        beta_constraint: str | Constraint | None,
        gamma_constraint: str | Constraint | None,
        input_shape: Shape | None,
        name: str | None,
    ) -> None:
        super().__init__(input_shape, name)
        self.epsilon = check_epsilon(type(self).__name__, epsilon)
        self.center, self.scale = center, scale
        self._of_gamma = (
            initializers.get(gamma_initializer),
            regularizers.get(gamma_regularizer),
            constraints.get(gamma_constraint),
        )
        self._of_beta = (
            initializers.get(beta_initializer),
            regularizers.get(beta_regularizer),
            constraints.get(beta_constraint),
        )

    def make_weights(self, shape: tuple[int, ...]) -> None:
        if self.scale:
            init, penalty, constraint = self._of_gamma
            self.gamma = self.param("gamma", shape, init, None, penalty, constraint)
        if self.center:
            init, penalty, constraint = self._of_beta
            self.beta = self.param("beta", shape, init, None, penalty, constraint)

    @property
    def trains(self) -> bool:
        """Whether gradients of gamma or beta are needed."""
        return (self.scale and self.gamma.trainable) or (
            self.center and self.beta.trainable
        )
