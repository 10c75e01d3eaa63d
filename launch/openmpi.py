"""The command line of Open MPI's mpirun, versions 4.1 and 5."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path


def command(
    mpirun: Path, ranks: int, program: Sequence[str], forward: Iterable[str]
) -> list[str]:
    """Return the command that starts ``ranks`` copies of ``program``.

    ``forward`` names the variables that ranks on other hosts get too.

    mpirun counts slots in its own way (no hardware threads, one per core), so it may
    oversubscribe: how many ranks a host gets has been decided before. It binds nothing,
    as each rank pins itself.
    """
    placing = ["-n", str(ranks), "--map-by", "slot:OVERSUBSCRIBE", "--bind-to", "none"]
    exported = [word for name in forward for word in ("-x", name)]
    return [str(mpirun), *placing, *exported, *program]


def environment(root: bool) -> dict[str, str]:
    """Return the variables that mpirun itself needs; root must be allowed twice."""
    if not root:
        return {}
    return {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
