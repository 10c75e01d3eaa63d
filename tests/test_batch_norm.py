"""Batch normalisation: its moving averages, masks, accuracy, and ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gradcheck import prepare
from mpi_environments import FLAVOURS, ROOT, mpi_command, run
from programs.synchronized import network, rng

import fastserve as fs
from fastserve.comm import Communicator
from fastserve.comm.thread import run_threads
from fastserve.core import Array
from fastserve.errors import ArgumentError, NonFiniteError, ShapeError
from fastserve.ops import batch_norm
from fastserve.training.step import Options

BN = fs.layers.BatchNormalization


def test_moving_averages() -> None:
    layer = BN(momentum=0.9)
    prepare(layer, (4,), seed=None)
    x = 3 + 2 * rng().standard_normal((50, 4))
    layer.forward(x, True)
    np.testing.assert_allclose(layer.moving_mean.value, 0.1 * x.mean(axis=0))
    np.testing.assert_allclose(layer.moving_variance.value, 0.9 + 0.1 * x.var(axis=0))
    y = layer.forward(x)
    mean, variance = layer.moving_mean.value, layer.moving_variance.value
    np.testing.assert_allclose(y, (x - mean) / np.sqrt(variance + 1e-3))


def test_a_frozen_layer_uses_and_keeps_the_moving_averages() -> None:
    layer = BN()
    prepare(layer, (4,), seed=None)
    layer.trainable = False
    x = 3 + rng().standard_normal((5, 4))
    np.testing.assert_allclose(layer.forward(x, True), x / np.sqrt(1 + 1e-3))
    assert not layer.moving_mean.value.any()
    dx = layer.backward(np.ones_like(x))
    np.testing.assert_allclose(dx, np.full_like(x, 1 / np.sqrt(1 + 1e-3)))


@pytest.mark.parametrize("mean", [0.0, 10.0, 1e3, -1e4])
def test_numbers_far_from_0_have_the_right_variance(mean: float) -> None:
    x = (mean + rng().standard_normal((5000, 3))).astype(np.float32)
    x[:, 1] *= 1e-3
    found, variance = batch_norm.mean_and_variance(batch_norm.moments(x))
    wide = x.astype(float)
    np.testing.assert_allclose(found, wide.mean(axis=0), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(variance, wide.var(axis=0), rtol=1e-5)
    layer = BN(epsilon=1e-12)
    prepare(layer, (3,), np.float32, seed=None)
    y = layer.forward(x, True)
    expected = (wide - wide.mean(axis=0)) / np.sqrt(wide.var(axis=0))
    scale = max(1.0, abs(mean) * 1e-2)  # of the float32 of the mean itself
    np.testing.assert_allclose(y, expected, atol=1e-5 * scale)
    dy = rng(1).standard_normal(x.shape).astype(np.float32)
    dx = layer.backward(dy)
    h = expected
    wanted = (dy - dy.mean(axis=0) - h * (dy * h).mean(axis=0)) / wide.std(axis=0)
    error = np.abs(dx - wanted).max(axis=0) / np.abs(wanted).max(axis=0)
    assert error.max() < 1e-5 * scale


def test_a_constant_channel_and_one_row() -> None:
    layer = BN()
    prepare(layer, (2,), np.float32, seed=None)
    x = np.full((40, 2), 7, np.float32)
    np.testing.assert_allclose(layer.forward(x, True), 0, atol=1e-4)
    np.testing.assert_allclose(layer.forward(x[:1], True), 0, atol=1e-4)
    assert np.isfinite(layer.backward(x[:1])).all()


def test_positions_that_the_mask_leaves_out_do_not_count() -> None:
    layer = BN(momentum=0.0)
    prepare(layer, (6, 3), seed=None)
    x = rng().standard_normal((2, 6, 3))
    layer.mask = np.array([[1, 1, 1, 0, 0, 0], [0, 1, 1, 1, 1, 0]], bool)
    y = layer.forward(x, True).copy()
    np.testing.assert_allclose(layer.moving_mean.value, x[layer.mask].mean(axis=0))
    np.testing.assert_allclose(layer.moving_variance.value, x[layer.mask].var(axis=0))
    other = x.copy()
    other[~layer.mask] = np.inf
    with np.errstate(invalid="ignore"):
        again = layer.forward(other, True)
    np.testing.assert_allclose(again[layer.mask], y[layer.mask])
    layer.mask = np.zeros((2, 6), bool)
    layer.forward(x, True)
    assert not layer.moving_mean.value.any()


def test_wrong_arguments() -> None:
    with pytest.raises(ArgumentError, match="momentum"):
        BN(momentum=2)
    with pytest.raises(ArgumentError, match="epsilon"):
        BN(epsilon=0)
    for axis in (0, 3, -3):
        with pytest.raises(ArgumentError, match="axis"):
            BN(axis=axis).build_once((4, 5))
    with pytest.raises(ShapeError):
        BN().build_once((4, None))


# -- ranks -----------------------------------------------------------------------------


def train(
    ranks: int, rows: int, batch_size: int, **options: Any
) -> list[tuple[list[float], list[Array]]]:
    x = 2 + rng().standard_normal((rows, 3))
    y = rng(1).standard_normal((rows, 2))

    def program(comm: Communicator) -> tuple[list[float], list[Array]]:
        model = network(**options)
        history = model.fit(x, y, batch_size=batch_size, epochs=2, verbose=0)
        return history.history["loss"], model.get_weights()

    return run_threads(ranks, program)


@pytest.mark.parametrize("ranks", [2, 3, 4])
@pytest.mark.parametrize(
    ("rows", "batch_size", "options"),
    [
        (12, 12, {}),
        (11, 5, {}),
        (7, 3, {}),  # the last step has a row for one rank alone
        (10, 5, {"overlap": True}),
        (9, 9, {"first": True}),
        (12, 6, {"shard_optimizer": True}),
    ],
)
def test_synchronized_is_the_same_on_any_number_of_ranks(
    ranks: int, rows: int, batch_size: int, options: dict[str, Any]
) -> None:
    (alone,) = train(1, rows, batch_size, **options)
    for losses, weights in train(ranks, rows, batch_size, **options):
        np.testing.assert_allclose(losses, alone[0], rtol=1e-9)
        for ours, theirs in zip(weights, alone[1], strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("ranks", [2, 3])
def test_micro_batches_of_the_same_number_belong_together(ranks: int) -> None:
    """Rank 0 has more of them than others, whose statistics it then has alone."""
    x = rng().standard_normal((7, 3))
    y = rng(1).standard_normal((7, 2))
    micro = 2

    def program(comm: Communicator) -> list[Array]:
        model = network(micro_batch=micro)
        model.train_on_batch(x, y)
        return model.get_weights()

    many = run_threads(ranks, program)
    shares = [fs.data.sampler.share(7, rank, ranks) for rank in range(ranks)]
    pieces = [list(fs.data.sampler.micro_batches(s, micro)) for s in shares]
    rounds = max(map(len, pieces))
    order = [
        np.concatenate([np.arange(p[i].start, p[i].stop) for p in pieces if i < len(p)])
        for i in range(rounds)
    ]

    # one process that computes the rounds one after the other
    model = network()
    gradient = 0.0
    model.train_on_batch(x[:1], y[:1])  # makes the trainer
    model = network()
    trainer = model.prepare(fs.data.sources.ArraySource(x, y))
    for rows in order:
        prediction = model.root.forward(x[rows], fs.core.StepKey())
        dy = 2 * (prediction - y[rows]) / y.size
        model.root.backward(dy)
        gradient = gradient + model.store.grads
    model.store.grads[...] = gradient
    trainer.optimizer.update()
    for weights in many:
        for ours, theirs in zip(weights, model.get_weights(), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-7, atol=1e-9)


def test_a_loss_that_is_not_finite_ends_all_ranks_with_the_layer() -> None:
    x, y = rng().standard_normal((5, 3)), rng(1).standard_normal((5, 2))

    def program(comm: Communicator) -> str:
        model = network()
        model.layers[2].kernel.value[0, 0] = np.nan
        with pytest.raises(NonFiniteError) as caught:
            model.train_on_batch(x, y)
        assert not model.layers[1].moving_mean.value.any()
        return str(caught.value)

    assert all("layer 2 (Dense)" in text for text in run_threads(3, program))


def test_without_synchronized_ranks_have_their_own_statistics() -> None:
    x, y = rng().standard_normal((8, 3)), rng(1).standard_normal((8, 2))

    def program(comm: Communicator) -> Array:
        model = fs.models.Sequential(
            [BN(momentum=0.5, input_shape=(3,)), fs.layers.Dense(2)], dtype="float64"
        )
        model.compile("sgd", "mse")
        model.options = Options(check_every=1)
        model.train_on_batch(x, y)
        return model.layers[0].moving_variance.value.copy()

    both = run_threads(2, program)
    expected = 0.5 + 0.25 * (x[:4].var(axis=0) + x[4:].var(axis=0))
    for variance in both:
        np.testing.assert_allclose(variance, expected)


@pytest.mark.parametrize("ranks", [1, 3])
def test_synchronized_in_a_graph(ranks: int) -> None:
    """With branches and a nested model."""
    x, y = rng().standard_normal((7, 3)), rng(1).standard_normal((7, 2))

    def program(comm: Communicator) -> list[Array]:
        fs_input = fs.Input((3,))
        hidden = fs.layers.Dense(4)(fs_input)
        left = BN(synchronized=True)(hidden)
        inner = fs.Sequential([fs.layers.Dense(4), BN(synchronized=True)])
        right = inner(fs_input)
        out = fs.layers.Dense(2)(fs.layers.Add()([right, left]))
        model = fs.Model(fs_input, out, seed=3, dtype="float64")
        model.compile("adam", "mse")
        model.options = Options(check_every=1, micro_batch=2)
        model.fit(x, y, batch_size=2, epochs=2, verbose=0)
        return model.get_weights()

    alone = run_threads(1, program)[0]
    for weights in run_threads(ranks, program):
        for ours, theirs in zip(weights, alone, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-7, atol=1e-9)


def test_exact_is_for_statistics_of_shards() -> None:
    x, y = rng().standard_normal((8, 3)), rng(1).standard_normal((8, 2))
    with pytest.raises(ArgumentError, match="synchronized"):
        network(algorithm="exact").train_on_batch(x, y)

    def program(comm: Communicator) -> list[Array]:
        layers = [BN(input_shape=(3,)), fs.layers.Dense(2)]
        model = fs.models.Sequential(layers)
        model.compile("adam", "mse")
        model.options = Options(algorithm="exact", micro_batch=2)
        model.fit(x, y, epochs=2, verbose=0)
        return model.get_weights()

    alone = run_threads(1, program)[0]
    for weights in run_threads(3, program):
        for ours, theirs in zip(weights, alone, strict=True):
            np.testing.assert_array_equal(ours, theirs)


@pytest.mark.mpi
@pytest.mark.parametrize("flavour", FLAVOURS)
def test_synchronized_over_mpi_is_as_between_threads(
    flavour: str, tmp_path: Path
) -> None:
    program = str(ROOT / "tests" / "programs" / "synchronized.py")
    out = tmp_path / "weights.npz"
    done = run(mpi_command(flavour, 3, program, str(out)), 60)
    assert done.returncode == 0, done.stderr
    options: dict[str, Any] = {"micro_batch": 1, "overlap": True}
    (_, expected), *_ = train(3, 11, 5, **options)
    with np.load(out) as made:
        for ours, theirs in zip(made.values(), expected, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-9)
