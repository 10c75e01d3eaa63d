"""BackupAndRestore: a training that was killed goes on as if it hadn't been."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastserve as fs
from fastserve.comm import Communicator, run_threads
from fastserve.data import PyDataset
from fastserve.errors import ArgumentError, CheckpointError
from fastserve.training.callbacks import (
    BackupAndRestore,
    Callback,
    EarlyStopping,
    LambdaCallback,
    ReduceLROnPlateau,
)

RNG = np.random.default_rng(0)
X = RNG.standard_normal((50, 6)).astype(np.float32)
Y = (X @ RNG.standard_normal((6, 3))).argmax(axis=1)
Result = tuple[bytes, list[float]]


class Batches(PyDataset):
    def __len__(self) -> int:
        return 5

    def __getitem__(self, index: int) -> Any:
        rows = slice(10 * index, 10 * index + 10)
        return X[rows], Y[rows]


class Killed(Exception):
    pass


def fit(
    folder: Path | None, stop: int = 1000, save_freq: Any = "epoch", **keys: Any
) -> Result:
    """Train; raise Killed after ``stop`` steps."""
    model = fs.models.Sequential(
        [
            fs.layers.Dense(8, "relu", input_shape=(6,)),
            fs.layers.Dropout(0.2),
            fs.layers.Dense(3, "softmax"),
        ],
        seed=4,
    )
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    made = [0]

    def kill(batch: int, logs: Any) -> None:
        made[0] += 1
        if made[0] == stop:
            raise Killed

    callbacks: list[Callback] = [
        LambdaCallback(on_train_batch_end=kill),
        ReduceLROnPlateau("loss", 0.5, patience=0, min_delta=0.1),
        EarlyStopping("loss", patience=4),
    ]
    if folder is not None:  # the first of all: it is called last all the same
        callbacks.insert(0, BackupAndRestore(folder, save_freq))
    data = keys.pop("data", (X, Y))
    x, y = data if isinstance(data, tuple) else (data, None)
    history = model.fit(x, y, 8, 5, 0, callbacks, **keys)
    return model.store.values.tobytes(), history.history["loss"]


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize(
    ("save_freq", "stop"), [("epoch", 17), ("epoch", 3), (4, 17), (4, 29), (1, 20)]
)
def test_the_same_weights_as_without_an_end(
    tmp_path: Path, save_freq: Any, stop: int, ranks: int
) -> None:
    def whole(comm: Communicator) -> Result:
        return fit(None)

    def killed(comm: Communicator) -> None:
        with pytest.raises(Killed):
            fit(tmp_path / "backup", stop, save_freq)

    def again(comm: Communicator) -> Result:
        return fit(tmp_path / "backup", save_freq=save_freq)

    wanted = run_threads(ranks, whole)[0]
    run_threads(ranks, killed)
    weights, losses = run_threads(ranks, again)[0]
    assert weights == wanted[0]
    # of an epoch that is gone on with the metrics go on, too
    assert losses == wanted[1][-len(losses) :]
    assert not (tmp_path / "backup").exists()


def test_batches_by_number_go_on_too(tmp_path: Path) -> None:
    wanted = fit(None, data=Batches())
    with pytest.raises(Killed):
        fit(tmp_path, 13, 2, data=Batches())
    assert fit(tmp_path, 1000, 2, data=Batches())[0] == wanted[0]


def test_a_generator_is_read_up_to_the_place(tmp_path: Path) -> None:
    def endless() -> Any:
        rng = np.random.default_rng(1)
        while True:
            rows = rng.integers(50, size=8)
            yield X[rows], Y[rows]

    wanted = fit(None, data=endless(), steps_per_epoch=6)
    with pytest.raises(Killed):
        fit(tmp_path, 13, 2, data=endless(), steps_per_epoch=6)
    assert fit(tmp_path, data=endless(), steps_per_epoch=6)[0] == wanted[0]
    with pytest.raises(ArgumentError, match="give fit steps_per_epoch"):
        fit(tmp_path, data=(b for b in [(X, Y)]))


def test_weights_of_another_training_are_refused(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        fit(tmp_path, 20)
    with pytest.raises(CheckpointError, match="with steps 5"):
        fit(tmp_path, data=(X[:40], Y[:40]))
    (path,) = tmp_path.glob("step-*")
    (path / "model.safetensors").write_bytes(b"x")
    with pytest.raises(CheckpointError):
        fit(tmp_path)
    with pytest.raises(ArgumentError, match="save_freq"):
        BackupAndRestore(tmp_path, 0)


def test_a_kill_while_the_backup_is_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(path: Path, ignore_errors: bool = False) -> None:
        if not ignore_errors:  # else it is what a save has renamed already
            (path / "model.safetensors").unlink()
            raise Killed

    wanted = fit(None)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(shutil, "rmtree", killed)
        fit(tmp_path / "backup", save_freq=35)  # one backup, at the end
    copy = tmp_path / "backup/step-00000007-good"  # one that the user has made
    copy.mkdir()
    assert fit(tmp_path / "backup")[0] == wanted[0]
    assert list((tmp_path / "backup").iterdir()) == [copy]


def test_what_is_kept(tmp_path: Path) -> None:
    model = fs.models.Sequential([fs.layers.Dense(3, input_shape=(6,))])
    model.compile("adam", "mse")
    backup = BackupAndRestore(
        tmp_path, 3, double_checkpoint=True, delete_checkpoint=False
    )
    model.fit(X, X[:, :3], 10, 2, 0, backup)
    names = sorted(p.name for p in tmp_path.iterdir())
    assert names == ["latest", "step-00000006", "step-00000009"]
    (tmp_path / "mine").touch()
    model.fit(X, X[:, :3], 10, 2, 0, BackupAndRestore(tmp_path))
    assert [p.name for p in tmp_path.iterdir()] == ["mine"]


@pytest.mark.parametrize("ranks", [1, 2])
def test_the_best_weights_of_an_epoch_before_are_not_lost(
    tmp_path: Path, ranks: int
) -> None:
    def program(comm: Communicator, stop: int, folder: Path | None) -> bytes:
        model = fs.models.Sequential(
            [
                fs.layers.Dense(4, input_shape=(6,)),
                fs.layers.BatchNormalization(),
                fs.layers.Dense(3),
            ],
            seed=4,
        )
        model.compile("adam", "mse")
        values = [3.0, 1.0, 2.0, 2.0, 2.0, 2.0, 2.0]

        def put(epoch: int, logs: Any) -> None:
            logs["loss"] = values[epoch]
            if epoch == stop:
                raise Killed

        early = EarlyStopping("loss", patience=5, restore_best_weights=True)
        callbacks: list[Callback] = [LambdaCallback(on_epoch_end=put), early]
        if folder is not None:
            callbacks.append(BackupAndRestore(folder))
        model.fit(X, X[:, :3], 10, 6, 0, callbacks)
        return b"".join(w.tobytes() for w in model.get_weights())

    def killed(comm: Communicator) -> None:
        with pytest.raises(Killed):
            program(comm, 3, tmp_path / "backup")

    wanted = run_threads(ranks, lambda comm: program(comm, 99, None))
    run_threads(ranks, killed)
    names = sorted(p.name for p in (tmp_path / "backup").iterdir())
    assert names == ["callbacks-00000015.safetensors", "latest", "step-00000015"]
    found = run_threads(ranks, lambda comm: program(comm, 99, tmp_path / "backup"))
    assert found == wanted
    assert not (tmp_path / "backup").exists()


PROGRAM = """
import signal, sys
sys.path.insert(0, {tests!r})
import test_backup as t
from fastserve.training.callbacks import LambdaCallback
steps = iter(range(1, 99))
def said(batch, logs):
    print("step", flush=True)
    if next(steps) == int(sys.argv[1]):
        signal.pause()  # until it is killed
t.LambdaCallback = lambda **k: LambdaCallback(on_train_batch_end=said)
print(t.fit({folder!r}, save_freq=1)[0].hex())
"""


def test_a_process_that_is_killed(tmp_path: Path) -> None:
    program = PROGRAM.format(
        tests=str(Path(__file__).parent), folder=str(tmp_path / "backup")
    )
    command = [sys.executable, "-c", program]
    for _ in range(2):
        process = subprocess.Popen([*command, "9"], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        for _ in range(9):
            process.stdout.readline()
        os.kill(process.pid, signal.SIGKILL)
        process.communicate(timeout=60)
    done = subprocess.run(
        [*command, "0"], capture_output=True, text=True, timeout=60, check=True
    )
    # of 35 steps; what was in the ninth of a start wasn't saved
    assert len(done.stdout.splitlines()) - 1 == 35 - 2 * 8
    assert bytes.fromhex(done.stdout.split()[-1]) == fit(None)[0]
