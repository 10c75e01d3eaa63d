"""``AllReduce``: sums one vector over all ranks, within each host and between hosts.

The ranks of a host work in memory that all of them see: each adds up one part of it, so
nothing is copied into messages. Between hosts one rank of each host takes part in a
ring, so a link carries the bytes of a ring over hosts, however many ranks they have.

A vector is worked on in pieces, several of them at a time: while one waits for a
message, another one's message is on the link. Nothing blocks; ``poll`` does what can
be done at once.
"""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from fastserve.comm.base import Array, Communicator, Pending
from fastserve.comm.observe import BucketWatch
from fastserve.comm.ring import Exchange, packed_steps, ring_steps
from fastserve.comm.wire import make_wire
from fastserve.errors import ArgumentError

CHUNK_BYTES = 1 << 17  # of a message between hosts, for vectors that are long enough
# Of a piece where all ranks are on one host. Not a power of two: ranks whose parts of a
# piece are 1 MiB apart slow each other down where they share no cache.
HOST_PIECE_BYTES = 1_900_000
WINDOW = 8  # pieces that are worked on at a time
TAGS = 1 << 15
_BLOCK = 1 << 16  # elements
# A rank that waits looks again and again: at first at once, which a fast link needs,
# then in pauses of a part of the time that it has been waiting for, so that ranks and
# other programs on the same cores can work.
_SPIN = 2e-4  # seconds
_PAUSE = 1 / 8
_LONGEST_PAUSE = 1e-3
_SUMMED, _COMPLETE, _COPIED = 1, 2, 3  # marks of a piece; 0: its gradients are there
_MARKS = 4


class AllReduce:
    """Replaces ``vector`` by its sum over all ranks, again and again.

    A round is ``begin``, any number of ``release`` and ``poll``, and ``finish``. All
    ranks make it at the same time, with the same arguments. After it is made, it
    allocates no arrays.

    Args:
        vector: the memory to sum. Where ranks share memory, it is replaced by memory of
            the same contents: use the attribute ``vector``.
        parts: consecutive slices of the vector, each of which can be released.
        wire: type of the numbers in messages between hosts.
        chunk: bytes of such a message.
        shared: False sends messages within hosts too.

    Attributes:
        ends: of each part, the number of pieces up to its end.
        observer: hears when work on a piece begins and ends; None: nobody does.
    """

    def __init__(
        self,
        vector: Array,
        parts: Sequence[slice],
        comm: Communicator,
        wire: str = "float32",
        chunk: int = CHUNK_BYTES,
        shared: bool = True,
    ) -> None:
        if chunk < 8:
            raise ArgumentError("expected a chunk of 8 bytes or more", str(chunk))
        if wire != "float32" and vector.dtype != np.float32:
            raise ArgumentError(
                f"expected float32 numbers for the wire {wire}",
                str(vector.dtype),
                "take the wire float32, which sends numbers as they are",
            )
        self._comm = comm
        self._wire = make_wire(wire)
        hosts = comm.groups
        self._pieces, self.ends = self._cut(vector, parts, chunk, len(hosts), shared)
        self._memory = None
        if shared and comm.size > len(hosts):
            self._memory = comm.share(vector.size, vector.dtype, len(self._pieces))
        if self._memory is None:  # each rank as if alone on its host
            hosts = [[rank] for rank in range(comm.size)]
        else:
            self._memory.own[...] = vector
        self.vector = vector if self._memory is None else self._memory.own
        self._members = [group[0] for group in hosts]
        self._me = self._members.index(comm.rank) if comm.rank in self._members else -1
        self._local = comm.local_rank if self._memory else 0
        longest = max((piece.stop - piece.start for piece in self._pieces), default=0)
        self._scratch = self._make_scratch(-(-longest // len(hosts)))
        self._add: Array | None = None
        self.observer: BucketWatch | None = None
        self._round = 0
        self._released = self._next = len(self._pieces)
        self._active: list[_Task] = []
        self._copying: deque[int] = deque()

    @property
    def hosts(self) -> int:
        """How many take part in the ring of messages."""
        return len(self._members)

    def begin(self, add: Array | None = None) -> None:
        """Start a round; ``add`` is added to this rank's vector before the sum."""
        self._add = add
        self._round += 1
        self._released = self._next = 0

    def release(self, parts: int) -> None:
        """Let the first ``parts`` parts go: nobody writes to them any more."""
        self._released = self.ends[parts - 1] if parts else 0

    @property
    def complete(self) -> bool:
        return (
            self._next == len(self._pieces) and not self._active and not self._copying
        )

    def poll(self) -> bool:
        """Do what can be done without waiting; return whether there was anything."""
        progress = False
        while self._next < self._released and self._scratch:
            scratch = self._scratch.pop()
            if self.observer is not None:
                self.observer.begins(self._next)
            steps = self._steps(self._next, scratch)
            self._active.append(_Task(self._next, steps, scratch))
            self._next += 1
        for task in list(self._active):
            if task.advance():
                progress = True
            if task.ended:
                self._active.remove(task)
                self._scratch.append(task.scratch)
                if self.observer is not None:
                    self.observer.ends(task.piece)
        while self._copying and self._reached(self._copying[0], _COPIED):
            self._copying.popleft()
            progress = True
        if progress:
            self._comm.progressed()
        return progress

    def finish(self) -> None:
        """Wait until every part holds its sum; all must have been released."""
        since = time.perf_counter()
        while not self.complete:
            now = time.perf_counter()
            if self.poll():
                since = now
            elif now - since > _SPIN:
                time.sleep(min((now - since) * _PAUSE, _LONGEST_PAUSE))

    def _steps(self, index: int, scratch: Array) -> Iterator[Pending]:
        """Sum a piece, yielding what has to be waited for."""
        piece = self._pieces[index]
        if self._add is not None:
            own = self.vector[piece]
            np.add(own, self._add[piece], out=own)
        if self._memory is None:
            yield from self._between_hosts(index, self.vector[piece], scratch)
            return
        vectors, me = self._memory.vectors, self._local
        parts = _cut(piece, len(vectors))
        mine = [vector[parts[me]] for vector in vectors]
        yield self._arrive(index, 0)
        if self.hosts == 1:
            _add_up(mine.pop(me), mine)
            yield self._arrive(index, _SUMMED)
            for other, part in enumerate(parts):
                if other != me:
                    np.copyto(self.vector[part], vectors[other][part])
        else:
            # the host's sum is put together where it leaves from
            _add_up(mine[0], mine[1:])
            yield self._arrive(index, _SUMMED)
            if me == 0:
                yield from self._between_hosts(index, self.vector[piece], scratch)
            yield self._arrive(index, _COMPLETE)
            if me != 0:
                np.copyto(self.vector[piece], vectors[0][piece])
        # what others still read must not be written: finish waits for them
        self._arrive(index, _COPIED)
        self._copying.append(index)

    def _between_hosts(
        self, index: int, flat: Array, scratch: Array
    ) -> Iterator[Pending]:
        if self.hosts == 1:
            return
        members, me = self._members, self._me
        if self._wire is None:
            steps = ring_steps(flat, members, me, scratch)
        else:
            steps = packed_steps(flat, members, me, scratch, self._wire)
        yield from self._exchange(index, steps)

    def _exchange(self, index: int, steps: Iterable[Exchange]) -> Iterator[Pending]:
        for exchange in steps:
            yield self._comm.start(*exchange, tag=index % TAGS)

    def _arrive(self, index: int, mark: int) -> Pending:
        assert self._memory is not None
        self._memory.arrive(index, self._round * _MARKS + mark)
        return _Mark(self, index, mark)

    def _reached(self, index: int, mark: int) -> bool:
        assert self._memory is not None
        return self._memory.reached(index, self._round * _MARKS + mark)

    def _make_scratch(self, chunk: int) -> list[Array]:
        """Return memory for what arrives, for each piece that is worked on."""
        kind = self.vector.dtype
        shape: tuple[int, ...] = (max(1, chunk),)
        if self.hosts == 1 or self._me < 0:
            shape = (0,)
        elif self._wire is not None:
            shape = (self.hosts, self._wire.length(max(1, chunk)))
            kind = np.dtype(np.uint16)
        return [np.empty(shape, kind) for _ in range(WINDOW)]

    def _cut(
        self,
        vector: Array,
        parts: Sequence[slice],
        chunk: int,
        hosts: int,
        shared: bool,
    ) -> tuple[list[slice], list[int]]:
        """Return the pieces of all parts, and each part's end among them."""
        ring = hosts if shared else self._comm.size
        nbytes = chunk * ring if ring > 1 else HOST_PIECE_BYTES
        most = max(1, nbytes // vector.itemsize)
        pieces, ends = [], []
        for part in parts:
            pieces += _cut(part, max(1, -(-(part.stop - part.start) // most)))
            ends.append(len(pieces))
        return pieces, ends


class _Task:
    """A piece that is worked on."""

    def __init__(self, piece: int, steps: Iterator[Pending], scratch: Array) -> None:
        self.piece, self.scratch, self.ended = piece, scratch, False
        self._steps = steps
        self._pending: Pending | None = None

    def advance(self) -> bool:
        """Go on until there is something to wait for; return whether it went on."""
        moved = False
        while self._pending is None or self._pending.done():
            moved = True
            self._pending = next(self._steps, None)
            if self._pending is None:
                self.ended = True
                break
        return moved


class _Mark:
    """Other ranks of the host have to get as far with a piece."""

    __slots__ = ("_index", "_mark", "_of")

    def __init__(self, of: AllReduce, index: int, mark: int) -> None:
        self._of, self._index, self._mark = of, index, mark

    def done(self) -> bool:
        return self._of._reached(self._index, self._mark)


def _cut(part: slice, count: int) -> list[slice]:
    """Cut into ``count`` slices whose lengths differ by at most one."""
    length = part.stop - part.start
    cuts = [part.start + length * i // count for i in range(count + 1)]
    return [slice(a, b) for a, b in itertools.pairwise(cuts)]


def _add_up(out: Array, others: Sequence[Array]) -> None:
    """Add the others to ``out``, block by block where it would leave the cache."""
    block = _BLOCK if len(others) > 1 else max(1, out.size)
    for start in range(0, out.size, block):
        part = out[start : start + block]
        for other in others:
            np.add(part, other[start : start + block], out=part)
