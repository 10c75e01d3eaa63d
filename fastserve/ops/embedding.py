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
    order = np.argsort(index, kind="stable")
    runs = index[order]
    starts = np.flatnonzero(np.diff(runs, prepend=-1))
    counts = np.diff(starts, append=runs.size)
    if not add:
        # most rows of a large table come once or never: those go to it at once
        dtable.fill(0)
        alone = counts == 1
        once = starts[alone]
        rows = runs[once]
        order = np.concatenate([order[once], order[np.repeat(~alone, counts)]])
        np.take(dy, order, axis=0, out=sorted_dy, mode="clip")
        dtable[rows] = sorted_dy[: len(rows)]
        runs, counts = runs[starts[~alone]], counts[~alone]
        ends = len(rows) + np.cumsum(counts)
    else:
        np.take(dy, order, axis=0, out=sorted_dy, mode="clip")
        runs, ends = runs[starts], starts + counts
    one = ones(index.size, dy.dtype)
    for row, count, end in zip(
        runs.tolist(), counts.tolist(), ends.tolist(), strict=True
    ):
        dtable[row] += one[:count] @ sorted_dy[end - count : end]
