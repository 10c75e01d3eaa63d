"""Products of few rows with weights that stay the same over many of them.

OpenBLAS lays the weights of a product out anew at each call, before it multiplies. With
few rows, as in a step of a recurrent layer, that costs a quarter of the time. Its
AVX-512 families have kernels that don't, for products of up to 100³ multiplications; so
here the weights are cut into pieces of columns that are that small, each contiguous.
With other families nothing is cut.

N rows, K depth, C columns
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np

from fastserve.ops.blocks import Array

LIMIT = 100**3  # of rows x depth x columns
FAMILIES = ("SkylakeX", "Cooperlake", "SapphireRapids")
COLUMNS = 16  # a piece has a multiple of them: the numbers of a vector
ROWS = 32  # a piece has no fewer than them; fewer rows in all aren't cut


class Pieces(NamedTuple):
    """Weights (..., C/c, 1, K, c) for products of ``rows`` rows at a time; 0: any."""

    weights: Array
    rows: int

    def part(self, depth: slice) -> Pieces:
        """Return those for a part of the depth."""
        return Pieces(self.weights[..., depth, :], self.rows)


@functools.cache
def small_kernels() -> bool:
    """Return whether BLAS multiplies small matrices where they lie."""
    from threadpoolctl import threadpool_info

    found = [pool for pool in threadpool_info() if pool["user_api"] == "blas"]
    return bool(found) and all(p.get("architecture") in FAMILIES for p in found)


@functools.lru_cache(maxsize=256)
def piece(rows: int, depth: int, columns: int) -> tuple[int, int]:
    """Return rows and columns of the fewest pieces; (0, columns) if none are small."""
    if not small_kernels():
        return 0, columns
    some = [r for r in range(ROWS, rows + 1) if rows % r == 0]
    widths = [c for c in range(COLUMNS, columns + 1, COLUMNS) if columns % c == 0]
    small = [(r, c) for r in some for c in widths if r * depth * c <= LIMIT]
    return max(small, key=lambda size: size[0] * size[1], default=(0, columns))


def multiply(a: Array, pieces: Pieces, out: Array) -> None:
    """out (..., N, C) = a (..., N, K) times the weights that were cut.

    N is a multiple of the rows that they were cut for.
    """
    weights, rows = pieces
    count, _, depth, columns = weights.shape[-4:]
    n = rows or a.shape[-2]
    parts = a.shape[-2] // n
    left = a.reshape(*a.shape[:-2], 1, parts, n, depth)
    # views: axes are split, none are merged
    right = out.reshape(*out.shape[:-2], parts, n, count, columns)
    np.matmul(left, weights, out=right.swapaxes(-3, -2).swapaxes(-4, -3))
