"""Dropout: the numbers are the sample's, whoever computes it."""

from __future__ import annotations

import numpy as np
import pytest
from gradcheck import prepare

from fastserve import layers
from fastserve.core import StepKey

RATE = 0.3


def masks(key: StepKey | bool, batch: int, path: str = "") -> np.ndarray:
    """Return the factors that a dropout layer of this path applies."""
    layer = layers.Dropout(RATE)
    prepare(layer, (40, 50), np.float32)
    layer.path = path
    return layer.forward(np.ones((batch, 40, 50), np.float32), key).copy()


def test_share_and_mean() -> None:
    factors = masks(StepKey(1), 20)
    assert set(np.unique(factors)) == {0, np.float32(1 / (1 - RATE))}
    # 40,000 draws: three standard deviations are 0.007
    assert (factors == 0).mean() == pytest.approx(RATE, abs=0.007)
    assert factors.mean() == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("size", [1, 2, 3, 6])
def test_micro_batches_get_the_same_factors(size: int) -> None:
    whole = masks(StepKey(1, 4), 6)
    parts = [masks(StepKey(1, 4, row), size) for row in range(0, 6, size)]
    assert np.array_equal(np.concatenate(parts), whole)


def test_samples_steps_seeds_and_layers_differ() -> None:
    first = masks(StepKey(1, 4), 2)
    assert not np.array_equal(first[0], first[1])
    for other in (
        masks(StepKey(1, 5), 2),
        masks(StepKey(2, 4), 2),
        masks(StepKey(1, 4), 2, "blocks.0"),
    ):
        # independent factors agree in 0.3² + 0.7² = 58 % of the places
        assert (first == other).mean() == pytest.approx(0.58, abs=0.03)


def test_next_step_does_not_repeat_another_sample() -> None:
    one = masks(StepKey(1, 4), 3)
    other = masks(StepKey(1, 5), 3)
    agreement = [(a == b).mean() for a in one for b in other]
    assert max(agreement) < 0.65


def test_inactive_without_training_or_rate() -> None:
    layer = layers.Dropout(RATE)
    x = np.ones((2, 3))
    assert layer.forward(x, False) is x
    assert layer.backward(x) is x
    assert layers.Dropout(0.0).forward(x, StepKey()) is x


def test_attention_weights_are_dropped_by_sample() -> None:
    layer = layers.MultiHeadAttention(2, dropout=RATE)
    prepare(layer, (7, 6))
    x = np.random.default_rng(0).standard_normal((4, 7, 6))
    whole = layer.forward(x, StepKey(3, 2)).copy()
    for first in (0, 2):
        part = layer.forward(x[first : first + 2], StepKey(3, 2, first))
        np.testing.assert_allclose(part, whole[first : first + 2], rtol=1e-10)
    other = layer.forward(x, StepKey(3, 3)).copy()
    plain = layer.forward(x, False)
    assert not np.allclose(other, whole)
    assert not np.allclose(plain, whole)


def test_residual_streams_have_factors_of_their_own() -> None:
    block = layers.Chain(layers.Dropout(RATE), layers.Dropout(RATE))
    prepare(block, (400,))
    block.forward(np.ones((1, 400)), StepKey())
    first, second = (layer._buffers["keep"] for layer in block.layers)
    assert (first == second).mean() == pytest.approx(0.58, abs=0.08)
