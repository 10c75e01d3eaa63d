"""Softmax over the last axis, its logarithm, and sparsemax.

softmax      y = exp(x - max x) / Σ exp(x - max x)     dx = y (dy - Σ dy y)
log_softmax  y = x - max x - log Σ exp(x - max x)      dx = dy - exp(y) Σ dy
sparsemax    y = max(x - tau, 0), so that Σ y = 1      dx = s (dy - Σ dy s / Σ s)

with s = 1 where y is above 0 (Martins, Astudillo, "From softmax to sparsemax", 2016).
All arrays are (N, C); y may be x, and dx may be dy.
"""

from __future__ import annotations

import numpy as np

from fastserve.ops.blocks import Array, room, row_blocks, spare
from fastserve.ops.linear import ones

_BOOL = np.dtype(np.bool_)


def softmax(x: Array, y: Array) -> None:
    for rows in row_blocks(x.shape[0], x.shape[1]):
        yr = y[rows]
        np.subtract(x[rows], x[rows].max(axis=1, keepdims=True), out=yr)
        np.exp(yr, out=yr)
        np.divide(yr, yr.sum(axis=1, keepdims=True), out=yr)


def softmax_backward(dy: Array, y: Array, dx: Array) -> None:
    for rows in row_blocks(y.shape[0], y.shape[1]):
        yr, dyr = y[rows], dy[rows]
        dot = np.einsum("ij,ij->i", dyr, yr)
        np.subtract(dyr, dot[:, None], out=dx[rows])
        np.multiply(dx[rows], yr, out=dx[rows])


def log_softmax(x: Array, y: Array) -> None:
    for rows in row_blocks(x.shape[0], x.shape[1]):
        yr = y[rows]
        np.subtract(x[rows], x[rows].max(axis=1, keepdims=True), out=yr)
        total = np.exp(yr, out=spare(0, yr)).sum(axis=1, keepdims=True)
        np.subtract(yr, np.log(total, out=total), out=yr)


def log_softmax_backward(dy: Array, y: Array, dx: Array) -> None:
    for rows in row_blocks(y.shape[0], y.shape[1]):
        dyr = dy[rows]
        total = dyr @ ones(y.shape[1], y.dtype)
        part = np.exp(y[rows], out=spare(0, dyr))
        np.multiply(part, total[:, None], out=part)
        np.subtract(dyr, part, out=dx[rows])


def sparsemax(x: Array, y: Array) -> None:
    for rows in row_blocks(x.shape[0], x.shape[1]):
        yr = y[rows]
        np.subtract(x[rows], x[rows].max(axis=1, keepdims=True), out=yr)
        np.subtract(yr, _threshold(yr)[:, None], out=yr)
        np.maximum(yr, yr.dtype.type(0), out=yr)


def _threshold(x: Array) -> Array:
    """Return tau (N) for rows whose largest entry is 0.

    The k largest entries stay, for the largest k with 1 + k x_k > Σ x_1..k.
    """
    falling = np.negative(x, out=spare(0, x))
    falling.sort(axis=1)
    np.negative(falling, out=falling)
    sums = np.cumsum(falling, axis=1, out=spare(1, x))
    np.multiply(falling, np.arange(1, x.shape[1] + 1, dtype=x.dtype), out=falling)
    np.add(falling, x.dtype.type(1), out=falling)
    stay = np.greater(falling, sums, out=room(0, x.shape, _BOOL))
    count = np.count_nonzero(stay, axis=1)
    tau = sums[np.arange(len(x)), count - 1]
    np.subtract(tau, x.dtype.type(1), out=tau)
    return np.divide(tau, count.astype(x.dtype), out=tau)


def sparsemax_backward(dy: Array, y: Array, dx: Array) -> None:
    one = ones(y.shape[1], y.dtype)
    for rows in row_blocks(y.shape[0], y.shape[1]):
        dyr, dxr = dy[rows], dx[rows]
        support = np.greater(y[rows], 0, out=room(0, dyr.shape, _BOOL))
        inside = spare(0, dyr)
        np.copyto(inside, support)
        count = inside @ one
        mean = np.einsum("ij,ij->i", dyr, inside)
        np.divide(mean, count, out=mean)
        np.subtract(dyr, mean[:, None], out=dxr)
        np.multiply(dxr, inside, out=dxr)
