"""Generation: a token at a time, with the keys and values of all tokens before it.

The model's own layers run the prompt once; what their attention computed of keys and
values is kept. Each further token then takes one pass of products between a vector and
the weights, and one look at the kept keys and values of each block. Rounding aside,
the logits are those of the whole context at once.

Shapes: D width, H heads of queries, G of keys and values, R = H / G, T positions, d
width of a head.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fastserve.core import Array, Layer, generator
from fastserve.errors import ArgumentError, DataError
from fastserve.layers import (
    Dense,
    LayerNormalization,
    MultiHeadAttention,
    RMSNormalization,
    SwiGLU,
    TiedHead,
    TransformerBlock,
)
from fastserve.layers.lora import merged_kernel
from fastserve.ops import rotary, vector
from fastserve.ops.swiglu import swiglu

if TYPE_CHECKING:
    from fastserve.models.gpt import GPT

Step = Callable[[Array], Array]  # the vector of one token -> another one
FIRST = 256  # likeliest tokens that are put in order before all of them are


class Decoder:
    """A GPT with the keys and values of the context that it has seen.

    Args:
        model: its weights must not change while the decoder is in use.
        length: number of tokens to make room for, at most the model's block_size.
    """

    def __init__(self, model: GPT, length: int) -> None:
        self.model, self.length = model, min(length, model.block_size)
        self.count = 0  # tokens so far
        layers = model.root.children()
        self._inner = list(layers.values())[:-3]  # what is before the blocks
        self._norm, self._head = layers["norm"], layers["head"]
        self._tokens: Array = layers["tokens"].embeddings.value  # type: ignore
        learned = layers.get("positions")
        self._positions: Array | None = learned and learned.embeddings.value  # type: ignore
        self._x = np.empty(self._tokens.shape[1], model.dtype)
        threads = vector.blas_threads()
        self._blocks = [
            _Block(layer, self.length, threads)
            for _, layer in model.root.walk()
            if isinstance(layer, TransformerBlock)
        ]
        self._last = _one_token(self._norm, threads), _one_token(self._head, threads)

    @property
    def full(self) -> bool:
        """There is no room for another token."""
        return self.count >= self.length

    def start(self, tokens: Sequence[int]) -> Array:
        """Forget everything, run ``tokens`` at once; return the logits after the last
        one, (vocab_size)."""
        x: Array = np.array([tokens], np.int64)
        self.model.root.find_documents(x)  # type: ignore[attr-defined]
        for layer in self._inner:
            x = layer.forward(x, False)
        self.count = len(tokens)
        for block in self._blocks:
            x = block.layer.forward(x, False)
            if not self.full:  # or else nothing could follow that looks at them
                block.keep(self.count)  # the next block may use the same memory
        last = np.ascontiguousarray(x[:, -1:])
        logits: Array = self._head.forward(self._norm.forward(last))[0, 0]
        return logits

    def step(self, token: int) -> Array:
        """Add one token; return the logits after it, (vocab_size)."""
        x, position = self._x, self.count
        if self._positions is None:
            x[...] = self._tokens[token]
        else:
            np.add(self._tokens[token], self._positions[position], out=x)
        for block in self._blocks:
            block.step(x, position)
        self.count += 1
        norm, head = self._last
        return head(norm(x))


class _Block:
    """One block: its steps for one token, its keys and values (G, T, d)."""

    def __init__(self, block: TransformerBlock, length: int, threads: int) -> None:
        self.layer = block
        attention, mlp = (part.children() for part in block.layers)
        self._norm = _one_token(attention["norm"], threads)
        self._mlp_norm = _one_token(mlp["norm"], threads)
        self._mlp = [
            _one_token(layer, threads)
            for name, layer in mlp.items()
            if name not in ("norm", "dropout")
        ]
        self._heads = block.heads
        self._qkv = _one_token(self._heads.qkv, threads)
        self._output = _one_token(self._heads.merged, threads)
        self._cut_heads(self._heads, length)

    def _cut_heads(self, layer: MultiHeadAttention, length: int) -> None:
        self._queries, kept = layer.num_heads, layer.num_kv_heads
        width, dtype = layer.key_dim or 0, layer.dtype
        self._shape = kept, self._queries // kept, width
        self._cut = self._queries + kept
        self._scale = dtype.type(width**-0.5)
        self._keys = np.empty((kept, length, width), dtype)
        self._values = np.empty((kept, length, width), dtype)
        self._scores = np.empty(self._queries * length, dtype)
        self._out = np.empty(self._shape, dtype)
        self._angles: tuple[Array, Array] | None = None
        if layer.rope_theta is not None:
            known = (layer.input_shape or (None,))[0] or 0
            time = max(length, known)
            self._angles = rotary.angles(time, width, layer.rope_theta, dtype)
            self._other = np.empty((self._cut, 2, width // 2), dtype)

    def keep(self, count: int) -> None:
        """Take over keys and values of the ``count`` positions of the last forward."""
        qkv = self._heads.qkv.logits()[0].reshape(count, -1, self._shape[2])
        cut = self._cut
        self._keys[:, :count] = qkv[:, self._queries : cut].transpose(1, 0, 2)
        self._values[:, :count] = qkv[:, cut:].transpose(1, 0, 2)

    def step(self, x: Array, position: int) -> None:
        """Add to x (D) what the block does with the token at ``position``."""
        qkv = self._qkv(self._norm(x)).reshape(-1, self._shape[2])
        if self._angles is not None:
            cos, sin = self._angles
            pairs = qkv[: self._cut].reshape(self._other.shape)
            vector.rotate(pairs, cos[position], sin[position], self._other)
        q = qkv[: self._queries].reshape(self._shape)
        np.multiply(q, self._scale, out=q)
        seen = position + 1
        self._keys[:, position] = qkv[self._queries : self._cut]
        self._values[:, position] = qkv[self._cut :]
        scores = self._scores[: self._queries * seen].reshape(*self._shape[:2], seen)
        keys, values = self._keys[:, :seen], self._values[:, :seen]
        vector.attend(q, keys, values, scores, self._out)
        np.add(x, self._output(self._out.reshape(-1)), out=x)
        h = self._mlp_norm(x)
        for layer in self._mlp:
            h = layer(h)
        np.add(x, h, out=x)


def _one_token(layer: Layer, threads: int) -> Step:
    """Return the layer as a function of one token's vector, which keeps its memory.

    A layer that isn't known here runs its own ``forward``. ``threads`` are those of
    the BLAS.
    """
    kinds: dict[type[Layer], Callable[[Any, int], Step]] = {
        Dense: _dense,
        LayerNormalization: _layer_norm,
        RMSNormalization: _rms_norm,
        SwiGLU: _swiglu,
        TiedHead: _tied_head,
    }
    make = kinds.get(type(layer))
    if make is not None:
        return make(layer, threads)
    return lambda x: layer.forward(x[None, None])[0, 0]


def _dense(layer: Dense, threads: int) -> Step:
    kernel, activation = merged_kernel(layer), layer.activation
    bias = layer.bias.value if layer.use_bias else None
    y = np.empty(layer.units, layer.dtype)
    rows, columns = kernel.shape
    product = vector.product(rows, columns, threads)
    linear = activation.name == "linear"
    z = y[None] if activation.rows else y

    def step(x: Array) -> Array:
        product(x, kernel, y)
        if bias is not None:
            np.add(y, bias, out=y)
        if not linear:
            activation.value(z, z)
        return y

    return step


def _layer_norm(layer: LayerNormalization, threads: int) -> Step:
    gamma = layer.gamma.value if layer.scale else None
    beta = layer.beta.value if layer.center else None
    y = _row_of(layer)

    def step(x: Array) -> Array:
        vector.layer_norm(x, gamma, beta, layer.epsilon, y)
        return y

    return step


def _rms_norm(layer: RMSNormalization, threads: int) -> Step:
    gamma, y = layer.gamma.value, _row_of(layer)

    def step(x: Array) -> Array:
        vector.rms_norm(x, gamma, layer.epsilon, y)
        return y

    return step


def _swiglu(layer: SwiGLU, threads: int) -> Step:
    gate, expand = _one_token(layer.gate, threads), _one_token(layer.expand, threads)
    contract = _one_token(layer.contract, threads)
    h = np.empty(layer.units, layer.dtype)

    def step(x: Array) -> Array:
        swiglu(gate(x), expand(x), h)
        return contract(h)

    return step


def _tied_head(layer: TiedHead, threads: int) -> Step:
    table, y = layer.table.value, _row_of(layer)
    product = vector.table_product(threads)

    def step(x: Array) -> Array:
        product(x, table, y)
        return y

    return step


def _row_of(layer: Layer) -> Array:
    """Return memory for the layer's output for one token."""
    return np.empty((layer.output_shape or ())[-1] or 0, layer.dtype)


# -- sampling -------------------------------------------------------------------------


def generate(
    model: GPT,
    prompt: Sequence[int],
    tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
) -> list[int]:
    """Return ``tokens`` new tokens after ``prompt``; see ``GPT.generate``."""
    context = check_prompt(prompt, model.vocab_size)
    check_sampling(tokens, temperature, top_k, top_p)
    rng = generator(seed, "generate")
    start = len(context)
    decoder = Decoder(model, start + tokens)
    while len(context) < start + tokens:
        if decoder.count == 0 or decoder.full or _begins(context, model.reset_at):
            logits = decoder.start(_last_document(context, model))
        else:
            logits = decoder.step(context[-1])
        context.append(choose(logits, temperature, top_k, top_p, rng))
    return context[start:]


def _begins(context: list[int], end: int | None) -> bool:
    """Return whether the last token is the first of a document."""
    return end is not None and len(context) > 1 and context[-2] == end


def _last_document(context: list[int], model: GPT) -> list[int]:
    """Return what the last token may look at."""
    tokens = context[-model.block_size :]
    if model.reset_at in tokens[:-1]:
        return tokens[len(tokens) - 1 - tokens[-2::-1].index(model.reset_at) :]
    return tokens


def choose(
    logits: Array,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    rng: np.random.Generator,
) -> int:
    """Draw a token from ``logits`` (vocab_size); see ``GPT.generate``.

    The tokens are taken in the order of their probabilities, of equal ones the first;
    a few hundred nearly always are enough, and to order all costs more than a step.
    """
    if temperature == 0:
        return int(np.argmax(logits))
    scaled = logits.astype(np.float64) / temperature
    scaled -= scaled.max()
    if top_k is not None and top_k < len(scaled):
        tokens = likeliest(scaled, top_k)
        scaled = scaled[tokens]
    else:
        tokens = np.arange(len(scaled))
    p = np.exp(scaled)
    total, drawn = p.sum(), rng.random()
    for count in (FIRST, len(p)):
        order = likeliest(scaled, count)
        cumulative = np.cumsum(p[order])
        whole, last = total, len(order) - 1
        if top_p is not None:
            reached = int(np.searchsorted(cumulative, top_p * total))
            if reached > last and count < len(p):
                continue
            last = min(last, reached)
            whole = cumulative[last]
        if cumulative[-1] > drawn * whole:
            break
    place = int(np.searchsorted(cumulative, drawn * whole, "right"))
    return int(tokens[order[min(place, last)]])


def likeliest(values: Array, count: int) -> Array:
    """Return the indices of the ``count`` largest values, largest first, of equal ones
    the first one first."""
    if count < len(values):
        least = np.partition(values, -count)[-count]
        found = np.flatnonzero(values >= least)
    else:
        found = np.arange(len(values))
    return found[np.argsort(-values[found], kind="stable")[:count]]


def check_prompt(prompt: Sequence[int], vocab_size: int) -> list[int]:
    """Return the prompt as a list of integers; raise DataError unless it can be one."""
    tokens = list(prompt)
    if not tokens:
        raise DataError(
            "generate: expected a prompt of one token or more",
            "an empty prompt",
            "start with a newline, for example",
        )
    for token in tokens:
        if isinstance(token, bool) or not hasattr(token, "__index__"):
            raise DataError(
                "generate: expected a prompt of integers, the numbers of tokens",
                repr(token),
                "encode the prompt with the model's tokenizer",
            )
        if not 0 <= token < vocab_size:
            raise DataError(
                f"generate: expected tokens from 0 to {vocab_size - 1}",
                f"{token}",
                "encode the prompt with the model's tokenizer",
            )
    return [token.__index__() for token in tokens]


def check_sampling(
    tokens: int, temperature: float, top_k: int | None, top_p: float | None
) -> None:
    """Raise ArgumentError for options of ``GPT.generate`` outside of their range."""
    for fine, wanted, given in (
        (
            isinstance(tokens, int) and tokens >= 0,
            "tokens, an integer of 0 or more",
            tokens,
        ),
        (
            math.isfinite(temperature) and temperature >= 0,
            "a temperature of 0 or more",
            temperature,
        ),
        (top_k is None or top_k >= 1, "top_k of 1 or more", top_k),
        (top_p is None or 0 < top_p <= 1, "top_p above 0 and up to 1", top_p),
    ):
        if not fine:
            raise ArgumentError(
                f"generate: expected {wanted}", f"{given}", "change the argument"
            )
