"""Pooling over windows, and over all of an image or a sequence."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from fastserve.core import Array, Done, Layer, Shape, Training, nothing
from fastserve.layers.convolution_base import (
    Axes,
    Sizes,
    as_image,
    check_channels_last,
    check_choice,
    check_output,
    check_rank,
    extents,
)
from fastserve.ops import pooling
from fastserve.ops.windows import Axis, window_axis


class _Pooling(Layer):
    """What the four layers share."""

    rank = 2

    def __init__(
        self,
        pool_size: Sizes = 2,
        strides: Sizes | None = None,
        padding: str = "valid",
        data_format: str | None = None,
        input_shape: Shape | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(input_shape, name)
        kind = type(self).__name__
        self.pool_size = self.window = extents(kind, "pool_size", pool_size, self.rank)
        self.strides = (
            self.pool_size
            if strides is None
            else extents(kind, "strides", strides, self.rank)
        )
        self.padding = check_choice(kind, "padding", padding, ("valid", "same"))
        check_channels_last(kind, data_format)
        self._x: Array | None = None

    def axis(self, size: int, i: int) -> Axis:
        return window_axis(size, self.pool_size[i], self.strides[i], 1, self.padding)

    def build(self, input_shape: Shape) -> Shape:
        channels = check_rank(self, input_shape, self.rank)
        sizes = input_shape[:-1]
        outs = [None if n is None else self.axis(n, i).out for i, n in enumerate(sizes)]
        check_output(self, sizes, [1 if out is None else out for out in outs])
        return (*outs, channels)

    def axes(self, x: Array) -> Axes:
        """Return the windows of an input (N, H, W, C)."""
        last = self.axis(x.shape[2], self.rank - 1)
        first = self.axis(x.shape[1], 0) if self.rank == 2 else Axis(1, 1, out=1)
        check_output(self, x.shape[3 - self.rank : 3], [first.out, last.out])
        return first, last

    def forward(self, x: Array, training: Training = False) -> Array:
        self._x = x = as_image(x, self.rank)
        h, w = axes = self.axes(x)
        y = self.buffer("y", (x.shape[0], h.out, w.out, x.shape[3]))
        self.pool(x, y, axes, bool(training))
        return y if self.rank == 2 else y[:, 0]

    def backward(self, dy: Array, done: Done = nothing) -> Any:
        x = self.saved(self._x)
        dx = self.scratch(x.shape)
        self.pool_back(as_image(dy, self.rank), dx, self.axes(x))
        return dx if self.rank == 2 else dx[:, 0]

    def pooled(self) -> Array:
        """Return the last output, as images."""
        return self._buffers["y"]

    def output_mask(self) -> None:
        return None

    def pool(self, x: Array, y: Array, axes: Axes, training: bool) -> None:
        raise NotImplementedError(f"{type(self).__name__}.pool")

    def pool_back(self, dy: Array, dx: Array, axes: Axes) -> None:
        raise NotImplementedError(f"{type(self).__name__}.pool_back")


class MaxPooling2D(_Pooling):
    """The largest value of each window, for each channel by itself.

    Input (batch, height, width, channels), output (batch, height', width', channels);
    of equal values the first one gets the gradient.

    Args:
        pool_size: rows and columns of a window; an integer counts for both.
        strides: from one window to the next; by default ``pool_size``.
        padding: 'valid' (whole windows alone) or 'same' (height' is height / strides,
            rounded up).
        data_format: only 'channels_last'.
    """

    def pool(self, x: Array, y: Array, axes: Axes, training: bool) -> None:
        winner = None
        if training:
            kind = np.uint8 if math.prod(self.pool_size) <= 256 else np.int32
            winner = self.buffer("winner", y.shape, kind)
        pooling.maximum(x, y, winner, axes)

    def pool_back(self, dy: Array, dx: Array, axes: Axes) -> None:
        pooling.maximum_gradient(dy, self._buffers["winner"], dx, axes)


class MaxPooling1D(MaxPooling2D):
    """The largest value of each window of time; see ``MaxPooling2D``.

    Input (batch, time, channels), output (batch, time', channels).
    """

    rank = 1


class AveragePooling2D(_Pooling):
    """The mean of each window, for each channel by itself.

    Input (batch, height, width, channels), output (batch, height', width', channels).
    The arguments are those of ``MaxPooling2D``; with 'same', what lies beyond the edge
    isn't counted.
    """

    def pool(self, x: Array, y: Array, axes: Axes, training: bool) -> None:
        pooling.mean(x, y, axes)

    def pool_back(self, dy: Array, dx: Array, axes: Axes) -> None:
        pooling.mean_gradient(dy, dx, axes)


class AveragePooling1D(AveragePooling2D):
    """The mean of each window of time; see ``AveragePooling2D``.

    Input (batch, time, channels), output (batch, time', channels).
    """

    rank = 1


class _GlobalPooling(Layer):
    """What the four layers share; a subclass writes the two maps of (N, T, C)."""

    rank = 2

    def __init__(
        self,
        data_format: str | None = None,
        keepdims: bool = False,
        input_shape: Shape | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(input_shape, name)
        check_channels_last(type(self).__name__, data_format)
        self.keepdims = bool(keepdims)
        self._x: Array | None = None

    def build(self, input_shape: Shape) -> Shape:
        channels = check_rank(self, input_shape, self.rank)
        return (*(1,) * self.rank, channels) if self.keepdims else (channels,)

    def forward(self, x: Array, training: Training = False) -> Array:
        self._x = x
        y = self.buffer("y", (x.shape[0], x.shape[-1]))
        self.pool(x.reshape(self._flat(x)), y)
        if not self.keepdims:
            return y
        return y.reshape(x.shape[0], *(1,) * self.rank, x.shape[-1])

    def backward(self, dy: Array, done: Done = nothing) -> Any:
        x = self.saved(self._x)
        dx = self.scratch(x.shape)
        flat = self._flat(x)
        rows = dy.reshape(x.shape[0], x.shape[-1])
        self.pool_back(x.reshape(flat), rows, dx.reshape(flat))
        return dx

    @staticmethod
    def _flat(x: Array) -> tuple[int, int, int]:
        return x.shape[0], math.prod(x.shape[1:-1]), x.shape[-1]

    def output_mask(self) -> None:
        return None

    def pool(self, x: Array, y: Array) -> None:
        raise NotImplementedError(f"{type(self).__name__}.pool")

    def pool_back(self, x: Array, dy: Array, dx: Array) -> None:
        raise NotImplementedError(f"{type(self).__name__}.pool_back")


class GlobalAveragePooling2D(_GlobalPooling):
    """The mean of each channel over height and width.

    Input (batch, height, width, channels), output (batch, channels), or with
    ``keepdims`` (batch, 1, 1, channels).
    """

    def pool(self, x: Array, y: Array) -> None:
        pooling.global_mean(x, y)

    def pool_back(self, x: Array, dy: Array, dx: Array) -> None:
        share = np.multiply(
            dy, dy.dtype.type(1 / x.shape[1]), out=self.scratch(dy.shape)
        )
        np.copyto(dx, share[:, None])


class GlobalAveragePooling1D(GlobalAveragePooling2D):
    """The mean of each channel over time; with a mask over the positions that count.

    Input (batch, time, channels), output (batch, channels), or with ``keepdims``
    (batch, 1, channels). A sequence of which nothing counts gives zeros.
    """

    rank = 1

    def pool(self, x: Array, y: Array) -> None:
        if self.mask is None:
            pooling.global_mean(x, y)
        else:
            pooling.masked_mean(x, self._share(), y)

    def _share(self) -> Array:
        """Return 1 / (positions that count) where one counts, else 0: (batch, time)."""
        share = self.scratch(self.mask.shape)
        number = np.maximum(self.mask.sum(axis=1, keepdims=True), 1)
        return np.divide(self.mask, number, out=share, casting="unsafe")

    def pool_back(self, x: Array, dy: Array, dx: Array) -> None:
        if self.mask is None:
            super().pool_back(x, dy, dx)
        else:
            np.multiply(self._share()[:, :, None], dy[:, None], out=dx)


class GlobalMaxPooling2D(_GlobalPooling):
    """The largest value of each channel over height and width.

    Input (batch, height, width, channels), output (batch, channels), or with
    ``keepdims`` (batch, 1, 1, channels). Equal values share the gradient.
    """

    def pool(self, x: Array, y: Array) -> None:
        np.maximum.reduce(x, axis=1, out=y)

    def pool_back(self, x: Array, dy: Array, dx: Array) -> None:
        pooling.global_maximum_gradient(x, self._buffers["y"], dy, dx)


class GlobalMaxPooling1D(GlobalMaxPooling2D):
    """The largest value of each channel over time; see ``GlobalMaxPooling2D``.

    Input (batch, time, channels), output (batch, channels), or with ``keepdims``
    (batch, 1, channels). A mask isn't regarded, as in Keras.
    """

    rank = 1


AvgPool1D, AvgPool2D = AveragePooling1D, AveragePooling2D
MaxPool1D, MaxPool2D = MaxPooling1D, MaxPooling2D
GlobalAvgPool1D, GlobalAvgPool2D = GlobalAveragePooling1D, GlobalAveragePooling2D
GlobalMaxPool1D, GlobalMaxPool2D = GlobalMaxPooling1D, GlobalMaxPooling2D
