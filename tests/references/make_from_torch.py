"""Makes ``from_torch.npz``: layers of PyTorch with their weights, inputs and outputs.

    python tests/references/make_from_torch.py

needs torch; made with torch 2.14.1. Images are channels-last in the file. What
``tests/test_from_pytorch.py`` does with them stands in ``docs/from-pytorch.md``.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import nn

torch.manual_seed(0)
found: dict[str, np.ndarray] = {}


def put(kind: str, layer: nn.Module, x: torch.Tensor) -> None:
    with torch.no_grad():
        y = layer(x)
    y = y[0] if isinstance(y, tuple) else y
    if x.ndim == 4:
        x, y = x.permute(0, 2, 3, 1), y.permute(0, 2, 3, 1)
    arrays = {**layer.state_dict(), "x": x, "y": y}
    for name, array in arrays.items():
        found[f"{kind}.{name}"] = array.numpy()


def drawn(layer: nn.Module) -> nn.Module:
    """Give weights that begin as ones and zeros other values."""
    nn.init.normal_(layer.weight)
    nn.init.normal_(layer.bias)
    return layer


put("Linear", nn.Linear(5, 3), torch.randn(4, 5))
put("Conv2d", nn.Conv2d(3, 4, 3, padding=1), torch.randn(2, 3, 6, 5))
put("Embedding", nn.Embedding(7, 4), torch.randint(0, 7, (3, 5)))
put("LayerNorm", drawn(nn.LayerNorm(6)), torch.randn(3, 6))
norm = drawn(nn.BatchNorm2d(3))
norm(torch.randn(8, 3, 5, 5))  # moves the averages
put("BatchNorm2d", norm.eval(), torch.randn(4, 3, 5, 5))
put("LSTM", nn.LSTM(5, 4, batch_first=True), torch.randn(2, 6, 5))
put("GRU", nn.GRU(5, 4, batch_first=True), torch.randn(2, 6, 5))
np.savez(Path(__file__).with_name("from_torch.npz"), **found)
