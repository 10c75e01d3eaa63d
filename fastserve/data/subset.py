"""``Subset``: some samples of another source."""

from __future__ import annotations

import numpy as np

from fastserve.core import Array
from fastserve.data.sampler import Sampler
from fastserve.data.sources import Batch, Source
from fastserve.errors import DataError


class Subset(Source):
    """The samples ``rows`` of a source, each as in the pass ``epochs`` over it.

    Args:
        rows, epochs: (n,) integers.
    """

    def __init__(self, source: Source, rows: Array, epochs: Array) -> None:
        self.source, self.rows, self.epochs = source, rows, epochs
        self.samples = len(rows)
        self.tokens_per_sample = source.tokens_per_sample

    @property
    def input_shape(self) -> tuple[int, ...]:
        return self.source.input_shape

    def losses(self, rows: Array) -> int | None:
        return self.source.losses(self.rows[rows])

    def batch(self, rows: Array, epochs: Array) -> Batch:
        return self.source.batch(self.rows[rows], self.epochs[rows])


def first_batches(source: Source, sampler: Sampler, batches: int) -> Subset:
    """Return the samples of the first ``batches`` steps of ``sampler``, in order.

    Raises DataError if there aren't as many in a pass over the data.
    """
    whole = sampler.samples // sampler.batch
    if batches > whole:
        raise DataError(
            f"train.overfit_batches: expected at most {whole}, the full batches of "
            f"{sampler.batch} in {sampler.samples} samples",
            f"{batches}",
            "lower it, or train.global_batch",
        )
    steps = [sampler.step(step) for step in range(batches)]
    rows, epochs = (np.concatenate(parts) for parts in zip(*steps, strict=True))
    return Subset(source, rows, epochs)
