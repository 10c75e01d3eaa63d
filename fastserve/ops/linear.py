"""The affine map of a dense layer, and its gradients.

y = x W + b          x (N, I), W (I, O), b (O)
dW = xᵀ dy,  db = Σ dy,  dx = dy Wᵀ
"""

from __future__ import annotations

import numpy as np

from fastserve.ops.blocks import Array, room

PRODUCT = 1 << 19  # elements of a piece of a product: 2 MB of float32
_ONES: dict[np.dtype[np.generic], Array] = {}


def ones(count: int, dtype: np.dtype[np.generic]) -> Array:
    """Return a vector of ones, kept: a sum as a product with it runs on BLAS."""
    kept = _ONES.get(dtype)
    if kept is None or kept.size < count:
        kept = _ONES[dtype] = np.ones(count, dtype)
        kept.flags.writeable = False
    return kept[:count]


def sum_rows(dy: Array, out: Array) -> None:
    """out (O) = sum of the rows of dy (N, O)."""
    np.matmul(ones(dy.shape[0], dy.dtype), dy, out=out)


def add_product(a: Array, b: Array, out: Array) -> None:
    """out (I, O) += aᵀ b, for a (N, I) and b (N, O).

    A piece of the product at a time, which is added while it is in the cache.
    """
    columns = out.shape[1] > out.shape[0]
    short, long = sorted(out.shape)
    step = max(1, PRODUCT // max(1, short))
    for start in range(0, long, step):
        piece = slice(start, min(start + step, long))
        left, right = (a, b[:, piece]) if columns else (a[:, piece], b)
        part = out[:, piece] if columns else out[piece]
        product = np.matmul(left.T, right, out=room(2, part.shape, part.dtype))
        np.add(part, product, out=part)
