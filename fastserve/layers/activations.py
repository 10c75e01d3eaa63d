"""Activations with arguments, as layers: ReLU, LeakyReLU, PReLU, ELU, Softmax."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from fastserve.core import (
    Array,
    Done,
    Layer,
    Shape,
    Training,
    constraints,
    initializers,
    is_several,
    nothing,
    regularizers,
)
from fastserve.core.constraints import Constraint
from fastserve.core.initializers import Initializer
from fastserve.core.regularizers import Regularizer
from fastserve.errors import ArgumentError, ShapeError
from fastserve.layers.normalization_base import AxesLast, Axis
from fastserve.ops import softmax
from fastserve.ops.blocks import FLAT, room, spare

_BOOL = np.dtype(np.bool_)


class _Elementwise(Layer):
    """y = f(x), dx = dy f'(x), in pieces. A subclass writes ``value`` and ``slope``."""

    _x: Array | None = None

    def value(self, x: Array, y: Array) -> None:
        raise NotImplementedError

    def slope(self, x: Array, slope: Array) -> None:
        raise NotImplementedError

    def forward(self, x: Array, training: Training = False) -> Array:
        self._x = x
        y = self.buffer("y", x.shape)
        flat, out = x.reshape(-1), y.reshape(-1)
        for start in range(0, flat.size, FLAT):
            part = slice(start, start + FLAT)
            self.value(flat[part], out[part])
        return y

    def backward(self, dy: Array, done: Done = nothing) -> Any:
        x = self.saved(self._x).reshape(-1)
        dx = self.scratch(dy.shape)
        flat, out = dy.reshape(-1), dx.reshape(-1)
        for start in range(0, flat.size, FLAT):
            part = slice(start, start + FLAT)
            self.slope(x[part], out[part])
            np.multiply(out[part], flat[part], out=out[part])
        return dx

    def output_spare(self) -> bool:
        return True

    def _not_negative(self, **arguments: float | None) -> None:
        for name, value in arguments.items():
            if value is None or not 0 <= value < math.inf:
                raise ArgumentError(
                    f"{type(self).__name__}: expected a {name} of 0 or more", f"{value}"
                )


class ReLU(_Elementwise):
    """y = x from ``threshold`` on, but at most ``max_value``, and negative_slope (x -
    threshold) below; any shape."""

    def __init__(
        self,
        max_value: float | None = None,
        negative_slope: float = 0.0,
        threshold: float = 0.0,
        input_shape: Shape | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(input_shape, name)
        self._not_negative(negative_slope=negative_slope, threshold=threshold)
        if max_value is not None:
            self._not_negative(max_value=max_value)
        self.max_value, self.negative_slope = max_value, negative_slope
        self.threshold = threshold

    def value(self, x: Array, y: Array) -> None:
        number = x.dtype.type
        if self.threshold:
            above = np.greater(x, number(self.threshold), out=room(0, x.shape, _BOOL))
            np.multiply(x, above, out=y)
        else:
            np.maximum(x, number(0), out=y)
        if self.max_value is not None:
            np.minimum(y, number(self.max_value), out=y)
        if self.negative_slope:
            below = np.subtract(x, number(self.threshold), out=spare(0, x))
            np.minimum(below, number(0), out=below)
            np.multiply(below, number(self.negative_slope), out=below)
            np.add(y, below, out=y)

    def slope(self, x: Array, slope: Array) -> None:
        number = x.dtype.type
        threshold = number(self.threshold)
        within = np.greater(x, threshold, out=room(0, x.shape, _BOOL))
        if self.max_value is not None:
            least = np.less(x, number(self.max_value), out=room(1, x.shape, _BOOL))
            np.logical_and(within, least, out=within)
        np.copyto(slope, within)
        if self.negative_slope:
            below = np.less(x, threshold, out=room(0, x.shape, _BOOL))
            part = np.multiply(below, number(self.negative_slope), out=spare(0, x))
            np.add(slope, part, out=slope)


class LeakyReLU(_Elementwise):
    """y = x above 0, negative_slope x below (Maas, Hannun, Ng, 2013); any shape."""

    def __init__(
        self,
        negative_slope: float = 0.3,
        input_shape: Shape | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(input_shape, name)
        self._not_negative(negative_slope=negative_slope)
        self.negative_slope = negative_slope

    def value(self, x: Array, y: Array) -> None:
        below = np.minimum(x, x.dtype.type(0), out=spare(0, x))
        np.multiply(below, x.dtype.type(self.negative_slope), out=below)
        np.maximum(x, x.dtype.type(0), out=y)
        np.add(y, below, out=y)

    def slope(self, x: Array, slope: Array) -> None:
        number = x.dtype.type
        above = np.greater(x, number(0), out=room(0, x.shape, _BOOL))
        np.multiply(above, number(1 - self.negative_slope), out=slope)
        np.add(slope, number(self.negative_slope), out=slope)


class ELU(_Elementwise):
    """y = x above 0, alpha (exp(x) - 1) below (Clevert et al., 2015); any shape."""

    def __init__(
        self,
        alpha: float = 1.0,
        input_shape: Shape | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(input_shape, name)
        self.alpha = float(alpha)

    def value(self, x: Array, y: Array) -> None:
        number = x.dtype.type
        below = np.minimum(x, number(0), out=spare(0, x))
        np.expm1(below, out=below)
        np.multiply(below, number(self.alpha), out=below)
        np.maximum(x, number(0), out=y)
        np.add(y, below, out=y)

    def slope(self, x: Array, slope: Array) -> None:
        number = x.dtype.type
        np.minimum(x, number(0), out=slope)
        np.exp(slope, out=slope)
        np.multiply(slope, number(self.alpha), out=slope)
        above = np.greater(x, number(0), out=room(0, x.shape, _BOOL))
        np.copyto(slope, number(1), where=above)


class PReLU(Layer):
    """y = x above 0, alpha x below, with trained ``alpha``.

    He et al., "Delving deep into rectifiers", 2015. Any shape. Weights: ``alpha``, of
    the shape of a sample, with 1 for ``shared_axes``. dalpha = Σ dy min(x, 0).

    Args:
        shared_axes: on which all places have the same alpha, the batch being axis 0:
            [1, 2] for one alpha a channel of images.
    """

    def __init__(
        self,
        alpha_initializer: str | Initializer = "zeros",
        alpha_regularizer: str | Regularizer | None = None,
        alpha_constraint: str | Constraint | None = None,
        shared_axes: Axis | None = None,
        input_shape: Shape | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(input_shape, name)
        self.alpha_initializer = initializers.get(alpha_initializer)
        self.alpha_regularizer = regularizers.get(alpha_regularizer)
        self.alpha_constraint = constraints.get(alpha_constraint)
        shared = () if shared_axes is None else shared_axes
        self.shared_axes = tuple(shared) if isinstance(shared, Sequence) else (shared,)
        self._x: Array | None = None

    def build(self, input_shape: Shape) -> Shape:
        rank = len(input_shape) + 1
        if any(not 1 <= axis < rank for axis in self.shared_axes):
            raise ArgumentError(
                f"PReLU: expected shared_axes from 1 to {rank - 1}",
                f"{self.shared_axes}",
                "the batch is axis 0",
            )
        shape = [
            1 if axis in self.shared_axes else extent
            for axis, extent in enumerate(input_shape, start=1)
        ]
        if any(extent is None for extent in shape):
            raise ShapeError(
                "PReLU: expected axes of known lengths, but for shared ones",
                f"{input_shape}",
                "give shared_axes for those that vary",
            )
        self.alpha = self.param(
            "alpha",
            tuple(int(n or 0) for n in shape),
            self.alpha_initializer,
            regularizer=self.alpha_regularizer,
            constraint=self.alpha_constraint,
        )
        return input_shape

    def _samples(self, x: Array) -> Iterator[slice]:
        step = max(1, FLAT // max(1, math.prod(x.shape[1:])))
        for start in range(0, len(x), step):
            yield slice(start, min(len(x), start + step))

    def forward(self, x: Array, training: Training = False) -> Array:
        self._x = x
        y = self.buffer("y", x.shape)
        zero = x.dtype.type(0)
        for part in self._samples(x):
            below = np.minimum(x[part], zero, out=spare(0, x[part]))
            np.multiply(below, self.alpha.value, out=below)
            np.maximum(x[part], zero, out=y[part])
            np.add(y[part], below, out=y[part])
        return y

    def backward(self, dy: Array, done: Done = nothing) -> Any:
        x = self.saved(self._x)
        dx, zero = self.scratch(dy.shape), x.dtype.type(0)
        grad = self.alpha.grad
        grad.fill(0)
        sums = self.scratch((1, *grad.shape))
        axes = (0, *self.shared_axes)
        for part in self._samples(x):
            xp, dyp, dxp = x[part], dy[part], dx[part]
            below = np.minimum(xp, zero, out=spare(0, xp))
            np.multiply(below, dyp, out=below)
            np.add.reduce(below, axis=axes, keepdims=True, out=sums)
            np.add(grad, sums[0], out=grad)
            np.multiply(dyp, self.alpha.value, out=dxp)
            above = np.greater(xp, zero, out=room(0, xp.shape, _BOOL))
            np.copyto(dxp, dyp, where=above)
        return dx

    def output_spare(self) -> bool:
        return True


_MASKED = -1e9  # added to what doesn't count


class Softmax(Layer):
    """y = exp(x) / Σ exp(x) over ``axis``, one or several; any shape.

    Called on two tensors, or with a mask of the input's own shape, it gives 0 where the
    second one (it may be broadcast) is false, and the softmax of the others.
    """

    several_inputs = True
    call_inputs = ("inputs", "mask")

    def __init__(
        self,
        axis: Axis = -1,
        input_shape: Shape | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(input_shape, name)
        self.axis = axis
        self.fused_loss = "softmax" if axis == -1 else None
        self._x: Array | None = None
        self._with_mask = False

    def build(self, input_shape: Any) -> Shape:
        self.several_inputs = self._with_mask = is_several(input_shape)
        shape: Shape = input_shape[0] if self._with_mask else input_shape
        self._axes = AxesLast("Softmax", self.axis, shape)
        if self._with_mask:
            self.fused_loss = None
        return shape

    def _rows(self, x: Array) -> Array:
        return x.reshape(-1, math.prod(self._axes.shape))

    def forward(self, x: Any, training: Training = False) -> Array:
        mask = None
        if self._with_mask:
            x, mask = x
        elif self.mask is not None and self.mask.shape == x.shape:
            mask = self.mask
        self._keep = None
        if mask is not None:
            keep = np.broadcast_to(mask.astype(bool), x.shape)
            self._keep = keep
            masked = self.buffer("masked", x.shape)
            np.add(x, masked.dtype.type(_MASKED), out=masked)
            np.copyto(masked, x, where=keep)
            x = masked
        self._x = x
        moved = self._axes.move(self, "x", x)
        y = self.buffer("y", x.shape)
        self._h = self.buffer("h", moved.shape) if not self._axes.trailing else y
        softmax.softmax(self._rows(moved), self._rows(self._h))
        if self._keep is not None:
            np.multiply(self._h, self._axes.move(self, "keep", self._keep), out=self._h)
        return self._axes.back(self._h, y)

    def backward(self, dy: Array, done: Done = nothing) -> Any:
        self.saved(self._x)
        dx = self.scratch(dy.shape)
        out = self._axes.room(self, dx)
        moved = self._axes.move(self, "dy", dy)
        softmax.softmax_backward(*map(self._rows, (moved, self._h, out)))
        self._axes.back(out, dx)
        return (dx, None) if self._with_mask else dx

    def output_mask(self) -> Array | None:
        mask: Any = self.mask
        return mask[0] if isinstance(mask, tuple) else mask

    def logits(self) -> Array:
        return self.saved(self._x)

    def backward_logits(self, dz: Array, done: Done = nothing) -> Any:
        return dz
