"""Is a layer's ``backward`` the derivative of its ``forward``?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fastserve.core.layer import Layer, Training
from fastserve.core.memory import Array, Memory
from fastserve.core.parameter import ParameterStore
from fastserve.core.random import generator
from fastserve.errors import StateError

STEP = 1e-5


def gradient_error(
    layer: Layer, x: Any, training: Training = False, directions: int = 3
) -> float:
    """Return how far a layer's gradients are from what differences say, relatively.

    The layer is built in float64, with its initial weights plus some noise, and
    f = sum(dy * forward(x)) for a random dy. Along a unit direction d of all weights
    and of x, f changes by ``<gradients, d>``, and by (f(at + h d) - f(at - h d)) / 2h;
    one direction checks all entries at once. Of a right ``backward`` the error is about
    1e-8, of a wrong one mostly above 1e-2. Where ``forward`` has a kink, as relu has,
    an input within 1e-5 of it gives an error, too: take another x.

    Args:
        layer: one that no model has been built with.
        x: (batch, ...) inputs; of integers only the weights' gradients are checked.
        training: as in ``forward``; random layers need the same ``StepKey`` each time.
        directions: how many are tried; the largest error counts.

    Raises StateError for a layer that has been built, and ValueError, from NumPy, where
    ``forward`` writes to x or ``backward`` to dy.
    """
    if layer.built:
        raise StateError(
            "gradient_error: expected a layer that hasn't been built",
            f"{type(layer).__name__} with weights",
            "make a new one, as its weights become float64",
        )
    rng = generator(0)
    x = np.array(x)
    x = x.astype(np.float64) if x.dtype.kind == "f" else x
    layer.build_once(x.shape[1:])
    store = ParameterStore(layer, dtype=np.float64)
    layer.bind(Memory(poison=True), np.dtype(np.float64))
    for parameter in store.parameters:
        parameter.value[...] += 0.1 * rng.standard_normal(parameter.shape)
    trained = [p for p in store.parameters if p.trainable]

    x.flags.writeable = False
    dy = rng.standard_normal(np.shape(layer.forward(x, training)))
    dy.flags.writeable = False
    store.grads.fill(np.nan)  # so that what backward leaves out is seen
    dx = layer.backward(dy)
    places, gradients = [p.value for p in trained], [p.grad.copy() for p in trained]
    x.flags.writeable = True
    if x.dtype.kind == "f":
        places.append(x)
        gradients.append(np.array(dx))

    def value() -> float:
        return float((layer.forward(x, training) * dy).sum())

    errors = [direction_error(value, places, gradients, rng) for _ in range(directions)]
    return max(errors, key=lambda error: np.inf if np.isnan(error) else error)


def direction_error(
    value: Callable[[], float],
    places: Sequence[Array],
    gradients: Sequence[Array],
    rng: np.random.Generator,
) -> float:
    """Return the error of ``gradients`` of ``value()`` along one random direction.

    It is relative to the derivative, or to its usual size along a random direction if
    that is larger. ``places`` are float64 arrays that ``value`` reads; they end as they
    were.
    """
    d: list[Array] = [np.asarray(rng.standard_normal(p.shape)) for p in places]
    length = np.sqrt(sum(float((part**2).sum()) for part in d))
    saved, ends = [place.copy() for place in places], []
    for sign in (1, -1):
        for place, start, part in zip(places, saved, d, strict=True):
            place[...] = start + part * (sign * STEP / length)
        ends.append(value())
    for place, start in zip(places, saved, strict=True):
        place[...] = start
    measured = (ends[0] - ends[1]) / (2 * STEP)
    derived = sum(
        float((g * p).sum()) / length for g, p in zip(gradients, d, strict=True)
    )
    norm = np.sqrt(sum(float((g**2).sum()) for g in gradients))
    size = sum(g.size for g in gradients)
    scale = max(abs(measured), abs(derived), norm / np.sqrt(size))
    return float(abs(measured - derived) / scale) if scale else 0.0
