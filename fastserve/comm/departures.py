"""Notices that a rank has left the job, or is late, while another one waits for it.

A rank whose script ends early (``sys.exit``, or one step fewer than the others) waits
in MPI_Finalize for the others, and they wait for it in a collective: the job would hang
for ever. So each rank counts what it takes part in, and a rank that leaves tells its
counts to the others. A rank that has been waiting for some time reads these messages.
If the count of a rank that left is short of the call that is waited in, that call can
never complete: no guess, no time limit.

A rank that doesn't leave but is stuck is found by a time limit, if one was set. Who has
waited that long tells all others; who has told nobody soon after is who is missing.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np

from fastserve.errors import CommError

_INTERVAL = 0.5  # seconds; who waited that long looks whether somebody has left
_POLL = 0.01
_NOTICES = 2.0  # seconds between the first and the last rank that notices a time limit
_LEFT, _LATE = 0, 1  # tags of messages


class _Wait(NamedTuple):
    """A call that this rank is inside of, and its number among such calls."""

    verb: str
    collective: int = 0
    dest: int = -1
    sent: int = 0
    source: int = -1
    received: int = 0


class Departures:
    """Counts a rank's calls, and ends the job if it waits for a rank that has left.

    Args:
        control: an mpi4py communicator of all ranks that is used for nothing else.
        hosts: each rank's host.
        end_job: called on a thread of its own with the error; must not return.
        timeout: returns the seconds that a call may take, or None.
    """

    def __init__(
        self,
        control: Any,
        hosts: list[str],
        end_job: Callable[[CommError], None],
        timeout: Callable[[], float | None] = lambda: None,
    ) -> None:
        self._control, self._hosts, self._end_job = control, hosts, end_job
        self._timeout = timeout
        self._collectives = 0
        self._sent = [0] * len(hosts)
        self._received = [0] * len(hosts)
        self._left: dict[int, list[int]] = {}  # rank: its collectives, to us, from us
        self._now: _Wait | None = None
        self._progress = 0
        self._stop = threading.Event()
        # a daemon, because other threads would keep a failed rank from ending
        self._watch = threading.Thread(target=self._run, name="departures", daemon=True)
        self._watch.start()

    def collective(self, verb: str) -> Departures:
        """Enter a collective: ``with departures.collective('barrier'): ...``"""
        self._collectives += 1
        self._now = _Wait(verb, collective=self._collectives)
        return self

    def progressed(self) -> None:
        """Note that messages arrive: a time limit counts from now on."""
        self._progress += 1

    def exchange(self, dest: int, source: int) -> Departures:
        """Enter a ``sendrecv``, to be used with ``with`` too."""
        self._sent[dest] += 1
        self._received[source] += 1
        self._now = _Wait(
            "sendrecv", 0, dest, self._sent[dest], source, self._received[source]
        )
        return self

    def __enter__(self) -> None:
        pass

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._now = None

    def leave(self) -> None:
        """Tell the others that this rank takes part in nothing more; wait for them."""
        self._stop.set()
        self._watch.join()
        me = self._control.Get_rank()
        others = [rank for rank in range(len(self._hosts)) if rank != me]
        counts = [
            np.array([self._collectives, self._sent[r], self._received[r]], np.int64)
            for r in others
        ]
        requests = [
            self._control.Isend(count, r, _LEFT)
            for count, r in zip(counts, others, strict=True)
        ]
        while len(self._left) < len(others):  # sleeps, where MPI_Finalize would spin
            self._read()
            time.sleep(_POLL)
        for request in requests:
            request.Wait()

    def _run(self) -> None:
        before, progress, since, first = None, 0, 0.0, True
        while not self._stop.wait(_INTERVAL):
            now = self._now
            if now is not before or progress != self._progress:
                before, progress, since = now, self._progress, time.monotonic()
                first = True
            elif now is not None:
                if first:
                    self._forget()
                    first = False
                self._read()
                missing = self._missing(now)
                if missing is not None:
                    self._end_job(self._error(now.verb, missing))
                limit = self._timeout()
                if limit is not None and time.monotonic() - since > limit:
                    self._end_late(now, limit, progress)

    def _end_late(self, wait: _Wait, limit: float, progress: int) -> None:
        """Tell the others that this rank waits; end the job unless the call ends."""
        me = self._control.Get_rank()
        others = [rank for rank in range(len(self._hosts)) if rank != me]
        notice = np.zeros(1, np.int64)
        requests = [self._control.Isend(notice, rank, _LATE) for rank in others]
        time.sleep(_NOTICES)
        if self._now is not wait or self._progress != progress:
            return  # the late rank has come in the meantime
        late = [rank for rank in others if not self._control.Iprobe(rank, _LATE)]
        self._end_job(self._late_error(wait.verb, limit, late))
        for request in requests:
            request.Wait()

    def _read(self) -> None:
        """Take note of the ranks that have left."""
        for rank in range(len(self._hosts)):
            if rank not in self._left and self._control.Iprobe(rank, _LEFT):
                counts = np.empty(3, np.int64)
                self._control.Recv(counts, rank, _LEFT)
                self._left[rank] = counts.tolist()

    def _forget(self) -> None:
        """Drop who was told to be waiting: that was for a call that has ended since."""
        notice = np.empty(1, np.int64)
        for rank in range(len(self._hosts)):
            while self._control.Iprobe(rank, _LATE):
                self._control.Recv(notice, rank, _LATE)

    def _missing(self, wait: _Wait) -> int | None:
        """Return a rank without which ``wait`` can never end, if there is one."""
        for rank, (collectives, sent, received) in self._left.items():
            if (
                collectives < wait.collective
                or (rank == wait.source and sent < wait.received)
                or (rank == wait.dest and received < wait.sent)
            ):
                return rank
        return None

    def _late_error(self, verb: str, limit: float, late: list[int]) -> CommError:
        named = ", ".join(f"rank {rank} on {self._hosts[rank]}" for rank in late)
        return CommError(
            f"expected every rank to join this {verb} within {limit:g} s",
            f"missing: {named or 'none, but messages do not arrive'}",
            "look at what the missing rank does, and at its host and the network; if "
            "it was only slow, raise comm.timeout",
        )

    def _error(self, verb: str, missing: int) -> CommError:
        return CommError(
            f"expected every rank to join this {verb}",
            f"rank {missing} on {self._hosts[missing]} has left the job",
            "look at why its script ended before the others': sys.exit, an exception "
            "that was caught, or fewer steps",
        )
