"""Layers that change height and width: UpSampling, ZeroPadding and Cropping."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from fastserve.core import Array, Done, Layer, Shape, Training, nothing
from fastserve.errors import ArgumentError, ShapeError
from fastserve.layers.convolution_base import (
    Sizes,
    as_image,
    check_channels_last,
    check_choice,
    check_rank,
    extents,
)
from fastserve.ops import resizing

Edges = int | Sequence[Any]


class UpSampling2D(Layer):
    """Each pixel as ``size`` pixels, or what is interpolated between pixels.

    Input (batch, height, width, channels), output (batch, height size[0], width
    size[1], channels).

    Args:
        size: factors of height and width; an integer counts for both.
        data_format: only 'channels_last'.
        interpolation: 'nearest' (repeat), 'bilinear', 'bicubic', 'lanczos3' or
            'lanczos5'; the formulas are in ``ops/resizing.py``.
    """

    rank = 2

    def __init__(
        self,
        size: Sizes = 2,
        data_format: str | None = None,
        interpolation: str = "nearest",
        input_shape: Shape | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(input_shape, name)
        kind = type(self).__name__
        self.size = extents(kind, "size", size, self.rank)
        check_channels_last(kind, data_format)
        known = ("nearest", *resizing.KERNELS)
        self.interpolation = check_choice(kind, "interpolation", interpolation, known)
        self._shape: tuple[int, ...] | None = None

    def build(self, input_shape: Shape) -> Shape:
        channels = check_rank(self, input_shape, self.rank)
        sizes = zip(input_shape[:-1], self.size, strict=True)
        return (*(None if n is None else n * f for n, f in sizes), channels)

    @property
    def _factors(self) -> tuple[int, int]:
        return (1, self.size[0]) if self.rank == 1 else (self.size[0], self.size[1])

    def _matrices(self, h: int, w: int) -> tuple[Array, Array]:
        fh, fw = self._factors
        kind = self.dtype.char
        return (
            resizing.weights(h, fh, self.interpolation, kind),
            resizing.weights(w, fw, self.interpolation, kind),
        )

    def forward(self, x: Array, training: Training = False) -> Array:
        x = as_image(x, self.rank)
        self._shape = n, h, w, c = x.shape
        fh, fw = self._factors
        y = self.buffer("y", (n, h * fh, w * fw, c))
        if self.interpolation == "nearest":
            resizing.repeat(x, y, (fh, fw))
        else:
            middle = self.scratch((n, h * fh, w, c))
            resizing.interpolate(x, *self._matrices(h, w), middle, y)
        return y if self.rank == 2 else y[:, 0]

    def backward(self, dy: Array, done: Done = nothing) -> Any:
        n, h, w, c = self.saved(self._shape)
        dy = as_image(dy, self.rank)
        dx = self.scratch((n, h, w, c))
        if self.interpolation == "nearest":
            resizing.repeat_gradient(dy, dx, self._factors)
        else:
            rows, columns = self._matrices(h, w)
            middle = self.scratch((n, h, dy.shape[2], c))
            resizing.interpolate(dy, rows.T, columns.T, middle, dx)
        return dx if self.rank == 2 else dx[:, 0]

    def output_mask(self) -> None:
        return None


class UpSampling1D(UpSampling2D):
    """Each step of time ``size`` times.

    Input (batch, time, channels), output (batch, time size, channels).
    """

    rank = 1

    def __init__(
        self, size: int = 2, input_shape: Shape | None = None, name: str | None = None
    ) -> None:
        super().__init__(size, input_shape=input_shape, name=name)


class _Edges(Layer):
    """What padding and cropping share: the amounts at each axis' two ends."""

    rank = 2

    def set_up(self, argument: str, value: Edges, data_format: str | None) -> None:
        kind = type(self).__name__
        check_channels_last(kind, data_format)
        self.edges: tuple[tuple[int, ...], ...]
        if self.rank == 1:
            self.edges = (extents(kind, argument, value, 2, 0),)
        elif not isinstance(value, Iterable):
            self.edges = (extents(kind, argument, value, 2, 0),) * 2
        elif len(pair := list(value)) != 2:
            raise ArgumentError(
                f"{kind}: expected {argument} for two axes, height and width",
                repr(value),
                f"give for example {argument}=((1, 0), (2, 2))",
            )
        else:  # an entry that is one integer counts for both ends
            self.edges = tuple(extents(kind, argument, p, 2, 0) for p in pair)
        self._shape: tuple[int, ...] | None = None

    def inner(self, whole: Array) -> Array:
        """Return ``whole`` (batch, ..., channels) without its edges."""
        for axis, (first, last) in enumerate(self.edges):
            moved = np.moveaxis(whole, axis + 1, 0)
            whole = np.moveaxis(moved[first : len(moved) - last], 0, axis + 1)
        return whole

    def clear_edges(self, whole: Array) -> None:
        for axis, (first, last) in enumerate(self.edges):
            moved = np.moveaxis(whole, axis + 1, 0)
            moved[:first] = 0
            moved[len(moved) - last :] = 0

    def output_mask(self) -> None:
        return None


class ZeroPadding2D(_Edges):
    """Rows and columns of zeros around an image.

    Input (batch, height, width, channels), output (batch, height + top + bottom, width
    + left + right, channels).

    Args:
        padding: an integer for all edges, (height, width) or ((top, bottom), (left,
            right)).
        data_format: only 'channels_last'.
    """

    def __init__(
        self,
        padding: Edges = 1,
        data_format: str | None = None,
        input_shape: Shape | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(input_shape, name)
        self.set_up("padding", padding, data_format)
        self.padding = self.edges if self.rank == 2 else self.edges[0]

    def build(self, input_shape: Shape) -> Shape:
        channels = check_rank(self, input_shape, self.rank)
        sizes = zip(input_shape[:-1], self.edges, strict=True)
        return (*(None if n is None else n + sum(e) for n, e in sizes), channels)

    def forward(self, x: Array, training: Training = False) -> Array:
        self._shape = x.shape
        sizes = (n + sum(e) for n, e in zip(x.shape[1:-1], self.edges, strict=True))
        y = self.buffer("y", (x.shape[0], *sizes, x.shape[-1]))
        self.clear_edges(y)
        np.copyto(self.inner(y), x)
        return y

    def backward(self, dy: Array, done: Done = nothing) -> Any:
        dx = self.scratch(self.saved(self._shape))
        np.copyto(dx, self.inner(dy))
        return dx


class ZeroPadding1D(ZeroPadding2D):
    """Zeros before and after a sequence.

    Input (batch, time, channels), output (batch, time + first + last, channels).
    ``padding`` is an integer for both ends, or (first, last).
    """

    rank = 1


class Cropping2D(_Edges):
    """An image without rows and columns at its edges.

    Input (batch, height, width, channels), output (batch, height - top - bottom, width
    - left - right, channels).

    Args:
        cropping: an integer for all edges, (height, width) or ((top, bottom), (left,
            right)).
        data_format: only 'channels_last'.
    """

    def __init__(
        self,
        cropping: Edges = ((0, 0), (0, 0)),
        data_format: str | None = None,
        input_shape: Shape | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(input_shape, name)
        self.set_up("cropping", cropping, data_format)
        self.cropping = self.edges if self.rank == 2 else self.edges[0]

    def build(self, input_shape: Shape) -> Shape:
        channels = check_rank(self, input_shape, self.rank)
        self._check(input_shape[:-1])
        sizes = zip(input_shape[:-1], self.edges, strict=True)
        return (*(None if n is None else n - sum(e) for n, e in sizes), channels)

    def _check(self, sizes: Sequence[int | None]) -> None:
        if any(
            n is not None and n <= sum(e)
            for n, e in zip(sizes, self.edges, strict=True)
        ):
            raise ShapeError(
                f"{type(self).__name__}: expected an input larger than what is cut off",
                f"an input of {' x '.join(map(str, sizes))}, cropping={self.cropping}",
                "change cropping",
            )

    def forward(self, x: Array, training: Training = False) -> Array:
        self._check(x.shape[1:-1])
        self._shape = x.shape
        part = self.inner(x)
        y = self.buffer("y", part.shape)
        np.copyto(y, part)
        return y

    def backward(self, dy: Array, done: Done = nothing) -> Any:
        dx = self.scratch(self.saved(self._shape))
        self.clear_edges(dx)
        np.copyto(self.inner(dx), dy)
        return dx


class Cropping1D(Cropping2D):
    """A sequence without its first and last steps.

    Input (batch, time, channels), output (batch, time - first - last, channels).
    ``cropping`` is an integer for both ends, or (first, last).
    """

    rank = 1

    def __init__(
        self,
        cropping: Edges = (1, 1),
        input_shape: Shape | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(cropping, input_shape=input_shape, name=name)
