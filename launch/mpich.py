"""The command line of Hydra, the mpiexec of MPICH and its relatives."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .mpi import Network


def command(
    mpiexec: Path, ranks: int, program: Sequence[str], net: Network | None = None
) -> list[str]:
    """Return the command that starts ``ranks`` copies of ``program``.

    ``net`` is None if there are no other hosts. Hydra passes on the whole environment,
    takes any number of ranks per host, and is told to bind nothing, as each rank pins
    itself.
    """
    words = ["-hosts", net.listed] if net else []
    words += ["-iface", net.interface] if net and net.interface else []
    return [str(mpiexec), *words, "-bind-to", "none", "-n", str(ranks), *program]


def environment(net: Network | None) -> dict[str, str]:
    """Return the variables that Hydra and MPICH's two network libraries need."""
    if net is None:
        return {}
    needed = {"HYDRA_LAUNCHER_EXTRA_ARGS": " ".join(net.ssh)}
    if net.interface:
        needed.update(UCX_NET_DEVICES=net.interface, FI_TCP_IFACE=net.interface)
    return needed
