"""The command line of Hydra, the mpiexec of MPICH and its relatives."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def command(mpiexec: Path, ranks: int, program: Sequence[str]) -> list[str]:
    """Return the command that starts ``ranks`` copies of ``program``.

    Hydra passes on the whole environment, takes any number of ranks per host, and is
    told to bind nothing, as each rank pins itself.
    """
    return [str(mpiexec), "-bind-to", "none", "-n", str(ranks), *program]
