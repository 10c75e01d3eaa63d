"""Activations made of exponentials and roots, by Keras' names and constants.

``f(z, y)`` writes y, which may be z. ``f_gradient(dy, y, dx)`` writes dx from the
output; dx may be dy. ``f_slope(z, y, slope)`` writes y and dy/dz; slope may be z.
Nothing overflows: what is raised or squared is bounded first where it has to be.
"""

from __future__ import annotations

import math

import numpy as np

from fastserve.ops.blocks import Array, room, spare
from fastserve.ops.erf import erf

# -- from the output ---------------------------------------------------------------


def sigmoid(z: Array, y: Array) -> None:
    """1 / (1 + exp(-z)) as (1 + tanh(z / 2)) / 2, which can't overflow."""
    half = z.dtype.type(0.5)
    np.multiply(z, half, out=y)
    np.tanh(y, out=y)
    np.multiply(y, half, out=y)
    np.add(y, half, out=y)


def sigmoid_gradient(dy: Array, y: Array, dx: Array) -> None:
    slope = np.subtract(1, y, out=spare(0, y))
    np.multiply(slope, y, out=slope)
    np.multiply(dy, slope, out=dx)


def tanh(z: Array, y: Array) -> None:
    np.tanh(z, out=y)


def tanh_gradient(dy: Array, y: Array, dx: Array) -> None:
    slope = np.multiply(y, y, out=spare(0, y))
    np.subtract(1, slope, out=slope)
    np.multiply(dy, slope, out=dx)


def exponential(z: Array, y: Array) -> None:
    """exp(z), which is infinite for a large z, as in Keras."""
    with np.errstate(over="ignore"):
        np.exp(z, out=y)


def exponential_gradient(dy: Array, y: Array, dx: Array) -> None:
    np.multiply(dy, y, out=dx)


def softplus(z: Array, y: Array) -> None:
    """log(1 + exp(z)) as max(z, 0) + log(1 + exp(-|z|))."""
    rest = _log1p_exp(z)
    np.maximum(z, z.dtype.type(0), out=y)
    np.add(y, rest, out=y)


def softplus_gradient(dy: Array, y: Array, dx: Array) -> None:
    """sigmoid(z) = 1 - exp(-y)"""
    slope = np.negative(y, out=spare(0, y))
    np.expm1(slope, out=slope)
    np.negative(slope, out=slope)
    np.multiply(dy, slope, out=dx)


def log_sigmoid(z: Array, y: Array) -> None:
    """-softplus(-z)"""
    rest = _log1p_exp(z)
    np.minimum(z, z.dtype.type(0), out=y)
    np.subtract(y, rest, out=y)


def log_sigmoid_gradient(dy: Array, y: Array, dx: Array) -> None:
    """1 - sigmoid(z) = 1 - exp(y)"""
    slope = np.expm1(y, out=spare(0, y))
    np.negative(slope, out=slope)
    np.multiply(dy, slope, out=dx)


def _log1p_exp(z: Array) -> Array:
    """log(1 + exp(-|z|))"""
    rest = np.abs(z, out=spare(0, z))
    np.negative(rest, out=rest)
    np.exp(rest, out=rest)
    return np.log1p(rest, out=rest)


def softsign(z: Array, y: Array) -> None:
    """z / (1 + |z|)"""
    size = np.abs(z, out=spare(0, z))
    np.add(size, z.dtype.type(1), out=size)
    np.divide(z, size, out=y)


def softsign_gradient(dy: Array, y: Array, dx: Array) -> None:
    """1 / (1 + |z|)² = (1 - |y|)²"""
    slope = np.abs(y, out=spare(0, y))
    np.subtract(1, slope, out=slope)
    np.multiply(slope, slope, out=slope)
    np.multiply(dy, slope, out=dx)


def elu(z: Array, y: Array) -> None:
    """z above 0, exp(z) - 1 below (Clevert et al., 2016); celu, too, for alpha 1."""
    below = np.minimum(z, z.dtype.type(0), out=spare(0, z))
    np.expm1(below, out=below)
    np.maximum(z, below, out=y)


def elu_gradient(dy: Array, y: Array, dx: Array) -> None:
    """1 above 0, y + 1 below"""
    slope = np.minimum(y, y.dtype.type(0), out=spare(0, y))
    np.add(slope, y.dtype.type(1), out=slope)
    np.multiply(dy, slope, out=dx)


# Klambauer et al., "Self-normalizing neural networks", 2017
_SELU_SCALE = 1.0507009873554805
_SELU_BELOW = 1.0507009873554805 * 1.6732632423543772


def selu(z: Array, y: Array) -> None:
    """1.0507 z above 0, 1.0507 · 1.6733 (exp(z) - 1) below."""
    kind = z.dtype.type
    below = np.minimum(z, kind(0), out=spare(0, z))
    np.expm1(below, out=below)
    np.multiply(below, kind(_SELU_BELOW), out=below)
    above = np.maximum(z, kind(0), out=spare(1, z))
    np.multiply(above, kind(_SELU_SCALE), out=above)
    np.add(above, below, out=y)


def selu_gradient(dy: Array, y: Array, dx: Array) -> None:
    kind = y.dtype.type
    above = np.greater(y, 0, out=room(0, y.shape, np.dtype(np.bool_)))
    slope = np.multiply(above, kind(_SELU_SCALE - _SELU_BELOW), out=spare(0, y))
    np.add(slope, kind(_SELU_BELOW), out=slope)
    below = np.minimum(y, kind(0), out=spare(1, y))
    np.add(slope, below, out=slope)
    np.multiply(dy, slope, out=dx)


# -- with a slope ------------------------------------------------------------------


def silu(z: Array, y: Array) -> None:
    """z sigmoid(z) (Ramachandran et al., 2017); swish, too."""
    h = spare(0, z)
    sigmoid(z, h)
    np.multiply(z, h, out=y)


def silu_slope(z: Array, y: Array, slope: Array) -> None:
    """y = z h and y' = h + y (1 - h)."""
    h, rest = spare(0, z), spare(1, z)
    sigmoid(z, h)
    np.multiply(z, h, out=y)
    np.subtract(1, h, out=rest)
    np.multiply(rest, y, out=rest)
    np.add(h, rest, out=slope)


def _mish_parts(z: Array) -> tuple[Array, Array, Array]:
    """Return min(z, 20), w = exp(z) and n = w (w + 2).

    tanh(log(1 + w)) = n / (n + 2); from z = 20 on it is 1 in float64, too.
    """
    c = np.minimum(z, z.dtype.type(20), out=spare(0, z))
    w = np.exp(c, out=spare(1, z))
    n = np.add(w, z.dtype.type(2), out=spare(2, z))
    return c, w, np.multiply(n, w, out=n)


def mish(z: Array, y: Array) -> None:
    """z tanh(softplus(z)) (Misra, 2019)."""
    _, w, n = _mish_parts(z)
    np.add(n, z.dtype.type(2), out=w)
    np.divide(n, w, out=n)
    np.multiply(z, n, out=y)


def mish_slope(z: Array, y: Array, slope: Array) -> None:
    """y' = t + z 4 w (1 + w) / (n + 2)² with t = n / (n + 2)."""
    kind = z.dtype.type
    c, w, n = _mish_parts(z)
    m = np.add(n, kind(2), out=spare(3, z))
    t = np.divide(n, m, out=n)
    np.multiply(z, t, out=y)
    np.multiply(c, w, out=c)
    np.divide(c, m, out=c)
    np.add(w, kind(1), out=w)
    np.multiply(c, w, out=c)
    np.divide(c, m, out=c)
    np.multiply(c, kind(4), out=c)
    np.add(c, t, out=slope)


def tanh_shrink(z: Array, y: Array) -> None:
    """z - tanh(z)"""
    np.subtract(z, np.tanh(z, out=spare(0, z)), out=y)


def tanh_shrink_slope(z: Array, y: Array, slope: Array) -> None:
    """tanh(z)²"""
    t = np.tanh(z, out=spare(0, z))
    np.subtract(z, t, out=y)
    np.multiply(t, t, out=slope)


def _squareplus_parts(z: Array, y: Array) -> Array:
    """Write y = (z + sqrt(z² + 4)) / 2 and return the root.

    With m = (|z| + root) / 2 it is m or, where z is negative, 1 / m: without a
    difference of large numbers, max(z, 0) + 1 / m.
    """
    half = z.dtype.type(0.5)
    root = np.hypot(z, z.dtype.type(2), out=spare(0, z))
    m = np.abs(z, out=spare(1, z))
    np.multiply(m, half, out=m)
    other = np.multiply(root, half, out=spare(2, z))
    np.add(m, other, out=m)
    np.divide(1, m, out=m)
    np.maximum(z, z.dtype.type(0), out=y)
    np.add(y, m, out=y)
    return root


def squareplus(z: Array, y: Array) -> None:
    """(z + sqrt(z² + 4)) / 2 (Barron, 2021)."""
    _squareplus_parts(z, y)


def squareplus_slope(z: Array, y: Array, slope: Array) -> None:
    """y / sqrt(z² + 4)"""
    np.divide(y, _squareplus_parts(z, y), out=slope)


def _gelu_half(z: Array) -> Array:
    """Return h = (1 + erf(z / sqrt(2))) / 2, the normal distribution's integral."""
    h = np.multiply(z, z.dtype.type(math.sqrt(0.5)), out=spare(0, z))
    erf(h, h)
    np.multiply(h, z.dtype.type(0.5), out=h)
    return np.add(h, z.dtype.type(0.5), out=h)


def gelu(z: Array, y: Array) -> None:
    """z (1 + erf(z / sqrt(2))) / 2 (Hendrycks, Gimpel, 2016)."""
    np.multiply(z, _gelu_half(z), out=y)


def gelu_slope(z: Array, y: Array, slope: Array) -> None:
    """y = z h and y' = h + z exp(-z² / 2) / sqrt(2 pi)."""
    kind = z.dtype.type
    h = _gelu_half(z)
    np.multiply(z, h, out=y)
    c = np.clip(z, kind(-13), kind(13), out=spare(1, z))
    density = np.multiply(c, c, out=spare(2, z))
    np.multiply(density, kind(-0.5), out=density)
    np.exp(density, out=density)
    np.multiply(density, kind(1 / math.sqrt(2 * math.pi)), out=density)
    np.multiply(density, c, out=density)
    np.add(density, h, out=slope)


_GELU_A = math.sqrt(2 / math.pi)
_GELU_B = 0.044715


def _gelu_tanh_half(z: Array) -> tuple[Array, Array]:
    """Return (z², h) with h = (1 + tanh(a (z + b z³))) / 2."""
    kind = z.dtype.type
    square = np.multiply(z, z, out=spare(0, z))
    h = np.multiply(square, kind(_GELU_A * _GELU_B), out=spare(1, z))
    np.add(h, kind(_GELU_A), out=h)
    np.multiply(h, z, out=h)
    np.tanh(h, out=h)
    np.multiply(h, kind(0.5), out=h)
    np.add(h, kind(0.5), out=h)
    return square, h


def gelu_tanh(z: Array, y: Array) -> None:
    """GELU's tanh form (Hendrycks, Gimpel, 2016): z (1 + tanh(a (z + b z³))) / 2."""
    _, h = _gelu_tanh_half(z)
    np.multiply(z, h, out=y)


def gelu_tanh_slope(z: Array, y: Array, slope: Array) -> None:
    """y = z h and y' = h + 2 a (1 + 3 b z²) y (1 - h)."""
    kind = z.dtype.type
    square, h = _gelu_tanh_half(z)
    np.multiply(z, h, out=y)
    np.multiply(square, kind(6 * _GELU_A * _GELU_B), out=square)
    np.add(square, kind(2 * _GELU_A), out=square)
    np.multiply(square, y, out=square)
    np.add(h, square, out=slope)
    np.multiply(square, h, out=square)
    np.subtract(slope, square, out=slope)
