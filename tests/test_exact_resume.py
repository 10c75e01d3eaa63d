"""A signal in the middle of a step's accumulation, or of an evaluation: resumed on
another number of ranks the run ends with the bits of one that was never stopped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mpi_environments import require, run

JOB = """
name: tiny
model: {type: python, file: model.py}
data: {type: arrays, file: data.npz}
train: {global_batch: 8, micro_batch: 2, steps: 40, log_every: 3, eval_every: 5,
        early_stop: 3, baseline: false, csv: true}
optimizer: {type: adam, lr: 0.05}
schedule: {type: plateau, patience: 1}
checkpoint: {every: 50, keep: 9, best: true}
comm: {algorithm: exact}
launch: {oversubscribe: true}
"""
MODEL = """
import os, signal
import fastserve as fs

MOMENT, _, COUNT = os.environ.get("SIGNAL_AT", "none 0").partition(" ")

class Signals(fs.layers.Layer):
    passes = 0

    def forward(self, x, training=False):
        if (MOMENT == "train") == bool(training) and fs.world().rank == 0:
            self.passes += 1
            if self.passes == int(COUNT):
                os.kill(os.getpid(), signal.SIGUSR1)
        return x

    def backward(self, dy, done=None):
        return dy

def make_model():
    model = fs.models.Sequential([
        fs.layers.Dense(8, "relu", input_shape=(3,)), fs.layers.BatchNormalization(),
        fs.layers.Dropout(0.3), Signals(), fs.layers.Dense(2),
    ])
    model.compile("adam", "mse", metrics=["mae"])
    return model
"""
TIMED = ("time", "samples_per_s", "gflops")


def started(folder: Path, name: str, ranks: int, *more: str) -> int:
    words = [str(require("openmpi") / "bin/python"), "-m", "launch.cli", "run"]
    words += ["job.yaml", "--set", f"name={name}", "-n", str(ranks), *more]
    done = run(words, 120, cwd=folder)
    assert done.returncode in (0, 75), done.stdout + done.stderr
    return done.returncode


def result(run_dir: Path) -> dict[str, Any]:
    """Return what must be alike: the files' checksums, what callbacks know, lines."""
    last = max(run_dir.glob("checkpoints/step-*/state.json"))
    found: dict[str, Any] = {}
    for path in (last, run_dir / "checkpoints/best/state.json"):
        body = json.loads(path.read_text())
        state = {k: v for k, v in body["state"].items() if k not in ("metrics", "csv")}
        found[path.parent.name] = body["files"], state
    lines = map(json.loads, (run_dir / "metrics.jsonl").read_text().splitlines())
    found["lines"] = [{k: v for k, v in x.items() if k not in TIMED} for x in lines]
    found["ended"] = json.loads((run_dir / "done.json").read_text())["stopped"]
    return found


@pytest.mark.mpi
def test_signals_within_a_step_and_an_evaluation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((52, 3)).astype(np.float32)
    y = np.stack([x.sum(1), x[:, 0]], 1) + rng.standard_normal((52, 2))
    np.savez(
        tmp_path / "data.npz",
        x_train=x[:44],
        y_train=y[:44].astype(np.float32),
        x_val=x[44:],
        y_val=y[44:].astype(np.float32),
    )
    (tmp_path / "job.yaml").write_text(JOB)
    (tmp_path / "model.py").write_text(MODEL)
    assert started(tmp_path, "whole", 1) == 0
    whole = result(tmp_path / "runs/whole")
    assert all("mae" in line or "val_mae" in line for line in whole["lines"])
    # rank 0 of two makes two of a step's four parts, and two of an evaluation's four
    for name, moment in (("train", "train 15"), ("evaluation", "evaluate 3")):
        monkeypatch.setenv("SIGNAL_AT", moment)
        assert started(tmp_path, name, 2) == 75
        monkeypatch.delenv("SIGNAL_AT")
        assert started(tmp_path, name, 1, "--resume", "auto") == 0
        assert result(tmp_path / f"runs/{name}") == whole, name
