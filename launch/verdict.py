"""Says why a job ended badly, out of what is known of its ranks and hosts.

A rank's own record tells most. But a rank that is killed leaves none, and then the
records of the ranks that missed it, and the MPI's words, tell only what followed.
"""

from __future__ import annotations

import re
import signal
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from fastserve.errors import LaunchError

from .plan import LaunchPlan
from .records import ErrorRecord

_SHOWN = 4  # ranks that one line names
FOLLOWS = "CommError"  # the error of a rank that misses another one
_LATENCY = 0.5  # seconds until the end of a process is noticed
_SIGNALED = re.compile(
    rb"process rank (\d+) with PID (\d+) on node (\S+) exited on\s+signal (\d+)"
)
_EXITED = re.compile(rb"Process name: \[[^\]]*,(\d+)\]\s+Exit code:\s+(\d+)")
_VICTIM = re.compile(
    rb"\*\*\* reported by process \[\d+,(\d+)\]"
    rb"|process rank (\d+) with PID \d+ on node \S+ calling"
)
_PEER = re.compile(rb"Peer host:\s+(\S+)")
_CRASHES = ("SIGSEGV", "SIGBUS", "SIGABRT")
_EVER = sys.float_info.max
_BAD = re.compile(rb"PID (\d+) RUNNING AT (\S+)\s+=\s+EXIT CODE: (\d+)")


@dataclass(frozen=True)
class Ended:
    """A rank whose process has ended, and when that was noticed (unix time).

    The time is infinite for a rank that ended after the job had.
    """

    rank: int
    host: str
    pid: int
    time: float


@dataclass
class Sight:
    """What was seen of a job from outside of its ranks, while it ran.

    ``lost`` holds what was heard last of each host that can't be reached any more.
    """

    ended: dict[int, Ended] = field(default_factory=dict)
    started: set[int] = field(default_factory=set)
    lost: dict[str, str] = field(default_factory=dict)

    def end(self, rank: int, host: str, pid: int, time: float) -> None:
        """Note that a rank's process has ended."""
        self.ended.setdefault(rank, Ended(rank, host, pid, time))


@dataclass(frozen=True)
class Death:
    """How the MPI says that a rank died; what it doesn't say is None."""

    rank: int | None
    host: str | None
    pid: int | None
    how: str


def deaths(words: bytes) -> list[Death]:
    """Return the ranks that an MPI names in its messages as the first to die."""
    found = [
        Death(int(rank), host.decode(), int(pid), _signal_name(int(number)))
        for rank, pid, host, number in _SIGNALED.findall(words)
    ]
    found += [
        Death(int(rank), None, None, f"exit status {int(status)}")
        for rank, status in _EXITED.findall(words)
    ]
    found += [
        Death(None, host.decode(), int(pid), _hydra_status(int(status)))
        for pid, host, status in _BAD.findall(words)
    ]
    return found


def silent_rank(
    plan: LaunchPlan,
    records: Sequence[ErrorRecord],
    sight: Sight,
    words: bytes,
    crashed: Mapping[int, str] | None = None,
) -> str | None:
    """Return ``rank 1 on node2 (pid 95) ...`` for the rank that ended the job.

    None if the records tell the cause, or if there is nothing to tell which it was.
    ``words`` are the MPI's messages, ``crashed`` what ranks left in their logs.
    """
    if records and records[0].type != FOLLOWS:
        return None
    told = {record.rank for record in records}
    limit = records[0].time + _LATENCY if records else _EVER
    for death in deaths(words):
        rank = death.rank if death.rank is not None else _rank_of(death, sight)
        seen = sight.ended.get(rank) if rank is not None else None
        if rank in told or (records and (seen is None or seen.time > limit)):
            continue
        others = _about_then(sight, told, seen) if death.how in _CRASHES else []
        also = f"; about then also {_list(others, crashed)}" if others else ""
        stack = crashed.get(rank) if crashed and rank is not None else None
        named = _named(plan, rank, death, seen)
        return named + (f", {stack}" if stack else "") + also
    # Without the MPI's word, ranks that ended after the first record were ended by it.
    limit = records[0].time if records else _EVER
    silent = [e for e in sight.ended.values() if e.rank not in told and e.time <= limit]
    silent = _not_victims(silent, words)
    if not silent:
        return None
    first = min(e.time for e in silent)
    together = [e for e in silent if e.time <= first + _LATENCY]
    if len(together) == plan.ranks:  # none of them before the others
        return None
    # Those that crashed come first: a rank that misses one can be seen to end before.
    together.sort(key=lambda ended: ended.rank not in (crashed or {}))
    return f"{_list(together, crashed)} ended without a word"


def lost_hosts(sight: Sight, records: Sequence[ErrorRecord]) -> LaunchError | None:
    """Return the error for hosts that are gone; None if there are none, or if a rank
    failed by itself before."""
    if not sight.lost or (records and records[0].type != FOLLOWS):
        return None
    names = ", ".join(sorted(sight.lost))
    plural = "s" if len(sight.lost) > 1 else ""
    said = "; ".join(filter(None, sight.lost.values()))
    return LaunchError(
        "expected all hosts of the job to stay reachable",
        f"host{plural} {names} not reachable any more{f' ({said})' if said else ''}",
        "see whether the host and its network are up; go on with --resume auto, "
        f"without it: --exclude {','.join(sorted(sight.lost))}",
    )


def _about_then(
    sight: Sight, told: Collection[int], crashed: Ended | None
) -> list[Ended]:
    """Return the silent ranks that ended before a crashed one, or just after it.

    An MPI may crash because another rank is gone: then that one is the cause.
    """
    limit = crashed.time + _LATENCY if crashed else _EVER
    return [
        e
        for e in sight.ended.values()
        if e != crashed and e.rank not in told and e.time <= min(limit, _EVER)
    ]


def _list(ended: Sequence[Ended], crashed: Mapping[int, str] | None) -> str:
    named = [f"rank {e.rank} on {e.host} (pid {e.pid})" for e in ended[:_SHOWN]]
    for i, e in enumerate(ended[:_SHOWN]):
        if crashed and e.rank in crashed:
            named[i] += f": {crashed[e.rank]}"
    more = len(ended) - _SHOWN
    return " and ".join(named) + (f" and {more} more" if more > 0 else "")


def _not_victims(silent: list[Ended], words: bytes) -> list[Ended]:
    """Leave out ranks that Open MPI ended because they missed another one.

    Where it tells a host that was missed, only ranks of that host are left.
    """
    victims = {int(rank) for pair in _VICTIM.findall(words) for rank in pair if rank}
    missed = _PEER.search(words)
    rest = [e for e in silent if e.rank not in victims]
    there = [e for e in rest if missed and e.host == missed[1].decode()]
    return there or rest or silent


def _rank_of(death: Death, sight: Sight) -> int | None:
    for ended in sight.ended.values():
        same_host = death.host in (ended.host, None) or ended.host == "this host"
        if ended.pid == death.pid and same_host:
            return ended.rank
    return None


def _named(plan: LaunchPlan, rank: int | None, death: Death, seen: Ended | None) -> str:
    host = seen.host if seen else death.host
    if rank is not None and host is None:
        host = plan.place_of(rank).host.name
    pid = death.pid or (seen.pid if seen else None)
    who = f"rank {rank}" if rank is not None else "a rank"
    number = f" (pid {pid})" if pid else ""
    return f"{who} on {host}{number} ended without a word: {death.how}"


def _hydra_status(status: int) -> str:
    """Return the meaning of Hydra's exit code, which is a bare number for signals."""
    known = {s.value for s in _KNOWN}
    return _signal_name(status) if status in known else f"exit status {status}"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


_KNOWN = (signal.SIGKILL, signal.SIGSEGV, signal.SIGBUS, signal.SIGTERM, signal.SIGABRT)
