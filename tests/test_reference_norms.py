"""Normalisations, activations and attention against Keras 3 on JAX, in float32."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gradcheck import frozen, prepare

from fastserve import layers
from fastserve.core import StepKey

Array = np.ndarray[Any, np.dtype[Any]]
CASES: dict[str, dict[str, Array]] = {}
with np.load(Path(__file__).parent / "references" / "norms.npz") as _file:
    for _key in _file.files:
        _case, _, _name = _key.rpartition("/")
        CASES.setdefault(_case, {})[_name] = _file[_key]


def close(ours: Array, theirs: Array, what: str) -> None:
    assert ours.shape == theirs.shape, what
    tolerance = 1e-5 * max(1.0, float(np.abs(theirs).max()))
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=tolerance, err_msg=what)


def numbered(case: dict[str, Array], name: str) -> list[Array]:
    return [case[f"{name}{i}"] for i in range(9) if f"{name}{i}" in case]


@pytest.mark.parametrize("name", CASES)
def test_as_in_keras(name: str) -> None:
    case = CASES[name]
    kind, arguments, training = json.loads(str(case["config"]))
    layer = getattr(layers, kind)(**arguments)
    xs = numbered(case, "x")
    if "attention_mask" in case:  # comes fourth; without a key, the value is the key
        xs = [*xs, *([xs[1]] if len(xs) < 3 else []), case["attention_mask"]]
    shapes = tuple(x.shape[1:] for x in xs)
    single = len(xs) == 1
    store = prepare(layer, shapes[0] if single else shapes, np.float32, seed=None)
    parameters = list(layer.parameters())
    trained = [p for p in parameters if p.trainable]
    other = [p for p in parameters if not p.trainable]
    for chosen, letter in ((trained, "w"), (other, "s")):
        values = numbered(case, letter)
        assert [p.shape for p in chosen] == [v.shape for v in values]
        for parameter, value in zip(chosen, values, strict=True):
            parameter.assign(value)
    layer.mask = case.get("mask", tuple(numbered(case, "mask")) or None)
    given = frozen(xs[0]) if single else tuple(map(frozen, xs))
    close(layer.forward(given, StepKey() if training else False), case["y"], "y")
    store.grads.fill(np.nan)
    dx = layer.backward(frozen(case["dy"]))
    if "attention_mask" in case:
        assert dx[3] is None
        dx = (dx[0], dx[1] + dx[2])
    for ours, theirs in zip([dx] if single else dx, numbered(case, "dx"), strict=True):
        close(ours, theirs, "dx")
    for parameter, theirs in zip(trained, numbered(case, "g"), strict=True):
        close(parameter.grad, theirs, parameter.path)
    for parameter, theirs in zip(other, numbered(case, "t"), strict=True):
        close(parameter.value, theirs, parameter.path)
