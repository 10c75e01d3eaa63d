"""The command line of a job that is one process, without any MPI."""

from __future__ import annotations

from collections.abc import Sequence


def command(program: Sequence[str]) -> list[str]:
    """Return the command: the program itself."""
    return list(program)


def environment() -> dict[str, str]:
    """Return the variables that keep the process away from MPI."""
    return {"FASTSERVE_COMM": "local"}
