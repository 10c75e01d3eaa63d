"""Faults of disks and memory: a clear end, and the last good checkpoint intact."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from mpi_environments import FLAVOURS, Started, require, run

import fastserve as fs
from fastserve import worker
from fastserve.comm import Communicator, SingleCommunicator, run_threads
from fastserve.errors import CheckpointError, NonFiniteError, ReplicaError
from fastserve.printing import Printer
from fastserve.training import checkpoint, files, saver
from fastserve.training.step import Options
from launch.process import UNRECORDED

JOB = """
name: tiny
model: {type: python, file: model.py}
data: {type: arrays, file: data.npz}
train: {global_batch: 4, steps: 12, log_every: 1, baseline: false}
checkpoint: {every: 3, keep: 5}
launch: {ranks: 2, oversubscribe: true}
"""
MODEL = '''
import numpy as np
import fastserve as fs

class Rays(fs.layers.Layer):
    """Flips a bit of a weight of rank 1 in the pass number STEP."""
    passes = 0

    def build(self, shape):
        self.weight = self.param("weight", (3,), lambda shape, rng: np.ones(shape))
        return shape

    def forward(self, x, training=False):
        if training:
            self.passes += 1
        if self.passes == STEP and fs.world().rank == 1:
            self.weight.value.view(np.uint32)[2] ^= 1 << 7
        return x

    def backward(self, dy, done=None):
        self.weight.grad.fill(0)
        return dy

def make_model():
    model = fs.models.Sequential([
        fs.layers.Dense(3, input_shape=(3,)), Rays(), fs.layers.Dense(2),
    ])
    model.compile("adam", "mse")
    return model
'''


def command(mpi: str = "openmpi") -> list[str]:
    return [str(require(mpi) / "bin" / "python"), "-m", "launch.cli", "run", "job.yaml"]


def steps(run_dir: Path) -> list[int]:
    found = run_dir.glob("checkpoints/step-*/state.json")
    return sorted(int(path.parent.name[5:]) for path in found)


@pytest.mark.mpi
@pytest.mark.parametrize("mpi", FLAVOURS)
def test_a_flipped_bit_is_named_and_not_saved(mpi: str, tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(JOB)
    x = np.ones((40, 3), np.float32)
    np.savez(tmp_path / "data.npz", x_train=x, y_train=x[:, :2])
    (tmp_path / "model.py").write_text(MODEL.replace("STEP", "8"))
    done = run(command(mpi), 60, cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    assert "step 9: expected the same parameters on every rank" in done.stderr
    assert "1.weight differs on rank 1 (" in done.stderr
    assert steps(tmp_path / "runs/tiny") == [3, 6]


@pytest.mark.parametrize("odd", [0, 2])
def test_the_odd_one_among_several_is_named(odd: int, tmp_path: Path) -> None:
    def program(comm: Communicator) -> str:
        model = fs.models.Sequential([fs.layers.Dense(2, input_shape=(3,))], seed=1)
        model.compile("adam", "mse")
        model.train_on_batch(np.ones((4, 3)), np.ones((4, 2)))
        assert model.trainer is not None
        optimizer = model.trainer.optimizer
        save = saver.Saver(tmp_path, model.store, optimizer, comm)
        if comm.rank == odd:
            vector = next(iter(optimizer.state.values()))
            vector.view(np.uint32)[3] ^= 1
        with pytest.raises(ReplicaError) as caught:
            save.save(7, {}, 2)
        return str(caught.value)

    said = run_threads(3, program)
    assert said == [said[0]] * 3
    assert "step 7" in said[0]
    assert f" differs on rank {odd} (" in said[0]
    assert said[0].splitlines()[1].endswith(f"from rank {0 if odd else 1}")
    assert not steps(tmp_path)


def text_job(folder: Path, more: str = "") -> None:
    (folder / "job.yaml").write_text(
        "name: tiny\nmodel: {type: gpt, n_layer: 1, n_head: 2, n_embd: 16, "
        "block_size: 16}\ndata: {type: text, source: pydoc-topics}\n"
        "train: {global_batch: 4, steps: 6, log_every: 1, baseline: false}\n"
        f"checkpoint: {{every: 2, keep: 5}}\n{more}"
    )


def test_a_damaged_newest_checkpoint_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(worker, "_held", [])
    text_job(tmp_path)
    assert worker.main(["job.yaml"]) == 0
    worker._held.pop().close()
    newest = tmp_path / "runs/tiny/checkpoints/step-00000006"
    whole = (newest / "model.safetensors").read_bytes()
    (newest / "model.safetensors").write_bytes(whole[:-1] + b"\x99")
    assert worker.main(["job.yaml", "--resume", "auto"]) == 0
    worker._held.pop().close()
    assert "step-00000006: trying the one before" in capfd.readouterr().err
    assert (newest / "model.safetensors").read_bytes() == whole


@pytest.mark.mpi
@pytest.mark.parametrize("what", ["removed", "renamed"])
def test_a_run_folder_that_vanishes(what: str, tmp_path: Path) -> None:
    text_job(tmp_path, "launch: {ranks: 2, oversubscribe: true}\n")
    run_dir = tmp_path / "runs/tiny"
    with Started([*command(), "--set", "train.steps=1000000"], cwd=tmp_path) as started:
        limit = time.monotonic() + 60
        while not steps(run_dir):
            assert time.monotonic() < limit
            time.sleep(0.05)
        if what == "renamed":
            run_dir.rename(tmp_path / "elsewhere")
        else:
            shutil.rmtree(run_dir, ignore_errors=True)
        done = started.finish(60)
    assert done.returncode == 1, done.stderr
    assert "there before" in done.stderr, done.stderr
    assert "somebody has removed or renamed it" in done.stderr
    if what == "renamed":
        assert checkpoint.newest(tmp_path / "elsewhere/checkpoints") is not None


def test_an_error_that_cannot_be_written_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(files, "replace", refuse)
    monkeypatch.setenv("FASTSERVE_JOB", "token")  # a launcher that would read it
    error = CheckpointError("expected to be able to write a", "it can't be")
    training: Any = SimpleNamespace(folder=tmp_path, made=3)
    report = error, SingleCommunicator(), [training], Printer()
    assert worker._report(*report) == worker.UNRECORDED == UNRECORDED
    assert "expected to be able to write a" in capsys.readouterr().err
    monkeypatch.undo()
    monkeypatch.setenv("FASTSERVE_JOB", "token")
    assert worker._report(*report) == 1
    assert capsys.readouterr().err == ""
    assert json.loads((tmp_path / "errors/rank-00000.json").read_text())["step"] == 3
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(CheckpointError, match="Read-only file system"):
        files.hold(tmp_path)


def test_what_is_being_saved_is_saved_though_the_training_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    true = checkpoint.save

    def slow(*arguments: Any) -> Path:
        time.sleep(0.3)
        return true(*arguments)

    monkeypatch.setattr(saver.checkpoint, "save", slow)

    def program(comm: Communicator) -> None:
        model = fs.models.Sequential([fs.layers.Dense(2, input_shape=(3,))], seed=1)
        model.compile("adam", "mse")
        model.options = Options()
        model.train_on_batch(np.ones((4, 3)), np.ones((4, 2)))
        assert model.trainer is not None
        save = saver.Saver(tmp_path, model.store, model.trainer.optimizer, comm)
        save.save(3, {}, 2)
        save.settle(NonFiniteError("expected a finite loss", "nan"))
        if comm.rank == 0:
            assert steps_of(tmp_path) == [3]

    monkeypatch.setattr(saver, "_PATIENCE", 5.0)
    run_threads(2, program)


def steps_of(folder: Path) -> list[int]:
    return [int(path.name[5:]) for path in folder.glob("step-*")]


def test_records_are_known_by_their_job_when_the_clock_jumps(tmp_path: Path) -> None:
    from launch.records import error_records

    folder = tmp_path / "errors"
    folder.mkdir()
    record = {"host": "a", "type": "E", "message": "", "traceback": "", "status": 1}
    for rank, (job, at) in enumerate([("new", 50.0), ("old", 200.0), ("new", 9e9)]):
        text = json.dumps({"rank": rank, "job": job, "time": at, **record})
        (folder / f"rank-{rank:05d}.json").write_text(text)
    assert [r.rank for r in error_records(tmp_path, 100.0, job="new")] == [0, 2]
    assert [r.rank for r in error_records(tmp_path, 100.0)] == [1, 2]
