"""Generators that threads read ahead, and callbacks that decide, on real MPI ranks."""

from __future__ import annotations

import json
import signal
import sys
from typing import Any

import pytest
from mpi_environments import FLAVOURS, ROOT, Started, mpi_command, run

PROGRAM = str(ROOT / "tests" / "programs" / "streams_program.py")
pytestmark = pytest.mark.mpi


def results(command: list[str]) -> list[dict[str, Any]]:
    done = run(command, 60)
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_all_ranks_have_the_same(flavour: str) -> None:
    (alone,) = results([sys.executable, PROGRAM, "train"])
    several = results(mpi_command(flavour, 3, PROGRAM, "train"))
    for name in ("epochs", "steps", "sum", "answers", "loss"):
        assert len({one[name] for one in several}) == 1, name
    assert several[0]["loss"] == pytest.approx(alone["loss"], rel=1e-4)
    assert several[0]["mean"] == pytest.approx(alone["mean"], rel=1e-4)
    assert all(one["ahead"] and not one["left"] for one in [alone, *several])


def test_a_stop_on_one_rank_stops_all() -> None:
    several = results(mpi_command("openmpi", 3, PROGRAM, "stop"))
    assert [(one["epochs"], one["steps"]) for one in several] == [(1, 3)] * 3
    assert len({one["sum"] for one in several}) == 1


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("differ", "another batch on rank 1"),
        ("fail", "KeyError: 'the cause'"),
    ],
)
def test_a_fault_ends_the_job(what: str, message: str) -> None:
    done = run(mpi_command("openmpi", 2, PROGRAM, what), 30)
    assert done.returncode != 0
    assert message in done.stderr


def test_an_interrupt_leaves_nothing() -> None:
    with Started(mpi_command("openmpi", 2, PROGRAM, "sleep")) as started:
        assert started.process.stdout is not None
        for _ in range(10):
            started.process.stdout.readline()
        started.process.send_signal(signal.SIGINT)
        started.finish(20)
        assert started.process.returncode != 0
