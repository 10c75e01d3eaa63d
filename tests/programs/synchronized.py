"""Trains a model with synchronized layers; rank 0 saves its weights."""

import sys
from typing import Any

import numpy as np

import fastserve as fs
from fastserve.training.step import Options


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def network(dtype: str = "float64", **options: Any) -> fs.models.Sequential:
    layers = [
        fs.layers.Dense(5, input_shape=(3,)),
        fs.layers.BatchNormalization(synchronized=True, momentum=0.8),
        fs.layers.Dense(4, "tanh"),
        fs.layers.Residual(
            fs.layers.BatchNormalization(synchronized=True), fs.layers.Dense(4)
        ),
        fs.layers.BatchNormalization(synchronized=True, center=False, scale=False),
        fs.layers.Dense(2),
    ]
    if options.pop("first", False):
        layers.insert(
            0,
            fs.layers.BatchNormalization(synchronized=True, center=False, scale=False),
        )
    model = fs.models.Sequential(layers, seed=2, dtype=dtype)
    model.build((3,))
    model.compile("adam", "mse")
    model.options = Options(**{"check_every": 1, **options})
    return model


if __name__ == "__main__":
    x, y = 2 + rng().standard_normal((11, 3)), rng(1).standard_normal((11, 2))
    model = network(overlap=True, micro_batch=1)
    model.fit(x, y, batch_size=5, epochs=2, verbose=0)
    if fs.world().rank == 0:
        np.savez(sys.argv[1], *model.get_weights())
