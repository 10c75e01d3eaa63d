"""BatchNormalization, also with statistics over all ranks."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from fastserve.core import (
    Array,
    Done,
    Shape,
    Training,
    initializers,
    nothing,
)
from fastserve.core.constraints import Constraint
from fastserve.core.initializers import Initializer
from fastserve.core.regularizers import Regularizer
from fastserve.errors import ArgumentError, ShapeError
from fastserve.layers.normalization_base import Affine, AxesLast
from fastserve.ops import batch_norm
from fastserve.ops.blocks import as_rows


class Sums(Protocol):
    """What adds up an array over all ranks, in place: a communicator."""

    def allreduce(self, array: Array) -> None: ...


class Ranks:
    """Those whose rows count together."""

    comm: Sums | None = None  # None: this one alone

    def __deepcopy__(self, memo: Any) -> Ranks:
        return self  # a copy of a layer is that layer in another call

    def add(self, sums: Array) -> None:
        """Replace sums of this rank's rows by those of all ranks' rows."""
        if self.comm is not None:
            self.comm.allreduce(sums)


class BatchNormalization(Affine):
    """y = gamma (x - mean) / sqrt(var + epsilon) + beta, for each place of ``axis``.

    Ioffe, Szegedy, "Batch normalization", 2015; the gradients are in
    ``ops/batch_norm.py``. Any shape. In training mean and variance are those of the
    batch, of the positions that the mask keeps, and

        moving_mean = momentum moving_mean + (1 - momentum) mean

    and alike for the variance. Otherwise, and if ``trainable`` is false, they are the
    moving ones. Weights, all (features): ``gamma`` if ``scale``, ``beta`` if
    ``center``, ``moving_mean``, ``moving_variance``; the last two aren't trained.

    On several ranks each takes the statistics of its own rows, and the moving ones
    are averaged after each step. With ``synchronized`` the statistics are those of the
    rows of all ranks, so that the result doesn't depend on their number; it costs two
    small messages a layer and micro-batch. With micro-batches they are over those of
    the same number on all ranks.

    Args:
        axis: the axis of the features, counted with the batch as axis 0.

    Attributes:
        ranks: which ones a ``Trainer`` has set for a synchronized layer.
    """

    def __init__(
        self,
        axis: int = -1,
        momentum: float = 0.99,
        epsilon: float = 1e-3,
        center: bool = True,
        scale: bool = True,
        beta_initializer: str | Initializer = "zeros",
        gamma_initializer: str | Initializer = "ones",
        moving_mean_initializer: str | Initializer = "zeros",
        moving_variance_initializer: str | Initializer = "ones",
        beta_regularizer: str | Regularizer | None = None,
        gamma_regularizer: str | Regularizer | None = None,
        beta_constraint: str | Constraint | None = None,
        gamma_constraint: str | Constraint | None = None,
        synchronized: bool = False,
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
        if not 0 <= momentum <= 1:
            raise ArgumentError(
                "BatchNormalization: expected a momentum from 0 to 1",
                f"{momentum}",
                "it is the share of the moving averages that is kept, such as 0.99",
            )
        self.axis, self.momentum = int(axis), float(momentum)
        self.synchronized = synchronized
        self._moving_initializers = (
            initializers.get(moving_mean_initializer),
            initializers.get(moving_variance_initializer),
        )
        self.ranks = Ranks()
        self._rows: Array | None = None  # the input as (rows, features)

    def build(self, input_shape: Shape) -> Shape:
        self._axes = AxesLast("BatchNormalization", self.axis, input_shape)
        shape = self._axes.shape
        self.make_weights(shape)
        mean, variance = self._moving_initializers
        self.moving_mean = self.state("moving_mean", shape, mean)
        self.moving_variance = self.state("moving_variance", shape, variance)
        return input_shape

    def forward(self, x: Array, training: Training = False) -> Array:
        self._batch = bool(training) and self.trainable
        rows = self._rows = as_rows(self._axes.move(self, "x", x))
        self._keep = self._kept(x) if self._batch else None
        if self._batch:
            mean, variance = self._statistics(batch_norm.moments(rows, self._keep))
        else:
            mean = self.moving_mean.value.astype(float)
            variance = self.moving_variance.value.astype(float)
        self._normalization(mean, 1 / np.sqrt(variance + self.epsilon), x.dtype)
        y = self.buffer("y", x.shape)
        out = self._axes.room(self, y)
        batch_norm.normalize(
            rows, self._origin, self._factor, self._offset, as_rows(out)
        )
        return self._axes.back(out, y)

    def _normalization(self, mean: Array, rstd: Array, dtype: Any) -> None:
        """Note y = (x - origin) factor + offset; the origin is the mean, or 0."""
        self._rstd = rstd
        self._origin = batch_norm.origin_for(mean, rstd, dtype)
        self._far = mean if self._origin is None else mean - self._origin
        factor = self.gamma.value * rstd if self.scale else rstd
        offset = -self._far * factor
        if self.center:
            offset += self.beta.value
        self._factor, self._offset = factor.astype(dtype), offset.astype(dtype)

    def _statistics(self, total: Array) -> tuple[Array, Array]:
        """Return mean and variance for the sums of this rank; move the averages."""
        self.ranks.add(total)
        self._count = max(float(total[0]), 1.0)
        mean, variance = batch_norm.mean_and_variance(total)
        for moving, new in ((self.moving_mean, mean), (self.moving_variance, variance)):
            value = moving.value
            value[...] = self.momentum * value + (1 - self.momentum) * new
        return mean, variance

    def backward(self, dy: Array, done: Done = nothing) -> Any:
        rows = self.saved(self._rows)
        dyr = as_rows(self._axes.move(self, "dy", dy))
        sums = None
        if self._batch or self.trains:
            sums = batch_norm.backward_sums(dyr, rows, self._origin)
            sums[1] -= self._far * sums[0]  # Σ dy (x - mean)
            if self.center:
                self.beta.grad[...] = sums[0]
            if self.scale:
                self.gamma.grad[...] = sums[1] * self._rstd
            if self._batch:
                self.ranks.add(sums)
        if not self.input_gradient:
            return None
        dx = self.scratch(dy.shape)
        out = self._axes.room(self, dx)
        if self._batch and sums is not None:
            share = self._factor / self._count
            slope = share * np.square(self._rstd) * sums[1]
            offset = share * sums[0] - self._far * slope
            terms = slope.astype(dy.dtype), offset.astype(dy.dtype)
            batch_norm.backward(
                dyr, rows, self._origin, self._factor, *terms, self._keep, as_rows(out)
            )
        else:
            batch_norm.scale(dyr, self._factor, as_rows(out))
        return self._axes.back(out, dx)

    def join_forward(self) -> None:
        """Take part in ``forward`` of the other ranks, without rows."""
        self._statistics(np.zeros(1 + 2 * self.moving_mean.size))

    def join_backward(self) -> None:
        """Take part in ``backward`` of the other ranks, without rows."""
        self.ranks.add(np.zeros((2, self.moving_mean.size)))

    def output_spare(self) -> bool | None:
        return True

    def _kept(self, x: Array) -> Array | None:
        """Return which of the rows count (rows), or None for all."""
        if self.mask is None:
            return None
        return _mask_rows(self.mask, x.shape, self.axis % x.ndim)


def _mask_rows(mask: Array, shape: tuple[int, ...], axis: int) -> Array:
    """Spread a mask of the first axes over those that aren't the features."""
    if axis < mask.ndim:
        raise ShapeError(
            "BatchNormalization: expected features behind the axes of the mask",
            f"axis {axis}, a mask of shape {mask.shape} for an input {shape}",
            "put the features last",
        )
    rest = shape[mask.ndim : axis] + shape[axis + 1 :]
    wide = mask.reshape(mask.shape + (1,) * len(rest))
    return np.broadcast_to(wide, (*mask.shape, *rest)).reshape(-1)
