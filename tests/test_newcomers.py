"""What users of Keras try first: it works as there, or the error says what to do."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastserve as fs
from fastserve.errors import ArgumentError, ShapeError
from launch.cli import main

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


def test_a_model_is_not_written_under_the_ending_of_keras_files(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match=r"doesn't end in \.h5"):
        small().save(tmp_path / "a.h5")
    assert not list(tmp_path.iterdir())


X, LABELS = np.random.default_rng(0).random((12, 4)), np.arange(12) % 3
ONE_HOT = np.eye(3)[LABELS]
CROSSENTROPY = fs.losses.CategoricalCrossentropy


def fit(
    loss: Any, activation: str | None, x: Any = X, y: Any = ONE_HOT, **k: Any
) -> None:
    model = fs.Sequential([L.Dense(4, "relu"), L.Dense(3, activation)])
    model.compile("adam", loss)
    model.fit(x, y, verbose=0, **k)


MISTAKES: dict[str, Any] = {
    "a softmax before logits": lambda: fit(CROSSENTROPY(from_logits=True), "softmax"),
    "no softmax": lambda: fit("categorical_crossentropy", None),
    "no sigmoid": lambda: fit("binary_crossentropy", None),
    "names as class weights": lambda: fit("mse", None, class_weight={"cat": 2.0}),
    "a share above 1": lambda: fit("mse", None, validation_split=1.5),
    "inputs without targets": lambda: fit("mse", None, validation_data=X),
    "no rows": lambda: fit("mse", None, X[:0], ONE_HOT[:0]),
    "texts": lambda: fit("mse", None, np.array(["a"] * 12)),
    "labels": lambda: fit("categorical_crossentropy", "softmax", y=LABELS),
    "NaN": lambda: fit("mse", None, np.full((12, 4), np.nan)),
    "a loud verbose": lambda: small().predict(X, verbose="loud"),
    "a mode": lambda: fs.callbacks.EarlyStopping(mode="lowest"),
    "a rate as text": lambda: fs.optimizers.Adam("0.1"),  # type: ignore[arg-type]
    "an optimizer": lambda: fs.Sequential().compile("adamm", "mse"),
    "a shape that is a number": lambda: fs.Input(784),  # type: ignore[arg-type]
    "an input_shape likewise": lambda: L.Dense(3, input_shape=784),  # type: ignore
    "no units": lambda: L.Dense(0),
    "channels first": lambda: L.Conv2D(4, 3, data_format="channels_first"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_told_in_three_parts(mistake: str) -> None:
    with pytest.raises(fs.errors.FastserveError) as error:
        MISTAKES[mistake]()
    assert error.value.expected
    assert error.value.received
    assert error.value.todo


def test_files_of_keras_are_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "a.keras"
    path.write_bytes(b"PK\x03\x04" + bytes(100))
    with pytest.raises(fs.errors.CheckpointError, match="format of Keras"):
        fs.models.load_model(path)


def test_long_lists_of_names_are_not_shown_beside_the_nearest() -> None:
    with pytest.raises(fs.errors.UnknownNameError) as error:
        fs.Sequential([L.Dense(1)]).compile("adam", "binary_crosentropy")
    assert error.value.todo == "did you mean 'binary_crossentropy'?"


JOB = """
name: job
data: {type: arrays, file: data.npz}
model:
  type: sequential
  layers: [{Dense: {units: 4}}, LAYER]
  loss: mse
  metrics: [mae]
train: {global_batch: 8, epochs: 1}
"""


@pytest.mark.parametrize(
    ("old", "new", "wanted"),
    [
        ("LAYER", "{Denze: {units: 2}}", r"line 6: model\.layers\[1\]: .*'Dense'\?"),
        ("LAYER", "{Dense: {unit: 2}}", r"\[1\]: Dense: .*among units, (.|\n)*'units'"),
        (
            "LAYER",
            "{Dense: {units: two}}",
            r"\[1\]: Dense: .*units (.|\n)*'two'",
        ),
        ("loss: mse", "loss: mze", r"line 7: model\.loss: .*the name of a loss"),
        ("[mae]", "[maee]", r"line 8: .*metrics\[0\]: .*the name of a metric"),
    ],
)
def test_check_looks_at_names_and_arguments(
    old: str,
    new: str,
    wanted: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    np.savez("data.npz", x=X, y=LABELS)
    text = JOB.replace(old, new).replace("LAYER", "{Dense: {units: 1}}")
    Path("job.yaml").write_text(text)
    with pytest.raises(SystemExit) as status:
        main(["check", "job.yaml"])
    assert status.value.code == 2
    assert re.search(wanted, capsys.readouterr().err)
