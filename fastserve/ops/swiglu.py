"""The product of a gated layer, SwiGLU (Shazeer, "GLU variants", 2020).

h = silu(g) u,  silu(g) = g s,  s = 1 / (1 + exp(-g))
du = dh g s,  dg = dh u (s + g s (1 - s))
"""

from __future__ import annotations

import numpy as np

from fastserve.ops.blocks import FLAT, Array, spare
from fastserve.ops.smooth import sigmoid


def swiglu(g: Array, u: Array, h: Array) -> None:
    """Write h from g and u, all of one shape and contiguous."""
    g, u, h = g.reshape(-1), u.reshape(-1), h.reshape(-1)
    for i in range(0, g.size, FLAT):
        part = slice(i, i + FLAT)
        sigmoid(g[part], h[part])
        np.multiply(h[part], g[part], out=h[part])
        np.multiply(h[part], u[part], out=h[part])


def swiglu_backward(dh: Array, g: Array, u: Array, dg: Array, du: Array) -> None:
    """Write dg and du; s is computed again, which is cheaper than to keep it."""
    dh, g, u = dh.reshape(-1), g.reshape(-1), u.reshape(-1)
    dg, du = dg.reshape(-1), du.reshape(-1)
    for i in range(0, g.size, FLAT):
        part = slice(i, i + FLAT)
        dhp, slope, silu = dh[part], dg[part], du[part]
        s = spare(0, dhp)
        sigmoid(g[part], s)
        np.multiply(g[part], s, out=silu)
        np.subtract(1, s, out=slope)
        np.multiply(slope, silu, out=slope)
        np.add(slope, s, out=slope)
        np.multiply(slope, u[part], out=slope)
        np.multiply(slope, dhp, out=dg[part])
        np.multiply(silu, dhp, out=du[part])
