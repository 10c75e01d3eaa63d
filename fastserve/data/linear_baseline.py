"""What a linear model explains, to compare with what a trained one does."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from fastserve.core import Array
from fastserve.data.sources import Source

_ROWS = 1024
WIDEST = 2000  # inputs of a linear model that is still found at once


def r2(predict: Callable[[Array], Array], held: Source) -> float:
    """Return R2 = 1 - sum (y - predicted)^2 / sum (y - mean y)^2 over all of ``held``.

    Args:
        predict: returns (rows, outputs) for inputs (rows, ...).
    """
    count, errors, total, squares = 0, 0.0, 0.0, 0.0
    for x, y in _batches(held):
        found = predict(x).reshape(len(y), -1)
        errors += float(np.square(found - y).sum())
        total += y.sum(axis=0)
        squares += np.square(y).sum(axis=0)
        count += len(y)
    spread = float(np.sum(squares - total * total / count))
    return 1 - errors / spread if spread > 0 else float("nan")


def linear_r2(train: Source, held: Source) -> float | None:
    """Return the R2 on ``held`` of the least squares fit to ``train``, from all inputs
    and a constant; None if there are too many inputs."""
    width = int(np.prod(train.input_shape)) + 1
    if width > WIDEST:
        return None
    left: Array = np.zeros((width, width))
    right: Array = np.zeros(())  # (width, outputs) after the first batch
    for x, y in _batches(train):
        a = _with_constant(x)
        left += a.T @ a
        right = right + a.T @ y
    weights: Array = np.linalg.lstsq(left, right, rcond=None)[0]
    return r2(lambda x: _with_constant(x) @ weights, held)


def _with_constant(x: Array) -> Array:
    flat = x.reshape(len(x), -1).astype(np.float64)
    return np.concatenate([flat, np.ones((len(x), 1))], axis=1)


def _batches(source: Source) -> Iterator[tuple[Array, Array]]:
    """Yield (inputs, targets (rows, outputs) in float64) of all samples."""
    for start in range(0, source.samples, _ROWS):
        rows = np.arange(start, min(start + _ROWS, source.samples))
        batch = source.batch(rows, np.zeros_like(rows))
        yield batch.x, batch.y.reshape(len(rows), -1).astype(np.float64)
