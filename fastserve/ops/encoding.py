"""Indices as vectors with a place for each index."""

from __future__ import annotations

import numpy as np

from fastserve.ops.blocks import Array


def encode(
    rows: Array, indices: Array, out: Array, hot: bool, weights: Array | None = None
) -> None:
    """Write out (N, depth): 1 at the indices (M) of each row if ``hot``, else how often
    they come, or the sum of their weights (M). ``rows`` (M) says whose they are;
    indices below 0 are left out."""
    out.fill(0)
    places = rows * out.shape[1] + indices
    kept = indices >= 0
    flat = out.reshape(-1)
    if hot:
        flat[places[kept]] = 1
    else:
        added = out.dtype.type(1) if weights is None else weights[kept]
        np.add.at(flat, places[kept], added)
