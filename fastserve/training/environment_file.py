"""environment.json: on what a run was made, for whoever asks later."""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from pathlib import Path
from typing import Any

import fastserve
from fastserve import environment
from fastserve.comm import Communicator
from fastserve.config.public_command import public_command
from fastserve.training import files
from fastserve.training.numerics import numerics

NAME = "environment.json"


def describe_environment(comm: Communicator) -> dict[str, Any] | None:
    """Return versions, BLAS, MPI, hosts and command on rank 0, None on the others.

    All ranks call it. ``hosts`` has an entry for each host: its name, ranks, CPU, the
    cores of the machine and BLAS threads of its first rank.
    """
    own = numerics()
    told = comm.gather_obj(
        {
            "host": comm.host,
            "cpu": environment.cpu_model(),
            "cores": os.cpu_count(),
            "threads": int(own.get("threads", 1)),
        }
    )
    if told is None:
        return None
    hosts: dict[str, dict[str, Any]] = {}
    for rank in told:
        host = hosts.setdefault(rank["host"], {"host": rank["host"], "ranks": 0})
        host["ranks"] += 1
        for name, value in rank.items():
            host.setdefault(name, value)
    return {
        "fastserve": fastserve.__version__,
        "python": platform.python_version(),
        "mpi4py": environment.version("mpi4py"),
        "mpi": comm.library or None,
        **{key: own.get(name) for name, key in environment.NUMERICS_KEYS.items()},
        "threads": int(own.get("threads", 1)),
        "ranks": comm.size,
        "hosts": list(hosts.values()),
        "system": platform.platform(),
        "interpreter": sys.executable,
        "command": public_command(sys.orig_argv),
        "started": time.time(),
    }


def write_environment(run_dir: Path, comm: Communicator) -> dict[str, Any] | None:
    """Write environment.json on rank 0; return what ``describe_environment`` does."""
    found = describe_environment(comm)
    if found is not None:
        text = json.dumps(found, indent=1) + "\n"
        files.write_atomically(run_dir / NAME, text)
    return found
