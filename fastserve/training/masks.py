"""The mask of a model's output: which of its losses and metrics count.

As in Keras, where a mask (batch, time) arrives at an output (batch, time, classes),
only the losses and metrics of its true positions count, and the loss is divided by
their number. That is known on all ranks together only after forward, so a step first
divides by the number of all positions, and puts the sum of gradients right in the end.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fastserve.core import Array
from fastserve.data.sources import Batch
from fastserve.losses import Loss, spread_weights


def apply_mask(
    batch: Batch, mask: Any, output: tuple[int, ...], loss: Loss
) -> tuple[Batch, int]:
    """Return the batch with masked weights, and how many losses that, and labels that
    the loss ignores, leave out.

    ``output`` is the shape of the model's output. A mask that isn't over the first
    axes of the losses belongs to no output: a layer before took its axis away.
    """
    batch, left = _masked(batch, mask, output)
    counts = batch.weights if batch.masked else None
    counts = counts if batch.measured is None else batch.measured
    return batch, left + loss.ignored(batch.y, counts)


def _masked(batch: Batch, mask: Any, output: tuple[int, ...]) -> tuple[Batch, int]:
    shape = output[:-1] if len(output) > 1 else output
    if not isinstance(mask, np.ndarray) or shape[: mask.ndim] != mask.shape:
        return batch, 0
    mask = mask.reshape(mask.shape + (1,) * (len(shape) - mask.ndim))
    counts: Array = np.broadcast_to(mask, shape).astype(np.float32)
    weights, before = counts, counts.size
    if batch.weights is not None:
        spread = np.empty(counts.size, np.float32)
        spread_weights(batch.weights, output, spread, "output mask")
        weights = spread.reshape(shape)
        if batch.masked:
            before = int(np.count_nonzero(weights))
            counts *= weights != 0
        weights = weights * counts
    left = before - int(np.count_nonzero(counts))
    return batch._replace(weights=weights, measured=counts), left
