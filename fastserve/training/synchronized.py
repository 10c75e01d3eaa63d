"""``Together``: layers whose results depend on the rows of all ranks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from fastserve.comm import Communicator
from fastserve.core import Array, Layer
from fastserve.data.sampler import micro_batches, share
from fastserve.errors import ArgumentError
from fastserve.layers.batch_normalization import BatchNormalization
from fastserve.training.timing import Timing


class Together:
    """Lets the synchronized layers of a model take part in each other's sums.

    In a micro-batch they exchange sums in forward, in order of execution, and in
    backward, in the opposite order. A rank that has fewer micro-batches than others, or
    no rows at all, has nothing to add, but takes part in the same order. As these
    messages and those of the gradients mustn't mix, gradients aren't sent during
    backward where there are such layers.

    Attributes:
        layers: none if there is one rank.

    Raises ArgumentError for the algorithm exact, where nothing may depend on the ranks.
    """

    def __init__(
        self, root: Layer, comm: Communicator, algorithm: str, timing: Timing
    ) -> None:
        self._comm, self._timing = comm, timing
        found = [
            layer
            for _, layer in root.walk()
            if isinstance(layer, BatchNormalization)
            and layer.synchronized
            and layer.trainable
        ]
        if found and algorithm == "exact":
            raise ArgumentError(
                "expected no synchronized layer with the algorithm exact, which "
                "computes each shard of a batch by itself",
                f"layer {found[0].path}",
                "leave out synchronized: the statistics of a shard don't depend on the "
                "ranks",
            )
        self.layers = found if comm.size > 1 else []

    @contextmanager
    def within(
        self, mine: slice, total: int, micro_batch: int | None
    ) -> Iterator[None]:
        """Within it this rank computes its rows ``mine`` of a global batch of
        ``total``; at the end it joins in what the others have more."""
        for layer in self.layers:
            layer.ranks.comm = self
        try:
            yield
            if self.layers:
                most = share(total, 0, self._comm.size)  # rank 0's is the largest
                rounds = [
                    len(list(micro_batches(rows, micro_batch))) for rows in (mine, most)
                ]
                for _ in range(*rounds):
                    self._join()
        finally:
            for layer in self.layers:
                layer.ranks.comm = None

    def allreduce(self, array: Array) -> None:
        """Add up what a layer has to add up."""
        with self._timing.within("sums", "sum of a layer"):
            self._comm.allreduce(array)

    def _join(self) -> None:
        for layer in self.layers:
            layer.join_forward()
        for layer in reversed(self.layers):
            layer.join_backward()
