"""Perplexity, bits per byte, GFLOP/s, and evaluation on a fixed part of the data."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastserve as fs
from fastserve.assemble.data import make_data
from fastserve.comm import Communicator, run_threads
from fastserve.config import load_job
from fastserve.data.sources import ArraySource, TokenSource
from fastserve.losses import MeanSquaredError, SparseCategoricalCrossentropy
from fastserve.metrics import perplexity
from fastserve.models import GPT
from fastserve.training.flops import flops_per_sample
from fastserve.training.language import bits_per_byte, language_measures


def test_a_uniform_model_has_the_perplexity_of_its_vocabulary() -> None:
    assert perplexity(math.log(50)) == pytest.approx(50)
    assert bits_per_byte(math.log(256), 1.0) == pytest.approx(8)
    assert bits_per_byte(math.log(256), 4.0) == pytest.approx(2)
    assert perplexity(1e4) == math.inf
    assert math.isnan(perplexity(math.nan))


def test_what_has_no_perplexity() -> None:
    tokens = TokenSource(np.arange(9), 4)
    entropy = SparseCategoricalCrossentropy(from_logits=True)
    assert language_measures(1.0, entropy, tokens, None) == {"perplexity": math.e}
    assert language_measures(1.0, MeanSquaredError(), tokens, 1.0) == {}
    smoothed = SparseCategoricalCrossentropy(from_logits=True, label_smoothing=0.1)
    assert language_measures(1.0, smoothed, tokens, 1.0) == {}
    table = ArraySource(np.ones((2, 3)), np.ones(2))
    assert language_measures(1.0, entropy, table, 1.0) == {}


@pytest.mark.parametrize(
    ("tokenizer", "expected"), [("byte", 1.0), ("char", (3 + 2 + 3 + 1) / 4)]
)
def test_bytes_of_a_token(tmp_path: Path, tokenizer: str, expected: float) -> None:
    (tmp_path / "text.txt").write_text("€é€a" * 60, "utf-8")
    (tmp_path / "job.yaml").write_text(
        f"""
name: job
model: {{type: gpt, block_size: 4}}
data: {{type: text, source: {tmp_path}/text.txt, tokenizer: {tokenizer},
       validation_split: 0.5}}
train: {{steps: 1}}
"""
    )
    data = make_data(load_job(tmp_path / "job.yaml"))
    assert data.bytes_per_token == pytest.approx(expected)


@pytest.mark.parametrize("width", [64, 384])
def test_operations_of_a_gpt(width: int) -> None:
    model = GPT(65, 128, n_layer=3, n_head=4, n_embd=width)
    weights = 12 * 3 * width**2 + 65 * width  # a token's products; the head is tied
    attention = 2 * 3 * width * 128  # of the half below the diagonal
    expected = 3.0 * 128 * (2 * weights + attention)
    assert flops_per_sample(model.root) == expected


def test_operations_of_a_stack() -> None:
    for shape, expected in (((5,), 6 * 5 * 7), ((None, 5), 6 * 5 * 7 * 11)):
        model = fs.models.Sequential([fs.layers.Dense(7, input_shape=shape)])
        model.build(shape)
        assert flops_per_sample(model.root, time=11) == expected


def regression(samples: int) -> tuple[Any, Any, fs.models.Sequential]:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((samples, 3)).astype(np.float32)
    model = fs.models.Sequential([fs.layers.Dense(1, input_shape=(3,))], seed=1)
    model.compile(fs.optimizers.SGD(0.05), "mse")
    return x, x.sum(axis=1, keepdims=True), model


def test_validation_steps_take_the_first_batches_on_any_ranks() -> None:
    def program(comm: Communicator) -> list[float]:
        x, y, model = regression(50)
        history = model.fit(
            x, y, 8, 3, 0, validation_data=(x, y), validation_steps=2
        ).history["val_loss"]
        last = model.evaluate(x[:16], y[:16], 8, verbose=0)
        assert history[-1] == pytest.approx(last, rel=1e-6)
        return history

    expected = run_threads(1, program)[0]
    for ranks in (2, 3):
        for found in run_threads(ranks, program):
            np.testing.assert_allclose(found, expected, rtol=1e-5)
