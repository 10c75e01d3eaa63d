"""The hosts, once for all tests; each test gets them healed."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from hosts_lab import ALL_NODES, Lab
from mpi_environments import ROOT


def _forget_memory_of_dead_jobs() -> None:
    """Remove MPICH's shared memory that no process maps.

    It is called after the job's name in Slurm. New hosts have a new Slurm, which counts
    its jobs from 1 again, and MPICH would take what a killed job of that number left.
    """
    used = ""
    for maps in Path("/proc").glob("[0-9]*/maps"):
        with contextlib.suppress(OSError):
            used += maps.read_text(errors="replace")
    for file in Path("/dev/shm").glob("mpich_shm_*"):
        if file.name not in used:
            with contextlib.suppress(OSError):
                file.unlink()


@pytest.fixture(scope="session")
def hosts() -> Iterator[Lab]:
    _forget_memory_of_dead_jobs()
    base = ROOT / "build"  # not in /tmp, of which each host has its own
    base.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=base, prefix="hosts-") as folder:
        lab = Lab(Path(folder))
        up = lab.do("up", len(ALL_NODES))
        if up.returncode == 69 and os.environ.get("CI") != "true":
            pytest.skip(up.stderr)
        assert up.returncode == 0, up.stderr
        try:
            yield lab
        finally:
            lab.do("down")


@pytest.fixture
def lab(hosts: Lab) -> Iterator[Lab]:
    """The hosts, healed, with the job in a folder of its own."""
    hosts.prepare()
    yield hosts
    hosts.heal()
