"""SwiGLU: the gated MLP of today's decoders."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastserve.core import Array, Done, Layer, Shape, Training, nothing
from fastserve.core.initializers import Initializer
from fastserve.layers.dense import Dense
from fastserve.ops.swiglu import swiglu, swiglu_backward


class SwiGLU(Layer):
    """y = contract(silu(gate(x)) expand(x)), over the last axis.

    Shazeer, "GLU variants improve transformer", 2020; the formulas are in
    ``ops/swiglu.py``. Input (batch, ..., features), same out. Inside are three dense
    layers: ``gate`` and ``expand`` (features, units), ``contract`` (units, features).

    Args:
        units: width of the hidden layer.
        output_initializer: of ``contract``; by default ``kernel_initializer``.
    """

    inline = True  # blocks.0.mlp.gate, beside blocks.0.mlp.norm

    def __init__(
        self,
        units: int,
        use_bias: bool = True,
        kernel_initializer: str | Initializer = "glorot_uniform",
        output_initializer: str | Initializer | None = None,
        input_shape: Shape | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(input_shape, name)
        self.units = self.positive("units", units)
        self.use_bias = use_bias
        self.kernel_initializer = kernel_initializer
        self.output_initializer = output_initializer or kernel_initializer

    def build(self, input_shape: Shape) -> Shape:
        features = self.check_features(input_shape)
        hidden = (self.units, None, self.use_bias, self.kernel_initializer)
        self.gate = self.child("gate", Dense(*hidden))
        self.expand = self.child("expand", Dense(*hidden))
        self.contract = self.child(
            "contract", Dense(features, None, self.use_bias, self.output_initializer)
        )
        self.gate.build_once(input_shape)
        return self.contract.build_once(self.expand.build_once(input_shape))

    def forward(self, x: Array, training: Training = False) -> Array:
        g, u = self.gate.forward(x, training), self.expand.forward(x, training)
        h = self.buffer("h", g.shape)
        swiglu(g, u, h)
        return self.contract.forward(h, training)

    def backward(self, dy: Array, done: Done = nothing) -> Any:
        self.gate.input_gradient = self.expand.input_gradient = self.input_gradient
        dh = self.contract.backward(dy, done)
        done(self.contract)
        dg, du = self.scratch(dh.shape), self.scratch(dh.shape)
        swiglu_backward(dh, self.gate.logits(), self.expand.logits(), dg, du)
        del dh
        dx = self.expand.backward(du, done)
        done(self.expand)
        dx_gate = self.gate.backward(dg, done)
        done(self.gate)
        if dx is None:
            return None
        return np.add(dx, dx_gate, out=dx)
