"""The lines of metrics.jsonl: what they are over."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastserve as fs
from fastserve.training.metrics_file import MetricsFile

ROWS, BATCH = 70, 20  # the last batch of an epoch has 10


def train(
    folder: Path, every: int
) -> tuple[list[dict[str, Any]], dict[str, list[float]]]:
    """Train for two epochs of four steps; return the lines and the history."""
    rng = np.random.default_rng(3)
    x = rng.standard_normal((ROWS, 5)).astype(np.float32)
    y = (x[:, 0] + rng.standard_normal(ROWS) > 0).astype(np.int64)
    layers = [
        fs.layers.Dense(8, activation="tanh", input_shape=(5,)),
        fs.layers.Dense(2, activation="softmax"),
    ]
    model = fs.models.Sequential(layers, seed=1)
    model.compile("sgd", "sparse_categorical_crossentropy", metrics=["accuracy"])
    path = folder / f"{every}.jsonl"
    lines = MetricsFile(path, every)
    made = model.fit(x, y, BATCH, 2, verbose=0, callbacks=[lines])
    return [json.loads(line) for line in path.read_text().splitlines()], made.history


def test_a_line_of_an_epoch_has_the_epochs_metrics(tmp_path: Path) -> None:
    lines, history = train(tmp_path, 4)
    assert [line["step"] for line in lines] == [4, 8]
    for name in ("loss", "accuracy"):
        np.testing.assert_allclose([line[name] for line in lines], history[name])


@pytest.mark.parametrize("every", [2, 3])
def test_a_line_has_those_of_its_steps_alone(tmp_path: Path, every: int) -> None:
    single, _ = train(tmp_path, 1)
    rows = np.array([20, 20, 20, 10] * 2)
    assert [line["step"] for line in single] == list(range(1, 9))
    right = [line["accuracy"] for line in single] * rows  # samples that were right
    np.testing.assert_allclose(right, np.round(right), atol=1e-9)
    for line in train(tmp_path, every)[0]:
        steps = slice((line["step"] - 1) // every * every, line["step"])
        expected = right[steps].sum() / rows[steps].sum()
        assert line["accuracy"] == pytest.approx(expected, abs=1e-12), line
