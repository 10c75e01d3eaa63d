"""Weights that layers change themselves, and layers that are frozen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastserve as fs
from fastserve.comm import Communicator
from fastserve.comm.thread import run_threads
from fastserve.core import Array, Done, Layer, Shape, Training, initializers, nothing
from fastserve.core.parameter import ParameterStore
from fastserve.errors import CommError, LossSpikeError, NonFiniteError, StateError
from fastserve.training import checkpoint
from fastserve.training.diagnose import check_replicas
from fastserve.training.step import Options


class RunningMean(Layer):
    """Passes its input on, and keeps a moving mean of it and the number of calls."""

    def build(self, input_shape: Shape) -> Shape:
        features = self.check_features(input_shape)
        self.scale = self.param("scale", (features,), initializers.Ones())
        self.mean = self.state("mean", (features,), initializers.Zeros())
        self.fixed = self.state("fixed", (3,), initializers.RandomUniform(-1, 1))
        return input_shape

    def forward(self, x: Array, training: Training = False) -> Array:
        self._x = x
        if training and self.trainable:
            self.mean.value[...] = 0.5 * self.mean.value + 0.5 * x.mean(axis=0)
        return x * self.scale.value

    def backward(self, dy: Array, done: Done = nothing) -> Any:
        np.sum(dy * self._x, axis=0, out=self.scale.grad)
        return dy * self.scale.value


def data(rows: int = 12) -> tuple[Array, Array]:
    rng = np.random.default_rng(3)
    return rng.standard_normal((rows, 4)), rng.standard_normal((rows, 2))


def make(dtype: str = "float64", **options: Any) -> fs.models.Sequential:
    model = fs.models.Sequential(
        [fs.layers.Dense(4, input_shape=(4,)), RunningMean(), fs.layers.Dense(2)],
        seed=1,
        dtype=dtype,
    )
    model.compile("adam", "mse")
    model.options = Options(**options)
    return model


def layer_of(model: fs.models.Sequential) -> RunningMean:
    layer = model.layers[1]
    assert isinstance(layer, RunningMean)
    return layer


def test_they_are_in_the_frozen_vector_and_never_trained() -> None:
    model = make()
    store = model.store
    assert [p.path for p in store.frozen_parameters] == ["1.mean", "1.fixed"]
    assert store.moving.size == store.frozen.size
    assert model.count_params() == store.count + 7
    before = layer_of(model).fixed.value.copy()
    model.fit(*data(), verbose=0)
    assert np.abs(layer_of(model).mean.value).max() > 0
    np.testing.assert_array_equal(layer_of(model).fixed.value, before)
    assert "of them trained, 7 not" in model.describe()


def test_what_is_frozen_lies_behind_what_moves() -> None:
    model = make()
    model.layers[0].trainable = False
    model.compile("sgd", "mse")
    paths = [p.path for p in model.store.frozen_parameters]
    assert paths == ["1.mean", "1.fixed", "0.kernel", "0.bias"]
    layer_of(model).mean.value[...] = 7
    assert (model.store.moving[:4] == 7).all()
    assert model.store.moving.size < model.store.frozen.size


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_ranks_get_the_mean_weighted_by_rows(ranks: int, dtype: str) -> None:
    x, y = data(7)

    def program(comm: Communicator) -> tuple[Array, Array, Array]:
        model = make(dtype, check_every=1)
        model.train_on_batch(x, y)
        layer = layer_of(model)
        return layer.mean.value.copy(), layer.fixed.value.copy(), model.get_weights()[0]

    everyone = run_threads(ranks, program)
    alone = run_threads(1, program)[0]
    for mean, fixed, kernel in everyone:
        # one update from 0: the mean of the shares' means by rows is that of all
        np.testing.assert_allclose(mean, alone[0], atol=1e-6)
        np.testing.assert_array_equal(mean, everyone[0][0])
        np.testing.assert_array_equal(fixed, alone[1])
        np.testing.assert_allclose(kernel, alone[2], atol=1e-6)


def test_micro_batches_change_them_in_order() -> None:
    x, y = data(6)
    model = make(micro_batch=2)
    hidden = x @ model.get_weights()[0]
    model.train_on_batch(x, y)
    expected = np.zeros(4)
    for start in (0, 2, 4):
        expected = 0.5 * expected + 0.5 * hidden[start : start + 2].mean(axis=0)
    np.testing.assert_allclose(layer_of(model).mean.value, expected)


def test_a_step_without_rows_on_a_rank() -> None:
    x, y = data(2)

    def program(comm: Communicator) -> Array:
        model = make(check_every=1)
        model.train_on_batch(x, y)
        return layer_of(model).mean.value.copy()

    alone = run_threads(1, program)[0]
    for mean in run_threads(4, program):
        np.testing.assert_allclose(mean, alone)


def test_a_step_that_is_refused_leaves_them() -> None:
    x, y = data()
    model = make()
    model.fit(x, y, verbose=0)
    before = layer_of(model).mean.value.copy()
    model.store.view(model.store.values, model.store.parameters[-1]).fill(np.nan)
    with pytest.raises(NonFiniteError):
        model.train_on_batch(x, y)
    np.testing.assert_array_equal(layer_of(model).mean.value, before)
    model = make(spike_factor=2.0)
    model.fit(x, y, epochs=12, verbose=0)
    before = layer_of(model).mean.value.copy()
    model.train_on_batch(x * 100, y * 100)
    assert model.last_step is not None
    assert model.last_step.skipped
    np.testing.assert_array_equal(layer_of(model).mean.value, before)
    with pytest.raises(LossSpikeError):
        model.fit(x * 100, y * 100, epochs=9, verbose=0)
    np.testing.assert_array_equal(layer_of(model).mean.value, before)


def test_weights_and_checkpoints_hold_them(tmp_path: Path) -> None:
    x, y = data()
    model = make()
    model.fit(x, y, verbose=0)
    model.save_weights(tmp_path / "w.safetensors")
    assert model.optimizer is not None
    checkpoint.save(tmp_path / "c", 1, model.store, model.optimizer, {}, 2)
    kept = layer_of(model).mean.value.copy()
    model.fit(x, y, verbose=0)
    checkpoint.save(tmp_path / "c", 2, model.store, model.optimizer, {}, 2)
    last = model.get_weights()
    assert not (tmp_path / "c" / "base.safetensors").exists()
    other = make()
    other.load_weights(tmp_path / "w.safetensors")
    np.testing.assert_array_equal(layer_of(other).mean.value, kept)
    checkpoint.load(checkpoint.find(tmp_path / "c", "1"), model.store, model.optimizer)
    np.testing.assert_array_equal(layer_of(model).mean.value, kept)
    model._epochs_made = 1
    model.fit(x, y, verbose=0)
    for one, expected in zip(model.get_weights(), last, strict=True):
        np.testing.assert_array_equal(one, expected)


def test_a_replica_that_moved_by_itself_is_found() -> None:
    def program(comm: Communicator) -> str:
        model = make()
        if comm.rank == 1:
            model.store.moving[0] = 3
        with pytest.raises(CommError) as caught:
            check_replicas(model.store, comm, 0)
        return str(caught.value)

    assert all("1.mean differs on rank 1" in text for text in run_threads(2, program))


def test_a_frozen_layer_keeps_its_weights_until_it_is_trained_again() -> None:
    x, y = data()
    model = make()
    assert model.trainable
    model.fit(x, y, verbose=0)
    model.layers[0].trainable = False
    layer_of(model).trainable = False
    with pytest.raises(StateError, match="compile"):
        model.fit(x, y, verbose=0)
    model.compile("adam", "mse")
    before = model.get_weights()
    model.fit(x, y, verbose=0)
    after = model.get_weights()
    same = [np.array_equal(a, b) for a, b in zip(before, after, strict=True)]
    assert same == [True] * 5 + [False] * 2
    model.trainable = True
    model.compile("adam", "mse")
    model.fit(x, y, verbose=0)
    assert not layer_of(model).fixed.trainable
    assert not np.array_equal(model.get_weights()[0], after[0])


def test_a_layer_may_be_frozen_before_it_is_built(tmp_path: Path) -> None:
    layer = fs.layers.TransformerBlock(2, input_shape=(3, 4))
    layer.trainable = False
    model = fs.models.Sequential([layer, fs.layers.Dense(2)])
    model.compile("sgd", "mse")
    assert {p.path.split(".")[0] for p in model.store.parameters} == {"1"}
    model.save(tmp_path / "m.safetensors")
    again = fs.models.load_model(tmp_path / "m.safetensors")
    assert [p.path for p in again.store.parameters] == ["1.kernel", "1.bias"]


def test_a_model_with_nothing_to_train_can_be_evaluated() -> None:
    x, y = data()
    model = make()
    model.trainable = False
    model.compile("adam", "mse")
    before = model.get_weights()
    model.fit(x, y, verbose=0)
    assert model.evaluate(x, y, verbose=0) > 0
    for one, other in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_store_without_them_has_an_empty_vector() -> None:
    layer = fs.layers.Dense(2)
    layer.build_once((3,))
    assert ParameterStore(layer).moving.size == 0
