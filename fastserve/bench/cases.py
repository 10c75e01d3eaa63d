"""What ``fastserve bench layers`` measures, on our side."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastserve import layers
from fastserve.bench.step import our_step
from fastserve.core import Array
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
}
