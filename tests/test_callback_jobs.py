"""Jobs with schedule.type plateau; the metrics as a table and for TensorBoard."""

from __future__ import annotations

import csv
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from mpi_environments import run
from test_callbacks_keras import read_events
from test_training_jobs import TEXT, validations
from test_worker import metrics, rank_program

OF_THE_CLOCK = ("time", "tokens_per_s", "gflops")
JOB = """
name: tiny
seed: 1
model: {type: gpt, n_layer: 1, n_head: 2, n_embd: 16, block_size: 16}
data: {type: text, source: text.txt, validation_split: 0.2}
train: {global_batch: 6, steps: 40, eval_every: 4, eval_batches: 3, log_every: 2,
        sample_tokens: 0, tensorboard: true, baseline: false}
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


def test_the_table_has_the_lines_of_the_metrics(alone: Path) -> None:
    table, found = lines(alone), metrics(alone)
    assert len(table) == len(found) == 30
    assert list(table[0])[:3] == ["step", "time", "loss"]
    for row, line in zip(table, found, strict=True):
        given = {name: float(cell) for name, cell in row.items() if cell}
        assert given == line


# In a process of its own, as it warns of what it can't import.
READ = """
import json, sys
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
found = {}
for part in ("train", "validation"):
    events = EventAccumulator(f"{sys.argv[1]}/{part}", size_guidance={"scalars": 0})
    events.Reload()
    found[part] = {
        tag: [(e.step, e.value, e.wall_time) for e in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
    }
print(json.dumps(found))
"""


def test_tensorboard_itself_reads_the_metrics(alone: Path) -> None:
    command = [sys.executable, "-c", READ, str(alone / "tensorboard")]
    done = run(command, timeout=60)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    for part, is_of_part in (
        ("train", lambda name: not name.startswith("val_")),
        ("validation", lambda name: name.startswith("val_")),
    ):
        wanted: dict[str, list[tuple[int, float]]] = {}
        for line in metrics(alone):
            for name in filter(is_of_part, line.keys() - {"step", "time"}):
                point = line["step"], line[name]
                wanted.setdefault(name.removeprefix("val_"), []).append(point)
        assert found[part].keys() == wanted.keys()
        for tag, points in wanted.items():
            read = {step: value for step, value, _ in found[part][tag]}
            assert len(read) == len(found[part][tag])
            assert read == pytest.approx(dict(points), rel=1e-6)
    times = [time for _, _, time in found["train"]["loss"]]
    assert times == [line["time"] for line in metrics(alone) if "loss" in line]


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
    timeless = [{**row, **dict.fromkeys(OF_THE_CLOCK)} for row in lines(again)]
    assert timeless == [{**r, **dict.fromkeys(OF_THE_CLOCK)} for r in lines(alone)]
    for part, of in (("train", "loss"), ("validation", "perplexity")):
        found = read_events(again / "tensorboard" / part)
        assert found[of] == read_events(alone / "tensorboard" / part)[of]


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
