"""Long element-wise work in pieces that stay in the cache.

A chain of NumPy operations over 25 MB reads and writes main memory once for each
operation; the same chain over pieces of a few ten thousand elements reads it once.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
PIECE = 1 << 14  # elements of a block of rows: 64 kB of float32
FLAT = 1 << 15  # elements of a flat piece: four of them share an L2 cache of 1 MB

_kept = threading.local()
_ZEROS: dict[str, Array] = {}


def spare(slot: int, like: Array) -> Array:
    """Return an array of the shape and type of ``like`` for the moment's use.

    It is the same memory each time, one for each slot and thread: a function that
    needs two at once takes two slots, and returns before another function takes them.
    """
    return room(slot, like.shape, like.dtype)


def room(slot: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """Return an array of this shape; see ``spare``."""
    key = (slot, dtype.char)
    blocks = getattr(_kept, "blocks", None)
    if blocks is None:
        blocks = _kept.blocks = {}
    size = math.prod(shape)
    block = blocks.get(key)
    if block is None or block.size < size:
        block = blocks[key] = np.empty(max(FLAT, size), dtype)
    array: Array = block[:size].reshape(shape)
    return array


def zeros(like: Array) -> Array:
    """Return zeros of the shape and type of ``like``, kept and read-only.

    ``np.maximum`` and ``np.minimum`` use vector instructions for two arrays, not for an
    array and a number: 32 K elements take 4 us instead of 13.
    """
    block = _ZEROS.get(like.dtype.char)
    if block is None or block.size < like.size:
        block = np.zeros(max(FLAT, like.size), like.dtype)
        block.flags.writeable = False
        _ZEROS[like.dtype.char] = block
    array: Array = block[: like.size].reshape(like.shape)
    return array


def row_blocks(rows: int, columns: int, size: int = PIECE) -> Iterator[slice]:
    """Yield slices of rows that hold about ``size`` elements each."""
    step = max(1, size // max(1, columns))
    for start in range(0, rows, step):
        yield slice(start, min(rows, start + step))


def as_rows(x: Array) -> Array:
    """Return x as (all leading axes, last axis), without a copy."""
    return x.reshape(-1, x.shape[-1])
