"""Starts a job again when it has lost a rank, a host or a link.

From the last good checkpoint, on the hosts that are left, without a person. A rank that
says why it failed would fail again, so then the job ends.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from .hosts import Host, UnreachableError, shown

_NOT_COMPLETED = 70
_STOPPED_EARLY = 75


@dataclass
class Loss:
    """What a job has lost, as far as could be seen from outside of its ranks.

    Attributes:
        found: something was, and nothing else ended the job.
        hosts: names of those that can't be reached.
        noticed: when that was, by the monotonic clock.
        before: when the loss before this start was seen, and when all that was left of
            the job had ended; unix times.
    """

    found: bool = False
    hosts: frozenset[str] = field(default_factory=frozenset)
    noticed: float = 0.0
    before: tuple[float, float] | None = None

    def note(self, hosts: Iterable[str] = ()) -> None:
        self.found, self.hosts = True, frozenset(hosts)


@dataclass(frozen=True)
class Goal:
    """Where a job may run: hosts (none: this one), and how many ranks it wants there.

    Attributes:
        ranks: as many as the job has, if it fixes them; None: every slot.
        least: fewer ranks aren't worth a start.
    """

    hosts: tuple[Host, ...]
    ranks: int | None
    least: int
    oversubscribe: bool = False

    def without(self, lost: frozenset[str]) -> Goal:
        """Return the goal on the hosts that are left."""
        left = tuple(host for host in self.hosts if host.name not in lost)
        ranks, slots = self.ranks, sum(host.slots for host in left)
        if ranks is not None and left and not self.oversubscribe:
            ranks = min(ranks, slots)
        return Goal(left, ranks, self.least, self.oversubscribe)

    @property
    def count(self) -> int:
        return self.ranks or sum(host.slots for host in self.hosts) or 1


class Start:
    """How a job starts again: as it was asked for, until it has a checkpoint.

    A run folder may hold those of a run before, which the job was to replace.
    """

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir
        self._before = self._mark()

    def newest(self) -> str | None:
        """Return the checkpoint that the ranks will look at first, if there is one."""
        if self._mark() == self._before:
            return None
        folder = self._run_dir / "checkpoints"
        names = [p.parent.name for p in folder.glob("step-*/state.json")]
        names += [p.parent.name for p in folder.glob("best*/state.json")]
        return max(names, default=None)  # step-* comes after best

    def _mark(self) -> tuple[int, int] | None:
        """Return what changes when a job has taken over the folder."""
        try:
            found = (self._run_dir / "config.yaml").stat()
        except OSError:
            return None
        return found.st_ino, found.st_mtime_ns


def run(
    goal: Goal,
    restarts: int,
    attempt: Callable[[Goal, Loss, bool], int],
    run_dir: Path,
    say: Callable[[str], None],
) -> int:
    """Make attempts until the job ends otherwise than by a loss; return its status.

    A host that can't be reached when the job is to start again is left out too. A
    signal that asks for an end while no job runs ends at once.

    Args:
        restarts: how many there may be.
        attempt: starts the job; fills the loss; True: goes on from a checkpoint, else
            it begins as it was asked to.
    """
    start = Start(run_dir)
    try:
        with _ended_by_signals():
            return _run(goal, restarts, attempt, start, say)
    except _Stopped as stop:
        name = signal.Signals(stop.number).name
        saved = start.newest()
        on = f", after checkpoint {saved}; go on with --resume auto" if saved else ""
        say(f"stopped by {name} while no rank was running{on}")
        return _STOPPED_EARLY if saved else 128 + stop.number


class _Stopped(Exception):
    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Raise _Stopped at a signal that asks for an end; a job that runs, runs under
    handlers of its own."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise _Stopped(number)

    before = {}
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        if signal.getsignal(number) is not signal.SIG_IGN:
            before[number] = signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _run(
    goal: Goal,
    restarts: int,
    attempt: Callable[[Goal, Loss, bool], int],
    start: Start,
    say: Callable[[str], None],
) -> int:
    newest, made = None, 0
    loss = Loss()
    while True:
        loss = Loss(before=_times(loss))
        try:
            status = attempt(goal, loss, newest is not None)
        except UnreachableError as error:
            names = {host.name for host in goal.hosts}
            if made == 0 or not names & error.hosts:
                raise
            say(str(error))
            loss.note(error.hosts)
            status, made = _NOT_COMPLETED, made - 1  # no rank was started
        if not loss.found or restarts == 0:
            return status
        if made == restarts:
            say(f"ended after {restarts} restart{'s' if restarts > 1 else ''}")
            return status
        there = goal.without(loss.hosts)
        if (goal.hosts and not there.hosts) or there.count < goal.least:
            say(
                f"no restart: {there.count if there.hosts else 0} ranks are left of at "
                f"least {goal.least} (launch.min_ranks)"
            )
            return status
        goal, newest = there, start.newest()
        source = f"checkpoint {newest}" if newest else "the start"
        since = f", {time.monotonic() - loss.noticed:.1f} s after the loss was seen"
        lost = f" without {shown(sorted(loss.hosts))}" if loss.hosts else ""
        plural = "s" if goal.count > 1 else ""
        say(
            f"restart {made + 1} of at most {restarts}, from {source}, on "
            f"{goal.count} rank{plural}{lost}{since if loss.noticed else ''}"
        )
        made += 1


def _times(loss: Loss) -> tuple[float, float] | None:
    """Return ``before`` for the start after a loss, now that all has ended."""
    if not loss.noticed:
        return loss.before  # of hosts that weren't there for the start: it still lasts
    now = time.time()
    return now - (time.monotonic() - loss.noticed), now
