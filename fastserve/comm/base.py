"""``Communicator``: what the ranks of a job can say to each other.

Verbs that take an array work in place, on memory that is contiguous, and never pickle.
Verbs that end in ``_obj`` pickle; they are for small Python objects.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

import numpy as np

from fastserve.errors import ArgumentError, CommError, ShapeError

if TYPE_CHECKING:
    from fastserve.comm.shared import HostMemory

Array = np.ndarray[Any, np.dtype[Any]]

MESSAGE_BYTES = 64 << 20  # of the largest message; MPI's own counts end at 2 GiB

_SUMMABLE = frozenset(map(np.dtype, "bhilqBHILQfd"))  # integers, float32, float64


class Pending(Protocol):
    """Something that has been started and isn't waited for."""

    def done(self) -> bool:
        """Return whether it is complete; nothing goes on unless this is called."""


class Communicator(ABC):
    """The ranks of a job, seen from one of them.

    Every rank calls the same verbs in the same order with arrays of the same length
    and type; only ``sendrecv`` is between pairs.

    Attributes:
        rank, size: this rank's number, and how many there are.
        local_rank, local_size: the same among the ranks on this host.
        host: this host's name.
        hosts: the name of each rank's host.
        groups: the ranks of each host, in order; hosts in the order of their first
            ranks.
        library: name and version of the MPI; '' without one.
        timeout: seconds that a call may wait for other ranks before the job is
            aborted; None waits as long as they run. It is looked at under MPI.
        on_departure: called with a CommError before the job is aborted because this
            rank waits for one that has left or is late; None prints it.
    """

    timeout: float | None = None
    on_departure: Callable[[CommError], None] | None = None
    rank: int
    size: int
    local_rank: int
    local_size: int
    host: str
    hosts: list[str]
    groups: list[list[int]]
    library: str = ""

    def __reduce__(self) -> tuple[Callable[[], Communicator], tuple[()]]:
        """A copy, also by pickle, is the world of the process that has it."""
        from fastserve.comm.world import world

        return world, ()

    @abstractmethod
    def allreduce(self, array: Array) -> None:
        """Replace ``array`` by its sum over all ranks, by the native collective.

        Raises ShapeError unless it is contiguous, writeable, and of integers or
        float32 or float64.
        """

    @abstractmethod
    def broadcast(self, array: Array, root: int = 0) -> None:
        """Replace ``array`` by the one of ``root``; any type but objects."""

    @abstractmethod
    def sendrecv(self, send: Array, dest: int, recv: Array, source: int) -> None:
        """Send ``send`` to ``dest`` while ``recv`` is filled from ``source``.

        Raises CommError if what ``source`` sent isn't as long as ``recv``.
        """

    @abstractmethod
    def start(
        self, send: Array, dest: int, recv: Array, source: int, tag: int
    ) -> Pending:
        """Begin a ``sendrecv``, with its arguments; neither array may be touched until
        it is done.

        It meets the exchange that has the same ``tag`` (0 to 32767) on the other ranks;
        with several of one tag, the order counts. For arrays of at most MESSAGE_BYTES.
        """

    @abstractmethod
    def share(self, size: int, dtype: Any, pieces: int) -> HostMemory | None:
        """Return memory that all ranks of this host can use, with a vector for each
        that is worked on in ``pieces``.

        All ranks of the job call it together. None, on all of them, where some host
        gives no such memory.
        """

    @contextmanager
    def _no_watch(self) -> Iterator[None]:
        yield

    def waiting(self, verb: str) -> AbstractContextManager[None]:
        """Within it this rank waits for the others, and ``timeout`` counts.

        Every rank enters it as often as the others: it counts as one collective.
        """
        return self._no_watch()

    def progressed(self) -> None:  # noqa: B027  only MPI looks at the time
        """Within ``waiting``: messages arrive, so ``timeout`` counts from now on."""

    @contextmanager
    def after_rank_0(self) -> Iterator[None]:
        """At its end all ranks wait until rank 0 is there, however long that takes.

        It is for what rank 0 does alone, such as to write to a slow disk; ``timeout``
        doesn't count within it for the others.
        """
        limit = self.timeout
        if self.rank:
            self.timeout = None
        try:
            yield
            if self.size > 1:
                self.broadcast_obj(None)
        finally:
            self.timeout = limit

    @abstractmethod
    def barrier(self) -> None:
        """Wait until every rank is here."""

    @abstractmethod
    def gather_obj(self, obj: Any, root: int = 0) -> list[Any] | None:
        """Return every rank's ``obj`` in a list on ``root``, None elsewhere."""

    @abstractmethod
    def broadcast_obj(self, obj: Any, root: int = 0) -> Any:
        """Return the ``obj`` of ``root``, a small Python object, on all ranks."""

    @abstractmethod
    def abort(self, status: int) -> NoReturn:
        """End all ranks of the job, which then has this exit status."""

    @abstractmethod
    def close(self) -> None:
        """Leave the job in good order; may wait until the others leave too."""


def octets(array: Array, verb: str, writes: bool) -> Array:
    """Return a contiguous array's memory as a flat view of bytes.

    Raises ShapeError if it isn't contiguous, holds objects, or is read-only where
    ``verb`` writes.
    """
    return _flat(array, verb, writes).view(np.uint8)


def summable(array: Array, verb: str) -> Array:
    """Return a flat view of an array that can be summed in place.

    Raises ShapeError if it is not contiguous, writeable, and of a type that every
    MPI can add.
    """
    flat = _flat(array, verb, writes=True)
    if flat.dtype not in _SUMMABLE:
        raise ShapeError(
            f"{verb}: expected an array of integers, float32 or float64",
            str(flat.dtype),
            "convert it first, for example with array.astype(np.float32)",
        )
    return flat


def check_rank(number: int, size: int, verb: str) -> None:
    """Raise ArgumentError unless ``number`` is one of ``size`` ranks."""
    if not 0 <= number < size:
        raise ArgumentError(
            f"{verb}: expected a rank of 0 to {size - 1}",
            str(number),
            "count the ranks from 0",
        )


def check_object(obj: Any, verb: str) -> None:
    """Raise ArgumentError for arrays: they go by the verbs that don't pickle."""
    if isinstance(obj, np.ndarray):
        raise ArgumentError(
            f"{verb}: expected a small Python object",
            f"an array of shape {obj.shape}",
            "use broadcast, allreduce or sendrecv, which don't pickle",
        )


def check_received(wanted: int, received: int, source: int) -> None:
    """Raise CommError if a message isn't as long as the array it was meant for."""
    if wanted != received:
        raise CommError(
            f"sendrecv: expected {wanted} bytes from rank {source}",
            f"{received} bytes",
            "give every rank arrays of the same length and type",
        )


def _flat(array: Array, verb: str, writes: bool) -> Array:
    if not isinstance(array, np.ndarray):
        raise ShapeError(
            f"{verb}: expected a NumPy array",
            type(array).__name__,
            "make an array of it, or use a verb that ends in _obj",
        )
    if not array.flags.c_contiguous:
        raise ShapeError(
            f"{verb}: expected a contiguous array",
            f"shape {array.shape} with strides {array.strides}",
            "pass the whole array, or copy it with np.ascontiguousarray",
        )
    if array.dtype.hasobject:
        raise ShapeError(
            f"{verb}: expected an array of numbers",
            f"type {array.dtype}",
            "convert it to a numeric type",
        )
    if writes and not array.flags.writeable:
        raise ShapeError(
            f"{verb}: expected an array that can be written",
            "a read-only array",
            "pass a copy",
        )
    return array.reshape(-1)
