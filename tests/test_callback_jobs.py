"""Jobs with schedule.type plateau, train.csv and train.tensorboard."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path
from typing import Any

import pytest
from test_callbacks_keras import read_events
from test_training_jobs import TEXT, validations
from test_worker import metrics, rank_program

JOB = """
name: tiny
seed: 1
model: {type: gpt, n_layer: 1, n_head: 2, n_embd: 16, block_size: 16}
data: {type: text, source: text.txt, validation_split: 0.2}
train: {global_batch: 6, steps: 40, eval_every: 4, eval_batches: 3, log_every: 2,
        sample_tokens: 0, csv: true, tensorboard: true, baseline: false}
optimizer: {type: adamw, lr: 1e-2}
schedule: {type: plateau, factor: 0.5, patience: 2, cooldown: 1, warmup_steps: 3,
           min_lr: 1e-4}
checkpoint: {every: 5, keep: 99}
"""


def start(folder: Path) -> None:
    (folder / "job.yaml").write_text(JOB)
    (folder / "text.txt").write_text(TEXT)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("alone")
    start(folder)
    done = rank_program(folder)
    assert done.returncode == 0, done.stderr
    (folder / "out.txt").write_text(done.stdout)
    return folder / "runs/tiny"


def rates(run_dir: Path) -> list[float]:
    return [m["learning_rate"] for m in metrics(run_dir) if "learning_rate" in m]


def lines(run_dir: Path) -> list[dict[str, Any]]:
    with (run_dir / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_rate_falls_as_the_validations_say(alone: Path) -> None:
    rate, best, wait, cooldown = 1e-2, None, 0, 0
    wanted = []
    for loss in validations(alone).values():
        wanted += [rate, rate]
        if cooldown:
            cooldown, wait = cooldown - 1, 0
        if best is None or best - loss > 1e-4:
            best, wait = loss, 0
        elif not cooldown:
            wait += 1
            if wait >= 2:
                rate, cooldown, wait = max(rate / 2, 1e-4), 1, 0
    assert rate < 1e-2
    found = rates(alone)
    assert found[0] == pytest.approx(1e-2 * 2 / 3)  # the second step of the warm-up
    assert found[2:] == pytest.approx(wanted[2:])
    out = (alone.parents[1] / "out.txt").read_text()
    assert "learning rate reduced to 0.005" in out


def test_the_table_and_the_events(alone: Path) -> None:
    table, found = lines(alone), validations(alone)
    assert [int(line["epoch"]) for line in table] == list(range(10))
    losses = [float(line["val_loss"]) for line in table]
    assert losses == pytest.approx(list(found.values()))
    train = read_events(alone / "tensorboard/train")
    assert [s for s, _ in train["batch_loss"]] == list(range(0, 40, 2))
    valid = read_events(alone / "tensorboard/validation")
    by_step = dict(valid["evaluation_loss_vs_iterations"])
    assert by_step == pytest.approx(found, rel=1e-5)
    assert [v for _, v in valid["epoch_perplexity"]]


@pytest.mark.parametrize("first", [15, 20])
def test_a_resumed_job_is_the_same(alone: Path, tmp_path: Path, first: int) -> None:
    start(tmp_path)
    shutil.copytree(alone, tmp_path / "runs/tiny")
    for path in (tmp_path / "runs/tiny/checkpoints").iterdir():
        if path.name > f"step-{first:08d}":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    (tmp_path / "runs/tiny/done.json").unlink()
    done = rank_program(tmp_path, "--resume", "auto")
    assert done.returncode == 0, done.stderr
    again = tmp_path / "runs/tiny"
    model = "checkpoints/step-00000040/model.safetensors"
    assert (again / model).read_bytes() == (alone / model).read_bytes()
    assert rates(again) == rates(alone)
    assert lines(again) == lines(alone)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["train.eval_every=null"], "as schedule.type is plateau"),
        (["data.validation_split=0"], "validation"),
        (["schedule.factor=2"], "schedule.factor: expected"),
    ],
)
def test_what_does_not_fit(tmp_path: Path, overrides: list[str], message: str) -> None:
    start(tmp_path)
    done = rank_program(tmp_path, *(f"--set={o}" for o in overrides))
    assert done.returncode == 2
    assert message in done.stderr
