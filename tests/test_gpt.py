"""GPT: generation, steady memory, equal training on any split of the batch."""

from __future__ import annotations

import gc
import sys
import tracemalloc
from collections.abc import Callable
from types import FrameType
from typing import Any

import numpy as np
import pytest

import fastserve as fs
from fastserve.comm import Communicator, run_threads
from fastserve.data import Sampler, TokenSource
from fastserve.errors import ArgumentError, DataError, ShapeError
from fastserve.models import GPT
from fastserve.models.generation import choose
from fastserve.training.step import Options

TOKENS = np.random.default_rng(0).integers(0, 11, 2000)


def small(**keys: Any) -> GPT:
    options = {"block_size": 16, "n_layer": 2, "n_head": 2, "n_embd": 16, "seed": 1}
    model = GPT(11, **(options | keys))
    model.compile(fs.optimizers.AdamW(1e-3))
    return model


def test_weights_follow_gpt2() -> None:
    model = small(n_layer=3)
    paths = {p.path: p for p in model.store.parameters}
    assert "blocks.2.mlp.contract.kernel" in paths
    assert paths["tokens.embeddings"].users == 2
    expected = 11 * 16 + 16 * 16 + 3 * (12 * 16 * 16 + 13 * 16) + 2 * 16
    assert model.count_params() == expected
    residual = paths["blocks.0.attention.heads.output.kernel"].value.std()
    assert residual == pytest.approx(0.02 / np.sqrt(6), rel=0.15)
    # the tied table is complete last in backward, so it is in the last bucket
    bucket = model.store.parameters_of_bucket(len(model.store.buckets) - 1)
    assert "tokens.embeddings" in [p.path for p in bucket]


@pytest.mark.parametrize(
    ("ranks", "micro_batch"), [(2, None), (3, None), (1, 3), (2, 2)]
)
@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_splits_of_the_batch_agree(
    ranks: int, micro_batch: int | None, dropout: float
) -> None:
    def program(comm: Communicator, micro_batch: int | None) -> list[float]:
        model = small(dropout=dropout)
        model.options = Options(micro_batch)
        source = TokenSource(TOKENS, 16)
        return model.fit(source, batch_size=12, epochs=3, verbose=0).history["loss"]

    whole = run_threads(1, lambda comm: program(comm, None))[0]
    for losses in run_threads(ranks, lambda comm: program(comm, micro_batch)):
        np.testing.assert_allclose(losses, whole, rtol=1e-5)


def largest_allocation(run: Callable[[], object]) -> tuple[int, str]:
    """Return the most memory that a single call in ``run`` had taken, and its line.

    A profile hook resets the traced peak at each call and return, so what is seen
    between two of them is what one line or one C function allocates. NumPy's own
    buffers, of a fixed number of elements for each operand of a ufunc, are made small
    for that time: together they would come near the limit, whatever the arrays' size.
    """
    largest, place = 0, ""
    usual = np.setbufsize(1024)

    def watch(frame: FrameType, event: str, argument: object) -> None:
        nonlocal largest, place
        current, peak = tracemalloc.get_traced_memory()
        if peak - current > largest or current - state[0] > largest:
            largest = max(peak - current, current - state[0])
            place = f"{frame.f_code.co_filename}:{frame.f_lineno} {argument}"
        state[0] = current
        tracemalloc.reset_peak()

    gc.collect()
    tracemalloc.start()
    state = [tracemalloc.get_traced_memory()[0]]
    sys.setprofile(watch)
    try:
        run()
    finally:
        sys.setprofile(None)
        tracemalloc.stop()
        np.setbufsize(usual)
    return largest, place


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_a_step_allocates_nothing_large(dropout: float) -> None:
    model = GPT(65, 128, 2, 4, 64, dropout, seed=1)
    model.compile(fs.optimizers.AdamW(1e-3))
    model.clip_norm = 1.0
    model.options = Options(micro_batch=8)
    source = TokenSource(np.random.default_rng(0).integers(0, 65, 40_000), 128)
    trainer = model.prepare(source)
    sampler = Sampler(source.samples, 16, 1, shuffle=True, wrap=True)
    for step in range(3):
        trainer.train(source, sampler, step)
    activations = 8 * 128 * 64 * 4
    assert activations > 64_000  # so that one fresh array of them would be seen
    size, place = largest_allocation(lambda: trainer.train(source, sampler, 3))
    assert size < 64_000, place


def test_the_allocation_test_sees_a_fresh_array() -> None:
    size, place = largest_allocation(lambda: np.ones(20_000, np.float32).sum())
    assert size >= 80_000
    assert "test_gpt.py" in place or "numeric.py" in place


def test_generation_is_seeded_and_greedy_repeats_itself() -> None:
    model = small()
    one = model.generate([1, 2], 30, seed=3)
    assert one == model.generate([1, 2], 30, seed=3)
    assert one != model.generate([1, 2], 30, seed=4)
    greedy = model.generate([1, 2], 30, temperature=0, seed=3)
    assert greedy == model.generate([1, 2], 30, temperature=0, seed=4)
    assert greedy == model.generate([1, 2], 30, top_k=1)
    assert greedy == model.generate([1, 2], 30, top_p=1e-9)
    assert len(one) == 30
    assert all(0 <= token < 11 for token in one)


def test_generation_sees_the_last_block_of_the_context() -> None:
    model = small()
    long = TOKENS[:40].tolist()
    assert model.generate(long, 5, seed=1) == model.generate(long[-16:], 5, seed=1)


def test_choose_follows_the_probabilities() -> None:
    logits = np.log(np.array([0.5, 0.3, 0.15, 0.05]))
    rng = np.random.default_rng(0)

    def shares(*options: Any) -> np.ndarray:
        drawn = [choose(logits, *options, rng) for _ in range(4000)]
        return np.bincount(drawn, minlength=4) / 4000

    np.testing.assert_allclose(
        shares(1.0, None, None), [0.5, 0.3, 0.15, 0.05], atol=0.03
    )
    np.testing.assert_allclose(shares(1.0, 2, None), [0.625, 0.375, 0, 0], atol=0.03)
    np.testing.assert_allclose(shares(1.0, None, 0.75), [0.625, 0.375, 0, 0], atol=0.03)
    cold = np.array([0.5, 0.3, 0.15, 0.05]) ** 2
    np.testing.assert_allclose(shares(0.5, None, None), cold / cold.sum(), atol=0.03)


@pytest.mark.parametrize(
    ("keys", "kind"),
    [
        ({"prompt": []}, DataError),
        ({"prompt": [11]}, DataError),
        ({"temperature": -1.0}, ArgumentError),
        ({"temperature": float("nan")}, ArgumentError),
        ({"top_k": 0}, ArgumentError),
        ({"top_p": 0.0}, ArgumentError),
        ({"tokens": -1}, ArgumentError),
    ],
)
def test_bad_generation(keys: dict[str, Any], kind: type[Exception]) -> None:
    with pytest.raises(kind) as error:
        small().generate(**({"prompt": [1], "tokens": 3} | keys))
    assert "expected" in str(error.value)
    assert "received" in str(error.value)


def test_bad_shapes_and_tokens() -> None:
    with pytest.raises(ArgumentError):
        small(n_embd=17)
    model = small()
    with pytest.raises(ShapeError):
        model.predict(np.zeros((1, 17), np.int64))
    with pytest.raises(DataError) as error:
        model.fit(TokenSource(np.full(100, 11), 16), verbose=0)
    assert "11" in str(error.value)
    with pytest.raises(DataError):
        TokenSource(np.zeros(20, np.int64), 16)
