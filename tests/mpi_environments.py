"""The Python environments, each with its MPI, that the tests can start ranks in."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from launch.mpi import identify
from launch.openmpi import forget_session
from launch.process import job_processes

ROOT = Path(__file__).resolve().parents[1]
FLAVOURS = ("openmpi", "mpich")
_TEST = "FASTSERVE_TEST_PROCESS"
_PLACES = {"openmpi": ".venv", "mpich": ".venv-mpich"}


def environments() -> dict[str, Path]:
    """Return the folder of the environment with each MPI, by 'openmpi' and 'mpich'.

    The running interpreter's own environment comes first, then those that
    FASTSERVE_TEST_OPENMPI and FASTSERVE_TEST_MPICH name, then .venv and .venv-mpich.
    """
    found: dict[str, Path] = {}
    candidates = [Path(sys.prefix)]
    for flavour, place in _PLACES.items():
        named = os.environ.get(f"FASTSERVE_TEST_{flavour.upper()}")
        candidates += [Path(named)] if named else []
        candidates.append(ROOT / place)
    for folder in candidates:
        mpi = identify(folder / "bin" / "mpirun")
        if mpi is not None and (folder / "bin" / "python").exists():
            found.setdefault(mpi.flavour, folder.absolute())
    return found


def require(flavour: str) -> Path:
    """Return the environment of an MPI; skip the test without it, but fail in CI."""
    folder = environments().get(flavour)
    if folder is None:
        reason = (
            f"no environment with {flavour}: make one in {_PLACES[flavour]} or name "
            f"its folder in FASTSERVE_TEST_{flavour.upper()}"
        )
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    return folder


def signal_job(run_dir: Path, number: signal.Signals) -> list[int]:
    """Send a signal to the ranks of a run and their MPI; return their numbers."""
    found = job_processes(str(run_dir), "FASTSERVE_RUN_DIR")
    for pid in found:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
    return found


def variables(**more: str) -> dict[str, str]:
    """Return the environment for a process of ours: the sources, one BLAS thread."""
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "OPENBLAS_NUM_THREADS": "1",
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        **more,
    }


def mpi_command(flavour: str, ranks: int, *program: str) -> list[str]:
    """Return the command that starts ``python program`` on ranks of an environment."""
    folder = require(flavour) / "bin"
    options = {
        "openmpi": ["--map-by", "slot:OVERSUBSCRIBE", "--bind-to", "none"],
        "mpich": ["-bind-to", "none"],
    }[flavour]
    start = [str(folder / "mpirun"), "-n", str(ranks), *options]
    return [*start, str(folder / "python"), *program]


def run(
    command: Sequence[str], timeout: float, **kw: Any
) -> subprocess.CompletedProcess[str]:
    """Run a command and return its output and status, as ``subprocess.run`` does.

    When the time is over, every process that it started is killed, ranks in groups of
    their own included, and ``subprocess.TimeoutExpired`` is raised with the output.
    """
    with Started(command, **kw) as started:
        return started.finish(timeout)


class Started:
    """A running command of which nothing is left when the ``with`` block ends."""

    def __init__(self, command: Sequence[str], **kw: Any) -> None:
        self._mark = secrets.token_hex(8)
        self._env = {**(kw.pop("env", None) or variables()), _TEST: self._mark}
        kw = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, **kw}
        self.process = subprocess.Popen(
            [str(word) for word in command],
            env=self._env,
            start_new_session=True,
            preexec_fn=self._prepare,
            **kw,
        )

    def _prepare(self) -> None:
        """In the new process: as from a shell, and nothing in an mpirun's way."""
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # ignored in background jobs
        forget_session(os.getpid(), self._env)

    def __enter__(self) -> Started:
        return self

    def finish(self, timeout: float) -> subprocess.CompletedProcess[str]:
        """Wait for the end and return output and status."""
        try:
            out, err = self.process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            out, err = self.process.communicate(timeout=10)
            raise subprocess.TimeoutExpired(
                self.process.args, timeout, out, err
            ) from None
        return subprocess.CompletedProcess(
            self.process.args, self.process.returncode, out, err
        )

    def left(self) -> list[int]:
        """Return the ids of the processes that the command started and left."""
        return job_processes(self._mark, _TEST)

    def kill(self) -> None:
        """Kill everything that the command started."""
        for pid in self.left():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def __exit__(self, *exc: object) -> None:
        self.kill()
        self.process.wait(timeout=10)
        forget_session(self.process.pid, self._env)
        for pipe in (self.process.stdout, self.process.stderr, self.process.stdin):
            if pipe is not None:
                pipe.close()
