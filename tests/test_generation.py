"""Generation: with kept keys and values, the same tokens as without."""

from __future__ import annotations

import gc
import tracemalloc
from typing import Any

import numpy as np
import pytest

from fastserve.core import generator
from fastserve.errors import ArgumentError, DataError
from fastserve.layers import Chain, Dense
from fastserve.models import GPT
from fastserve.models.generation import FIRST, Decoder, choose, likeliest
from fastserve.ops import vector

VOCABULARY, BLOCK = 31, 24
OPTIONS: list[dict[str, Any]] = [
    {},
    {"variant": "llama"},
    {"variant": "llama", "n_kv_head": 2, "rope_theta": 100.0},
    {"variant": "llama", "n_kv_head": 1, "tied": True},
    {"positions": "rotary", "mlp": "swiglu", "tied": False},
    {"bias": False, "norm": "rms"},
    {"variant": "llama", "positions": "learned", "norm": "layer", "bias": True},
]
options = pytest.mark.parametrize("keys", OPTIONS, ids=str)


def model_of(dtype: str = "float32", size: float = 0.15, **keys: Any) -> GPT:
    """Return a model whose next token depends on all that came before."""
    model = GPT(VOCABULARY, BLOCK, 3, 4, 32, dropout=0.1, dtype=dtype, **keys)
    rng = np.random.default_rng(5)
    for parameter in model.store.parameters:
        parameter.value[...] += size * rng.standard_normal(parameter.shape)
    return model


def plain_choice(
    logits: np.ndarray[Any, Any],
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    rng: np.random.Generator,
) -> int:
    """The definition: all tokens in order, cut, and drawn from."""
    if temperature == 0:
        return int(np.argmax(logits))
    scaled = logits.astype(np.float64) / temperature
    order = np.argsort(-scaled, kind="stable")[: top_k or len(scaled)]
    p = np.exp(scaled[order] - scaled[order[0]])
    p /= p.sum()
    if top_p is not None:
        kept = int(np.searchsorted(np.cumsum(p), top_p)) + 1
        order, p = order[:kept], p[:kept]
    cumulative = np.cumsum(p)
    drawn = int(np.searchsorted(cumulative, rng.random() * cumulative[-1], "right"))
    return int(order[min(drawn, len(order) - 1)])


def without_cache(
    model: GPT, prompt: list[int], tokens: int, *sampling: Any, seed: int = 0
) -> list[int]:
    """The definition: the last block_size tokens at once for each new one."""
    rng = generator(seed, "generate")
    context = list(prompt)
    for _ in range(tokens):
        window = np.array([context[-model.block_size :]])
        logits = model.forward(window)[0, -1].copy()
        context.append(plain_choice(logits, *sampling, rng))
    return context[len(prompt) :]


@options
@pytest.mark.parametrize("start", [1, 7, BLOCK - 1, BLOCK, BLOCK + 9])
def test_the_same_tokens_as_without_a_cache(keys: dict[str, Any], start: int) -> None:
    model = model_of(**keys)
    prompt = np.random.default_rng(1).integers(0, VOCABULARY, start).tolist()
    count = BLOCK + 6
    greedy = model.generate(prompt, count, temperature=0)
    assert greedy == without_cache(model, prompt, count, 0, None, None)
    for seed, sampling in ((3, (1.0, None, None)), (4, (0.7, 9, 0.9))):
        made = model.generate(prompt, count, *sampling, seed=seed)
        assert made == without_cache(model, prompt, count, *sampling, seed=seed)
    assert len(set(made)) > 3


@options
def test_logits_are_those_of_the_whole_context(keys: dict[str, Any]) -> None:
    model = model_of("float64", **keys)
    tokens = np.random.default_rng(2).integers(0, VOCABULARY, BLOCK).tolist()
    whole = model.forward(np.array([tokens]))[0].copy()
    for first in (1, 5):
        decoder = Decoder(model, BLOCK)
        np.testing.assert_allclose(decoder.start(tokens[:first]), whole[first - 1])
        for i in range(first, BLOCK):
            np.testing.assert_allclose(decoder.step(tokens[i]), whole[i], rtol=1e-9)
        assert decoder.full


def test_large_scores_do_not_overflow() -> None:
    model = model_of(size=3.0, variant="llama")
    prompt = [1, 2, 3]
    with np.errstate(all="raise", under="ignore"):
        made = model.generate(prompt, 12, temperature=0)
    assert made == without_cache(model, prompt, 12, 0, None, None)


def test_a_layer_of_another_kind_runs_its_own_forward() -> None:
    class Doubled(Dense):
        def forward(self, x: Any, training: Any = False) -> Any:
            y = super().forward(x, training)
            return np.multiply(y, 2, out=y)

    model = model_of()
    for _, layer in model.root.walk():
        if type(layer) is Dense:
            layer.__class__ = Doubled
    assert model.generate([1, 2], 12, 0) == without_cache(
        model, [1, 2], 12, 0, None, None
    )
    assert model.generate([1, 2], 12, 0) != model_of().generate([1, 2], 12, 0)


def test_weights_may_change_between_calls() -> None:
    model = model_of()
    before = model.generate([1], 12, 0)
    model.store.regroup(1 << 10)  # the weights move to other memory
    assert model.generate([1], 12, 0) == before
    model.store.values *= -1
    assert model.generate([1], 12, 0) == without_cache(model, [1], 12, 0, None, None)


def test_training_and_generation_take_turns() -> None:
    tokens = np.random.default_rng(0).integers(0, VOCABULARY, (4, BLOCK + 1))
    losses = []
    for turns in (False, True):
        model = model_of(variant="llama")
        model.compile("sgd")
        for _ in range(3):
            losses.append(model.train_on_batch(tokens[:, :-1], tokens[:, 1:]))
            if turns:
                model.generate([1, 2], 5)
    assert losses[:3] == losses[3:]


def test_a_step_makes_no_large_arrays() -> None:
    model = GPT(VOCABULARY, 256, 2, 4, 256)
    decoder = Decoder(model, 256)
    decoder.start([1] * 200)
    decoder.step(2)
    gc.collect()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    decoder.step(3)
    peak = tracemalloc.get_traced_memory()[1] - before
    tracemalloc.stop()
    assert peak < 8_000


@pytest.mark.parametrize("size", [0.0, 0.3, 3.0, 30.0])
@pytest.mark.parametrize("count", [5, FIRST, 4 * FIRST])
def test_choose_is_its_definition(size: float, count: int) -> None:
    logits = size * np.random.default_rng(0).standard_normal(count)
    logits[3] = logits[1]
    logits = logits.astype(np.float32)
    for temperature in (0.0, 0.3, 1.0):
        for top_k in (None, 1, 4, 3 * FIRST, 10**6):
            for top_p in (None, 1e-9, 0.3, 0.99, 1.0):
                ours, plain = np.random.default_rng(7), np.random.default_rng(7)
                for _ in range(8):
                    sampling = (temperature, top_k, top_p)
                    made = choose(logits, *sampling, ours)
                    assert made == plain_choice(logits, *sampling, plain), sampling


def test_likeliest_takes_the_first_of_equals() -> None:
    values = np.array([1.0, 3.0, 2.0, 3.0, 2.0])
    assert likeliest(values, 3).tolist() == [1, 3, 2]
    assert likeliest(values, 9).tolist() == [1, 3, 2, 4, 0]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("rows", "columns"), [(3, 5), (1500, 384), (129, 1025)])
def test_products(rows: int, columns: int, threads: int) -> None:
    rng = np.random.default_rng(0)
    x, matrix = rng.standard_normal(rows), rng.standard_normal((rows, columns))
    y = np.full(columns, np.nan)
    vector.product(rows, columns, threads)(x, matrix, y)
    np.testing.assert_allclose(y, x @ matrix, atol=1e-12)
    y[:] = np.nan
    vector.table_product(threads)(x, np.ascontiguousarray(matrix.T), y)
    np.testing.assert_allclose(y, x @ matrix, atol=1e-12)


def test_products_without_vecdot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vector, "_vecdot", None)  # NumPy 1.26
    table = np.arange(6.0).reshape(3, 2)
    y = np.empty(3)
    vector.table_product(1)(table[1], table, y)
    assert y.tolist() == [3.0, 13.0, 23.0]


def test_no_tokens_are_no_work() -> None:
    assert model_of().generate([1], 0) == []


@pytest.mark.parametrize(
    ("keys", "kind", "part"),
    [
        ({"prompt": []}, DataError, "an empty prompt"),
        ({"prompt": np.array([], np.int64)}, DataError, "an empty prompt"),
        ({"prompt": [1, VOCABULARY]}, DataError, "tokens from 0 to 30"),
        ({"prompt": [-1]}, DataError, "tokens from 0 to 30"),
        ({"prompt": [1.5]}, DataError, "a prompt of integers"),
        ({"prompt": "ab"}, DataError, "a prompt of integers"),
        ({"tokens": -1}, ArgumentError, "tokens, an integer of 0 or more"),
        ({"tokens": 2.5}, ArgumentError, "tokens, an integer of 0 or more"),
        ({"temperature": -0.1}, ArgumentError, "temperature of 0 or more"),
        ({"temperature": float("inf")}, ArgumentError, "temperature of 0 or more"),
        ({"top_k": 0}, ArgumentError, "top_k of 1 or more"),
        ({"top_p": 1.1}, ArgumentError, "top_p above 0 and up to 1"),
    ],
    ids=str,
)
def test_bad_input(keys: dict[str, Any], kind: type[Exception], part: str) -> None:
    with pytest.raises(kind) as error:
        model_of().generate(**({"prompt": [1], "tokens": 3} | keys))
    for word in ("expected", part, "received", "to do"):
        assert word in str(error.value)


def test_the_blocks_are_found_inside_of_other_layers() -> None:
    model = model_of()
    expected = model.generate([1, 2], 12, 0)
    blocks = model.root.children()["blocks"]
    assert isinstance(blocks, Chain)
    for i, block in enumerate(blocks.layers):
        wrapper = Chain(block)
        wrapper.build_once(block.input_shape or ())
        blocks.layers[i] = blocks._children[str(i)] = wrapper
    assert model.generate([1, 2], 12, 0) == expected
