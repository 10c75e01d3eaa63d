"""``Timing``: where the time of a rank goes, and, while it is traced, when."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastserve.training.trace import Trace

COMPUTE = ("forward", "backward", "optimizer")
# sums: of gradients and of whatever else the ranks add up in a step, waiting included
KINDS = (*COMPUTE, "sums", "data", "validation", "saving", "other")


class Timing:
    """A stopwatch for the thread that trains.

    At each moment exactly one kind of work counts, so the seconds of all kinds add up
    to the time since ``restart``. Turning from one kind to the next takes about 0.2
    microseconds.

    Attributes:
        seconds: kind -> seconds until the last turn.
        trace: takes the same times as events; None: nobody does. ``begin_trace``
            sets it.
        step_began: when the loop turned to the data of the step.
    """

    def __init__(self) -> None:
        self.trace: Trace | None = None
        self.beside: dict[str, tuple[str, float, dict[str, Any]]] = {}
        self.restart()

    def restart(self) -> None:
        """Count from zero, from now on."""
        self.seconds = dict.fromkeys(KINDS, 0.0)
        self.step_began = self._since = self._segment = perf_counter()
        self._kind = self._name = "other"

    def to(self, kind: str, name: str | None = None) -> float:
        """From now on it is ``kind``, in a trace called ``name``; return the time."""
        now = perf_counter()
        self.seconds[self._kind] += now - self._since
        if self.trace is not None:
            self.trace.add("training", self._name, self._kind, self._segment, now)
            self._name, self._segment = name or kind, now
        self._kind = kind
        self._since = now
        return now

    def begin_trace(self, trace: Trace) -> None:
        """Let ``trace`` have all that follows."""
        self._segment = self._count(self._kind)
        self._name, self.trace = self._kind, trace

    def to_data(self) -> float:
        """A step begins, with its data."""
        self.step_began = self.to("data")
        return self.step_began

    @contextmanager
    def within(self, kind: str, name: str | None = None) -> Iterator[None]:
        """Within it ``kind`` counts, and then again what it was before, of which it is
        a part in a trace. It can't be entered within itself."""
        outer, start = self._kind, self._count(kind)
        try:
            yield
        finally:
            end = self._count(outer)
            if self.trace is not None:
                self.trace.add("training", name or kind, kind, start, end)

    def _count(self, kind: str) -> float:
        now = perf_counter()
        self.seconds[self._kind] += now - self._since
        self._kind, self._since = kind, now
        return now

    def count(self) -> dict[str, float]:
        """Return the seconds of each kind until now."""
        self._count(self._kind)
        return dict(self.seconds)

    @contextmanager
    def on_thread(self, thread: str, name: str, **args: Any) -> Iterator[None]:
        """Within it another thread, called ``thread``, does something. Training goes on
        meanwhile, so that is for a trace alone."""
        self.beside[thread] = name, perf_counter(), args
        try:
            yield
        finally:
            self.end_on_thread(thread)

    def end_on_thread(self, thread: str) -> None:
        """Tell the trace what a thread does, if it does anything, until now."""
        found, trace = self.beside.pop(thread, None), self.trace
        if found is not None and trace is not None:
            name, start, args = found
            trace.add(thread, name, thread, start, perf_counter(), args)
