"""What the trainings of curves.json have in common on both sides: all but the models.

Everything is drawn with fixed seeds, so nothing but the losses has to be stored.
"""

from __future__ import annotations

from typing import Any

import numpy as np

STEPS, BATCH = 50, 32
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "adam": {"learning_rate": 0.01},
    "sgd": {"learning_rate": 0.1, "momentum": 0.9},
}
MODELS = ("mlp", "cnn", "lstm")
WORDS, TIME, CLASSES = 13, 12, 4


def start(shapes: list[tuple[int, ...]]) -> list[Any]:
    """Return initial matrices for weights of these shapes; None for vectors."""
    rng = np.random.default_rng(7)
    return [
        (rng.standard_normal(s) / np.sqrt(np.prod(s[:-1]))).astype(np.float32)
        if len(s) > 1
        else None
        for s in shapes
    ]


def batches(model: str) -> list[tuple[Any, Any]]:
    """Return inputs and labels of each step, which a model can learn."""
    rng = np.random.default_rng(11)
    made = []
    shape = {"mlp": (20,), "cnn": (12, 12, 3), "lstm": (TIME,)}[model]
    rule = rng.standard_normal((int(np.prod(shape)), CLASSES)) / 2
    for _ in range(STEPS):
        if model == "lstm":
            y = rng.integers(0, CLASSES, BATCH)
            x = rng.integers(1, WORDS, (BATCH, *shape))
            own = 1 + 3 * y[:, None] + rng.integers(0, 3, x.shape)
            x = np.where(rng.random(x.shape) < 0.3, own, x)
            lengths = rng.integers(3, TIME + 1, BATCH)
            x[np.arange(TIME) >= lengths[:, None]] = 0  # padding
        elif model == "cnn":
            y = rng.integers(0, CLASSES, BATCH)
            x = rng.standard_normal((BATCH, *shape)) + rule.T[y].reshape(-1, *shape)
            x = x.astype(np.float32)
        else:
            x = rng.standard_normal((BATCH, *shape)).astype(np.float32)
            y = (x.reshape(BATCH, -1) @ rule).argmax(1)
        made.append((x, y))
    return made
