"""Random changes of images (batch, height, width, channels), in training alone.

What happens to an image is a function of (seed, step, sample, layer), so no number of
ranks changes it. Otherwise the layers pass images on.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from fastserve.core import Array, Done, Layer, Shape, Training, nothing
from fastserve.errors import ArgumentError, UnknownNameError
from fastserve.layers.dropout import check_seed, sample_generators
from fastserve.layers.images import (
    INTERPOLATIONS,
    Resizer,
    check_format,
    image_shape,
    largest_window,
)
from fastserve.ops.images import affine, affine_backward

Factor = float | Sequence[float]
FILL_MODES = ("reflect", "wrap", "constant", "nearest")


class _Augmentation(Layer):
    """Base: a subclass says how many random numbers an image needs, and uses them."""

    draws = 1  # numbers from 0 to 1 for an image

    def __init__(
        self,
        seed: int | None,
        data_format: str | None,
        input_shape: Shape | None,
        name: str | None,
    ) -> None:
        super().__init__(input_shape, name)
        check_format(type(self).__name__, data_format)
        self.seed = check_seed(type(self).__name__, seed)
        self._active = False
        self._numbers = np.empty((0, self.draws))

    def build(self, input_shape: Shape) -> Shape:
        image_shape(self, input_shape)
        return input_shape

    def forward(self, x: Array, training: Training = False) -> Array:
        self._active = bool(training)
        if not training:
            return x
        numbers = np.empty((len(x), self.draws))
        generators = sample_generators(len(x), training, self.path, self.seed)
        for row, rng in zip(numbers, generators, strict=True):
            rng.random(out=row)
        self._numbers = numbers
        y = self.buffer("y", x.shape)
        self.change(x, numbers, y)
        return y

    def backward(self, dy: Array, done: Done = nothing) -> Any:
        if not self._active:
            return dy
        dx = self.scratch(dy.shape)
        self.change_backward(dy, self._numbers, dx)
        return dx

    def change(self, x: Array, numbers: Array, y: Array) -> None:
        """Write y, the images x changed by ``numbers`` (batch, draws)."""
        raise NotImplementedError

    def change_backward(self, dy: Array, numbers: Array, dx: Array) -> None:
        raise NotImplementedError

    def _range(
        self, argument: str, factor: Factor, low: float, high: float
    ) -> tuple[float, float]:
        """Return the ends of a factor: -factor and factor, or the two given."""
        ends = factor if isinstance(factor, Sequence) else (-abs(factor), abs(factor))
        if len(ends) != 2 or not all(low <= end <= high for end in ends):
            raise ArgumentError(
                f"{type(self).__name__}: expected {argument} as a number or two, from "
                f"{low:g} to {high:g}",
                f"{factor}",
                "see the layer's docstring",
            )
        return min(ends), max(ends)


def _between(ends: tuple[float, float], numbers: Array) -> Array:
    found: Array = ends[0] + (ends[1] - ends[0]) * numbers
    return found


class RandomFlip(_Augmentation):
    """Flips half of the images.

    Args:
        mode: 'horizontal' (left becomes right), 'vertical', or both at once:
            'horizontal_and_vertical'.
    """

    MODES = ("horizontal", "vertical", "horizontal_and_vertical")

    def __init__(
        self,
        mode: str = "horizontal_and_vertical",
        seed: int | None = None,
        data_format: str | None = None,
        input_shape: Shape | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(seed, data_format, input_shape, name)
        if mode not in self.MODES:
            raise UnknownNameError("mode of RandomFlip", mode, self.MODES)
        self.mode = mode

    def change(self, x: Array, numbers: Array, y: Array) -> None:
        back, same = slice(None, None, -1), slice(None)
        part = (
            same if self.mode == "horizontal" else back,
            same if self.mode == "vertical" else back,
        )
        for image, made, number in zip(x, y, numbers[:, 0], strict=True):
            np.copyto(made, image[part] if number <= 0.5 else image)

    def change_backward(self, dy: Array, numbers: Array, dx: Array) -> None:
        self.change(dy, numbers, dx)


class RandomCrop(Layer):
    """In training, a random part (batch, height, width, channels) of images.

    Otherwise, and of images that aren't larger both ways, it is the largest part in the
    middle with these proportions, resized. Each image has a place of its own.
    """

    def __init__(
        self,
        height: int,
        width: int,
        seed: int | None = None,
        data_format: str | None = None,
        input_shape: Shape | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(input_shape, name)
        check_format("RandomCrop", data_format)
        self.seed = check_seed("RandomCrop", seed)
        self.height = self.positive("height", height)
        self.width = self.positive("width", width)
        self._shape: tuple[int, ...] | None = None
        self._starts: list[tuple[int, int]] | None = None

    def build(self, input_shape: Shape) -> Shape:
        height, width, channels = image_shape(self, input_shape)
        old, new = (height, width), (self.height, self.width)
        self._room = (height - self.height, width - self.width)
        self._resizer = Resizer(old, new, largest_window(old, new))
        return (*new, channels)

    def forward(self, x: Array, training: Training = False) -> Array:
        self._shape, self._starts = x.shape, None
        y = self.buffer("y", (len(x), self.height, self.width, x.shape[3]))
        if not training or min(self._room) <= 0:
            return self._resizer.apply(self, x, y)
        down, right = self._room
        self._starts = []
        generators = sample_generators(len(x), training, self.path, self.seed)
        for image, made, rng in zip(x, y, generators, strict=True):
            first, second = rng.random(2)
            top, left = int(first * (down + 1)), int(second * (right + 1))
            self._starts.append((top, left))
            np.copyto(made, image[top : top + self.height, left : left + self.width])
        return y

    def backward(self, dy: Array, done: Done = nothing) -> Any:
        dx = self.scratch(self.saved(self._shape))
        if self._starts is None:
            return self._resizer.apply(self, dy, dx, transpose=True)
        dx.fill(0)
        for image, made, (top, left) in zip(dy, dx, self._starts, strict=True):
            made[top : top + self.height, left : left + self.width] = image
        return dx


class _Moved(_Augmentation):
    """Base of those that take each new pixel from another place of the image.

    Args:
        fill_mode: what is beyond the edge: 'reflect' (d c b a | a b c d | d c b a),
            'wrap' (a b c d | a b c d), 'nearest' (a a a | a b c d | d d d), or
            'constant', which is ``fill_value``.
        interpolation: 'bilinear' or 'nearest'.
    """

    def __init__(
        self,
        fill_mode: str,
        interpolation: str,
        seed: int | None,
        fill_value: float,
        data_format: str | None,
        input_shape: Shape | None,
        name: str | None,
    ) -> None:
        super().__init__(seed, data_format, input_shape, name)
        if fill_mode not in FILL_MODES:
            raise UnknownNameError("fill_mode", fill_mode, FILL_MODES)
        if interpolation not in INTERPOLATIONS:
            raise UnknownNameError("interpolation", interpolation, INTERPOLATIONS)
        self.fill_mode, self.interpolation = fill_mode, interpolation
        self.fill_value = float(fill_value)

    def matrices(self, numbers: Array, height: int, width: int) -> Array:
        """Return (batch, 6) for ``ops/images.py``."""
        raise NotImplementedError

    def change(self, x: Array, numbers: Array, y: Array) -> None:
        matrices = self.matrices(numbers, *x.shape[1:3])
        affine(x, matrices, self.fill_mode, self.fill_value, self.interpolation, y)

    def change_backward(self, dy: Array, numbers: Array, dx: Array) -> None:
        matrices = self.matrices(numbers, *dy.shape[1:3])
        affine_backward(dy, matrices, self.fill_mode, self.interpolation, dx)


class RandomRotation(_Moved):
    """Turns images about their middle by a random part of a full turn.

    Args:
        factor: the largest part of a turn either way, or the two ends of a range; 0.1
            is 36 degrees, against the clock if it is positive.
        fill_mode, interpolation, fill_value: see ``_Moved``.
    """

    def __init__(
        self,
        factor: Factor,
        fill_mode: str = "reflect",
        interpolation: str = "bilinear",
        seed: int | None = None,
        fill_value: float = 0.0,
        data_format: str | None = None,
        input_shape: Shape | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(
            fill_mode, interpolation, seed, fill_value, data_format, input_shape, name
        )
        self.factor = self._range("factor", factor, -1, 1)

    def matrices(self, numbers: Array, height: int, width: int) -> Array:
        angle = 2 * math.pi * _between(self.factor, numbers[:, 0])
        cos, sin = np.cos(angle), np.sin(angle)
        x, y = (width - 1) / 2, (height - 1) / 2
        rows = [cos, -sin, x - x * cos + y * sin, sin, cos, y - x * sin - y * cos]
        return np.stack(rows, axis=1)


class RandomTranslation(_Moved):
    """Moves images by a random part of their height and width.

    Args:
        height_factor, width_factor: the largest part either way, or the two ends of a
            range; positive numbers move down and right.
        fill_mode, interpolation, fill_value: see ``_Moved``.
    """

    draws = 2

    def __init__(
        self,
        height_factor: Factor,
        width_factor: Factor,
        fill_mode: str = "reflect",
        interpolation: str = "bilinear",
        seed: int | None = None,
        fill_value: float = 0.0,
        data_format: str | None = None,
        input_shape: Shape | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(
            fill_mode, interpolation, seed, fill_value, data_format, input_shape, name
        )
        self.height_factor = self._range("height_factor", height_factor, -1, 1)
        self.width_factor = self._range("width_factor", width_factor, -1, 1)

    def matrices(self, numbers: Array, height: int, width: int) -> Array:
        down = height * _between(self.height_factor, numbers[:, 0])
        right = width * _between(self.width_factor, numbers[:, 1])
        one, zero = np.ones(len(numbers)), np.zeros(len(numbers))
        return np.stack([one, zero, -right, zero, one, -down], axis=1)


class RandomZoom(_Moved):
    """Scales images about their middle.

    Args:
        height_factor, width_factor: the largest change either way, or the two ends of a
            range; at 0.2 an image shows 1.2 times as much, so it gets smaller, at -0.2
            it gets larger. Without width_factor proportions stay.
        fill_mode, interpolation, fill_value: see ``_Moved``.
    """

    draws = 2

    def __init__(
        self,
        height_factor: Factor,
        width_factor: Factor | None = None,
        fill_mode: str = "reflect",
        interpolation: str = "bilinear",
        seed: int | None = None,
        fill_value: float = 0.0,
        data_format: str | None = None,
        input_shape: Shape | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(
            fill_mode, interpolation, seed, fill_value, data_format, input_shape, name
        )
        least = math.nextafter(-1, 0)  # at -1 nothing is left
        self.height_factor = self._range("height_factor", height_factor, least, 1)
        self.width_factor = None
        if width_factor is not None:
            self.width_factor = self._range("width_factor", width_factor, least, 1)

    def matrices(self, numbers: Array, height: int, width: int) -> Array:
        down = right = 1 + _between(self.height_factor, numbers[:, 0])
        if self.width_factor is not None:
            right = 1 + _between(self.width_factor, numbers[:, 1])
        zero = np.zeros(len(numbers))
        x, y = (width - 1) / 2 * (1 - right), (height - 1) / 2 * (1 - down)
        return np.stack([right, zero, x, zero, down, y], axis=1)


class _Recoloured(_Augmentation):
    """Base of those whose result is cut to a range of values."""

    def __init__(
        self,
        value_range: Sequence[float],
        seed: int | None,
        input_shape: Shape | None,
        name: str | None,
    ) -> None:
        super().__init__(seed, None, input_shape, name)
        if len(value_range) != 2 or value_range[0] == value_range[1]:
            raise ArgumentError(
                f"{type(self).__name__}: expected a value_range of two numbers",
                f"{value_range}",
                "(0, 255), or (0, 1) for images that were scaled",
            )
        self.value_range = (min(value_range), max(value_range))

    def _cut(self, y: Array) -> None:
        """Cut y to the range, and note where nothing was cut."""
        low, high = map(y.dtype.type, self.value_range)
        inside = self.buffer("inside", y.shape, np.bool_)
        np.greater_equal(y, low, out=inside)
        np.logical_and(inside, y <= high, out=inside)
        np.clip(y, low, high, out=y)


class RandomContrast(_Recoloured):
    """y = (x - mean) c + mean, with the mean of each channel of an image, then cut to
    ``value_range``.

    Args:
        factor: c is between 1 - factor and 1 + factor, or of two numbers, both of 0 to
            1, between 1 - the first and 1 + the second.
    """

    def __init__(
        self,
        factor: Factor,
        value_range: Sequence[float] = (0, 255),
        seed: int | None = None,
        input_shape: Shape | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(value_range, seed, input_shape, name)
        ends = factor if isinstance(factor, Sequence) else (factor, factor)
        self._range("factor", ends, 0, 1)
        self.factor = (1 - ends[0], 1 + ends[1])

    def change(self, x: Array, numbers: Array, y: Array) -> None:
        self._stretch(x, numbers, y)
        self._cut(y)

    def change_backward(self, dy: Array, numbers: Array, dx: Array) -> None:
        inside = np.multiply(dy, self._buffers["inside"], out=self.scratch(dy.shape))
        self._stretch(inside, numbers, dx)  # it is its own gradient

    def _stretch(self, x: Array, numbers: Array, y: Array) -> None:
        factor = _between(self.factor, numbers).astype(x.dtype)[:, :, None, None]
        mean = x.mean(axis=(1, 2), keepdims=True)
        np.multiply(x, factor, out=y)
        np.add(y, mean * (1 - factor), out=y)


class RandomBrightness(_Recoloured):
    """y = x + b, cut to ``value_range``.

    Args:
        factor: the largest part of the range that b is either way, or the two ends.
    """

    def __init__(
        self,
        factor: Factor,
        value_range: Sequence[float] = (0, 255),
        seed: int | None = None,
        input_shape: Shape | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(value_range, seed, input_shape, name)
        self.factor = self._range("factor", factor, -1, 1)

    def change(self, x: Array, numbers: Array, y: Array) -> None:
        width = self.value_range[1] - self.value_range[0]
        shift = width * _between(self.factor, numbers)
        np.add(x, shift.astype(x.dtype)[:, :, None, None], out=y)
        self._cut(y)

    def change_backward(self, dy: Array, numbers: Array, dx: Array) -> None:
        np.multiply(dy, self._buffers["inside"], out=dx)
