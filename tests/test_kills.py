"""A job that is killed again and again ends with the bits of an undisturbed one.

FASTSERVE_TEST_KILLS says how often; ``make test-kills`` takes 200.
"""

from __future__ import annotations

import json
import os
import random
import signal
import time
from pathlib import Path

import pytest
from mpi_environments import FLAVOURS, Started, require, signal_job

KILLS = int(os.environ.get("FASTSERVE_TEST_KILLS", "4"))
STEPS = max(200, 30 * KILLS)  # enough for some between two kills
SECONDS = 240 + 5 * KILLS  # for all of them
JOB = f"""
name: tiny
model: {{type: gpt, n_layer: 1, n_head: 2, n_embd: 64, block_size: 32, dropout: 0.1}}
data: {{type: text, source: pydoc-topics}}
train: {{global_batch: 8, micro_batch: 2, steps: {STEPS}, log_every: 7, eval_every: 50,
        eval_batches: 2, early_stop: 50, baseline: false}}
checkpoint: {{every: 1, keep: 2, best: true}}
comm: {{algorithm: exact}}
launch: {{ranks: 2}}
"""


@pytest.mark.mpi
@pytest.mark.parametrize("mpi", FLAVOURS)
def test_kills_at_any_moment(mpi: str, tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(JOB)
    command = [str(require(mpi) / "bin" / "python"), "-m", "launch.cli", "run"]
    with Started(
        [*command, "job.yaml", "--set", "name=whole"], cwd=tmp_path
    ) as started:
        assert started.finish(SECONDS).returncode == 0
    rng = random.Random(mpi)
    run_dir = tmp_path / "runs/tiny"
    resume = [*command, "job.yaml", "--resume", "auto"]
    for number in range(KILLS):
        with Started(resume, cwd=tmp_path) as started:
            saving = number % 5 != 4  # most of them during a save
            _wait(run_dir, rng, started)
            while not _stop(run_dir) and saving:  # the save was over meanwhile
                signal_job(run_dir, signal.SIGCONT)
                _wait_for_save(run_dir, rng, started)
            signal_job(run_dir, signal.SIGKILL)
            started.process.kill()
            started.process.wait(20)
        print(f"kill {number + 1}: {'while it saved' if saving else 'at any moment'}")
    with Started(resume, cwd=tmp_path) as started:
        done = started.finish(SECONDS)
    assert done.returncode == 0, done.stderr
    for name in (f"step-{STEPS:08d}", "best"):
        one, other = (
            json.loads(
                (tmp_path / f"runs/{n}/checkpoints/{name}/state.json").read_text()
            )
            for n in ("whole", "tiny")
        )
        assert one["files"] == other["files"], name
        assert one["state"]["early_stop"] == other["state"]["early_stop"]
    assert _lines(tmp_path / "runs/whole") == _lines(run_dir)
    assert not list(run_dir.glob("checkpoints/.*.tmp-*"))


def _wait(run_dir: Path, rng: random.Random, started: Started) -> None:
    """Wait until the job has made steps of its own, and then for a random moment of the
    next twelve: however fast they are, some are left for the other kills."""
    since, limit = time.time(), time.monotonic() + 60
    first, more = 0, rng.randrange(12)
    while not first or _newest(run_dir, since) < first + more:
        first = first or _newest(run_dir, since)
        assert time.monotonic() < limit
        assert started.process.poll() is None, started.finish(1).stderr
        time.sleep(0.01)
    time.sleep(rng.random() * 0.01)


def _newest(run_dir: Path, since: float) -> int:
    """Return the step of the newest checkpoint that was saved since then, or 0."""
    states = run_dir.glob("checkpoints/step-*/state.json")
    return max((int(p.parent.name[5:13]) for p in states if _age(p) > since), default=0)


def _wait_for_save(run_dir: Path, rng: random.Random, started: Started) -> None:
    """Wait for a random moment after a checkpoint's temporary folder has appeared."""
    limit = time.monotonic() + 60
    while not _saving(run_dir):
        assert time.monotonic() < limit
        assert started.process.poll() is None, "no steps were left"
    time.sleep(rng.random() * 0.004)


def _saving(run_dir: Path) -> bool:
    return any((run_dir / "checkpoints").glob(".*.tmp-*"))


def _stop(run_dir: Path) -> bool:
    """Halt the job's processes where they are; return whether they were saving."""
    signal_job(run_dir, signal.SIGSTOP)
    return _saving(run_dir)


def _age(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:  # it was removed meanwhile
        return 0.0


def _lines(run_dir: Path) -> list[dict[str, float]]:
    """Return the lines of the metrics without what depends on time."""
    lines = map(json.loads, (run_dir / "metrics.jsonl").read_text().splitlines())
    timed = ("time", "tokens_per_s", "gflops")
    return [{k: v for k, v in line.items() if k not in timed} for line in lines]


@pytest.mark.mpi
def test_a_second_job_is_kept_out_of_a_run_folder(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(JOB)
    python = str(require("openmpi") / "bin" / "python")
    command = [python, "-m", "launch.cli", "run", "job.yaml", "-n", "1"]
    states = tmp_path / "runs/tiny/checkpoints"
    with Started([*command, "--set", "train.steps=100000"], cwd=tmp_path) as first:
        limit = time.monotonic() + 60
        while not list(states.glob("step-*/state.json")):
            assert time.monotonic() < limit
            time.sleep(0.02)
        for more in (["--overwrite"], ["--resume", "auto", "--overwrite"]):
            with Started([*command, *more], cwd=tmp_path) as second:
                done = second.finish(60)
            assert done.returncode == 2, done.stderr
            assert "in use by process" in done.stderr
            assert "to do: wait for its end or stop it" in done.stderr
        # looked at again: one that was just listed may have been replaced since
        assert any(list(states.glob("step-*/state.json")) for _ in range(9))
        first.process.send_signal(signal.SIGTERM)
        assert first.finish(60).returncode == 75
