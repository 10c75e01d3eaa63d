"""Layers that only change the shape: Input, Flatten, Reshape."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from fastserve.core import Array, Done, Layer, Node, Shape, Tensor, Training, nothing
from fastserve.errors import ArgumentError, ShapeError


def known(kind: str, shape: Shape) -> tuple[int, ...]:
    """Return the shape if all of its axes are known; raise ShapeError otherwise."""
    if any(extent is None for extent in shape):
        raise ShapeError(
            f"{kind}: expected an input with known axes (besides the batch)",
            f"shape {shape}",
            "give the first layer an input_shape without None",
        )
    return tuple(int(extent or 0) for extent in shape)


class InputLayer(Layer):
    """Says the shape of one sample; passes its input on.

    Args:
        dtype: 'float32' or so for numbers, 'int32' or so for indices, 'string' for
            texts; by default it depends on what the layer behind takes.
    """

    def __init__(
        self, shape: Shape, dtype: str | None = None, name: str | None = None
    ) -> None:
        super().__init__(() if shape is None else shape, name)
        try:
            plain = "str" if dtype == "string" else dtype
            kind = "" if plain is None else str(np.dtype(plain).kind)
        except TypeError:
            kind = "?"
        if kind not in ("", *"fiubU"):
            raise ArgumentError(
                "Input: expected a dtype of numbers or texts",
                repr(dtype),
                "for example 'float32', 'int32' or 'string'",
            )
        self.wanted_dtype = dtype
        self.integers = None if not kind else kind != "f"
        self.takes_integers = bool(self.integers)

    def forward(self, x: Array, training: Training = False) -> Array:
        return x

    def backward(self, dy: Array, done: Done = nothing) -> Any:
        return dy


def Input(
    shape: Shape,
    batch_size: None = None,
    dtype: str | None = None,
    name: str | None = None,
) -> Tensor:
    """Return the tensor that a model starts with, for samples of ``shape``.

    ``Input(shape=(784,))`` may also be the first of a Sequential's layers. A batch may
    have any size, so ``batch_size`` must stay None. ``dtype`` is 'int32', 'string' or
    the like; None: integers if a layer behind it takes them, else numbers.
    """
    if batch_size is not None:
        raise ArgumentError(
            "Input: expected no batch_size: batches may have any size",
            repr(batch_size),
            "leave it out",
        )
    return Node(InputLayer(shape, dtype, name), [], True, None).outputs[0]


class Flatten(Layer):
    """(batch, ...) -> (batch, product of the other axes)."""

    _shape: tuple[int, ...] | None = None

    def __init__(
        self,
        data_format: str | None = None,
        input_shape: Shape | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(input_shape, name)
        if data_format not in (None, "channels_last"):
            raise ArgumentError(
                "Flatten: expected data_format 'channels_last'",
                repr(data_format),
                "transpose the images to (height, width, channels)",
            )
        self.data_format = data_format

    def build(self, input_shape: Shape) -> Shape:
        return (math.prod(known("Flatten", input_shape)),)

    def forward(self, x: Array, training: Training = False) -> Array:
        self._shape = x.shape
        return x.reshape(x.shape[0], -1)

    def backward(self, dy: Array, done: Done = nothing) -> Any:
        return dy.reshape(self.saved(self._shape))

    def output_mask(self) -> None:
        return None


class Reshape(Layer):
    """(batch, ...) -> (batch, *target_shape); one entry of it may be -1."""

    _shape: tuple[int, ...] | None = None

    def __init__(
        self,
        target_shape: tuple[int, ...],
        input_shape: Shape | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(input_shape, name)
        self.target_shape = tuple(target_shape)
        if self.target_shape.count(-1) > 1 or any(
            n < 1 and n != -1 for n in self.target_shape
        ):
            raise ArgumentError(
                "Reshape: expected axes of 1 or more, at most one of them -1",
                str(self.target_shape),
                "change target_shape",
            )

    def build(self, input_shape: Shape) -> Shape:
        size = math.prod(known("Reshape", input_shape))
        rest = math.prod(n for n in self.target_shape if n != -1)
        if size % rest or (-1 not in self.target_shape and size != rest):
            raise ShapeError(
                f"Reshape: expected a target of {size} elements, as the input",
                f"target {self.target_shape} for an input of shape {input_shape}",
                "change target_shape",
            )
        return tuple(size // rest if n == -1 else n for n in self.target_shape)

    def forward(self, x: Array, training: Training = False) -> Array:
        self._shape = x.shape
        return x.reshape(x.shape[0], *(self.output_shape or self.target_shape))

    def backward(self, dy: Array, done: Done = nothing) -> Any:
        return dy.reshape(self.saved(self._shape))

    def output_mask(self) -> None:
        return None
