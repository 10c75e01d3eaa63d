"""The conversion of docs/from-pytorch.md gives PyTorch's outputs.

The references come from ``tests/references/make_from_torch.py``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pages import blocks

import fastserve as fs

HERE = Path(__file__).parent
PAGE = (HERE.parent / "docs" / "from-pytorch.md").read_text("utf-8")
LAYERS = {
    "Linear": fs.layers.Dense(3),
    "Conv2d": fs.layers.Conv2D(4, 3, padding="same"),
    "Embedding": fs.layers.Embedding(7, 4),
    "LayerNorm": fs.layers.LayerNormalization(epsilon=1e-5),
    "BatchNorm2d": fs.layers.BatchNormalization(momentum=0.9, epsilon=1e-5),
    "LSTM": fs.layers.LSTM(4, return_sequences=True),
    "GRU": fs.layers.GRU(4, return_sequences=True),
}


@pytest.fixture(scope="module")
def convert() -> Any:
    names: dict[str, Any] = {"__name__": "convert"}
    code = next(b.code for b in blocks(PAGE) if b.title == "convert.py")
    exec(code, names)
    return names["convert"]


@pytest.mark.parametrize("kind", LAYERS)
def test_a_layer(kind: str, convert: Any) -> None:
    arrays = np.load(HERE / "references" / "from_torch.npz")
    mine = {
        name.removeprefix(f"{kind}."): array
        for name, array in arrays.items()
        if name.startswith(f"{kind}.")
    }
    model = fs.Sequential([LAYERS[kind]])
    model.build(mine["x"].shape[1:])
    model.set_weights(convert(kind, mine))
    np.testing.assert_allclose(model.predict(mine["x"]), mine["y"], atol=1e-6)
