"""Jobs whose model is a file of ``model.to_json()``."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from mpi_environments import run, variables

import fastserve as fs
from fastserve import config
from fastserve.assemble.model import make_model
from fastserve.errors import DataError

JOB = """
name: two
model: {type: json, file: arch.json, loss: {kind: sparse_categorical_crossentropy,
        size: mse}, metrics: {kind: [accuracy]}, loss_weights: {size: 0.5}}
data: {type: python, file: data.py, function: make}
train: {global_batch: 10, epochs: 2, eval_every: 4}
optimizer: {type: sgd, lr: 0.1}
"""
DATA = """
import numpy as np

def make():
    rng = np.random.default_rng(0)
    x = (rng.standard_normal((40, 4)), rng.integers(0, 6, (40, 3)))
    y = (rng.integers(0, 3, 40), rng.standard_normal((40, 2)))
    return (x, y), (x, y)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    numbers, words = fs.Input((4,)), fs.Input((3,))
    table = fs.layers.Embedding(6, 2)
    both = fs.layers.concatenate([numbers, fs.layers.Flatten()(table(words))])
    kind = fs.layers.Dense(3, "softmax", name="kind")(both)
    size = fs.layers.Dense(2, name="size")(both)
    model = fs.Model([numbers, words], [kind, size], seed=5)
    (tmp_path / "arch.json").write_text(model.to_json(indent=1))
    (tmp_path / "job.yaml").write_text(JOB)
    (tmp_path / "data.py").write_text(DATA)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_job_of_a_file(folder: Path) -> None:
    command = [sys.executable, "-m", "fastserve", "job.yaml"]
    result = run(command, 60, cwd=folder, env=variables())
    assert result.returncode == 0, result.stderr
    lines = (folder / "runs" / "two" / "metrics.jsonl").read_text().splitlines()
    found = json.loads(lines[-1])
    assert {"val_loss", "val_kind_loss", "val_size_loss", "val_kind_accuracy"} <= set(
        found
    )
    total = found["val_kind_loss"] + 0.5 * found["val_size_loss"]
    assert found["val_loss"] == pytest.approx(total, rel=1e-5)


def test_the_jobs_seed_counts(folder: Path) -> None:
    values = []
    for seed in (1, 2, 1):
        job = config.load_job("job.yaml", [f"seed={seed}"])
        values.append(make_model(job, None).store.values)
    assert np.array_equal(values[0], values[2])
    assert not np.array_equal(values[0], values[1])


@pytest.mark.parametrize("text", ["", "[1]", "{}"])
def test_a_file_that_is_no_architecture(folder: Path, text: str) -> None:
    (folder / "arch.json").write_text(text)
    with pytest.raises(DataError):
        make_model(config.load_job("job.yaml"), None)
