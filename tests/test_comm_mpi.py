"""Communication between real MPI processes, and how jobs end."""

from __future__ import annotations

import re
import subprocess
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from mpi_environments import FLAVOURS, ROOT, Started, mpi_command, require, variables

PROGRAM = str(ROOT / "tests" / "programs" / "comm_program.py")
LIMIT = 10.0  # seconds from a rank's failure until the job must have ended
pytestmark = [pytest.mark.mpi, pytest.mark.parametrize("flavour", FLAVOURS)]


def job(
    flavour: str, ranks: int, *words: str, limit: float = 60.0, **env: str
) -> subprocess.CompletedProcess[str]:
    """Run the program on some ranks; check that none of them is left, and how long it
    took from when the last one began, or the one that leaves left: to start them, and
    to load NumPy and MPI, takes a busy machine long."""
    command = mpi_command(flavour, ranks, PROGRAM, *words)
    with TemporaryDirectory() as folder:
        began = Path(folder, "began")
        with Started(command, env=variables(BEGAN=str(began), **env)) as started:
            done = started.finish(limit + 60)
            seconds = time.time() - began.stat().st_mtime
            deadline = time.monotonic() + 3
            while started.left() and time.monotonic() < deadline:
                time.sleep(0.05)
            assert started.left() == []
    assert seconds < limit
    return done


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_verbs_sums_and_sync(flavour: str, ranks: int) -> None:
    done = job(flavour, ranks, "all", limit=120)
    assert done.returncode == 0, done.stderr
    assert f"all checks passed on {ranks} ranks" in done.stdout


@pytest.mark.parametrize("ranks", [2, 4])
def test_an_exception_ends_the_job_with_one_traceback(flavour: str, ranks: int) -> None:
    done = job(flavour, ranks, "leaves", "raise", "barrier", limit=LIMIT)
    assert done.returncode == 1
    assert done.stderr.count("Traceback") == 1
    last = ranks - 1
    assert re.search(rf"\[rank {last} \S+\] KeyError: 'the cause'", done.stderr)
    assert re.search(rf"\[rank {last} \S+\] Traceback", done.stderr)
    assert "the wait has ended" not in done.stdout


def test_an_exception_on_every_rank(flavour: str) -> None:
    done = job(flavour, 3, "all-raise", limit=LIMIT)
    assert done.returncode == 1
    ranks = re.findall(r"\[rank (\d) \S+\] ZeroDivisionError", done.stderr)
    assert ranks
    assert len(ranks) == len(set(ranks))


@pytest.mark.parametrize("how", ["exit0", "exit3", "systemexit", "end"])
@pytest.mark.parametrize("verb", ["barrier", "ring"])
def test_a_rank_that_leaves_ends_those_that_wait(
    flavour: str, how: str, verb: str
) -> None:
    done = job(flavour, 3, "leaves", how, verb, limit=LIMIT)
    assert done.returncode != 0
    assert re.search(r"\[rank \d \S+\].* rank 2 on \S+ has left the job", done.stderr)
    assert "the wait has ended" not in done.stdout


@pytest.mark.parametrize("verb", ["allreduce", "gather_obj"])
def test_every_verb_notices(flavour: str, verb: str) -> None:
    done = job(flavour, 2, "leaves", "exit0", verb, limit=LIMIT)
    assert done.returncode != 0
    assert "has left the job" in done.stderr


@pytest.mark.parametrize("mode", ["early", "late"])
def test_ranks_may_take_their_time(flavour: str, mode: str) -> None:
    done = job(flavour, 3, mode)
    assert done.returncode == 0, done.stderr
    assert "has left" not in done.stderr
    expected = {"early": "done later", "late": "the wait has ended"}[mode]
    assert done.stdout.count(expected) == {"early": 2, "late": 3}[mode]


def test_a_job_of_another_size_is_refused(flavour: str) -> None:
    done = job(flavour, 2, "init", limit=LIMIT, FASTSERVE_RANKS="3")
    assert done.returncode == 1
    assert "expected a job of 3 ranks" in done.stderr
    assert "a world of 2" in done.stderr


def test_silent_worlds_of_one_are_refused(flavour: str) -> None:
    """As after `srun` without PMI, or with the mpirun of another MPI."""
    python = str(require(flavour) / "bin" / "python")
    foreign = {
        "openmpi": {"MV2_COMM_WORLD_RANK": "0", "MV2_COMM_WORLD_SIZE": "3"},
        "mpich": {"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "3"},
    }[flavour]
    slurm = {"SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "3"}
    for env, cure in ((foreign, "mpirun of the same MPI"), (slurm, "--mpi=pmix")):
        command = [python, PROGRAM, "init"]
        with Started(command, env=variables(**env)) as started:
            done = started.finish(30)
        assert done.returncode == 1
        assert "expected a job of 3 ranks" in done.stderr
        assert "a world of 1" in done.stderr
        assert cure in done.stderr
