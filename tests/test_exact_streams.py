"""Streams with the algorithm exact: the same bits on any number of ranks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import fastserve as fs
from fastserve.comm import Communicator, run_threads
from fastserve.core import Array
from fastserve.training.step import Options

SIZES = (12, 12, 7, 12, 3, 12)  # rows of each batch


def batches(masked: bool = False) -> Iterator[Any]:
    rng = np.random.default_rng(0)
    for size in SIZES:
        x = rng.standard_normal((size, 5)).astype(np.float32)
        y = x @ np.arange(10, dtype=np.float32).reshape(5, 2)
        yield (x, y, rng.random(size).astype(np.float32)) if masked else (x, y)


class Numbered:
    """Batches by number, as Keras' PyDataset."""

    def __init__(self, *_: Any) -> None:
        self._made = list(batches())

    def __len__(self) -> int:
        return len(self._made)

    def __getitem__(self, number: int) -> Any:
        return self._made[number]


def trained(comm: Communicator, kind: str, micro_batch: int | None) -> list[Array]:
    model = fs.models.Sequential(
        [
            fs.layers.Dense(16, activation="relu", input_shape=(5,)),
            fs.layers.BatchNormalization(),
            fs.layers.Dropout(0.2),
            fs.layers.Dense(2),
        ],
        seed=1,
    )
    model.compile("adam", "mse", metrics=["mae"])
    model.options = Options(algorithm="exact", micro_batch=micro_batch)
    if kind == "numbered":
        history = model.fit(Numbered(), epochs=2, verbose=0)
    else:
        source = batches(kind == "weighted")
        check = list(batches())
        history = model.fit(source, epochs=1, verbose=0, validation_data=iter(check))
    numbers = [np.array(v) for _, v in sorted(history.history.items())]
    return [*model.get_weights(), *numbers]


@pytest.mark.parametrize("micro_batch", [None, 4])
@pytest.mark.parametrize("kind", ["generator", "weighted", "numbered"])
def test_streams_give_the_same_bits(kind: str, micro_batch: int | None) -> None:
    def program(comm: Communicator) -> list[Array]:
        return trained(comm, kind, micro_batch)

    (alone,) = run_threads(1, program)
    for ranks in (2, 3):
        for found in run_threads(ranks, program):
            for a, b in zip(alone, found, strict=True):
                np.testing.assert_array_equal(a, b)
