"""Jobs with early stop, best checkpoint, samples, overfit_batches and spike guard."""

from __future__ import annotations

import json
import math
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mpi_environments import mpi_command, run, variables
from test_worker import PYTHON_JOB, launch, losses, metrics, rank_program, weights

from fastserve import import_export, trained
from fastserve.errors import CheckpointError
from fastserve.training import checkpoint

# What is learnt from the first part is wrong in the last one, which validates.
TEXT = "Pack my box with five dozen liquor jugs. " * 72
TEXT += TEXT[len(TEXT) // 4 :: -1]
JOB = """
name: tiny
seed: 1
model: {type: gpt, n_layer: 1, n_head: 2, n_embd: 16, block_size: 16, dropout: 0.1}
data: {type: text, source: text.txt, validation_split: 0.2}
train: {global_batch: 6, steps: 60, eval_every: 4, eval_batches: 3, log_every: 10,
        early_stop: 3, sample_tokens: 20, sample_every: 10}
optimizer: {type: adamw, lr: 1e-2}
checkpoint: {every: 6, keep: 2, best: true}
comm: {check_every: 3}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "job.yaml").write_text(JOB)
    (tmp_path / "text.txt").write_text(TEXT)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of the job on one process."""
    folder = tmp_path_factory.mktemp("alone")
    (folder / "job.yaml").write_text(JOB)
    (folder / "text.txt").write_text(TEXT)
    done = rank_program(folder)
    assert done.returncode == 0, done.stderr
    (folder / "out.txt").write_text(done.stdout)
    return folder / "runs/tiny"


def validations(run_dir: Path) -> dict[int, float]:
    return {m["step"]: m["val_loss"] for m in metrics(run_dir) if "val_loss" in m}


def best_step(run_dir: Path) -> int:
    found = validations(run_dir)
    return min(found, key=lambda step: found[step])


def ended(run_dir: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run_dir / "done.json").read_text())
    return found


def test_it_stops_early_and_is_complete(alone: Path) -> None:
    best = best_step(alone)
    assert 4 < best < 40
    assert max(validations(alone)) == best + 3 * 4
    record = ended(alone)
    assert record["steps"] == best + 12
    assert record["stopped"].startswith(f"after step {best + 12}: 3 validations")
    assert not (alone / "stopped.json").exists()
    out = (alone.parents[1] / "out.txt").read_text()
    assert f"stopped  after step {best + 12}: 3 validations without a lower" in out
    assert f"at step {best} (train.early_stop)" in out
    found = f"val_loss {validations(alone)[best]:.4f} at step {best}"
    assert f"best     {found}, in runs/tiny/checkpoints/best" in out


def test_measures_in_lines_and_records(alone: Path) -> None:
    for line in metrics(alone):
        if "val_loss" not in line:
            assert line["gflops"] > 0
            assert line["tokens_per_s"] > 0
            continue
        assert line["val_perplexity"] == pytest.approx(math.exp(line["val_loss"]))
        bits = line["val_loss"] / math.log(2)  # a character is a byte here
        assert line["val_bits_per_byte"] == pytest.approx(bits)
    out = (alone.parents[1] / "out.txt").read_text()
    assert "tokens/s  " in out
    assert "GFLOP/s" in out
    assert "step 4: val_loss " in out
    assert " nats a token, perplexity " in out.partition("trained")[2]
    assert " bits a byte, " in out.partition("trained")[2]


def test_samples(alone: Path) -> None:
    out = (alone.parents[1] / "out.txt").read_text()
    assert out.count("step 10: sample\n  ") == 1
    steps = ended(alone)["steps"]
    assert out.count(": sample\n") == (steps - 1) // 10 + (steps % 10 == 0)


def test_the_best_checkpoint(alone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(alone.parents[1])
    best = best_step(alone)
    kept = sorted(p.name for p in (alone / "checkpoints").iterdir())
    assert kept[0] == "best"
    assert f"step-{best:08d}" not in kept  # keep: 2 has removed it
    state = checkpoint.read_state(alone / "checkpoints/best")
    assert state is not None
    assert (state["step"], state["val_loss"]) == (best, validations(alone)[best])
    last, newest = ended(alone)["steps"], trained.evaluate("runs/tiny", "latest")
    assert trained.evaluate("runs/tiny", "best")["loss"] < newest["loss"]
    assert trained.evaluate("runs/tiny", str(last)) == newest
    for which in ("best", str(last), "latest"):
        assert trained.generate("runs/tiny", "Pack", 3, which=which).startswith("Pack")
    for which in (str(best), "worst", "../best"):
        with pytest.raises(CheckpointError) as error:
            trained.evaluate("runs/tiny", which)
        assert f"expected a checkpoint {which!r}" in str(error.value)
        assert f"step-{last:08d}, best" in str(error.value)


def test_the_best_checkpoint_is_taken_where_one_was_kept(
    alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(alone.parents[1])
    last, best = ended(alone)["steps"], best_step(alone)
    kept, without = "runs/tiny", str(tmp_path / "without")
    shutil.copytree(kept, without)
    shutil.rmtree(f"{without}/checkpoints/best")
    said: list[str] = []
    for run_dir in (kept, without):
        loss = trained.evaluate(run_dir, split="train", note=said.append)["loss"]
        which = "best" if run_dir == kept else "latest"
        assert loss == trained.evaluate(run_dir, which, split="train")["loss"]
        trained.generate(run_dir, "Pack", 3, note=said.append)
        told = import_export.export_run(run_dir, str(tmp_path / which))
        said.append(told.split(", to ")[0].removeprefix(f"exported {run_dir}, "))
    trained.generate(kept, "Pack", 3, which=str(last), note=said.append)
    assert said == [
        f"the best checkpoint, of step {best}, on the training data",
        *[f"the best checkpoint, of step {best}"] * 2,
        f"the latest checkpoint, of step {last}, on the training data",
        *[f"the latest checkpoint, of step {last}"] * 2,
        f"the checkpoint of step {last}",
    ]


def test_the_command_takes_a_checkpoint(alone: Path) -> None:
    for verb, more in (("evaluate", []), ("generate", ["--prompt", "Pack"])):
        command = ["-m", "launch.cli", verb, str(alone), "--checkpoint", "best", *more]
        done = run(
            [sys.executable, *command], 60, cwd=alone.parents[1], env=variables()
        )
        assert done.returncode == 0, done.stderr
        assert verb != "evaluate" or "perplexity " in done.stdout


@pytest.mark.parametrize("stop", [6, 12])  # between validations, and at one
def test_resume_decides_alike(folder: Path, alone: Path, stop: int) -> None:
    first = rank_program(folder, "--set", "checkpoint.keep=99")
    assert first.returncode == 0, first.stderr
    run_dir = folder / "runs/tiny"
    for path in (run_dir / "checkpoints").glob("step-*"):  # as if it had crashed
        if int(path.name[5:]) > stop:
            shutil.rmtree(path)
    second = rank_program(folder, "--resume", "auto")
    assert second.returncode == 0, second.stderr
    assert f"after step {stop}" in second.stdout
    assert ended(run_dir)["stopped"] == ended(alone)["stopped"]
    for name in ("best", f"step-{ended(alone)['steps']:08d}"):
        for file in ("model.safetensors", "optimizer.safetensors"):
            place = f"checkpoints/{name}/{file}"
            assert (run_dir / place).read_bytes() == (alone / place).read_bytes(), place
    assert validations(run_dir) == validations(alone)


def test_resume_after_an_early_stop(folder: Path, alone: Path) -> None:
    assert rank_program(folder).returncode == 0
    again = rank_program(folder, "--resume", "auto")
    assert again.returncode == 0, again.stderr
    assert ended(folder / "runs/tiny")["steps"] == ended(alone)["steps"]
    more = rank_program(folder, "--resume", "auto", "--set", "train.early_stop=5")
    assert more.returncode == 0, more.stderr
    assert ended(folder / "runs/tiny")["steps"] == ended(alone)["steps"] + 8


def test_resume_from_an_earlier_step_forgets_a_later_best(folder: Path) -> None:
    keys = ["--set", "checkpoint.keep=99", "--set", "train.early_stop=null"]
    assert rank_program(folder, *keys, "--set", "train.steps=24").returncode == 0
    run_dir = folder / "runs/tiny"
    best = checkpoint.read_state(run_dir / "checkpoints/best")
    assert best is not None
    assert best["step"] > 6
    start = ["--resume", str(run_dir / "checkpoints/step-00000006"), "--overwrite"]
    done = rank_program(folder, *keys, *start, "--set", "train.steps=7")
    assert done.returncode == 0, done.stderr
    best = checkpoint.read_state(run_dir / "checkpoints/best")
    assert best is not None
    assert best["step"] == 7


def test_a_run_with_the_best_checkpoint_alone(folder: Path, alone: Path) -> None:
    keys = ["checkpoint.every=null", "checkpoint.at_end=false", "train.early_stop=null"]
    sets = [part for key in [*keys, "train.steps=16"] for part in ("--set", key)]
    assert rank_program(folder, *sets).returncode == 0
    run_dir = folder / "runs/tiny"
    assert [p.name for p in (run_dir / "checkpoints").iterdir()] == ["best"]
    refused = rank_program(folder, *sets)
    assert refused.returncode == 2
    assert "without checkpoints for a new run" in refused.stderr
    resumed = rank_program(folder, *sets, "--resume", "auto")
    assert f"after step {best_step(alone)}" in resumed.stdout
    latest = trained.evaluate("runs/tiny", "latest")
    assert latest == trained.evaluate("runs/tiny", "best")


def test_samples_and_validation_change_nothing(folder: Path, alone: Path) -> None:
    keys = ["train.sample_every=null", "train.eval_every=15", "checkpoint.best=false"]
    sets = [part for key in keys for part in ("--set", key)]
    steps = ended(alone)["steps"]
    more = ["--set", f"train.steps={steps}", "--set", "train.early_stop=null"]
    assert rank_program(folder, *sets, *more).returncode == 0
    one, two = weights(folder / "runs/tiny", steps), weights(alone, steps)
    for name in two:
        np.testing.assert_array_equal(one[name], two[name], err_msg=name)


OVERFIT = ["--set", "train={global_batch: 6, steps: 80, overfit_batches: 2}"]


def test_overfitting_a_few_batches(folder: Path) -> None:
    keys = [*OVERFIT, "--set", "checkpoint.best=false", "--set", "model.dropout=0"]
    done = rank_program(folder, *keys)
    assert done.returncode == 0, done.stderr
    run_dir = folder / "runs/tiny"
    assert "12 samples of it to overfit" in done.stdout
    assert "2-gram" not in done.stdout
    found = metrics(run_dir)
    assert found[-1]["val_loss"] < 0.5 * found[0]["loss"]
    # what is validated is what is trained on
    assert found[-1]["val_loss"] < found[-2]["loss"] < 2 * found[-1]["val_loss"]
    assert trained.evaluate("runs/tiny")["loss"] > found[-1]["val_loss"]
    # the first steps are those of the whole job
    keys = ["--set", "train={global_batch: 6, steps: 2}", "--set", "name=other"]
    assert rank_program(folder, *keys, "--set", "model.dropout=0").returncode == 0
    keys = [*OVERFIT, "--set", "train.steps=2", "--set", "name=few"]
    assert rank_program(folder, *keys, "--set", "model.dropout=0").returncode == 0
    one, two = (weights(folder / "runs" / name, 2) for name in ("other", "few"))
    for name in one:
        np.testing.assert_array_equal(one[name], two[name], err_msg=name)


SPIKES = """
import numpy as np, fastserve as fs
def make_data():
    x = np.random.default_rng(0).standard_normal((200, 3)).astype(np.float32)
    y = x.sum(axis=1, keepdims=True)
    y[125] = 1e4
    y[146] = 1e25
    return (x, y), None
def make_model():
    model = fs.models.Sequential([fs.layers.Dense(1)])
    model.compile(loss="mse")
    return model
"""
SPIKES_JOB = PYTHON_JOB.replace(", arguments: {rows: 40}", "").replace(
    "epochs: 2}",
    "epochs: 1, shuffle: false, spike_factor: 5, log_every: 1}\n"
    "checkpoint: {every: 1, keep: 99}",
)


def check_spikes(run_dir: Path) -> None:
    found = metrics(run_dir)
    assert [m["step"] for m in found if m["loss"] is None] == [13, 15]
    assert [m["skipped_steps"] for m in found] == [0] * 12 + [1] * 2 + [2] * 6
    for step in (13, 15):
        before, after = weights(run_dir, step - 1), weights(run_dir, step)
        for name in before:
            np.testing.assert_array_equal(before[name], after[name])


def test_the_spike_guard_of_a_job(folder: Path) -> None:
    (folder / "job.yaml").write_text(SPIKES_JOB)
    (folder / "own.py").write_text(SPIKES)
    done = rank_program(folder)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("is skipped, the weights stay") == 2
    check_spikes(folder / "runs/own")
    start = ["--resume", "runs/own/checkpoints/step-00000012", "--set", "name=other"]
    resumed = rank_program(folder, *start)
    assert resumed.returncode == 0, resumed.stderr
    assert [m["skipped_steps"] for m in metrics(folder / "runs/other")][-1] == 2
    one, two = (weights(folder / "runs" / name, 20) for name in ("own", "other"))
    for name in one:
        np.testing.assert_array_equal(one[name], two[name])
    plain = rank_program(folder, "--overwrite", "--set", "train.spike_factor=null")
    assert plain.returncode == 1
    assert "step 15: expected a finite loss" in plain.stderr


BAD_WISHES = [
    ("train.overfit_batches=900", "at most 30"),
    ("data.validation_split=0", "data.validation_split: expected validation data"),
    ("train.eval_every=null", "train.eval_every: expected steps between validations"),
    ("train.sample_tokens=0", "train.sample_tokens: expected more than 0"),
    ("train.spike_factor=1", "train.spike_factor: expected a number above 1"),
    ("train.early_stop=0", "train.early_stop: expected an integer from 1"),
]


@pytest.mark.parametrize(("override", "part"), BAD_WISHES)
def test_bad_wishes_leave_nothing(folder: Path, override: str, part: str) -> None:
    done = rank_program(folder, "--set", override)
    assert done.returncode == 2
    assert part in done.stderr
    assert "Traceback" not in done.stderr
    assert not (folder / "runs").exists()


@pytest.mark.parametrize(
    ("key", "value"), [("train.early_stop", "2"), ("checkpoint.best", "true")]
)
def test_data_without_validation(folder: Path, key: str, value: str) -> None:
    (folder / "job.yaml").write_text(SPIKES_JOB)
    (folder / "own.py").write_text(SPIKES)
    done = rank_program(folder, "--set", f"{key}={value}")
    assert done.returncode == 2
    assert f"expected validation data, as {key} is set" in done.stderr
    assert not (folder / "runs").exists()


# -- under MPI -------------------------------------------------------------------------


@pytest.mark.mpi
@pytest.mark.parametrize(("flavour", "ranks"), [("openmpi", 2), ("mpich", 3)])
def test_ranks_decide_as_one(
    flavour: str, ranks: int, folder: Path, alone: Path
) -> None:
    done = launch(folder, flavour, ranks, "--set", "comm.timeout=20")
    assert done.returncode == 0, done.stdout + done.stderr
    run_dir = folder / "runs/tiny"
    np.testing.assert_allclose(losses(run_dir), losses(alone), rtol=2e-3)
    record = ended(run_dir)
    assert record["stopped"][:40] == ended(alone)["stopped"][:40]
    assert record["ranks"] == ranks
    state = checkpoint.read_state(run_dir / "checkpoints/best")
    assert state is not None
    assert state["step"] == best_step(alone)
    out = (alone.parents[1] / "out.txt").read_text()
    assert done.stdout.count(": sample\n") == out.count(": sample\n")


@pytest.mark.mpi
def test_spikes_on_ranks(folder: Path) -> None:
    (folder / "job.yaml").write_text(SPIKES_JOB)
    (folder / "own.py").write_text(SPIKES)
    done = launch(folder, "openmpi", 2)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("is skipped, the weights stay") == 2
    check_spikes(folder / "runs/own")


SLOW_SAMPLE = """
import time
import fastserve.worker as worker
from fastserve.models import GPT
generate = GPT.generate
def slow(self, *args, **options):
    time.sleep(6)  # the limit, some looks, and the time for notices of the other rank
    return generate(self, *args, **options)
GPT.generate = slow
raise SystemExit(worker.main(["job.yaml", "--set", "comm.timeout=1"]))
"""


@pytest.mark.mpi
def test_a_sample_may_take_longer_than_the_timeout(folder: Path) -> None:
    (folder / "slow.py").write_text(SLOW_SAMPLE)
    text = JOB.replace("steps: 60", "steps: 11").replace("early_stop: 3,", "")
    (folder / "job.yaml").write_text(text)
    done = run(mpi_command("openmpi", 2, "slow.py"), 60, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "step 10: sample" in done.stdout
