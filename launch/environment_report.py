"""The report of ``fastserve env``: what to know of an installation."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys

import fastserve
from fastserve import environment
from fastserve.errors import LaunchError

from .mpi import find_mpi


def environment_report() -> str:
    """Return versions, BLAS, threads, MPI and CPU, one a line. Loads NumPy, not MPI."""
    rows = [
        ("fastserve", fastserve.__version__),
        ("Python", f"{platform.python_version()} ({sys.executable})"),
        ("NumPy", environment.numpy_version()),
        *_blas(),
        ("kernel", _kernel()),
        ("mpi4py", _version("mpi4py")),
        ("MPI", _mpi()),
        ("system", platform.platform()),
        ("CPU", environment.cpu_model()),
        ("cores", _cores()),
    ]
    return "\n".join(f"{name:<11}{value}" for name, value in rows)


def _blas() -> list[tuple[str, str]]:
    import numpy  # noqa: F401  its BLAS is found among the loaded libraries
    from threadpoolctl import threadpool_info

    libraries = [info for info in threadpool_info() if info["user_api"] == "blas"]
    if not libraries:
        return [("BLAS", "none found among the loaded libraries")]
    return [
        (
            "BLAS",
            f"{info['internal_api']} {info['version']}, "
            f"{info.get('architecture', 'unknown')} kernels, "
            f"{info['num_threads']} threads",
        )
        for info in libraries
    ]


def _kernel() -> str:
    """Return how the kernel family above came to be the one."""
    remembered = environment.remembered_kernel()
    if remembered is None:
        measured = "not measured yet on this CPU"
    else:
        measured = f"measured as the fastest: {remembered or 'the own choice'}"
    chosen = environment.chosen_kernel()
    return f"OPENBLAS_CORETYPE={chosen}; {measured}" if chosen else measured


def _mpi() -> str:
    try:
        found = find_mpi()
    except LaunchError as error:
        return f"none ({error.received})"
    return f"{found.version} ({found.flavour}) at {found.command}"


def _cores() -> str:
    return f"{len(environment.affinity_cores())} usable of {os.cpu_count()}"


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
