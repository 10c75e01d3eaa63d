"""Short trainings follow Keras': same weights, same batches, the same losses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from references.curves import CLASSES, OPTIMIZERS, TIME, WORDS, batches, start

import fastserve as fs

CURVES = json.loads(
    Path(__file__).with_name("references").joinpath("curves.json").read_text()
)


def mlp() -> list[Any]:
    layers = fs.layers
    return [
        fs.Input((20,)),
        layers.Dense(32, "relu"),
        layers.Dense(16, "tanh"),
        layers.Dense(CLASSES, "softmax"),
    ]


def cnn() -> list[Any]:
    layers = fs.layers
    return [
        fs.Input((12, 12, 3)),
        layers.Conv2D(8, 3, padding="same", use_bias=False),
        layers.BatchNormalization(),
        layers.Activation("relu"),
        layers.MaxPooling2D(),
        layers.Conv2D(12, 3, strides=2, padding="same"),
        layers.BatchNormalization(),
        layers.Activation("relu"),
        layers.AveragePooling2D(3, strides=1),
        layers.Flatten(),
        layers.Dense(CLASSES, "softmax"),
    ]


def lstm() -> list[Any]:
    layers = fs.layers
    return [
        fs.Input((TIME,)),
        layers.Embedding(WORDS, 8, mask_zero=True),
        layers.LSTM(16, return_sequences=True),
        layers.LSTM(12),
        layers.Dense(CLASSES, "softmax"),
    ]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("layers", [mlp, cnn, lstm])
def test_losses_of_50_steps(layers: Any, optimizer: str) -> None:
    model = fs.Sequential(layers())
    made = {"adam": fs.optimizers.Adam, "sgd": fs.optimizers.SGD}[optimizer]
    model.compile(made(**OPTIMIZERS[optimizer]), "sparse_categorical_crossentropy")
    weights = model.get_weights()
    for i, matrix in enumerate(start([w.shape for w in weights])):
        weights[i] = weights[i] if matrix is None else matrix
    model.set_weights(weights)
    found = [model.train_on_batch(x, y) for x, y in batches(layers.__name__)]
    wanted = CURVES[f"{layers.__name__} {optimizer}"]
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-3)
