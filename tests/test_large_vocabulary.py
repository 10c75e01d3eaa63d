"""Head and loss in pieces of rows give what they give as a whole."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest

import fastserve as fs
from fastserve.data.sources import ArraySource, Batch
from fastserve.models import GPT
from fastserve.training import large_vocabulary
from fastserve.training.step import Options

TIME, VOCABULARY = 12, 1500


def sequential(bias: bool) -> Any:
    model = fs.models.Sequential(
        [
            fs.layers.Embedding(VOCABULARY, 8, input_shape=(TIME,)),
            fs.layers.Dense(VOCABULARY, use_bias=bias),
        ],
        seed=1,
        dtype="float64",
    )
    loss = fs.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adamw", loss, metrics=["accuracy"])
    return model


def gpt() -> Any:
    model = GPT(VOCABULARY, TIME, 2, 2, 8, 0.1, seed=2, dtype="float64")
    model.compile("adamw", metrics=["accuracy"])
    return model


def results(make: Any, weights: Any, **options: Any) -> list[Any]:
    tokens = np.random.default_rng(0).integers(0, VOCABULARY, (7, TIME + 1))
    x, y = tokens[:, :-1].copy(), tokens[:, 1:].copy()
    model = make()
    model.options = Options(**options)
    trainer = model.prepare(ArraySource(x, y))
    trainer.train_batch(Batch(x, y, weights), slice(0, 7), 7, 0)
    grads = model.store.grads.copy()
    evaluated = trainer.evaluate(ArraySource(x, y, weights), 5)
    return [trainer.totals.copy(), grads, list(evaluated.values())]


@pytest.mark.parametrize(
    "make", [gpt, lambda: sequential(True), lambda: sequential(False)]
)
@pytest.mark.parametrize(
    "weights", [None, np.arange(7.0), np.arange(7.0 * TIME).reshape(7, TIME)]
)
@pytest.mark.parametrize("options", [{}, {"micro_batch": 4, "recompute": False}])
def test_pieces_change_nothing(
    monkeypatch: pytest.MonkeyPatch, make: Any, weights: Any, options: Any
) -> None:
    whole = results(make, weights, **options)
    monkeypatch.setattr(large_vocabulary, "PIECE_BYTES", 100_000)  # 8 rows and a bit
    calls = []
    rows = large_vocabulary.PiecewiseHead._pieces

    def counted(self: Any, *arguments: Any) -> Any:
        for piece in rows(self, *arguments):
            calls.append(piece[0])
            yield piece

    monkeypatch.setattr(large_vocabulary.PiecewiseHead, "_pieces", counted)
    pieces = results(make, weights, **options)
    assert len(calls) > 10
    for one, other in zip(pieces, whole, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("make", [gpt, lambda: sequential(True)])
def test_a_frozen_head_has_no_gradient(
    monkeypatch: pytest.MonkeyPatch, make: Any
) -> None:
    """Neither time nor memory is spent on it, and the others' are the same."""
    found = []
    for size in (1 << 30, 100_000):
        monkeypatch.setattr(large_vocabulary, "PIECE_BYTES", size)
        model = make()
        assert model.count_params()
        if isinstance(model, GPT):
            model.add_lora(2, 4, dropout=0.0)
        else:
            for parameter in model.root.layers[-1].parameters():
                parameter.trainable = False
            model._renew_store()
        tokens = np.random.default_rng(0).integers(0, VOCABULARY, (7, TIME + 1))
        x, y = tokens[:, :-1].copy(), tokens[:, 1:].copy()
        trainer = model.prepare(ArraySource(x, y))
        trainer.train_batch(Batch(x, y, None), slice(0, 7), 7, 0)
        # they share memory, and the smaller ones may have written to its start
        kernel = max(model.store.frozen_parameters, key=lambda p: p.size)
        assert not kernel.grad.reshape(-1)[1000:].any()
        found.append(model.store.values.copy())
    np.testing.assert_allclose(found[0], found[1], rtol=1e-9, atol=1e-12)


def test_logits_are_never_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(large_vocabulary, "PIECE_BYTES", 100_000)
    tokens = np.random.default_rng(0).integers(0, VOCABULARY, (64, TIME + 1))
    x, y = tokens[:, :-1].copy(), tokens[:, 1:].copy()
    model = GPT(VOCABULARY, TIME, 1, 1, 2)
    model.compile()
    trainer = model.prepare(ArraySource(x, y))
    tracemalloc.start()
    for step in range(2):
        trainer.train_batch(Batch(x, y, None), slice(0, 64), 64, step)
        trainer.evaluate(ArraySource(x, y), 64)
        _, peak = tracemalloc.get_traced_memory()
        assert peak < 64 * TIME * VOCABULARY * 4 / 2
        tracemalloc.reset_peak()
    tracemalloc.stop()
