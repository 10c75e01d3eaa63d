"""Regularizers and constraints: penalties in the loss, values after each update."""

from __future__ import annotations

import numpy as np
import pytest

import fastserve as fs
from fastserve.core import constraints, regularizers
from fastserve.errors import ArgumentError, UnknownNameError
from fastserve.models.serialization import layer_config, layer_from_config


def model(regularizer: object = None, constraint: object = None) -> fs.Sequential:
    m = fs.Sequential(seed=3)
    m.add(
        fs.layers.Dense(
            5,
            "tanh",
            kernel_regularizer=regularizer,
            kernel_constraint=constraint,
            input_shape=(4,),
        )
    )
    m.add(fs.layers.Dense(2))
    m.compile(fs.optimizers.SGD(0.1), "mse")
    return m


rng = np.random.default_rng(0)
X, Y = rng.normal(size=(12, 4)), rng.normal(size=(12, 2))


@pytest.mark.parametrize("name", ["l1", "l2", "l1_l2"])
def test_gradient_of_a_penalty(name: str) -> None:
    regularizer = regularizers.get(name)
    assert regularizer is not None
    w, d = np.random.default_rng(1).normal(size=(2, 7, 3))
    grad = np.ones_like(w)
    regularizer.add_gradient(w, grad)
    h = 1e-6
    up, down = regularizer.penalty(w + h * d), regularizer.penalty(w - h * d)
    assert np.sum((grad - 1) * d) == pytest.approx((up - down) / (2 * h), rel=1e-6)


def test_the_penalty_is_part_of_loss_and_step() -> None:
    plain, with_l2 = model(), model(regularizers.L2(0.03))
    before = plain.get_weights()[0]
    penalty = 0.03 * float(np.sum(np.square(before)))
    a, b = plain.evaluate(X, Y, verbose=0), with_l2.evaluate(X, Y, verbose=0)
    assert b == pytest.approx(a + penalty, rel=1e-5)
    a, b = plain.train_on_batch(X, Y), with_l2.train_on_batch(X, Y)
    assert b == pytest.approx(a + penalty, rel=1e-5)
    moved = plain.get_weights()[0] - 0.1 * 2 * 0.03 * before
    np.testing.assert_allclose(with_l2.get_weights()[0], moved, atol=1e-6)


def test_constraints_hold_after_each_step() -> None:
    m = model(constraint=constraints.MaxNorm(0.4))
    m.fit(X, Y, batch_size=4, epochs=2, verbose=0)
    norms = np.linalg.norm(m.get_weights()[0], axis=0)
    assert norms.max() <= 0.4 + 1e-6
    m = model(constraint="non_neg")
    m.fit(X, Y, batch_size=4, epochs=2, verbose=0)
    assert m.get_weights()[0].min() >= 0
    m = model(constraint="unit_norm")
    m.train_on_batch(X, Y)
    np.testing.assert_allclose(np.linalg.norm(m.get_weights()[0], axis=0), 1, atol=1e-6)
    m = model(constraint=constraints.MinMaxNorm(0.5, 0.6))
    m.train_on_batch(X, Y)
    norms = np.linalg.norm(m.get_weights()[0], axis=0)
    assert norms.min() > 0.5 - 1e-5
    assert norms.max() < 0.6 + 1e-5


def test_saved_with_the_layer() -> None:
    layer = fs.layers.Dense(
        3, kernel_regularizer=regularizers.L1(0.5), bias_constraint="non_neg"
    )
    again = layer_from_config(layer_config(layer))
    assert isinstance(again, fs.layers.Dense)
    assert again.kernel_regularizer == regularizers.L1(0.5)
    assert again.bias_constraint == constraints.NonNeg()


def test_what_is_not_known_is_refused() -> None:
    with pytest.raises(UnknownNameError, match="l1"):
        regularizers.get("l3")
    with pytest.raises(UnknownNameError, match="max_norm"):
        constraints.get("maxnorm")
    with pytest.raises(ArgumentError, match="gradient"):
        regularizers.get(lambda w: 0.0)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="0 or more"):
        regularizers.L2(-1.0)
