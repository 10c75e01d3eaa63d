"""A filtering layer and the max pooling behind it, as one step of a chain."""

from __future__ import annotations

from typing import Any

from fastserve.core import Array, Done, Layer, Training
from fastserve.layers.convolution_base import Filtering
from fastserve.layers.pooling import MaxPooling1D, MaxPooling2D
from fastserve.ops.blocks import as_rows
from fastserve.ops.convolution import add_row
from fastserve.ops.linear import sum_rows

RISING = ("linear", "relu", "tanh", "sigmoid")  # they never fall


class Pooled:
    """activation(max(z) + bias) instead of max(activation(z + bias)).

    Both are the same for an activation that never falls, and so are the gradients,
    which only those that won get. Bias, activation and their gradients then work on
    what the pooling leaves, a quarter of the numbers.
    """

    def __init__(self, filtering: Filtering, pooling: MaxPooling2D) -> None:
        self.filtering, self.pooling = filtering, pooling

    def forward(self, x: Array, training: Training) -> Array:
        one, pooling = self.filtering, self.pooling
        one.bare = True
        try:
            z = one.forward(x, training)
        finally:
            one.bare = False
        y = pooling.forward(z, training)
        rows = as_rows(y)
        if one.use_bias:
            add_row(rows, one.bias.value)
        if one.activation.name != "linear":
            one.activation.forward(rows, rows)
        return y

    def backward(self, dy: Array, done: Done) -> Any:
        one, pooling = self.filtering, self.pooling
        dz = as_rows(dy)
        if one.activation.name != "linear":
            scratch = pooling.scratch(dy.shape)
            rows = as_rows(pooling.pooled())
            one.activation.backward(dz, rows, as_rows(scratch))
            dy, dz = scratch, as_rows(scratch)
        if one.use_bias and one.bias.trainable:
            sum_rows(dz, one.bias.grad)
        dx = pooling.backward(dy, done)
        done(pooling)
        del dy, dz
        dx = one.backward_bare(dx)
        done(one)
        return dx


def pooled(layer: Layer, following: Layer | None) -> Pooled | None:
    """Return the step that the two make, or None if they don't."""
    if not isinstance(layer, Filtering) or layer.activation.name not in RISING:
        return None
    if type(following) not in (MaxPooling1D, MaxPooling2D):
        return None
    return Pooled(layer, following)  # type: ignore[arg-type]
