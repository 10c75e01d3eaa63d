"""Activations: Keras' formulas, large inputs, working in place; the error function."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from gradcheck import frozen, prepare

from fastserve import layers
from fastserve.errors import UnknownNameError
from fastserve.ops import activations
from fastserve.ops.blocks import FLAT
from fastserve.ops.erf import erf

Array = np.ndarray[Any, np.dtype[Any]]
NAMES = list(activations.NAMED)
ROWS = ("softmax", "log_softmax", "sparsemax")
math_erf = np.vectorize(math.erf, otypes=[np.float64])


def sigmoid(z: Array) -> Array:
    return 1 / (1 + np.exp(-z))


def softmax(z: Array) -> Array:
    return np.exp(z) / np.exp(z).sum(-1, keepdims=True)


def elu(z: Array) -> Array:
    return np.where(z > 0, z, np.exp(z) - 1)


def hard_sigmoid(z: Array) -> Array:
    return np.clip(z / 6 + 0.5, 0, 1)


# all that keras.activations of Keras 3.13 names but glu, as it documents them
FORMULAS: dict[str, Callable[[Array], Array]] = {
    "linear": lambda z: z,
    "relu": lambda z: np.where(z > 0, z, 0),
    "threshold": lambda z: np.where(z > 0, z, 0),
    "relu6": lambda z: np.minimum(np.maximum(z, 0), 6),
    "leaky_relu": lambda z: np.where(z > 0, z, 0.2 * z),
    "hard_sigmoid": hard_sigmoid,
    "hard_silu": lambda z: z * hard_sigmoid(z),
    "hard_swish": lambda z: z * hard_sigmoid(z),
    "hard_tanh": lambda z: np.clip(z, -1, 1),
    "hard_shrink": lambda z: np.where(np.abs(z) > 0.5, z, 0),
    "soft_shrink": lambda z: np.sign(z) * np.maximum(np.abs(z) - 0.5, 0),
    "tanh_shrink": lambda z: z - np.tanh(z),
    "sparse_plus": lambda z: np.where(
        z <= -1, 0, np.where(z >= 1, z, (z + 1) ** 2 / 4)
    ),
    "sparse_sigmoid": lambda z: np.clip((z + 1) / 2, 0, 1),
    "sigmoid": sigmoid,
    "tanh": np.tanh,
    "exponential": np.exp,
    "softplus": lambda z: np.log(1 + np.exp(z)),
    "log_sigmoid": lambda z: np.log(sigmoid(z)),
    "softsign": lambda z: z / (1 + np.abs(z)),
    "squareplus": lambda z: (z + np.sqrt(z**2 + 4)) / 2,
    "elu": elu,
    "celu": elu,
    "selu": lambda z: 1.05070098 * np.where(z > 0, z, 1.67326324 * elu(z)),
    "silu": lambda z: z * sigmoid(z),
    "swish": lambda z: z * sigmoid(z),
    "mish": lambda z: z * np.tanh(np.log(1 + np.exp(z))),
    "gelu": lambda z: z * (1 + math_erf(z / math.sqrt(2))) / 2,
    "gelu_tanh": lambda z: (
        z * (1 + np.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3))) / 2
    ),
    "softmax": softmax,
    "log_softmax": lambda z: np.log(softmax(z)),
}


def forward(name: str, z: Array, slope: Array | None = None) -> Array:
    y = np.full_like(z, np.nan)
    activations.NAMED[name].forward(frozen(z), y, slope)
    return y


def backward(name: str, dy: Array, z: Array) -> Array:
    activation = activations.NAMED[name]
    slope = np.full_like(z, np.nan) if activation.needs_slope else None
    y = forward(name, z, slope)
    dx = np.full_like(z, np.nan)
    activation.backward(frozen(dy), frozen(y if slope is None else slope), dx)
    return dx


def example(dtype: Any = np.float64, shape: tuple[int, ...] = (20, 31)) -> Array:
    z = 3 * np.random.default_rng(0).standard_normal(shape)
    return z.astype(dtype)


def test_every_name_of_keras_is_here() -> None:
    assert set(FORMULAS) | {"sparsemax"} == set(NAMES)


@pytest.mark.parametrize("name", FORMULAS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_is_keras_formula(name: str, dtype: Any) -> None:
    z = example(dtype)
    y = forward(name, z)
    assert y.dtype == dtype
    tolerance = 2e-6 if dtype == np.float32 else 3e-8 if name == "selu" else 1e-13
    expected = FORMULAS[name](z.astype(np.float64))
    np.testing.assert_allclose(y, expected, rtol=tolerance, atol=tolerance)


def test_sparsemax_is_the_nearest_distribution() -> None:
    z = example(shape=(40, 7))
    y = forward("sparsemax", z)
    assert (y >= 0).all()
    np.testing.assert_allclose(y.sum(1), 1, rtol=1e-12)
    assert (y == 0).any()
    # what is above zero is z less one number, and the rest isn't above that number
    for row, out in zip(z, y, strict=True):
        tau = (row - out)[out > 0]
        np.testing.assert_allclose(tau, tau[0], rtol=1e-10)
        assert (row[out == 0] <= tau[0] + 1e-12).all()
    np.testing.assert_allclose(forward("sparsemax", z + 1e4), y, atol=1e-10)
    assert np.array_equal(forward("sparsemax", np.zeros((2, 4))), np.full((2, 4), 0.25))


@pytest.mark.parametrize("name", NAMES)
def test_training_and_inference_agree(name: str) -> None:
    z = example(np.float32)
    assert np.array_equal(forward(name, z), forward(name, z, np.empty_like(z)))


@pytest.mark.parametrize("name", NAMES)
def test_in_place(name: str) -> None:
    activation = activations.NAMED[name]
    z, dy = example(), np.random.default_rng(1).standard_normal((20, 31))
    y, dx = forward(name, z), backward(name, dy, z)
    work = z.copy()
    activation.forward(work, work)
    assert np.array_equal(work, y)
    saved, work = y, z.copy()
    if activation.needs_slope:  # the slope takes the place of the input
        out = np.empty_like(z)
        activation.forward(work, out, work)
        assert np.array_equal(out, y)
        saved = work
    gradient = dy.copy()
    activation.backward(gradient, saved, gradient)
    assert np.array_equal(gradient, dx)


@pytest.mark.parametrize("name", NAMES)
def test_pieces_are_one_whole(name: str) -> None:
    z = example(shape=(5, FLAT - 3))
    rows = [forward(name, row[None])[0] for row in z]
    np.testing.assert_allclose(forward(name, z), rows, rtol=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", NAMES)
def test_large_inputs_stay_finite(name: str, dtype: Any) -> None:
    """No overflow, which would be a warning, and warnings are errors."""
    largest = {"gelu_tanh": 1e12, "exponential": 80}.get(name, 1e30)
    size = np.logspace(-30, math.log10(largest), 200)
    z = np.concatenate([-size[::-1], [0.0, -0.0], size]).astype(dtype)[None]
    if name in ROWS:
        z = np.concatenate([z, z[:, ::-1], np.minimum(z, 0)])
    y, dx = forward(name, z), backward(name, np.ones_like(z), z)
    assert np.isfinite(y).all()
    assert np.isfinite(dx).all()
    if name not in ROWS:
        ends = {
            "leaky_relu": 0.2 * z[0, 0],
            "log_sigmoid": z[0, 0],
            "elu": -1,
            "celu": -1,
            "selu": -1.0507009873554805 * 1.6732632423543772,
            "softsign": -1,
            "tanh": -1,
            "hard_tanh": -1,
        }
        through = ("linear", "hard_shrink", "soft_shrink", "tanh_shrink")
        low = z[0, 0] if name in through else ends.get(name, 0.0)
        assert y[0, 0] == pytest.approx(low, rel=1e-6, abs=1e-12)
        assert dx[0, 0] == pytest.approx(
            1.0 if name in (*through, "log_sigmoid") else 0.2 * (name == "leaky_relu"),
            abs=1e-6,
        )


def test_an_infinite_exponential_warns_nobody() -> None:
    assert forward("exponential", np.array([[1e4]]))[0, 0] == np.inf


@pytest.mark.parametrize("name", ["relu", "softmax", None])
def test_get(name: str | None) -> None:
    activation = activations.get(name)
    assert activation.name == (name or "linear")
    assert activations.get(activation) is activation


def test_unknown_names_are_errors() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'gelu_tanh'") as error:
        activations.get("gelu_tan")
    assert error.value.expected == "expected the name of a known activation"
    assert error.value.received == "'gelu_tan'"
    with pytest.raises(UnknownNameError):
        layers.Dense(3, "glu")


@pytest.mark.parametrize(("dtype", "error"), [(np.float32, 4e-7), (np.float64, 5e-16)])
def test_erf(dtype: Any, error: float) -> None:
    x = np.concatenate([np.linspace(-7, 7, 20_001), np.logspace(-30, 1, 2001)])
    x = x.astype(dtype)
    y = np.empty_like(x)
    erf(frozen(x), y)
    expected = math_erf(x.astype(np.float64))
    np.testing.assert_allclose(y, expected, rtol=error, atol=0)
    assert np.array_equal(erf_of(-x), -y)


def erf_of(x: Array) -> Array:
    out = x.copy()
    erf(out, out)
    return out


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_erf_ends_at_exactly_one(dtype: Any) -> None:
    x = np.array([6, 40, 1e30, np.inf, -6, -1e30, -np.inf, 0, np.nan], dtype)
    np.testing.assert_array_equal(erf_of(x), [1, 1, 1, 1, -1, -1, -1, 0, np.nan])


def test_threads_do_not_share_what_is_spare() -> None:
    z = [example(np.float32, (400, 400)) * (1 + i) for i in range(4)]
    expected = [forward("gelu", part) for part in z]
    same: list[bool] = []

    def work(i: int) -> None:
        same.extend(
            np.array_equal(forward("gelu", z[i]), expected[i]) for _ in range(5)
        )

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert same == [True] * 20


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
@pytest.mark.parametrize("shape", [(4,), (3, 4)])
def test_backward_from_logits(activation: str, shape: tuple[int, ...]) -> None:
    """backward is backward_logits after the activation's own derivative."""
    for layer in (
        layers.Dense(5, activation),
        layers.Chain(layers.Dense(6, "tanh"), layers.Dense(5, activation)),
        layers.Chain(layers.Dense(5), layers.Activation(activation)),
    ):
        store = prepare(layer, shape)
        assert layer.fused_loss == activation
        rng = np.random.default_rng(0)
        y = layer.forward(rng.standard_normal((3, *shape)), True).copy()
        z = layer.logits().copy()
        np.testing.assert_allclose(FORMULAS[activation](z), y, rtol=1e-12)
        dy = rng.standard_normal(y.shape)
        dx = layer.backward(dy).copy()
        grads = store.grads.copy()
        dz = backward(activation, dy, z)
        store.grads.fill(np.nan)
        np.testing.assert_allclose(layer.backward_logits(dz), dx, rtol=1e-10)
        for parameter in store.parameters:
            np.testing.assert_allclose(
                parameter.grad, store.view(grads, parameter), rtol=1e-10, atol=1e-13
            )


def test_only_the_last_activation_is_fused() -> None:
    assert layers.Dense(5, "tanh").fused_loss is None
    assert layers.Chain(layers.Dense(5, "softmax"), layers.Dense(5)).fused_loss is None
    assert layers.Residual(layers.Dense(5, "softmax")).fused_loss is None
    assert layers.Chain().fused_loss is None
