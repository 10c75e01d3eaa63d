"""Models of called layers: against Keras, and what only they can do."""

from __future__ import annotations

import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gradcheck import frozen

import fastserve as fs
from fastserve.comm import Communicator, run_threads
from fastserve.core import Layer, Memory, ParameterStore, StepKey
from fastserve.errors import (
    ArgumentError,
    DataError,
    ShapeError,
    StateError,
    UnknownNameError,
)
from fastserve.training.step import Options

L = fs.layers
Array = np.ndarray[Any, Any]
REFERENCE: dict[str, Array] = dict(
    np.load(Path(__file__).parent / "references" / "functional.npz")
)
MERGING: dict[str, Any] = {
    "add": L.Add,
    "add broadcast": L.Add,
    "subtract": L.Subtract,
    "multiply": L.Multiply,
    "multiply masked": L.Multiply,
    "average": L.Average,
    "maximum": L.Maximum,
    "maximum masked": L.Maximum,
    "minimum": L.Minimum,
    "minimum masked": L.Minimum,
    "concatenate": L.Concatenate,
    "concatenate 1": lambda: L.Concatenate(axis=1),
    "dot": lambda: L.Dot(axes=1),
    "dot of axes": lambda: L.Dot(axes=(2, 1)),
    "dot cosine": lambda: L.Dot(axes=-1, normalize=True),
}


def close(ours: Any, theirs: Array, what: str) -> None:
    assert np.shape(ours) == theirs.shape, what
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5, err_msg=what)


def numbered(prefix: str) -> list[Array]:
    found = []
    while f"{prefix}{len(found)}" in REFERENCE:
        found.append(REFERENCE[f"{prefix}{len(found)}"])
    return found


@pytest.mark.parametrize("name", MERGING)
def test_merging_is_kerass(name: str) -> None:
    layer: Layer = MERGING[name]()
    xs = tuple(map(frozen, numbered(f"{name}/x")))
    layer.build_once(tuple(x.shape[1:] for x in xs))
    layer.bind(Memory(poison=True), np.dtype(np.float32))
    layer.mask = tuple(numbered(f"{name}/mask")) or None
    close(layer.forward(xs, True), REFERENCE[f"{name}/y"], "y")
    dxs = layer.backward(frozen(REFERENCE[f"{name}/dy"]))
    for i, theirs in enumerate(numbered(f"{name}/dx")):
        close(dxs[i], theirs, f"dx{i}")
    if layer.mask is not None:
        np.testing.assert_array_equal(layer.output_mask(), REFERENCE[f"{name}/mask"])


def test_every_case_is_used() -> None:
    assert {key.split("/")[0] for key in REFERENCE} == {*MERGING, "model", "masked"}


# -- a model of two inputs, two outputs, and a shared layer ----------------------------


def two_by_two() -> fs.Model:
    a = fs.Input((6,), name="numbers")
    b = fs.Input((4,), name="tokens", dtype="int32")
    shared = L.Dense(5, "tanh", name="shared")
    words = L.Flatten(name="flatten")(L.Embedding(7, 3, name="table")(b))
    one = shared(L.Dense(6, "relu", name="wide")(a))
    two = shared(L.Dense(6, name="narrow")(words))
    three = shared(a)
    inner = fs.Sequential(
        [fs.Input((5,)), L.Dense(4, "tanh", name="hidden")], name="inner"
    )
    joined = L.concatenate([inner(one), inner(two), three], name="joined")
    cls = L.Dense(3, "softmax", name="cls")(joined)
    score = L.Dense(2, name="score")(L.multiply([one, two], name="product"))
    return fs.Model([a, b], [cls, score])


def reference(name: str) -> Any:
    found = numbered(f"model/{name}")
    return found if found else REFERENCE[f"model/{name}"]


def compiled(model: fs.Model, rate: float = 0.2) -> fs.Model:
    model.compile(
        fs.optimizers.SGD(rate),
        ["sparse_categorical_crossentropy", "mse"],
        metrics=[["accuracy"], ["mae"]],
        loss_weights=[0.7, 2.0],
    )
    return model


def of_keras() -> fs.Model:
    model = compiled(two_by_two())
    model.set_weights(reference("before"))
    return model


def some(arrays: list[Array], rows: slice) -> list[Array]:
    return [array[rows] for array in arrays]


def test_layers_and_weights_are_in_kerass_order() -> None:
    model = two_by_two()
    assert [layer.name for layer in model.layers] == list(reference("layers"))
    shapes = [value.shape for value in reference("before")]
    assert [value.shape for value in model.get_weights()] == shapes


def test_outputs_and_losses_are_kerass() -> None:
    model = of_keras()
    x, y, weights = reference("x"), reference("y"), reference("w")
    for ours, theirs in zip(model.predict(x), reference("predict"), strict=True):
        close(ours, theirs, "predict")
    close(model.evaluate(x, y, 10, verbose=0), reference("evaluate"), "evaluate")
    weighted = model.evaluate(x, y, verbose=0, sample_weight=weights)
    close(weighted, reference("weighted"), "weighted")


def test_five_steps_are_kerass() -> None:
    model = of_keras()
    x, y, weights = reference("x"), reference("y"), reference("w")
    for step, loss in enumerate(reference("losses")):
        rows = slice(5 * step, 5 * step + 5)
        found = model.train_on_batch(
            some(x, rows), some(y, rows), some(weights, rows), return_dict=True
        )
        close(found["loss"], loss, f"loss of step {step}")
    for ours, theirs in zip(model.get_weights(), reference("after"), strict=True):
        close(ours, theirs, "weights")


def masked_outputs() -> fs.Model:
    tokens = fs.Input((6,))
    x = L.Embedding(5, 4, mask_zero=True, name="table")(tokens)
    states = L.LSTM(3, return_sequences=True, name="states")(x)
    tags = L.Dense(3, "softmax", name="tags")(states)
    score = L.Dense(1, name="score")(L.LSTM(2, name="last")(states))
    model = fs.Model(tokens, [tags, score])
    model.compile(
        fs.optimizers.SGD(0.3),
        ["sparse_categorical_crossentropy", "mse"],
        metrics=[["accuracy"], []],
        loss_weights=[1.5, 0.5],
    )
    model.set_weights(numbered("masked/before"))
    return model


def test_masks_at_outputs_are_kerass() -> None:
    x, y = REFERENCE["masked/x0"], numbered("masked/y")
    found = masked_outputs().evaluate(x, y, 5, verbose=0)
    close(found, REFERENCE["masked/evaluate"], "evaluate")


@pytest.mark.parametrize(("ranks", "micro_batch"), [(1, None), (3, None), (2, 1)])
def test_steps_with_masks_are_kerass(ranks: int, micro_batch: int | None) -> None:
    x, y = REFERENCE["masked/x0"], numbered("masked/y")

    def train(comm: Communicator) -> list[Array]:
        model = masked_outputs()
        model.options = Options(micro_batch=micro_batch)
        model.fit(x, y, 4, verbose=0, shuffle=False)
        return model.get_weights()

    for weights in run_threads(ranks, train):
        for ours, theirs in zip(weights, numbered("masked/after"), strict=True):
            close(ours, theirs, "weights")


# -- any number of ranks ---------------------------------------------------------------


def fitted(comm: Communicator, **options: Any) -> tuple[dict[str, Any], int]:
    """Return the history and a checksum of the weights after two epochs."""
    model = compiled(two_by_two())
    model.options = Options(**options)
    x, y, weights = reference("x"), reference("y"), reference("w")
    history = model.fit(
        {"numbers": x[0], "tokens": x[1]},
        {"cls": y[0], "score": y[1]},
        batch_size=7,  # 24 samples: the last batch is short, and one rank has no row
        epochs=2,
        verbose=0,
        sample_weight=weights,
        validation_data=(x, y, weights),
    )
    return history.history, zlib.crc32(model.store.values.tobytes())


def on_ranks(ranks: int, **options: Any) -> dict[str, Any]:
    results = run_threads(ranks, lambda comm: fitted(comm, **options))
    assert len({checksum for _, checksum in results}) == 1, "replicas differ"
    return results[0][0]


@pytest.fixture(scope="module")
def alone() -> dict[str, Any]:
    return on_ranks(1)


@pytest.mark.parametrize(
    ("ranks", "options"),
    [
        (2, {}),
        (3, {"micro_batch": 2}),
        (1, {"micro_batch": 3}),
        (2, {"overlap": True, "bucket_bytes": 64}),
        (3, {"shard_optimizer": True}),
    ],
)
def test_ranks_train_the_same(
    ranks: int, options: dict[str, Any], alone: dict[str, Any]
) -> None:
    history = on_ranks(ranks, **options)
    assert list(history) == list(alone)
    for name, values in alone.items():
        np.testing.assert_allclose(history[name], values, rtol=2e-5, err_msg=name)


def test_ranks_train_the_same_to_the_bit_if_told() -> None:
    one, two, three = (on_ranks(ranks, algorithm="exact") for ranks in (1, 2, 3))
    assert one == two == three


def test_logs_are_named_as_keras_names_them(alone: dict[str, Any]) -> None:
    logs = ["loss", "cls_loss", "score_loss", "cls_accuracy", "score_mae"]
    assert list(alone) == [*logs, *(f"val_{name}" for name in logs)]
    total = 0.7 * np.array(alone["cls_loss"]) + 2 * np.array(alone["score_loss"])
    np.testing.assert_allclose(alone["loss"], total, rtol=1e-6)


# -- inputs and outputs by name --------------------------------------------------------


def test_dicts_of_inputs_and_outputs() -> None:
    model = two_by_two()
    named = fs.Model(
        dict(zip(("a", "b"), model.inputs, strict=True)),
        dict(zip(("c", "s"), model.outputs, strict=True)),
    )
    x, y = reference("x"), reference("y")
    found = named.predict({"b": x[1], "a": x[0]})
    for ours, theirs in zip(found.values(), model.predict(x), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    named.compile("sgd", {"c": "sparse_categorical_crossentropy", "s": "mse"})
    history = named.fit(
        {"a": x[0], "b": x[1]},
        {"s": y[1], "c": y[0]},
        verbose=0,
        validation_split=0.25,
        sample_weight={"c": reference("w")[0]},
    )
    assert list(history.history)[:3] == ["loss", "c_loss", "s_loss"]
    assert set(named.evaluate({"a": x[0], "b": x[1]}, y, return_dict=True)) == {
        "loss",
        "c_loss",
        "s_loss",
    }


def test_a_list_of_one_is_that_one() -> None:
    x = fs.Input((6,))
    data, targets = reference("x")[0], reference("y")[1]
    plain = fs.Model(x, L.Dense(2, name="out")(x))
    listed = fs.Model([x], [plain(x)])
    named = fs.Model({"x": x}, {"y": plain(x)})
    wanted = plain.predict(data)
    np.testing.assert_array_equal(listed.predict([data]), wanted)
    np.testing.assert_array_equal(listed.predict(data), wanted)
    np.testing.assert_array_equal(named.predict({"x": data})["y"], wanted)
    assert set(named(x)) == {"y"}
    for model, inputs, outputs in (
        (plain, data, targets),
        (plain, {"input_layer": data}, {"out": targets}),
        (listed, [data], [targets]),
        (named, {"x": data}, {"y": targets}),
    ):
        model.compile(fs.optimizers.SGD(1e-3), "mse", metrics=["mae"])
        history = model.fit(inputs, outputs, verbose=0).history
        assert list(history) == ["loss", "mae"]


def test_inputs_may_be_lists_of_numbers() -> None:
    model = two_by_two()
    x = reference("x")
    found = model.predict([array.tolist() for array in x])
    np.testing.assert_allclose(found[0], model.predict(x)[0], rtol=1e-6)


def test_predictions_are_the_same_on_every_rank() -> None:
    x = reference("x")

    def predict(comm: Communicator) -> list[Array]:
        found: list[Array] = two_by_two().predict(x, batch_size=5)
        return found

    alone = two_by_two().predict(x)
    for found in run_threads(3, predict):
        for ours, theirs in zip(found, alone, strict=True):
            # what is near 0 is so as a difference of numbers like the others
            size = float(np.abs(theirs).max())
            np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-6 * size)


def test_an_output_without_a_loss() -> None:
    model = two_by_two()
    model.compile("sgd", {"score": "mse"}, loss_weights={"score": 0.5})
    before = dict(zip(names(model), model.get_weights(), strict=True))
    x, y = reference("x"), reference("y")
    found = model.train_on_batch(x, {"score": y[1]}, return_dict=True)
    assert found["loss"] == pytest.approx(0.5 * found["score_loss"])
    after = dict(zip(names(model), model.get_weights(), strict=True))
    same = {name for name in before if np.array_equal(before[name], after[name])}
    assert same == {
        *(f"cls.{w}" for w in ("kernel", "bias")),
        *(f"inner.hidden.{w}" for w in ("kernel", "bias")),
    }


def names(model: fs.Model) -> list[str]:
    assert model.store.count  # it is built, so weights have their paths
    return [p.path for p in dict.fromkeys(model.root.parameters())]


def test_loss_weights_of_one_output() -> None:
    x, y = reference("x")[0], reference("y")[1]
    losses = []
    for weight in (None, 3.0, [3.0]):
        inputs = fs.Input((6,))
        model = fs.Model(inputs, L.Dense(2)(inputs))
        model.compile(fs.optimizers.SGD(0.1), "mse", loss_weights=weight)
        losses.append(model.fit(x, y, verbose=0).history["loss"][0])
    assert losses[1] == losses[2] == pytest.approx(3 * losses[0])


@pytest.mark.parametrize(
    ("x", "y", "error", "words"),
    [
        ([0], [0, 1], DataError, "x as 2 arrays, for numbers, tokens"),
        ([0, 1], [0], DataError, "targets y as 2 arrays, for cls, score"),
        ([0, 1], [1, 0], ShapeError, "targets of shape"),
        ([1, 0], [0, 1], ShapeError, "inputs 0 of shape"),
        ({"numbers": 0, "token": 1}, [0, 1], ArgumentError, "'token'"),
        ({"numbers": 0}, [0, 1], DataError, "x for tokens"),
        ([0, 1], {"cls": 0}, DataError, "targets y for score"),
    ],
)
def test_data_that_does_not_fit(x: Any, y: Any, error: Any, words: str) -> None:
    def pick(places: Any, arrays: list[Array]) -> Any:
        if isinstance(places, dict):
            return {name: arrays[i] for name, i in places.items()}
        return [arrays[i] for i in places]

    model = compiled(two_by_two())
    with pytest.raises(error) as raised:
        model.fit(pick(x, reference("x")), pick(y, reference("y")), verbose=0)
    assert words in str(raised.value)
    assert "received:" in str(raised.value)


def test_class_weight_is_for_one_output() -> None:
    model = compiled(two_by_two())
    with pytest.raises(ArgumentError) as error:
        model.fit(reference("x"), reference("y"), class_weight={0: 2.0}, verbose=0)
    assert "single output" in str(error.value)


def test_losses_and_metrics_for_what_is_no_output() -> None:
    model = two_by_two()
    model.compile("sgd", ["mse"])
    with pytest.raises(ArgumentError):
        model.fit(reference("x"), reference("y"), verbose=0)
    model.compile("sgd", "mse", metrics={"clas": "mae"})
    with pytest.raises(ArgumentError) as error:
        model.fit(reference("x"), reference("y")[::-1], verbose=0)
    assert "'clas'" in str(error.value) or "targets" in str(error.value)
    with pytest.raises(UnknownNameError):
        model.compile("sgd", {"cls": "mse", "score": "msr"})


# -- architecture as text, files -------------------------------------------------------


def shared_in_models() -> fs.Model:
    """Two nested models that share a layer; one of them is called twice."""
    x, shared = fs.Input((4,)), L.Dense(4, "relu")
    one = fs.Model(x, shared(x), name="one")
    two = fs.Model(x, [L.Dense(3)(shared(x)), shared(x)])
    a, b = fs.Input((4,)), fs.Input((4,))
    left, right = two(one(a))
    return fs.Model({"a": a, "b": b}, {"y": L.dot([left, two(b)[0]], 1), "z": right})


def language_model() -> fs.Model:
    x = fs.Input((None,))
    table = L.Embedding(9, 8, mask_zero=True)
    block = L.TransformerBlock(2, causal=True)
    return fs.Model(x, L.TiedHead(table)(block(table(x) * 2)))


def translator() -> fs.Model:
    source, target = fs.Input((None,)), fs.Input((None,))
    table = L.Embedding(9, 4, mask_zero=True)
    _, h, c = L.LSTM(5, return_state=True)(table(source))
    decoder = L.LSTM(5, return_sequences=True)
    return fs.Model(
        [source, target], L.Dense(9)(decoder(table(target), initial_state=[h, c]))
    )


MODELS = {
    "two by two": two_by_two,
    "shared in models": shared_in_models,
    "language model": language_model,
    "translator": translator,
}


def inputs_of(model: fs.Model) -> Any:
    rng = np.random.default_rng(2)

    def draw(tensor: Any, integers: bool) -> Array:
        shape = (3, *(n or 5 for n in tensor.shape[1:]))
        if integers:
            return rng.integers(0, 7, shape)
        return rng.standard_normal(shape).astype(np.float32)

    takes = model.root.takes_integers
    each = takes if isinstance(takes, tuple) else (takes,)
    values = list(map(draw, model.inputs, each))
    like = model.input
    if isinstance(like, dict):
        return dict(zip(like, values, strict=True))
    return values if isinstance(like, list) else values[0]


def parts(values: Any) -> list[Array]:
    if isinstance(values, dict):
        return list(values.values())
    return values if isinstance(values, list) else [values]


@pytest.mark.parametrize("name", MODELS)
def test_models_survive_their_text_and_files(name: str, tmp_path: Path) -> None:
    model = MODELS[name]()
    again = fs.models.model_from_json(model.to_json())
    assert [p.path for p in again.store.parameters] == [
        p.path for p in model.store.parameters
    ]
    assert [p.users for p in again.store.parameters] == [
        p.users for p in model.store.parameters
    ]
    np.testing.assert_array_equal(again.store.values, model.store.values)
    assert again.describe() == model.describe()
    assert again.to_json() == model.to_json()
    model.set_weights([value + 0.1 for value in model.get_weights()])
    x = inputs_of(model)
    wanted = model.predict(x)
    model.save(tmp_path / "model.safetensors")
    loaded = fs.models.load_model(tmp_path / "model.safetensors")
    assert type(loaded.predict(x)) is type(wanted)
    for ours, theirs in zip(parts(loaded.predict(x)), parts(wanted), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_text_that_is_no_model() -> None:
    for text in ("{", "[]", '{"class": "Functional"}', '{"class": "Other"}'):
        with pytest.raises(DataError):
            fs.models.model_from_json(text)


class Scale(Layer):
    """A layer of the user's own."""

    def __init__(self, factor: float, name: str | None = None) -> None:
        super().__init__(name=name)
        self.factor = factor

    def forward(self, x: Array, training: Any = False) -> Array:
        return x * x.dtype.type(self.factor)

    def backward(self, dy: Array, done: Any = None) -> Array:
        return dy * dy.dtype.type(self.factor)


def test_layers_of_the_users_own_are_given_by_name() -> None:
    x = fs.Input((3,))
    model = fs.Model(x, Scale(2.0)(x))
    with pytest.raises(UnknownNameError):
        fs.models.model_from_json(model.to_json())
    again = fs.models.model_from_json(model.to_json(), {"Scale": Scale})
    np.testing.assert_array_equal(again.predict(np.ones((1, 3))), [[2, 2, 2]])


def test_a_function_cannot_be_written_as_text() -> None:
    x = fs.Input((3,))
    model = fs.Model(x, L.Lambda(np.abs)(x))
    with pytest.raises(ArgumentError) as error:
        model.to_json()
    assert "Lambda" in str(error.value)


def test_summary_shows_the_connections(capsys: pytest.CaptureFixture[str]) -> None:
    two_by_two().summary()
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert lines["shared"].endswith("35  wide, narrow, numbers")
    assert lines["joined"].endswith("inner[0][0], inner[1][0], shared[2][0]")
    assert lines["254"] == "254 weights in float32"


# -- layers of several models ----------------------------------------------------------


def autoencoder() -> tuple[fs.Model, fs.Model, fs.Model]:
    x, code = fs.Input((6,)), fs.Input((3,))
    hidden = L.Dense(3, "tanh")(x)
    encoder = fs.Model(x, hidden, name="encoder")
    decoder = fs.Model(code, L.Dense(6)(code), name="decoder")
    return fs.Model(x, decoder(hidden)), encoder, decoder


def test_models_that_share_layers_share_weights() -> None:
    whole, encoder, decoder = autoencoder()
    x = reference("x")[0]
    whole.compile("sgd", "mse")
    whole.fit(x, x, verbose=0)
    np.testing.assert_array_equal(decoder.predict(encoder.predict(x)), whole.predict(x))
    before = whole.predict(x)
    whole.fit(x, x, verbose=0)  # the others have taken the weights meanwhile
    assert np.abs(whole.predict(x) - before).max() > 1e-4
    np.testing.assert_array_equal(decoder.predict(encoder.predict(x)), whole.predict(x))


def test_training_goes_on_when_a_callback_uses_a_part() -> None:
    weights = []
    for use in (False, True):
        whole, encoder, _ = autoencoder()
        whole.compile("adam", "mse")
        x = reference("x")[0]

        class Use(fs.callbacks.Callback):
            def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
                if use:  # noqa: B023
                    encoder.predict(x)  # noqa: B023

        whole.fit(x, x, 8, 2, verbose=0, callbacks=[Use()])
        weights.append(whole.get_weights())
    for one, other in zip(*weights, strict=True):
        np.testing.assert_array_equal(one, other)


def test_two_models_train_the_same_layer_in_turns() -> None:
    whole, _, decoder = autoencoder()
    x = reference("x")[0]
    whole.compile("sgd", "mse")
    decoder.compile("sgd", "mse")
    for _ in range(3):
        before = decoder.get_weights()
        whole.train_on_batch(x, x)
        between = decoder.get_weights()
        decoder.train_on_batch(x[:, :3], x)
        after = decoder.get_weights()
        assert not np.array_equal(before[0], between[0])
        assert not np.array_equal(between[0], after[0])
        np.testing.assert_array_equal(after[0], whole.get_weights()[2])


def test_a_frozen_part_is_not_trained() -> None:
    whole, encoder, _ = autoencoder()
    encoder.trainable = False
    whole.layers[1].trainable = False
    x = reference("x")[0]
    whole.compile("sgd", "mse")
    kept = encoder.get_weights()
    whole.fit(x, x, verbose=0)
    for one, other in zip(encoder.get_weights(), kept, strict=True):
        np.testing.assert_array_equal(one, other)
    assert len(whole.store.frozen_parameters) == 2


def test_training_false_in_a_call() -> None:
    x = fs.Input((6,))
    base = fs.Sequential([L.Dense(4, "gelu"), L.Dropout(0.5)], name="base")
    model = fs.Model(x, L.Dense(1)(base(x, training=False)))
    model.compile("sgd", "mse")
    data = reference("x")[0], reference("y")[1][:, :1]
    with pytest.raises(StateError) as error:
        model.fit(*data, verbose=0)
    assert "base: expected a layer that needs no gradient" in str(error.value)
    base.trainable = False
    model.compile("sgd", "mse")
    loss = model.evaluate(*data, verbose=0)
    assert model.train_on_batch(*data) == pytest.approx(loss)  # without dropout


def test_models_in_a_sequential() -> None:
    inner = autoencoder()[0]
    model = fs.Sequential([fs.Input((6,)), inner, L.Dense(2)])
    x = reference("x")[0]
    assert model.predict(x).shape == (24, 2)
    model.compile("sgd", "mse")
    model.fit(x, reference("y")[1], verbose=0)
    again = fs.models.model_from_json(model.to_json())
    again.set_weights(model.get_weights())
    np.testing.assert_array_equal(again.predict(x), model.predict(x))


def test_a_model_that_was_used_by_itself_gets_gradients_as_a_part() -> None:
    x = fs.Input((6,))
    part = fs.Model(x, L.add([L.Dense(3)(x), L.Dense(3)(x)]))
    part.predict(reference("x")[0])  # its own input needs no gradient
    model = fs.Sequential([L.Dense(6, input_shape=(6,)), part])
    model.compile("sgd", "mse")
    before = model.get_weights()
    model.fit(reference("x")[0], reference("x")[0][:, :3], verbose=0)
    for one, other in zip(before, model.get_weights(), strict=True):
        assert not np.array_equal(one, other)


def test_a_model_for_each_step() -> None:
    x = fs.Input((6,))
    part = fs.Model(x, L.add([L.Dense(3)(x), L.Dense(3)(x)]))
    steps = fs.Input((5, 6))
    model = fs.Model(steps, L.TimeDistributed(part)(steps))
    data = np.random.default_rng(0).standard_normal((4, 5, 6))
    wanted = part(data.reshape(20, 6)).reshape(4, 5, 3)
    np.testing.assert_allclose(model.predict(data), wanted, rtol=1e-5, atol=1e-6)
    again = fs.models.model_from_json(model.to_json())
    again.set_weights(model.get_weights())
    np.testing.assert_array_equal(again.predict(data), model.predict(data))


def test_a_sequential_has_tensors() -> None:
    model = fs.Sequential([L.Dense(4, "relu", input_shape=(6,)), L.Dense(2)])
    x = reference("x")[0]
    y = L.Dense(3)(model.layers[0](model.inputs[0]))
    other = fs.Model(model.inputs, [y, model.outputs[0]])
    np.testing.assert_array_equal(other.predict(x)[1], model.predict(x))


def test_get_layer() -> None:
    model = two_by_two()
    assert model.get_layer("shared") is model.layers[6]
    assert model.get_layer(index=-1) is model.get_layer("score")
    assert model.get_layer("inner").children()["hidden"].output_shape == (4,)
    with pytest.raises(UnknownNameError):
        model.get_layer("share")
    with pytest.raises(ArgumentError):
        model.get_layer(index=99)


# -- classes with a method call --------------------------------------------------------


class Block(Layer):
    """A layer that is made of others."""

    def __init__(self, units: int, name: str | None = None) -> None:
        super().__init__(name=name)
        self.wide = L.Dense(2 * units, "relu")
        self.narrow = L.Dense(units)

    def call(self, x: Any) -> Any:
        return x + 0.5 * self.narrow(self.wide(x))


class Net(fs.Model):
    def __init__(self, rate: float = 0.0, **options: Any) -> None:
        super().__init__(**options)
        self.first = L.Dense(4)
        self.drop = L.Dropout(rate)
        self.blocks = [Block(4), Block(4)]
        self.heads = {"a": L.Dense(2), "b": L.Dense(1, name="b")}

    def call(self, x: Any, training: Any = None) -> Any:
        x = self.drop(self.first(x), training=training)
        for block in self.blocks:
            x = block(x)
        return {name: head(x) for name, head in self.heads.items()}


def test_a_class_with_a_call_is_traced() -> None:
    model = Net(0.5, seed=4)
    x, y = reference("x")[0], reference("y")[1]
    model.compile("sgd", "mse")
    targets = {"a": y, "b": y[:, :1]}
    history = model.fit(x, targets, verbose=0, epochs=2, shuffle=False)
    assert (
        history.history["loss"][0]
        == history.history["a_loss"][0] + (history.history["b_loss"][0])
    )
    assert {p.path for p in model.store.parameters} == {
        f"{layer}.{weight}"
        for layer in ("first", "b", "dense")
        for weight in ("kernel", "bias")
    } | {
        f"blocks_{i}.{part}.{weight}"
        for i in range(2)
        for part in ("wide", "narrow")
        for weight in ("kernel", "bias")
    }
    assert model.name == "net"
    assert set(model.predict(x)) == {"a", "b"}
    assert {tuple(out.shape) for out in model(x[:3]).values()} == {(3, 2), (3, 1)}
    # dropout is on in training alone
    assert (
        model.evaluate(x, targets, verbose=0)[0] != model.train_on_batch(x, targets)[0]
    )
    again = fs.models.model_from_json(model.to_json(), {"Block": Block})
    again.set_weights(model.get_weights())
    np.testing.assert_array_equal(again.predict(x)["a"], model.predict(x)["a"])


def test_a_class_with_a_call_is_a_layer_of_others() -> None:
    x = fs.Input((6,))
    net = Net()
    found = net(x)
    model = fs.Model(x, L.concatenate([found["a"], found["b"]]))
    data = reference("x")[0]
    np.testing.assert_array_equal(model.predict(data)[:, :2], net.predict(data)["a"])
    assert "net.blocks_0.wide.kernel" in names(model)


def test_a_class_with_several_inputs() -> None:
    class Two(fs.Model):
        def __init__(self) -> None:
            super().__init__()
            self.merge = L.Dense(2)

        def call(self, inputs: Any) -> Any:
            a, b = inputs["a"], inputs["b"]
            return self.merge(L.concatenate([a, b]))

    model = Two()
    x = {"a": reference("x")[0], "b": reference("y")[1]}
    model.compile("sgd", "mse")
    model.fit(x, reference("y")[1], verbose=0)
    assert model.input_names == ["a", "b"]
    assert model.predict(x).shape == (24, 2)


class Branches(fs.Model):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.dense = how, L.Dense(3)

    def call(self, x: Any, training: bool = False) -> Any:
        if self.how == "training" and training:
            return x
        if self.how == "values" and x > 0:
            return x
        if self.how == "condition" and x:
            return x
        if self.how == "loop":
            return [self.dense(row) for row in x]
        if self.how == "numpy":
            return np.tanh(self.dense(x))
        if self.how == "array":
            return x + np.ones(6)
        if self.how == "nothing":
            return None
        return self.dense(x)


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("training", "passes training on to layers"),
        ("condition", "a condition"),
        ("loop", "a loop"),
        ("numpy", ""),
        ("array", "give arrays to the model as inputs"),
        ("nothing", "outputs to be tensors"),
    ],
)
def test_what_cannot_be_traced(how: str, words: str) -> None:
    with pytest.raises((ArgumentError, TypeError)) as error:
        Branches(how).build((6,))
    assert words in str(error.value)


def test_a_model_without_inputs_and_call() -> None:
    with pytest.raises(ArgumentError) as error:
        fs.Model()
    assert "call(self, inputs)" in str(error.value)


# -- what graphs refuse ----------------------------------------------------------------


def test_graphs_that_cannot_be() -> None:
    x, other = fs.Input((4,)), fs.Input((4,), name="other")
    dense = L.Dense(3)
    with pytest.raises(ArgumentError) as error:
        fs.Model(x, L.add([x, other]))
    assert "also needs the Input" in str(error.value)
    with pytest.raises(ArgumentError):
        fs.Model(x, [])
    with pytest.raises(ArgumentError):
        fs.Model(x, dense)
    with pytest.raises(ArgumentError) as error:
        dense([x, other])
    assert "one tensor" in str(error.value)
    with pytest.raises(ArgumentError):
        dense(x, np.ones(3))
    with pytest.raises(ArgumentError):
        L.Add()([x, np.ones((2, 4))])
    with pytest.raises(ShapeError):
        L.add([x, dense(x)])
    with pytest.raises(ShapeError):
        L.subtract([x, x, x])
    with pytest.raises(ShapeError):
        L.Add()(x)
    with pytest.raises(ShapeError) as error:
        dense(fs.Input((5,)))
    assert "weights would have other shapes" in str(error.value)
    with pytest.raises(ArgumentError) as error:
        fs.Model(x, L.Dense(2, name="a")(L.Dense(2, name="a")(x)))
    assert "'a' for 2 layers" in str(error.value)
    with pytest.raises(ArgumentError):
        fs.Input((4,), batch_size=3)
    with pytest.raises(ArgumentError):
        x[0]
    with pytest.raises(ShapeError):
        x[:, 9]


def test_tensors_may_come_one_after_the_other() -> None:
    a, b = fs.Input((4,)), fs.Input((4,))
    assert L.Add()(a, b).shape == (None, 4)
    state = fs.Input((3,))
    x = fs.Input((5, 4))
    for call in (
        lambda layer: layer(x, [state, state]),
        lambda layer: layer(x, initial_state=[state, state]),
        lambda layer: layer(initial_state=[state, state], sequences=x),
        lambda layer: layer([x, state, state]),
    ):
        assert call(L.LSTM(3)).shape == (None, 3)
    with pytest.raises(ArgumentError) as error:
        L.LSTM(3)(x, state=state)
    assert "sequences, initial_state" in str(error.value)
    with pytest.raises(ArgumentError):
        L.LSTM(3)(initial_state=[state, state])


def test_names_are_counted_in_each_model() -> None:
    for _ in range(2):
        x = fs.Input((4,))
        y = L.Dense(4)(
            L.Dense(4, name="dense_1")(L.LayerNormalization()(L.Dense(4)(x)))
        )
        assert list(fs.Model(x, y).root.children()) == [
            "input_layer",
            "dense",
            "layer_normalization",
            "dense_1",
            "dense_2",
        ]


# -- Lambda, masks, memory -------------------------------------------------------------


def test_a_lambda_without_a_gradient_stands_at_the_beginning() -> None:
    x = fs.Input((6,))
    scaled = L.Lambda(lambda x: (x - x.mean(axis=1, keepdims=True)) / 2)(x)
    model = fs.Model(x, L.Dense(2)(scaled))
    model.compile("sgd", "mse")
    model.fit(reference("x")[0], reference("y")[1], verbose=0)
    late = fs.Model(x, L.Lambda(np.abs)(L.Dense(2)(x)))
    assert late.predict(reference("x")[0]).min() >= 0
    late.compile("sgd", "mse")
    with pytest.raises(ArgumentError) as error:
        late.fit(reference("x")[0], reference("y")[1], verbose=0)
    assert "Lambda lambda: expected its gradient" in str(error.value)


def test_lambdas_find_their_shape() -> None:
    x = fs.Input((None, 3))
    assert L.Lambda(lambda x: x.sum(axis=1))(x).shape == (None, 3)
    assert L.Lambda(lambda x: x[:, 1:])(x).shape == (None, None, 3)
    assert L.Lambda(lambda x: x[0] @ x[1])([x, fs.Input((3, 2))]).shape == (
        None,
        None,
        2,
    )
    shaped = L.Lambda(lambda x, k: x * k, (7, 3), arguments={"k": 2})
    assert shaped(x).shape == (None, 7, 3)
    model = fs.Model(x, shaped(x))
    with pytest.raises(ShapeError):
        model.predict(np.ones((2, 5, 3)))


def test_layers_without_weights_compute_on_arrays() -> None:
    a = np.ones((2, 3))
    np.testing.assert_array_equal(L.add([a, a]), 2 * a)
    np.testing.assert_array_equal(L.Flatten()(np.ones((2, 3, 4))), np.ones((2, 12)))
    with pytest.raises(StateError):
        L.Dense(3)(a)


def test_indices_stay_integers_on_their_way() -> None:
    a, b = fs.Input((3,), dtype="int32"), fs.Input((2,), dtype="int32")
    joined = L.concatenate([a, b])[:, ::-1]
    model = fs.Model([a, b], L.Embedding(9, 2)(joined))
    model.compile("sgd", "mse")
    x = np.arange(6).reshape(2, 3), np.arange(4).reshape(2, 2)
    model.fit(list(x), np.zeros((2, 5, 2)), verbose=0)
    table = model.get_weights()[0]
    found = model.predict(list(x))
    np.testing.assert_array_equal(found, table[np.hstack(x)[:, ::-1]])


def test_masks_go_along_the_tensors() -> None:
    seen: list[Any] = []

    class Look(L.Identity):
        def forward(self, x: Any, training: Any = False) -> Any:
            seen.append(self.mask)
            return x

    a, b = fs.Input((3,)), fs.Input((3,))
    table = L.Embedding(5, 2, mask_zero=True)
    one, two = table(a), table(b)
    joined = L.concatenate([one, two], axis=1)
    plain = L.Embedding(5, 2)(a)
    outputs = [Look()(t) for t in (one, joined, L.add([one, two]), L.add([one, plain]))]
    model = fs.Model([a, b], outputs)
    x = np.array([[1, 0, 2]]), np.array([[0, 0, 3]])
    model.predict(x)
    masks = [None if mask is None else mask.tolist() for mask in seen]
    assert masks == [
        [[True, False, True]],
        [[True, False, True, False, False, True]],
        [[True, False, True]],
        None,
    ]


def test_a_step_of_a_graph_allocates_nothing_large() -> None:
    x = fs.Input((64,))
    shared = L.Dense(64, "relu")
    y = x
    for _ in range(4):
        y = L.add([y, shared(y)]) * 0.5
    graph = fs.Model(x, [L.Dense(64)(y), L.concatenate([x, y])]).root
    graph.build_once((64,))
    ParameterStore(graph)
    graph.bind(Memory(), np.dtype(np.float32))
    data = np.random.default_rng(0).standard_normal((512, 64)).astype(np.float32)
    dys = tuple(map(np.copy, graph.forward(data, StepKey())))
    graph.backward(dys)
    for _ in range(2):
        tracemalloc.start()
        graph.forward(data, StepKey())
        graph.backward(dys)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 100_000  # an array of 512 x 64 is 131 kB


def test_dropout_differs_between_the_calls_of_a_layer() -> None:
    x = fs.Input((50,))
    drop = L.Dropout(0.5)
    model = fs.Model(x, [drop(x), drop(x)])
    model.build((50,))
    one, two = model.root.forward(np.ones((2, 50), np.float32), StepKey())
    assert (one != two).any()
