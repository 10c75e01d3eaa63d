"""Jobs over several hosts that go on by themselves after a loss.

In exact mode they end with the bits of an undisturbed run. The time from the loss to
the next step stays below 30 s.
"""

from __future__ import annotations

import itertools
import json
import time

import pytest
from hosts_lab import Done, Job, Lab, in_time, seen, within
from mpi_environments import FLAVOURS
from safetensors.numpy import load_file

pytestmark = [pytest.mark.mpi, pytest.mark.slow]
both = pytest.mark.parametrize("mpi", FLAVOURS)
STEPS = 400
EXACT = ("--set", "comm.algorithm=exact", "--set", f"train.steps={STEPS}")
RESTART = ("--set", "launch.max_restarts=1", "--set", "launch.min_ranks=2")
SECONDS = 30.0


def start(lab: Lab, mpi: str) -> Job:
    words = ("--hostfile", "hosts.txt", *EXACT, *RESTART)
    job = lab.start(mpi, "run", "job.yaml", *words)
    job.until_it_trains()
    return job


def weights(lab: Lab, name: str) -> bytes:
    folder = lab.folder / "work" / "runs" / name / "checkpoints"
    found = load_file(folder / f"step-{STEPS:08d}" / "model.safetensors")
    return b"".join(found[key].tobytes() for key in sorted(found))


def next_step(lab: Lab, since: float, acted: float) -> float:
    """Return when the job made its first step after the longest pause, a loss."""
    path = lab.folder / "work" / "runs" / "tiny" / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    times = [line["time"] for line in lines]
    before, after = max(itertools.pairwise(times), key=lambda pair: pair[1] - pair[0])
    assert before < acted + 1.0  # a step may have been under way
    assert since < after
    return after


def check(lab: Lab, mpi: str, done: Done, since: float, acted: float) -> None:
    assert done.status == 0, done.err
    assert done.err.count("restart 1 of at most 1") == 1, done.err
    seconds = next_step(lab, since, acted) - since
    told = [line for line in done.out.splitlines() if "from the loss" in line]
    assert len(told) == 1, done.out
    print(f"{mpi}: {seconds:.1f} s from the fault to the next step; {told[0]}")
    other = ("--set", "run_dir=runs/whole", "--set", "name=whole")
    whole = lab.run_beside(mpi, "-H", "node1:1", *EXACT, *other)
    assert whole.status == 0, whole.err
    assert weights(lab, "tiny") == weights(lab, "whole")
    within(seconds, SECONDS, done.err)


@both
@in_time
def test_a_host_that_loses_its_power(mpi: str, lab: Lab) -> None:
    job = start(lab, mpi)
    since = time.time()
    lab.crash("node3")
    acted = time.time()
    done = job.finish()
    assert "on 3 ranks without node3" in done.err
    check(lab, mpi, done, since, acted)


@both
@in_time
def test_a_link_that_is_cut(mpi: str, lab: Lab) -> None:
    job = start(lab, mpi)
    since = time.time()
    lab.cut_off("node2")
    acted = time.time()
    done = job.finish()
    assert "on 3 ranks without node2" in done.err
    check(lab, mpi, done, since, acted)


@both
@in_time
def test_a_rank_that_is_killed(mpi: str, lab: Lab) -> None:
    job = start(lab, mpi)
    since = time.time()
    lab.on("node2", "kill", "-9", str(seen(lab)[2]["pid"]))
    acted = time.time()
    done = lab.finish(job)
    assert "on 4 ranks" in done.err
    check(lab, mpi, done, since, acted)
