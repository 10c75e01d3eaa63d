"""``Tracing``: when each rank did what in some steps of a training."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

from fastserve.comm.clocks import clock_offset
from fastserve.core import Layer
from fastserve.errors import CheckpointError
from fastserve.training import files
from fastserve.training.callbacks import Callback, Logs
from fastserve.training.chrome_trace import Event, RankEvents, chrome_trace

log = logging.getLogger("fastserve")

STEPS = 20
WARM_UP = 10  # steps that aren't traced unless asked for: the first make all memory
EVENTS = 400_000  # calls of layers of all ranks, about, and as many others: 60 MB each
_LEAST_EVENTS = 2_000  # of a rank
_METHODS = ("forward", "backward", "backward_logits", "backward_rows")


class Trace:
    """The events of one rank.

    Args:
        limit: how many of them may be calls of layers, and how many others.

    Attributes:
        dropped: those beyond the limits.
    """

    def __init__(self, limit: int) -> None:
        self.began, self.ended = perf_counter(), False
        self.events: list[Event] = []
        self.dropped, self._limit, self._layers = 0, limit, 0

    def add(
        self,
        thread: str,
        name: str,
        kind: str,
        start: float,
        end: float,
        args: dict[str, Any] | None = None,
    ) -> None:
        """Take an event; of one that began before the trace, the part within it."""
        if self._takes(len(self.events) - self._layers):
            start = max(start, self.began)
            self.events.append((thread, name, kind, start, end, args))

    def add_layer(self, name: str, kind: str, start: float) -> None:
        if self._takes(self._layers):
            self._layers += 1
            start = max(start, self.began)
            event = "training", name, kind, start, perf_counter(), None
            self.events.append(event)

    def _takes(self, count: int) -> bool:
        """Return whether there is room for one more than ``count`` events."""
        room = count < self._limit
        self.dropped += not (room or self.ended)
        return room and not self.ended


class Tracing(Callback):
    """Traces some steps, on all ranks, and writes them to a file on rank 0.

    It has to be the last callback. What it adds to the traced steps is two calls of the
    clock for each layer. A file that can't be written is a warning.

    Args:
        path: of the file, in Chrome's trace event format.
        say: shows a line.
        steps: number of the first step, from 1, and how many; None: 20 steps after a
            warm-up of 10, or of half of the training if that is shorter.
    """

    def __init__(
        self, path: Path, say: Callable[[str], None], steps: tuple[int, int] | None
    ) -> None:
        self.path, self._say = path, say
        self._wish = steps or (None, STEPS)
        self._trace: Trace | None = None

    def on_train_begin(self, logs: Logs | None = None) -> None:
        trainer = self.model.trainer
        assert trainer is not None
        self._trainer = trainer
        self.step, total = self.params["first_step"], self.params["total_steps"]
        first, count = self._wish
        if first is None:
            first = self.step + min(WARM_UP, (total - self.step) // 2) + 1
        self.last = first + count - 1
        self.first = max(first, self.step + 1)
        if self.rank == 0 and self.last <= self.step:
            log.warning(
                "no trace: steps %d to %d have been made before", first, self.last
            )
        self._start_if_due()

    def on_train_batch_end(self, batch: int, logs: Logs | None = None) -> None:
        self.step += 1
        if self._trace is None:
            self._start_if_due()
            return
        began, last = self._trainer.timing.step_began, self.model.last_step
        args = {"step": self.step, "loss": last.loss if last else None}
        name = f"step {self.step}"
        ended = self._trainer.timing.to("other", "callbacks")
        self._trace.add("training", name, "step", began, ended, args)
        if self.step == self.last:
            self._end()

    def on_train_end(self, logs: Logs | None = None) -> None:
        if self._trace is not None:
            self._end()
        elif self.rank == 0 and self.first > self.step:
            log.warning("no trace: the training has ended before step %d", self.first)

    def _start_if_due(self) -> None:
        if self.step != self.first - 1 or self.last < self.first:
            return
        trainer, comm = self._trainer, self._trainer.comm
        limit = max(_LEAST_EVENTS, EVENTS // comm.size)
        self._clock = clock_offset(comm)
        self._trace = trace = Trace(limit)
        self._forget = watch_layers(trainer.root, trace)
        trainer.sync.observe(partial(_add_bucket, trace))
        trainer.timing.to("other")
        trainer.timing.begin_trace(trace)

    def _end(self) -> None:
        trainer, comm, trace = self._trainer, self._trainer.comm, self._trace
        assert trace is not None
        timing = trainer.timing
        timing.to("other", "callbacks")
        for thread in list(timing.beside):
            timing.end_on_thread(thread)
        timing.trace, self._trace, trace.ended = None, None, True
        trainer.sync.observe(None)
        self._forget()
        clocks = self._clock, clock_offset(comm)
        mine = RankEvents(
            comm.rank, comm.host, trace.began, trace.events, trace.dropped, clocks
        )
        limit, comm.timeout = comm.timeout, None
        ranks = comm.gather_obj(mine)
        if ranks is not None:
            self._write(ranks)
        comm.barrier()
        comm.timeout = limit

    def _write(self, ranks: list[RankEvents]) -> None:
        text = json.dumps(chrome_trace(ranks), separators=(",", ":"))
        try:
            files.write_atomically(self.path, text)
        except CheckpointError as error:
            log.warning("no trace. %s", error)
            return
        dropped = sum(rank.dropped for rank in ranks)
        note = f", without {dropped} events to keep it small"
        self._say(
            f"trace of steps {self.first} to {self.step}, for ui.perfetto.dev: "
            f"{self.path}{note if dropped else ''}"
        )


def _add_bucket(
    trace: Trace, verb: str, bucket: int | None, nbytes: int, start: float, end: float
) -> None:
    name = verb if bucket is None else f"{verb} bucket {bucket}"
    rate = round(nbytes / max(end - start, 1e-9) / 1e6, 1)
    args = {"bucket": bucket, "bytes": nbytes, "MB/s": rate}
    trace.add("communication", name, "communication", start, end, args)


def watch_layers(root: Layer, trace: Trace) -> Callable[[], None]:
    """Let the trace have each call of the layers in ``root``; return what ends it."""
    watched: list[tuple[Layer, str]] = []
    for path, layer in root.walk():
        if layer is root:  # what the step calls forward and backward
            continue
        name = f"{path} {type(layer).__name__}"
        for method in _METHODS:
            call = getattr(layer, method, None)
            if call is not None and method not in vars(layer):
                kind = "forward" if method == "forward" else "backward"
                vars(layer)[method] = _watched(call, name, kind, trace)
                watched.append((layer, method))

    def forget() -> None:
        for layer, method in watched:
            vars(layer).pop(method, None)

    return forget


def _watched(
    call: Callable[..., Any], name: str, kind: str, trace: Trace
) -> Callable[..., Any]:
    def watched(*args: Any, **kwargs: Any) -> Any:
        start = perf_counter()
        try:
            return call(*args, **kwargs)
        finally:
            trace.add_layer(name, kind, start)

    return watched
