"""LayerNormalization."""

from __future__ import annotations

from typing import Any

from fastserve.core import Array, Done, Layer, Shape, Training, initializers, nothing
from fastserve.errors import ArgumentError
from fastserve.ops.blocks import as_rows
from fastserve.ops.linear import ones
from fastserve.ops.norm import layer_norm, layer_norm_backward


class LayerNormalization(Layer):
    """y = gamma (x - mean) / sqrt(var + epsilon) + beta, over the last axis.

    Ba, Kiros, Hinton, "Layer normalization", 2016. Any shape. Weights: ``gamma`` if
    ``scale``, ``beta`` if ``center``, both (features).
    """

    def __init__(
        self,
        epsilon: float = 1e-3,
        center: bool = True,
        scale: bool = True,
        input_shape: Shape | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(input_shape, name)
        if epsilon <= 0:
            raise ArgumentError(
                "LayerNormalization: expected an epsilon above 0",
                str(epsilon),
                "leave it out, or give for example 1e-5",
            )
        self.epsilon, self.center, self.scale = epsilon, center, scale

    def build(self, input_shape: Shape) -> Shape:
        features = self.check_features(input_shape)
        if self.scale:
            self.gamma = self.param("gamma", (features,), initializers.Ones())
        if self.center:
            self.beta = self.param("beta", (features,), initializers.Zeros())
        return input_shape

    def forward(self, x: Array, training: Training = False) -> Array:
        y = self.buffer("y", x.shape)
        rows = as_rows(x)
        layer_norm(
            rows,
            self.gamma.value if self.scale else None,
            self.beta.value if self.center else None,
            self.epsilon,
            as_rows(y),
            self.buffer("h", rows.shape),
            self.buffer("rstd", rows.shape[:1]),
        )
        return y

    def backward(self, dy: Array, done: Done = nothing) -> Any:
        features = dy.shape[-1]
        dx = self.scratch(dy.shape)
        layer_norm_backward(
            as_rows(dy),
            self.saved(self._buffers.get("h")),
            self._buffers["rstd"],
            self.gamma.value if self.scale else ones(features, dy.dtype),
            self.gamma.grad if self.scale else self.scratch((features,)),
            self.beta.grad if self.center else self.scratch((features,)),
            as_rows(dx),
        )
        return dx
