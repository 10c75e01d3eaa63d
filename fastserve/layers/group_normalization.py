"""GroupNormalization."""

from __future__ import annotations

from typing import Any

from fastserve.core import Array, Done, Shape, Training, nothing
from fastserve.core.constraints import Constraint
from fastserve.core.initializers import Initializer
from fastserve.core.regularizers import Regularizer
from fastserve.errors import ArgumentError
from fastserve.layers.normalization_base import Affine, AxesLast
from fastserve.ops.group_norm import group_norm, group_norm_backward


class GroupNormalization(Affine):
    """y = gamma (x - mean) / sqrt(var + epsilon) + beta, over groups of channels.

    Wu, He, "Group normalization", 2018; the gradients are in ``ops/group_norm.py``.
    Any shape with channels on ``axis``. Mean and variance are those of all positions of
    a sample and of the channels of a group, which are neighbours. Weights, as many as
    channels: ``gamma`` if ``scale``, ``beta`` if ``center``.

    Args:
        groups: must divide the channels; -1 is one for each channel, which is
            instance normalisation, and 1 is for all of them.
    """

    def __init__(
        self,
        groups: int = 32,
        axis: int = -1,
        epsilon: float = 1e-3,
        center: bool = True,
        scale: bool = True,
        beta_initializer: str | Initializer = "zeros",
        gamma_initializer: str | Initializer = "ones",
        beta_regularizer: str | Regularizer | None = None,
        gamma_regularizer: str | Regularizer | None = None,
        beta_constraint: str | Constraint | None = None,
        gamma_constraint: str | Constraint | None = None,
        input_shape: Shape | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(
            epsilon,
            center,
            scale,
            beta_initializer,
            gamma_initializer,
            beta_regularizer,
            gamma_regularizer,
            beta_constraint,
            gamma_constraint,
            input_shape,
            name,
        )
        if groups != -1:
            self.positive("groups", groups)
        self.groups, self.axis = groups, axis
        self._x: Array | None = None

    def build(self, input_shape: Shape) -> Shape:
        self._axes = AxesLast("GroupNormalization", self.axis, input_shape)
        (channels,) = self._axes.shape
        if self.groups == -1:
            self.groups = channels
        if channels % self.groups:
            raise ArgumentError(
                "GroupNormalization: expected groups that divide the channels, "
                f"{channels}",
                f"groups={self.groups}",
                "change groups",
            )
        self.make_weights((channels,))
        return input_shape

    def forward(self, x: Array, training: Training = False) -> Array:
        self._x = rows = self._positions(self._axes.move(self, "x", x))
        y = self.buffer("y", x.shape)
        out = self._axes.room(self, y)
        shape = (rows.shape[0], rows.shape[2])
        group_norm(
            rows,
            self.groups,
            self.gamma.value if self.scale else None,
            self.beta.value if self.center else None,
            self.epsilon,
            self._positions(out),
            self.buffer("mean", shape),
            self.buffer("rstd", shape),
        )
        return self._axes.back(out, y)

    def backward(self, dy: Array, done: Done = nothing) -> Any:
        x = self.saved(self._x)
        dx = self.scratch(dy.shape)
        out = self._axes.room(self, dx)
        channels = x.shape[2:]
        group_norm_backward(
            self._positions(self._axes.move(self, "dy", dy)),
            x,
            self.groups,
            self.gamma.value if self.scale else None,
            self._buffers["mean"],
            self._buffers["rstd"],
            self.gamma.grad if self.scale else self.scratch(channels),
            self.beta.grad if self.center else self.scratch(channels),
            self._positions(out),
        )
        return self._axes.back(out, dx)

    def output_spare(self) -> bool:
        return True

    def _positions(self, x: Array) -> Array:
        """View x as (batch, positions, channels)."""
        return x.reshape(x.shape[0], -1, x.shape[-1])
