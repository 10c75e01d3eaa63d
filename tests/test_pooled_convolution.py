"""A convolution and the pooling behind it as one step: what they are one by one."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest

from fastserve import layers
from fastserve.core import Layer, Memory, ParameterStore, StepKey
from fastserve.layers import Chain
from fastserve.layers.pooled_convolution import Pooled

RNG = np.random.default_rng(0)


def built(chain: Chain, shape: tuple[int, ...]) -> ParameterStore:
    chain.build_once(shape)
    chain.bind(Memory(), np.dtype(np.float64))
    store = ParameterStore(chain, seed=1)
    store.values[...] = np.random.default_rng(1).standard_normal(store.values.size) / 4
    return store


@pytest.mark.parametrize("activation", [None, "relu", "tanh", "sigmoid"])
@pytest.mark.parametrize(
    ("layer", "pooling", "shape"),
    [
        (partial(layers.Conv2D, 3, 3), layers.MaxPooling2D, (9, 8, 2)),
        (
            partial(layers.Conv2D, 18, 3, padding="same"),
            partial(layers.MaxPooling2D, 3, strides=2, padding="same"),
            (9, 8, 16),
        ),
        (partial(layers.Conv2D, 3, 3, use_bias=False), layers.MaxPooling2D, (7, 7, 2)),
        (partial(layers.DepthwiseConv2D, 3), layers.MaxPooling2D, (8, 8, 4)),
        (partial(layers.Conv2DTranspose, 3, 2), layers.MaxPooling2D, (5, 5, 2)),
        (partial(layers.Conv1D, 4, 3), layers.MaxPooling1D, (12, 3)),
    ],
)
def test_together_they_are_what_they_are_apart(
    layer: Callable[..., Layer],
    pooling: Callable[..., Layer],
    shape: tuple[int, ...],
    activation: str | None,
) -> None:
    results = []
    for apart in (False, True):
        between = [layers.Activation("linear")] if apart else []
        chain = Chain(layer(activation=activation), *between, pooling())
        store = built(chain, shape)
        x = np.random.default_rng(2).standard_normal((5, *shape))
        y = chain.forward(x, StepKey()).copy()
        assert any(isinstance(s, Pooled) for s in chain._steps[len(chain.layers)]) != (
            apart
        )
        dy = np.random.default_rng(3).standard_normal(y.shape)
        for array in (x, dy):
            array.flags.writeable = False
        dx = chain.backward(dy).copy()
        results.append((y, dx, store.grads.copy(), chain.forward(x).copy()))
    for one, other in zip(*results, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-10, atol=1e-12)


def test_what_a_chain_gets_and_loses_counts() -> None:
    chain = Chain(layers.Conv2D(3, 3, activation="relu"))
    built(chain, (8, 8, 1))
    x = RNG.standard_normal((2, 8, 8, 1))
    alone = chain.forward(x).copy()
    assert alone.min() == 0
    pooling = layers.MaxPooling2D(2)
    pooling.build_once(alone.shape[1:])
    pooling.bind(Memory(), np.dtype(np.float64))
    chain.append(pooling)
    assert chain.forward(x).shape == (2, 3, 3, 3)
    chain.pop()
    np.testing.assert_array_equal(chain.forward(x), alone)


def test_an_activation_that_falls_stays_where_it_is() -> None:
    chain = Chain(layers.Conv2D(3, 3, activation="silu"), layers.MaxPooling2D(2))
    built(chain, (8, 8, 1))
    chain.forward(RNG.standard_normal((2, 8, 8, 1)))
    assert not any(isinstance(s, Pooled) for s in chain._steps[2])
