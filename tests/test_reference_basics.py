"""Dense, Embedding, activations, shapes and layers around layers against Keras."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gradcheck import frozen, prepare

from fastserve import layers
from fastserve.core import StepKey
from fastserve.ops.activations import NAMED

Array = np.ndarray[Any, np.dtype[Any]]
CASES: dict[str, dict[str, Array]] = {}
with np.load(Path(__file__).parent / "references" / "basics.npz") as _file:
    for _key in _file.files:
        _number, _, _name = _key.partition("/")
        CASES.setdefault(_number, {})[_name] = _file[_key]
LAYERS = {number: json.loads(str(case["layer"])) for number, case in CASES.items()}
RANDOM = ("Dropout", "Noise")  # in training: they predict here


def close(ours: Array, theirs: Array, what: str) -> None:
    """Within 1e-5 of the largest number."""
    assert ours.shape == theirs.shape, what
    tolerance = 1e-5 * max(1.0, float(np.abs(theirs).max()))
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance, err_msg=what)


@pytest.mark.parametrize("number", CASES, ids=lambda n: f"{n} {LAYERS[n][0]}")
def test_layer_is_keras(number: str) -> None:
    case, (kind, arguments) = CASES[number], LAYERS[number]
    if kind == "TimeDistributed":
        inner, its_own = arguments["layer"]
        arguments = {"layer": getattr(layers, inner)(**its_own)}
    layer = getattr(layers, kind)(**arguments)
    x = case["x"]
    store = prepare(layer, x.shape[1:], np.float32, seed=None)
    parameters = list(layer.parameters())
    weights = [case[f"w{i}"] for i in range(len(parameters))]
    assert f"w{len(parameters)}" not in case
    for parameter, value in zip(parameters, weights, strict=True):
        parameter.assign(value)
    random = any(part in kind for part in RANDOM)
    close(layer.forward(frozen(x), False if random else StepKey()), case["y"], "y")
    if random:
        return
    store.grads.fill(np.nan)
    dx = layer.backward(frozen(case["dy"]))
    if "dx" in case:
        close(dx, case["dx"], "dx")
    for i, parameter in enumerate(parameters):
        close(parameter.grad, case[f"g{i}"], parameter.path)


def test_every_activation_is_compared() -> None:
    compared = {a["activation"] for kind, a in LAYERS.values() if kind == "Activation"}
    # no name of Keras', one that needs arguments, and one that is wrong in Keras
    assert set(NAMED) - compared == {"gelu_tanh", "threshold", "sparsemax"}
