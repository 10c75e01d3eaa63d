"""Recurrent layers in models: masks, states that go on, ranks, files."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from gradcheck import check_directions, prepare

import fastserve as fs
from fastserve.assemble.model import make_model
from fastserve.comm import Communicator, run_threads
from fastserve.core import Layer, StepKey
from fastserve.errors import ArgumentError, DataError, ShapeError, StateError
from fastserve.models.serialization import layer_config, layer_from_config
from fastserve.ops import few_rows
from fastserve.training.flops import flops_per_sample
from fastserve.training.step import Options

Array = np.ndarray[Any, np.dtype[Any]]
L = fs.layers
KINDS = ("SimpleRNN", "LSTM", "GRU")


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def of(kind: str, *args: Any, **kwargs: Any) -> Any:
    return getattr(L, kind)(*args, **kwargs)


# -- the layer by itself ---------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("where", ["left", "middle", "right"])
def test_masked_steps_could_be_left_out(kind: str, where: str) -> None:
    layer = of(kind, 4, return_sequences=True, return_state=True)
    prepare(layer, (None, 3))
    x = rng().standard_normal((2, 6, 3))
    counts = np.ones(9, bool)
    counts[{"left": slice(3), "middle": slice(2, 5), "right": slice(6, 9)}[where]] = 0
    long = np.full((2, 9, 3), 7.0)
    long[:, counts] = x
    y, *states = (a.copy() for a in layer.forward(x))
    layer.mask = np.broadcast_to(counts, (2, 9))
    z, *others = layer.forward(long)
    np.testing.assert_allclose(z[:, counts], y, rtol=1e-12)
    for one, other in zip(states, others, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12)
    assert layer.output_mask()[0] is layer.mask
    assert layer.output_mask()[1] is None


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("backwards", [False, True])
def test_everything_masked(kind: str, backwards: bool) -> None:
    options = {"return_sequences": True, "go_backwards": backwards}
    layer = of(kind, 4, **options)
    states = [rng(i).standard_normal((2, 4)) for i in range(layer.states)]
    prepare(layer, ((5, 3), *[(4,)] * layer.states))
    layer.mask = (np.zeros((2, 5), bool), *[None] * layer.states)
    y = layer.forward((rng().standard_normal((2, 5, 3)), *states), StepKey())
    assert np.array_equal(y, np.repeat(states[0][:, None], 5, axis=1))
    dx, dh, *_ = layer.backward(np.ones_like(y))
    assert not dx.any()
    assert np.array_equal(dh, np.full((2, 4), 5.0))


@pytest.mark.parametrize("kind", KINDS)
def test_batches_of_other_lengths(kind: str) -> None:
    layer = of(kind, 4, return_sequences=True)
    prepare(layer, (None, 3))
    x = rng().standard_normal((3, 9, 3))
    long = layer.forward(x, StepKey()).copy()
    for time in (1, 4, 9):
        y = layer.forward(x[:, :time], StepKey())
        np.testing.assert_allclose(y, long[:, :time], rtol=1e-12)
        assert layer.backward(np.ones_like(y)).shape == (3, time, 3)
        np.testing.assert_allclose(layer.forward(x[:, :time]), y, rtol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("backwards", [False, True])
def test_products_in_pieces(
    kind: str, dropout: float, backwards: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights that are cut for BLAS' small kernels give the same as whole ones."""
    x = rng().standard_normal((96, 5, 32))
    results = []
    for small in (False, True):
        monkeypatch.setattr(few_rows, "small_kernels", lambda small=small: small)
        monkeypatch.setattr(few_rows, "LIMIT", 32 * 16 * 200)
        few_rows.piece.cache_clear()
        layer = of(
            kind,
            48,
            dropout=dropout,
            recurrent_dropout=dropout,
            go_backwards=backwards,
            return_sequences=True,
        )
        prepare(layer, (None, 32))
        y = layer.forward(x, StepKey(1)).copy()
        dx = layer.backward(np.cos(y)).copy()
        results.append([y, dx, *(p.grad.copy() for p in layer.parameters())])
        assert (few_rows.piece(96, 81, 48) == (48, 16)) == small
        assert (few_rows.piece(96, 192, 48) == (32, 16)) == small
    few_rows.piece.cache_clear()
    for one, other in zip(*results, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("kind", KINDS)
def test_initial_weights(kind: str) -> None:
    layer = of(kind, 4)
    prepare(layer, (5, 3), seed=None)
    kernel, recurrent, bias = (p.value for p in layer.parameters())
    gates = layer.gates
    assert kernel.shape == (3, 4 * gates)
    np.testing.assert_allclose(recurrent @ recurrent.T, np.eye(4), atol=1e-6)
    wanted = np.zeros_like(bias)
    if kind == "LSTM":
        wanted[4:8] = 1  # the forget gate is open
    assert np.array_equal(bias, wanted)


def test_dropout_is_the_same_in_all_steps_and_none_in_evaluation() -> None:
    layer = L.SimpleRNN(4, None, dropout=0.5, return_sequences=True)
    prepare(layer, (5, 3))
    list(layer.parameters())[1].value[...] = 0
    x = np.ones((2, 5, 3))
    y = layer.forward(x, StepKey(1)).copy()
    assert np.array_equal(y, np.repeat(y[:, :1], 5, axis=1))
    assert not np.allclose(y, layer.forward(x))


def test_frozen_weights_get_no_gradient() -> None:
    layer = L.GRU(4)
    layer.trainable = False
    prepare(layer, (5, 3))
    x = rng().standard_normal((2, 5, 3))
    assert layer.backward(np.ones_like(layer.forward(x, StepKey()))).shape == x.shape


# -- states that go on -----------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_stateful_is_one_long_sequence(kind: str) -> None:
    x = rng().standard_normal((3, 8, 2))
    whole = of(kind, 4, return_sequences=True)
    prepare(whole, (8, 2))
    layer = of(kind, 4, return_sequences=True, stateful=True)
    prepare(layer, (4, 2))
    y = whole.forward(x).copy()
    for training in (False, StepKey(1, 2, 3)):
        first = layer.forward(x[:, :4], training).copy()
        second = layer.forward(x[:, 4:], training).copy()
        np.testing.assert_allclose(np.concatenate([first, second], 1), y, rtol=1e-12)
        assert not np.allclose(layer.forward(x[:, :4], training), first)
        layer.reset_states()


def test_stateful_backward_stops_at_the_batch() -> None:
    layer = L.LSTM(4, stateful=True)
    store = prepare(layer, (4, 2))
    x = rng().standard_normal((3, 4, 2))
    carried = [rng(i).standard_normal((3, 4)) for i in range(2)]

    def value() -> float:
        layer._carried = carried
        return float(layer.forward(x, StepKey()).sum())

    value()
    dx = layer.backward(np.ones((3, 4)))
    arrays = [*(p.value for p in store.parameters), x]
    grads = [*(p.grad.copy() for p in store.parameters), dx]
    check_directions(value, arrays, grads, rng())


def test_stateful_refuses_what_it_cannot_follow() -> None:
    layer = L.GRU(4, stateful=True)
    prepare(layer, (4, 2))
    layer.forward(np.ones((3, 4, 2)), StepKey(first_row=3))
    with pytest.raises(DataError, match="rows"):
        layer.forward(np.ones((2, 4, 2)), StepKey(first_row=3))
    with pytest.raises(StateError, match="rows from 3"):
        layer.forward(np.ones((3, 4, 2)), StepKey(first_row=6))
    layer.reset_states()
    layer.forward(np.ones((2, 4, 2)), StepKey(first_row=6))


def test_stateful_over_ranks_and_with_micro_batches() -> None:
    x, y = rng().standard_normal((12, 5, 2)), rng(1).standard_normal((12, 1))

    def program(comm: Communicator) -> list[Array]:
        model = fs.models.Sequential(
            [L.LSTM(3, stateful=True), L.Dense(1)], dtype="float64"
        )
        model.compile("sgd", "mse")
        model.fit(x, y, batch_size=4, epochs=2, shuffle=False, verbose=0)
        return model.get_weights()

    (alone,) = run_threads(1, program)
    for weights in run_threads(2, program):
        for ours, theirs in zip(weights, alone, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-9)
    model = fs.models.Sequential([L.LSTM(3, stateful=True), L.Dense(1)])
    model.compile("sgd", "mse")
    model.options = Options(micro_batch=2)
    with pytest.raises(StateError, match="micro_batch"):
        model.fit(x, y, batch_size=4, shuffle=False, verbose=0)
    model = fs.models.Sequential([L.LSTM(3, stateful=True), L.Dense(1)])
    model.compile("sgd", "mse")
    with pytest.raises(DataError, match="batch size"):
        model.fit(x, y, batch_size=5, shuffle=False, verbose=0)


# -- errors ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [
        lambda: L.LSTM(0),
        lambda: L.GRU(4, dropout=1.0),
        lambda: L.Bidirectional(L.LSTM(4), "max"),
        lambda: L.Bidirectional(L.Dense(4)),
        lambda: L.Bidirectional(L.LSTM(4), backward_layer=L.LSTM(4)),
        lambda: L.Bidirectional(
            L.LSTM(4), backward_layer=L.LSTM(4, go_backwards=True, return_state=True)
        ),
        lambda: L.TimeDistributed("Dense"),
    ],
)
def test_bad_arguments(make: Callable[[], Layer]) -> None:
    with pytest.raises(ArgumentError):
        make()


def test_bad_shapes() -> None:
    for layer, shape in (
        (L.LSTM(4), (3,)),
        (L.LSTM(4), (5, None)),
        (L.LSTM(4), ((5, 3), (4,))),
        (L.GRU(4), ((5, 3), (3,))),
        (L.TimeDistributed(L.Dense(3)), (4,)),
        (L.Masking(), (4,)),
    ):
        with pytest.raises(ShapeError):
            layer.build_once(shape)
    other = L.GRU(3, go_backwards=True)
    with pytest.raises(ArgumentError, match="units"):
        L.Bidirectional(L.GRU(4), "sum", other).build_once((5, 3))
    layer = L.LSTM(4)
    prepare(layer, (None, 3))
    layer.mask = np.ones((2, 4), bool)
    with pytest.raises(ShapeError, match="mask"):
        layer.forward(np.ones((2, 5, 3)))
    layer.mask = None
    with pytest.raises(ShapeError, match="time"):
        layer.forward(np.ones((2, 0, 3)))
    layer.forward(np.ones((2, 5, 3)))
    with pytest.raises(StateError, match="training"):
        layer.backward(np.ones((2, 4)))


# -- masks through fit, evaluate and predict -------------------------------------------


def words(samples: int = 13, time: int = 6) -> tuple[Array, Array]:
    """Rows of words from 1 on, padded with zeros, and a label for each."""
    x = rng(2).integers(1, 9, (samples, time))
    for row, length in enumerate(rng(3).integers(1, time + 1, samples)):
        x[row, length:] = 0
    return x, (x + np.roll(x, 1, axis=1)) % 3


def tagger(dtype: str = "float64", **options: Any) -> fs.models.Sequential:
    model = fs.models.Sequential(
        [
            L.Embedding(9, 5, mask_zero=True),
            L.Bidirectional(L.LSTM(4, return_sequences=True)),
            L.Dense(3, "softmax"),
        ],
        seed=1,
        dtype=dtype,
    )
    model.compile("sgd", "sparse_categorical_crossentropy", metrics=["accuracy"])
    model.options = Options(**options)
    return model


def test_a_classifier_does_not_see_the_padding() -> None:
    x, y = words()[0], rng().integers(0, 2, 13)
    results = []
    for more in (0, 4):
        model = fs.models.Sequential(
            [L.Embedding(9, 5, mask_zero=True), L.LSTM(4), L.Dense(2, "softmax")],
            dtype="float64",
        )
        model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
        padded = np.pad(x, ((0, 0), (0, more)))
        history = model.fit(padded, y, 4, 3, verbose=0)
        results.append(
            (
                [*history.history.values()],
                model.predict(padded),
                model.evaluate(padded, y),
            )
        )
    for one, other in zip(*results, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9)


def test_a_tagger_does_not_count_the_padding() -> None:
    x, y = words()
    results = []
    for more in (0, 3):
        model = tagger()
        wide = [np.pad(a, ((0, 0), (0, more))) for a in (x, y)]
        history = model.fit(*wide, 4, 3, verbose=0, validation_split=0.3)
        results.append((history.history, model.get_weights(), model.evaluate(*wide)))
        assert history.history["loss"][0] > history.history["loss"][-1]
    (one, weights, loss), (other, again, same) = results
    for name, values in one.items():
        np.testing.assert_allclose(values, other[name], rtol=1e-9, err_msg=name)
    for ours, theirs in zip(weights, again, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(loss, same, rtol=1e-9)


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"micro_batch": 2},
        {"overlap": True, "micro_batch": 1},
        {"shard_optimizer": True},
        {"algorithm": "exact"},
    ],
    ids=str,
)
def test_masked_steps_are_the_same_on_any_number_of_ranks(
    ranks: int, options: dict[str, Any]
) -> None:
    x, y = words()
    weights = rng(5).uniform(0.5, 2, len(x))

    def program(comm: Communicator, **options: Any) -> Any:
        model = tagger(**options)
        history = model.fit(x, y, 5, 2, verbose=0, sample_weight=weights)
        return history.history, model.get_weights(), model.evaluate(x, y, 4)

    (history, trained, found), *_ = run_threads(1, program)
    many = run_threads(ranks, lambda comm: program(comm, **options))
    for ours, theirs, results in many:
        np.testing.assert_allclose(results, found, rtol=1e-8)
        for name, values in history.items():
            np.testing.assert_allclose(ours[name], values, rtol=1e-8, err_msg=name)
        for one, other in zip(theirs, trained, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-7, atol=1e-10)


def test_nothing_but_padding_changes_nothing() -> None:
    model = tagger()
    x = np.zeros((4, 6), np.int64)
    model.build((6,))
    before = model.get_weights()
    assert model.train_on_batch(x, x) == [0.0, 0.0]
    for ours, theirs in zip(model.get_weights(), before, strict=True):
        assert np.array_equal(ours, theirs)


def test_logits_in_pieces_are_masked_too(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = words()
    found = []
    for size in (1 << 27, 64):
        monkeypatch.setattr("fastserve.training.large_vocabulary.PIECE_BYTES", size)
        model = fs.models.Sequential(
            [
                L.Embedding(9, 5, mask_zero=True),
                L.GRU(4, return_sequences=True),
                L.Dense(3),
            ],
            dtype="float64",
        )
        loss = fs.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile("sgd", loss, metrics=["accuracy"])
        history = model.fit(x, y, 5, 2, verbose=0, sample_weight=np.arange(1.0, 14))
        found.append([*history.history["loss"], *model.evaluate(x, y)])
    np.testing.assert_allclose(found[1], found[0], rtol=1e-9)


def test_several_outputs_do_not_count_the_padding() -> None:
    a, b = words()
    found = []
    for more in (0, 3):
        x = fs.Input((None,), dtype="int64")
        embedded = L.Embedding(9, 5, mask_zero=True)(x)
        tags = L.Dense(3, "softmax")(L.GRU(4, return_sequences=True)(embedded))
        label = L.Dense(3, "softmax")(L.GRU(4)(embedded))
        model = fs.Model(x, [tags, label], dtype="float64")
        model.compile("sgd", "sparse_categorical_crossentropy")
        wide = [np.pad(array, ((0, 0), (0, more))) for array in (a, b)]
        history = model.fit(wide[0], [wide[1], b[:, 0]], 5, 2, verbose=0)
        found.append(history.history["loss"])
    np.testing.assert_allclose(found[1], found[0], rtol=1e-9)


def test_initial_states_in_the_functional_api() -> None:
    """An encoder's states begin a decoder; both see their own masks."""
    x, t = fs.Input((None,), dtype="int64"), fs.Input((None,), dtype="int64")
    table = L.Embedding(9, 5, mask_zero=True)
    _, h, c = L.LSTM(4, return_state=True)(table(x))
    decoder = L.LSTM(4, return_sequences=True)
    y = L.Dense(3, "softmax")(decoder(table(t), initial_state=[h, c]))
    model = fs.Model([x, t], y, dtype="float64")
    model.compile("sgd", "sparse_categorical_crossentropy", metrics=["accuracy"])
    a, _ = words()
    c_, d = words(13, 4)
    padded = [np.pad(array, ((0, 0), (0, 3))) for array in (a, c_, d)]
    for x_, t_, y_ in ((a, c_, d), padded):
        model.set_weights(
            [np.cos(np.arange(w.size)).reshape(w.shape) for w in model.get_weights()]
        )
        first = model.evaluate([x_, t_], y_)
        history = model.fit([x_, t_], y_, 5, 3, verbose=0, shuffle=False)
        loss = history.history["loss"]
        assert loss[-1] < first[0]
        if y_ is d:
            wanted = first, loss
    np.testing.assert_allclose(first, wanted[0], rtol=1e-9)
    np.testing.assert_allclose(loss, wanted[1], rtol=1e-9)


def test_masking() -> None:
    layer = L.Masking(2.0)
    prepare(layer, (4, 3))
    x = rng().standard_normal((2, 4, 3))
    x[0, 1] = x[1, 2:] = 2.0
    x[0, 2, 0] = 2.0
    y = layer.forward(x, StepKey())
    mask = layer.output_mask()
    assert mask is not None
    assert mask.tolist() == [[1, 0, 1, 1], [1, 1, 0, 0]]
    assert np.array_equal(y, np.where(mask[..., None], x, 0))
    model = fs.models.Sequential([L.Masking(2.0), L.LSTM(3)], dtype="float64")
    model.build((None, 3))
    short = model.predict(x[1:, :2])
    np.testing.assert_allclose(model.predict(x[1:]), short, rtol=1e-12)


@pytest.mark.parametrize("sequences", [False, True])
def test_operations_are_counted_for_all_steps(sequences: bool) -> None:
    model = fs.models.Sequential(
        [L.GRU(4, return_sequences=sequences, input_shape=(None, 3)), L.Dense(2)]
    )
    model.build((None, 3))
    dense = 4 * 2 * (10 if sequences else 1)
    wanted = 6 * (10 * 12 * (3 + 4) + dense)
    assert flops_per_sample(model.root, time=10) == wanted
    each = fs.models.Sequential([L.TimeDistributed(L.Dense(2), input_shape=(5, 3))])
    each.build((5, 3))
    assert flops_per_sample(each.root) == 6 * 5 * 3 * 2


# -- files -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [
        lambda: L.LSTM(4, "relu", dropout=0.2, kernel_regularizer="l2", seed=3),
        lambda: L.Bidirectional(L.GRU(4, return_sequences=True), "sum"),
        lambda: L.Bidirectional(
            L.GRU(4), backward_layer=L.GRU(4, go_backwards=True, reset_after=False)
        ),
        lambda: L.Bidirectional(layer=L.SimpleRNN(4)),
        lambda: L.TimeDistributed(L.TimeDistributed(L.Dense(3, "relu"))),
        lambda: L.Masking(1.0),
    ],
)
def test_layers_come_back_from_json(make: Callable[[], Layer]) -> None:
    layer = make()
    again = layer_from_config(layer_config(layer))
    assert layer_config(again) == layer_config(layer)
    shape = (4, 5, 3) if isinstance(layer, L.TimeDistributed) else (5, 3)
    prepare(layer, shape)
    prepare(again, shape)
    x = rng().standard_normal((2, *shape))
    assert np.array_equal(layer.forward(x), again.forward(x))


def test_layers_around_layers_in_a_job() -> None:
    job = fs.config.Job.model_validate(
        {
            "name": "tagger",
            "model": {
                "type": "sequential",
                "layers": [
                    {"Embedding": {"input_dim": 9, "output_dim": 5}},
                    {
                        "Bidirectional": {
                            "layer": {"LSTM": {"units": 4, "return_sequences": True}},
                            "merge_mode": "sum",
                        }
                    },
                    {"TimeDistributed": {"layer": {"Dense": {"units": 3}}}},
                ],
                "loss": "sparse_categorical_crossentropy",
                "input_shape": [6],
            },
            "data": {"type": "arrays", "file": "x.npz"},
            "train": {"steps": 3},
        }
    )
    model = make_model(job, None)
    assert model.output_shape == (6, 3)
