"""Softmax over the last axis.

    y = exp(x - max x) / Σ exp(x - max x)
    dx = y (dy - Σ dy y)
"""

from __future__ import annotations

import numpy as np

from fastserve.ops.blocks import Array, row_blocks


def softmax(x: Array, y: Array) -> None:
    """y (N, C) = softmax of the rows of x (N, C); y may be x."""
    for rows in row_blocks(*x.shape):
        yr = y[rows]
        np.subtract(x[rows], x[rows].max(axis=1, keepdims=True), out=yr)
        np.exp(yr, out=yr)
        np.divide(yr, yr.sum(axis=1, keepdims=True), out=yr)


def softmax_backward(dy: Array, y: Array, dx: Array) -> None:
    """dx (N, C) from dy and y (N, C)."""
    for rows in row_blocks(*y.shape):
        yr, dyr = y[rows], dy[rows]
        dot = np.einsum("ij,ij->i", dyr, yr)
        np.subtract(dyr, dot[:, None], out=dx[rows])
        np.multiply(dx[rows], yr, out=dx[rows])
