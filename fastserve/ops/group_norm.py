"""Group normalisation (Wu, He: "Group normalization", 2018).

    h = (x - mean) / sqrt(var + eps),  y = gamma h + beta
    dx = (g - mean(g) - h mean(g h)) / sqrt(var + eps)  with g = gamma dy
    dgamma = Σ dy h,  dbeta = Σ dy

Shapes: x, dy (B, S, C) with S positions and C channels in G groups; means are over
the S C / G numbers of a group of a sample.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from fastserve.ops.blocks import FLAT, Array, spare
from fastserve.ops.linear import ones


def group_norm(
    x: Array,
    groups: int,
    gamma: Array | None,
    beta: Array | None,
    eps: float,
    y: Array,
    mean: Array,
    rstd: Array,
) -> None:
    """Write y (B, S, C), and for backward mean and rstd (B, C), alike in a group."""
    for part in _samples(x):
        xp, yp = x[part], y[part]
        mean[part] = _group_means(_sums(xp), groups, xp.shape[1])
        np.subtract(xp, mean[part, None], out=yp)
        square = np.multiply(yp, yp, out=spare(0, yp))
        variance = _group_means(_sums(square), groups, xp.shape[1])
        np.divide(1, np.sqrt(variance + x.dtype.type(eps)), out=rstd[part])
        factor = rstd[part] if gamma is None else rstd[part] * gamma
        np.multiply(yp, factor[:, None], out=yp)
        if beta is not None:
            np.add(yp, beta, out=yp)


def group_norm_backward(
    dy: Array,
    x: Array,
    groups: int,
    gamma: Array | None,
    mean: Array,
    rstd: Array,
    dgamma: Array,
    dbeta: Array,
    dx: Array,
) -> None:
    """Write dgamma, dbeta (C) and dx (B, S, C)."""
    dgamma.fill(0)
    dbeta.fill(0)
    scale = ones(x.shape[2], x.dtype) if gamma is None else gamma
    for part in _samples(x):
        dyp, dxp, r = dy[part], dx[part], rstd[part]
        h = np.subtract(x[part], mean[part, None], out=spare(0, dyp))
        np.multiply(h, r[:, None], out=h)
        sums = _sums(dyp)
        sums_h = _sums(np.multiply(dyp, h, out=spare(1, dyp)))
        np.add(dbeta, sums.sum(axis=0), out=dbeta)
        np.add(dgamma, sums_h.sum(axis=0), out=dgamma)
        first = _group_means(sums * scale, groups, dyp.shape[1])
        second = _group_means(sums_h * scale, groups, dyp.shape[1])
        np.multiply(dyp, (r * scale)[:, None], out=dxp)
        np.multiply(h, (r * second)[:, None], out=h)
        np.add(h, (r * first)[:, None], out=h)
        np.subtract(dxp, h, out=dxp)


def _samples(x: Array) -> Iterator[slice]:
    step = max(1, FLAT // max(1, math.prod(x.shape[1:])))
    for start in range(0, len(x), step):
        yield slice(start, min(len(x), start + step))


def _sums(x: Array) -> Array:
    """Return the sums over positions (B, C) of x (B, S, C)."""
    total: Array = np.matmul(ones(x.shape[1], x.dtype), x)
    return total


def _group_means(sums: Array, groups: int, positions: int) -> Array:
    """Return (B, C) the means of the groups, for sums over positions (B, C)."""
    batch, channels = sums.shape
    size = channels // groups
    means = sums.reshape(batch, groups, size).sum(axis=2, keepdims=True)
    means *= sums.dtype.type(1 / (size * positions))
    return np.broadcast_to(means, (batch, groups, size)).reshape(batch, channels)
