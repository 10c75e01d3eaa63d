"""How far the clocks of the hosts are apart."""

from __future__ import annotations

from time import perf_counter
from typing import NamedTuple

import numpy as np

from fastserve.comm.base import Communicator

ROUNDS = 32


class Offset(NamedTuple):
    """How a rank's ``time.perf_counter`` compares with rank 0's.

    Attributes:
        seconds: that it is ahead.
        error: seconds that this may be wrong by, at most.
        at: when that was, on the rank's own clock.
    """

    seconds: float
    error: float
    at: float


def clock_offset(comm: Communicator) -> Offset:
    """Return this rank's offset; all ranks call it together.

    Rank 0 and one rank of each other host send each other their times, ``ROUNDS`` times
    in turn. A message's delay is at least that of the link, so the least difference
    between arriving and leaving is, in one direction, delay + offset, and in the other
    delay - offset. Half of what they differ by is the offset; it is wrong by half of
    the least round trip at most, if one direction is slower than the other (Mills,
    RFC 5905, section 8). The ranks of a host share its clock.
    """
    table = np.zeros((comm.size, 2))  # of the first rank of each host: offset, error
    for group in comm.groups:
        leader = group[0]
        if 0 not in group and comm.rank in (0, leader):
            there, back = _least_delays(comm, leader if comm.rank == 0 else 0)
            if comm.rank == leader:
                table[leader] = (there - back) / 2, (there + back) / 2
    comm.allreduce(table.reshape(-1))
    mine = next(group for group in comm.groups if comm.rank in group)
    seconds, error = table[mine[0]] if 0 not in mine else (0.0, 0.0)
    return Offset(float(seconds), float(error), perf_counter())


def _least_delays(comm: Communicator, other: int) -> tuple[float, float]:
    """Return the least difference of clocks over messages from ``other`` to this rank,
    and of those from this one to ``other``, in seconds."""
    sent, received = np.zeros(1), np.zeros(1)
    least = np.full(1, np.inf)
    for _ in range(ROUNDS):
        sent[0] = perf_counter()
        comm.sendrecv(sent, other, received, other)
        least[0] = min(least[0], perf_counter() - received[0])
    comm.sendrecv(least, other, received, other)
    return float(least[0]), float(received[0])
