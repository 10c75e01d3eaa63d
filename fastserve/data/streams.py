"""Batches that come one after the other: generators, iterables, ``PyDataset``.

A stream gives whole global batches. Every rank runs it, gets the same batches, and
takes its share of each; that they are the same is compared as they come.
"""

from __future__ import annotations

import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, nullcontext
from itertools import chain
from typing import Any

import numpy as np

from fastserve.comm import Communicator
from fastserve.core import Array, generator
from fastserve.data.prefetch import RowsOf, Share
from fastserve.data.sources import Batch, Source, numeric
from fastserve.errors import ArgumentError, DataError

_COMPARED = 4096  # bytes at either end of an array that ranks compare
_ROUNDING = 1e-3  # of the largest number there: what float16 and chains of sums lose
OPEN = range(2**62)  # steps until the data end
_ENDED = -1.0  # what a rank whose data have ended shows the others


class PyDataset(ABC):
    """Batches by number, as Keras' ``PyDataset`` and ``Sequence``.

    ``fit`` asks for all of them in every epoch, in another order unless
    ``shuffle=False``, and reads one ahead where that pays.

    Args:
        workers, max_queue_size: taken as in Keras; one thread reads ahead, whatever
            they are.
        use_multiprocessing: must be False: nothing is forked.
    """

    def __init__(
        self,
        workers: int = 1,
        use_multiprocessing: bool = False,
        max_queue_size: int = 10,
    ) -> None:
        if use_multiprocessing:
            raise ArgumentError(
                "PyDataset: expected use_multiprocessing=False, as nothing is forked",
                "True",
                "let more ranks share the work",
            )

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of batches."""

    @abstractmethod
    def __getitem__(self, index: int) -> Any:
        """Return a global batch: ``(x, y)`` or ``(x, y, sample_weight)``."""

    def on_epoch_end(self) -> None:  # noqa: B027  may be left out
        """Called when all batches have been asked for."""


class Stream(Source):
    """Global batches in a row. What is common to those below.

    Attributes:
        batches: of one pass; None: not known.
        arrange: puts x, y and weights of a model with several inputs or outputs in
            their order.
        transform: is applied to each batch as it comes.
        targets: whether there must be a y.
        strings: x holds texts, for a model that takes them.
    """

    batches: int | None = None

    def __init__(self, targets: bool = True) -> None:
        self.samples = 0  # not known
        self.targets, self.strings = targets, False
        self.arrange: Callable[[Any, Any, Any], tuple[Any, Any, Any]] = lambda *a: a
        self.transform: Callable[[Batch], Batch] = lambda batch: batch
        self._example: Batch | None = None

    @abstractmethod
    def _items(self, steps: range) -> Iterator[Any]:
        """Yield what the user's object gives for these steps."""

    @abstractmethod
    def _first(self) -> Any:
        """Return what ``_items`` will give at first."""

    def begin(self, step: int) -> None:
        """Let what comes next be the batch of ``step``, if batches have no numbers."""

    def following(self, count: int) -> range:
        """Return the next ``count`` steps, for ``shares``."""
        return range(count)

    @property
    def example(self) -> Batch:
        """The first batch, as it came."""
        if self._example is None:
            self._example = self._batch(self._first(), 0)
        return self._example

    @property
    def input_shape(self) -> tuple[int, ...]:
        x: Any = self.example.x
        if isinstance(x, tuple):
            return tuple(part.shape[1:] for part in x)
        return tuple(x.shape[1:])

    def batch(self, rows: Array, epochs: Array) -> Batch:
        """Return rows of the first batch, to see what they look like."""
        return rows_of_batch(self.example, rows)

    def shares(self, steps: range, rows_of: RowsOf) -> Generator[Share, None, None]:
        """Yield the rank's share of each step's batch, until the data end."""
        full = size_of(self.example)
        for item, step in zip(self._items(steps), steps, strict=False):
            batch = self.transform(self._batch(item, step))
            total = size_of(batch)
            mine = rows_of(total, full)
            part = rows_of_batch(batch, mine) if mine.stop > mine.start else None
            yield Share(part, mine, total, full, mark=mark_of(batch))

    def _batch(self, item: Any, step: int) -> Batch:
        """Check a batch and make arrays of it."""
        if isinstance(item, list) or not isinstance(item, tuple):
            item = tuple(item) if isinstance(item, list) else (item,)
        where = f"batch {step}"
        if not 1 <= len(item) <= 3 or (self.targets and len(item) == 1):
            raise DataError(
                f"{where}: expected (x, y) or (x, y, sample_weight)",
                f"{len(item)} parts: {', '.join(type(i).__name__ for i in item)}",
                "let the generator yield tuples",
            )
        x, y, weights = self.arrange(*(*item, None, None)[:3])
        made = Batch(
            _arrays(f"x of {where}", x, self.strings),
            _arrays(f"y of {where}", y) if self.targets else np.empty(0),
            None if weights is None else _arrays(f"sample_weight of {where}", weights),
        )
        lengths = {len(array) for part in made[:3] for array in _flat(part)}
        if not self.targets:
            lengths = {len(array) for array in _flat(made.x)}
        if len(lengths) != 1:
            raise DataError(
                f"{where}: expected as many rows in all arrays",
                f"{sorted(lengths)}",
                "correct the generator",
            )
        return made


class IteratorStream(Stream):
    """A generator, or anything with ``__iter__``, which is then started again."""

    def __init__(self, iterable: Any, targets: bool = True) -> None:
        super().__init__(targets)
        self._iterable = iterable
        self._iterator: Iterator[Any] | None = iter(iterable)
        self._restarts = self._iterator is not iterable
        self._step = 0  # that of the item that comes next

    def _first(self) -> Any:
        assert self._iterator is not None
        try:
            first = next(self._iterator)
        except StopIteration:
            raise DataError(
                "expected a generator that yields batches", "none", "check the data"
            ) from None
        self._iterator = chain([first], self._iterator)
        return first

    def begin(self, step: int) -> None:
        self._step = step

    def following(self, count: int) -> range:
        return range(self._step, self._step + count)

    def _items(self, steps: range) -> Iterator[Any]:
        """Until the end of the pass; a pass that is wanted to be longer starts anew."""
        fresh = False  # a pass was begun here, and has given nothing yet
        while self._step < steps.stop:
            if self._iterator is None:
                self._iterator, fresh = iter(self._iterable), True
            try:
                item = next(self._iterator)
            except StopIteration:
                if not self._restarts:
                    return
                self._iterator = None
                if fresh or steps.stop >= OPEN.stop:
                    return
                continue
            fresh = False
            self._step += 1
            if self._step > steps.start:
                yield item


class DatasetStream(Stream):
    """Batches by number; the order of each pass follows from (seed, pass)."""

    def __init__(
        self, dataset: Any, shuffle: bool, seed: int, targets: bool = True
    ) -> None:
        super().__init__(targets)
        self._dataset, self._shuffle, self._seed = dataset, shuffle, seed
        self.batches = len(dataset)
        if self.batches < 1:
            raise DataError("expected at least one batch", "none", "check the data")

    def _first(self) -> Any:
        return self._dataset[0]

    def _items(self, steps: range) -> Iterator[Any]:
        assert self.batches is not None
        order: Array = np.arange(self.batches)
        shuffled = -1
        for step in steps:
            run, place = divmod(step, self.batches)
            if self._shuffle and run != shuffled:
                rng = generator(self._seed, "order", run)
                order, shuffled = rng.permutation(self.batches), run
            yield self._dataset[int(order[place])]
            ended = getattr(self._dataset, "on_epoch_end", None)
            if place == self.batches - 1 and ended is not None:
                ended()


def as_stream(
    x: Any, shuffle: bool = False, seed: int = 0, targets: bool = True
) -> Stream | None:
    """Return a stream of what gives batches; None for arrays, lists and sources."""
    if isinstance(x, (Source, np.ndarray, list, tuple, dict, str, bytes)):
        return x if isinstance(x, Stream) else None
    if hasattr(x, "__array__") or hasattr(x, "shape"):
        return None
    if hasattr(x, "__len__") and hasattr(x, "__getitem__"):
        return DatasetStream(x, shuffle, seed, targets)
    return IteratorStream(x, targets) if hasattr(x, "__iter__") else None


def agreed(
    parts: Iterator[Share],
    comm: Communicator,
    within: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> Iterator[Share]:
    """Yield ``parts`` as long as all ranks have the same batch; they compare them
    ``within`` a context.

    Raises DataError that names a rank with another batch, or with none.
    """
    while True:
        part = next(parts, None)
        with within():
            marks = _marks(_ENDED if part is None else part.mark, comm)
        rank = _odd_one(marks)
        if rank is not None:
            what = "another batch"
            if _ENDED in (marks[0], marks[rank]):
                what = "none left" if marks[rank] == _ENDED else "one more"
            raise DataError(
                "expected the same batches on all ranks, of which each takes its share",
                f"{what} on rank {rank} ({comm.hosts[rank]}) than on rank 0",
                "let the generator yield global batches, with the same seed on all "
                "ranks, and nothing that depends on the rank",
            )
        if part is None:
            return
        yield part


def check_arrays(batch: Batch, comm: Communicator, exact: bool = False) -> None:
    """Raise DataError, on all ranks, that names a rank whose arrays have other shapes,
    types, or other values at their ends; what lies between isn't compared.

    Unless ``exact``, floating-point numbers may differ by rounding: other CPUs have
    other bits of log.
    """
    rank = _odd_one(_marks(mark_of(batch), comm))
    if rank is None:
        return
    if not exact and _odd_one(_marks(mark_of(batch, floats=False), comm)) is None:
        near = [_is_near_rank_0(numbers, comm) for numbers in _float_ends(batch)]
        rank = _odd_one(_marks(float(all(near) or comm.rank == 0), comm))
    if rank is not None:
        raise DataError(
            "expected the same arrays on all ranks, of which each takes its share",
            f"others on rank {rank} ({comm.hosts[rank]}) than on rank 0",
            "give all ranks the whole data in the same order: seed the generator that "
            "makes or shuffles them",
        )


def _marks(mark: float, comm: Communicator) -> Array:
    """Return the marks of all ranks."""
    marks = np.zeros(comm.size)
    marks[comm.rank] = mark
    comm.allreduce(marks)
    return marks


def _odd_one(marks: Array) -> int | None:
    """Return the first rank whose mark isn't that of rank 0."""
    differ = np.flatnonzero(marks != marks[0])
    return int(differ[0]) if len(differ) else None


def rows_of_batch(batch: Batch, rows: Any) -> Batch:
    """Return some rows, as a slice or by their numbers."""

    def take(part: Any) -> Any:
        if isinstance(part, tuple):
            return tuple(None if a is None else a[rows] for a in part)
        return part[rows] if part is not None and len(part) else part

    return batch._replace(x=take(batch.x), y=take(batch.y), weights=take(batch.weights))


def size_of(batch: Batch) -> int:
    return len(next(_flat(batch.x)))


def mark_of(batch: Batch, floats: bool = True) -> int:
    """Return a number that differs if shapes, types, or the ends of arrays differ;
    without ``floats`` not the ends of those of floating-point numbers."""
    mark = 0
    for part in batch[:3]:
        for array in _flat(part):
            mark = zlib.crc32(f"{array.shape}{array.dtype}".encode(), mark)
            for end in _ends(array) if floats or array.dtype.kind != "f" else ():
                bits = np.ascontiguousarray(end).tobytes()
                if array.dtype.hasobject:  # texts: the array has their addresses
                    bits = repr(end.tolist()).encode()
                mark = zlib.crc32(bits[:_COMPARED], mark)
    return mark


def _float_ends(batch: Batch) -> Iterator[Array]:
    """Yield the ends of arrays of floating-point numbers, in one row of float64."""
    for part in batch[:3]:
        for array in _flat(part):
            for end in _ends(array) if array.dtype.kind == "f" else ():
                yield end.ravel()[: _COMPARED // array.itemsize].astype(np.float64)


def _is_near_rank_0(numbers: Array, comm: Communicator) -> bool:
    first = numbers.copy()
    comm.broadcast(first)
    far = np.abs(numbers - first).max(initial=0.0)
    return bool(far <= _ROUNDING * np.abs(first).max(initial=0.0))


def _ends(array: Array) -> tuple[Array, Array]:
    rows = max(1, _COMPARED // max(1, array.nbytes // max(1, len(array))))
    return array[:rows], array[-rows:]


def _flat(part: Any) -> Iterator[Array]:
    if isinstance(part, tuple):
        yield from (array for array in part if array is not None)
    elif part is not None:
        yield part


def _arrays(name: str, value: Any, strings: bool = False) -> Any:
    several = isinstance(value, (tuple, list)) and any(v is not None for v in value)
    if several and all(v is None or getattr(v, "ndim", 0) for v in value):
        return tuple(None if v is None else numeric(name, v) for v in value)
    return numeric(name, value, strings)
