"""BatchNormalization, also with statistics over all ranks."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastserve.comm import Communicator
from fastserve.core import (
    Array,
    Done,
    Layer,
    Parameter,
    Shape,
    Training,
    constraints,
    initializers,
    nothing,
    regularizers,
)
from fastserve.core.constraints import Constraint
from fastserve.core.initializers import Initializer
from fastserve.core.regularizers import Regularizer
from fastserve.errors import ArgumentError, ShapeError
from fastserve.layers.normalization import check_epsilon
from fastserve.ops import batch_norm
from fastserve.ops.blocks import as_rows


class Ranks:
    """Those whose rows count together."""

    comm: Communicator | None = None  # None: this one alone

    def add(self, sums: Array) -> None:
        """Replace sums of this rank's rows by those of all ranks' rows."""
        if self.comm is not None:
            self.comm.allreduce(sums)


class BatchNormalization(Layer):
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

    gamma: Parameter
    beta: Parameter
    moving_mean: Parameter
    moving_variance: Parameter

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
        super().__init__(input_shape, name)
        if not 0 <= momentum <= 1:
            raise ArgumentError(
                "BatchNormalization: expected a momentum from 0 to 1",
                f"{momentum}",
                "it is the share of the moving averages that is kept, such as 0.99",
            )
        self.axis, self.momentum = int(axis), float(momentum)
        self.epsilon = check_epsilon("BatchNormalization", epsilon)
        self.center, self.scale, self.synchronized = center, scale, synchronized
        self.initializers = {
            "gamma": initializers.get(gamma_initializer),
            "beta": initializers.get(beta_initializer),
            "moving_mean": initializers.get(moving_mean_initializer),
            "moving_variance": initializers.get(moving_variance_initializer),
        }
        self.regularizers = {
            "gamma": regularizers.get(gamma_regularizer),
            "beta": regularizers.get(beta_regularizer),
        }
        self.constraints = {
            "gamma": constraints.get(gamma_constraint),
            "beta": constraints.get(beta_constraint),
        }
        self.ranks = Ranks()
        self._rows: Array | None = None  # the input as (rows, features)

    def build(self, input_shape: Shape) -> Shape:
        rank = len(input_shape) + 1  # with the batch
        axis = self.axis + rank if self.axis < 0 else self.axis
        if not 1 <= axis < rank:
            raise ArgumentError(
                f"BatchNormalization: expected an axis of 1 to {rank - 1}, or -1 to "
                f"{1 - rank}, for an input of shape {input_shape} besides the batch",
                f"axis={self.axis}",
                "the batch is axis 0; images are (batch, height, width, channels)",
            )
        features = input_shape[axis - 1]
        if features is None:
            raise ShapeError(
                f"BatchNormalization: expected axis {self.axis} of a known length",
                f"shape {input_shape} besides the batch",
                "give the first layer an input_shape",
            )
        self._axis, self._last = axis, axis == rank - 1
        for name, wanted in (("gamma", self.scale), ("beta", self.center)):
            if wanted:
                made = self.param(
                    name,
                    (features,),
                    self.initializers[name],
                    regularizer=self.regularizers[name],
                    constraint=self.constraints[name],
                )
                setattr(self, name, made)
        for name in ("moving_mean", "moving_variance"):
            setattr(self, name, self.state(name, (features,), self.initializers[name]))
        return input_shape

    def forward(self, x: Array, training: Training = False) -> Array:
        self._batch = bool(training) and self.trainable
        rows = self._rows = self._to_rows("x", x)
        self._keep = self._kept(x) if self._batch else None
        if self._batch:
            mean, variance = self._statistics(batch_norm.moments(rows, self._keep))
        else:
            mean = self.moving_mean.value.astype(float)
            variance = self.moving_variance.value.astype(float)
        self._normalization(mean, 1 / np.sqrt(variance + self.epsilon), x.dtype)
        y = self.buffer("y", x.shape)
        out = as_rows(y) if self._last else self.scratch(rows.shape)
        batch_norm.normalize(rows, self._origin, self._factor, self._offset, out)
        return self._from_rows(out, y)

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
        dyr = self._to_rows("dy", dy)
        train = (self.scale and self.gamma.trainable) or (
            self.center and self.beta.trainable
        )
        sums = None
        if self._batch or train:
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
        out = as_rows(dx) if self._last else self.scratch(rows.shape)
        if self._batch and sums is not None:
            share = self._factor / self._count
            slope = share * np.square(self._rstd) * sums[1]
            offset = share * sums[0] - self._far * slope
            terms = slope.astype(dy.dtype), offset.astype(dy.dtype)
            batch_norm.backward(
                dyr, rows, self._origin, self._factor, *terms, self._keep, out
            )
        else:
            batch_norm.scale(dyr, self._factor, out)
        return self._from_rows(out, dx)

    def join_forward(self) -> None:
        """Take part in ``forward`` of the other ranks, without rows."""
        self._statistics(np.zeros(1 + 2 * self.moving_mean.size))

    def join_backward(self) -> None:
        """Take part in ``backward`` of the other ranks, without rows."""
        self.ranks.add(np.zeros((2, self.moving_mean.size)))

    def output_spare(self) -> bool | None:
        return True

    # -- rows --------------------------------------------------------------------

    def _to_rows(self, name: str, x: Array) -> Array:
        """Return x as (rows, features), a copy unless the features come last."""
        if self._last:
            return as_rows(x)
        moved = np.moveaxis(x, self._axis, -1)
        rows = self.buffer(f"{name} rows", moved.shape)
        np.copyto(rows, moved)
        return as_rows(rows)

    def _from_rows(self, rows: Array, like: Array) -> Array:
        if not self._last:
            moved = np.moveaxis(like, self._axis, -1)
            np.copyto(moved, rows.reshape(moved.shape))
        return like

    def _kept(self, x: Array) -> Array | None:
        """Return which of the rows count (rows), or None for all."""
        if self.mask is None:
            return None
        return _mask_rows(self.mask, x.shape, self._axis)


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
