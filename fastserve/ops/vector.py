"""Operations on the one vector of a single token, as generation needs them.

What costs there is to read the weights from memory once, and the number of calls into
NumPy; so there are no pieces, and no array is made but the one that is returned.

Shapes: D features, G heads of keys and values, R query heads for each of them, T
positions so far, d width of a head.
"""

from __future__ import annotations

import numpy as np

from fastserve.ops.blocks import Array

_vecdot = getattr(np, "vecdot", None)  # from NumPy 2.0 on


def layer_norm(
    x: Array, gamma: Array | None, beta: Array | None, eps: float, y: Array
) -> None:
    """Write y (D) from x (D); the formula is in ``ops/norm.py``."""
    np.subtract(x, x.mean(), out=y)
    rstd = 1.0 / np.sqrt(y.dot(y) / x.size + eps)
    np.multiply(y, x.dtype.type(rstd), out=y)
    if gamma is not None:
        np.multiply(y, gamma, out=y)
    if beta is not None:
        np.add(y, beta, out=y)


def rms_norm(x: Array, gamma: Array, eps: float, y: Array) -> None:
    """Write y (D) from x (D); the formula is in ``ops/norm.py``."""
    rstd = 1.0 / np.sqrt(x.dot(x) / x.size + eps)
    np.multiply(x, x.dtype.type(rstd), out=y)
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
    np.subtract(s, s.max(axis=-1, keepdims=True), out=s)
    np.exp(s, out=s)
    np.matmul(s, values, out=o)
    np.divide(o, s.sum(axis=-1, keepdims=True), out=o)


def table_product(table: Array, x: Array, y: Array) -> None:
    """Write y (rows) = table (rows, D) x.

    As a dot product for each row: BLAS' product with a matrix of long rows reaches
    half of the memory's bandwidth on some CPUs, its dot product all of it.
    """
    if _vecdot is None:
        np.matmul(table, x, out=y)
    else:
        _vecdot(table, x, out=y)
