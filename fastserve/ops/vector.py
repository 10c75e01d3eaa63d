"""Operations on the one vector of a single token, as generation needs them.

What costs there is to read the weights from memory once, and the number of calls into
NumPy; so there are no pieces, and no array is made but the one that is returned.

Shapes: D features, G heads of keys and values, R query heads for each of them, T
positions so far, d width of a head.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from fastserve.ops.blocks import Array

Product = Callable[[Array, Array, Array], object]  # of (vector, matrix, result)
SHORT = 1 << 10  # columns of a matrix whose rows are short: 4 kB of float32
LARGE = 1 << 17  # elements of a matrix that comes from memory and not from the cache
_vecdot = getattr(np, "vecdot", None)  # from NumPy 2.0 on


def blas_threads() -> int:
    """Return the number of threads that products with a matrix may use."""
    from threadpoolctl import threadpool_info

    pools = [p["num_threads"] for p in threadpool_info() if p["user_api"] == "blas"]
    return max(pools, default=1)


def product(rows: int, columns: int, threads: int) -> Product:
    """Return what computes x W for W (rows, columns).

    BLAS reads several rows at once, which memory answers with half of its bandwidth
    if they are short: 11 GB/s for 384 columns, where a product row by row gets 24.
    With threads, BLAS has the more of them.
    """
    alone = threads == 1 and columns <= SHORT and rows * columns >= LARGE
    return _row_by_row if alone else _matmul


def table_product(threads: int) -> Product:
    """Return what computes W x for a large W (rows, D).

    With one thread as dot products: they read 25 GB/s of GPT-2's table, where BLAS'
    product with a matrix reads 14.
    """
    return _dot_products if threads == 1 and _vecdot is not None else _table_matmul


def _matmul(x: Array, matrix: Array, y: Array) -> None:
    np.matmul(x, matrix, out=y)


def _row_by_row(x: Array, matrix: Array, y: Array) -> None:
    np.einsum("i,ij->j", x, matrix, out=y)


def _table_matmul(x: Array, table: Array, y: Array) -> None:
    np.matmul(table, x, out=y)


def _dot_products(x: Array, table: Array, y: Array) -> None:
    _vecdot(table, x, out=y)  # type: ignore[misc]


def layer_norm(
    x: Array, gamma: Array | None, beta: Array | None, eps: float, y: Array
) -> None:
    """Write y (D) from x (D); the formula is in ``ops/norm.py``."""
    np.subtract(x, np.add.reduce(x) / x.size, out=y)
    np.multiply(y, 1.0 / math.sqrt(float(y.dot(y)) / x.size + eps), out=y)
    if gamma is not None:
        np.multiply(y, gamma, out=y)
    if beta is not None:
        np.add(y, beta, out=y)


def rms_norm(x: Array, gamma: Array, eps: float, y: Array) -> None:
    """Write y (D) from x (D); the formula is in ``ops/norm.py``."""
    np.multiply(x, 1.0 / math.sqrt(float(x.dot(x)) / x.size + eps), out=y)
    np.multiply(y, gamma, out=y)


def rotate(heads: Array, cos: Array, sin: Array, other: Array) -> None:
    """Turn heads (H, 2, d/2) in place by one row (1, 2, d/2) of ``rotary.angles``;
    ``other`` is memory of the same shape."""
    np.multiply(heads[:, ::-1], sin, out=other)
    np.multiply(heads, cos, out=heads)
    np.add(heads, other, out=heads)


def attend(q: Array, keys: Array, values: Array, s: Array, o: Array) -> None:
    """Write o (G, R, d): attention of queries (G, R, d), scaled already, to the keys
    and values (G, T, d) so far; s (G, R, T) is memory for the scores."""
    np.matmul(q, keys.transpose(0, 2, 1), out=s)
    np.subtract(s, np.maximum.reduce(s, axis=-1, keepdims=True), out=s)
    np.exp(s, out=s)
    np.matmul(s, values, out=o)
    np.divide(o, np.add.reduce(s, axis=-1, keepdims=True), out=o)
