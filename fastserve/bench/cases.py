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

Run = Callable[[], Any]


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
    model.compile("adam", "sparse_categorical_crossentropy")
    return our_step(model, x, y)


MLP = (784, 512, 512, 10)
MLP_BATCH = 128


def _mlp() -> Run:
    hidden = [layers.Dense(units, "relu") for units in MLP[1:-1]]
    model = Sequential([*hidden, layers.Dense(MLP[-1], "softmax")])
    return _step(model, *images(MLP_BATCH, MLP[0]))


CASES: dict[str, Case] = {
    "mlp": Case(
        "784-512-512-10, batch 128, Adam",
        MLP_BATCH * dense_flop(*MLP),
        _mlp,
    ),
}
