"""Layers against PyTorch: outputs and all gradients, in float32."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gradcheck import frozen, prepare

from fastserve import layers as L
from fastserve.core import Layer, StepKey

REFERENCE: dict[str, np.ndarray[Any, Any]] = dict(
    np.load(Path(__file__).parent / "references" / "layers.npz")
)
HEADS = 3


def gpt() -> Layer:
    table = L.Embedding(17, 12, name="tokens")
    return L.Chain(
        table,
        L.PositionEmbedding(10, name="positions"),
        L.TransformerBlock(HEADS, causal=True, name="blocks0"),
        L.TransformerBlock(HEADS, causal=True, name="blocks1"),
        L.LayerNormalization(epsilon=1e-5, name="norm"),
        L.TiedHead(table),
    )


CASES: dict[str, Callable[[], Layer]] = {
    "dense": lambda: L.Dense(7),
    "dense relu": lambda: L.Dense(7, "relu"),
    "norm": lambda: L.LayerNormalization(),
    "embedding": lambda: L.Embedding(17, 12),
    "attention": lambda: L.MultiHeadAttention(HEADS),
    "attention causal": lambda: L.MultiHeadAttention(HEADS, causal=True),
    "attention masked": lambda: L.MultiHeadAttention(HEADS),
    "attention causal masked": lambda: L.MultiHeadAttention(HEADS, causal=True),
    "block": lambda: L.TransformerBlock(HEADS, causal=True),
    "gpt": gpt,
}
ACTIVATIONS = sorted(
    {case.split()[1].split("/")[0] for case in REFERENCE if "activation " in case}
)


def close(ours: np.ndarray[Any, Any], theirs: np.ndarray[Any, Any], what: str) -> None:
    """Within 1e-5 of the size of the numbers that were summed up."""
    assert ours.shape == theirs.shape, what
    tolerance = 1e-5 * max(1.0, float(np.abs(theirs).max()))
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=tolerance, err_msg=what)


def check(name: str, layer: Layer) -> None:
    arrays = {
        key.removeprefix(f"{name}/"): value
        for key, value in REFERENCE.items()
        if key.startswith(f"{name}/")
    }
    x = arrays["x"]
    store = prepare(layer, x.shape[1:], np.float32, seed=None)
    names = {key[2:] for key in arrays if key.startswith("w.")}
    assert {p.path for p in store.parameters} == names
    for parameter in store.parameters:
        parameter.assign(arrays[f"w.{parameter.path}"])
    if "masked" in name:
        layer.mask = REFERENCE["mask"]
    close(layer.forward(frozen(x), StepKey()), arrays["y"], "y")
    dx = layer.backward(frozen(arrays["dy"]))
    if "dx" in arrays:
        close(dx, arrays["dx"], "dx")
    for parameter in store.parameters:
        close(parameter.grad, arrays[f"g.{parameter.path}"], parameter.path)


@pytest.mark.parametrize("name", CASES)
def test_layer_is_pytorchs(name: str) -> None:
    check(name, CASES[name]())


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activation_is_pytorchs(name: str) -> None:
    check(f"activation {name}", L.Activation(name))


def test_every_case_is_used() -> None:
    cases = {key.split("/")[0] for key in REFERENCE} - {"mask"}
    assert cases == {*CASES, *(f"activation {name}" for name in ACTIVATIONS)}
    assert len(ACTIVATIONS) == 25
