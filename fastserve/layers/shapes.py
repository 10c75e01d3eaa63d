"""Layers that only change the shape: Input, Flatten, Reshape."""

from __future__ import annotations

import math
from typing import Any

from fastserve.core import Array, Done, Layer, Shape, Training, nothing
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


class Input(Layer):
    """Says the shape of one sample; passes its input on.

    ``Input(shape=(784,))`` may be the first of a Sequential's layers.
    """

    def __init__(self, shape: Shape, name: str | None = None) -> None:
        super().__init__(tuple(shape), name)

    def forward(self, x: Array, training: Training = False) -> Array:
        return x

    def backward(self, dy: Array, done: Done = nothing) -> Any:
        return dy


class Flatten(Layer):
    """(batch, ...) -> (batch, product of the other axes)."""

    _shape: tuple[int, ...] | None = None

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
