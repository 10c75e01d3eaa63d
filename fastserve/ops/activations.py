"""Activation functions by Keras' names, with their derivatives.

Each is one of two kinds. Where the derivative follows from the output (relu, tanh,
sigmoid, softmax ...), nothing but the output is kept and the input may be overwritten.
Where it doesn't (gelu, silu ...), forward computes the derivative on the way, while the
input is in the cache, and ``slope`` keeps it, so that backward is one product.

All of Keras 3 are here with its constants, except glu, whose output has another shape.
Keras' ``threshold`` has no default arguments; by its name alone it is threshold 0.

Each is here by its name too: ``fs.activations.relu(x)`` returns a new array, and
``Dense(8, fs.activations.relu)`` is the same as ``Dense(8, "relu")``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from fastserve.errors import ArgumentError, UnknownNameError
from fastserve.ops import piecewise, smooth
from fastserve.ops import softmax as rowwise  # softmax is an activation here
from fastserve.ops.blocks import FLAT, Array, as_rows


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

    def __call__(self, x: object) -> Array:
        """Return a new array with the function of an array of numbers."""
        z = np.asarray(x)
        z = np.array(z, z.dtype if z.dtype.kind == "f" else np.float32)
        rows = z.reshape(1, -1) if z.ndim < 2 else z.reshape(-1, z.shape[-1])
        y = np.empty_like(rows)
        self.forward(rows, y)
        return y.reshape(z.shape)

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


def copy(z: Array, y: Array) -> None:
    np.copyto(y, z)


def copy_gradient(dy: Array, y: Array, dx: Array) -> None:
    np.copyto(dx, dy)


_ALL = [
    Activation("linear", copy, copy_gradient),
    Activation("relu", piecewise.relu, piecewise.relu_gradient),
    Activation("threshold", piecewise.relu, piecewise.relu_gradient),
    Activation("relu6", piecewise.relu6, piecewise.relu6_gradient),
    Activation("leaky_relu", piecewise.leaky_relu, piecewise.leaky_relu_gradient),
    Activation("hard_sigmoid", piecewise.hard_sigmoid, piecewise.hard_sigmoid_gradient),
    Activation("hard_tanh", piecewise.hard_tanh, piecewise.hard_tanh_gradient),
    Activation("hard_shrink", piecewise.hard_shrink, piecewise.shrink_gradient),
    Activation("soft_shrink", piecewise.soft_shrink, piecewise.shrink_gradient),
    Activation("sparse_plus", piecewise.sparse_plus, piecewise.sparse_plus_gradient),
    Activation(
        "sparse_sigmoid", piecewise.sparse_sigmoid, piecewise.sparse_sigmoid_gradient
    ),
    Activation("sigmoid", smooth.sigmoid, smooth.sigmoid_gradient),
    Activation("tanh", smooth.tanh, smooth.tanh_gradient),
    Activation("exponential", smooth.exponential, smooth.exponential_gradient),
    Activation("softplus", smooth.softplus, smooth.softplus_gradient),
    Activation("log_sigmoid", smooth.log_sigmoid, smooth.log_sigmoid_gradient),
    Activation("softsign", smooth.softsign, smooth.softsign_gradient),
    Activation("elu", smooth.elu, smooth.elu_gradient),
    Activation("celu", smooth.elu, smooth.elu_gradient),
    Activation("selu", smooth.selu, smooth.selu_gradient),
    Activation("softmax", rowwise.softmax, rowwise.softmax_backward, rows=True),
    Activation(
        "log_softmax", rowwise.log_softmax, rowwise.log_softmax_backward, rows=True
    ),
    Activation("sparsemax", rowwise.sparsemax, rowwise.sparsemax_backward, rows=True),
    Activation("hard_silu", piecewise.hard_silu, value_slope=piecewise.hard_silu_slope),
    Activation("silu", smooth.silu, value_slope=smooth.silu_slope),
    Activation("mish", smooth.mish, value_slope=smooth.mish_slope),
    Activation("tanh_shrink", smooth.tanh_shrink, value_slope=smooth.tanh_shrink_slope),
    Activation("squareplus", smooth.squareplus, value_slope=smooth.squareplus_slope),
    Activation("gelu", smooth.gelu, value_slope=smooth.gelu_slope),
    Activation("gelu_tanh", smooth.gelu_tanh, value_slope=smooth.gelu_tanh_slope),
]
NAMED = {activation.name: activation for activation in _ALL}
for _alias, _name in (("swish", "silu"), ("hard_swish", "hard_silu")):
    NAMED[_alias] = replace(NAMED[_name], name=_alias)


def get(activation: str | Activation | None) -> Activation:
    """Return the activation of this name; None is ``linear``."""
    if isinstance(activation, Activation):
        return activation
    if activation is None:
        return NAMED["linear"]
    if not isinstance(activation, str):
        raise ArgumentError(
            "expected the name of an activation, or one of fs.activations",
            repr(activation),
            "put a layer such as LeakyReLU behind this one; a function of your own "
            "needs a layer with a backward",
        )
    if activation not in NAMED:
        raise UnknownNameError("activation", activation, NAMED)
    return NAMED[activation]


def __getattr__(name: str) -> Activation:
    if name not in NAMED:
        known = ", ".join(NAMED)
        raise AttributeError(f"no activation of the name {name!r}; known: {known}")
    return NAMED[name]
