"""The Keras surface of models: contracts, results, and errors before any work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastserve as fs
from fastserve.core import StepKey
from fastserve.errors import (
    ArgumentError,
    CheckpointError,
    DataError,
    ShapeError,
    StateError,
    UnknownNameError,
)

RNG = np.random.default_rng(0)
X = RNG.standard_normal((60, 6)).astype(np.float32)
LABELS = (X @ RNG.standard_normal((6, 3))).argmax(axis=1)
ONE_HOT = np.eye(3, dtype=np.float32)[LABELS]


def classifier(
    loss: str = "sparse_categorical_crossentropy", **keys: Any
) -> fs.models.Sequential:
    model = fs.models.Sequential(
        [fs.layers.Dense(8, "relu"), fs.layers.Dense(3, "softmax")], **keys
    )
    model.compile("sgd", loss, metrics=["accuracy"])
    return model


def three_parts(error: pytest.ExceptionInfo[Exception]) -> str:
    """Return the message, which says what was expected, received, and what to do."""
    message = str(error.value)
    assert "expected" in message
    assert "received:" in message
    return message


# -- building --------------------------------------------------------------------------


def test_three_ways_to_say_the_input_shape_give_the_same_weights() -> None:
    first = fs.models.Sequential([fs.layers.Dense(4, input_shape=(6,))], seed=5)
    second = fs.models.Sequential([fs.layers.Input((6,)), fs.layers.Dense(4)], seed=5)
    third = fs.models.Sequential([fs.layers.Dense(4)], seed=5)
    third.predict(X)
    kernel = first.get_weights()[0]
    np.testing.assert_array_equal(kernel, third.get_weights()[0])
    assert second.get_weights()[0].shape == kernel.shape
    assert [p.path for p in third.store.parameters] == [
        "0.kernel",
        "0.bias",
    ]


def test_the_seed_decides_the_weights() -> None:
    one, same, other = (
        fs.models.Sequential([fs.layers.Dense(4, input_shape=(6,))], seed=s)
        for s in (1, 1, 2)
    )
    np.testing.assert_array_equal(one.store.values, same.store.values)
    assert (one.get_weights()[0] != other.get_weights()[0]).all()


def test_a_model_without_a_shape_says_what_is_missing() -> None:
    model = classifier()
    with pytest.raises(StateError) as error:
        model.summary()
    assert "input_shape" in three_parts(error)


def test_layers_have_their_weights_where_the_input_is_known() -> None:
    dense = fs.layers.Dense(2)
    model = fs.models.Sequential([fs.layers.Input((3,)), dense])
    assert [w.shape for w in dense.get_weights()] == [(3, 2), (2,)]
    with pytest.raises(StateError) as error:
        model.add(fs.layers.Dense(2))
    three_parts(error)


def test_layers_cannot_be_added_to_weights() -> None:
    model = classifier()
    model.build((6,))
    with pytest.raises(StateError) as error:
        model.add(fs.layers.Dense(2))
    three_parts(error)


def test_the_same_layer_twice_is_refused() -> None:
    layer = fs.layers.Dense(6)
    with pytest.raises(ArgumentError) as error:
        fs.models.Sequential([layer, layer])
    three_parts(error)


def test_summary(capsys: pytest.CaptureFixture[str]) -> None:
    model = classifier()
    model.build((6,))
    model.summary()
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].split() == ["0", "(Dense)", "(batch,", "8)", "56"]
    assert lines[-1] == "83 weights in float32"


# -- compile ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "near"),
    [
        ({"optimizer": "adm", "loss": "mse"}, "adam"),
        ({"optimizer": "adam", "loss": "mean_square_error"}, "mean_squared_error"),
        ({"optimizer": "adam", "loss": "mse", "metrics": ["acuracy"]}, "accuracy"),
    ],
)
def test_unknown_names_at_compile(keys: dict[str, Any], near: str) -> None:
    with pytest.raises(UnknownNameError) as error:
        classifier().compile(**keys)
    assert f"did you mean '{near}'" in three_parts(error)


@pytest.mark.parametrize("verb", ["fit", "evaluate", "train_on_batch"])
def test_a_model_that_is_not_compiled(verb: str) -> None:
    model = fs.models.Sequential([fs.layers.Dense(3)])
    with pytest.raises(StateError) as error:
        getattr(model, verb)(X, LABELS)
    assert "call compile" in three_parts(error)


# -- fit -------------------------------------------------------------------------------


def test_history_has_a_value_an_epoch() -> None:
    history = classifier().fit(
        X, LABELS, epochs=3, verbose=0, validation_data=(X, LABELS)
    )
    assert history.epoch == [0, 1, 2]
    assert list(history.history) == ["loss", "accuracy", "val_loss", "val_accuracy"]
    assert all(len(values) == 3 for values in history.history.values())


def test_epochs_is_the_final_epoch() -> None:
    model = classifier()
    model.fit(X, LABELS, epochs=2, verbose=0)
    history = model.fit(X, LABELS, epochs=5, initial_epoch=2, verbose=0)
    assert history.epoch == [2, 3, 4]
    whole = classifier().fit(X, LABELS, epochs=5, verbose=0)
    assert whole.history["loss"][2:] == history.history["loss"]


def test_validation_split_takes_the_last_rows() -> None:
    given = classifier().fit(
        X[:45], LABELS[:45], epochs=2, verbose=0, validation_data=(X[45:], LABELS[45:])
    )
    split = classifier().fit(X, LABELS, epochs=2, verbose=0, validation_split=0.25)
    assert split.history == given.history


def test_the_default_batch_is_32_and_the_last_one_is_short() -> None:
    model = classifier()
    model.fit(X, LABELS, verbose=0)
    assert model.optimizer is not None
    assert model.optimizer.step == 2
    assert model.last_step is not None
    assert model.last_step.rows == 28


def test_without_shuffle_one_epoch_is_the_batches_in_order() -> None:
    model, single = classifier(), classifier()
    model.fit(X, LABELS, batch_size=20, shuffle=False, verbose=0)
    for start in (0, 20, 40):
        single.train_on_batch(X[start : start + 20], LABELS[start : start + 20])
    np.testing.assert_array_equal(model.store.values, single.store.values)


def test_a_later_fit_goes_on_with_other_orders_of_samples() -> None:
    twice, once = classifier(), classifier()
    twice.fit(X, LABELS, epochs=1, verbose=0)
    twice.fit(X, LABELS, epochs=1, verbose=0)
    once.fit(X, LABELS, epochs=2, verbose=0)
    np.testing.assert_array_equal(twice.store.values, once.store.values)


def test_sequences_of_unknown_length_have_the_same_loss() -> None:
    tokens = np.random.default_rng(1).integers(0, 10, (6, 7))
    results = []
    for time in (7, None):
        model = fs.models.Sequential(
            [
                fs.layers.Embedding(10, 4, input_shape=(time,)),
                fs.layers.Dense(10, "softmax"),
            ]
        )
        loss = "sparse_categorical_crossentropy"
        model.compile("sgd", loss, metrics=[loss])
        model.fit(tokens, tokens, verbose=0)
        assert model.last_step is not None
        results.append((model.last_step, model.evaluate(tokens, tokens, verbose=0)))
    assert results[0] == results[1]
    assert results[1][1][0] == pytest.approx(results[1][1][1], rel=1e-6)


def test_an_optimizer_that_another_model_took() -> None:
    optimizer = fs.optimizers.SGD(0.1)
    one, two = classifier(), classifier()
    for model in (one, two):
        model.compile(optimizer, "sparse_categorical_crossentropy")
        model.train_on_batch(X, LABELS)
    with pytest.raises(StateError) as error:
        one.train_on_batch(X, LABELS)
    three_parts(error)
    one.compile(optimizer, "sparse_categorical_crossentropy")
    one.train_on_batch(X, LABELS)


def test_class_weight_of_sequences_is_by_position() -> None:
    x = np.zeros((6, 7), np.int64)
    x[:, 3] = 9

    def loss(class_weight: dict[int, float] | None) -> float:
        model = fs.models.Sequential(
            [
                fs.layers.Embedding(10, 4, input_shape=(7,)),
                fs.layers.Dense(10, "softmax"),
            ]
        )
        model.compile("sgd", "sparse_categorical_crossentropy")
        value: float = model.train_on_batch(x, x, class_weight=class_weight)
        return value

    assert loss({3: 100.0}) == loss(None)
    assert loss({9: 2.0}) > loss(None)
    assert loss({0: 0.0, 9: 0.0}) == 0


def test_metrics_are_not_weighted() -> None:
    model = classifier()
    weights = np.zeros(60, np.float32)
    weighted = model.evaluate(X, LABELS, verbose=0, sample_weight=weights)
    assert weighted[0] == 0
    assert weighted[1] == model.evaluate(X, LABELS, verbose=0)[1]


def test_kerass_ways_to_say_nothing_or_one() -> None:
    model = classifier()
    model.compile("sgd", "sparse_categorical_crossentropy", metrics="accuracy")
    seen: list[int] = []

    class Watch(fs.callbacks.Callback):
        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            seen.append(epoch)

    model.fit(X, LABELS, None, verbose=0, callbacks=Watch())
    model.compile("sgd", "sparse_categorical_crossentropy", metrics=None)
    model.fit(X, LABELS, verbose=0, callbacks=None)
    assert seen == [0]
    assert len(model.predict(X, batch_size=None)) == 60
    with pytest.raises(ArgumentError):
        model.predict(X, batch_size=0)
    with pytest.raises(ArgumentError):
        model.fit(X, LABELS, verbose=0, validation_freq=0)
    with pytest.raises(ArgumentError):
        classifier(seed=-1)


def test_sample_weight_zero_is_as_if_the_row_had_no_loss() -> None:
    weights = np.ones(60, np.float32)
    weights[30:] = 0
    model, half = classifier(), classifier()
    one = model.train_on_batch(X, LABELS, sample_weight=weights)
    two = half.train_on_batch(X[:30], LABELS[:30])
    # the mean is over the number of rows, as in Keras, so half of the other
    assert one[0] == pytest.approx(two[0] / 2, rel=1e-5)


def test_class_weight_is_sample_weight_by_class() -> None:
    by_class = {0: 1.0, 1: 2.0, 2: 0.5}
    weights = np.array([by_class[label] for label in LABELS], np.float32)
    one, two = classifier(), classifier()
    one.fit(X, LABELS, verbose=0, class_weight=by_class)
    two.fit(X, LABELS, verbose=0, sample_weight=weights)
    np.testing.assert_array_equal(one.store.values, two.store.values)
    three = classifier("categorical_crossentropy")
    three.fit(X, ONE_HOT, verbose=0, class_weight=by_class)
    np.testing.assert_allclose(
        three.store.values, two.store.values, rtol=1e-5, atol=1e-7
    )


def test_verbose_2_prints_a_line_an_epoch(capsys: pytest.CaptureFixture[str]) -> None:
    classifier().fit(X, LABELS, epochs=2, verbose=2, validation_split=0.2)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("epoch 1/2 step 2/2  loss ")
    assert "val_accuracy" in lines[1]
    assert "samples/s" in lines[1]


def test_verbose_0_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    classifier().fit(X, LABELS, verbose=0)
    assert capsys.readouterr().out == ""


def test_types_of_data_are_converted() -> None:
    reference = classifier()
    reference.fit(X, LABELS, verbose=0)
    for x, y in (
        (X.astype(np.float64), LABELS.astype(np.uint8)),
        (X.tolist(), LABELS.tolist()),
    ):
        model = classifier()
        model.fit(x, y, verbose=0)
        np.testing.assert_allclose(
            model.store.values, reference.store.values, rtol=1e-6
        )


def test_a_memory_map_is_a_source(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", X)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    one, two = classifier(), classifier()
    one.fit(mapped, LABELS, verbose=0)
    two.fit(X, LABELS, verbose=0)
    np.testing.assert_array_equal(one.store.values, two.store.values)


# -- bad data, before any work ---------------------------------------------------------


def _nan(x: np.ndarray) -> np.ndarray:
    spoilt = x.copy()
    spoilt[7, 2] = np.nan
    return spoilt


BAD_DATA: list[tuple[Any, Any, type[Exception], str]] = [
    (X[:, :5], LABELS[:59], DataError, "59"),
    (_nan(X), LABELS, DataError, "(7, 2)"),
    (X[:0], LABELS[:0], DataError, "at least one row"),
    (X, LABELS + 1, DataError, "3"),
    (X, LABELS - 1, DataError, "-1"),
    (X, ONE_HOT, ShapeError, "categorical_crossentropy"),
    (X, None, DataError, "targets"),
    (np.array([["a"] * 6] * 60), LABELS, DataError, "numbers"),
    ([[1.0], [1.0, 2.0]], [0, 1], DataError, "array"),
]


@pytest.mark.parametrize(("x", "y", "kind", "part"), BAD_DATA)
def test_bad_data_is_refused_before_training(
    x: Any, y: Any, kind: type[Exception], part: str
) -> None:
    model = classifier()
    width = x.shape[1] if isinstance(x, np.ndarray) else 6
    model.build((width,))
    before = model.store.values.copy()
    with pytest.raises(kind) as error:
        model.fit(x, y, verbose=0)
    assert part in three_parts(error)
    np.testing.assert_array_equal(model.store.values, before)


def test_inputs_of_another_shape() -> None:
    model = classifier()
    model.build((6,))
    for verb in (lambda: model.predict(X[:, :5]), lambda: model.fit(X[:, :5], LABELS)):
        with pytest.raises(ShapeError) as error:
            verb()
        assert "(batch, 6)" in three_parts(error)


def test_validation_data_is_checked_before_the_first_step() -> None:
    model = classifier()
    with pytest.raises(DataError):
        model.fit(X, LABELS, verbose=0, validation_data=(X, LABELS + 5))
    assert model.last_step is None


@pytest.mark.parametrize(
    "keys",
    [
        {"epochs": 0},
        {"epochs": 3, "initial_epoch": 3},
        {"batch_size": 0},
        {"batch_size": 2.5},
        {"validation_split": 1.0},
        {"validation_data": 3},
        {"verbose": 7},
        {"validation_split": 0.999},
    ],
)
def test_bad_arguments_of_fit(keys: dict[str, Any]) -> None:
    with pytest.raises((ArgumentError, DataError)) as error:
        classifier().fit(X, LABELS, **keys)
    three_parts(error)


# -- predict, evaluate, single batches -------------------------------------------------


def test_predict_copies_and_does_not_depend_on_the_batch() -> None:
    model = classifier()
    model.build((6,))
    whole = model.predict(X)
    kept = whole.copy()
    pieces = model.predict(X, batch_size=7)
    np.testing.assert_allclose(pieces, whole, rtol=1e-6)
    model.predict(-X)
    np.testing.assert_array_equal(whole, kept)


def test_evaluate_returns_loss_and_metrics() -> None:
    model = classifier()
    model.build((6,))
    loss, accuracy = model.evaluate(X, LABELS, verbose=0)
    p = model.predict(X)
    assert accuracy == pytest.approx((p.argmax(axis=1) == LABELS).mean())
    assert loss == pytest.approx(-np.log(p[np.arange(60), LABELS]).mean(), rel=1e-5)
    named = model.evaluate(X, LABELS, verbose=0, return_dict=True)
    assert named == {"loss": loss, "accuracy": accuracy}
    assert model.test_on_batch(X, LABELS)[1] == accuracy


def test_train_on_batch_returns_the_loss_before_the_update() -> None:
    model = classifier()
    model.build((6,))
    before = model.evaluate(X, LABELS, verbose=0)
    assert model.train_on_batch(X, LABELS) == pytest.approx(before, rel=1e-6)
    assert model.evaluate(X, LABELS, verbose=0)[0] < before[0]


def test_fused_and_separate_softmax_agree() -> None:
    """Softmax within the last layer, as its own layer, and as logits in the loss."""
    layers = fs.layers
    stacks = [
        [layers.Dense(3, "softmax")],
        [layers.Dense(3), layers.Activation("softmax")],
        [layers.Dense(3)],
    ]
    losses: list[Any] = [
        "sparse_categorical_crossentropy",
        "sparse_categorical_crossentropy",
        fs.losses.SparseCategoricalCrossentropy(from_logits=True),
    ]
    values = []
    for stack, loss in zip(stacks, losses, strict=True):
        model = fs.models.Sequential(stack)
        model.compile("sgd", loss)
        model.fit(X, LABELS, epochs=3, verbose=0)
        values.append(model.get_weights()[0])
    np.testing.assert_allclose(values[1], values[0], rtol=1e-5)
    np.testing.assert_allclose(values[2], values[0], rtol=1e-5)


def test_regression_and_binary_targets() -> None:
    target = (X @ np.arange(6.0)).astype(np.float32)
    model = fs.models.Sequential([fs.layers.Dense(1)])
    model.compile(fs.optimizers.Adam(0.05), "mse", metrics=["mae"])
    history = model.fit(X, target[:, None], epochs=60, verbose=0)
    assert history.history["loss"][-1] < 0.05 * history.history["loss"][0]
    binary = fs.models.Sequential([fs.layers.Dense(1, "sigmoid")])
    binary.compile(
        fs.optimizers.Adam(0.05), "binary_crossentropy", metrics=["accuracy"]
    )
    history = binary.fit(X, (target > 0)[:, None], epochs=60, verbose=0)
    assert history.history["accuracy"][-1] > 0.95


@pytest.mark.parametrize("before", [[], [fs.layers.Input((5,))]])
def test_a_classifier_of_token_sequences(before: list[Any]) -> None:
    tokens = np.random.default_rng(1).integers(1, 9, (80, 5))
    tokens[::2, 3:] = 0  # padding
    y = (tokens == 4).any(axis=1)
    model = fs.models.Sequential(
        [
            *before,
            fs.layers.Embedding(9, 16, mask_zero=True),
            fs.layers.TransformerBlock(2),
            fs.layers.Flatten(),
            fs.layers.Dense(1, "sigmoid"),
        ]
    )
    model.compile(fs.optimizers.Adam(0.01), "binary_crossentropy", metrics=["accuracy"])
    history = model.fit(tokens, y[:, None], epochs=30, verbose=0)
    assert history.history["accuracy"][-1] > 0.95


# -- saving ----------------------------------------------------------------------------


def test_weights_and_models_survive_a_file(tmp_path: Path) -> None:
    model = classifier(seed=4)
    model.fit(X, LABELS, verbose=0)
    model.save(tmp_path / "model.safetensors")
    again = fs.models.load_model(tmp_path / "model.safetensors")
    np.testing.assert_array_equal(again.store.values, model.store.values)
    model.save_weights(tmp_path / "weights.safetensors")
    other = classifier(seed=9)
    other.build((6,))
    other.load_weights(tmp_path / "weights.safetensors")
    np.testing.assert_array_equal(other.predict(X), model.predict(X))
    with pytest.raises(CheckpointError) as error:
        fs.models.load_model(tmp_path / "weights.safetensors")
    assert "load_weights" in three_parts(error)


def test_get_and_set_weights() -> None:
    one, two = classifier(seed=1), classifier(seed=2)
    one.build((6,))
    two.build((6,))
    two.set_weights(one.get_weights())
    np.testing.assert_array_equal(one.predict(X), two.predict(X))
    with pytest.raises(ShapeError):
        two.set_weights(one.get_weights()[:-1])
    with pytest.raises(ShapeError):
        two.set_weights(one.get_weights()[::-1])


LAYERS = [
    lambda: fs.layers.Dense(4, "gelu_tanh", kernel_initializer="he_normal"),
    lambda: fs.layers.Dropout(0.3),
    lambda: fs.layers.Reshape((2, 3)),
    lambda: fs.layers.LayerNormalization(epsilon=1e-4, center=False),
    lambda: fs.layers.Residual(fs.layers.Dense(6), fs.layers.Activation("tanh")),
]


@pytest.mark.parametrize("make", LAYERS)
def test_layers_survive_their_config(make: Any) -> None:
    model = fs.models.Sequential([make()], seed=2)
    model.build((6,))
    again = fs.models.Sequential.from_config(model.get_config())
    np.testing.assert_array_equal(again.store.values, model.store.values)
    one = model.root.forward(X, StepKey())
    np.testing.assert_array_equal(again.root.forward(X, StepKey()), one)


def test_the_third_argument_of_compile_is_loss_weights() -> None:
    model = fs.models.Sequential([fs.layers.Dense(1)])
    with pytest.raises(fs.errors.ArgumentError, match="loss_weights, the third"):
        model.compile("sgd", "mse", ["mae"])
    model.compile("sgd", "mse", [0.5], ["mae"])
    assert model.loss_weights == [0.5]


def test_the_input_is_none_of_the_layers_of_a_sequential() -> None:
    dense = fs.layers.Dense(1)
    model = fs.models.Sequential([fs.Input((3,)), dense])
    assert model.layers == [dense]
    assert model.get_layer(index=0) is dense
    assert model.predict(np.ones((2, 3)), verbose=0).shape == (2, 1)
