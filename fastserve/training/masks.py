"""The mask of a model's output: which of its losses and metrics count.

As in Keras, where a mask (batch, time) arrives at an output (batch, time, classes),
only the losses and metrics of its true positions count, and the loss is divided by
their number. That is known on all ranks together only after forward, so a step first
divides by the number of all positions, and puts the sum of gradients right in the end.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from fastserve.core import Array
from fastserve.data.sources import Batch
from fastserve.losses import spread_weights


def losses_shape(output: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of the losses of a batch of outputs."""
    return output[:-1] if len(output) > 1 else output


def apply_mask(batch: Batch, mask: Any, shape: tuple[int, ...]) -> Batch:
    """Return the batch with the weights of its losses, of this shape, masked.

    A mask that isn't over the first axes of the losses belongs to no output: a layer
    before took its axis away.
    """
    if not isinstance(mask, np.ndarray) or shape[: mask.ndim] != mask.shape:
        return batch
    mask = mask.reshape(mask.shape + (1,) * (len(shape) - mask.ndim))
    counts: Array = np.broadcast_to(mask, shape).astype(np.float32)
    if batch.weights is None:
        return batch._replace(weights=counts, measured=counts)
    spread = np.empty(math.prod(shape), np.float32)
    spread_weights(batch.weights, (*shape, 1), spread, "output mask")
    weights: Array = spread.reshape(shape)
    if batch.masked:
        counts *= weights != 0
    return batch._replace(weights=weights * counts, measured=counts)


def measured(batch: Batch) -> Array | None:
    """Return the weights of the metrics: as in Keras masks, and no other weights."""
    if batch.measured is not None:
        return batch.measured
    return batch.weights if batch.masked else None


def count(batch: Batch, losses: int) -> int:
    """Return how many of so many losses count."""
    weights = measured(batch)
    return losses if weights is None else int(np.count_nonzero(weights))
