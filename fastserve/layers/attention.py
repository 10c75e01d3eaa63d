"""MultiHeadAttention and TransformerBlock."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastserve.core import Array, Done, Layer, Shape, Training, nothing
from fastserve.core.initializers import Initializer
from fastserve.errors import ShapeError
from fastserve.layers.chain import Residual
from fastserve.layers.dense import Dense
from fastserve.layers.dropout import Dropout, check_rate, keep_factors
from fastserve.layers.normalization import LayerNormalization
from fastserve.layers.recompute import Block
from fastserve.ops.attention import MASKED, attention, attention_backward


class MultiHeadAttention(Layer):
    """Self-attention: every position looks at all, or with ``causal`` at earlier ones.

    Vaswani et al., "Attention is all you need", 2017; the formulas are in
    ``ops/attention.py``. (batch, time, features), same out. Inside are two dense
    layers: ``qkv`` (features, 3 x heads x key_dim) and ``output``. Positions that the
    mask leaves out are never looked at.

    Args:
        key_dim: width of a head; by default features / num_heads.
        dropout: share of the attention weights that is dropped in training.
    """

    def __init__(
        self,
        num_heads: int,
        key_dim: int | None = None,
        dropout: float = 0.0,
        use_bias: bool = True,
        causal: bool = False,
        kernel_initializer: str | Initializer = "glorot_uniform",
        output_initializer: str | Initializer | None = None,
        input_shape: Shape | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(input_shape, name)
        self.num_heads = self.positive("num_heads", num_heads)
        self.key_dim = None if key_dim is None else self.positive("key_dim", key_dim)
        self.dropout = check_rate("MultiHeadAttention", dropout)
        self.use_bias, self.causal = use_bias, causal
        self.kernel_initializer = kernel_initializer
        self.output_initializer = output_initializer or kernel_initializer
        self._keep: Array | None = None
        self._bias: Array | None = None

    def build(self, input_shape: Shape) -> Shape:
        features = self.check_features(input_shape, rank=2)
        if self.key_dim is None:
            if features % self.num_heads:
                raise ShapeError(
                    f"MultiHeadAttention: expected features that {self.num_heads} "
                    "heads divide",
                    f"{features} features",
                    "change num_heads, or give key_dim",
                )
            self.key_dim = features // self.num_heads
        inner = self.num_heads * self.key_dim
        init = self.kernel_initializer
        self.qkv = self.child("qkv", Dense(3 * inner, None, self.use_bias, init))
        self.output = self.child(
            "output", Dense(features, None, self.use_bias, self.output_initializer)
        )
        self.qkv.build_once(input_shape)
        return self.output.build_once((input_shape[0], inner))

    def _heads(self, x: Array, parts: tuple[int, ...] = ()) -> Array:
        """View (batch, time, ...) as (batch, time, *parts, heads, key_dim)."""
        return x.reshape(*x.shape[:2], *parts, self.num_heads, -1)

    def forward(self, x: Array, training: Training = False) -> Array:
        batch, time = x.shape[:2]
        qkv = self._heads(self.qkv.forward(x, training), (3,))
        out = self.buffer("out", (batch, time, qkv.shape[3] * qkv.shape[4]))
        self._bias = self._key_bias()
        self._keep = None
        if training and self.dropout:
            shape = (batch, self.num_heads, time, time)
            self._keep = self.buffer("keep", shape)
            work = self.buffer("random", shape[1:], np.float32)
            keep_factors(self._keep, self.dropout, training, self.path, work)
        attention(
            qkv,
            self._heads(out),
            self.buffer("lse", (batch, self.num_heads, time)),
            self.causal,
            self._bias,
            self._keep,
        )
        return self.output.forward(out, training)

    def output_spare(self) -> bool | None:
        return self.output.output_spare()

    def _key_bias(self) -> Array | None:
        if self.mask is None:
            return None
        bias = self.buffer("bias", self.mask.shape)
        np.multiply(~self.mask, bias.dtype.type(MASKED), out=bias)
        return bias

    def backward(self, dy: Array, done: Done = nothing) -> Any:
        dout = self.output.backward(dy, done)
        done(self.output)
        qkv = self.qkv.logits()
        dqkv = self.scratch(qkv.shape)
        attention_backward(
            self._heads(dout),
            self._heads(self._buffers["out"]),
            self._heads(qkv, (3,)),
            self._buffers["lse"],
            self._heads(dqkv, (3,)),
            self.causal,
            self._bias,
            self._keep,
        )
        dx = self.qkv.backward(dqkv, done)
        done(self.qkv)
        return dx


class TransformerBlock(Block):
    """x + attention(norm(x)), then x + mlp(norm(x)): the pre-norm block of GPT-2.

    Radford et al., "Language models are unsupervised multitask learners", 2019.
    (batch, time, features), same out.

    Args:
        num_heads: heads of the attention.
        ff_dim: width of the hidden layer of the MLP; by default 4 x features.
        causal: positions look at themselves and at earlier ones alone.
        residual_initializer: of the two layers that write to the residual stream.
    """

    def __init__(
        self,
        num_heads: int,
        ff_dim: int | None = None,
        dropout: float = 0.0,
        activation: str = "gelu_tanh",
        causal: bool = False,
        use_bias: bool = True,
        epsilon: float = 1e-5,
        kernel_initializer: str | Initializer = "glorot_uniform",
        residual_initializer: str | Initializer | None = None,
        input_shape: Shape | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(name=name)
        self.input_shape = None if input_shape is None else tuple(input_shape)
        self.options = (num_heads, ff_dim, dropout, activation, causal, use_bias)
        self.epsilon = epsilon
        self.initializers = (
            kernel_initializer,
            residual_initializer or kernel_initializer,
        )

    def build(self, input_shape: Shape) -> Shape:
        heads, ff_dim, dropout, activation, causal, use_bias = self.options
        init, residual_init = self.initializers
        features = self.check_features(input_shape, rank=2)
        attend = Residual(
            LayerNormalization(self.epsilon, name="norm"),
            MultiHeadAttention(
                heads,
                dropout=dropout,
                use_bias=use_bias,
                causal=causal,
                kernel_initializer=init,
                output_initializer=residual_init,
                name="heads",
            ),
            Dropout(dropout, name="dropout"),
            name="attention",
        )
        mlp = Residual(
            LayerNormalization(self.epsilon, name="norm"),
            Dense(ff_dim or 4 * features, activation, use_bias, init, name="expand"),
            Dense(features, None, use_bias, residual_init, name="contract"),
            Dropout(dropout, name="dropout"),
            name="mlp",
        )
        self.append(attend)
        self.append(mlp)
        return super().build(input_shape)
