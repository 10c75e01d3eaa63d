"""What ``fastserve bench layers`` measures, on our side."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastserve import layers
from fastserve.bench.step import our_step
from fastserve.core import Array, Layer, Memory, ParameterStore, StepKey
from fastserve.models import Model as GraphModel
from fastserve.models import Sequential
from fastserve.models.model import Model
from fastserve.optimizers import Adam

Run = Callable[[], Any]
RATE = 1e-5  # of learning: hundreds of steps on one batch shall leave it interesting


@dataclass(frozen=True)
class Case:
    """Something to be timed.

    Attributes:
        about: what it is, in a line.
        flop: floating-point operations of the matrix products of one run.
        make: returns what makes one run.
    """

    about: str
    flop: float
    make: Callable[[], Run]


def images(batch: int, *shape: int, classes: int = 10) -> tuple[Array, Array]:
    """Return inputs (batch, *shape) and labels (batch,), the same at every call."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((batch, *shape), np.float32)
    return x, rng.integers(0, classes, batch)


def conv_flop(size: int, kernel: int, channels: int, filters: int) -> float:
    """Of a sample's forward and both gradients, for outputs of size x size."""
    return 6.0 * size**2 * kernel**2 * channels * filters


def recurrent_flop(gates: int, time: int, features: int, units: int) -> float:
    """Of a sample's forward and all gradients."""
    return 6.0 * gates * time * (features + units) * units


def dense_flop(*sizes: int) -> float:
    """Of a sample's step: the input of the first layer needs no gradient."""
    parts = [6.0 * a * b for a, b in itertools.pairwise(sizes)]
    return sum(parts) - 2.0 * sizes[0] * sizes[1]


def _step(model: Model, x: Array, y: Array) -> Run:
    model.compile(Adam(RATE), "sparse_categorical_crossentropy")
    return our_step(model, x, y)


MLP, MLP_BATCH = (784, 512, 512, 10), 128
SMALL, SMALL_BATCH = (784, 128, 64, 10), 32
FIT_ROWS = 8192


def _mlp(sizes: tuple[int, ...]) -> Sequential:
    hidden = [layers.Dense(units, "relu") for units in sizes[1:-1]]
    return Sequential([*hidden, layers.Dense(sizes[-1], "softmax")])


def _mlp_step() -> Run:
    return _step(_mlp(MLP), *images(MLP_BATCH, MLP[0]))


def _fit(sizes: tuple[int, ...], batch: int) -> Run:
    """An epoch of fit, with accuracy, as a user writes it."""
    x, y = images(FIT_ROWS, sizes[0])
    model = _mlp(sizes)
    model.compile(Adam(RATE), "sparse_categorical_crossentropy", metrics=["accuracy"])
    return lambda: model.fit(x, y, batch_size=batch, verbose=0)


# batch, size, channels, filters, padding
CONVOLUTIONS = {
    "conv-26": (64, 26, 32, 64, "valid"),
    "conv-32": (32, 32, 64, 64, "same"),
    "conv-16": (32, 16, 128, 128, "same"),
}
# batch, time, features, units
SEQUENCES = {"128": (64, 100, 128, 128), "256": (32, 50, 64, 256)}


def random_like(shape: tuple[int, ...], seed: int = 1) -> Array:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def _layer(layer: Layer, x: Array) -> Run:
    """Forward and backward of one layer, with the gradient of its input."""
    shape = layer.build_once(x.shape[1:])
    layer.bind(Memory(), np.dtype(np.float32))
    ParameterStore(layer, seed=1)
    dy = random_like((len(x), *(n or 1 for n in shape)))

    def run() -> Array:
        layer.forward(x, StepKey())
        dx: Array = layer.backward(dy)
        return dx

    return run


def _convolution(name: str) -> Case:
    batch, size, channels, filters, padding = CONVOLUTIONS[name]
    out = size if padding == "same" else size - 2
    return Case(
        f"3x3, {batch}x{size}x{size}x{channels} to {filters}, forward and gradients",
        batch * conv_flop(out, 3, channels, filters),
        lambda: _layer(
            layers.Conv2D(filters, 3, padding=padding),
            random_like((batch, size, size, channels)),
        ),
    )


def _recurrent(kind: str, gates: int, shape: str) -> Case:
    batch, time, features, units = SEQUENCES[shape]
    return Case(
        f"{kind}, {batch}x{time}x{features} to {units}, forward and gradients",
        batch * recurrent_flop(gates, time, features, units),
        lambda: _layer(
            getattr(layers, kind)(units, return_sequences=True),
            random_like((batch, time, features)),
        ),
    )


LENET_BATCH, LENET_FLOP = (
    64,
    (
        conv_flop(28, 5, 1, 6) * 2 / 3
        + conv_flop(10, 5, 6, 16)
        + dense_flop(400, 120, 84, 10)
        + 2.0 * 400 * 120
    ),
)


def _lenet() -> Run:
    model = Sequential(
        [
            layers.Conv2D(6, 5, padding="same", activation="relu"),
            layers.MaxPooling2D(),
            layers.Conv2D(16, 5, activation="relu"),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dense(120, "relu"),
            layers.Dense(84, "relu"),
            layers.Dense(10, "softmax"),
        ]
    )
    return _step(model, *images(LENET_BATCH, 28, 28, 1))


CNN_BATCH, CNN_FLOP = (
    64,
    (
        conv_flop(26, 3, 1, 32) * 2 / 3
        + conv_flop(11, 3, 32, 64)
        + dense_flop(1600, 10)
        + 2.0 * 1600 * 10
    ),
)


def _cnn() -> Run:
    model = Sequential(
        [
            layers.Conv2D(32, 3, activation="relu"),
            layers.MaxPooling2D(),
            layers.Conv2D(64, 3, activation="relu"),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dense(10, "softmax"),
        ]
    )
    return _step(model, *images(CNN_BATCH, 28, 28, 1))


# filters and size of each stage; two blocks of two convolutions in each
STAGES, RESNET_BATCH = ((16, 32), (32, 16), (64, 8)), 32


def _resnet_flop() -> float:
    total, channels = conv_flop(32, 3, 3, 16) * 2 / 3, 16
    for filters, size in STAGES:
        total += conv_flop(size, 3, channels, filters)
        total += 3 * conv_flop(size, 3, filters, filters)
        total += conv_flop(size, 1, channels, filters) if channels < filters else 0
        channels = filters
    return total + dense_flop(64, 10) + 2.0 * 64 * 10


def _resnet() -> Run:
    """The network of He et al., 2015, for 32x32 images, of 14 layers."""

    def normal(x: Any) -> Any:
        return layers.BatchNormalization()(x)

    def relu(x: Any) -> Any:
        return layers.Activation("relu")(x)

    def convolution(x: Any, filters: int, kernel: int = 3, strides: int = 1) -> Any:
        return layers.Conv2D(
            filters, kernel, strides=strides, padding="same", use_bias=False
        )(x)

    inputs = layers.Input((32, 32, 3))
    x = relu(normal(convolution(inputs, 16)))
    for filters, size in STAGES:
        for block in range(2):
            strides = 2 if block == 0 and size < 32 else 1
            shortcut = x
            if strides > 1:
                shortcut = normal(convolution(x, filters, 1, strides))
            x = relu(normal(convolution(x, filters, 3, strides)))
            x = normal(convolution(x, filters))
            x = relu(layers.Add()([x, shortcut]))
    x = layers.GlobalAveragePooling2D()(x)
    model = GraphModel(inputs, layers.Dense(10, "softmax")(x))
    return _step(model, *images(RESNET_BATCH, 32, 32, 3))


# batch, time, words, width and units
CLASSIFIER = (32, 100, 10000, 128)


def words() -> tuple[Array, Array]:
    """Return words (batch, time) and labels 0 or 1 (batch, 1)."""
    batch, time, size, _ = CLASSIFIER
    rng = np.random.default_rng(0)
    x = rng.integers(0, size, (batch, time))
    return x, rng.integers(0, 2, (batch, 1)).astype(np.float32)


def _classifier() -> Run:
    _, _, size, width = CLASSIFIER
    model = Sequential(
        [
            layers.Embedding(size, width),
            layers.LSTM(width),
            layers.Dense(1, "sigmoid"),
        ]
    )
    model.compile(Adam(RATE), "binary_crossentropy")
    return our_step(model, *words())


CASES: dict[str, Case] = {
    "mlp": Case(
        "784-512-512-10, batch 128, Adam",
        MLP_BATCH * dense_flop(*MLP),
        _mlp_step,
    ),
    "mlp-fit": Case(
        "the same, an epoch of 8192 samples, with accuracy",
        FIT_ROWS * dense_flop(*MLP),
        lambda: _fit(MLP, MLP_BATCH),
    ),
    "small-fit": Case(
        "784-128-64-10, batch 32, an epoch of 8192 samples, with accuracy",
        FIT_ROWS * dense_flop(*SMALL),
        lambda: _fit(SMALL, SMALL_BATCH),
    ),
    **{name: _convolution(name) for name in CONVOLUTIONS},
    "lenet": Case(
        "two 5x5 convolutions and three dense layers, 28x28, batch 64, Adam",
        LENET_BATCH * LENET_FLOP,
        _lenet,
    ),
    "cnn": Case(
        "two 3x3 convolutions of 32 and 64 filters, 28x28, batch 64, Adam",
        CNN_BATCH * CNN_FLOP,
        _cnn,
    ),
    "resnet": Case(
        "14 layers with batch normalization, 32x32, batch 32, Adam",
        RESNET_BATCH * _resnet_flop(),
        _resnet,
    ),
    **{f"lstm-{shape}": _recurrent("LSTM", 4, shape) for shape in SEQUENCES},
    **{f"gru-{shape}": _recurrent("GRU", 3, shape) for shape in SEQUENCES},
    "classifier": Case(
        "10000 words of width 128, LSTM of 128, 32x100, Adam",
        CLASSIFIER[0] * recurrent_flop(4, CLASSIFIER[1], CLASSIFIER[3], CLASSIFIER[3]),
        _classifier,
    ),
}
