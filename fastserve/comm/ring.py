"""The ring all-reduce: a sum over all ranks that loads every link equally.

The steps of it are generators of exchanges. Whoever runs one makes each exchange that
it yields, waiting for it or polling, and then asks for the next.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from fastserve.comm.base import Array, Communicator, summable
from fastserve.comm.wire import Wire
from fastserve.errors import ShapeError

CROSSOVER_BYTES = 1 << 20
# The addition shall find what arrived in the cache. Best of 15 on an idle host, 43 MB
# between 2 ranks, a plain version of this loop with Open MPI / MPICH: pieces of 64 kB
# 5.3 / 5.7 ms, 128 kB 4.5 / 4.3, 256 kB 4.2 / 4.5; 512 kB to 4 MB 3.8 to 4.2 in no
# clear order.
PIECE_BYTES = 2 << 20


class Exchange(NamedTuple):
    """What to send to which rank, while what is filled from which rank."""

    send: Array
    dest: int
    recv: Array
    source: int


def ring_steps(
    flat: Array, members: Sequence[int], me: int, scratch: Array
) -> Iterator[Exchange]:
    """Replace ``flat`` by its sum over ``members``; the same bits on every one.

    The array is cut into as many chunks as there are members. In the first n-1 steps
    each passes a partial sum to the right and adds what it has to the one that comes
    from the left (reduce-scatter); then it holds one chunk complete, and n-1 more steps
    pass the complete ones on (all-gather). So every member sends 2(n-1)/n of the array,
    whatever n is (Patarasuk and Yuan, 2009).

    Args:
        members: ranks; ``me`` is this rank's place among them.
        scratch: for what arrives; its size is that of the pieces in which partial sums
            travel.
    """
    yield from reduce_steps(flat, members, me, scratch)
    yield from gather_steps(flat, members, me, me + 1)


def reduce_steps(
    flat: Array, members: Sequence[int], me: int, scratch: Array
) -> Iterator[Exchange]:
    """The reduce-scatter half: chunk (me + 1) % n of ``flat`` becomes the sum; the
    others hold partial sums."""
    n = len(members)
    left, right = members[(me - 1) % n], members[(me + 1) % n]
    chunks = cut(flat, n)
    longest = max(chunk.size for chunk in chunks)
    for step in range(n - 1):
        outgoing = chunks[(me - step) % n]
        own = chunks[(me - step - 1) % n]
        for start in range(0, longest, scratch.size):
            stop = start + scratch.size
            piece = own[start:stop]
            arrived = scratch[: piece.size]
            yield Exchange(outgoing[start:stop], right, arrived, left)
            np.add(piece, arrived, out=piece)


def gather_steps(
    flat: Array, members: Sequence[int], me: int, own: int
) -> Iterator[Exchange]:
    """The all-gather half: every member has chunk ``own``, its ``me`` plus a number
    that is the same for all; then all have all."""
    n = len(members)
    left, right = members[(me - 1) % n], members[(me + 1) % n]
    chunks = cut(flat, n)
    for step in range(n - 1):
        outgoing = chunks[(own - step) % n]
        yield Exchange(outgoing, right, chunks[(own - step - 1) % n], left)


def packed_steps(
    flat: Array, members: Sequence[int], me: int, packed: Array, wire: Wire
) -> Iterator[Exchange]:
    """As ``ring_steps``, with 16-bit numbers in the messages and sums in float32.

    Chunks go to the member that sums them directly, not from one to the next, which
    would round a partial sum on every hop; then the sums go round the ring. The number
    of bytes is that of a ring.

    Args:
        packed: uint16, (n, wire.length(longest chunk)).
    """
    n = len(members)
    chunks = cut(flat, n)
    rows = _rows(packed, chunks, wire)
    yield from packed_reduce_steps(flat, members, me, packed, wire)
    wire.pack(chunks[me], rows[me])
    wire.unpack(rows[me], chunks[me])  # as all others will have it
    left, right = members[(me - 1) % n], members[(me + 1) % n]
    for step in range(n - 1):
        coming = (me - step - 1) % n
        yield Exchange(rows[(me - step) % n], right, rows[coming], left)
        wire.unpack(rows[coming], chunks[coming])


def packed_reduce_steps(
    flat: Array, members: Sequence[int], me: int, packed: Array, wire: Wire
) -> Iterator[Exchange]:
    """The reduce-scatter half: chunk ``me`` of ``flat`` becomes the sum, in float32."""
    n = len(members)
    chunks = cut(flat, n)
    rows = _rows(packed, chunks, wire)
    for step in range(1, n):
        to, source = (me + step) % n, (me - step) % n
        wire.pack(chunks[to], rows[to])
        yield Exchange(rows[to], members[to], rows[me], members[source])
        wire.add(rows[me], chunks[me])


def _rows(packed: Array, chunks: Sequence[Array], wire: Wire) -> list[Array]:
    return [row[: wire.length(c.size)] for row, c in zip(packed, chunks, strict=True)]


def ring_allreduce(
    array: Array,
    comm: Communicator,
    scratch: Array,
    crossover: int = CROSSOVER_BYTES,
) -> None:
    """Replace ``array`` by its sum over all ranks; the same bits on every rank.

    A ring over all ranks, wherever they are, one exchange after the other; nothing is
    allocated. ``AllReduce`` knows about hosts.

    Args:
        array: contiguous; of any length, also shorter than the number of ranks.
        comm: the ranks; all of them call with the same length, type and scratch size.
        scratch: memory of the array's type for what arrives. Its size is the size of
            the pieces in which partial sums travel.
        crossover: up to this many bytes the native collective is used instead.

    Raises ShapeError if array or scratch are of the wrong type or not contiguous.
    """
    flat = summable(array, "ring_allreduce")
    _check_scratch(scratch, flat)
    if comm.size == 1:
        return
    if flat.nbytes <= crossover:
        comm.allreduce(flat)
        return
    for exchange in ring_steps(flat, range(comm.size), comm.rank, scratch):
        comm.sendrecv(*exchange)


def make_scratch(array: Array, ranks: int, piece_bytes: int = PIECE_BYTES) -> Array:
    """Return the scratch that ``ring_allreduce`` of such an array needs."""
    chunk = -(-array.size // ranks)
    return np.empty(max(1, min(chunk, piece_bytes // array.itemsize)), array.dtype)


def cut(flat: Array, count: int) -> list[Array]:
    """Cut into ``count`` slices whose lengths differ by at most one."""
    cuts = [flat.size * i // count for i in range(count + 1)]
    return [flat[a:b] for a, b in itertools.pairwise(cuts)]


def _check_scratch(scratch: Array, flat: Array) -> None:
    memory = summable(scratch, "ring_allreduce's scratch")
    if memory.dtype != flat.dtype or memory.size < 1 or scratch.ndim != 1:
        raise ShapeError(
            f"ring_allreduce: expected a flat scratch of 1 or more {flat.dtype}",
            f"shape {scratch.shape} of {scratch.dtype}",
            "make it with make_scratch, and keep it for the next call",
        )
