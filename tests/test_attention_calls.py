"""Calls of attention, softmax and categories as Keras' users write them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastserve as fs
from fastserve.errors import ArgumentError, ShapeError

L = fs.layers
RNG = np.random.default_rng(2)
QUERY, VALUE = RNG.standard_normal((3, 4, 6)), RNG.standard_normal((3, 5, 7))
MASK = RNG.random((3, 4, 5)) < 0.6
MASK[..., 0] = True


def test_heads_of_a_query_and_a_value(tmp_path: Path) -> None:
    query, value, mask = fs.Input((4, 6)), fs.Input((5, 7)), fs.Input((4, 5))
    layer = L.MultiHeadAttention(2, key_dim=3)
    out = layer(query, value, attention_mask=mask, use_causal_mask=True)
    assert out.shape == (None, 4, 6)
    model = fs.Model([query, value, mask], out, seed=1)
    model.compile("adam", "mse")
    y = RNG.standard_normal((3, 4, 6))
    data: Any = [QUERY, VALUE, MASK]
    model.fit(data, y, batch_size=2, verbose=0)
    found = model.predict(data, verbose=0)
    changed = VALUE.copy()
    changed[:, 2:] += 1  # the first two positions look at no later ones
    other = model.predict([QUERY, changed, MASK], verbose=0)
    np.testing.assert_array_equal(other[:, :2], found[:, :2])
    assert not np.allclose(other[:, 2:], found[:, 2:])
    model.save(tmp_path / "m.safetensors")
    loaded = fs.models.load_model(tmp_path / "m.safetensors")
    np.testing.assert_array_equal(loaded.predict(data, verbose=0), found)
    with pytest.raises(ArgumentError, match="use_causal_mask"):
        layer(query, value, use_causal_mask=False)


def test_one_tensor_is_self_attention_and_two_of_the_same_are_keras() -> None:
    x = fs.Input((4, 6))
    own = L.MultiHeadAttention(2)
    own(x)
    assert [p.name for p in own.parameters()] == ["kernel", "bias"] * 2
    keras = L.MultiHeadAttention(2, 3)
    keras(x, x)
    shapes = [p.shape for p in keras.parameters()]
    assert shapes == [(6, 2, 3), (2, 3)] * 3 + [(2, 3, 6), (6,)]
    with pytest.raises(ArgumentError, match="value_dim"):
        L.MultiHeadAttention(2, 3, 5)(x)
    with pytest.raises(ArgumentError, match="rope_theta"):
        L.MultiHeadAttention(2, 4, rope_theta=10.0)(x, x)
    with pytest.raises(ShapeError, match="query"):
        L.MultiHeadAttention(2, 3)(x, fs.Input((4,)))


def test_a_decoder_with_masks_of_tokens() -> None:
    """Padding of the source doesn't change what is made of it."""
    source, target = fs.Input((5,)), fs.Input((4,))
    table = L.Embedding(9, 6, mask_zero=True)
    memory, x = table(source), table(target)
    x = L.Attention()([x, memory], use_causal_mask=True)
    x = L.AdditiveAttention()([x, memory])
    x = L.LayerNormalization()(L.MultiHeadAttention(2, 3)(x, memory))
    model = fs.Model([source, target], L.Dense(9, "softmax")(x), seed=1)
    model.compile("adam", "sparse_categorical_crossentropy")
    tokens = RNG.integers(1, 9, (6, 5))
    tokens[:, 3:] = 0
    labels = RNG.integers(1, 9, (6, 4))
    model.fit([tokens, labels], labels, epochs=2, verbose=0)
    found = model.predict([tokens, labels], verbose=0)
    table.embeddings.value[0] = 7  # of the padding
    again = model.predict([tokens, labels], verbose=0)
    np.testing.assert_allclose(again, found, rtol=1e-5, atol=1e-7)


def test_softmax_with_a_mask_and_counts_with_weights() -> None:
    x, mask = fs.Input((5,)), fs.Input((5,))
    model = fs.Model([x, mask], L.Softmax()(x, mask))
    scores, keep = RNG.standard_normal((3, 5)), RNG.random((3, 5)) < 0.5
    keep[:, 0] = True
    y = model.predict([scores, keep], verbose=0)
    assert (y[~keep] == 0).all()
    np.testing.assert_allclose(y.sum(axis=1), 1, rtol=1e-6)
    layer = L.CategoryEncoding(4, "count")
    found = layer(np.array([[0, 3, 3]]), count_weights=np.array([[1.0, 2.0, 0.5]]))
    np.testing.assert_allclose(found, [[1, 0, 0, 2.5]])


def test_preprocessing_layers_compute_on_arrays() -> None:
    x = RNG.uniform(0, 255, (2, 6, 6, 3)).astype(np.uint8)
    assert L.Resizing(3, 4)(x).shape == (2, 3, 4, 3)
    np.testing.assert_allclose(L.Rescaling(1 / 255)(x), x / 255, rtol=1e-6)
    np.testing.assert_array_equal(L.RandomFlip()(x), x)
    assert L.RandomRotation(0.2)(x, training=True).shape == x.shape
    norm = L.Normalization()
    norm.adapt(x.astype(float))
    assert abs(norm(x).mean()) < 1e-4
    assert L.Discretization([100.0])(np.array([[1.0, 200.0]])).tolist() == [[0, 1]]
