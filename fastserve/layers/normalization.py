"""LayerNormalization and RMSNormalization."""

from __future__ import annotations

from typing import Any

from fastserve.core import Array, Done, Layer, Shape, Training, initializers, nothing
from fastserve.errors import ArgumentError
from fastserve.ops.blocks import as_rows
from fastserve.ops.linear import ones
from fastserve.ops.norm import (
    layer_norm,
    layer_norm_backward,
    rms_norm,
    rms_norm_backward,
)


def check_epsilon(kind: str, epsilon: float) -> float:
    if not 0 < epsilon < float("inf"):
        raise ArgumentError(
            f"{kind}: expected an epsilon above 0",
            str(epsilon),
            "leave it out, or give for example 1e-5",
        )
    return epsilon


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
        self.epsilon = check_epsilon("LayerNormalization", epsilon)
        self.center, self.scale = center, scale

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


class RMSNormalization(Layer):
    """y = gamma x / sqrt(mean(x²) + epsilon), over the last axis.

    Zhang, Sennrich, "Root mean square layer normalization", 2019. Any shape. Weights:
    ``gamma`` (features).
    """

    def __init__(
        self,
        epsilon: float = 1e-6,
        input_shape: Shape | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(input_shape, name)
        self.epsilon = check_epsilon("RMSNormalization", epsilon)
        self._x: Array | None = None

    def build(self, input_shape: Shape) -> Shape:
        features = self.check_features(input_shape)
        self.gamma = self.param("gamma", (features,), initializers.Ones())
        return input_shape

    def forward(self, x: Array, training: Training = False) -> Array:
        self._x = x
        y = self.buffer("y", x.shape)
        rows = as_rows(x)
        rstd = self.buffer("rstd", rows.shape[:1])
        rms_norm(rows, self.gamma.value, self.epsilon, as_rows(y), rstd)
        return y

    def backward(self, dy: Array, done: Done = nothing) -> Any:
        x = self.saved(self._x)
        dx = self.scratch(dy.shape)
        rms_norm_backward(
            as_rows(dy),
            as_rows(x),
            self._buffers["rstd"],
            self.gamma.value,
            self.gamma.grad,
            as_rows(dx),
        )
        return dx
