"""The next batch is made by a background thread while the step computes.

The order stays the same, so whether batches are made ahead changes no result. Nothing
is forked, and the thread ends with the loop that uses it.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Generator, Iterator
from queue import SimpleQueue
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np

from fastserve.core import Array
from fastserve.data.sampler import Sampler
from fastserve.data.sources import Batch, Source

# A thread costs 0.1 to 0.3 ms a batch (two handovers), so one is used if loading takes
# PAYS of the time of the steps and WORTH seconds a batch.
PAYS, WORTH = 0.05, 1e-3
_LOOK = 4  # batches before the first look; the very first ones also allocate memory
THREAD = "prefetch"  # its name
_SLOTS = 2  # the batch that is used, and the one that is made
_PATIENCE = 5.0  # seconds that the end waits for a source that is still reading

RowsOf = Callable[[int, int], slice]  # (rows of a batch, of a full one) -> the rank's

log = logging.getLogger("fastserve")

_in_use: dict[int, Prefetch] = {}  # id of a source -> the thread that reads it


class Share(NamedTuple):
    """What one rank needs for one step.

    Attributes:
        batch: the rank's rows of the global batch; None if it has none.
        mine: their places in the global batch. total: its number of rows.
        full: rows of a batch that isn't a short last one.
        losses: number of losses of the global batch if it is masked.
        mark: a number that is the same for the same global batch, where ranks compare.
    """

    batch: Batch | None
    mine: slice
    total: int
    full: int
    losses: int | None = None
    mark: int = 0


def shares(
    source: Source, sampler: Sampler, steps: range, rows_of: RowsOf
) -> Generator[Share, None, None]:
    """Yield the rank's share of each of these steps."""
    for step in steps:
        yield share_of(source, sampler, step, rows_of)


def share_of(source: Source, sampler: Sampler, step: int, rows_of: RowsOf) -> Share:
    """Return the rank's share of a step, in the source's memory."""
    rows, epochs = sampler.step(step)
    mine = rows_of(len(rows), sampler.batch)
    batch = None
    if mine.stop > mine.start:
        reader = _in_use.get(id(source))
        if reader is None or reader.is_this_thread():
            batch = source.batch(rows[mine], epochs[mine])
        else:  # which uses the source's memory: this needs its own
            with reader.lock:
                batch = _Slot().copy(source.batch(rows[mine], epochs[mine]))
    losses = source.losses(rows)
    return Share(batch, mine, len(rows), sampler.batch, losses)


class Pace:
    """Decides whether a thread shall load ahead: once loading is a part of the time
    that counts. What it has learnt it keeps from one epoch to the next."""

    def __init__(self) -> None:
        self.ahead = False
        self._batches = 0
        self._loading = self._seconds = 0.0

    def add(self, loading: float, seconds: float) -> None:
        """Take in one batch: seconds that it took, alone and with its step."""
        self._batches += 1
        if self._batches > 1:
            self._loading += loading
            self._seconds += seconds
        if self._batches >= _LOOK:
            least = max(PAYS * self._seconds, WORTH * (self._batches - 1))
            self.ahead = self._loading > least


def load(
    items: Iterator[Share], pace: Pace, source: Source | None = None
) -> Generator[Share, None, None]:
    """Yield ``items``, from a thread as soon as ``pace`` says that it pays.

    An item is good until the next one is asked for. Close the generator
    (``contextlib.closing``) to end the thread early.

    Args:
        source: where the items come from; others may use it meanwhile.
    """
    in_memory = source is not None and source.in_memory
    while in_memory or not pace.ahead or id(source) in _in_use:
        start = perf_counter()
        item = next(items, None)
        loaded = perf_counter()
        if item is None:
            return
        yield item
        pace.add(loaded - start, perf_counter() - start)
    with Prefetch(items, source) as ahead:
        yield from ahead


class Prefetch:
    """Iterates over ``items``, of which a thread makes the next one in advance.

    The thread copies each batch, as sources return the same memory at every call. An
    exception comes out where its item would have come, with the thread's traceback.
    """

    def __init__(self, items: Iterator[Share], source: Source | None = None) -> None:
        self._items = items
        self._free: SimpleQueue[_Slot | None] = SimpleQueue()
        self._ready: SimpleQueue[Any] = SimpleQueue()
        self._used: _Slot | None = None
        self._ended = False
        for _ in range(_SLOTS):
            self._free.put(_Slot())
        self.lock = threading.Lock()  # of the source's memory
        self._source = source
        if source is not None:
            _in_use[id(source)] = self
        # a daemon, so that a source that never returns can't keep the process
        self._thread = threading.Thread(target=self._work, name=THREAD, daemon=True)
        self._thread.start()

    def __enter__(self) -> Prefetch:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """End the thread; of an item that it is making it waits for the end."""
        self._ended = True
        self._free.put(None)  # it may wait for a slot
        self._thread.join(_PATIENCE)
        if self._thread.is_alive():
            log.warning(
                "the source of the data is still reading %g s after it was told to "
                "end; its thread is left behind",
                _PATIENCE,
            )
            return
        if self._source is not None:
            _in_use.pop(id(self._source), None)

    def is_this_thread(self) -> bool:
        return threading.current_thread() is self._thread

    def __iter__(self) -> Iterator[Share]:
        return self

    def __next__(self) -> Share:
        if self._used is not None:
            self._free.put(self._used)
            self._used = None
        self._used, found = self._ready.get()
        if isinstance(found, Share):
            return found
        self._ready.put((None, StopIteration()))  # for whoever asks again
        raise found

    def _work(self) -> None:
        try:
            while (slot := self._free.get()) is not None and not self._ended:
                with self.lock:
                    item = next(self._items)
                    if item.batch is not None:
                        item = item._replace(batch=slot.copy(item.batch))
                self._ready.put((slot, item))
        except BaseException as error:  # noqa: BLE001  the loop shall see all of them
            self._ready.put((None, error))


class _Slot:
    """Memory for one batch."""

    def __init__(self) -> None:
        self._kept: dict[tuple[int, int], Array] = {}

    def copy(self, batch: Batch) -> Batch:
        x, y, weights = (
            self._copy(place, part) for place, part in enumerate(batch[:3])
        )
        return batch._replace(x=x, y=y, weights=weights)

    def _copy(self, place: int, part: Any) -> Any:
        if isinstance(part, tuple):
            return tuple(self._array(place, i, array) for i, array in enumerate(part))
        return self._array(place, 0, part)

    def _array(self, place: int, number: int, array: Array | None) -> Array | None:
        if array is None:
            return None
        kept = self._kept.get((place, number))
        if (
            kept is None
            or kept.dtype != array.dtype
            or kept.shape[1:] != array.shape[1:]
            or len(kept) < len(array)
        ):
            kept = np.empty(array.shape, array.dtype)
        self._kept[place, number] = kept
        out = kept[: len(array)]
        np.copyto(out, array)
        return out
