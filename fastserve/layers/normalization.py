"""LayerNormalization, RMSNormalization and UnitNormalization."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from fastserve.core import Array, Done, Layer, Shape, Training, initializers, nothing
from fastserve.core.constraints import Constraint
from fastserve.core.initializers import Initializer
from fastserve.core.regularizers import Regularizer
from fastserve.errors import ArgumentError
from fastserve.layers.normalization_base import Affine, AxesLast, Axis, check_epsilon
from fastserve.ops.blocks import FLAT, as_rows, row_blocks, spare
from fastserve.ops.linear import ones
from fastserve.ops.norm import (
    layer_norm,
    layer_norm_backward,
    rms_norm,
    rms_norm_backward,
)


class LayerNormalization(Affine):
    """y = gamma (x - mean) / sqrt(var + epsilon) + beta, over ``axis``.

    Ba, Kiros, Hinton, "Layer normalization", 2016. Any shape. Weights: ``gamma`` if
    ``scale``, ``beta`` if ``center``, both of the shape of the axes.

    Args:
        axis: one or several, counted with the batch as axis 0.
        rms_scaling: must be false; see ``RMSNormalization``.
    """

    def __init__(
        self,
        axis: Axis = -1,
        epsilon: float = 1e-3,
        center: bool = True,
        scale: bool = True,
        beta_initializer: str | Initializer = "zeros",
        gamma_initializer: str | Initializer = "ones",
        beta_regularizer: str | Regularizer | None = None,
        gamma_regularizer: str | Regularizer | None = None,
        beta_constraint: str | Constraint | None = None,
        gamma_constraint: str | Constraint | None = None,
        rms_scaling: bool = False,
        input_shape: Shape | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(
            epsilon,
            center,
            scale,
            beta_initializer,
            gamma_initializer,
            beta_regularizer,
            gamma_regularizer,
            beta_constraint,
            gamma_constraint,
            input_shape,
            name,
        )
        if rms_scaling:
            raise ArgumentError(
                "LayerNormalization: expected rms_scaling=False; with it Keras scales "
                "by the variance about the mean, and warns that this is wrong",
                "rms_scaling=True",
                "use RMSNormalization",
            )
        self.axis = axis

    def build(self, input_shape: Shape) -> Shape:
        self._axes = AxesLast("LayerNormalization", self.axis, input_shape)
        self._features = math.prod(self._axes.shape)
        self.make_weights(self._axes.shape)
        return input_shape

    def forward(self, x: Array, training: Training = False) -> Array:
        y = self.buffer("y", x.shape)
        rows = self._rows(self._axes.move(self, "x", x))
        out = self._axes.room(self, y)
        layer_norm(
            rows,
            self.gamma.value.reshape(-1) if self.scale else None,
            self.beta.value.reshape(-1) if self.center else None,
            self.epsilon,
            self._rows(out),
            self.buffer("h", rows.shape),
            self.buffer("rstd", rows.shape[:1]),
        )
        return self._axes.back(out, y)

    def _rows(self, x: Array) -> Array:
        return x.reshape(-1, self._features)

    def backward(self, dy: Array, done: Done = nothing) -> Any:
        features = self._features
        dx = self.scratch(dy.shape)
        out = self._axes.room(self, dx)
        layer_norm_backward(
            self._rows(self._axes.move(self, "dy", dy)),
            self.saved(self._buffers.get("h")),
            self._buffers["rstd"],
            self.gamma.value.reshape(-1) if self.scale else ones(features, dy.dtype),
            self.gamma.grad.reshape(-1) if self.scale else self.scratch((features,)),
            self.beta.grad.reshape(-1) if self.center else self.scratch((features,)),
            self._rows(out),
        )
        return self._axes.back(out, dx)


class RMSNormalization(Layer):
    """y = gamma x / sqrt(mean(x²) + epsilon), over ``axis``.

    Zhang, Sennrich, "Root mean square layer normalization", 2019. Any shape. Weights:
    ``gamma``, of the length of the axis.
    """

    def __init__(
        self,
        axis: int = -1,
        epsilon: float = 1e-6,
        input_shape: Shape | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(input_shape, name)
        self.axis = axis
        self.epsilon = check_epsilon("RMSNormalization", epsilon)
        self._x: Array | None = None

    def build(self, input_shape: Shape) -> Shape:
        self._axes = AxesLast("RMSNormalization", self.axis, input_shape)
        self.gamma = self.param("gamma", self._axes.shape, initializers.Ones())
        return input_shape

    def forward(self, x: Array, training: Training = False) -> Array:
        self._x = moved = self._axes.move(self, "x", x)
        y = self.buffer("y", x.shape)
        out = self._axes.room(self, y)
        rows = as_rows(moved)
        rstd = self.buffer("rstd", rows.shape[:1])
        rms_norm(rows, self.gamma.value, self.epsilon, as_rows(out), rstd)
        return self._axes.back(out, y)

    def backward(self, dy: Array, done: Done = nothing) -> Any:
        x = self.saved(self._x)
        dx = self.scratch(dy.shape)
        out = self._axes.room(self, dx)
        rms_norm_backward(
            as_rows(self._axes.move(self, "dy", dy)),
            as_rows(x),
            self._buffers["rstd"],
            self.gamma.value,
            self.gamma.grad,
            as_rows(out),
        )
        return self._axes.back(out, dx)


_LARGEST = 1e12  # factor of a vector that is nearly 0


class UnitNormalization(Layer):
    """y = x / ||x||, vectors along ``axis`` (one or several) scaled to the norm 1.

    Any shape. With r = 1 / ||x||: dx = r (dy - y Σ dy y). A vector below 1e-12 is
    divided by that instead.
    """

    def __init__(
        self,
        axis: Axis = -1,
        input_shape: Shape | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(input_shape, name)
        self.axis = axis

    def build(self, input_shape: Shape) -> Shape:
        self._axes = AxesLast("UnitNormalization", self.axis, input_shape)
        return input_shape

    def _rows(self, x: Array) -> Array:
        return x.reshape(-1, math.prod(self._axes.shape))

    def forward(self, x: Array, training: Training = False) -> Array:
        moved = self._axes.move(self, "x", x)
        rows = self._rows(moved)
        y = self.buffer("y", x.shape)
        h = self.buffer("h", rows.shape) if not self._axes.trailing else self._rows(y)
        factor = self.buffer("factor", rows.shape[:1])
        np.einsum("ij,ij->i", rows, rows, out=factor)
        np.sqrt(factor, out=factor)
        np.maximum(factor, factor.dtype.type(1 / _LARGEST), out=factor)
        np.divide(factor.dtype.type(1), factor, out=factor)
        np.multiply(rows, factor[:, None], out=h)
        self._h = h
        return self._axes.back(h.reshape(moved.shape), y)

    def backward(self, dy: Array, done: Done = nothing) -> Any:
        factor, h = self.saved(self._buffers.get("factor")), self._h
        dx = self.scratch(dy.shape)
        out = self._axes.room(self, dx)
        dyr, dxr = self._rows(self._axes.move(self, "dy", dy)), self._rows(out)
        for rows in row_blocks(len(h), h.shape[1], FLAT):
            hr, r = h[rows], factor[rows]
            along = np.einsum("ij,ij->i", dyr[rows], hr)
            np.multiply(along, r < _LARGEST, out=along)  # beyond, r is a constant
            t = np.multiply(hr, along[:, None], out=spare(0, hr))
            np.subtract(dyr[rows], t, out=dxr[rows])
            np.multiply(dxr[rows], r[:, None], out=dxr[rows])
        return self._axes.back(out, dx)
