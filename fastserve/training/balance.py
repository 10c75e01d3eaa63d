"""``Balance``: says which rank the others wait for, if it costs much."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

import numpy as np

from fastserve.core import Array
from fastserve.formatting import precise_time

log = logging.getLogger("fastserve")

SHARE = 0.1  # of a step that the slowest rank may cost before it is named
FIRST = 10  # steps until times count: the very first ones also allocate memory
LOOKS = (FIRST, 2 * FIRST)  # steps after which it wants to compare in any case
_SECONDS = 10.0  # between two comparisons, about
_LEAST = 2.0  # seconds of steps that the first comparison needs
_AGAIN = 60.0  # seconds before the same rank is named again


class Balance:
    """Compares the ranks' seconds of computing, every 10 seconds or so, on rank 0.

    A rank that computes longer than the others makes all of them wait in each step.
    It warns if the slowest one costs more than 10 % of a step: so much shorter
    would steps be if it took as long as the median of the others. The first comparison
    is after 20 steps, unless ten of them take less than 2 seconds.

    Args:
        hosts: name of each rank's host.
    """

    def __init__(self, hosts: Sequence[str]) -> None:
        self._hosts = hosts
        self._named: dict[int, float] = {}
        self._from = 0  # steps that had been made
        self._table = np.zeros((len(hosts), 3))

    def add(self, made: int, busy: Array, wall: Array, rows: Array) -> None:
        """Take in what came since the last call, after which ``made`` steps have been
        made: each rank's seconds in steps without waiting for others (ranks,), with it,
        and its rows of samples."""
        if made <= FIRST:
            self._restart(made)
            return
        self._table = self._table + np.stack([busy, wall, rows], axis=1)
        count = made - self._from
        seconds = float(self._table[:, 1].mean())
        enough = seconds >= (_LEAST if made == 2 * FIRST else _SECONDS)
        if count >= FIRST and enough and len(self._hosts) > 1:
            self._compare(self._table / count)
            self._restart(made)

    def _restart(self, made: int) -> None:
        self._table, self._from = np.zeros_like(self._table), made

    def _compare(self, table: Array) -> None:
        """Look at all ranks' busy seconds, seconds and rows of a step, (ranks, 3)."""
        step = float(table[:, 1].mean())
        slowest, usual, costs = slowest_rank(table[:, 0], step)
        most = float(table[slowest, 0])
        now = time.monotonic()
        if costs <= SHARE or now < self._named.get(slowest, -_AGAIN) + _AGAIN:
            return
        self._named[slowest] = now
        others = np.delete(table[:, 2], slowest)
        rows = float(table[slowest, 2]), float(np.median(others))
        cure = "see what else runs on that host, and its cores and clock"
        if rows[0] > rows[1]:
            cure = (
                f"it has {rows[0]:g} rows of a step, others {rows[1]:g}: take a "
                "global_batch that the ranks divide"
            )
        log.warning(
            f"rank {slowest} on {self._hosts[slowest]} is the slowest: it computes "
            f"{precise_time(most)} in a step, the others {precise_time(usual)}; "
            f"that costs {costs:.0%} of each step; {cure}"
        )


def slowest_rank(busy: Array, step: float) -> tuple[int, float, float]:
    """Return the rank with the most busy seconds, the median of the others', and the
    difference as a share of ``step`` seconds, during which all wait for it."""
    slowest = int(busy.argmax())
    usual = float(np.median(np.delete(busy, slowest)))
    return slowest, usual, (float(busy[slowest]) - usual) / step
