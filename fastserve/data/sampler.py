"""Which samples make a step, and which of them are a rank's.

Everything follows from (samples, batch, seed, step), so all ranks derive the same plan
beforehand, and a resumed run needs no state but the step's number.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from fastserve.core import Array, generator
from fastserve.errors import ArgumentError, DataError


def share(total: int, rank: int, size: int) -> slice:
    """Return the rank's part of ``total`` rows: contiguous, sizes differ by 1."""
    base, extra = divmod(total, size)
    start = rank * base + min(rank, extra)
    return slice(start, start + base + (rank < extra))


def micro_batches(rows: slice, micro_batch: int | None) -> Iterator[slice]:
    """Cut a rank's rows into pieces of at most ``micro_batch``."""
    step = micro_batch or max(1, rows.stop - rows.start)
    for start in range(rows.start, rows.stop, step):
        yield slice(start, min(rows.stop, start + step))


class Sampler:
    """The order of samples, as a pure function of (seed, epoch).

    Args:
        samples: number of samples in the data.
        batch: global batch, over all ranks.
        shuffle: another order in each epoch; false: that of the data.
        first_epoch: number of the first epoch's order; a later call of ``fit`` goes on
            with orders that were not used yet.
        wrap: True makes every batch full, the last one of an epoch with samples of
            the next epoch; False leaves the last one short, as Keras does.
    """

    def __init__(
        self,
        samples: int,
        batch: int,
        seed: int,
        shuffle: bool,
        wrap: bool,
        first_epoch: int = 0,
    ) -> None:
        if samples < 1:
            raise DataError("expected at least one sample", f"{samples}", "add data")
        if not isinstance(batch, (int, np.integer)) or batch < 1:
            raise ArgumentError(
                "expected a batch size that is an integer above 0",
                repr(batch),
                "change batch_size",
            )
        self.samples, self.batch = samples, batch
        self.seed, self.shuffle, self.wrap = seed, shuffle, wrap
        self.first_epoch = first_epoch
        self._orders: dict[int, Array] = {}

    @property
    def steps_per_epoch(self) -> int:
        """Number of steps in which every sample comes once (rounded up)."""
        return -(-self.samples // self.batch)

    def order(self, epoch: int) -> Array:
        """Return the epoch's order of samples; the last two epochs' are kept."""
        if epoch not in self._orders:
            if self.shuffle:
                rng = generator(self.seed, "order", epoch)
                order = rng.permutation(self.samples)
            else:
                order = np.arange(self.samples)
            self._orders = {e: o for e, o in self._orders.items() if e == epoch - 1}
            self._orders[epoch] = order
        return self._orders[epoch]

    def rows_of(self, step: int) -> int:
        """Return the size of the global batch of ``step``."""
        if self.wrap:
            return self.batch
        start = step % self.steps_per_epoch * self.batch
        return min(self.batch, self.samples - start)

    def step(self, step: int) -> tuple[Array, Array]:
        """Return (samples, epochs) of the global batch, both (rows,) int64.

        ``epochs`` says for each row in which pass over the data it comes.
        """
        if self.wrap:
            start = step * self.batch
        else:
            epoch, place = divmod(step, self.steps_per_epoch)
            start = epoch * self.samples + place * self.batch
        places = np.arange(start, start + self.rows_of(step))
        epochs = places // self.samples + self.first_epoch
        rows = np.empty_like(places)
        for epoch in range(int(epochs[0]), int(epochs[-1]) + 1):
            chosen = epochs == epoch
            rows[chosen] = self.order(epoch)[places[chosen] % self.samples]
        return rows, epochs
