"""Models of called layers: against Keras, and what only they can do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gradcheck import frozen

import fastserve as fs
from fastserve.core import Layer, Memory

L = fs.layers
Array = np.ndarray[Any, Any]
REFERENCE: dict[str, Array] = dict(
    np.load(Path(__file__).parent / "references" / "functional.npz")
)
MERGING: dict[str, Any] = {
    "add": L.Add,
    "add broadcast": L.Add,
    "subtract": L.Subtract,
    "multiply": L.Multiply,
    "multiply masked": L.Multiply,
    "average": L.Average,
    "maximum": L.Maximum,
    "maximum masked": L.Maximum,
    "minimum": L.Minimum,
    "minimum masked": L.Minimum,
    "concatenate": L.Concatenate,
    "concatenate 1": lambda: L.Concatenate(axis=1),
    "dot": lambda: L.Dot(axes=1),
    "dot of axes": lambda: L.Dot(axes=(2, 1)),
    "dot cosine": lambda: L.Dot(axes=-1, normalize=True),
}


def close(ours: Any, theirs: Array, what: str) -> None:
    assert np.shape(ours) == theirs.shape, what
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5, err_msg=what)


def numbered(prefix: str) -> list[Array]:
    found = []
    while f"{prefix}{len(found)}" in REFERENCE:
        found.append(REFERENCE[f"{prefix}{len(found)}"])
    return found


@pytest.mark.parametrize("name", MERGING)
def test_merging_is_kerass(name: str) -> None:
    layer: Layer = MERGING[name]()
    xs = tuple(map(frozen, numbered(f"{name}/x")))
    layer.build_once(tuple(x.shape[1:] for x in xs))
    layer.bind(Memory(poison=True), np.dtype(np.float32))
    layer.mask = tuple(numbered(f"{name}/mask")) or None
    close(layer.forward(xs, True), REFERENCE[f"{name}/y"], "y")
    dxs = layer.backward(frozen(REFERENCE[f"{name}/dy"]))
    for i, theirs in enumerate(numbered(f"{name}/dx")):
        close(dxs[i], theirs, f"dx{i}")
    if layer.mask is not None:
        np.testing.assert_array_equal(layer.output_mask(), REFERENCE[f"{name}/mask"])


def test_every_case_is_used() -> None:
    assert {key.split("/")[0] for key in REFERENCE} == {*MERGING, "model"}


# -- a model of two inputs, two outputs, and a shared layer ----------------------------


def two_by_two() -> fs.Model:
    a = fs.Input((6,), name="numbers")
    b = fs.Input((4,), name="tokens", dtype="int32")
    shared = L.Dense(5, "tanh", name="shared")
    words = L.Flatten(name="flatten")(L.Embedding(7, 3, name="table")(b))
    one = shared(L.Dense(6, "relu", name="wide")(a))
    two = shared(L.Dense(6, name="narrow")(words))
    three = shared(a)
    inner = fs.Sequential(
        [fs.Input((5,)), L.Dense(4, "tanh", name="hidden")], name="inner"
    )
    joined = L.concatenate([inner(one), inner(two), three], name="joined")
    cls = L.Dense(3, "softmax", name="cls")(joined)
    score = L.Dense(2, name="score")(L.multiply([one, two], name="product"))
    return fs.Model([a, b], [cls, score])


def reference(name: str) -> Any:
    found = numbered(f"model/{name}")
    return found if found else REFERENCE[f"model/{name}"]


def compiled(model: fs.Model, rate: float = 0.2) -> fs.Model:
    model.compile(
        fs.optimizers.SGD(rate),
        ["sparse_categorical_crossentropy", "mse"],
        [["accuracy"], ["mae"]],
        loss_weights=[0.7, 2.0],
    )
    return model


def of_keras() -> fs.Model:
    model = compiled(two_by_two())
    model.set_weights(reference("before"))
    return model


def some(arrays: list[Array], rows: slice) -> list[Array]:
    return [array[rows] for array in arrays]


def test_layers_and_weights_are_in_kerass_order() -> None:
    model = two_by_two()
    assert [layer.name for layer in model.layers] == list(reference("layers"))
    shapes = [value.shape for value in reference("before")]
    assert [value.shape for value in model.get_weights()] == shapes


def test_outputs_and_losses_are_kerass() -> None:
    model = of_keras()
    x, y, weights = reference("x"), reference("y"), reference("w")
    for ours, theirs in zip(model.predict(x), reference("predict"), strict=True):
        close(ours, theirs, "predict")
    close(model.evaluate(x, y, 10, verbose=0), reference("evaluate"), "evaluate")
    weighted = model.evaluate(x, y, verbose=0, sample_weight=weights)
    close(weighted, reference("weighted"), "weighted")


def test_five_steps_are_kerass() -> None:
    model = of_keras()
    x, y, weights = reference("x"), reference("y"), reference("w")
    for step, loss in enumerate(reference("losses")):
        rows = slice(5 * step, 5 * step + 5)
        found = model.train_on_batch(
            some(x, rows), some(y, rows), some(weights, rows), return_dict=True
        )
        close(found["loss"], loss, f"loss of step {step}")
    for ours, theirs in zip(model.get_weights(), reference("after"), strict=True):
        close(ours, theirs, "weights")
