"""Recurrent layers against Keras: outputs, states and all gradients, in float32."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gradcheck import frozen, prepare

import fastserve as fs
from fastserve.core import StepKey

HERE = Path(__file__).parent / "references"
sys.path.insert(0, str(HERE))
from rnn_cases import CASES, FEATURES, MASK, TIME, UNITS, VOCABULARY, unpack  # noqa: E402

Array = np.ndarray[Any, np.dtype[Any]]
REFERENCE: dict[str, Array] = unpack(np.load(HERE / "rnn.npz"))


def stored(case: str, key: str) -> list[Array]:
    """Return the arrays ``key``0, ``key``1, ... of a case."""
    arrays: list[Array] = []
    while (name := f"{case}/{key}{len(arrays)}") in REFERENCE:
        arrays.append(REFERENCE[name])
    return arrays


def close(ours: list[Any], theirs: list[Array], what: str) -> None:
    assert len(ours) == len(theirs), what
    for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        assert a.shape == b.shape, (what, i)
        scale = max(1.0, float(np.abs(b).max(initial=0)))
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * scale, err_msg=what)


def several(arrays: list[Array]) -> Any:
    return tuple(map(frozen, arrays)) if len(arrays) > 1 else frozen(arrays[0])


def as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, tuple) else [value]


@pytest.mark.parametrize("name", CASES)
def test_layer_is_keras(name: str) -> None:
    case = CASES[name]
    layer = getattr(fs.layers, case.kind)(UNITS, **case.options)
    if case.wrapper:
        layer = fs.layers.Bidirectional(layer, **case.wrapped)
    shape: Any = (TIME, FEATURES)
    if case.states:
        shape = (shape, *[(UNITS,)] * case.states)
    prepare(layer, shape, np.float32, seed=None)
    parameters = list(layer.parameters())
    weights = stored(name, "w")
    assert [p.shape for p in parameters] == [w.shape for w in weights]
    for parameter, value in zip(parameters, weights, strict=True):
        parameter.assign(value)
    if case.masked:
        layer.mask = (MASK, *[None] * case.states) if case.states else MASK
    x = stored(name, "x")
    for training in (False, StepKey()):
        close(as_list(layer.forward(several(x), training)), stored(name, "y"), "y")
    dx = layer.backward(several(stored(name, "dy")))
    close(as_list(dx), stored(name, "dx"), "dx")
    close([p.grad for p in parameters], stored(name, "g"), "weights")


def test_every_case_is_used() -> None:
    assert {key.split("/")[0] for key in REFERENCE} == {*CASES, "training"}


@pytest.mark.parametrize("kind", ["plain", "weighted"])
def test_masked_training_is_keras(kind: str) -> None:
    x, y = (REFERENCE[f"training/{name}"].astype(np.int64) for name in "xy")
    weights = REFERENCE["training/weights"] if kind == "weighted" else None
    model = fs.models.Sequential(
        [
            fs.layers.Embedding(VOCABULARY, 5, mask_zero=True),
            fs.layers.Bidirectional(fs.layers.LSTM(4, return_sequences=True)),
            fs.layers.Dense(3, activation="softmax"),
        ]
    )
    model.build((TIME,))
    model.set_weights(stored("training", "w"))
    model.compile(
        fs.optimizers.SGD(0.5), "sparse_categorical_crossentropy", metrics=["accuracy"]
    )
    steps = []
    for first in range(0, 24, 8):
        part = slice(first, first + 8)
        given = None if weights is None else weights[part]
        steps.append(model.train_on_batch(x[part], y[part], given)[0])
    # of the steps the losses alone: on JAX, Keras' accuracy of a training step
    # counts masked positions too, as that of evaluate doesn't
    np.testing.assert_allclose(
        steps, REFERENCE[f"training/{kind} steps"][:, 0], rtol=1e-5
    )
    evaluated = model.evaluate(x, y, 24, 0, weights)
    np.testing.assert_allclose(
        evaluated, REFERENCE[f"training/{kind} evaluated"], rtol=1e-5
    )
    close(model.get_weights(), stored("training", f"{kind} w"), "weights")
