"""The loss of a large vocabulary, a piece of the rows at a time.

The logits of 2 x 1024 tokens over 50257 words are 412 MB, and their gradient as much.
Neither is needed whole: a row's loss and gradient depend on this row alone. So the
last layer, the loss and the last layer's gradient are computed for some rows, then for
the next ones in the same memory.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from fastserve.core import Array, Done, Layer, Training
from fastserve.data.sources import Batch
from fastserve.layers import Chain
from fastserve.losses import Loss, spread_weights
from fastserve.ops.blocks import as_rows
from fastserve.training.masks import apply_mask

# Of the logits of a piece. Smaller pieces cost time: each one adds to the gradient of
# the whole table.
PIECE_BYTES = 128 << 20

Measure = Callable[[Batch, Array], None]


class PiecewiseHead:
    """Runs a network whose last layer is linear, and the loss, in pieces of rows.

    Args:
        measure: called with the targets and the logits of each piece, for metrics.
        to: called with 'forward' or 'backward' where that begins.
    """

    def __init__(
        self, root: Chain, loss: Loss, measure: Measure, to: Callable[[str], Any]
    ) -> None:
        self.root, self.loss, self.measure, self.to = root, loss, measure, to
        self.head = root.layers[-1]

    def train(
        self,
        x: Array,
        batch: Batch,
        key: Training,
        scale_of: Callable[[tuple[int, ...]], float],
        done: Done,
    ) -> tuple[float, int]:
        """Make forward and backward; return the sum of the losses, and how many of
        them the output's mask leaves out.

        ``scale_of`` returns the gradient's factor for outputs of a shape.
        """
        hidden = self.root.forward_until_last(x, key)
        scale = scale_of(hidden.shape)
        batch, left = apply_mask(
            batch, self.root.output_mask(), hidden.shape, self.loss
        )
        dhidden = self.root.scratch(hidden.shape)
        into = as_rows(dhidden)
        total = 0.0
        for rows, part, logits in self._pieces(hidden, batch, key):
            dlogits = self.root.scratch(logits.shape)
            total += self.loss.sum_and_gradient(
                part.y, logits, part.weights, scale, dlogits
            )
            self.measure(part, logits)
            self.to("backward")
            self.head.backward_rows(dlogits, into[rows], add=rows.start > 0)
            self.to("forward")
            del dlogits  # its memory is the next piece's
        self.to("backward")
        done(self.head)
        self.root.backward_until_last(dhidden, done)
        return total, left

    def evaluate(self, x: Array, batch: Batch) -> tuple[float, int]:
        """Return the sum of the losses, and how many the output's mask leaves out."""
        hidden = self.root.forward_until_last(x, False)
        batch, left = apply_mask(
            batch, self.root.output_mask(), hidden.shape, self.loss
        )
        total = 0.0
        for _, part, logits in self._pieces(hidden, batch, False):
            total += self.loss.sum_and_gradient(part.y, logits, part.weights)
            self.measure(part, logits)
        return total, left

    def _pieces(
        self, hidden: Array, batch: Batch, key: Training
    ) -> Iterator[tuple[slice, Batch, Array]]:
        flat = as_rows(hidden)
        y = np.reshape(batch.y, len(flat))
        weights = None
        if batch.weights is not None:
            weights = self.root.scratch((len(flat),))
            spread_weights(batch.weights, hidden.shape, weights, self.loss.name)
        counts = None if batch.measured is None else batch.measured.reshape(-1)
        count = pieces_of(len(flat), self.root)
        cuts = [len(flat) * i // count for i in range(count + 1)]
        for start, stop in itertools.pairwise(cuts):
            rows = slice(start, stop)
            part = None if weights is None else weights[rows]
            logits = self.head.forward(flat[rows], key)
            metric = None if counts is None else counts[rows]
            yield rows, Batch(flat[rows], y[rows], part, batch.masked, metric), logits


def pieces_of(rows: int, root: Layer) -> int:
    """Return in how many pieces the logits of so many rows are computed."""
    classes = (root.output_shape or (1,))[-1] or 1
    return -(-rows * classes * root.dtype.itemsize // PIECE_BYTES)


def make_head(
    root: Any, loss: Loss, measure: Measure, to: Callable[[str], Any]
) -> PiecewiseHead | None:
    """Return the head of a network whose loss can be computed in pieces, else None."""
    if not isinstance(root, Chain) or len(root.layers) < 2 or not loss.targets.sparse:
        return None
    apart = root.layers[-1].rows_apart
    return PiecewiseHead(root, loss, measure, to) if apart else None
