"""A check of gradients along random directions, and what tests of layers share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fastserve.core import Layer, Memory, ParameterStore, Training
from fastserve.core.gradient_check import direction_error
from fastserve.ops import blocks

Array = np.ndarray[Any, np.dtype[Any]]


def each(function: Callable[..., Any], *values: Any) -> Any:
    """Call ``function`` with arrays, or with those at each place of tuples of arrays.

    A place whose first value is None gives None.
    """
    if isinstance(values[0], tuple):
        return tuple(each(function, *parts) for parts in zip(*values, strict=True))
    return None if values[0] is None else function(*values)


def flat(values: Any) -> list[Any]:
    """Return a tuple's values, or the only one, as a list."""
    return list(values) if isinstance(values, tuple) else [values]


def frozen(arrays: Any) -> Any:
    """Return a copy that can't be written to, of an array or of a tuple of them."""

    def freeze(array: Array) -> Array:
        array = array.copy()
        array.flags.writeable = False
        return array

    return each(freeze, arrays)


def check_directions(
    value: Callable[[], float],
    arrays: Sequence[Array],
    gradients: Sequence[Array],
    rng: np.random.Generator,
    tolerance: float = 1e-6,
    directions: int = 3,
) -> None:
    """Assert that ``gradients`` are those of ``value()`` for these float64 arrays."""
    for gradient in gradients:
        assert np.isfinite(gradient).all(), "a gradient isn't finite"
    for number in range(directions):
        error = direction_error(value, arrays, gradients, rng)
        assert error <= tolerance, (
            f"direction {number}: a relative error of {error:.3g}"
        )


def prepare(
    layer: Layer, shape: Any, dtype: Any = np.float64, seed: int | None = 0
) -> ParameterStore:
    """Build the layer in poisoned memory; draw all weights anew unless seed is None."""
    layer.build_once(shape)
    store = ParameterStore(layer, dtype=dtype)
    layer.bind(Memory(poison=True), np.dtype(dtype))
    if seed is not None:
        rng = np.random.default_rng(seed)
        for parameter in store.parameters:
            parameter.value[...] += 0.4 * rng.standard_normal(parameter.shape)
    return store


def poison(layer: Layer) -> None:
    """Overwrite everything that the layer and the operations keep for later use."""
    kept = [
        block for _, inner in layer.walk() for block in inner._blocks.values()
    ] + list(getattr(blocks._kept, "blocks", {}).values())
    for block in kept:
        block.fill(np.nan if block.dtype.kind == "f" else 1)


def run(
    layer: Layer, x: Any, dy: Any = None, training: Training = True
) -> tuple[Any, Any, Any]:
    """Return copies of the output, the dy that was used and the input's gradient.

    ``dy`` is random by default. What the layer is given can't be written to. Each is
    a tuple where the layer has several inputs or outputs.
    """
    poison(layer)
    y = each(np.copy, layer.forward(frozen(x), training))
    if dy is None:
        rng = np.random.default_rng(7)
        dy = each(lambda y: rng.standard_normal(y.shape).astype(y.dtype), y)
    dx = layer.backward(frozen(dy))
    return y, dy, each(np.copy, dx)


def check_layer(
    layer: Layer,
    store: ParameterStore,
    x: Any,
    training: Training,
    tolerance: float = 1e-6,
) -> None:
    """Check the gradients of all weights and of all inputs that aren't integers."""
    poison(layer)
    store.grads.fill(np.nan)
    _, dy, dx = run(layer, x, training=training)
    arrays = [parameter.value for parameter in store.parameters]
    gradients = [parameter.grad.copy() for parameter in store.parameters]
    x = each(np.copy, x)
    for array, gradient in zip(flat(x), flat(dx), strict=True):
        if array.dtype.kind == "f":
            assert gradient is not None
            assert gradient.shape == array.shape
            arrays.append(array)
            gradients.append(gradient)

    def value() -> float:
        y = layer.forward(x, training)
        return sum(float((a * b).sum()) for a, b in zip(flat(y), flat(dy), strict=True))

    if arrays:
        check_directions(value, arrays, gradients, np.random.default_rng(3), tolerance)
