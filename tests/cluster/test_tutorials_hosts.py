"""The tutorials for several machines, followed on the lab's hosts and in its Slurm."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence

import pytest
from hosts_lab import SCRIPT, Lab
from mpi_environments import FLAVOURS, require, variables
from pages import Reader
from real_data import real
from test_slurm_jobs import Slurm, service, slurm
from test_tutorials import LIMIT, TUTORIALS

pytestmark = [pytest.mark.mpi, pytest.mark.slow]
__all__ = ["service", "slurm"]  # fixtures


def follow(name: str, lab: Lab, mpi: str, **more: str) -> None:
    """Follow a page on node1, in the folder that the hosts share."""
    folder = lab.folder / "work"
    env = variables(
        **{**lab.environment, **more},
        PATH=f"{require(mpi) / 'bin'}{os.pathsep}{os.environ['PATH']}",
    )

    def runner(command: Sequence[str]) -> tuple[int, str]:
        words = ("sh", "-c", 'exec "$@" 2>&1', "sh", *command)
        limited = ("timeout", "-k", "2", str(LIMIT), *words)
        start = (str(SCRIPT), "exec", "node1", *limited)
        # not mpi_environments.run: it would end a job in Slurm together with sbatch
        done = subprocess.run(
            start,
            cwd=folder,
            env=env,
            text=True,
            capture_output=True,
            timeout=LIMIT + 10,
            check=False,
        )
        return done.returncode, done.stdout

    text = (TUTORIALS / f"{name}.md").read_text("utf-8")
    Reader(folder, runner).follow(text)


@pytest.mark.parametrize("mpi", FLAVOURS)
def test_two_machines(mpi: str, lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    digits = real("mnist-sample", monkeypatch)  # which may be in one environment alone
    follow("two-machines", lab, mpi, FASTSERVE_DATA_DIR=str(digits.parent))
    lab.nothing_left()


def test_slurm(slurm: Slurm) -> None:
    more = {"SLURM_CONF": slurm.conf, "FASTSERVE_GRACE": "45"}
    follow("slurm", slurm.lab, "openmpi", **more)
    slurm.lab.nothing_left()
