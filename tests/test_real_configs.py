"""The configs on real data: each makes a few steps, and is found by its data's name."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from mpi_environments import run, variables
from real_data import real

from fastserve.config import load_job

CONFIGS = Path(__file__).parents[1] / "configs"
NAMES = {
    "diamonds": "diamonds",
    "digits": "digits",
    "fashion-mnist": "fashion-mnist",
    "film-sentiment": "film-sentiment",
    "news": "news",
    "spam": "spam",
    "tagged-words": "tagged-words",
}
FEW = (
    "train.epochs=null",
    "train.steps=3",
    "train.eval_every=null",
    "train.eval_batches=1",
    "schedule.warmup_steps=0",
    "checkpoint.best=false",
)


def test_all_such_configs_are_here() -> None:
    kinds = ("dataset", "csv")
    found = {p.stem for p in CONFIGS.glob("*.yaml") if load_kind(p) in kinds}
    assert found == set(NAMES)


def load_kind(path: Path) -> str:
    try:
        return load_job(path, files=False).data.type
    except ValueError:  # it starts from what isn't here
        return ""


@pytest.mark.parametrize("name", NAMES)
def test_a_few_steps(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real(NAMES[name], monkeypatch)  # it sets the folder
    words = [part for override in FEW for part in ("--set", override)]
    done = run(
        [sys.executable, "-m", "fastserve", str(CONFIGS / f"{name}.yaml"), *words],
        120,
        cwd=tmp_path,
        env=variables(FASTSERVE_DATA_DIR=os.environ["FASTSERVE_DATA_DIR"]),
    )
    assert done.returncode == 0, done.stderr
    run_dir = tmp_path / "runs" / name
    rows = list(map(json.loads, (run_dir / "metrics.jsonl").read_text().splitlines()))
    assert all(np.isfinite(row["val_loss"]) for row in rows if "val_loss" in row)
    assert rows[-1]["step"] == 3 and "val_loss" in rows[-1]
    assert (run_dir / "preprocessing.json").stat().st_size > 100
    assert "to test" in done.stdout
