"""Activations made of straight lines and parabolas, by Keras' names and constants.

``f(z, y)`` writes y, which may be z; ``f_gradient(dy, y, dx)`` writes dx from the
output, dx may be dy. At a kink the gradient is that of PyTorch: of the flat side.
"""

from __future__ import annotations

import numpy as np

from fastserve.ops.blocks import Array, room, spare, zeros

_BOOL = np.dtype(np.bool_)
_LEAK = 0.2
_SHRINK = 0.5


def _between(y: Array, low: float, high: float) -> Array:
    """Return where low < y < high."""
    kind = y.dtype.type
    inside = np.greater(y, kind(low), out=room(0, y.shape, _BOOL))
    below = np.less(y, kind(high), out=room(1, y.shape, _BOOL))
    return np.logical_and(inside, below, out=inside)


def relu(z: Array, y: Array) -> None:
    """max(z, 0); also Keras' threshold for its arguments 0 and 0."""
    np.maximum(z, zeros(z), out=y)


def relu_gradient(dy: Array, y: Array, dx: Array) -> None:
    """dy where y isn't 0. Bits times 0 or 1: faster by half than a product with bools,
    which NumPy converts piece by piece."""
    bits = np.dtype(f"u{y.itemsize}")
    kept = np.sign(y.view(bits), out=room(0, y.shape, bits))
    np.multiply(dy.view(bits), kept, out=dx.view(bits))


def relu6(z: Array, y: Array) -> None:
    """z between 0 and 6, and those beyond (Krizhevsky, 2010)."""
    np.clip(z, z.dtype.type(0), z.dtype.type(6), out=y)


def relu6_gradient(dy: Array, y: Array, dx: Array) -> None:
    np.multiply(dy, _between(y, 0, 6), out=dx)


def leaky_relu(z: Array, y: Array) -> None:
    """z above 0, 0.2 z below (Maas, Hannun, Ng, 2013)."""
    leak = np.multiply(z, z.dtype.type(_LEAK), out=spare(0, z))
    np.maximum(z, leak, out=y)


def leaky_relu_gradient(dy: Array, y: Array, dx: Array) -> None:
    kind = y.dtype.type
    above = np.greater(y, 0, out=room(0, y.shape, _BOOL))
    slope = np.multiply(above, kind(1 - _LEAK), out=spare(0, y))
    np.add(slope, kind(_LEAK), out=slope)
    np.multiply(dy, slope, out=dx)


def hard_sigmoid(z: Array, y: Array) -> None:
    """z / 6 + 1/2 within 0 and 1."""
    kind = z.dtype.type
    np.multiply(z, kind(1 / 6), out=y)
    np.add(y, kind(0.5), out=y)
    np.clip(y, kind(0), kind(1), out=y)


def hard_sigmoid_gradient(dy: Array, y: Array, dx: Array) -> None:
    np.multiply(dy, _between(y, 0, 1), out=dx)
    np.multiply(dx, y.dtype.type(1 / 6), out=dx)


def hard_silu(z: Array, y: Array) -> None:
    """z hard_sigmoid(z) (Howard et al., 2019)."""
    half = spare(0, z)
    hard_sigmoid(z, half)
    np.multiply(z, half, out=y)


def hard_silu_slope(z: Array, y: Array, slope: Array) -> None:
    """h + z / 6 where -3 < z < 3, and h beyond, with h = hard_sigmoid(z)."""
    h = spare(0, z)
    hard_sigmoid(z, h)
    np.multiply(z, h, out=y)
    inside = _between(z, -3, 3)
    np.multiply(z, inside, out=slope)
    np.multiply(slope, z.dtype.type(1 / 6), out=slope)
    np.add(slope, h, out=slope)


def hard_tanh(z: Array, y: Array) -> None:
    """z between -1 and 1, and those beyond."""
    np.clip(z, z.dtype.type(-1), z.dtype.type(1), out=y)


def hard_tanh_gradient(dy: Array, y: Array, dx: Array) -> None:
    np.multiply(dy, _between(y, -1, 1), out=dx)


def hard_shrink(z: Array, y: Array) -> None:
    """z where |z| > 1/2, else 0."""
    size = np.abs(z, out=spare(0, z))
    kept = np.greater(size, z.dtype.type(_SHRINK), out=room(0, z.shape, _BOOL))
    np.multiply(z, kept, out=y)


def soft_shrink(z: Array, y: Array) -> None:
    """z without its part between -1/2 and 1/2."""
    kind = z.dtype.type
    part = np.clip(z, kind(-_SHRINK), kind(_SHRINK), out=spare(0, z))
    np.subtract(z, part, out=y)


def shrink_gradient(dy: Array, y: Array, dx: Array) -> None:
    """Of both: 1 where something is left."""
    np.multiply(dy, np.not_equal(y, 0, out=room(0, y.shape, _BOOL)), out=dx)


def sparse_plus(z: Array, y: Array) -> None:
    """0 below -1, (z + 1)² / 4 up to 1, then z."""
    kind = z.dtype.type
    root = np.clip(z, kind(-1), kind(1), out=spare(0, z))
    np.add(root, kind(1), out=root)
    np.multiply(root, kind(0.5), out=root)
    np.multiply(root, root, out=root)
    np.maximum(z, root, out=y)


def sparse_plus_gradient(dy: Array, y: Array, dx: Array) -> None:
    slope = np.sqrt(y, out=spare(0, y))
    np.minimum(slope, y.dtype.type(1), out=slope)
    np.multiply(dy, slope, out=dx)


def sparse_sigmoid(z: Array, y: Array) -> None:
    """(z + 1) / 2 within 0 and 1; the derivative of sparse_plus."""
    kind = z.dtype.type
    np.multiply(z, kind(0.5), out=y)
    np.add(y, kind(0.5), out=y)
    np.clip(y, kind(0), kind(1), out=y)


def sparse_sigmoid_gradient(dy: Array, y: Array, dx: Array) -> None:
    np.multiply(dy, _between(y, 0, 1), out=dx)
    np.multiply(dx, y.dtype.type(0.5), out=dx)
