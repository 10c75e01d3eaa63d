"""The ring all-reduce: a sum over all ranks that loads every link equally."""

from __future__ import annotations

import itertools

import numpy as np

from fastserve.comm.base import Array, Communicator, summable
from fastserve.errors import ShapeError

# Time of the native collective / time of the ring, benchmarks/allreduce.py, float32,
# one host of 2 cores that had other work too. 2 ranks: the middle of three runs; 3
# ranks, more than there are cores: one run. At 43 MB runs with 2 ranks gave 2.5 to 4.2,
# and 1.6 to 2.4 while other programs used both cores.
#                      64 kB  256 kB  512 kB  1 MB  2 MB  4 MB
#   Open MPI, 2 ranks   0.55    0.70    0.80  0.87  0.89  0.87
#   MPICH, 2 ranks      0.65    0.85    0.98  1.07  1.07  1.12
#   Open MPI, 3 ranks   0.48    0.82       -  1.30     -  1.69
#   MPICH, 3 ranks      0.45    0.90       -  0.95     -  1.96
# One number for both: Open MPI with 2 ranks would gain from a larger one, the others
# would lose. Not measured between hosts.
CROSSOVER_BYTES = 1 << 20
# The addition shall find what arrived in the cache. Best of 15 on an idle host, 43 MB
# between 2 ranks, a plain version of this loop with Open MPI / MPICH: pieces of 64 kB
# 5.3 / 5.7 ms, 128 kB 4.5 / 4.3, 256 kB 4.2 / 4.5; 512 kB to 4 MB 3.8 to 4.2 in no
# clear order.
PIECE_BYTES = 2 << 20


def ring_allreduce(
    array: Array,
    comm: Communicator,
    scratch: Array,
    crossover: int = CROSSOVER_BYTES,
) -> None:
    """Replace ``array`` by its sum over all ranks; the same bits on every rank.

    The array is cut into as many chunks as there are ranks. In the first n-1 steps each
    rank passes a partial sum to the right and adds what it has to the one that comes
    from the left (reduce-scatter); then it holds one chunk complete, and n-1 more steps
    pass the complete ones on (all-gather). So every rank sends 2(n-1)/n of the array,
    whatever n is, and nothing is allocated.

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
    chunks = _chunks(flat, comm.size)
    _reduce_scatter(chunks, comm, scratch)
    _all_gather(chunks, comm)


def make_scratch(array: Array, ranks: int, piece_bytes: int = PIECE_BYTES) -> Array:
    """Return the scratch that ``ring_allreduce`` of such an array needs."""
    chunk = -(-array.size // ranks)
    return np.empty(max(1, min(chunk, piece_bytes // array.itemsize)), array.dtype)


def _reduce_scatter(chunks: list[Array], comm: Communicator, scratch: Array) -> None:
    """Leave the sum of chunk rank + 1 complete on each rank."""
    rank, size = comm.rank, comm.size
    left, right = (rank - 1) % size, (rank + 1) % size
    longest = max(chunk.size for chunk in chunks)
    for step in range(size - 1):
        outgoing = chunks[(rank - step) % size]
        own = chunks[(rank - step - 1) % size]
        for start in range(0, longest, scratch.size):
            stop = start + scratch.size
            piece = own[start:stop]
            arrived = scratch[: piece.size]
            comm.sendrecv(outgoing[start:stop], right, arrived, left)
            np.add(piece, arrived, out=piece)


def _all_gather(chunks: list[Array], comm: Communicator) -> None:
    """Pass the complete chunks on, until every rank has all of them."""
    rank, size = comm.rank, comm.size
    left, right = (rank - 1) % size, (rank + 1) % size
    for step in range(size - 1):
        outgoing = chunks[(rank + 1 - step) % size]
        comm.sendrecv(outgoing, right, chunks[(rank - step) % size], left)


def _chunks(flat: Array, count: int) -> list[Array]:
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
