"""Rows of a table by index, and the gradient of the table."""

from __future__ import annotations

import numpy as np

from fastserve.ops.blocks import Array
from fastserve.ops.linear import ones


def embed(table: Array, index: Array, out: Array) -> None:
    """out (N, D) = table (V, D) at index (N)."""
    np.take(table, index, axis=0, out=out, mode="clip")


def embed_backward(
    dy: Array, index: Array, dtable: Array, sorted_dy: Array, add: bool
) -> None:
    """dtable (V, D) = sums of the rows of dy (N, D) by index (N); += if ``add``.

    The rows are brought together by a stable sort and summed run by run, so the order
    of summation, and with it every bit, depends on the indices alone.
    """
    if not add:
        dtable.fill(0)
    order = np.argsort(index, kind="stable")
    runs = index[order]
    starts = np.flatnonzero(np.diff(runs, prepend=-1))
    np.take(dy, order, axis=0, out=sorted_dy, mode="clip")
    ends = np.append(starts[1:], runs.size)
    one = ones(runs.size, dy.dtype)
    for row, start, end in zip(
        runs[starts].tolist(), starts.tolist(), ends.tolist(), strict=True
    ):
        if end - start == 1:
            dtable[row] += sorted_dy[start]
        else:
            dtable[row] += one[: end - start] @ sorted_dy[start:end]
