"""Memory that a model keeps: arrays for one step come from here, not from malloc.

A large fresh array costs a page fault for every 4 kB that is touched, about a quarter
of a training step if each layer asks for new arrays. So a model has one ``Memory``, and
what its layers take from it goes back by itself when nobody refers to it any more.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import DTypeLike

Array = np.ndarray[Any, np.dtype[Any]]
ALIGNMENT = 64  # bytes: a cache line, and the widest vector register


def aligned_bytes(size: int) -> Array:
    """Return ``size`` fresh bytes that start at a multiple of 64."""
    return _aligned(np.empty(size + ALIGNMENT, np.uint8), size)


def aligned_zeros(size: int) -> Array:
    """Return ``size`` zero bytes that start at a multiple of 64.

    The system gives a page of them only once it is written to.
    """
    return _aligned(np.zeros(size + ALIGNMENT, np.uint8), size)


def _aligned(raw: Array, size: int) -> Array:
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + size]


class _Block:
    """Memory and its address, which is slow to ask for."""

    __slots__ = ("address", "memory", "size")

    def __init__(self, size: int) -> None:
        self.memory, self.size = aligned_bytes(size), size
        self.address = self.memory.ctypes.data


class _Lease:
    """Owns a block while arrays refer to it; its end gives the block back."""

    __slots__ = ("__array_interface__", "block", "free")

    def __init__(
        self,
        block: _Block,
        free: list[_Block],
        shape: tuple[int, ...],
        dtype: np.dtype[Any],
    ) -> None:
        self.block, self.free = block, free
        self.__array_interface__ = {
            "version": 3,
            "shape": shape,
            "typestr": dtype.str,
            "data": (block.address, False),
        }

    def __del__(self) -> None:
        self.free.append(self.block)


class Memory:
    """A pool of blocks that are used again instead of being freed.

    ``poison`` fills what it hands out with NaN, for tests that look for reads of
    memory that was never written.
    """

    def __init__(self, poison: bool = False) -> None:
        self._free: list[_Block] = []
        self.poison = poison
        self.allocated = 0  # bytes, all blocks together

    def take(self, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
        """Return an uninitialised array; its memory returns with the last reference.

        The smallest free block that is large enough serves, if it is not more than
        twice as large as needed.
        """
        dtype = np.dtype(dtype)
        count = 1
        for extent in shape:
            count *= extent
        size = max(count * dtype.itemsize, ALIGNMENT)
        best = -1
        for i, block in enumerate(self._free):
            if size <= block.size <= 2 * size and (
                best < 0 or block.size < self._free[best].size
            ):
                best = i
        if best >= 0:
            block = self._free.pop(best)
        else:
            block = _Block(size)
            self.allocated += size
        array: Array = np.asarray(_Lease(block, self._free, shape, dtype))
        if self.poison and dtype.kind == "f":
            array.fill(np.nan)
        return array
