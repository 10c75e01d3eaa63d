"""``Status``: what all ranks do, for whoever watches a run: ``status.json``."""

from __future__ import annotations

import logging
import math
import os
import time
from pathlib import Path
from typing import Any

import numpy as np

from fastserve import environment
from fastserve.core import Array
from fastserve.training.balance import LOOKS, SHARE, Balance, slowest_rank
from fastserve.training.callbacks import Callback, Logs
from fastserve.training.status_file import put
from fastserve.training.timing import COMPUTE, KINDS

log = logging.getLogger("fastserve")

VERSION = 1
SECONDS = 2.0  # between two looks, about; more if one takes more than COST of that
COST = 0.005
LONGEST = 15.0  # seconds between two: readers take an older file for a dead job's
# Columns of the table that the ranks fill: seconds since the look before, then these.
_ROWS, _PID, _RSS = len(KINDS), len(KINDS) + 1, len(KINDS) + 2
_WIDTH = len(KINDS) + 3
_IN_STEPS = ("compute", "communication", "waiting", "data")
PARTS = (*_IN_STEPS, "validation", "saving", "other")  # of the time, all of it
_STEP = slice(len(_IN_STEPS))


class Status(Callback):
    """Puts the ranks' times together and writes them to a file, on rank 0 alone.

    About every 2 seconds, after the same step on all ranks, they add up a small table,
    in which each has filled its own row. When that is, rank 0 decides: it asks for it
    with a flag in the sum that ends each step. With many ranks or a slow disk looks
    become rarer, so that they take half a percent of the time, down to one in 15 s.

    A file that can't be written is said once, and doesn't end the training.

    Args:
        before: seconds that the run has trained in earlier starts.

    Attributes:
        seconds: time in each of PARTS since the training began, (ranks, 7).
            ``communication`` is the least that any rank spent in sums between two
            looks, ``waiting`` what a rank spent in them beyond that.
    """

    def __init__(self, path: Path, before: float = 0.0) -> None:
        self.path, self.before = path, before

    def on_train_begin(self, logs: Logs | None = None) -> None:
        trainer = self.model.trainer
        assert trainer is not None
        self._trainer, self._comm = trainer, trainer.comm
        self.seconds = np.zeros((self._comm.size, len(PARTS)))
        self._step_seconds = np.full(self.seconds.shape, np.nan)
        self._balance = Balance(self._comm.hosts)
        self.step = self._looked = self.params["first_step"]
        self._rate: float | None = None
        self._rows = self._own_rows = 0
        self._writes = self.rank == 0
        self._comm.barrier()  # so that their times begin, and end, together
        self._started = time.time()
        trainer.timing.restart()
        self._before = trainer.timing.count()
        self._look("training")

    def on_train_batch_begin(self, batch: int, logs: Logs | None = None) -> None:
        if self.rank == 0 and time.monotonic() >= self._next:
            self._trainer.look_requested = True

    def on_train_batch_end(self, batch: int, logs: Logs | None = None) -> None:
        self.step += 1
        last = self.model.last_step
        if last is None:
            return
        self._rows += last.rows
        self._own_rows += self._trainer.rows
        if last.look or self.step - self.params["first_step"] in LOOKS:
            self._look("training")

    @property
    def made(self) -> int:
        """Steps made in this start."""
        return int(self.step - self.params["first_step"])

    @property
    def elapsed(self) -> float:
        """Seconds since the training began in this start, at the last look."""
        return float(self.seconds[0].sum())

    def end(self, state: str) -> None:
        """Write the last times; all ranks call it. ``state``: 'ended' or 'stopped'."""
        with self._trainer.timing.within("sums", "end"):
            self._comm.barrier()
        self._look(state)

    def _look(self, state: str) -> None:
        timing = self._trainer.timing
        table = np.zeros((self._comm.size, _WIDTH))
        mine, now = table[self._comm.rank], timing.count()
        self._now = time.time()
        mine[: len(KINDS)] = [now[kind] - self._before[kind] for kind in KINDS]
        mine[len(KINDS) :] = self._own_rows, os.getpid(), resident_bytes()
        self._before, self._own_rows = now, 0
        with timing.within("sums", "status"):
            self._comm.allreduce(table.reshape(-1))
        start = time.monotonic()
        if self.rank == 0:
            self._take(table)
            self._write(state, table)
        self._rows, self._looked = 0, self.step
        wanted = (time.monotonic() - start) / COST
        self._next = start + min(max(wanted, SECONDS), LONGEST)

    def _take(self, table: Array) -> None:
        parts = parts_of(table[:, : len(KINDS)])
        self.seconds += parts
        steps = self.step - self._looked
        if not steps:
            return
        self._step_seconds = parts / steps
        wall = parts[:, _STEP].sum(axis=1)
        self._rate = self._rows / max(float(wall.mean()), 1e-9)
        busy = wall - parts[:, 1] - parts[:, 2]  # without communication and waiting
        self._balance.add(self.made, busy, wall, table[:, _ROWS])

    def _write(self, state: str, table: Array) -> None:
        if self._writes:
            try:
                put(self.path, self._record(state, table))
            except OSError as error:
                self._writes = False
                log.warning("%s isn't written any more: %s", self.path, error)

    def _record(self, state: str, table: Array) -> dict[str, Any]:
        tokens, last = self.params["tokens_per_sample"], self.model.last_step
        total, first = self.params["total_steps"], self.params["first_step"]
        left = None
        if self.step > first:
            left = self.elapsed * (total - self.step) / (self.step - first)
        rate = None if self._rate is None else self._rate * (tokens or 1)
        return {
            "version": VERSION,
            "state": state,
            "job": environment.setting("JOB"),
            "step": self.step,
            "total_steps": total,
            "started": self._started,
            "time": self._now,
            "trained_seconds": round(self.before + self.elapsed, 3),
            "loss": _known(last.loss) if last and self.step > first else None,
            "rate": rate,
            "rate_unit": "tokens/s" if tokens else "samples/s",
            "seconds_left": left,
            "ranks": [self._of_rank(rank, row) for rank, row in enumerate(table)],
        }

    def _of_rank(self, rank: int, row: Array) -> dict[str, Any]:
        resident = float(row[_RSS])
        return {
            "rank": rank,
            "host": self._comm.hosts[rank],
            "pid": int(row[_PID]),
            "rss_mb": round(resident / 1e6, 1) if resident else None,
            "seconds": _named(PARTS, self.seconds[rank]),
            "step_seconds": _named(_IN_STEPS, self._step_seconds[rank, _STEP]),
        }

    def summary(self) -> str:
        """Return where the time went, for the end of a run: a line, and another one if
        a rank made the others wait. Only on rank 0, after ``end``."""
        mean = dict(zip(PARTS, self.seconds.mean(axis=0).tolist(), strict=True))
        total = max(sum(mean.values()), 1e-9)
        words = {"compute": "computing", "waiting": "waiting for slower ranks"}
        shown = list(_IN_STEPS) if self._comm.size > 1 else ["compute", "data"]
        shown += [p for p in PARTS[4:] if mean[p] >= 0.005 * total]
        told = [f"{words.get(p, p)} {_percent(mean[p] / total)}" for p in shown]
        lines = [f"{_seconds(total)}: {', '.join(told)}"]
        if self._comm.size > 1:
            busy = self.seconds[:, 0] + self.seconds[:, 3]
            slowest, usual, costs = slowest_rank(busy, total)
            if costs > SHARE:
                lines.append(
                    f"rank {slowest} on {self._comm.hosts[slowest]} was the slowest: "
                    f"it computed {_seconds(float(busy[slowest]))}, the others "
                    f"{_seconds(usual)} and waited for it"
                )
        return "\n".join(lines)


def parts_of(seconds: Array) -> Array:
    """Return the time in each of PARTS, (ranks, 7), from that in each of KINDS."""
    by = dict(zip(KINDS, seconds.T, strict=True))
    compute = np.sum([by[kind] for kind in COMPUTE], axis=0)
    if len(seconds) == 1:  # there is nobody to talk to
        compute = compute + by["sums"]
        by["sums"] = np.zeros(1)
    least = np.full_like(compute, by["sums"].min())
    rest = [by[kind] for kind in ("data", "validation", "saving", "other")]
    return np.stack([compute, least, by["sums"] - least, *rest], axis=1)


def resident_bytes() -> int:
    """Return how much memory this process has; 0 if the system doesn't say."""
    try:
        with open("/proc/self/status", encoding="ascii", errors="replace") as file:
            for line in file:
                if line.startswith("VmRSS:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0


def _named(names: tuple[str, ...], values: Array) -> dict[str, float | None]:
    pairs = zip(names, values.tolist(), strict=True)
    return {name: _known(round(value, 6)) for name, value in pairs}


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _seconds(value: float) -> str:
    return f"{value:.3g} s" if value < 100 else f"{value:.0f} s"


def _percent(share: float) -> str:
    return f"{share:.0%}" if share >= 0.01 else f"{share:.1%}"
