"""Optimizers: Keras' formulas in float64, PyTorch's arrays, clipping, layout."""

from __future__ import annotations

import math
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from fastserve import optimizers as o
from fastserve.core import Layer, ParameterStore
from fastserve.core.initializers import RandomNormal
from fastserve.errors import ArgumentError, StateError, UnknownNameError
from fastserve.ops.blocks import FLAT
from fastserve.optimizers.base import AT_ONCE
from fastserve.optimizers.base import _pieces as pieces_of
from fastserve.schedules import CosineDecay, PiecewiseConstantDecay

REFERENCE = np.load(Path(__file__).parent / "references" / "optimizers.npz")
EPS = 1e-10


class Box(Layer):
    """A layer with parameters of the given shapes and nothing else."""

    def __init__(self, *shapes):
        super().__init__()
        self.shapes = shapes

    def build(self, input_shape):
        for i, shape in enumerate(self.shapes):
            self.param(f"p{i}", shape, RandomNormal(stddev=1.0))
        return input_shape


def make_store(*shapes, dtype=np.float32, **options):
    box = Box(*shapes)
    box.build_once((1,))
    return ParameterStore(box, dtype=dtype, **options)


def train(optimizer, grads, start, dtype=np.float32, scale=1.0):
    """Return the values of one parameter after each update."""
    store = make_store(start.shape, dtype=dtype)
    parameter = store.parameters[0]
    parameter.value[...] = start
    optimizer.bind(store)
    history = []
    for grad in grads:
        parameter.grad[...] = grad / scale
        store.grads.flags.writeable = False
        optimizer.update(scale)
        store.grads.flags.writeable = True
        history.append(parameter.value.copy())
    return np.stack(history)


@pytest.mark.parametrize("scale", [1.0, 0.125])
@pytest.mark.parametrize(
    ("name", "optimizer"),
    [
        ("sgd", o.SGD(0.05)),
        ("momentum", o.SGD(0.05, momentum=0.9)),
        ("nesterov", o.SGD(0.05, momentum=0.9, nesterov=True)),
        ("rmsprop", o.RMSprop(0.01, epsilon=EPS)),
        (
            "rmsprop_centered",
            o.RMSprop(0.01, momentum=0.8, epsilon=EPS, centered=True),
        ),
        ("adam", o.Adam(0.01, beta_2=0.95, epsilon=EPS)),
        ("adamw", o.AdamW(0.01, weight_decay=0.1, epsilon=EPS)),
    ],
)
def test_pytorchs_values(name, optimizer, scale):
    values = train(optimizer, REFERENCE["grads"], REFERENCE["start"], scale=scale)
    # centered: v - a² is small against both, after the first steps
    rtol = 1e-4 if name == "rmsprop_centered" else 1e-5
    np.testing.assert_allclose(values, REFERENCE[name], rtol=rtol, atol=1e-5)


def keras_sgd(p, g, t, s, lr=0.01, momentum=0.0, nesterov=False, weight_decay=None):
    p = p - p * (weight_decay or 0) * lr
    if momentum == 0:
        return p - lr * g
    s["m"] = momentum * s.get("m", 0) - lr * g
    return p + (momentum * s["m"] - lr * g if nesterov else s["m"])


def keras_rmsprop(
    p, g, t, s, lr=0.001, rho=0.9, momentum=0.0, epsilon=1e-7, centered=False
):
    s["v"] = rho * s.get("v", 0) + (1 - rho) * g**2
    s["a"] = rho * s.get("a", 0) + (1 - rho) * g
    bottom = s["v"] - (s["a"] ** 2 if centered else 0) + epsilon
    s["m"] = momentum * s.get("m", 0) + lr * g / np.sqrt(bottom)
    return p - s["m"]


def keras_adam(
    p, g, t, s, lr=0.001, beta_1=0.9, beta_2=0.999, epsilon=1e-7, weight_decay=None
):
    p = p - p * (weight_decay or 0) * lr
    s["m"] = s.get("m", 0) + (g - s.get("m", 0)) * (1 - beta_1)
    s["v"] = s.get("v", 0) + (g**2 - s.get("v", 0)) * (1 - beta_2)
    alpha = lr * np.sqrt(1 - beta_2**t) / (1 - beta_1**t)
    return p - alpha * s["m"] / (np.sqrt(s["v"]) + epsilon)


def keras_adamw(p, g, t, s, weight_decay=0.004, **keys):
    return keras_adam(p, g, t, s, weight_decay=weight_decay, **keys)


@pytest.mark.parametrize(
    ("cls", "formula", "keys"),
    [
        (o.SGD, keras_sgd, {}),
        (o.SGD, keras_sgd, {"momentum": 0.7, "weight_decay": 0.2}),
        (o.SGD, keras_sgd, {"momentum": 0.7, "nesterov": True}),
        (o.SGD, keras_sgd, {"nesterov": True}),
        (o.RMSprop, keras_rmsprop, {}),
        (o.RMSprop, keras_rmsprop, {"rho": 0.6, "epsilon": 0.1, "momentum": 0.5}),
        (o.RMSprop, keras_rmsprop, {"centered": True, "epsilon": 1e-3}),
        (o.Adam, keras_adam, {}),
        (o.Adam, keras_adam, {"epsilon": 0.1, "beta_1": 0.5, "beta_2": 0.8}),
        (o.Adam, keras_adam, {"beta_1": 0.0, "weight_decay": 0.3}),
        (o.AdamW, keras_adamw, {}),
        (o.AdamW, keras_adamw, {"weight_decay": 0.3, "epsilon": 0.01}),
    ],
)
@pytest.mark.parametrize("schedule", [None, CosineDecay(0.1, 8, 0.1)])
def test_kerass_formulas(cls, formula, keys, schedule):
    """Large epsilons, and rates that change, tell Keras' formulas from PyTorch's."""
    grads, expected = REFERENCE["grads"].astype(float), REFERENCE["start"].astype(float)
    options = keys if schedule is None else keys | {"learning_rate": schedule}
    optimizer, state = cls(**options), {}
    values = train(optimizer, grads, expected, np.float64)
    for i, grad in enumerate(grads):
        rate = {} if schedule is None else {"lr": schedule(i)}
        expected = formula(expected, grad, i + 1, state, **rate, **keys)
        np.testing.assert_allclose(values[i], expected, rtol=1e-10)
    assert optimizer.step == len(grads)


def test_first_updates_by_hand():
    """Keras: Adam's first step has the length lr; RMSprop's is lr / sqrt(1 - rho)."""
    start, grads = np.full(3, 2.0), np.array([[4.0, -0.5, 1.0]])
    moved = train(o.Adam(0.1), grads, start)[0]
    np.testing.assert_allclose(moved, [1.9, 2.1, 1.9], rtol=1e-5)
    moved = train(o.RMSprop(0.1, rho=0.75), grads, start)[0]
    np.testing.assert_allclose(moved, [1.8, 2.2, 1.8], rtol=1e-5)
    moved = train(o.SGD(0.1), grads, start)[0]
    np.testing.assert_allclose(moved, [1.6, 2.05, 1.9], rtol=1e-6)


def test_defaults_are_kerass():
    assert o.SGD().current_lr() == 0.01
    assert o.RMSprop().current_lr() == o.Adam().current_lr() == 0.001
    assert (o.RMSprop().rho, o.RMSprop().epsilon) == (0.9, 1e-7)
    adam = o.Adam()
    assert (adam.beta_1, adam.beta_2, adam.epsilon) == (0.9, 0.999, 1e-7)
    assert adam.weight_decay is None
    assert o.AdamW().weight_decay == 0.004


# -- layout ------------------------------------------------------------------------

SHAPES = [(150, 300), (300,), (5, 7), (1,), (70, 900), (13,)]
ALL = [
    lambda: o.SGD(0.1),
    lambda: o.SGD(0.1, 0.9, nesterov=True, weight_decay=0.1),
    lambda: o.RMSprop(momentum=0.5, centered=True),
    lambda: o.Adam(),
    lambda: o.AdamW(weight_decay=0.1),
    lambda: o.Adam(0.1, beta_2=0.5, amsgrad=True, use_ema=True),
    lambda: o.Adamax(0.1, weight_decay=0.1),
    lambda: o.Nadam(0.1),
    lambda: o.Lion(0.1, weight_decay=0.1),
    lambda: o.Adagrad(0.1),
    lambda: o.Adadelta(1.0),
    lambda: o.Ftrl(0.1, l1_regularization_strength=0.1),
    lambda: o.LAMB(0.1, weight_decay=0.1),
    lambda: o.Adam(clipvalue=0.3),
    lambda: o.AdamW(clipnorm=0.5),
]


def grads_of(store, step):
    """Fill the gradients by the names of parameters, whatever the layout."""
    for parameter in store.parameters:
        seed = int(parameter.path.rsplit("p", 1)[1]) * 100 + step
        rng = np.random.default_rng(seed)
        parameter.grad[...] = rng.standard_normal(parameter.shape)


@pytest.mark.parametrize("make", ALL)
def test_buckets_and_pieces_do_not_change_a_bit(make):
    found = []
    for bucket_bytes in (1, 5000, 1 << 30):
        store = make_store(*SHAPES, bucket_bytes=bucket_bytes)
        optimizer = make()
        optimizer.bind(store)
        for step in range(3):
            grads_of(store, step)
            optimizer.update(0.5)
        found.append({p.path: p.value.copy() for p in store.parameters})
        used = np.zeros(store.values.size, bool)
        for parameter in store.parameters:
            store.view(used, parameter)[...] = True
        assert not store.values[~used].any(), "the gaps stay 0"
    for other in found[1:]:
        for path, value in found[0].items():
            np.testing.assert_array_equal(value, other[path])


@pytest.mark.parametrize("make", ALL[:-2])
def test_each_parameter_is_updated_as_if_it_were_alone(make):
    together = make_store(*SHAPES)
    start = [p.value.copy() for p in together.parameters]
    optimizer = make()
    optimizer.bind(together)
    for step in range(3):
        grads_of(together, step)
        optimizer.update()
    for parameter, first in zip(together.parameters, start, strict=True):
        alone = make_store(parameter.shape)
        alone.parameters[0].value[...] = first
        single = make()
        single.bind(alone)
        for step in range(3):
            grads_of(together, step)
            alone.parameters[0].grad[...] = parameter.grad
            single.update()
        np.testing.assert_array_equal(alone.parameters[0].value, parameter.value)


def test_only_matrices_decay():
    store = make_store((4, 4), (4,), (300, 300), (300,), bucket_bytes=100)
    optimizer = o.SGD(0.5, weight_decay=0.2)
    optimizer.bind(store)
    before = {p.path: p.value.copy() for p in store.parameters}
    optimizer.update()
    for p in store.parameters:
        factor = 0.9 if len(p.shape) == 2 else 1.0
        np.testing.assert_allclose(p.value, factor * before[p.path], rtol=1e-6)


def test_pieces_cover_everything_once():
    size = 5 * FLAT + 48
    decayed = [slice(0, 16), slice(16, FLAT + 32), slice(3 * FLAT, size)]
    pieces = list(pieces_of(size, decayed, []))
    seen = np.zeros(size, int)
    decays = np.zeros(size, bool)
    for part, decay in pieces:
        assert 0 < part.stop - part.start <= AT_ONCE
        seen[part] += 1
        decays[part] = decay
    assert (seen == 1).all()
    expected = np.zeros(size, bool)
    for part in decayed:
        expected[part] = True
    np.testing.assert_array_equal(decays, expected)
    assert list(pieces_of(0, [], [])) == []


def test_state_continues_a_run():
    def run(optimizer, store, first, last):
        for step in range(first, last):
            grads_of(store, step)
            optimizer.update()

    options = {"learning_rate": CosineDecay(0.1, 6), "weight_decay": 0.1}
    store, optimizer = make_store(*SHAPES), o.AdamW(**options)
    optimizer.bind(store)
    assert set(optimizer.state) == {"m", "v"}
    run(optimizer, store, 0, 3)
    saved = {name: vector.copy() for name, vector in optimizer.state.items()}
    other, again = make_store(*SHAPES), o.AdamW(**options)
    again.bind(other)
    other.values[...] = store.values
    for name, vector in saved.items():
        assert vector.shape == other.values.shape and vector.dtype == np.float32
        again.state[name][...] = vector
    again.step = 3
    run(optimizer, store, 3, 6)
    run(again, other, 3, 6)
    np.testing.assert_array_equal(other.values, store.values)
    again.bind(other)
    assert again.step == 0 and not again.state["m"].any()


@pytest.mark.parametrize(
    ("optimizer", "names"),
    [
        (o.SGD(), []),
        (o.SGD(momentum=0.9), ["m"]),
        (o.RMSprop(), ["v"]),
        (o.RMSprop(momentum=0.9, centered=True), ["v", "a", "m"]),
        (o.Adam(), ["m", "v"]),
        (o.Adam(amsgrad=True, use_ema=True), ["m", "v", "v_max", "average"]),
        (o.Adamax(), ["m", "v"]),
        (o.Nadam(), ["m", "v"]),
        (o.LAMB(), ["m", "v"]),
        (o.Lion(), ["m"]),
        (o.Adagrad(), ["v"]),
        (o.Adadelta(), ["v", "s"]),
        (o.Ftrl(), ["n", "z"]),
    ],
)
def test_names_of_the_state(optimizer, names):
    optimizer.bind(make_store((3, 3)))
    assert list(optimizer.state) == names


@pytest.mark.parametrize("make", [*ALL, lambda: o.Adam(global_clipnorm=0.1)])
def test_less_than_64_kB_are_allocated_after_the_first_update(make):
    store, optimizer = make_store((400, 1000), (1000,)), make()
    optimizer.bind(store)
    grads_of(store, 0)
    optimizer.update(0.5)
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    optimizer.update(0.5)
    peak = tracemalloc.get_traced_memory()[1] - before
    tracemalloc.stop()
    assert peak < 64 << 10, peak


def test_a_rate_of_zero_changes_nothing_with_ftrl():
    start = np.arange(1.0, 4.0)
    moved = train(o.Ftrl(lambda step: 0.0), np.ones((2, 3)), start)
    np.testing.assert_array_equal(moved, [start, start])


def test_the_moving_average_takes_the_weights_place_after_fit():
    from fastserve import layers, models

    x = np.random.default_rng(0).standard_normal((8, 3)).astype(np.float32)
    means, found = [], []
    for use in (False, True):
        model = models.Sequential([layers.Dense(1, input_shape=(3,))], seed=1)
        model.compile(o.SGD(0.1, use_ema=use, ema_momentum=0.5), "mse")
        for _ in range(2):
            model.train_on_batch(x, x[:, :1])
            found.append(model.get_weights()[0])
        model.fit(x, x[:, :1], 8, epochs=1, verbose=0, shuffle=False)
        found.append(model.get_weights()[0])
        means.append((found[0] / 2 + found[1] / 2) / 2 + found[2] / 2)
    np.testing.assert_allclose(found[5], means[0], rtol=1e-5)


# -- learning rate -----------------------------------------------------------------


def test_a_schedule_is_called_with_the_updates_made():
    optimizer = o.SGD(PiecewiseConstantDecay([0, 1], [1.0, 0.1, 0.01]))
    start, grads = np.zeros(1), np.ones((3, 1))
    rates = []
    values = train(optimizer, grads, start)
    np.testing.assert_allclose(values[:, 0], [-1.0, -1.1, -1.11], rtol=1e-6)
    for optimizer.step in range(3):
        rates.append(optimizer.current_lr())
    assert rates == [1.0, 0.1, 0.01]


def test_the_rate_can_be_set():
    optimizer = o.Adam(0.1)
    optimizer.learning_rate = 0.5
    assert optimizer.current_lr() == 0.5
    optimizer.learning_rate = lambda step: 1 / (1 + step)
    optimizer.step = 3
    assert optimizer.current_lr() == 0.25
    with pytest.raises(ArgumentError, match="learning_rate=0"):
        optimizer.learning_rate = 0


# -- clipping ----------------------------------------------------------------------


def moved_by(optimizer, grads, scale=1.0):
    """Return how far SGD with rate 1 moves each parameter: its clipped gradient."""
    store = make_store(*[np.shape(g) for g in grads])
    optimizer.bind(store)
    by_path = {f"p{i}": np.asarray(g, np.float32) for i, g in enumerate(grads)}
    for p in store.parameters:
        p.grad[...] = by_path[p.path]
    before = store.values.copy()
    optimizer.update(scale)
    moved = before - store.values
    return [
        store.view(moved, p) for p in sorted(store.parameters, key=lambda p: p.path)
    ]


def test_clipnorm_is_for_each_parameter():
    grads = [[3.0, 4.0], [0.3, 0.4]]
    a, b = moved_by(o.SGD(1.0, clipnorm=1.0), grads)
    np.testing.assert_allclose(a, [0.6, 0.8], rtol=1e-5)
    np.testing.assert_allclose(b, [0.3, 0.4], rtol=1e-5)
    a, b = moved_by(o.SGD(1.0, clipnorm=1.0), grads, scale=4.0)
    np.testing.assert_allclose(a, [0.6, 0.8], rtol=1e-5)
    np.testing.assert_allclose(b, [0.6, 0.8], rtol=1e-5)


def test_global_clipnorm_is_for_all_together():
    grads = [[3.0, 0.0], [4.0]]
    a, b = moved_by(o.SGD(1.0, global_clipnorm=1.0), grads)
    np.testing.assert_allclose([*a, *b], [0.6, 0.0, 0.8], rtol=1e-5, atol=1e-6)
    a, b = moved_by(o.SGD(1.0, global_clipnorm=1.0), grads, scale=0.1)
    np.testing.assert_allclose([*a, *b], [0.3, 0.0, 0.4], rtol=1e-5, atol=1e-6)


def test_clipvalue_is_for_each_number():
    (a,) = moved_by(o.SGD(1.0, clipvalue=0.5), [[3.0, -4.0, 0.2]])
    np.testing.assert_allclose(a, [0.5, -0.5, 0.2], rtol=1e-5)
    (a,) = moved_by(o.SGD(1.0, clipvalue=0.5), [[3.0, -4.0, 0.2]], scale=0.1)
    np.testing.assert_allclose(a, [0.3, -0.4, 0.02], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("how", ["clipnorm", "global_clipnorm"])
def test_a_norm_that_is_not_finite_is_not_hidden(how, bad):
    a, b = moved_by(o.SGD(1.0, **{how: 1.0}), [[bad, 1.0], [1.0]])
    assert np.isnan(a).all()
    assert np.isnan(b).all() == (how == "global_clipnorm")


@pytest.mark.parametrize("name", ["clip_loose", "clip_tight"])
def test_pytorchs_clipping(name):
    grads, most = REFERENCE["grads"][0], 100.0 if name == "clip_loose" else 0.5
    norm = o.global_norm(grads.ravel())
    assert norm == pytest.approx(float(REFERENCE[f"{name}_norm"]), rel=1e-6)
    (moved,) = moved_by(o.SGD(1.0, global_clipnorm=most), [grads])
    np.testing.assert_allclose(moved, REFERENCE[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_global_norm(dtype):
    grads = np.random.default_rng(0).standard_normal(3 * FLAT + 7).astype(dtype)
    grads.flags.writeable = False
    expected = math.sqrt(math.fsum(g * g for g in grads.tolist()))
    assert o.global_norm(grads) == pytest.approx(expected, rel=1e-6)
    assert o.global_norm(grads) == o.global_norm(grads.copy())
    assert o.global_norm(np.empty(0, dtype)) == 0.0


# -- names and errors ----------------------------------------------------------------


def test_names():
    for name, cls in {
        "sgd": o.SGD,
        "SGD": o.SGD,
        "rmsprop": o.RMSprop,
        "Adam": o.Adam,
        "adamw": o.AdamW,
        "lamb": o.Lamb,
        "Nadam": o.Nadam,
        "adadelta": o.Adadelta,
    }.items():
        assert type(o.get(name)) is cls
    made = o.Adam(0.5)
    assert o.get(made) is made
    assert isinstance(o.get(o.SGD), o.SGD)
    with pytest.raises(UnknownNameError, match="did you mean 'adam'"):
        o.get("adm")
    with pytest.raises(ArgumentError, match="received: 3"):
        o.get(3)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: o.SGD(0), "learning_rate above 0, or a schedule\n.*learning_rate=0"),
        (lambda: o.Adam(-1e-3), "learning_rate=-0.001"),
        (lambda: o.Adam(math.nan), "learning_rate=nan"),
        (lambda: o.SGD(momentum=1.0), "momentum in 0..1, without 1"),
        (lambda: o.SGD(momentum=-0.1), "momentum=-0.1"),
        (lambda: o.RMSprop(rho=1.5), "rho=1.5"),
        (lambda: o.RMSprop(epsilon=-1), "epsilon of 0 or more"),
        (lambda: o.Adam(beta_1=1.0), "beta_1=1.0"),
        (lambda: o.Adam(beta_2=-0.5), "beta_2=-0.5"),
        (lambda: o.Lion(beta_1=0.0), "a beta_1 above 0"),
        (lambda: o.LAMB(epsilon=0.0), "an epsilon above 0"),
        (lambda: o.Adagrad(initial_accumulator_value=-1), "value of 0 or more"),
        (lambda: o.Ftrl(learning_rate_power=0.5), "learning_rate_power of 0 or less"),
        (lambda: o.Ftrl(beta=-1), "beta=-1"),
        (lambda: o.SGD(ema_momentum=1.1), "ema_momentum in 0..1"),
        (lambda: o.SGD(ema_overwrite_frequency=0), "frequency of 1 or more, or None"),
        (lambda: o.AdamW(weight_decay=-1), "weight_decay of 0 or more, or None"),
        (lambda: o.Adam(clipnorm=0), "clipnorm above 0, or None"),
        (lambda: o.Adam(clipvalue=-1), "clipvalue=-1"),
        (lambda: o.Adam(global_clipnorm=0), "global_clipnorm=0"),
        (
            lambda: o.Adam(clipnorm=1.0, clipvalue=0.5),
            "one way to clip at most\n.*clipnorm=1.0, clipvalue=0.5",
        ),
    ],
)
def test_arguments_out_of_range(make, words):
    with pytest.raises(ArgumentError, match=words) as error:
        make()
    assert len(str(error.value).splitlines()) == 3


def test_update_before_bind():
    with pytest.raises(StateError, match=r"adam: expected bind\(store\) before update"):
        o.Adam().update()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_lions_steps_have_one_length(dtype):
    tiny = np.finfo(dtype).smallest_subnormal
    grads = np.array([[0.0, -0.0, 2 * tiny, -2 * tiny, 1e-30, -1e30, 3.0]], dtype)
    moved = train(o.Lion(0.5, beta_1=0.1), grads, np.zeros(7), dtype)[0]
    np.testing.assert_array_equal(moved, -0.5 * np.sign(grads[0]))
