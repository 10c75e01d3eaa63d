"""What usual scripts for Keras do besides layers and fit: parts of models, configs,
metrics and losses of one's own, names, seeds."""

from __future__ import annotations

import copy
import json
import pickle
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastserve as fs
from fastserve.comm import world
from fastserve.comm.thread import run_threads
from fastserve.errors import ArgumentError, ShapeError, StateError
from fastserve.training import checkpoint

L = fs.layers
X = np.random.default_rng(0).random((24, 4)).astype("float32")
Y = (X.sum(axis=1, keepdims=True) > 2).astype("float32")


def small(**options: Any) -> fs.Sequential:
    layers = [fs.Input((4,)), L.Dense(8, "relu", name="hidden"), L.Dense(1, "sigmoid")]
    return fs.Sequential(layers, **options)


def fitted(loss: Any = "binary_crossentropy", metrics: Any = ()) -> dict[str, Any]:
    model = small()
    model.compile("adam", loss, metrics=metrics)
    return model.fit(X, Y, batch_size=8, verbose=0).history


# -- layers of a model -----------------------------------------------------------------


def test_layers_have_names_without_being_given_one() -> None:
    model = small()
    assert [layer.name for layer in model.layers] == ["hidden", "dense"]
    start = fs.Input((4,), name="start")
    end = L.Dense(1)(L.LayerNormalization()(L.Dense(2)(start)))
    names = [layer.name for layer in fs.Model(start, end).layers]
    assert names == ["start", "dense", "layer_normalization", "dense_1"]
    assert L.MaxPooling2D().name == "max_pooling2d"
    assert L.Dense(2, name="own").name == "own"


@pytest.mark.parametrize("kind", ["sequential", "functional"])
def test_a_part_of_a_model_is_made_from_the_output_of_a_layer(kind: str) -> None:
    model: fs.Model = small()
    if kind == "functional":
        start = fs.Input((4,))
        end = L.Dense(1)(L.Dense(8, "relu", name="hidden")(start))
        model = fs.Model(start, end)
    hidden = model.get_layer("hidden")
    output = hidden.output
    part = fs.Model(inputs=model.inputs, outputs=output)
    kernel, bias = hidden.get_weights()
    wanted = np.maximum(X @ kernel + bias, 0)
    np.testing.assert_allclose(part.predict(X, verbose=0), wanted, rtol=1e-6)
    assert hidden.input.shape == (None, 4)
    assert hidden.output.shape == (None, 8)
    every = fs.Model(model.input, [layer.output for layer in model.layers])
    assert every.predict(X, verbose=0)[-1].shape == (24, 1)
    model.compile("sgd", "mse")
    model.fit(X, Y, verbose=0)
    assert not np.array_equal(part.predict(X, verbose=0), wanted)  # weights are shared


def test_a_layer_has_weights_before_its_model_has_seen_data() -> None:
    start = fs.Input((4,))
    model = fs.Model(start, L.Dense(2, name="last")(L.Dense(3)(start)))
    last = model.get_layer("last")
    last.set_weights([np.ones((3, 2)), np.zeros(2)])
    hidden = model.layers[1].get_weights()[0]
    wanted = (X @ hidden).sum(axis=1)
    np.testing.assert_allclose(model.predict(X, verbose=0)[:, 0], wanted, rtol=1e-5)
    model = small()
    kernel, _ = model.layers[0].get_weights()
    assert kernel.shape == (4, 8)
    unknown = fs.Sequential([L.Dense(2)])
    assert unknown.layers[0].get_weights() == []
    with pytest.raises(StateError, match="the shape of its input"):
        unknown.layers[0].output  # noqa: B018


def test_layers_of_another_sequential_stay_that_ones_too() -> None:
    whole = fs.Sequential([fs.Input((4,)), L.Dense(3), L.Dense(5), L.Dense(1)])
    part = fs.Sequential([*whole.layers[1:], L.Dense(2)])
    assert [layer.name for layer in whole.layers] == ["dense", "dense_1", "dense_2"]
    assert whole.get_layer("dense_1") is whole.layers[1]
    assert [layer.name for layer in part.layers] == ["dense_1", "dense_2", "dense"]
    middle = fs.Model(whole.inputs, whole.get_layer("dense_1").output)
    assert middle.predict(X, verbose=0).shape == (24, 5)
    other = fs.Sequential([L.Dense(2)])
    both = fs.Sequential([whole.layers[0], other.layers[0]])
    assert both.get_layer("dense_1") is other.get_layer("dense") is other.layers[0]
    unknown = fs.Sequential([L.Dense(2)])
    known = fs.Sequential([fs.Input((4,)), *unknown.layers])
    assert known.layers[0].get_weights()[0].shape == (4, 2)


@pytest.mark.parametrize("kind", ["sequential", "functional"])
@pytest.mark.parametrize(
    "made", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))]
)
def test_a_copied_model_is_whole(
    kind: str, made: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model: fs.Model = small()
    if kind == "functional":
        start = fs.Input((4,))
        model = fs.Model(start, L.Dense(1)(L.Dense(8, name="hidden")(start)))
    model.compile("sgd", "mse")
    model.fit(X, Y, verbose=0)
    ranks = world()
    monkeypatch.setattr(ranks, "on_departure", lambda error: None)  # can't be pickled
    wanted = model.get_layer("hidden").output.shape
    twin = made(model)
    assert twin.trainer is None or twin.trainer.comm is ranks
    hidden = twin.get_layer("hidden")
    assert hidden.output.shape == wanted
    model.layers[-1].set_weights([np.zeros((8, 1)), np.zeros(1)])
    part = fs.Model(twin.inputs, hidden.output)
    kernel, bias = twin.layers[-1].get_weights()
    y = part.predict(X, verbose=0) @ kernel + bias
    y = y if kind == "functional" else 1 / (1 + np.exp(-y))
    np.testing.assert_allclose(twin.predict(X, verbose=0), y, rtol=1e-5)


def test_a_layer_in_no_model_has_no_output() -> None:
    with pytest.raises(StateError, match=r"put it into a model, or call it"):
        L.Dense(2).output  # noqa: B018


class Wide(L.Layer):
    def __init__(self, units: int, **options: Any) -> None:
        super().__init__(**options)
        self.units = units
        self.dense = L.Dense(units)

    def call(self, x: Any) -> Any:
        return self.dense(x)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "units": self.units}


def test_configs_of_layers_make_them_again() -> None:
    layer = L.Dense(
        4,
        activation=fs.activations.relu,
        kernel_initializer=fs.initializers.HeNormal(seed=1),
        kernel_regularizer=fs.regularizers.L2(1e-3),
        name="own",
    )
    config = layer.get_config()
    assert json.loads(json.dumps(config)) == {
        "units": 4,
        "activation": "relu",
        "kernel_initializer": {"class_name": "HeNormal", "config": {"seed": 1}},
        "kernel_regularizer": {"class_name": "L2", "config": {"l2": 1e-3}},
        "name": "own",
    }
    again = L.Dense.from_config(config)
    assert again.get_config() == config
    assert again.kernel_regularizer == layer.kernel_regularizer
    around = L.TimeDistributed(L.Dense(2))
    copy = L.TimeDistributed.from_config(around.get_config())
    assert copy.layer is not around.layer
    wide = Wide.from_config(Wide(3, name="wide").get_config())
    assert (wide.units, wide.name) == (3, "wide")


def test_vectors_that_are_known_stay(tmp_path: Path) -> None:
    vectors = np.random.default_rng(1).random((9, 3)).astype("float32")
    known = fs.initializers.Constant(vectors)
    model = fs.Sequential(
        [
            fs.Input((5,)),
            L.Embedding(9, 3, embeddings_initializer=known, trainable=False),
            L.GlobalAveragePooling1D(),
            L.Dense(1),
        ]
    )
    model.compile("sgd", "mse")
    model.fit(np.arange(40).reshape(8, 5) % 9, np.ones(8), verbose=0)
    np.testing.assert_array_equal(model.get_weights()[0], vectors)
    assert len(model.trainable_weights) == 2
    again = fs.models.model_from_json(model.to_json())
    np.testing.assert_array_equal(again.get_weights()[0], vectors)
    assert not again.layers[0].trainable
    model.save(tmp_path / "model")
    header = json.loads(checkpoint.read_metadata(tmp_path / "model")["fastserve"])
    told = header["layers"][-3]["arguments"]["embeddings_initializer"]
    assert told["initializer"] == "Constant"
    assert np.isnan(told["value"])  # else a large table is more than a header may be
    loaded = fs.models.load_model(tmp_path / "model")
    np.testing.assert_array_equal(loaded.get_weights()[0], vectors)
    assert np.isnan(fs.models.clone_model(loaded).get_weights()[0]).all()
    with pytest.raises(ShapeError, match=r"an array of the weight's shape \(8, 3\)"):
        fs.Sequential([fs.Input((5,)), L.Embedding(8, 3, known)]).build((5,))


def test_summary_shows_what_is_inside_and_what_is_trained() -> None:
    base = small(name="base")
    base.trainable = False
    start = fs.Input((4,))
    model = fs.Model(start, L.Dense(2)(base(start)))
    lines: list[str] = []
    model.summary(print_fn=lines.append, expand_nested=True, show_trainable=True)
    shown = {line.split()[0]: line.split() for line in lines[2:-1]}
    assert list(shown) == ["input_layer", "base", "0", "hidden", "2", "dense"]
    assert "no" in shown["base"]
    assert "no" in shown["hidden"]
    assert shown["dense"][-2:] == ["yes", "base"]
    assert next(line for line in lines if "hidden" in line).startswith("  hidden")


def test_inputs_as_keras_takes_them() -> None:
    assert fs.Input(batch_shape=(None, 4)).shape == (None, 4)
    with pytest.raises(ArgumentError, match="batches may have any size"):
        fs.Input(batch_shape=(8, 4))
    with pytest.raises(ArgumentError, match="shape, or else batch_shape"):
        fs.Input()
    model = small()
    whole = model.predict(X, verbose=0)
    np.testing.assert_array_equal(model.predict([X], verbose=0), whole)
    np.testing.assert_allclose(model.predict([X[0]], verbose=0), whole[:1], rtol=1e-6)
    model.compile("sgd", "mse")
    assert model.fit([X], Y, verbose=0) is model.history
    assert model.optimizer is not None
    assert model.optimizer.iterations == 1


# -- activations and initializers ------------------------------------------------------


def test_activations_are_functions_of_arrays() -> None:
    x = np.linspace(-2, 2, 12, dtype="float32").reshape(3, 4)
    before = x.copy()
    np.testing.assert_array_equal(fs.activations.relu(x), np.maximum(x, 0))
    e = np.exp(x)
    wanted = e / e.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(fs.activations.softmax(x), wanted, rtol=1e-6)
    assert fs.activations.tanh([0, 1]).shape == (2,)
    np.testing.assert_array_equal(x, before)
    for name, activation in fs.activations.NAMED.items():
        assert getattr(fs.activations, name) is activation is fs.activations.get(name)
    with pytest.raises(AttributeError, match="known: "):
        fs.activations.rleu  # noqa: B018
    with pytest.raises(ArgumentError, match="put a layer such as LeakyReLU behind"):
        L.Dense(2, activation=L.LeakyReLU(0.1))  # type: ignore[arg-type]


def test_initializers_have_keras_other_names() -> None:
    names = [n for n in fs.initializers._CLASSES if n != "get"]
    assert {"glorot_uniform", "he_normal", "zeros"} <= set(names)
    for name in names:
        assert getattr(fs.initializers, name) is fs.initializers._CLASSES[name]


def test_a_seed_for_all_models() -> None:
    try:
        fs.utils.set_random_seed(7)
        drawn = random.random(), np.random.random()
        one, other = small().get_weights(), small(seed=0).get_weights()
        fs.utils.set_random_seed(7)
        assert drawn == (random.random(), np.random.random())
        np.testing.assert_array_equal(one[0], small(seed=7).get_weights()[0])
        assert not np.array_equal(one[0], other[0])
        assert fs.models.GPT(8, 4, 1, 1, 8).seed == 7
        with pytest.raises(ArgumentError, match="whole number"):
            fs.utils.set_random_seed(0.5)  # type: ignore[arg-type]
        with pytest.raises(ArgumentError, match="from 0 to"):
            fs.utils.set_random_seed(-1)
    finally:
        fs.utils.set_random_seed(0)
    np.testing.assert_array_equal(other[0], small().get_weights()[0])


# -- losses and metrics of one's own ---------------------------------------------------


class Squared(fs.losses.Loss):
    def __init__(self, factor: float = 1.0, **options: Any) -> None:
        super().__init__(**options)
        self.factor = factor

    def call(self, y_true: Any, y_pred: Any) -> Any:
        difference = y_pred - y_true
        each = self.factor * np.mean(difference**2, axis=-1)
        return each, 2 * self.factor * difference / difference.shape[-1]


class WithoutGradient(fs.losses.Loss):
    def call(self, y_true: Any, y_pred: Any) -> Any:
        return np.mean((y_pred - y_true) ** 2, axis=-1)


def test_a_loss_with_a_method_call() -> None:
    ours, keras = fitted(Squared(name="own")), fitted("mse")
    np.testing.assert_allclose(ours["loss"], keras["loss"], rtol=1e-6)
    assert Squared(3.0)(Y, np.zeros_like(Y)) == pytest.approx(3 * Y.mean())
    assert Squared(reduction="sum")(Y, np.zeros_like(Y)) == pytest.approx(Y.sum())
    assert WithoutGradient()(Y, Y) == 0
    with pytest.raises(ArgumentError, match=r"return d\(sum of losses\)"):
        fitted(WithoutGradient())


class Hits(fs.metrics.Metric):
    """As Keras' guide has it: a state made of variables."""

    def __init__(self, name: str = "hits", **options: Any) -> None:
        super().__init__(name=name, **options)
        self.hits = self.add_variable(shape=(), initializer="zeros", name="hits")
        self.count = self.add_weight(name="count", initializer="zeros")

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        hits = ((y_pred > 0.5) == (y_true > 0.5)).astype("float32").reshape(-1)
        weights = np.ones(len(hits)) if sample_weight is None else sample_weight
        self.hits.assign(self.hits + np.sum(hits * weights))
        self.count.assign_add(np.sum(weights))

    def result(self) -> Any:
        return self.hits / self.count

    def reset_state(self) -> None:
        self.hits.assign(0)
        self.count.assign(0)


class Largest(fs.metrics.Metric):
    def __init__(self) -> None:
        super().__init__(name="largest")
        self.largest = self.add_variable(())

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        self.largest.assign(max(self.largest, np.max(y_pred)))

    def result(self) -> Any:
        return self.largest


@pytest.mark.parametrize("ranks", [1, 3])
def test_a_metric_of_variables_counts_over_batches_and_ranks(ranks: int) -> None:
    def program(comm: Any) -> Any:
        model = small()
        weights = np.arange(24.0)
        given = {"metrics": [Hits(), "accuracy"], "weighted_metrics": [Hits("w")]}
        model.compile("adam", "binary_crossentropy", **given)
        model.fit(X, Y, 7, verbose=0, sample_weight=weights)
        shown = model.evaluate(X, Y, 7, 0, weights, return_dict=True)
        right = (model.predict(X, verbose=0) > 0.5) == (Y > 0.5)
        assert shown["w"] == pytest.approx(np.average(right[:, 0], weights=weights))
        return shown

    for shown in run_threads(ranks, program):
        assert shown["hits"] == shown["accuracy"]


def test_a_metric_of_variables_by_itself() -> None:
    metric = Hits()
    assert float(metric(Y, Y)) == 1
    metric.update_state(Y, 1 - Y)
    assert float(metric.result()) == 0.5
    metric.reset_state()
    assert float(metric.count) == 0
    table = metric.add_variable((2, 3))
    table.assign_add(np.ones((2, 3)))
    table.assign_sub(np.eye(2, 3))
    assert table.shape == (2, 3)
    assert table.numpy().tolist() == [[0, 1, 1], [1, 0, 1]]
    assert table[1].tolist() == [1, 0, 1]
    assert float(np.sum(table)) == 4
    assert float(metric.count) == 0  # the parts of the state are apart


class OfChosen(fs.metrics.MeanIoU):
    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        super().update_state(y_true, np.argmax(y_pred, axis=-1), sample_weight)


class MeanOfRows(fs.metrics.Mean):
    def update_state(  # type: ignore[override]
        self, y_true: Any, y_pred: Any, sample_weight: Any = None
    ) -> None:
        super().update_state(np.max(y_pred, axis=-1), sample_weight)


def test_a_subclass_of_a_metric_changes_what_it_is_given() -> None:
    model = fs.Sequential([fs.Input((4,)), L.Dense(3, "softmax")])
    labels = np.arange(24) % 3
    chosen, rows = OfChosen(num_classes=3), MeanOfRows(name="rows")
    of_all = fs.metrics.MeanIoU(num_classes=3, sparse_y_pred=False, name="of_all")
    model.compile(
        "sgd", "sparse_categorical_crossentropy", metrics=[chosen, of_all, rows]
    )
    shown = model.evaluate(X, labels, 7, verbose=0, return_dict=True)
    assert shown["mean_io_u"] == shown["of_all"]
    wanted = model.predict(X, verbose=0).max(axis=1).mean()
    assert shown["rows"] == pytest.approx(wanted, rel=1e-6)
    with pytest.raises(ArgumentError, match="a metric of targets and predictions"):
        fitted(metrics=[fs.metrics.Mean()])


class OwnNumbers(fs.metrics.Metric):
    total = 0.0

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        self.total += float(np.abs(y_true - y_pred).sum())

    def result(self) -> float:
        return self.total


def test_a_metric_that_does_not_add_is_refused() -> None:
    with pytest.raises(ArgumentError, match=r"numbers of its own.*\n.*add_variable"):
        fitted(metrics=[OwnNumbers()])
    with pytest.raises(ArgumentError, match="update_state to add to its variables"):
        fitted(metrics=[Largest()])
    with pytest.raises(ArgumentError, match="begins with zeros"):
        Hits().add_variable((), initializer="ones")


class Doubled(L.Dense):
    def call(self, x: Any) -> Any:
        return 2 * x


class WithStep(fs.Sequential):
    def train_step(self, data: Any) -> Any:
        return {}


def test_methods_that_nobody_would_call_are_refused() -> None:
    with pytest.raises(ArgumentError, match="call, which would never be called"):
        Doubled(3)
    with pytest.raises(ArgumentError, match="a method train_step, which would never"):
        WithStep([L.Dense(1)]).compile("sgd", "mse")


# -- what is elsewhere -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("module", "name", "hint"),
    [
        ("datasets", "mnist", "mnist_sample"),
        ("datasets", "imdb", "film_sentiment"),
        ("datasets", "unknown", "fastserve datasets"),
        ("utils", "clear_session", "leave it out"),
        ("utils", "plot_model", "summary"),
        ("utils", "register_keras_serializable", "custom_objects"),
    ],
)
def test_names_that_are_not_here_say_what_is(module: str, name: str, hint: str) -> None:
    with pytest.raises(AttributeError, match=hint):
        getattr(getattr(fs, module), name)


def test_a_model_of_own_layers_and_its_parts_come_back(tmp_path: Path) -> None:
    model = fs.Sequential([fs.Input((4,)), Wide(3), L.Dense(2, fs.activations.tanh)])
    before = model.predict(X, verbose=0)
    model.save(tmp_path / "model.keras")
    again = fs.models.load_model(
        tmp_path / "model.keras", custom_objects={"Wide": Wide}
    )
    np.testing.assert_array_equal(again.predict(X, verbose=0), before)
