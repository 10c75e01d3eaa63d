"""LoRA: a frozen layer learns a small correction of its matrix.

Hu et al., "LoRA: Low-rank adaptation of large language models", 2021:

    y = x W + s dropout(x) A B,  s = alpha / rank,  A (features, rank), B (rank, units)
    dB = s (dropout(x) A)ᵀ dy,  dA = s dropout(x)ᵀ (dy Bᵀ),  dx = dy Wᵀ + s dy Bᵀ Aᵀ

B starts at 0, so the first output is that of the layer alone. Only A and B are trained:
W and all other parameters of the model are frozen, have no gradients, no optimizer
state, and are never communicated.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from fastserve.core import Array, Done, Layer, Shape, Training, nothing
from fastserve.core.initializers import RandomUniform, Zeros
from fastserve.errors import ArgumentError, StateError, UnknownNameError
from fastserve.layers.dense import Dense
from fastserve.layers.dropout import Dropout, check_rate
from fastserve.ops.blocks import as_rows

TARGETS = ("qkv", "output", "expand", "contract", "gate")


class LoRA(Layer):
    """y = alpha / rank * dropout(x) A B; the correction alone, without x W.

    Input (batch, ..., features), output (batch, ..., units). Weights: ``a``
    (features, rank), uniform within 1 / sqrt(features), and ``b`` (rank, units), zeros.
    """

    def __init__(
        self,
        units: int,
        rank: int,
        alpha: float,
        dropout: float = 0.0,
        input_shape: Shape | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(input_shape, name)
        self.units = self.positive("units", units)
        self.rank = self.positive("rank", rank)
        self.scale = alpha / rank
        check_rate("LoRA", dropout)
        self.dropout = self.child("dropout", Dropout(dropout))
        self._x: Array | None = None

    def build(self, input_shape: Shape) -> Shape:
        features = self.check_features(input_shape)
        if self.rank > min(features, self.units):
            raise ArgumentError(
                f"LoRA: expected a rank of at most {min(features, self.units)}, the "
                "smaller side of the matrix",
                str(self.rank),
                "lower the rank",
            )
        bound = features**-0.5
        self.a = self.param("a", (features, self.rank), RandomUniform(-bound, bound))
        self.b = self.param("b", (self.rank, self.units), Zeros())
        return (*input_shape[:-1], self.units)

    def forward(self, x: Array, training: Training = False) -> Array:
        self._x = x = self.dropout.forward(x, training)
        inner = self.buffer("inner", (*x.shape[:-1], self.rank))
        rows = as_rows(inner)
        np.matmul(as_rows(x), self.a.value, out=rows)
        np.multiply(rows, rows.dtype.type(self.scale), out=rows)
        y = self.scratch((*x.shape[:-1], self.units))  # whoever adds it drops it
        np.matmul(rows, self.b.value, out=as_rows(y))
        return y

    def backward(self, dy: Array, done: Done = nothing) -> Any:
        x = self.saved(self._x)
        rows = as_rows(dy)
        np.matmul(as_rows(self._buffers["inner"]).T, rows, out=self.b.grad)
        dinner = self.scratch((len(rows), self.rank))
        np.matmul(rows, self.b.value.T, out=dinner)
        np.multiply(dinner, dinner.dtype.type(self.scale), out=dinner)
        np.matmul(as_rows(x).T, dinner, out=self.a.grad)
        if not self.input_gradient:
            return None
        dx = self.scratch(x.shape)
        np.matmul(dinner, self.a.value.T, out=as_rows(dx))
        return self.dropout.backward(dx)


def add_lora(
    root: Layer, rank: int, alpha: float, targets: Sequence[str], dropout: float
) -> None:
    """Freeze all parameters, and give the dense layers of these names an adapter.

    The store must be rebuilt then. Raises ArgumentError, UnknownNameError or StateError
    for what can't be; nothing is changed then.
    """
    for name in targets:
        if name not in TARGETS:
            raise UnknownNameError("target of LoRA", name, TARGETS)
    chosen = [
        layer
        for path, layer in root.walk()
        if isinstance(layer, Dense) and path.rpartition(".")[2] in targets
    ]
    names = {path.rpartition(".")[2] for path, _ in root.walk()}
    absent = [name for name in targets if name not in names]
    if absent or not chosen or not 0 < alpha < float("inf"):
        raise ArgumentError(
            "expected targets of LoRA that the model has, and an alpha above 0",
            f"targets {', '.join(absent or targets) or 'none'}, alpha {alpha}",
            f"choose from {', '.join(t for t in TARGETS if t in names) or 'no layer'}",
        )
    if any(layer.lora is not None for layer in chosen):
        raise StateError(
            "expected a model without LoRA", "one that has it", "merge it first"
        )
    made = [LoRA(layer.units, rank, alpha, dropout) for layer in chosen]
    for layer, adapter in zip(chosen, made, strict=True):
        adapter.build_once(layer.input_shape or ())
    for parameter in root.parameters():
        parameter.trainable, parameter.base = False, not parameter.moving
    for layer, adapter in zip(chosen, made, strict=True):
        layer.lora = layer.child("lora", adapter)


def merge_lora(root: Layer) -> None:
    """Add the corrections to the matrices, and take the adapters away.

    All parameters are trained again. The store must be rebuilt then. Raises StateError
    if there are no adapters.
    """
    adapted = list(_adapted(root))
    if not adapted:
        raise StateError("expected a model with LoRA", "one without", "add it first")
    for layer in adapted:
        layer.kernel.value[...] = merged_kernel(layer)
        layer.lora = None
        del layer.children()["lora"]
    for parameter in root.parameters():
        parameter.trainable, parameter.base = not parameter.moving, False


def merged_kernel(layer: Dense) -> Array:
    """Return W, or W + s A B in new memory if the layer has an adapter."""
    if not isinstance(layer.lora, LoRA):
        return layer.kernel.value
    adapter = layer.lora
    product: Array = np.matmul(adapter.a.value, adapter.b.value)
    np.multiply(product, product.dtype.type(adapter.scale), out=product)
    return np.add(layer.kernel.value, product, out=product)


def _adapted(root: Layer) -> Iterator[Dense]:
    for _, layer in root.walk():
        if isinstance(layer, Dense) and layer.lora is not None:
            yield layer
