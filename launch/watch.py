"""Watches the processes of a job on this host, and ends them (Linux).

A job's processes are known by FASTSERVE_JOB in their environment, as the MPIs put them
into process groups and sessions of their own. The MPI's daemons don't have it: they are
known as the parents of ranks.
"""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from fastserve.environment import process_stat

_JOB = b"FASTSERVE_JOB="
# Open MPI also sets PMIX_RANK, and under mpirun inside of a Slurm job SLURM_PROCID is
# that of the daemon: the order matters.
_RANKS = (b"OMPI_COMM_WORLD_RANK", b"PMI_RANK", b"PMIX_RANK", b"SLURM_PROCID")
_DAEMONS = ("prted", "orted", "hydra_pmi_proxy", "hydra_pmi_prox", "pmi_proxy")
_YOUNG = 3.0  # seconds after which a process won't become another program any more
_KILL_SECONDS = 2.0


@dataclass(frozen=True)
class Seen:
    """A rank whose process was found, or isn't there any more."""

    rank: int
    pid: int
    ended: bool


@dataclass(frozen=True)
class _Process:
    """A process; ``start`` tells it from a later one of the same number."""

    pid: int
    start: str


class Watch:
    """The processes of the job that bears ``token``."""

    def __init__(self, token: str) -> None:
        self._mark = _JOB + token.encode()
        self._ranks: dict[_Process, int] = {}
        self._daemons: set[_Process] = set()
        self._others: dict[int, float] = {}  # processes of others: when first seen
        self._marked: set[int] = set()

    def poll(self) -> list[Seen]:
        """Return the ranks that have started or ended since the last call."""
        before = set(self._ranks)
        self._find()
        new = [p for p in self._ranks if p not in before]
        gone = [p for p in self._ranks if not _runs(p)]
        seen = [Seen(self._ranks[p], p.pid, False) for p in new]
        return seen + [Seen(self._ranks.pop(p), p.pid, True) for p in gone]

    def kill(self) -> None:
        """Kill every process of the job on this host, the MPI's daemons included."""
        limit = time.monotonic() + _KILL_SECONDS
        while True:
            self._others.clear()
            self._find()
            left = [p for p in self._daemons if _runs(p)]
            left += [_Process(pid, "") for pid in self._marked]
            if not left or time.monotonic() > limit:
                return
            for process in left:
                with suppress(ProcessLookupError, PermissionError):
                    os.kill(process.pid, signal.SIGKILL)
            time.sleep(0.02)

    def _find(self) -> None:
        """Look at the processes that weren't known yet."""
        now = time.monotonic()
        known = {process.pid for process in self._ranks}
        running = {int(f.name) for f in Path("/proc").glob("[0-9]*")} - {os.getpid()}
        self._others = {p: t for p, t in self._others.items() if p in running}
        # not by their numbers alone: one that ended may be a zombie, or the number of
        # another process by now
        self._marked = {process.pid for process in self._ranks if _runs(process)}
        found: dict[_Process, tuple[int, int]] = {}
        for pid in running - known:
            if now - self._others.setdefault(pid, now) > _YOUNG:
                continue
            variables = _variables(pid)
            stat = process_stat(pid)
            if self._mark not in variables or stat is None:
                continue
            self._marked.add(pid)
            del self._others[pid]  # looked at each time, as a rank may still become one
            rank = _rank(variables)
            if rank is not None:
                found[_Process(pid, stat[1])] = (rank, int(stat[0]))
        pids = known | {process.pid for process in found}
        for process, (rank, parent) in found.items():
            if parent not in pids:  # else it is a program that a rank has started
                self._ranks[process] = rank
                self._note_daemon(parent)

    def _note_daemon(self, pid: int) -> None:
        """Remember a rank's parent if it is one of the MPI's daemons."""
        stat = process_stat(pid)
        with suppress(OSError):
            name = Path(f"/proc/{pid}/comm").read_text().strip()
            if stat is not None and name in _DAEMONS:
                self._daemons.add(_Process(pid, stat[1]))


def _runs(process: _Process) -> bool:
    stat = process_stat(process.pid)
    return stat is not None and stat[1] == process.start


def _variables(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:  # it ended meanwhile, or it is another user's
        return []


def _rank(variables: list[bytes]) -> int | None:
    values = dict(v.split(b"=", 1) for v in variables if b"=" in v)
    for name in _RANKS:
        if values.get(name, b"").isdigit():
            return int(values[name])
    return None
