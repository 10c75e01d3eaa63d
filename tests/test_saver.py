"""Checkpoints that are written beside the training."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastserve as fs
from fastserve.comm import Communicator, run_threads, world
from fastserve.core import Array
from fastserve.errors import CheckpointError
from fastserve.training import checkpoint, files, saver
from fastserve.training.job_callbacks import BestCheckpoint, Checkpoints
from fastserve.training.saver import Saver
from fastserve.training.step import Options

RNG = np.random.default_rng(2)
X, Y = RNG.standard_normal((40, 6)), RNG.standard_normal((40, 2))


def model() -> fs.models.Sequential:
    made = fs.models.Sequential(
        [
            fs.layers.Dense(7, input_shape=(6,)),
            fs.layers.BatchNormalization(),
            fs.layers.Dense(3),
            fs.layers.Dense(2),
        ],
        seed=1,
    )
    made.layers[2].trainable = False
    made.compile("adam", "mse")
    made.fit(X, Y, verbose=0)
    return made


def saver_of(made: fs.models.Sequential, folder: Path) -> Saver:
    assert made.trainer is not None
    return Saver(folder, made.store, made.trainer.optimizer, world())


def test_what_is_saved_is_what_was_there_when_it_was_asked_for(tmp_path: Path) -> None:
    made = model()
    save = saver_of(made, tmp_path)
    for step in (3, 5):
        kept = made.get_weights()
        save.save(step, {"a": step}, 2)
        made.fit(X, Y, verbose=0)
        changed = made.get_weights()
        save.finish()
        other = model()
        assert other.trainer is not None
        found = checkpoint.load_newest(tmp_path, other.store, other.trainer.optimizer)
        assert found == {"a": step, "step": step}
        for got, want in zip(other.get_weights(), kept, strict=True):
            np.testing.assert_array_equal(got, want)
        assert not np.array_equal(changed[0], kept[0])
        assert not np.array_equal(changed[4], kept[4])  # a moving mean
        np.testing.assert_array_equal(changed[6], kept[6])  # a frozen kernel


def test_the_training_goes_on_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, go = model(), threading.Event()
    true = checkpoint.save

    def slow(*arguments: Any) -> Path:
        assert go.wait(20)
        return true(*arguments)

    monkeypatch.setattr(saver.checkpoint, "save", slow)
    save = saver_of(made, tmp_path)
    save.save(1, {}, 2)
    save.check()
    made.fit(X, Y, verbose=0)
    assert checkpoint.newest(tmp_path) is None
    go.set()
    save.save(2, {}, 2)  # waits for the one before
    assert (tmp_path / "step-00000001").exists()
    save.finish()
    assert checkpoint.newest(tmp_path) == tmp_path / "step-00000002"


def test_a_full_disk_is_said_by_the_next_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = model()
    save = saver_of(made, tmp_path)

    def full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    save.save(1, {}, 2)
    save.finish()
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "_write_tensors", full)
        save.save(2, {}, 2)
        limit = time.monotonic() + 10
        while save._error is None:
            assert time.monotonic() < limit
        with pytest.raises(CheckpointError, match="No space left"):
            save.check()
        save.check()
        save.save(2, {}, 2)
        with pytest.raises(CheckpointError, match="No space left"):
            save.finish()
    assert checkpoint.newest(tmp_path) == tmp_path / "step-00000001"
    save.save(3, {}, 2)
    save.finish()
    assert checkpoint.newest(tmp_path) == tmp_path / "step-00000003"


def test_a_training_fails_at_the_step_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "_write_tensors", full)
    made = model()
    save = saver_of(made, tmp_path)
    calls = [Checkpoints(save, 1, 2, True, dict), BestCheckpoint(save, dict)]
    with pytest.raises(CheckpointError, match="No space left"):
        made.fit(X, Y, 4, verbose=0, callbacks=calls, validation_data=(X, Y))


@pytest.mark.parametrize("shard", [False, True])
def test_ranks_save_the_same_as_one(tmp_path: Path, shard: bool) -> None:
    def program(comm: Communicator) -> Array:
        made = fs.models.Sequential([fs.layers.Dense(2, input_shape=(6,))], seed=1)
        made.compile("adam", "mse")
        made.options = Options(shard_optimizer=shard and comm.size > 1)
        made.train_on_batch(X, Y)
        assert made.trainer is not None
        folder = tmp_path / str(comm.size)
        save = Saver(folder, made.store, made.trainer.optimizer, comm)
        save.save(1, {}, 1)
        save.finish()
        comm.barrier()
        return made.store.values.copy()

    for ranks in (1, 2):
        run_threads(ranks, program)
    one, two = (
        checkpoint.read_state(tmp_path / str(n) / "step-00000001") for n in (1, 2)
    )
    assert one == two == {"step": 1}


@pytest.mark.parametrize("shard", [False, True])
def test_what_is_kept_for_good(tmp_path: Path, shard: bool) -> None:
    def program(comm: Communicator) -> None:
        made = fs.models.Sequential([fs.layers.Dense(2, input_shape=(6,))], seed=1)
        made.compile("adam", "mse")
        made.options = Options(shard_optimizer=shard)
        made.train_on_batch(X, Y)
        assert made.trainer is not None
        parts = made.store, made.trainer.optimizer, comm
        save = Saver(tmp_path, *parts, keep_every=2)
        for step in range(1, 6):
            save.save(step, {}, 1)
        save.finish()

    run_threads(2, program)
    names = sorted(path.name for path in tmp_path.glob("step-*"))
    assert names == [f"step-{step:08d}" for step in (2, 4, 5)]


@pytest.mark.parametrize("shard", [False, True])
def test_the_history_is_on_the_disk_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shard: bool
) -> None:
    """As a machine that loses its power leaves it."""
    history = tmp_path / "metrics.jsonl"
    synced: list[str] = []
    true = os.fsync

    def noted(number: int) -> None:
        synced.append(Path(os.readlink(f"/proc/self/fd/{number}")).name)
        true(number)

    def program(comm: Communicator) -> None:
        made = fs.models.Sequential([fs.layers.Dense(2, input_shape=(6,))], seed=1)
        made.compile("adam", "mse")
        made.options = Options(shard_optimizer=shard)
        made.train_on_batch(X, Y)
        assert made.trainer is not None
        parts = made.store, made.trainer.optimizer, comm
        save = Saver(tmp_path / "checkpoints", *parts, history=history)
        for step in (1, 2):
            save.save(step, {}, 2)
            save.finish()
            comm.barrier()
            if comm.rank == 0:
                history.write_text("{}")  # not there for the first one
        comm.barrier()

    monkeypatch.setattr(os, "fsync", noted)
    run_threads(2, program)
    assert synced.count("metrics.jsonl") == 1
    states = [i for i, name in enumerate(synced) if name == "state.json"]
    assert states[0] < synced.index("metrics.jsonl") < states[1]


HOLD = """
import sys
from pathlib import Path
from fastserve.training import files
kept = files.hold(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


def test_a_folder_belongs_to_one_process(tmp_path: Path) -> None:
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "run")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert other.stdout is not None
    assert other.stdin is not None
    try:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(CheckpointError, match=f"in use by process {other.pid} on"):
            files.hold(tmp_path / "run")
    finally:
        other.kill()
        other.wait(10)
        other.stdout.close()
        other.stdin.close()
    with files.hold(tmp_path / "run"):
        pass
    files.hold(tmp_path / "run").close()


def test_a_folder_that_is_renamed_while_it_is_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, clean = tmp_path / "run", files.clean

    def renamed(folder: Path, names: str) -> None:
        if run.exists():
            run.rename(tmp_path / "elsewhere")
        clean(folder, names)  # makes the folder again

    made = model()
    assert made.trainer is not None
    parts = made.store, made.trainer.optimizer, world()
    with files.hold(run) as lock:
        save = Saver(run / "checkpoints", *parts, lock=lock)
        save.save(1, {}, 1)
        save.finish()
        monkeypatch.setattr(checkpoint, "clean", renamed)
        save.save(2, {}, 1)
        with pytest.raises(CheckpointError, match="removed or renamed"):
            save.finish()
    assert (tmp_path / "elsewhere/checkpoints/step-00000001").is_dir()
