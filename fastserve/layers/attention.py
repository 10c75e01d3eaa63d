"""MultiHeadAttention and TransformerBlock."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastserve.core import Array, Done, Layer, Shape, Training, nothing
from fastserve.core.initializers import Initializer
from fastserve.errors import ArgumentError, ShapeError, UnknownNameError
from fastserve.layers.chain import Residual
from fastserve.layers.dense import Dense
from fastserve.layers.dropout import Dropout, check_rate, keep_factors
from fastserve.layers.gated import SwiGLU
from fastserve.layers.normalization import LayerNormalization, RMSNormalization
from fastserve.layers.recompute import Block
from fastserve.ops import rotary
from fastserve.ops.attention import MASKED, attention, attention_backward


class MultiHeadAttention(Layer):
    """Self-attention: every position looks at all, or with ``causal`` at earlier ones.

    Vaswani et al., "Attention is all you need", 2017; the formulas are in
    ``ops/attention.py``. (batch, time, features), same out. Inside are two dense
    layers: ``qkv`` (features, (heads + 2 kv_heads) x key_dim) and ``output``. Positions
    that the mask leaves out are never looked at.

    Args:
        key_dim: width of a head; by default features / num_heads.
        dropout: share of the attention weights that is dropped in training.
        num_kv_heads: heads of keys and values, which the queries' heads share
            (Ainslie et al., "GQA", 2023); by default num_heads.
        rope_theta: base of the wavelengths of rotary positions (``ops/rotary.py``);
            by default positions have no influence.

    Attributes:
        starts: (batch, time), where the document of each position starts, or None; with
            ``causal``, positions of other documents aren't looked at.
    """

    starts: Array | None = None

    def __init__(
        self,
        num_heads: int,
        key_dim: int | None = None,
        dropout: float = 0.0,
        use_bias: bool = True,
        causal: bool = False,
        kernel_initializer: str | Initializer = "glorot_uniform",
        output_initializer: str | Initializer | None = None,
        num_kv_heads: int | None = None,
        rope_theta: float | None = None,
        input_shape: Shape | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(input_shape, name)
        self.num_heads = self.positive("num_heads", num_heads)
        self.num_kv_heads = self.positive(
            "num_kv_heads", num_heads if num_kv_heads is None else num_kv_heads
        )
        if self.num_heads % self.num_kv_heads:
            raise ArgumentError(
                "MultiHeadAttention: expected num_kv_heads to divide num_heads",
                f"num_kv_heads={num_kv_heads}, num_heads={num_heads}",
                "change one of them",
            )
        if rope_theta is not None and not 0 < rope_theta < float("inf"):
            raise ArgumentError(
                "MultiHeadAttention: expected a rope_theta above 0",
                f"{rope_theta}",
                "leave it out for no rotary positions, or give for example 10000",
            )
        self.rope_theta = rope_theta
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
        if self.rope_theta is not None and self.key_dim % 2:
            raise ShapeError(
                "MultiHeadAttention: expected heads of even width for rotary positions",
                f"heads of width {self.key_dim}",
                "change num_heads or key_dim",
            )
        inner = self.num_heads * self.key_dim
        width = inner + 2 * self.num_kv_heads * self.key_dim
        init = self.kernel_initializer
        self.qkv = self.child("qkv", Dense(width, None, self.use_bias, init))
        self.output = self.child(
            "output", Dense(features, None, self.use_bias, self.output_initializer)
        )
        self.qkv.build_once(input_shape)
        return self.output.build_once((input_shape[0], inner))

    def _heads(self, x: Array) -> Array:
        """View (batch, time, ...) as (batch, time, heads, key_dim)."""
        return x.reshape(*x.shape[:2], -1, self.key_dim or 1)

    def _rotate(self, qkv: Array, inverse: bool = False) -> None:
        """Turn queries and keys by their positions, in place."""
        if self.rope_theta is None:
            return
        time, width = qkv.shape[1], qkv.shape[3]
        known = (self.input_shape or (None,))[0] or 0
        table = rotary.angles(max(time, known), width, self.rope_theta, qkv.dtype)
        rotary.rotate(qkv[:, :, : -self.num_kv_heads], *table, inverse)

    def forward(self, x: Array, training: Training = False) -> Array:
        batch, time = x.shape[:2]
        qkv = self._heads(self.qkv.forward(x, training))
        self._rotate(qkv)  # the dense layer doesn't need what it returned any more
        out = self.buffer("out", (batch, time, self.num_heads * qkv.shape[3]))
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
            self.starts,
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
            self._heads(qkv),
            self._buffers["lse"],
            self._heads(dqkv),
            self.causal,
            self._bias,
            self._keep,
            self.starts,
        )
        self._rotate(self._heads(dqkv), inverse=True)
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
        activation: of the hidden layer; 'swiglu' makes it a gated one.
        causal: positions look at themselves and at earlier ones alone.
        residual_initializer: of the two layers that write to the residual stream.
        num_kv_heads, rope_theta: see ``MultiHeadAttention``.
        norm: 'layer', or 'rms' for RMSNormalization.
        norm_bias: whether a layer normalisation has its ``beta``.
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
        num_kv_heads: int | None = None,
        rope_theta: float | None = None,
        norm: str = "layer",
        norm_bias: bool = True,
        input_shape: Shape | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(name=name)
        self.input_shape = None if input_shape is None else tuple(input_shape)
        self.ff_dim, self.activation = ff_dim, activation
        self.dropout, self.use_bias = dropout, use_bias
        self.norms = [make_norm(norm, epsilon, norm_bias, "norm") for _ in range(2)]
        self.initializers = (
            kernel_initializer,
            residual_initializer or kernel_initializer,
        )
        self.heads: MultiHeadAttention = MultiHeadAttention(
            num_heads,
            dropout=dropout,
            use_bias=use_bias,
            causal=causal,
            kernel_initializer=self.initializers[0],
            output_initializer=self.initializers[1],
            num_kv_heads=num_kv_heads,
            rope_theta=rope_theta,
            name="heads",
        )

    def build(self, input_shape: Shape) -> Shape:
        features = self.check_features(input_shape, rank=2)
        self.append(
            Residual(
                self.norms[0],
                self.heads,
                Dropout(self.dropout, name="dropout"),
                name="attention",
            )
        )
        self.append(
            Residual(
                self.norms[1],
                *self._mlp(features),
                Dropout(self.dropout, name="dropout"),
                name="mlp",
            )
        )
        return super().build(input_shape)

    def _mlp(self, features: int) -> list[Layer]:
        width, bias = self.ff_dim or 4 * features, self.use_bias
        init, residual_init = self.initializers
        if self.activation == "swiglu":
            return [SwiGLU(width, bias, init, residual_init, name="swiglu")]
        return [
            Dense(width, self.activation, bias, init, name="expand"),
            Dense(features, None, bias, residual_init, name="contract"),
        ]


def make_norm(kind: str, epsilon: float, bias: bool, name: str) -> Layer:
    """Return the normalisation of this kind, 'layer' or 'rms'."""
    if kind == "layer":
        return LayerNormalization(epsilon=epsilon, center=bias, name=name)
    if kind == "rms":
        return RMSNormalization(epsilon=epsilon, name=name)
    raise UnknownNameError("norm", kind, ("layer", "rms"))
