"""Attention: against the plain formula, masks, causality, and scores that overflow."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from gradcheck import check_directions, prepare

from fastserve import layers
from fastserve.core import StepKey
from fastserve.ops import attention as ops

B, T, H, D = 2, 11, 3, 4


def plain(qkv: np.ndarray, causal: bool, bias: np.ndarray | None = None) -> np.ndarray:
    """The formula as it stands, in float64: (B, T, 3, H, d) -> (B, T, H, d)."""
    q, k, v = (qkv[:, :, i].astype(np.float64).transpose(0, 2, 1, 3) for i in range(3))
    s = q @ k.transpose(0, 1, 3, 2) / np.sqrt(q.shape[-1])
    if bias is not None:
        s = s + bias[:, None, None, :]
    if causal:
        s = np.where(np.tri(s.shape[-1], dtype=bool), s, -np.inf)
    p = np.exp(s - s.max(-1, keepdims=True))
    return (p / p.sum(-1, keepdims=True) @ v).transpose(0, 2, 1, 3)


def attend(qkv: np.ndarray, causal: bool, **masks: Any) -> np.ndarray:
    batch, time, _, heads, width = qkv.shape
    out = np.full((batch, time, heads, width), np.nan, qkv.dtype)
    lse = np.full((batch, heads, time), np.nan, qkv.dtype)
    ops.attention(qkv, out, lse, causal, **masks)
    assert np.isfinite(lse).all()
    return out


def example(time: int = T, size: float = 1.0, dtype: Any = np.float64) -> np.ndarray:
    rng = np.random.default_rng(2)
    return (size * rng.standard_normal((B, time, 3, H, D))).astype(dtype)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("time", [1, 2, ops.TILE - 1, ops.TILE, ops.TILE + 1, 150])
def test_is_the_plain_formula(causal: bool, time: int) -> None:
    qkv = example(time)
    np.testing.assert_allclose(attend(qkv, causal), plain(qkv, causal), atol=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("size", [1.0, 10.0, 40.0])
def test_large_scores_take_the_maximum_first(size: float, dtype: Any) -> None:
    qkv = example(150, size, dtype)
    scores = np.einsum("bqhd,bkhd->bhqk", qkv[:, :, 0], qkv[:, :, 1]) / np.sqrt(D)
    assert (scores.max() > ops.LARGE) == (size > 5)
    # a score has an error of its own size; exp makes it a relative one
    error = float(np.finfo(dtype).eps * np.abs(scores).max() * size * 4)
    np.testing.assert_allclose(
        attend(qkv, True), plain(qkv, True), rtol=0, atol=error + 1e-12
    )


def test_very_small_scores_take_the_maximum_first() -> None:
    qkv = example(5)
    qkv[:, :, 0] = 20.0
    # scores are about -800, where exp is 0, but differ by some
    qkv[:, :, 1] = 0.05 * qkv[:, :, 1] - 20.0
    np.testing.assert_allclose(attend(qkv, False), plain(qkv, False), atol=1e-12)


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("causal", [False, True])
def test_gradients_where_the_maximum_is_taken(sign: float, causal: bool) -> None:
    rng = np.random.default_rng(0)
    qkv = example(7)
    # scores of about 200 or -200 that differ by a few
    qkv[:, :, 0] = 10 + 0.1 * qkv[:, :, 0]
    qkv[:, :, 1] = sign * 10 + 0.1 * qkv[:, :, 1]
    dout = rng.standard_normal((B, 7, H, D))
    out, lse = np.empty((B, 7, H, D)), np.empty((B, H, 7))
    ops.attention(qkv, out, lse, causal)
    assert (np.abs(lse) > 150).all()
    dqkv = np.full_like(qkv, np.nan)
    ops.attention_backward(dout, out, qkv, lse, dqkv, causal)

    def value() -> float:
        return float((attend(qkv, causal) * dout).sum())

    check_directions(value, [qkv], [dqkv], rng)


def test_a_head_group_is_part_of_the_heads() -> None:
    groups = list(ops.head_groups(12, 1024))
    assert len(groups) > 1
    assert [h for g in groups for h in range(g.start, g.stop)] == list(range(12))
    size = (groups[0].stop - groups[0].start) * ops.TILE * 1024
    assert size <= ops.WORK


def test_groups_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    qkv = example(60)
    whole = attend(qkv, True)
    monkeypatch.setattr(ops, "WORK", 1)
    assert len(list(ops.head_groups(H, 60))) == H
    np.testing.assert_allclose(attend(qkv, True), whole, rtol=1e-12)


def masked_layer(causal: bool) -> tuple[layers.MultiHeadAttention, np.ndarray]:
    layer = layers.MultiHeadAttention(2, causal=causal)
    prepare(layer, (T, 6))
    rng = np.random.default_rng(0)
    layer.mask = np.arange(T) < np.array([[T], [4]])
    return layer, rng.standard_normal((2, T, 6))


@pytest.mark.parametrize("causal", [False, True])
def test_masked_positions_have_no_influence(causal: bool) -> None:
    layer, x = masked_layer(causal)
    y = layer.forward(x).copy()
    other = x.copy()
    other[1, 4:] = 50 * np.random.default_rng(1).standard_normal((T - 4, 6))
    again = layer.forward(other)
    assert np.array_equal(again[0], y[0])
    np.testing.assert_allclose(again[1, :4], y[1, :4], rtol=1e-12)
    # and they are the positions of a shorter input
    short = masked_layer(causal)[0]
    short.mask = None
    np.testing.assert_allclose(short.forward(x[1:, :4])[0], y[1, :4], rtol=1e-12)


@pytest.mark.parametrize("causal", [False, True])
def test_masked_positions_get_no_gradient(causal: bool) -> None:
    layer, x = masked_layer(causal)
    dy = np.random.default_rng(1).standard_normal(x.shape)
    dy[1, 4:] = 0  # the loss doesn't count them
    layer.forward(x, StepKey())
    dx = layer.backward(dy)
    assert np.array_equal(dx[1, 4:], np.zeros((T - 4, 6)))
    assert (dx[1, :4] != 0).all()


def test_a_sample_that_is_all_padding_stays_finite() -> None:
    layer, x = masked_layer(True)
    layer.mask = np.zeros((2, T), bool)
    assert np.isfinite(layer.forward(x, StepKey())).all()
    assert np.isfinite(layer.backward(np.ones_like(x))).all()


def test_mask_reaches_through_an_embedding() -> None:
    table = layers.Embedding(9, 6, mask_zero=True)
    model = layers.Chain(table, layers.TransformerBlock(2))
    prepare(model, (5,))
    x = np.array([[3, 4, 0, 0, 0], [3, 4, 5, 6, 7]])
    y = model.forward(x).copy()
    mask = model.output_mask()
    assert mask is not None
    assert np.array_equal(mask, x != 0)
    table.embeddings.value[0] = 100.0  # what the padding looks like
    np.testing.assert_allclose(model.forward(x)[0, :2], y[0, :2], rtol=1e-12)


@pytest.mark.parametrize("time", [9, 2 * ops.TILE + 3])
def test_causal_looks_at_the_past_alone(time: int) -> None:
    block = layers.TransformerBlock(2, causal=True)
    prepare(block, (time, 6))
    x = np.random.default_rng(0).standard_normal((1, time, 6))
    y = block.forward(x, StepKey()).copy()
    cut = time // 2
    other = x.copy()
    other[:, cut:] += 1
    again = block.forward(other, StepKey()).copy()
    np.testing.assert_allclose(again[:, :cut], y[:, :cut], rtol=1e-12)
    assert not np.isclose(again[:, cut:], y[:, cut:]).all(axis=-1).any()
    dy = np.zeros_like(x)
    dy[:, cut - 1] = 1
    dx = block.backward(dy)
    assert not dx[:, cut:].any()
    assert dx[:, :cut].any(axis=-1).all()
    # a shorter input gives the same first positions
    np.testing.assert_allclose(block.forward(x[:, :cut]), y[:, :cut], rtol=1e-12)


def test_without_causal_every_position_counts() -> None:
    layer = layers.MultiHeadAttention(2)
    prepare(layer, (6, 4))
    x = np.random.default_rng(0).standard_normal((1, 6, 4))
    layer.forward(x)
    dy = np.zeros_like(x)
    dy[0, 0] = 1
    assert layer.backward(dy).any(axis=-1).all()
