"""MultiHeadAttention and TransformerBlock."""

from __future__ import annotations

from collections.abc import Sequence
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
    is_several,
    nothing,
    regularizers,
)
from fastserve.core.constraints import Constraint
from fastserve.core.initializers import Initializer
from fastserve.core.regularizers import Regularizer
from fastserve.errors import ArgumentError, ShapeError, UnknownNameError
from fastserve.layers.chain import Residual
from fastserve.layers.cross_attention import CrossAttention, set_causal
from fastserve.layers.dense import Dense
from fastserve.layers.dropout import Dropout, check_rate, check_seed, keep_factors
from fastserve.layers.gated import SwiGLU
from fastserve.layers.normalization import LayerNormalization, RMSNormalization
from fastserve.layers.recompute import Block
from fastserve.ops import rotary
from fastserve.ops.attention import MASKED, attention, attention_backward


class MultiHeadAttention(Layer):
    """Attention with heads: of one sequence to itself, or of a query to a value.

    Vaswani et al., "Attention is all you need", 2017; the formulas are in
    ``ops/attention.py``. Every position looks at all, or with ``causal`` at earlier
    ones; positions that the mask leaves out are never looked at.

    Called on one tensor (batch, time, features), same out, or as a layer of a chain, it
    is self-attention. Inside are two dense layers: ``qkv`` (features, (heads + 2
    kv_heads) x key_dim) and ``output``.

    Called as in Keras, ``layer(query, value, key=None, attention_mask=None,
    use_causal_mask=False)``, with a query (batch, time, features), a value and a key
    (batch, others, any) and a mask (batch, time, others), it has Keras' weights; see
    ``layers/cross_attention.py``. Without a key, the value is the key.

    Args:
        key_dim: width of a head; by default features / num_heads.
        value_dim: width of a head of the values; by default key_dim.
        dropout: share of the attention weights that is dropped in training.
        output_shape: features of the output; by default those of the query.
        causal: also as ``use_causal_mask=True`` in the call.
        seed: of the dropout, in place of the model's.
        num_kv_heads: heads of keys and values, which the queries' heads share
            (Ainslie et al., "GQA", 2023); by default num_heads.
        rope_theta: base of the wavelengths of rotary positions (``ops/rotary.py``);
            by default positions have no influence.

    Attributes:
        starts: (batch, time), where the document of each position starts, or None; with
            ``causal``, positions of other documents aren't looked at.
    """

    starts: Array | None = None
    several_inputs = True
    call_inputs = ("query", "value", "key", "attention_mask")

    def __init__(
        self,
        num_heads: int,
        key_dim: int | None = None,
        value_dim: int | None = None,
        dropout: float = 0.0,
        use_bias: bool = True,
        output_shape: int | Sequence[int] | None = None,
        kernel_initializer: str | Initializer = "glorot_uniform",
        bias_initializer: str | Initializer = "zeros",
        kernel_regularizer: str | Regularizer | None = None,
        bias_regularizer: str | Regularizer | None = None,
        kernel_constraint: str | Constraint | None = None,
        bias_constraint: str | Constraint | None = None,
        seed: int | None = None,
        causal: bool = False,
        output_initializer: str | Initializer | None = None,
        num_kv_heads: int | None = None,
        rope_theta: float | None = None,
        input_shape: Any = None,
        name: str | None = None,
    ) -> None:
        super().__init__(input_shape, name)
        self.value_dim = None
        if value_dim is not None:
            self.value_dim = self.positive("value_dim", value_dim)
        width = output_shape
        if isinstance(width, Sequence):
            if len(width) != 1:
                raise ArgumentError(
                    "MultiHeadAttention: expected an output_shape of one axis",
                    f"{output_shape}",
                    "give the number of features, and reshape the output",
                )
            width = width[0]
        self.width = None if width is None else self.positive("output_shape", width)
        self.seed = check_seed("MultiHeadAttention", seed)
        self.options: dict[str, Any] = {
            "use_bias": use_bias,
            "kernel_initializer": initializers.get(kernel_initializer),
            "bias_initializer": initializers.get(bias_initializer),
            "kernel_regularizer": regularizers.get(kernel_regularizer),
            "bias_regularizer": regularizers.get(bias_regularizer),
            "kernel_constraint": constraints.get(kernel_constraint),
            "bias_constraint": constraints.get(bias_constraint),
        }
        self.cross: CrossAttention | None = None
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
        self.output_initializer = output_initializer or kernel_initializer
        self._keep: Array | None = None
        self._bias: Array | None = None

    def call_values(
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[list[Any], bool]:
        set_causal(self, kwargs)
        if kwargs.get("attention_mask") is not None and kwargs.get("key") is None:
            values = args[1:2] or (kwargs.get("value"),)
            if len(args) < 3 and values[0] is not None:
                kwargs = {**kwargs, "key": values[0]}
        return super().call_values(args, kwargs)

    def build(self, input_shape: Any) -> Shape:
        self.several_inputs = is_several(input_shape)
        if self.several_inputs:
            return self._build_cross(input_shape)
        features = self.check_features(input_shape, rank=2)
        if self.value_dim not in (None, self.key_dim) or self.width is not None:
            raise ArgumentError(
                "MultiHeadAttention: expected value_dim and output_shape with a query "
                "and a value",
                "one input",
                "call it as layer(x, x), or leave them out",
            )
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
        o = self.options
        self.qkv = self.child("qkv", Dense(width, None, **o))
        o = {**o, "kernel_initializer": self.output_initializer}
        self.output = self.child("output", Dense(features, None, **o))
        self.qkv.build_once(input_shape)
        return self.output.build_once((input_shape[0], inner))

    def _build_cross(self, shapes: tuple[Shape, ...]) -> Shape:
        if self.rope_theta is not None or self.num_kv_heads != self.num_heads:
            raise ArgumentError(
                "MultiHeadAttention: expected rope_theta and num_kv_heads with one "
                "input alone",
                f"{len(shapes)} inputs",
                "leave them out, or call it on one tensor",
            )
        cross = CrossAttention(
            self.num_heads,
            self.key_dim,
            self.value_dim,
            self.width,
            self.causal,
            self.dropout,
            self.seed,
            self.options,
        )
        self.cross = self.child("cross", cross)
        return cross.build_once(shapes)  # type: ignore[arg-type]

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

    def forward(self, x: Any, training: Training = False) -> Array:
        if self.cross is not None:
            self.cross.mask = self.mask
            return self.cross.forward(x, training)
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
            keep_factors(self._keep, self.dropout, training, self.path, work, self.seed)
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
        return False if self.cross is not None else self.output.output_spare()

    def output_mask(self) -> Array | None:
        return self.mask if self.cross is None else self.cross.output_mask()

    def _key_bias(self) -> Array | None:
        if self.mask is None:
            return None
        bias = self.buffer("bias", self.mask.shape)
        np.multiply(~self.mask, bias.dtype.type(MASKED), out=bias)
        return bias

    def backward(self, dy: Array, done: Done = nothing) -> Any:
        if self.cross is not None:
            return self.cross.backward(dy, done)
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
        epsilon: of the norms.
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
