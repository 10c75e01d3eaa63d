"""Dense and Activation."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastserve.core import (
    Array,
    Done,
    Layer,
    Shape,
    Training,
    constraints,
    initializers,
    nothing,
    regularizers,
)
from fastserve.core.constraints import Constraint
from fastserve.core.initializers import Initializer
from fastserve.core.regularizers import Regularizer
from fastserve.ops import activations
from fastserve.ops.blocks import FLAT, as_rows, row_blocks
from fastserve.ops.linear import add_product, sum_rows


def fusable(activation: activations.Activation) -> str | None:
    """Return the activation's name if a cross-entropy can take its place."""
    return activation.name if activation.name in ("softmax", "sigmoid") else None


class Dense(Layer):
    """y = activation(x W + b), over the last axis.

    Input (batch, ..., features), output (batch, ..., units). Weights: ``kernel``
    (features, units) and, unless ``use_bias`` is false, ``bias`` (units).

    Gradients, with z = x W + b: dz = dy activation'(z), dW = xᵀ dz, db = Σ dz,
    dx = dz Wᵀ. With ``lora``, an adapter for x W (``layers/lora.py``), z also has its
    output.
    """

    lora: Layer | None = None

    def __init__(
        self,
        units: int,
        activation: str | activations.Activation | None = None,
        use_bias: bool = True,
        kernel_initializer: str | Initializer = "glorot_uniform",
        bias_initializer: str | Initializer = "zeros",
        kernel_regularizer: str | Regularizer | None = None,
        bias_regularizer: str | Regularizer | None = None,
        kernel_constraint: str | Constraint | None = None,
        bias_constraint: str | Constraint | None = None,
        input_shape: Shape | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(input_shape, name)
        self.units = self.positive("units", units)
        self.activation = activations.get(activation)
        self.use_bias = use_bias
        self.kernel_initializer = initializers.get(kernel_initializer)
        self.bias_initializer = initializers.get(bias_initializer)
        self.kernel_regularizer = regularizers.get(kernel_regularizer)
        self.bias_regularizer = regularizers.get(bias_regularizer)
        self.kernel_constraint = constraints.get(kernel_constraint)
        self.bias_constraint = constraints.get(bias_constraint)
        self.fused_loss = fusable(self.activation)
        plain = type(self).backward is Dense.backward  # not one of a subclass
        self.rows_apart = plain and self.activation.name == "linear"
        self._x: Array | None = None

    def build(self, input_shape: Shape) -> Shape:
        features = self.check_features(input_shape)
        self.kernel = self.param(
            "kernel",
            (features, self.units),
            self.kernel_initializer,
            regularizer=self.kernel_regularizer,
            constraint=self.kernel_constraint,
        )
        if self.use_bias:
            self.bias = self.param(
                "bias",
                (self.units,),
                self.bias_initializer,
                regularizer=self.bias_regularizer,
                constraint=self.bias_constraint,
            )
        return (*input_shape[:-1], self.units)

    def forward(self, x: Array, training: Training = False) -> Array:
        self._x = x
        shape = (*x.shape[:-1], self.units)
        z = self.buffer("z", shape)
        np.matmul(as_rows(x), self.kernel.value, out=as_rows(z))
        if self.lora is not None:
            np.add(z, self.lora.forward(x, training), out=z)
        # y takes z's place where backward needs neither z nor z's derivative
        apart = self.activation.needs_slope or self.fused_loss is not None
        y = self.buffer("y", shape) if apart else z
        self._epilogue(as_rows(z), as_rows(y), bool(training))
        return y

    def _epilogue(self, z: Array, y: Array, training: bool) -> None:
        """Add the bias and apply the activation while a piece is in the cache."""
        linear = self.activation.name == "linear"
        if linear and not self.use_bias:
            return
        for rows in row_blocks(z.shape[0], z.shape[1], FLAT):
            zr = z[rows]
            if self.use_bias:
                np.add(zr, self.bias.value, out=zr)
            if not linear:
                slope = zr if training and self.activation.needs_slope else None
                self.activation.forward(zr, y[rows], slope)

    def output_spare(self) -> bool:
        return self.rows_apart

    def backward(self, dy: Array, done: Done = nothing) -> Any:
        if self.activation.name == "linear":
            return self.backward_logits(dy, done)
        self.saved(self._x)
        saved = self._buffers["z" if self.activation.needs_slope else self._output]
        dz = self.scratch(dy.shape)
        self.activation.backward(as_rows(dy), as_rows(saved), as_rows(dz))
        return self.backward_logits(dz, done)

    @property
    def _output(self) -> str:
        return "z" if self.fused_loss is None else "y"

    def logits(self) -> Array:
        return self._buffers["z"]

    def backward_logits(self, dz: Array, done: Done = nothing) -> Any:
        x = self.saved(self._x)
        rows = as_rows(dz)
        if self.kernel.trainable:
            np.matmul(as_rows(x).T, rows, out=self.kernel.grad)
        if self.use_bias and self.bias.trainable:
            sum_rows(rows, self.bias.grad)
        dx_lora = None
        if self.lora is not None:
            self.lora.input_gradient = self.input_gradient
            dx_lora = self.lora.backward(dz, done)
        if not self.input_gradient:
            return None
        dx = self.scratch(x.shape)
        np.matmul(rows, self.kernel.value.T, out=as_rows(dx))
        return dx if dx_lora is None else np.add(dx, dx_lora, out=dx)

    def backward_rows(self, dy: Array, dx: Array, add: bool) -> None:
        x = as_rows(self.saved(self._x))
        if not self.kernel.trainable:
            pass
        elif add:
            add_product(x, dy, self.kernel.grad)
        else:
            np.matmul(x.T, dy, out=self.kernel.grad)
        if self.use_bias and self.bias.trainable:
            sums = self.bias.grad if not add else self.scratch(self.bias.shape)
            sum_rows(dy, sums)
            if add:
                np.add(self.bias.grad, sums, out=self.bias.grad)
        np.matmul(dy, self.kernel.value.T, out=dx)


class Activation(Layer):
    """y = activation(x); any shape. Softmax works over the last axis."""

    def __init__(
        self,
        activation: str | activations.Activation,
        input_shape: Shape | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(input_shape, name)
        self.activation = activations.get(activation)
        self.fused_loss = fusable(self.activation)
        self._x: Array | None = None

    def build(self, input_shape: Shape) -> Shape:
        self.check_features(input_shape)
        return input_shape

    def forward(self, x: Array, training: Training = False) -> Array:
        self._x = x
        y = self.buffer("y", x.shape)
        slope = self.buffer("slope", x.shape) if self.activation.needs_slope else None
        self.activation.forward(as_rows(x), as_rows(y), slope)
        return y

    def backward(self, dy: Array, done: Done = nothing) -> Any:
        self.saved(self._x)
        saved = self._buffers["slope" if self.activation.needs_slope else "y"]
        dx = self.scratch(dy.shape)
        self.activation.backward(as_rows(dy), as_rows(saved), as_rows(dx))
        return dx

    def logits(self) -> Array:
        return self.saved(self._x)

    def backward_logits(self, dz: Array, done: Done = nothing) -> Any:
        return dz
