"""``Balance``: says which rank the others wait for, if it costs much."""

from __future__ import annotations

import logging
import time

import numpy as np

from fastserve.training.callbacks import Callback, Logs

log = logging.getLogger("fastserve")

SHARE = 0.1  # of a step that the slowest rank may cost before it is named
_FIRST = 10  # steps until the first look: the very first ones also allocate memory
_SECONDS = 10.0  # between two looks, about
_AGAIN = 60.0  # seconds before the same rank is named again


class Balance(Callback):
    """Compares the ranks' seconds of computing, every 10 seconds or so.

    A rank that computes longer than the others makes all of them wait in each step.
    Rank 0 warns if the slowest one costs more than 10 % of a step: so much shorter
    would steps be if it took as long as the median of the others.
    """

    def on_train_begin(self, logs: Logs | None = None) -> None:
        self._step, self._next = 0, 2 * _FIRST
        self._named: dict[int, float] = {}
        self._restart()

    def on_train_batch_end(self, batch: int, logs: Logs | None = None) -> None:
        trainer = self.model.trainer
        if trainer is None or trainer.comm.size == 1:
            return
        self._step += 1
        self._busy += trainer.busy
        self._rows += trainer.rows
        self._wall += time.perf_counter() - self._since + trainer.loading
        if self._step == _FIRST:
            self._restart()
        elif self._step == self._next:
            self._compare()

    def on_train_batch_begin(self, batch: int, logs: Logs | None = None) -> None:
        self._since = time.perf_counter()

    def _restart(self) -> None:
        self._busy = self._wall = 0.0
        self._rows = 0
        self._from = self._step

    def _compare(self) -> None:
        """Look at all ranks' times; all of them come to the same next look."""
        assert self.model.trainer is not None
        comm = self.model.trainer.comm
        table = np.zeros((comm.size, 3))  # busy seconds, seconds, rows
        table[comm.rank] = self._busy, self._wall, self._rows
        comm.allreduce(table.reshape(-1))
        table /= self._step - self._from
        step = float(table[:, 1].mean())
        self._next = self._step + max(_FIRST, min(int(_SECONDS / step), 100_000))
        self._restart()
        slowest = int(table[:, 0].argmax())
        others = np.delete(table, slowest, 0)
        usual = float(np.median(others[:, 0]))
        most = float(table[slowest, 0])
        costs = (most - usual) / step
        now = time.monotonic()
        if costs <= SHARE or now < self._named.get(slowest, -_AGAIN) + _AGAIN:
            return
        self._named[slowest] = now
        if comm.rank != 0:
            return
        rows = float(table[slowest, 2]), float(np.median(others[:, 2]))
        cure = "see what else runs on that host, and its cores and clock"
        if rows[0] > rows[1]:
            cure = (
                f"it has {rows[0]:g} rows of a step, others {rows[1]:g}: take a "
                "global_batch that the ranks divide"
            )
        log.warning(
            f"rank {slowest} on {comm.hosts[slowest]} is the slowest: it computes "
            f"{_milliseconds(most)} in a step, the others {_milliseconds(usual)}; "
            f"that costs {costs:.0%} of each step; {cure}"
        )


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms" if seconds < 1 else f"{seconds:.2f} s"
