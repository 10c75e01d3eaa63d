"""Layer normalisation (Ba, Kiros, Hinton: "Layer normalization", 2016).

    h = (x - mean(x)) / sqrt(var(x) + eps),  y = gamma h + beta     over the last axis
    dgamma = Σ dy h,  dbeta = Σ dy
    dx = (dy gamma - mean(dy gamma) - h mean(dy gamma h)) / sqrt(var(x) + eps)

RMS normalisation (Zhang, Sennrich: "Root mean square layer normalization", 2019).

    h = x / sqrt(mean(x²) + eps),  y = gamma h
    dgamma = Σ dy h,  dx = (dy gamma - h mean(dy gamma h)) / sqrt(mean(x²) + eps)

Sums over a row are products with a vector, which BLAS does faster than NumPy's sum.
"""

from __future__ import annotations

import numpy as np

from fastserve.ops.blocks import FLAT, Array, row_blocks, spare
from fastserve.ops.linear import ones


def layer_norm(
    x: Array,
    gamma: Array | None,
    beta: Array | None,
    eps: float,
    y: Array,
    h: Array,
    rstd: Array,
) -> None:
    """Write y, h (N, D) and rstd (N) from x (N, D); h and rstd serve backward."""
    n, d = x.shape
    one = ones(d, x.dtype)
    per_column = x.dtype.type(1.0 / d)
    eps = x.dtype.type(eps)
    for rows in row_blocks(n, d, FLAT):
        xr, hr, yr, rr = x[rows], h[rows], y[rows], rstd[rows]
        np.matmul(xr, one, out=rr)
        np.multiply(rr, per_column, out=rr)
        np.subtract(xr, rr[:, None], out=hr)
        np.einsum("ij,ij->i", hr, hr, out=rr)
        np.multiply(rr, per_column, out=rr)
        np.add(rr, eps, out=rr)
        np.sqrt(rr, out=rr)
        np.divide(one[0], rr, out=rr)
        np.multiply(hr, rr[:, None], out=hr)
        scaled = hr
        if gamma is not None:
            scaled = np.multiply(hr, gamma, out=yr)
        if beta is not None:
            scaled = np.add(scaled, beta, out=yr)
        if scaled is hr:
            yr[...] = hr


def layer_norm_backward(
    dy: Array,
    h: Array,
    rstd: Array,
    gamma: Array,
    dgamma: Array,
    dbeta: Array,
    dx: Array,
) -> None:
    """Write dgamma, dbeta (D) and dx (N, D)."""
    n, d = dy.shape
    dgamma.fill(0)
    dbeta.fill(0)
    per_column = np.multiply(gamma, dy.dtype.type(1.0 / d))
    for rows in row_blocks(n, d, FLAT):
        dyr, hr, dxr = dy[rows], h[rows], dx[rows]
        dyh = np.multiply(dyr, hr, out=spare(0, dyr))
        one = ones(len(dyr), dy.dtype)
        np.add(dgamma, one @ dyh, out=dgamma)
        np.add(dbeta, one @ dyr, out=dbeta)
        mean_dyh = dyh @ per_column
        mean_dy = dyr @ per_column
        np.multiply(dyr, gamma, out=dxr)
        np.subtract(dxr, mean_dy[:, None], out=dxr)
        np.multiply(hr, mean_dyh[:, None], out=dyh)
        np.subtract(dxr, dyh, out=dxr)
        np.multiply(dxr, rstd[rows, None], out=dxr)


def rms_norm(x: Array, gamma: Array, eps: float, y: Array, rstd: Array) -> None:
    """Write y (N, D) and rstd (N) from x (N, D); x and rstd serve backward."""
    n, d = x.shape
    for rows in row_blocks(n, d, FLAT):
        xr, yr, rr = x[rows], y[rows], rstd[rows]
        np.einsum("ij,ij->i", xr, xr, out=rr)
        np.multiply(rr, x.dtype.type(1.0 / d), out=rr)
        np.add(rr, x.dtype.type(eps), out=rr)
        np.sqrt(rr, out=rr)
        np.divide(x.dtype.type(1), rr, out=rr)
        np.multiply(xr, rr[:, None], out=yr)
        np.multiply(yr, gamma, out=yr)


def rms_norm_backward(
    dy: Array, x: Array, rstd: Array, gamma: Array, dgamma: Array, dx: Array
) -> None:
    """Write dgamma (D) and dx (N, D)."""
    n, d = dy.shape
    dgamma.fill(0)
    per_column = np.multiply(gamma, dy.dtype.type(1.0 / d))
    for rows in row_blocks(n, d, FLAT):
        dyr, dxr, rr = dy[rows], dx[rows], rstd[rows, None]
        h = np.multiply(x[rows], rr, out=spare(0, dyr))
        dyh = np.multiply(dyr, h, out=spare(1, dyr))
        np.add(dgamma, ones(len(dyr), dy.dtype) @ dyh, out=dgamma)
        mean_dyh = dyh @ per_column
        np.multiply(dyr, gamma, out=dxr)
        np.multiply(h, mean_dyh[:, None], out=h)
        np.subtract(dxr, h, out=dxr)
        np.multiply(dxr, rr, out=dxr)
