"""Memory that all ranks of a host can read and write.

It is a file that exists in memory alone and has no name (memfd_create): the first rank
of the host makes it, the others open it through that process, and it is gone when the
last of them has ended, however that came about. Nothing is left in /dev/shm, whose size
is small in containers.
"""

from __future__ import annotations

import mmap
import os
import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from fastserve.comm.base import Array

_PAGE = 4096
_LINE = 64  # bytes of a cache line: no two ranks write to the same one
_MARK = np.dtype(np.int64)


class HostMemory:
    """A vector of each rank of this host, and how far each rank has got with it.

    The vectors are worked on in pieces, and each piece has marks of its own.

    Attributes:
        vectors: one for each rank of the host, by local rank; all of them readable and
            writeable by all.
        own: this rank's.
    """

    def __init__(
        self,
        block: Array,
        size: int,
        dtype: Any,
        pieces: int,
        ranks: int,
        local_rank: int,
    ) -> None:
        room = _vector_bytes(size, dtype)
        used = size * np.dtype(dtype).itemsize
        marks = block[ranks * room :].view(_MARK).reshape(pieces, ranks, -1)
        self.vectors = [
            block[r * room : r * room + used].view(dtype) for r in range(ranks)
        ]
        self.own = self.vectors[local_rank]
        self._mine = marks[:, local_rank, 0]
        self._others = [
            marks[:, rank, 0] for rank in range(ranks) if rank != local_rank
        ]
        self._fence = threading.Lock()

    def arrive(self, piece: int, mark: int) -> None:
        """Let the others know that this rank has got to ``mark``; marks only grow."""
        with self._fence:  # what was written before is seen before the mark
            pass
        self._mine[piece] = mark

    def reached(self, piece: int, mark: int) -> bool:
        """Return whether all other ranks of the host have got to ``mark``."""
        for marks in self._others:
            if marks[piece] < mark:
                return False
        with self._fence:
            return True


def block_bytes(size: int, dtype: Any, pieces: int, ranks: int) -> int:
    """Return the bytes of a block for ``ranks`` vectors of ``size`` and their marks."""
    return ranks * (_vector_bytes(size, dtype) + pieces * _LINE)


def make_block(nbytes: int) -> tuple[Array, str]:
    """Return new memory of zeros, and the path at which others can open it."""
    number = os.memfd_create("fastserve", os.MFD_CLOEXEC)
    os.ftruncate(number, nbytes)
    return _map(number, nbytes), f"/proc/{os.getpid()}/fd/{number}"


def open_block(path: str, nbytes: int) -> Array:
    """Return the memory that another process of this host has made; raises OSError."""
    number = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        if os.fstat(number).st_size != nbytes:
            raise OSError(f"{path} is not the memory that was shared")
        return _map(number, nbytes)
    finally:
        os.close(number)


def close_path(path: str) -> None:
    """Close what ``make_block`` opened: nobody can open the memory any more."""
    os.close(int(path.rpartition("/")[2]))


def share(
    size: int,
    dtype: Any,
    pieces: int,
    ranks: int,
    local_rank: int,
    tell: Callable[[Any], Any],
    wait: Callable[[], None],
) -> HostMemory:
    """Return memory for a vector of each rank; all ranks of a host call it together.

    Args:
        tell: returns the first rank's argument on every rank of this host.
        wait: returns once every rank of this host has called it.

    Raises OSError where the system gives no such memory, on every rank of the host or
    on some: callers must agree on what to do.
    """
    nbytes = block_bytes(size, dtype, pieces, ranks)
    block, path, fault = None, "", None
    if local_rank == 0:
        try:
            block, path = make_block(nbytes)
        except (OSError, AttributeError) as error:  # AttributeError: not on Linux
            fault = str(error)
    path, fault = tell((path, fault))
    try:
        if fault:
            raise OSError(fault)
        if block is None:
            block = open_block(path, nbytes)
    finally:
        wait()
        if local_rank == 0 and path:
            close_path(path)
    return HostMemory(block, size, dtype, pieces, ranks, local_rank)


def _map(number: int, nbytes: int) -> Array:
    return np.frombuffer(mmap.mmap(number, nbytes), np.uint8)


def _vector_bytes(size: int, dtype: Any) -> int:
    return -(-max(1, size) * np.dtype(dtype).itemsize // _PAGE) * _PAGE
