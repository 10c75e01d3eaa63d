"""What makes steps and evaluations the same, to the bit, on any number of ranks.

A batch is cut into shards of a number of rows that doesn't depend on the ranks. Each
is computed by itself, in the same shapes, and all that is summed over them is summed in
one order: gradients along a tree (``comm.exact``), and what fits into a small table
(losses, metrics, moving weights) row after row of it.
"""

from __future__ import annotations

import numpy as np

from fastserve.comm import Communicator
from fastserve.comm.exact import ExactSum
from fastserve.core import Array
from fastserve.data.sampler import share
from fastserve.training.moving_weights import MovingWeights

SHARDS = 8  # of a batch, unless the rows of a shard are given


class Shards:
    """The shards of a batch of ``total`` rows, ``rows`` each, and whose they are."""

    def __init__(self, total: int, rows: int, ranks: int) -> None:
        self.total, self.rows = total, rows
        self.count = -(-total // rows)
        cuts = [share(self.count, rank, ranks) for rank in range(ranks)]
        self.of = [range(cut.start, cut.stop) for cut in cuts]

    def rows_of(self, rank: int) -> slice:
        """Return the rows of the batch that a rank computes."""
        mine = self.of[rank]
        ends = (min(self.total, shard * self.rows) for shard in (mine.start, mine.stop))
        return slice(*ends)


def make_shards(total: int, batch: int, rows: int | None, ranks: int) -> Shards:
    """Return the shards of a batch of ``total`` rows; a full one has ``batch``."""
    return Shards(total, rows or -(-batch // SHARDS), ranks)


class ShardTable:
    """Sums over the shards of one or several batches, in the order of the shards.

    Each rank fills the rows of its own shards and zeros are in the others, so the sum
    over the ranks only puts the rows together.
    """

    def __init__(self, comm: Communicator) -> None:
        self._comm = comm
        self._rows: dict[int, Array] = {}

    def put(self, index: int, *parts: Array) -> None:
        """Note the numbers of a shard, in the place ``index`` of all."""
        self._rows[index] = np.concatenate(parts)

    def total(self, count: int, width: int) -> Array:
        """Return the sums (width,) over ``count`` places, the same on all ranks."""
        table = np.zeros((count, width))
        for index, row in self._rows.items():
            table[index] = row
        self._rows.clear()
        if self._comm.size > 1:
            self._comm.allreduce(table)
        total: Array = np.add.reduce(table, axis=0)
        return total


class ExactStep:
    """Takes what a training step computes, shard by shard, and sums it.

    Attributes:
        shards: those of the step or evaluation that is made.
    """

    def __init__(
        self, comm: Communicator, gradients: ExactSum, moving: MovingWeights
    ) -> None:
        self._comm, self._gradients, self._moving = comm, gradients, moving
        self._table = ShardTable(comm)
        self.shards = Shards(1, 1, comm.size)

    def begin(self) -> None:
        self._gradients.plan(self.shards.count, self.shards.of)

    def put(self, place: int, status: Array, last: bool) -> None:
        """Take this rank's shard number ``place``, and clear ``status``.

        Each shard starts from the same moving weights, unlike a micro-batch.
        """
        shards = self.shards
        index = shards.of[self._comm.rank][place]
        rows = min(shards.rows, shards.total - index * shards.rows)
        self._table.put(index, status, self._moving.take(rows / shards.total))
        status.fill(0)
        if not last:
            self._gradients.push()

    def finish(self, status: Array) -> None:
        """Replace ``status``, what of it belongs to no shard, by the sum of all.

        That is flags alone, which any order sums alike: a row after the shards' does.
        """
        count = self.shards.count
        self._table.put(count, status, np.zeros(self._moving.size))
        total = self._table.total(count + 1, status.size + self._moving.size)
        status[...] = total[: status.size]
        self._moving.hold(total[status.size :])
