"""Permute and RepeatVector."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastserve.core import Array, Done, Layer, Shape, Training, nothing
from fastserve.errors import ArgumentError, ShapeError


class Permute(Layer):
    """The axes of a sample in another order; ``dims`` counts them from 1.

    ``Permute((2, 1))``: input (batch, a, b), output (batch, b, a).
    """

    def __init__(
        self,
        dims: tuple[int, ...],
        input_shape: Shape | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(input_shape, name)
        self.dims = tuple(dims)
        if sorted(self.dims) != list(range(1, len(self.dims) + 1)):
            raise ArgumentError(
                "Permute: expected dims to hold each axis from 1 on once",
                str(self.dims),
                "for example (2, 1)",
            )
        self._x: Array | None = None

    def build(self, input_shape: Shape) -> Shape:
        if len(input_shape) != len(self.dims):
            raise ShapeError(
                f"Permute: expected a sample of {len(self.dims)} axes",
                f"shape {input_shape}",
                "change dims",
            )
        return tuple(input_shape[d - 1] for d in self.dims)

    def forward(self, x: Array, training: Training = False) -> Array:
        self._x = x
        turned = x.transpose(0, *self.dims)
        y = self.buffer("y", turned.shape)
        np.copyto(y, turned)
        return y

    def backward(self, dy: Array, done: Done = nothing) -> Any:
        dx = self.scratch(self.saved(self._x).shape)
        np.copyto(dx.transpose(0, *self.dims), dy)
        return dx

    def output_mask(self) -> None:
        return None


class RepeatVector(Layer):
    """(batch, features) -> (batch, n, features), the same vector ``n`` times."""

    def __init__(
        self, n: int, input_shape: Shape | None = None, name: str | None = None
    ) -> None:
        super().__init__(input_shape, name)
        self.n = self.positive("n", n)

    def build(self, input_shape: Shape) -> Shape:
        return (self.n, self.check_features(input_shape, 1))

    def forward(self, x: Array, training: Training = False) -> Array:
        y = self.buffer("y", (x.shape[0], self.n, x.shape[1]))
        np.copyto(y, x[:, None])
        return y

    def backward(self, dy: Array, done: Done = nothing) -> Any:
        dx = self.scratch((dy.shape[0], dy.shape[2]))
        return np.add.reduce(dy, axis=1, out=dx)

    def output_mask(self) -> None:
        return None
