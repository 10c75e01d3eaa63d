"""Jobs whose disk is full to the last byte, or turns read-only as a failing one does.

Not even the error can be written then. It is the last that is shown, nothing is tried
again, and what was saved is gone on with once there is room.
"""

from __future__ import annotations

import json
import signal
import subprocess
import time
from pathlib import Path

import pytest
from mpi_environments import FLAVOURS, Started, require, run, signal_job
from small_disks import failing_disk, fill, mend, small_disk, turn_read_only

JOB = """
name: tiny
model: {type: gpt, n_layer: 1, n_head: 2, n_embd: 16, block_size: 16}
data: {type: text, source: pydoc-topics}
train: {global_batch: 4, steps: 1000000, log_every: 1, baseline: false}
checkpoint: {every: 20, keep: 3}
launch: {ranks: 2, oversubscribe: true, max_restarts: 1}
"""


def command(mpi: str, *more: str) -> list[str]:
    python = str(require(mpi) / "bin/python")
    return [python, "-m", "launch.cli", "run", "job.yaml", *more]


def saved(run_dir: Path) -> list[int]:
    found = run_dir.glob("checkpoints/step-*/state.json")
    return sorted(int(path.parent.name[5:]) for path in found)


def until_it_has_saved(run_dir: Path, started: Started) -> None:
    limit = time.monotonic() + 60
    while not saved(run_dir):
        assert time.monotonic() < limit
        assert started.process.poll() is None, started.finish(1).stderr
        time.sleep(0.02)


def fill_between_saves(run_dir: Path, disk: Path) -> Path:
    """Leave no byte free at a moment when nothing is being saved: a save that fails
    gives back what it had taken, which is enough to write the error."""
    limit = time.monotonic() + 60
    while True:
        halted = signal_job(run_dir, signal.SIGSTOP)
        while not all(map(stands_still, halted)):
            assert time.monotonic() < limit
            time.sleep(0.001)
        if not list(run_dir.glob("checkpoints/.*.tmp-*")):
            break
        signal_job(run_dir, signal.SIGCONT)
        assert time.monotonic() < limit
        time.sleep(0.003)
    filler = fill(disk)
    signal_job(run_dir, signal.SIGCONT)
    return filler


def stands_still(pid: int) -> bool:
    """Return whether no thread of a process does anything, nor is in a system call."""
    states = Path(f"/proc/{pid}/task").glob("*/stat")
    return all(s.read_text().rpartition(")")[2].split()[0] in "TZX" for s in states)


def check(done: subprocess.CompletedProcess[str], *causes: str) -> None:
    assert done.returncode == 74, done.stderr
    last = done.stderr.rstrip().splitlines()[-3:]
    assert "expected to be able to write " in last[0], done.stderr
    assert last[0].startswith("[rank 0 ")
    assert any(f"received: {cause}" in last[1] for cause in causes), last
    assert "to do: make room, correct the permissions, or take another" in last[2]
    for other in ("restart", "without a word", "Traceback", "Logging error", "ABORT"):
        assert other not in done.stderr, done.stderr


def check_resume(mpi: str, folder: Path) -> None:
    run_dir = folder / "runs/tiny"
    last = saved(run_dir)[-1]
    more = ("--resume", "auto", "--set", f"train.steps={last + 5}")
    done = run(command(mpi, *more), 60, cwd=folder)
    assert done.returncode == 0, done.stderr
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    steps = [json.loads(x)["step"] for x in lines if "grad_norm" in x]
    assert steps == list(range(1, last + 6))


@pytest.mark.mpi
@pytest.mark.parametrize("mpi", FLAVOURS)
def test_no_byte_is_free(mpi: str, tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(JOB)
    with small_disk(tmp_path / "runs", "3m") as disk:
        with Started(command(mpi), cwd=tmp_path) as started:
            until_it_has_saved(disk / "tiny", started)
            filler = fill_between_saves(disk / "tiny", disk)
            done = started.finish(60)
        check(done, "[Errno 28] No space left on device")
        filler.unlink()
        check_resume(mpi, tmp_path)


@pytest.mark.mpi
@pytest.mark.parametrize("mpi", FLAVOURS)
def test_a_disk_turns_read_only(mpi: str, tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(JOB)
    with failing_disk(tmp_path / "runs", tmp_path / "image") as disk:
        with Started(command(mpi), cwd=tmp_path) as started:
            until_it_has_saved(disk / "tiny", started)
            turn_read_only(disk)
            done = started.finish(60)
        # what is on its way to the disk at that moment fails in the other way
        check(done, "[Errno 30] Read-only file system", "[Errno 5] Input/output error")
        mend(disk, tmp_path / "image")
        check_resume(mpi, tmp_path)
