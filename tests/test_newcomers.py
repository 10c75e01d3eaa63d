"""What users of Keras try first: it works as there, or the error says what to do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastserve as fs
from fastserve.errors import ArgumentError, ShapeError

L = fs.layers


def small() -> fs.Sequential:
    return fs.Sequential(
        [fs.Input((4,)), L.Dense(3), L.ReLU(), L.Dense(1, name="last")]
    )


def test_layers_and_their_weights_have_keras_names() -> None:
    model = small()
    assert [layer.label for layer in model.layers] == ["Dense", "ReLU", "Dense"]
    assert model.get_layer("dense") is model.layers[0] is model.get_layer(index=0)
    assert model.get_layer("last") is model.layers[2]
    assert model.count_params() == 19 == model.layers[0].count_params() + 4
    kernel, bias = model.layers[0].get_weights()
    assert (kernel.shape, bias.shape) == ((4, 3), (3,))
    model.layers[0].set_weights([kernel + 1, bias])
    np.testing.assert_array_equal(model.get_weights()[0], kernel + 1)
    assert model.trainable_variables == model.variables == model.trainable_weights
    with pytest.raises(ShapeError, match="expected 2 arrays"):
        model.layers[0].set_weights([kernel])


def test_texts_as_the_input_of_a_model() -> None:
    texts, y = np.array(["good film", "bad film", "good", "bad"]), [1, 0, 1, 0]
    words, others = (L.TextVectorization(output_sequence_length=3) for _ in "ab")
    words.adapt(texts)
    others.adapt(texts)
    start = fs.Input(shape=(1,), dtype="string")
    end = L.Dense(1, "sigmoid")(L.LSTM(4)(L.Embedding(9, 4)(words(start))))
    for model in (
        fs.Model(start, end),
        fs.Sequential([fs.Input((), dtype="string"), others, L.Flatten(), L.Dense(1)]),
    ):
        model.compile("adam", "mse")
        model.fit(texts, y, verbose=0)
        assert model.predict(texts, verbose=0).shape == (4, 1)
        assert model.predict(list(texts), verbose=0).shape == (4, 1)


def test_one_number_for_each_sample() -> None:
    model = fs.Sequential([fs.Input((1,)), L.Dense(1)])
    model.compile("sgd", "mse")
    model.fit(np.arange(8.0) / 8, np.ones(8), verbose=0)
    assert model.predict(np.arange(3.0), verbose=0).shape == (3, 1)


class WithCall(fs.layers.Layer):
    def build(self, input_shape: Any) -> Any:
        self.w = self.add_weight(shape=(4, 2), initializer="zeros")


def test_what_needs_a_tape_says_so() -> None:
    with pytest.raises(ArgumentError, match=r"self\.param(.|\n)*no automatic"):
        fs.Sequential([WithCall()]).build((4,))
    with pytest.raises(AttributeError, match="use NumPy's functions"):
        fs.ops.mean  # noqa: B018
    with pytest.raises(AttributeError, match=r"fs\.models"):
        fs.saving.load_model  # noqa: B018
    with pytest.raises(AttributeError, match="give the seed to the model"):
        fs.utils.set_random_seed(0)


def test_a_model_is_not_written_under_the_ending_of_keras_files(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match=r"doesn't end in \.h5"):
        small().save(tmp_path / "a.h5")
    assert not list(tmp_path.iterdir())
