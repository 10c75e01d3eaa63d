"""The smoke test: everything once, in two seconds."""

from __future__ import annotations

from pathlib import Path

import numpy as np

import fastserve as fs


def digits(samples: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return noisy 8 x 8 pictures of bars, and which of 8 columns the bar is in."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 8, samples)
    pictures = rng.standard_normal((samples, 8, 8)).astype(np.float32) * 0.3
    pictures[np.arange(samples), :, labels] += 1
    return pictures, labels


def test_mlp_from_arrays_to_file(tmp_path: Path) -> None:
    x, y = digits(400)
    model = fs.models.Sequential(
        [
            fs.layers.Flatten(),
            fs.layers.Dense(32, activation="relu"),
            fs.layers.Dense(8, activation="softmax"),
        ]
    )
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    history = model.fit(x, y, epochs=8, verbose=0, validation_split=0.2)
    assert history.history["val_accuracy"][-1] > 0.95
    assert history.history["loss"][-1] < history.history["loss"][0] / 2
    probabilities = model.predict(x)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)
    model.save(tmp_path / "model.safetensors")
    again = fs.models.load_model(tmp_path / "model.safetensors")
    np.testing.assert_array_equal(again.predict(x), probabilities)


def test_gpt_learns_a_text_and_goes_on_with_it() -> None:
    text = b"the quick brown fox jumps over the lazy dog. " * 40
    tokens = np.frombuffer(text, np.uint8).astype(np.int64)
    model = fs.models.GPT(128, block_size=32, n_layer=2, n_head=2, n_embd=32, seed=1)
    model.compile(fs.optimizers.AdamW(3e-3))
    source = fs.data.TokenSource(tokens, 32)
    history = model.fit(source, batch_size=8, epochs=30, verbose=0)
    assert history.history["loss"][0] > 3
    assert history.history["loss"][-1] < 0.5
    made = model.generate(list(b"the quick brown "), 20, temperature=0)
    assert bytes(made).startswith(b"fox jumps over")
