"""``fs.utils.gradient_error`` finds wrong gradients, and only those."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import fastserve as fs

X = np.random.default_rng(1).standard_normal((5, 4))


class Times(fs.layers.Layer):
    """y = a x; ``fault`` says what is wrong with its backward."""

    def __init__(self, fault: str = "") -> None:
        super().__init__()
        self.fault = fault

    def build(self, input_shape: Any) -> Any:
        self.a = self.param("a", input_shape, fs.initializers.Ones())
        return input_shape

    def forward(self, x: Any, training: Any = False) -> Any:
        self.x = x
        return x * self.a.value

    def backward(self, dy: Any, done: Any = None) -> Any:
        if self.fault != "no gradient of a":
            self.a.grad[...] = (dy * self.x).sum(axis=0)
        if self.fault == "a mean":
            self.a.grad[...] /= len(dy)
        if self.fault == "writes":
            dy *= self.a.value
        return dy if self.fault == "dx" else dy * self.a.value


@pytest.mark.parametrize(
    "layer",
    [
        Times(),
        fs.layers.Dense(3, activation="tanh"),
        fs.layers.LayerNormalization(),
        fs.layers.BatchNormalization(),
        fs.layers.Flatten(),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_right_gradients(layer: Any) -> None:
    assert fs.utils.gradient_error(layer, X) < 1e-7


def test_integers_have_no_gradient() -> None:
    numbers = np.array([[1, 2], [0, 2]])
    assert fs.utils.gradient_error(fs.layers.Embedding(3, 4), numbers) < 1e-7


@pytest.mark.parametrize("fault", ["a mean", "dx"])
def test_wrong_gradients(fault: str) -> None:
    assert fs.utils.gradient_error(Times(fault), X) > 1e-2


def test_a_gradient_that_is_left_out() -> None:
    assert np.isnan(fs.utils.gradient_error(Times("no gradient of a"), X))


def test_a_backward_that_writes_to_what_it_is_given() -> None:
    with pytest.raises(ValueError, match="read-only"):
        fs.utils.gradient_error(Times("writes"), X)


def test_a_layer_that_is_built() -> None:
    layer = fs.layers.Dense(2)
    layer.build_once((4,))
    with pytest.raises(fs.errors.StateError, match="hasn't been built"):
        fs.utils.gradient_error(layer, X)
