"""Attention of a query to values: Attention, AdditiveAttention, and with heads.

Shapes: query (B, T, D), value (B, S, V), key (B, S, D); scores and weights (B, T, S).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from fastserve.core import (
    Array,
    Done,
    Layer,
    Shape,
    Training,
    initializers,
    is_several,
    nothing,
)
from fastserve.errors import ArgumentError, ShapeError, UnknownNameError
from fastserve.layers.dropout import check_rate, check_seed, keep_factors
from fastserve.ops.blocks import FLAT, as_rows, spare
from fastserve.ops.linear import sum_rows
from fastserve.ops.softmax import softmax, softmax_backward

_MASKED = 1e9  # subtracted from scores that don't count
SCORE_MODES = ("dot", "concat")


def causal(queries: int, keys: int) -> Array:
    """Return (T, S): position t looks at those up to itself."""
    found: Array = np.arange(queries)[:, None] >= np.arange(keys)
    return found


def set_causal(layer: Any, kwargs: dict[str, Any]) -> None:
    """Take use_causal_mask from a call: it counts for the layer, and is saved."""
    wanted = kwargs.pop("use_causal_mask", None)
    if wanted is None or bool(wanted) == layer.causal:
        return
    if layer.built:
        raise ArgumentError(
            f"{type(layer).__name__}: expected use_causal_mask alike in all calls",
            f"{wanted} after {layer.causal}",
            "make another layer",
        )
    layer.causal = bool(wanted)
    args, given = layer.arguments
    layer.arguments = (args, {**given, "causal": layer.causal})


class Attention(Layer):
    """y = softmax(scores) value, for [query, value] or [query, value, key].

    Luong, Pham, Manning, "Effective approaches to attention-based neural machine
    translation", 2015. Without a key, the value is the key. Scores are query · key; or
    with ``score_mode`` 'concat' Σ tanh(query + key) over the features. Masks of query
    and value are heeded: positions of the value that are left out get no weight, and
    those of the query give 0. Weights: ``scale`` (a number) if ``use_scale``, and
    ``concat_score_weight`` (a number) for 'concat'.

    Args:
        use_scale: the scores, or for 'concat' query + key, are multiplied by ``scale``.
        dropout: share of the weights of values that is dropped in training.
        causal: positions look at earlier ones and themselves alone; also as
            ``use_causal_mask=True`` in the call.
    """

    several_inputs = True

    def __init__(
        self,
        use_scale: bool = False,
        score_mode: str = "dot",
        dropout: float = 0.0,
        seed: int | None = None,
        causal: bool = False,
        input_shape: Any = None,
        name: str | None = None,
    ) -> None:
        super().__init__(input_shape, name)
        if score_mode not in SCORE_MODES:
            raise UnknownNameError("score_mode", score_mode, SCORE_MODES)
        self.use_scale, self.score_mode = use_scale, score_mode
        self.dropout = check_rate(type(self).__name__, dropout)
        self.seed = check_seed(type(self).__name__, seed)
        self.causal = causal
        self._xs: tuple[Array, ...] | None = None

    def call_values(
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[list[Any], bool]:
        set_causal(self, kwargs)
        return super().call_values(args, kwargs)

    def build(self, input_shape: Any) -> Shape:
        shapes: tuple[Shape, ...] = input_shape if is_several(input_shape) else ()
        kind = type(self).__name__
        if len(shapes) not in (2, 3):
            raise ShapeError(
                f"{kind}: expected a list [query, value] or [query, value, key]",
                f"shape {input_shape}",
                f"{kind}()([query, value])",
            )
        query, value, key = shapes[0], shapes[1], shapes[-1]
        if (
            any(len(s) != 2 or s[1] is None for s in shapes)
            or query[1] != key[1]
            or value[0] != key[0]
        ):
            raise ShapeError(
                f"{kind}: expected query (batch, time, features), value (batch, "
                "others, any) and key (batch, others, features)",
                f"samples of shapes {', '.join(map(str, shapes))}",
                "change the layers before, or give a key",
            )
        self.make_weights(int(query[1] or 0))
        return (query[0], value[1])

    def make_weights(self, features: int) -> None:
        if self.use_scale:
            self.scale = self.param("scale", (), initializers.Ones())
        if self.score_mode == "concat":
            self.concat_score_weight = self.param(
                "concat_score_weight", (), initializers.Ones()
            )

    def forward(self, xs: tuple[Array, ...], training: Training = False) -> Array:
        self._xs = xs
        query, value, key = xs[0], xs[1], xs[-1]
        batch, queries = query.shape[:2]
        weights = self.buffer("weights", (batch, queries, key.shape[1]))
        self.scores(query, key, weights)
        allowed = self._allowed(queries, key.shape[1])
        if allowed is not None:
            np.subtract(
                weights, weights.dtype.type(_MASKED), out=weights, where=~allowed
            )
        softmax(as_rows(weights), as_rows(weights))
        used = weights
        self._keep = None
        if training and self.dropout:
            self._keep = self.buffer("keep", weights.shape)
            work = self.buffer("random", weights.shape[1:], np.float32)
            keep_factors(self._keep, self.dropout, training, self.path, work, self.seed)
            used = np.multiply(
                weights, self._keep, out=self.buffer("used", weights.shape)
            )
        self._used = used
        y = self.buffer("y", (batch, queries, value.shape[2]))
        np.matmul(used, value, out=y)
        left_out = self._left_out()
        if left_out is not None:
            y[left_out] = 0
        return y

    def _masks(self) -> tuple[Any, ...]:
        return self.mask if isinstance(self.mask, tuple) else (None, None)

    def _left_out(self) -> Array | None:
        mask = self._masks()[0]
        return None if mask is None else ~mask

    def _allowed(self, queries: int, keys: int) -> Array | None:
        """Return which values a query may look at, to be broadcast, or None for all."""
        mask = self._masks()[1]
        allowed = causal(queries, keys) if self.causal else None
        if mask is None:
            return allowed
        mask = mask[:, None, :]
        return mask if allowed is None else mask & allowed

    def backward(self, dy: Array, done: Done = nothing) -> Any:
        xs = self.saved(self._xs)
        query, value, key = xs[0], xs[1], xs[-1]
        left_out = self._left_out()
        if left_out is not None:
            masked = self.scratch(dy.shape)
            np.copyto(masked, dy)
            masked[left_out] = 0
            dy = masked
        dvalue = self.scratch(value.shape)
        np.matmul(self._used.transpose(0, 2, 1), dy, out=dvalue)
        weights = self._buffers["weights"]
        dscores = self.scratch(weights.shape)
        np.matmul(dy, value.transpose(0, 2, 1), out=dscores)
        if self._keep is not None:
            np.multiply(dscores, self._keep, out=dscores)
        softmax_backward(as_rows(dscores), as_rows(weights), as_rows(dscores))
        dquery, dkey = self.scratch(query.shape), self.scratch(key.shape)
        self.scores_backward(dscores, query, key, dquery, dkey)
        if len(xs) == 3:
            return dquery, dvalue, dkey
        return dquery, np.add(dvalue, dkey, out=dvalue)

    def output_mask(self) -> Array | None:
        mask: Array | None = self._masks()[0]
        return mask

    # -- scores ------------------------------------------------------------------

    def scores(self, query: Array, key: Array, scores: Array) -> None:
        """Write scores (B, T, S)."""
        if self.score_mode == "concat":
            self._tanh_scores(query, key, scores)
            return
        np.matmul(query, key.transpose(0, 2, 1), out=scores)
        if self.use_scale:
            np.multiply(scores, self.scale.value, out=scores)

    def scores_backward(
        self, ds: Array, query: Array, key: Array, dquery: Array, dkey: Array
    ) -> None:
        """Write dquery and dkey; ds may be overwritten."""
        if self.score_mode == "concat":
            self._tanh_backward(ds, query, key, dquery, dkey)
            return
        np.matmul(ds, key, out=dquery)
        if self.use_scale:  # Σ ds (query · key)
            np.einsum("btd,btd->", dquery, query, out=self.scale.grad)
            np.multiply(ds, self.scale.value, out=ds)
            np.multiply(dquery, self.scale.value, out=dquery)
        np.matmul(ds.transpose(0, 2, 1), query, out=dkey)

    def tanh_factors(self) -> tuple[Any, Any]:
        """Return a and w of Σ w tanh(a (query + key)), numbers or (D)."""
        inner = self.scale.value if self.use_scale else None
        return inner, self.concat_score_weight.value

    def put_tanh_gradients(self, inner: float, outer: Array) -> None:
        """Take Σ of the gradients of a, and those of w (D)."""
        self.concat_score_weight.grad[...] = outer.sum()
        if self.use_scale:
            self.scale.grad[...] = inner

    def _pairs(self, query: Array, key: Array) -> Iterator[tuple[int, slice, Array]]:
        """Yield (sample, queries, query + key (t, S, D)), in pieces."""
        step = max(1, FLAT // max(1, key[0].size))
        for b in range(len(query)):
            for start in range(0, query.shape[1], step):
                part = slice(start, min(start + step, query.shape[1]))
                shape = (part.stop - part.start, *key.shape[1:])
                out = spare(0, np.broadcast_to(query[:1, :1, :1], shape))
                yield b, part, np.add(query[b, part, None], key[b], out=out)

    def _tanh_scores(self, query: Array, key: Array, scores: Array) -> None:
        inner, outer = self.tanh_factors()
        weights = np.broadcast_to(outer, query.shape[2:]).astype(query.dtype)
        for b, part, pairs in self._pairs(query, key):
            if inner is not None:
                np.multiply(pairs, inner, out=pairs)
            np.tanh(pairs, out=pairs)
            np.matmul(pairs, weights, out=scores[b, part])

    def _tanh_backward(
        self, ds: Array, query: Array, key: Array, dquery: Array, dkey: Array
    ) -> None:
        inner, outer = self.tanh_factors()
        weights = np.broadcast_to(outer, query.shape[2:]).astype(query.dtype)
        douter, dinner = np.zeros(query.shape[2]), 0.0
        dkey.fill(0)
        for b, part, pairs in self._pairs(query, key):
            t = np.multiply(pairs, 1 if inner is None else inner, out=spare(1, pairs))
            np.tanh(t, out=t)
            grad = ds[b, part]
            douter += np.einsum("ts,tsd->d", grad, t)
            np.multiply(t, t, out=t)
            np.subtract(t.dtype.type(1), t, out=t)
            np.multiply(t, weights, out=t)
            np.multiply(t, grad[:, :, None], out=t)  # of a (query + key)
            if inner is not None:
                dinner += float(np.einsum("tsd,tsd->", t, pairs))
                np.multiply(t, inner, out=t)
            np.add.reduce(t, axis=1, out=dquery[b, part])
            np.add(dkey[b], np.add.reduce(t, axis=0), out=dkey[b])
        self.put_tanh_gradients(dinner, douter)


class AdditiveAttention(Attention):
    """y = softmax(Σ scale tanh(query + key)) value: [query, value] or with a key.

    Bahdanau, Cho, Bengio, "Neural machine translation by jointly learning to align and
    translate", 2014. Masks and arguments are those of ``Attention``. Weights: ``scale``
    (features) if ``use_scale``.
    """

    def __init__(
        self,
        use_scale: bool = True,
        dropout: float = 0.0,
        seed: int | None = None,
        causal: bool = False,
        input_shape: Any = None,
        name: str | None = None,
    ) -> None:
        super().__init__(use_scale, "concat", dropout, seed, causal, input_shape, name)

    def make_weights(self, features: int) -> None:
        if self.use_scale:
            init = initializers.get("glorot_uniform")
            self.scale = self.param("scale", (features,), init)

    def tanh_factors(self) -> tuple[Any, Any]:
        return None, self.scale.value if self.use_scale else 1

    def put_tanh_gradients(self, inner: float, outer: Array) -> None:
        if self.use_scale:
            self.scale.grad[...] = outer


class Projection(Layer):
    """y = x W + b with W and b of more axes, which count as one.

    (batch, time, inputs), whatever axes they have -> (batch, time, outputs). Weights:
    ``kernel`` (*inputs, *outputs) and, if ``use_bias``, ``bias`` (outputs).
    """

    def __init__(
        self,
        inputs: tuple[int, ...],
        outputs: tuple[int, ...],
        options: dict[str, Any],
    ) -> None:
        super().__init__()
        self.inputs, self.outputs, self.options = inputs, outputs, options
        self._x: Array | None = None

    def build(self, input_shape: Shape) -> Shape:
        o = self.options
        self.kernel = self.param(
            "kernel",
            (*self.inputs, *self.outputs),
            o["kernel_initializer"],
            regularizer=o["kernel_regularizer"],
            constraint=o["kernel_constraint"],
        )
        if o["use_bias"]:
            self.bias = self.param(
                "bias",
                self.outputs,
                o["bias_initializer"],
                False,
                o["bias_regularizer"],
                o["bias_constraint"],
            )
        self._width = (int(np.prod(self.inputs)), int(np.prod(self.outputs)))
        return (*input_shape[:-1], self._width[1])

    def forward(self, x: Array, training: Training = False) -> Array:
        self._x = x
        y = self.buffer("y", (*x.shape[:2], self._width[1]))
        np.matmul(as_rows(x), self.kernel.value.reshape(self._width), out=as_rows(y))
        if self.options["use_bias"]:
            np.add(y, self.bias.value.reshape(-1), out=y)
        return y

    def backward(self, dy: Array, done: Done = nothing) -> Any:
        x, rows = as_rows(self.saved(self._x)), as_rows(dy)
        if self.kernel.trainable:
            np.matmul(x.T, rows, out=self.kernel.grad.reshape(self._width))
        if self.options["use_bias"] and self.bias.trainable:
            sum_rows(rows, self.bias.grad.reshape(-1))
        dx = self.scratch((*dy.shape[:2], self._width[0]))
        np.matmul(rows, self.kernel.value.reshape(self._width).T, out=as_rows(dx))
        return dx


class CrossAttention(Layer):
    """What ``MultiHeadAttention`` is inside when it is called on a query and a value.

    With query q, key k and value v, each a projection to heads:
    y = output(softmax(q · k / sqrt(key_dim)) v). A query that may look at nothing
    gets 0. Weights: ``kernel`` and ``bias`` of ``query`` and ``key`` (features, heads,
    key_dim), ``value`` (features, heads, value_dim) and ``attention_output`` (heads,
    value_dim, features). Saves the weights of all heads, (batch, heads, T, S).
    """

    inline = True
    several_inputs = True

    def __init__(
        self,
        num_heads: int,
        key_dim: int | None,
        value_dim: int | None,
        output_width: int | None,
        causal: bool,
        dropout: float,
        seed: int | None,
        options: dict[str, Any],
    ) -> None:
        super().__init__()
        self.num_heads, self.key_dim, self.value_dim = num_heads, key_dim, value_dim
        self.output_width, self.causal = output_width, causal
        self.dropout, self.seed, self.options = dropout, seed, options

    def build(self, input_shape: Any) -> Shape:
        query, value = input_shape[:2]
        key = input_shape[2] if len(input_shape) > 2 else value
        if any(len(s) != 2 or s[1] is None for s in (query, value, key)) or (
            value[0] != key[0]
        ):
            raise ShapeError(
                "MultiHeadAttention: expected query (batch, time, features), value and "
                "key (batch, others, features)",
                f"samples of shapes {', '.join(map(str, input_shape))}",
                "change the layers before",
            )
        heads = self.num_heads
        key_dim = self.key_dim or max(1, query[1] // heads)
        value_dim = self.value_dim or key_dim
        self._dims = (key_dim, value_dim)
        self._count = len(input_shape)
        width = self.output_width or query[1]

        def part(name: str, ins: Any, outs: Any, shape: Shape) -> Projection:
            made = self.child(name, Projection(ins, outs, self.options))
            made.build_once(shape)
            return made

        self.query = part("query", (query[1],), (heads, key_dim), query)
        self.key = part("key", (key[1],), (heads, key_dim), key)
        self.value = part("value", (value[1],), (heads, value_dim), value)
        self.attention_output = part(
            "attention_output", (heads, value_dim), (width,), (query[0], 0)
        )
        return (query[0], width)

    def _split(self, name: str, x: Array, width: int) -> Array:
        """Return (batch, time, heads x width) as (batch, heads, time, width)."""
        out = self.buffer(name, (x.shape[0], self.num_heads, x.shape[1], width))
        np.copyto(out, x.reshape(*x.shape[:2], -1, width).transpose(0, 2, 1, 3))
        return out

    def _join(self, x: Array, out: Array) -> Array:
        batch, heads, time, width = x.shape
        np.copyto(out.reshape(batch, time, heads, width), x.transpose(0, 2, 1, 3))
        return out

    def _allowed(self, xs: tuple[Array, ...], queries: int, keys: int) -> Any:
        masks = self.mask if isinstance(self.mask, tuple) else (None,) * 3
        allowed = causal(queries, keys)[None] if self.causal else None
        query, value = masks[0], masks[1]
        key = masks[2] if len(masks) > 2 else None
        parts = [
            None if query is None else query[:, :, None],
            None if value is None else value[:, None, :],
            None if key is None else key[:, None, :],
            xs[3].astype(bool) if len(xs) > 3 else None,
        ]
        for mask in parts:
            if mask is not None:
                allowed = mask if allowed is None else allowed & mask
        return None if allowed is None else allowed[:, None]

    def forward(self, xs: tuple[Array, ...], training: Training = False) -> Array:
        key_in = xs[2] if len(xs) > 2 else xs[1]
        key_dim, value_dim = self._dims
        q = self._split("q", self.query.forward(xs[0], training), key_dim)
        k = self._split("k", self.key.forward(key_in, training), key_dim)
        v = self._split("v", self.value.forward(xs[1], training), value_dim)
        np.multiply(q, q.dtype.type(key_dim**-0.5), out=q)
        weights = self.buffer("weights", (*q.shape[:3], k.shape[2]))
        np.matmul(q, k.transpose(0, 1, 3, 2), out=weights)
        allowed = self._allowed(xs, q.shape[2], k.shape[2])
        if allowed is not None:
            lowest = weights.dtype.type(-_MASKED)
            np.copyto(weights, lowest, where=~allowed)
        softmax(as_rows(weights), as_rows(weights))
        if allowed is not None:
            np.multiply(weights, allowed, out=weights)
        used, self._keep = weights, None
        if training and self.dropout:
            self._keep = self.buffer("keep", weights.shape)
            work = self.buffer("random", weights.shape[1:], np.float32)
            keep_factors(self._keep, self.dropout, training, self.path, work, self.seed)
            used = np.multiply(
                weights, self._keep, out=self.buffer("used", weights.shape)
            )
        self._used = used
        out = self.buffer("out", (*q.shape[:3], value_dim))
        np.matmul(used, v, out=out)
        joined = self.buffer("joined", (len(q), q.shape[2], self.num_heads * value_dim))
        return self.attention_output.forward(self._join(out, joined), training)

    def backward(self, dy: Array, done: Done = nothing) -> Any:
        key_dim, value_dim = self._dims
        q, k, v = (self.saved(self._buffers.get(name)) for name in "qkv")
        dout = self._split("dout", self.attention_output.backward(dy), value_dim)
        done(self.attention_output)
        dv = self.scratch(v.shape)
        np.matmul(self._used.transpose(0, 1, 3, 2), dout, out=dv)
        weights = self._buffers["weights"]
        ds = self.scratch(weights.shape)
        np.matmul(dout, v.transpose(0, 1, 3, 2), out=ds)
        if self._keep is not None:
            np.multiply(ds, self._keep, out=ds)
        softmax_backward(as_rows(ds), as_rows(weights), as_rows(ds))
        dq, dk = self.scratch(q.shape), self.scratch(k.shape)
        np.matmul(ds, k, out=dq)
        np.multiply(dq, dq.dtype.type(key_dim**-0.5), out=dq)
        np.matmul(ds.transpose(0, 1, 3, 2), q, out=dk)
        dxs = []
        for layer, part in ((self.query, dq), (self.value, dv), (self.key, dk)):
            joined = self.scratch((len(part), part.shape[2], layer._width[1]))
            dxs.append(layer.backward(self._join(part, joined)))
            done(layer)
        if self._count == 2:
            return dxs[0], np.add(dxs[1], dxs[2], out=dxs[1])
        return (*dxs, None)[: self._count]

    def output_mask(self) -> Array | None:
        return self.mask[0] if isinstance(self.mask, tuple) else None
