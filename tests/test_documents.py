"""Several documents in a row give what each of them gives alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fastserve.layers.documents import document_starts
from fastserve.models import GPT
from fastserve.ops.attention import TILE

END = 7


def test_where_documents_start() -> None:
    tokens = np.array([[1, 7, 2, 2, 7, 7, 3], [7, 1, 1, 1, 1, 1, 7], [1] * 7])
    starts = np.empty(tokens.shape, np.int64)
    document_starts(tokens, END, starts)
    assert starts.tolist() == [
        [0, 0, 2, 2, 2, 5, 6],
        [0, 1, 1, 1, 1, 1, 1],
        [0] * 7,
    ]


@pytest.mark.parametrize("variant", ["gpt2", "llama"])
@pytest.mark.parametrize("lengths", [(5, 1, 9), (TILE + 3, 2 * TILE, 7), (3, TILE, 1)])
def test_each_document_is_as_alone(variant: str, lengths: tuple[int, ...]) -> None:
    rng = np.random.default_rng(3)
    time = sum(lengths)
    model = GPT(8, time, 2, 2, 16, seed=1, dtype="float64", variant=variant)
    for parameter in model.store.parameters:
        parameter.value[...] += 0.3 * rng.standard_normal(parameter.shape)
    parts: list[Any] = []
    for length in lengths:
        tokens = rng.integers(0, END, (2, length))
        tokens[:, -1] = END
        parts.append(tokens)
    row = np.concatenate(parts, axis=1)
    alone = [model.forward(tokens).copy() for tokens in parts]
    plain = model.forward(row).copy()
    model.reset_at = END
    found = model.forward(row)
    np.testing.assert_allclose(found, np.concatenate(alone, axis=1), atol=1e-10)
    assert np.abs(found - plain)[:, lengths[0] :].max() > 1e-2
    model.reset_at = None
    np.testing.assert_array_equal(model.forward(row), plain)


@pytest.mark.parametrize("variant", ["gpt2", "llama"])
def test_generation_keeps_documents_apart(variant: str) -> None:
    """Also behind an end token that was generated, and beyond the block's length."""
    model = GPT(8, 12, 2, 2, 16, seed=1, dtype="float64", variant=variant)
    rng = np.random.default_rng(5)
    for parameter in model.store.parameters:
        parameter.value[...] += 0.5 * rng.standard_normal(parameter.shape)
    prompt = [3, 1, END, 2, 5, END, 4]
    model.reset_at = END
    model.forward(np.array([prompt, prompt]))  # leaves its documents behind
    made = list(prompt)
    for _ in range(30):
        made.append(int(model.forward(np.array([made[-12:]]))[0, -1].argmax()))
        if len(made) % 4 == 0:
            made[-1] = END
    for cut in range(7, 36):
        found = model.generate(made[:cut], 1, 0)
        assert found == [
            int(model.forward(np.array([made[:cut][-12:]]))[0, -1].argmax())
        ]
    free = model.generate(prompt, 20, 0)
    slow = list(prompt)
    for _ in range(20):
        slow.append(int(model.forward(np.array([slow[-12:]]))[0, -1].argmax()))
    assert free == slow[len(prompt) :]
