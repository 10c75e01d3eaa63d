"""CenterCrop and Resizing: images (batch, height, width, channels) of another size."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastserve.core import Array, Done, Layer, Shape, Training, nothing
from fastserve.errors import ArgumentError, ShapeError, UnknownNameError
from fastserve.ops.images import resize, resize_matrix

INTERPOLATIONS = ("bilinear", "nearest")


def check_format(kind: str, data_format: str | None) -> None:
    if data_format not in (None, "channels_last"):
        raise ArgumentError(
            f"{kind}: expected data_format 'channels_last'",
            repr(data_format),
            "transpose the images to (batch, height, width, channels)",
        )


def image_shape(layer: Layer, shape: Shape) -> tuple[int, int, int]:
    """Return (height, width, channels), which must be known."""
    if len(shape) != 3 or None in shape:
        raise ShapeError(
            f"{type(layer).__name__}: expected images of a known size: (batch, height, "
            "width, channels)",
            f"samples of shape {shape}",
            "give the first layer an input_shape of three numbers",
        )
    height, width, channels = (int(n or 0) for n in shape)
    return height, width, channels


def largest_window(old: tuple[int, int], new: tuple[int, int]) -> tuple[slice, slice]:
    """Return the largest part in the middle that has the proportions of ``new``."""
    (height, width), (to_height, to_width) = old, new
    h = max(min(height, int(width * to_height / to_width)), 1)
    w = max(min(width, int(height * to_width / to_height)), 1)
    top, left = int((height - h) / 2), int((width - w) / 2)
    return slice(top, top + h), slice(left, left + w)


class Resizer:
    """The matrices that make a window of images of one size into images of another."""

    def __init__(
        self,
        old: tuple[int, int],
        new: tuple[int, int],
        window: tuple[slice, slice],
        interpolation: str = "bilinear",
        antialias: bool = False,
    ) -> None:
        self.matrices = []
        for size, length, part in zip(new, old, window, strict=True):
            matrix = np.zeros((size, length))
            inside = part.stop - part.start
            matrix[:, part] = resize_matrix(size, inside, interpolation, antialias)
            self.matrices.append(matrix)

    def apply(self, layer: Layer, x: Array, y: Array, transpose: bool = False) -> Array:
        rows, columns = (np.ascontiguousarray(m, y.dtype) for m in self.matrices)
        if transpose:
            rows, columns = (np.ascontiguousarray(m.T) for m in (rows, columns))
        half = layer.scratch((len(x), rows.shape[0], *x.shape[2:]))
        resize(x, rows, columns, half, y)
        return y


class Resizing(Layer):
    """Images resized to (batch, height, width, channels).

    Args:
        height, width: of the new images, in pixels.
        interpolation: 'bilinear' or 'nearest'.
        crop_to_aspect_ratio: use the largest part in the middle that has the new
            proportions, instead of stretching the image.
        pad_to_aspect_ratio: put ``fill_value`` beside the image instead; ``fill_mode``
            must be 'constant'.
        antialias: a smaller image is made of means of all pixels.
    """

    def __init__(
        self,
        height: int,
        width: int,
        interpolation: str = "bilinear",
        crop_to_aspect_ratio: bool = False,
        pad_to_aspect_ratio: bool = False,
        fill_mode: str = "constant",
        fill_value: float = 0.0,
        antialias: bool = False,
        data_format: str | None = None,
        input_shape: Shape | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(input_shape, name)
        check_format("Resizing", data_format)
        if interpolation not in INTERPOLATIONS:
            raise UnknownNameError("interpolation", interpolation, INTERPOLATIONS)
        if fill_mode != "constant":
            raise UnknownNameError("fill_mode of Resizing", fill_mode, ("constant",))
        if crop_to_aspect_ratio and pad_to_aspect_ratio:
            raise ArgumentError(
                "Resizing: expected one of crop_to_aspect_ratio and "
                "pad_to_aspect_ratio",
                "both",
            )
        self.height = self.positive("height", height)
        self.width = self.positive("width", width)
        self.interpolation, self.antialias = interpolation, bool(antialias)
        self.crop, self.pad = crop_to_aspect_ratio, pad_to_aspect_ratio
        self.fill_value = float(fill_value)
        self._shape: tuple[int, ...] | None = None

    def build(self, input_shape: Shape) -> Shape:
        height, width, channels = image_shape(self, input_shape)
        old, new = (height, width), (self.height, self.width)
        window = (slice(0, height), slice(0, width))
        if self.crop:
            window = largest_window(old, new)
        margins = self._margins(old, new) if self.pad else (0, 0)
        padded = (height + 2 * margins[0], width + 2 * margins[1])
        if self.pad:
            window = (slice(0, padded[0]), slice(0, padded[1]))
        self._resizer = Resizer(padded, new, window, self.interpolation, self.antialias)
        # what of each new pixel is the margin, and the matrices for what is image
        self._fill = np.zeros((*new, 1))
        for axis, margin in enumerate(margins):
            if margin:
                matrix = self._resizer.matrices[axis]
                inside = matrix[:, margin:-margin]
                share = 1 - inside.sum(axis=1)
                self._fill += share[:, None, None] if axis == 0 else share[:, None]
                self._resizer.matrices[axis] = inside
        return (*new, channels)

    def _margins(self, old: tuple[int, int], new: tuple[int, int]) -> tuple[int, int]:
        """Return rows above (and below) and columns left (and right) of the image."""
        height = max(old[0], int(old[1] * new[0] / new[1]))
        width = max(old[1], int(old[0] * new[1] / new[0]))
        top = int((height - old[0]) / 2)
        return top, 0 if top else int((width - old[1]) / 2)

    def forward(self, x: Array, training: Training = False) -> Array:
        self._shape = x.shape
        y = self.buffer("y", (len(x), self.height, self.width, x.shape[3]))
        self._resizer.apply(self, x, y)
        if self.fill_value and self._fill.any():
            np.add(y, (self._fill * self.fill_value).astype(y.dtype), out=y)
        return y

    def backward(self, dy: Array, done: Done = nothing) -> Any:
        dx = self.scratch(self.saved(self._shape))
        return self._resizer.apply(self, dy, dx, transpose=True)


class CenterCrop(Layer):
    """The middle (batch, height, width, channels) of images.

    Of images that are smaller, the largest part in the middle with these proportions
    is resized.
    """

    def __init__(
        self,
        height: int,
        width: int,
        data_format: str | None = None,
        input_shape: Shape | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(input_shape, name)
        check_format("CenterCrop", data_format)
        self.height = self.positive("height", height)
        self.width = self.positive("width", width)
        self._shape: tuple[int, ...] | None = None

    def build(self, input_shape: Shape) -> Shape:
        height, width, channels = image_shape(self, input_shape)
        old, new = (height, width), (self.height, self.width)
        self._resizer = None
        if height < self.height or width < self.width:
            self._resizer = Resizer(old, new, largest_window(old, new))
        top, left = (height - self.height) // 2, (width - self.width) // 2
        self._part = (
            slice(None),
            slice(top, top + self.height),
            slice(left, left + self.width),
        )
        return (*new, channels)

    def forward(self, x: Array, training: Training = False) -> Array:
        self._shape = x.shape
        y = self.buffer("y", (len(x), self.height, self.width, x.shape[3]))
        if self._resizer is not None:
            return self._resizer.apply(self, x, y)
        np.copyto(y, x[self._part])
        return y

    def backward(self, dy: Array, done: Done = nothing) -> Any:
        dx = self.scratch(self.saved(self._shape))
        if self._resizer is not None:
            return self._resizer.apply(self, dy, dx, transpose=True)
        dx.fill(0)
        dx[self._part] = dy
        return dx
