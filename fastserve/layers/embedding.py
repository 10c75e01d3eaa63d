"""Embedding, positions, and the head that is tied to an embedding."""

from __future__ import annotations

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
    nothing,
    regularizers,
)
from fastserve.core.constraints import Constraint
from fastserve.core.initializers import Initializer
from fastserve.core.regularizers import Regularizer
from fastserve.errors import DataError, ShapeError
from fastserve.ops.blocks import as_rows
from fastserve.ops.embedding import embed, embed_backward
from fastserve.ops.linear import add_product


class Embedding(Layer):
    """y = table[x]: integers (batch, ...) -> (batch, ..., output_dim).

    Weights: ``embeddings`` (input_dim, output_dim). With ``mask_zero`` index 0 is
    padding, which later layers leave out. Vectors that are known come by
    ``embeddings_initializer=initializers.Constant(vectors)``, and stay with
    ``trainable=False``. Raises DataError for an index outside of the table.
    """

    takes_integers = True

    def __init__(
        self,
        input_dim: int,
        output_dim: int,
        embeddings_initializer: str | Initializer = "random_uniform",
        embeddings_regularizer: str | Regularizer | None = None,
        embeddings_constraint: str | Constraint | None = None,
        mask_zero: bool = False,
        input_shape: Shape | None = None,
        name: str | None = None,
        trainable: bool = True,
    ) -> None:
        super().__init__(input_shape, name)
        if not trainable:
            self.trainable = False
        self.input_dim = self.positive("input_dim", input_dim)
        self.output_dim = self.positive("output_dim", output_dim)
        self.embeddings_initializer = initializers.get(embeddings_initializer)
        self.embeddings_regularizer = regularizers.get(embeddings_regularizer)
        self.embeddings_constraint = constraints.get(embeddings_constraint)
        self.mask_zero = mask_zero
        self._x: Array | None = None

    def build(self, input_shape: Shape) -> Shape:
        self.embeddings = self.param(
            "embeddings",
            (self.input_dim, self.output_dim),
            self.embeddings_initializer,
            regularizer=self.embeddings_regularizer,
            constraint=self.embeddings_constraint,
        )
        return (*input_shape, self.output_dim)

    def forward(self, x: Array, training: Training = False) -> Array:
        if x.dtype.kind not in "iu":
            raise DataError(
                "Embedding: expected integers",
                f"an array of type {x.dtype}",
                "convert the indices, for example with x.astype('int32')",
            )
        self._check_range(x)
        self._x = x
        y = self.buffer("y", (*x.shape, self.output_dim))
        embed(self.embeddings.value, x.reshape(-1), as_rows(y))
        return y

    def _check_range(self, x: Array) -> None:
        if x.size and (x.max() >= self.input_dim or x.min() < 0):
            bad = np.argwhere((x >= self.input_dim) | (x < 0))[0]
            raise DataError(
                f"Embedding: expected indices from 0 to {self.input_dim - 1}",
                f"{x[tuple(bad)]} at {tuple(bad.tolist())} of the batch",
                "raise input_dim, or check how the data was encoded",
            )

    def backward(self, dy: Array, done: Done = nothing) -> Any:
        x = self.saved(self._x)
        if not self.embeddings.trainable:
            return None
        rows = as_rows(dy)
        embed_backward(
            rows,
            x.reshape(-1),
            self.embeddings.grad,
            self.scratch(rows.shape),
            add=self.embeddings.users > 1,  # the tied head has written it before
        )
        return None

    def output_mask(self) -> Array | None:
        return self.saved(self._x) != 0 if self.mask_zero else None


class PositionEmbedding(Layer):
    """y = x + table[:time]: learned positions. (batch, time, features), same out.

    Weights: ``embeddings`` (length, features). Raises ShapeError for a longer input.
    With ``starts`` (batch, time) positions count from there, else from 0.
    """

    starts: Array | None = None

    def __init__(
        self,
        length: int,
        embeddings_initializer: str | Initializer = "random_uniform",
        input_shape: Shape | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(input_shape, name)
        self.length = self.positive("length", length)
        self.embeddings_initializer = initializers.get(embeddings_initializer)

    def build(self, input_shape: Shape) -> Shape:
        features = self.check_features(input_shape, rank=2)
        self.embeddings = self.param(
            "embeddings", (self.length, features), self.embeddings_initializer
        )
        return input_shape

    def forward(self, x: Array, training: Training = False) -> Array:
        time = x.shape[1]
        if time > self.length:
            raise ShapeError(
                f"PositionEmbedding: expected at most {self.length} positions",
                f"{time}",
                "shorten the input, or build the model with a longer context",
            )
        y = self.buffer("y", x.shape)
        if self.starts is not None:
            embed(self.embeddings.value, self._positions(), as_rows(y))
            return np.add(x, y, out=y)
        return np.add(x, self.embeddings.value[:time], out=y)

    def _positions(self) -> Array:
        starts = self.saved(self.starts)
        place = self.buffer("place", starts.shape, np.int64)
        np.subtract(np.arange(starts.shape[1]), starts, out=place)
        return place.reshape(-1)

    def backward(self, dy: Array, done: Done = nothing) -> Any:
        time = dy.shape[1]
        grad = self.embeddings.grad
        if not self.embeddings.trainable:
            return dy
        if self.starts is not None:
            rows = as_rows(dy)
            work = self.scratch(rows.shape)
            embed_backward(rows, self._positions(), grad, work, add=False)
            return dy
        np.sum(dy, axis=0, out=grad[:time])
        grad[time:] = 0
        return dy


class TiedHead(Layer):
    """logits = x Eᵀ with the table E of an embedding (Press, Wolf, 2017).

    (batch, time, features) -> (batch, time, input_dim). It has no weights of its own;
    in backward it comes first, so it writes the table's gradient and the embedding
    adds to it.
    """

    rows_apart = True

    def __init__(self, embedding: Embedding, name: str | None = None) -> None:
        super().__init__(name=name)
        self.embedding = embedding
        self._x: Array | None = None

    def build(self, input_shape: Shape) -> Shape:
        self.table = self.share(self.embedding.embeddings)
        return (*input_shape[:-1], self.embedding.input_dim)

    def forward(self, x: Array, training: Training = False) -> Array:
        self._x = x
        y = self.buffer("y", (*x.shape[:-1], self.embedding.input_dim))
        np.matmul(as_rows(x), self.table.value.T, out=as_rows(y))
        return y

    def backward(self, dy: Array, done: Done = nothing) -> Any:
        x = self.saved(self._x)
        if self.table.trainable:
            np.matmul(as_rows(dy).T, as_rows(x), out=self.table.grad)
        dx = self.scratch(x.shape)
        np.matmul(as_rows(dy), self.table.value, out=as_rows(dx))
        return dx

    def backward_rows(self, dy: Array, dx: Array, add: bool) -> None:
        x = as_rows(self.saved(self._x))
        if not self.table.trainable:
            pass
        elif add:
            add_product(dy, x, self.table.grad)
        else:
            np.matmul(dy.T, x, out=self.table.grad)
        np.matmul(dy, self.table.value, out=dx)
