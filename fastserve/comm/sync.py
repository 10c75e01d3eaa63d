"""``GradientSync``: sums the gradients of all ranks, bucket by bucket."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from fastserve.comm.base import Array, Communicator
from fastserve.comm.ring import PIECE_BYTES, make_scratch, ring_allreduce
from fastserve.errors import ArgumentError, CommError, StateError, UnknownNameError

ALGORITHMS = ("ring", "mpi")


class Tied(Protocol):
    """A parameter: how many layers hold it."""

    @property
    def users(self) -> int: ...


class Part(Protocol):
    """A layer, or a tree of them."""

    def own_parameters(self) -> Iterable[Tied]: ...

    def walk(self) -> Iterable[tuple[str, Part]]: ...


class Store(Protocol):
    """A flat vector of gradients, and its slices in the order of backward."""

    @property
    def grads(self) -> Array: ...

    @property
    def buckets(self) -> Sequence[slice]: ...

    def parameters_of_bucket(self, index: int) -> Iterable[Tied]: ...


class GradientSync:
    """Sums a store's gradients over all ranks.

    Buckets leave in the order of their index on every rank, never in the order in
    which they become ready: that one may differ between ranks, which would then wait
    for different buckets. All of them leave in ``finish``; ``ready`` says how many
    could have left before.

    Every rank makes it at the same time, because the ranks compare their buckets first.
    After it is made, it allocates no arrays.

    Args:
        store: the gradients; its vectors and buckets stay the same objects.
        comm: the ranks.
        algorithm: 'ring', or 'mpi' for the MPI library's own.
        segment: bytes of the pieces in which the ring adds.
    """

    def __init__(
        self,
        store: Store,
        comm: Communicator,
        algorithm: str = "ring",
        segment: int = PIECE_BYTES,
    ) -> None:
        if algorithm not in ALGORITHMS:
            raise UnknownNameError("comm algorithm", algorithm, ALGORITHMS)
        if segment < 8:
            raise ArgumentError("expected a segment of 8 bytes or more", str(segment))
        self._comm, self._algorithm = comm, algorithm
        self._buckets = [store.grads[bucket] for bucket in store.buckets]
        largest = max(self._buckets, key=len, default=store.grads)
        self._scratch = make_scratch(largest, comm.size, segment)
        self._bucket_of: dict[int, int] = {}
        self._users: list[int] = []  # reports that complete each bucket
        for index in range(len(self._buckets)):
            parameters = list(store.parameters_of_bucket(index))
            self._bucket_of.update((id(p), index) for p in parameters)
            self._users.append(sum(p.users for p in parameters))
        lengths = [bucket.size for bucket in self._buckets]
        layout = (algorithm, segment, str(store.grads.dtype), lengths)
        _check_same(comm, layout)
        self._store = store  # keeps the parameters, and so their ids, alive
        self._missing = list(self._users)
        self._reported: dict[int, Part] = {}
        self._begun = False

    @property
    def ready(self) -> int:
        """How many buckets, from the first on, have all of their gradients."""
        for index, missing in enumerate(self._missing):
            if missing:
                return index
        return len(self._missing)

    def begin(self) -> None:
        """Start a backward pass: no gradient is known yet."""
        self._missing[:] = self._users
        self._reported.clear()
        self._begun = True

    def done(self, layer: Part) -> None:
        """Note that ``layer``, and all inside of it, has put its gradients.

        A layer may be reported again as a part of a larger one. A tied parameter is
        complete when every layer that holds it was reported.
        """
        if not self._begun:
            raise self._too_early("done")
        for _, part in layer.walk():
            if id(part) not in self._reported:
                self._reported[id(part)] = part
                for parameter in part.own_parameters():
                    self._missing[self._bucket_of[id(parameter)]] -= 1

    def finish(self) -> None:
        """Replace every gradient by its sum over all ranks."""
        if not self._begun:
            raise self._too_early("finish")
        self._begun = False
        for bucket in self._buckets:
            if self._algorithm == "ring":
                ring_allreduce(bucket, self._comm, self._scratch)
            else:
                self._comm.allreduce(bucket)

    def _too_early(self, verb: str) -> StateError:
        return StateError(
            f"GradientSync: expected begin before {verb}",
            f"{verb} alone",
            "call begin, then done for each layer, then finish",
        )


def _check_same(comm: Communicator, layout: tuple[object, ...]) -> None:
    """Raise CommError on every rank if not all of them have the same buckets.

    MPI wouldn't always say so: Open MPI may write behind an array that is too short.
    """
    layouts = comm.broadcast_obj(comm.gather_obj(layout))
    for rank, other in enumerate(layouts):
        if other != layouts[0]:
            raise CommError(
                "expected the same gradients on every rank (algorithm, segment, type, "
                f"length of each bucket): rank 0 has {layouts[0]}",
                f"rank {rank} has {other}",
                "build the same model from the same configuration on every rank",
            )
