"""Starts a job again when it has lost a rank, a host or a link.

From the last good checkpoint, on the hosts that are left, without a person. A rank that
says why it failed would fail again, so then the job ends.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .hosts import Host, shown


@dataclass
class Loss:
    """What a job has lost, as far as could be seen from outside of its ranks.

    Attributes:
        found: something was, and nothing else ended the job.
        hosts: names of those that can't be reached.
        noticed: unix time.
    """

    found: bool = False
    hosts: frozenset[str] = field(default_factory=frozenset)
    noticed: float = 0.0

    def note(self, hosts: Sequence[str] = ()) -> None:
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


def run(
    goal: Goal,
    restarts: int,
    attempt: Callable[[Goal, Loss, bool], int],
    run_dir: Path,
    say: Callable[[str], None],
) -> int:
    """Make attempts until the job ends otherwise than by a loss; return its status.

    Args:
        restarts: how many there may be.
        attempt: starts the job; fills the loss; True: goes on from a checkpoint.
    """
    for made in range(restarts + 1):
        loss = Loss()
        status = attempt(goal, loss, made > 0)
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
        goal = there
        since = f", {time.time() - loss.noticed:.1f} s after the loss was seen"
        lost = f" without {shown(sorted(loss.hosts))}" if loss.hosts else ""
        plural = "s" if goal.count > 1 else ""
        say(
            f"restart {made + 1} of at most {restarts}, from {_newest(run_dir)}, on "
            f"{goal.count} rank{plural}{lost}{since if loss.noticed else ''}"
        )
    raise AssertionError("the last attempt returns")


def _newest(run_dir: Path) -> str:
    """Return which checkpoint the ranks will look at first."""
    names = sorted(p.name for p in run_dir.glob("checkpoints/step-*/"))
    return f"checkpoint {names[-1]}" if names else "the start"
