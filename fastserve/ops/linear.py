"""The affine map of a dense layer, and its gradients.

y = x W + b          x (N, I), W (I, O), b (O)
dW = xᵀ dy,  db = Σ dy,  dx = dy Wᵀ
"""

from __future__ import annotations

import numpy as np

from fastserve.ops.blocks import Array

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
