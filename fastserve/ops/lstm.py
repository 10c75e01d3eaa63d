"""The steps of an LSTM (Hochreiter, Schmidhuber, 1997; Gers et al., 2000).

    i, f, o = σ(z_i), σ(z_f), σ(z_o)      g = φ(z_c)      z = [h' | 1 | x] [U; b; W]
    c = f c' + i g                        h = o φ(c)

Everything lies gate by gate, so that each gate of a step is contiguous: ``gates``
(5, B, H) holds i, f, o, g, and then c' from the step before, where i, f and g, c' are
pairs that one multiplication takes. ``dz`` (B, 4 H) has the same order of gates in its
columns: it is the left side of the products that follow.

With σ the sigmoid and φ tanh, σ(z) = (tanh(z / 2) + 1) / 2: the weights of i, f, o come
halved, and one call of tanh does all four gates.

B batch, H units
"""

from __future__ import annotations

import numpy as np

from fastserve.ops.activations import Activation
from fastserve.ops.blocks import Array

ORDER = (0, 1, 3, 2)  # i, f, o, g among Keras' columns i, f, c, o
Functions = tuple[Activation, Activation]  # φ, σ


def usual(functions: Functions) -> bool:
    return [f.name for f in functions] == ["tanh", "sigmoid"]


def apply(function: Activation, z: Array, slope: Array | None) -> None:
    """Write function(z) to z, and its derivative to ``slope`` if it needs one."""
    if slope is None or not function.needs_slope:
        function.forward(z, z)
        return
    np.copyto(slope, z)
    function.forward(slope, z, slope)


def step(gates: Array, c: Array, h: Array, work: Array) -> None:
    """Write c and h (B, H) from z, which is in work (4, B, H), and from c' in gates
    (5, B, H), which also get i, f, o, g. ``c`` may be that c'."""
    half = gates.dtype.type(0.5)
    np.tanh(work, out=gates[:4])  # work is in the cache, gates are not
    sigmoids = gates[:3]
    np.multiply(sigmoids, half, out=sigmoids)
    np.add(sigmoids, half, out=sigmoids)
    np.multiply(gates[:2], gates[3:], out=work[:2])
    np.add(work[0], work[1], out=c)
    np.tanh(c, out=work[0])
    np.multiply(gates[2], work[0], out=h)


def step_backward(
    gates: Array, c: Array, dh: Array, dc: Array, dz: Array, work: Array
) -> None:
    """Write dz (B, 4 H); dc, of c, becomes that of c'. dh, dc are (B, H).

    The derivative of a sigmoid s is s - s², that of tanh 1 - tanh².
    """
    i, f, o, g, _ = gates
    a, b, u, v = work
    dz = dz.reshape(len(dz), 4, -1).transpose(1, 0, 2)
    np.tanh(c, out=a)
    np.multiply(o, a, out=b)  # h
    np.multiply(b, dh, out=u)
    np.multiply(u, o, out=v)
    np.subtract(u, v, out=dz[2])
    np.multiply(b, a, out=b)
    np.subtract(o, b, out=b)  # o (1 - tanh² c)
    np.multiply(b, dh, out=b)
    np.add(dc, b, out=dc)
    pair = work[:2]
    np.multiply(gates[:2], gates[3:], out=pair)  # i g, f c'
    np.multiply(a, g, out=u)
    np.subtract(i, u, out=u)
    np.multiply(u, dc, out=dz[3])
    np.multiply(pair, dc, out=pair)
    np.multiply(pair, gates[:2], out=work[2:])
    np.subtract(pair, work[2:], out=dz[:2])
    np.multiply(dc, f, out=dc)


def step_of(
    functions: Functions, gates: Array, c: Array, h: Array, work: Array, slopes: Array
) -> None:
    """``step`` for any functions, with z in ``gates``; slopes (5, B, H) keeps their
    derivatives in i, f, o, g and φ(c)."""
    inner, sigma = functions
    apply(sigma, gates[:3], slopes[:3])
    apply(inner, gates[3], slopes[3])
    np.multiply(gates[:2], gates[3:], out=work[:2])
    np.add(work[0], work[1], out=c)
    inner.forward(c, work[0], slopes[4])
    np.multiply(gates[2], work[0], out=h)


def step_backward_of(
    functions: Functions,
    gates: Array,
    c: Array,
    dh: Array,
    dc: Array,
    dz: Array,
    work: Array,
    slopes: Array,
) -> None:
    """``step_backward`` for any functions."""
    inner, sigma = functions
    i, f, o, g, _ = gates
    a, b = work[:2]
    dz = dz.reshape(len(dz), 4, -1).transpose(1, 0, 2)
    inner.forward(c, a)
    np.multiply(dh, o, out=b)
    inner.backward(b, slopes[4] if inner.needs_slope else a, b)
    np.add(dc, b, out=dc)
    saved = slopes if sigma.needs_slope else gates
    np.multiply(dh, a, out=a)
    sigma.backward(a, saved[2], a)
    dz[2] = a
    np.multiply(gates[3:], dc, out=work[:2])
    sigma.backward(work[:2], saved[:2], work[:2])
    dz[:2] = work[:2]
    np.multiply(dc, i, out=a)
    inner.backward(a, slopes[3] if inner.needs_slope else g, a)
    dz[3] = a
    np.multiply(dc, f, out=dc)
