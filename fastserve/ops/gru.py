"""The steps of a GRU (Cho et al., 2014), with the reset gate after or before U.

    z, r = σ(...)      n = φ(x W + b + r (h' U + b'))     reset after the product
                       n = φ(x W + b + (r h') U)          reset before it
    h = z h' + (1 - z) n

Gates lie one after the other, each (B, H) contiguous: ``gates`` (3, B, H) holds z, r, n
and comes with x W + b. ``dz`` (B, 4 H) has the gradients of h' U + b', z, r and x W + b
of n in its columns, so that what x needs, z, r, n, and what h' needs lie side by side.

As in ``ops/lstm.py`` the weights of z and r come halved if σ is the sigmoid and φ tanh.

B batch, H units
"""

from __future__ import annotations

import numpy as np

from fastserve.ops.blocks import Array
from fastserve.ops.lstm import Functions, apply


def open_gates(functions: Functions, fast: bool, zr: Array, slopes: Array) -> None:
    """Apply σ to zr (2, B, H) in place."""
    if not fast:
        apply(functions[1], zr, slopes)
        return
    half = zr.dtype.type(0.5)
    np.tanh(zr, out=zr)
    np.multiply(zr, half, out=zr)
    np.add(zr, half, out=zr)


def mix(
    functions: Functions,
    fast: bool,
    gates: Array,
    before: Array,
    h: Array,
    work: Array,
    slope: Array,
) -> None:
    """Apply φ to n in place and write h (B, H), which isn't ``before``, h'."""
    z, _, n = gates
    if fast:
        np.tanh(n, out=n)
    else:
        apply(functions[0], n, slope)
    np.subtract(before, n, out=work)
    np.multiply(work, z, out=work)
    np.add(work, n, out=h)


def mix_backward(
    functions: Functions,
    fast: bool,
    gates: Array,
    before: Array,
    dh: Array,
    dz: Array,
    work: Array,
    slopes: Array,
) -> tuple[Array, Array]:
    """Write the columns of z and n; return the share of h' in dh, and dn, both in
    work (4, B, H)."""
    z, _, n = gates
    share, dn, a, b = work
    _, dz_z, _, dz_n = columns(dz)
    np.multiply(dh, z, out=share)
    np.subtract(before, n, out=a)
    if fast:
        np.multiply(a, share, out=a)
        np.multiply(a, z, out=b)
        np.subtract(a, b, out=dz_z)
        np.subtract(dh, share, out=dn)
        np.multiply(n, n, out=a)
        np.multiply(a, dn, out=a)
        np.subtract(dn, a, out=dn)
    else:
        inner, sigma = functions
        np.multiply(a, dh, out=a)
        sigma.backward(a, slopes[0] if sigma.needs_slope else z, a)
        dz_z[...] = a
        np.subtract(dh, share, out=dn)
        inner.backward(dn, slopes[2] if inner.needs_slope else n, dn)
    dz_n[...] = dn
    return share, dn


def reset_backward(
    functions: Functions,
    fast: bool,
    gates: Array,
    drh: Array,
    other: Array,
    dz_r: Array,
    work: Array,
    slopes: Array,
) -> None:
    """Write the column of r, for n of r * other; drh is the gradient of that times r
    if ``fast``, else of that alone. drh is overwritten."""
    r = gates[1]
    np.multiply(drh, other, out=drh)
    if fast:
        np.multiply(drh, r, out=work)
        np.subtract(drh, work, out=dz_r)
        return
    sigma = functions[1]
    sigma.backward(drh, slopes[1] if sigma.needs_slope else r, drh)
    dz_r[...] = drh


def columns(dz: Array) -> Array:
    """Return dz (B, 4 H) as its gates (4, B, H)."""
    by_gate: Array = dz.reshape(len(dz), 4, -1).transpose(1, 0, 2)
    return by_gate
