"""The command line of Open MPI's mpirun, versions 4.1 and 5."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping, Sequence

from .mpi import FoundMPI, Network

# Seconds; a lost connection ends the job after 5 + 5 x 1 of them, not after 480.
_KEEPALIVE = {"time": 5, "intvl": 1, "probes": 5}
# A rank that waits lets others have its core between two looks, which costs 0.3 us of a
# small message: on shared cores they get on with what it waits for. 4 ranks on 2 cores
# wait for turns of 4 ms without it.
_YIELD = ("mpi_yield_when_idle", "1")


def command(
    mpi: FoundMPI,
    ranks: int,
    program: Sequence[str],
    forward: Iterable[str],
    net: Network | None = None,
) -> list[str]:
    """Return the command that starts ``ranks`` copies of ``program``.

    ``forward`` names the variables that ranks on other hosts get too; ``net`` is None
    if there are no other hosts.

    mpirun counts slots in its own way (no hardware threads, one per core), so it may
    oversubscribe: how many ranks a host gets has been decided before. It binds nothing,
    as each rank pins itself.
    """
    placing = ["-n", str(ranks), "--map-by", "slot:OVERSUBSCRIBE", "--bind-to", "none"]
    placing += ["--mca", *_YIELD]
    exported = [word for name in forward for word in ("-x", name)]
    hosts = _several_hosts(mpi, net) if net else []
    return [str(mpi.command), *hosts, *placing, *exported, *program]


def environment(root: bool) -> dict[str, str]:
    """Return the variables that mpirun itself needs; root must be allowed twice."""
    if not root:
        return {}
    return {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}


def forget_session(pid: int, variables: Mapping[str, str]) -> None:
    """Remove the files of an mpirun that was killed, so that its id can be used again.

    A new mpirun that gets the same process id finds them in its place and gives up:
    "The PMIx server's listener thread failed to start". ``variables`` are those that
    it runs with.
    """
    places = (variables.get(name) for name in ("TMPDIR", "TEMP", "TMP"))
    place = next(filter(None, places), "/tmp")
    shutil.rmtree(os.path.join(place, f"ompi.{pid}"), ignore_errors=True)


def _several_hosts(mpi: FoundMPI, net: Network) -> list[str]:
    old = mpi.version.startswith("Open MPI 4.")
    ssh = "plm_rsh" if old else "plm_ssh"
    runtime = {
        f"{ssh}_args": " ".join(net.ssh),
        # Hosts needn't be able to log in to each other, only from here.
        f"{ssh}_no_tree_spawn": "1",
        **{f"oob_tcp_keepalive_{k}": str(v) for k, v in _KEEPALIVE.items()},
    }
    messages = {}
    if net.interface:
        runtime["oob_tcp_if_include" if old else "prte_if_include"] = net.interface
        messages["btl_tcp_if_include"] = net.interface
    elif net.avoid:
        # mpirun's own daemons try every address, and find one that answers
        messages["btl_tcp_if_exclude"] = ",".join(("127.0.0.0/8", *net.avoid))
    if len(net.hosts) > 1:
        # With the defaults, one link of two hosts is used to little more than half.
        messages.update(btl_tcp_links="2", btl_tcp_max_send_size="1048576")
    words = ["--host", net.listed]
    for name, value in runtime.items():
        words += ["--mca" if old else "--prtemca", name, value]
    for name, value in messages.items():
        words += ["--mca", name, value]
    return words
