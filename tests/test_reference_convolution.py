"""Convolutions, pooling and resizing against Keras (JAX): outputs and all gradients."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gradcheck import frozen, prepare

from fastserve.core import StepKey
from fastserve.models.serialization import make_layer

Array = np.ndarray[Any, np.dtype[Any]]
REFERENCE: dict[str, Array] = dict(
    np.load(Path(__file__).parent / "references" / "convolution.npz")
)
LAYERS = {
    key.split("/")[0]: json.loads(str(value))
    for key, value in REFERENCE.items()
    if key.endswith("/layer")
}


def real(array: Array) -> Array:
    """What went into Keras is stored in sixteenths."""
    return array.astype(np.float32) / np.float32(16)


def close(ours: Array, theirs: Array, what: str) -> None:
    """Within 1e-5 of the largest number."""
    assert ours.shape == theirs.shape, what
    assert ours.dtype == np.float32, what
    tolerance = 1e-5 * max(1.0, float(np.abs(theirs).max()))
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance, err_msg=what)


@pytest.mark.parametrize("number", LAYERS, ids=lambda n: f"{n} {LAYERS[n][0]}")
def test_layer_is_keras(number: str) -> None:
    kind, options = LAYERS[number]
    arrays = {
        key.removeprefix(f"{number}/"): value
        for key, value in REFERENCE.items()
        if key.startswith(f"{number}/")
    }
    x = real(arrays["x"])
    layer = make_layer(kind, options)
    store = prepare(layer, x.shape[1:], np.float32, seed=None)
    names = {key[2:] for key in arrays if key.startswith("w.")}
    assert {p.path for p in store.parameters} == names
    for parameter in store.parameters:
        parameter.assign(real(arrays[f"w.{parameter.path}"]))
    if kind == "GlobalAveragePooling1D" and options["keepdims"]:
        layer.mask = REFERENCE["mask"]
    close(layer.forward(frozen(x), StepKey()), arrays["y"], "y")
    close(layer.backward(frozen(real(arrays["dy"]))), arrays["dx"], "dx")
    for parameter in store.parameters:
        close(parameter.grad, arrays[f"g.{parameter.path}"], parameter.path)
    layer.mask = None if layer.mask is None else REFERENCE["mask"]
    close(layer.forward(frozen(x), False), arrays["y"], "y without training")
