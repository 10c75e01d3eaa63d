"""Saves that take long: nobody gives up, and a signal meanwhile loses nothing.

A slow disk is one whose fsync takes seconds, in the ranks' own interpreters.
"""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import pytest
from mpi_environments import FLAVOURS, Started, require, run, variables

JOB = """
name: tiny
model: {type: gpt, n_layer: 1, n_head: 2, n_embd: 16, block_size: 16, dropout: 0.1}
data: {type: text, source: pydoc-topics}
train: {global_batch: 8, steps: 8, log_every: 1, baseline: false}
checkpoint: {every: 4, keep: 9}
comm: {algorithm: exact}
launch: {ranks: 2, oversubscribe: true}
"""
# sitecustomize.py, which every Python imports at its start
SLOW = """
import os, time
fsync = os.fsync
def slow(number):
    path = os.readlink(f"/proc/self/fd/{number}")
    if path.endswith("model.safetensors"):
        time.sleep(float(os.environ["SLOW_DISK"]))
    fsync(number)
os.fsync = slow
"""
LIMIT = "comm.timeout=4"
SHARDED = "comm.algorithm=ring", "train.shard_optimizer=true"


def command(mpi: str, *settings: str) -> list[str]:
    words = [str(require(mpi) / "bin" / "python"), "-m", "launch.cli", "run"]
    for setting in settings:
        words += ["--set", setting]
    return [*words, "job.yaml"]


def environment(folder: Path, seconds: float) -> dict[str, str]:
    """Write the job; return the variables of ranks with a slow disk."""
    (folder / "job.yaml").write_text(JOB)
    (folder / "site").mkdir()
    (folder / "site/sitecustomize.py").write_text(SLOW)
    known = variables(SLOW_DISK=str(seconds))
    known["PYTHONPATH"] += f":{folder / 'site'}"
    return known


def saved(run_dir: Path) -> list[int]:
    found = run_dir.glob("checkpoints/step-*/state.json")
    return sorted(int(path.parent.name[5:]) for path in found)


def until_it_saves(run_dir: Path, started: Started, name: str = "step-*") -> None:
    limit = time.monotonic() + 60
    while not list(run_dir.glob(f"checkpoints/.{name}.tmp-*/model.safetensors")):
        assert time.monotonic() < limit
        assert started.process.poll() is None, started.finish(1).stderr
        time.sleep(0.01)


@pytest.mark.mpi
@pytest.mark.parametrize("mpi", FLAVOURS)
def test_others_wait_for_a_save_longer_than_their_time_limit(
    mpi: str, tmp_path: Path
) -> None:
    done = run(command(mpi, LIMIT), 100, cwd=tmp_path, env=environment(tmp_path, 8.0))
    assert done.returncode == 0, done.stderr
    assert saved(tmp_path / "runs/tiny") == [4, 8]


@pytest.mark.mpi
def test_so_they_do_for_a_sharded_optimizer(tmp_path: Path) -> None:
    slow = environment(tmp_path, 8.0)
    shards = command("openmpi", LIMIT, *SHARDED)
    done = run(shards, 100, cwd=tmp_path, env=slow)
    assert done.returncode == 0, done.stderr
    assert saved(tmp_path / "runs/tiny") == [4, 8]


@pytest.mark.mpi
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_during_a_save(number: int, tmp_path: Path) -> None:
    """Once: it is saved what was asked for, and the step that was made meanwhile.
    Twice: at once, and what was complete is gone on with, to the same bits."""
    slow, run_dir = environment(tmp_path, 1.5), tmp_path / "runs/tiny"
    every = "checkpoint.every=150"  # steps take longer than a signal needs
    longer = command("openmpi", "train.steps=9000", every, "train.log_every=100")
    with Started(longer, cwd=tmp_path, env=slow) as started:
        until_it_saves(run_dir, started, "step-00000150")
        started.process.send_signal(number)
        done = started.finish(60)
    assert done.returncode == 75, done.stderr
    first, last = saved(run_dir)
    assert first == 150
    assert 150 < last < 9000
    again = [*longer, "--resume", "auto"]
    stuck = {**slow, "SLOW_DISK": "60"}  # so that it isn't done before all has ended
    said = tmp_path / "said"
    with (
        said.open("w") as file,
        Started(again, cwd=tmp_path, env=stuck, stderr=file) as started,
    ):
        until_it_saves(run_dir, started)
        started.process.send_signal(number)
        limit = time.monotonic() + 20
        while "stopping" not in said.read_text():  # else two signals can be one
            assert time.monotonic() < limit
            time.sleep(0.02)
        begin = time.monotonic()
        started.process.send_signal(number)
        done = started.finish(30)
    assert time.monotonic() - begin < 10
    assert done.returncode == 128 + number, said.read_text()
    assert saved(run_dir) == [first, last]
    end = command("openmpi", f"train.steps={last + 5}", every)
    for words in ([*end, "--resume", "auto"], [*end, "--set", "name=whole"]):
        done = run(words, 60, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    assert weights(run_dir, last + 5) == weights(tmp_path / "runs/whole", last + 5)
    assert not list(run_dir.glob("checkpoints/.*.tmp-*"))


def weights(run_dir: Path, step: int) -> dict[str, object]:
    state = run_dir / f"checkpoints/step-{step:08d}/state.json"
    files: dict[str, object] = json.loads(state.read_text())["files"]
    return files
