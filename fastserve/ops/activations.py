"""Activation functions by Keras' names, with their derivatives.

Each is one of two kinds. Where the derivative follows from the output (relu, tanh,
sigmoid, softmax ...), nothing but the output is kept and the input may be overwritten.
Where it doesn't (gelu, silu ...), forward computes the derivative on the way, while the
input is in the cache, and ``slope`` keeps it, so that backward is one product.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from fastserve.errors import UnknownNameError
from fastserve.ops.blocks import FLAT, Array, as_rows, spare
from fastserve.ops.softmax import softmax, softmax_backward


@dataclass(frozen=True)
class Activation:
    """A function and its derivative; see the module's docstring for the two kinds.

    Attributes:
        value: ``value(z, y)`` writes y; y may be z.
        gradient: ``gradient(dy, y, dx)`` writes dx from the output; dx may be dy.
        value_slope: ``value_slope(z, y, slope)`` writes y and dy/dz; slope may be z.
        rows: the function mixes the last axis (softmax), so it gets whole rows.
    """

    name: str
    value: Callable[[Array, Array], object]
    gradient: Callable[[Array, Array, Array], object] | None = None
    value_slope: Callable[[Array, Array, Array], object] | None = None
    rows: bool = False

    @property
    def needs_slope(self) -> bool:
        return self.value_slope is not None

    def forward(self, z: Array, y: Array, slope: Array | None = None) -> None:
        """Write y (and slope, where one is needed for backward) from z, all (N, C)."""
        if self.rows:
            self.value(as_rows(z), as_rows(y))
            return
        z, y = z.reshape(-1), y.reshape(-1)
        flat_slope = None if slope is None else slope.reshape(-1)
        for i in range(0, z.size, FLAT):
            part = slice(i, i + FLAT)
            if flat_slope is None or self.value_slope is None:
                self.value(z[part], y[part])
            else:
                self.value_slope(z[part], y[part], flat_slope[part])

    def backward(self, dy: Array, saved: Array, dx: Array) -> None:
        """Write dx from dy and ``saved``: the slope, or else the output, all (N, C)."""
        if self.gradient is None:
            np.multiply(dy, saved, out=dx)
        elif self.rows:
            self.gradient(as_rows(dy), as_rows(saved), as_rows(dx))
        else:
            dy, saved, dx = dy.reshape(-1), saved.reshape(-1), dx.reshape(-1)
            for i in range(0, dy.size, FLAT):
                part = slice(i, i + FLAT)
                self.gradient(dy[part], saved[part], dx[part])


# -- from the output ---------------------------------------------------------------


def _linear(z: Array, y: Array) -> None:
    np.copyto(y, z)


def _linear_gradient(dy: Array, y: Array, dx: Array) -> None:
    np.copyto(dx, dy)


def _relu(z: Array, y: Array) -> None:
    np.maximum(z, z.dtype.type(0), out=y)


def _relu_gradient(dy: Array, y: Array, dx: Array) -> None:
    np.multiply(dy, y > 0, out=dx)


def _sigmoid(z: Array, y: Array) -> None:
    """1 / (1 + exp(-z)) as (1 + tanh(z / 2)) / 2, which can't overflow."""
    half = z.dtype.type(0.5)
    np.multiply(z, half, out=y)
    np.tanh(y, out=y)
    np.multiply(y, half, out=y)
    np.add(y, half, out=y)


def _sigmoid_gradient(dy: Array, y: Array, dx: Array) -> None:
    slope = np.subtract(1, y, out=spare(0, y))
    np.multiply(slope, y, out=slope)
    np.multiply(dy, slope, out=dx)


def _tanh(z: Array, y: Array) -> None:
    np.tanh(z, out=y)


def _tanh_gradient(dy: Array, y: Array, dx: Array) -> None:
    slope = np.multiply(y, y, out=spare(0, y))
    np.subtract(1, slope, out=slope)
    np.multiply(dy, slope, out=dx)


# -- with a slope ------------------------------------------------------------------

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


def _gelu_tanh(z: Array, y: Array) -> None:
    """GELU's tanh form (Hendrycks, Gimpel, 2016): z (1 + tanh(a (z + b z³))) / 2."""
    _, h = _gelu_tanh_half(z)
    np.multiply(z, h, out=y)


def _gelu_tanh_slope(z: Array, y: Array, slope: Array) -> None:
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


_ALL = [
    Activation("linear", _linear, _linear_gradient),
    Activation("relu", _relu, _relu_gradient),
    Activation("sigmoid", _sigmoid, _sigmoid_gradient),
    Activation("tanh", _tanh, _tanh_gradient),
    Activation("softmax", softmax, softmax_backward, rows=True),
    Activation("gelu_tanh", _gelu_tanh, value_slope=_gelu_tanh_slope),
]
NAMED = {activation.name: activation for activation in _ALL}


def get(activation: str | Activation | None) -> Activation:
    """Return the activation of this name; None is ``linear``."""
    if isinstance(activation, Activation):
        return activation
    if activation is None:
        return NAMED["linear"]
    if activation not in NAMED:
        raise UnknownNameError("activation", activation, NAMED)
    return NAMED[activation]
