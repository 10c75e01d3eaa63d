"""``GradientSync``: sums the gradients of all ranks, bucket by bucket."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

import numpy as np

from fastserve.comm.allreduce import CHUNK_BYTES, AllReduce
from fastserve.comm.base import Array, Communicator
from fastserve.comm.exact import ExactSum
from fastserve.comm.observe import BucketWatch, Tell
from fastserve.comm.sharded_sum import ShardedSum
from fastserve.errors import ArgumentError, CommError, StateError, UnknownNameError

ALGORITHMS = ("ring", "mpi", "exact")
CROSSOVER_BYTES = 1 << 16
# Seconds between two looks at the messages while backward computes: shorter after one
# that found something, longer after one in vain, so that it settles at about the time
# that a message takes.
_SHORTEST_PAUSE, _LONGEST_PAUSE = 1e-4, 2e-3


class Tied(Protocol):
    """A parameter: how many layers hold it, and whether it has a gradient."""

    @property
    def users(self) -> int: ...

    @property
    def trainable(self) -> bool: ...


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

    def move_grads(self, vector: Array) -> None: ...


class GradientSync:
    """Sums a store's gradients over all ranks.

    Buckets leave in the order of their index on every rank, never in the order in
    which they become ready: that one may differ between ranks, which would then wait
    for different buckets.

    With ``overlap``, a thread sends what is ready while backward goes on. It looks at
    the messages and sleeps in turns: waiting inside of MPI would take a core, and MPI
    moves nothing while nobody calls it. Otherwise all is sent in ``finish``.

    Every rank makes it at the same time, because the ranks compare their buckets first.
    After it is made, it allocates no arrays.

    Args:
        store: the gradients. They move into memory that the ranks of a host share.
        comm: the ranks.
        algorithm: 'ring', 'mpi' for the MPI library's own, or 'exact' for sums over
            shards whose bits don't depend on the number of ranks: see ``exact``.
        overlap: send during backward; None: where there are messages between hosts.
        wire: type of the numbers in messages between hosts: 'float32', 'float16' or
            'bfloat16'; sums are always taken in the gradients' own type.
        chunk: bytes of a message between hosts.
        sharded: each rank gets the sums of its own part alone (ZeRO stage 1), and
            ``gather`` exchanges what it makes of them. Needs the ring.

    Attributes:
        exact: takes the plan of each round, and the gradients of all shards but each
            rank's last, before ``begin``; None for other algorithms.
        own: the slices of this rank's part if ``sharded`` and there are several ranks,
            else None.
    """

    def __init__(
        self,
        store: Store,
        comm: Communicator,
        algorithm: str = "ring",
        overlap: bool | None = None,
        wire: str = "float32",
        chunk: int = CHUNK_BYTES,
        sharded: bool = False,
    ) -> None:
        if algorithm not in ALGORITHMS:
            raise UnknownNameError("comm algorithm", algorithm, ALGORITHMS)
        if sharded and algorithm != "ring":
            raise ArgumentError(
                "expected the algorithm ring for a sharded optimizer",
                algorithm,
                "leave out algorithm, or shard_optimizer",
            )
        self._comm, self._store = comm, store
        lengths = [bucket.stop - bucket.start for bucket in store.buckets]
        kind = f"{algorithm}, sharded" if sharded else algorithm
        layout = (kind, overlap, wire, chunk, str(store.grads.dtype), lengths)
        _check_same(comm, layout)
        self._ring: AllReduce | None = None
        worth_it = comm.size > 1 and store.grads.nbytes > CROSSOVER_BYTES
        self.own: list[slice] | None = None
        self.exact: ExactSum | None = None
        if algorithm == "exact":
            if wire != "float32":
                raise ArgumentError(
                    "expected the wire float32 for the algorithm exact",
                    wire,
                    "leave out wire, or take the algorithm ring",
                )
            self.exact = ExactSum(store.grads, store.buckets, comm, chunk)
            self._ring = self.exact
        elif sharded and comm.size > 1:
            self._ring = ShardedSum(store.grads, store.buckets, comm, wire, chunk)
            self.own = self._ring.own
        elif algorithm == "ring" and worth_it:
            self._ring = AllReduce(store.grads, store.buckets, comm, wire, chunk)
        if self._ring is not None and self._ring.vector is not store.grads:
            store.move_grads(self._ring.vector)
        self._bucket_of: dict[int, int] = {}
        self._users: list[int] = []  # reports that complete each bucket
        for index in range(len(store.buckets)):
            parameters = list(store.parameters_of_bucket(index))
            self._bucket_of.update((id(p), index) for p in parameters)
            self._users.append(sum(p.users for p in parameters))
        self._missing = list(self._users)
        self._ready = 0
        self._reported: dict[int, Part] = {}
        self._begun = False
        self._add: Array | None = None
        if self.exact is not None:
            between_hosts, several = len(comm.groups) > 1, comm.size > 1
        else:
            several = self._ring is not None
            between_hosts = self._ring is not None and self._ring.hosts > 1
        self.overlap = several and (between_hosts if overlap is None else overlap)
        self._sender = _Sender(self._ring) if self._ring and self.overlap else None
        self._tell: Tell | None = None

    @property
    def ready(self) -> int:
        """How many buckets, from the first on, have all of their gradients."""
        return self._ready

    def observe(self, tell: Tell | None) -> None:
        """Tell of each bucket's way, from the next round on; None: of nothing."""
        self._tell = tell
        if self._ring is not None:
            sizes = [b.stop - b.start for b in self._store.buckets]
            sizes = [n * self._store.grads.itemsize for n in sizes]
            ring, watch = self._ring, None
            if tell is not None:
                watch = BucketWatch(ring.ends, sizes, tell)
                watch.verb = "all-reduce" if self.own is None else "reduce-scatter"
            ring.observer = watch

    def begin(self, add: Array | None = None) -> None:
        """Start a backward pass: no gradient is known yet.

        ``add`` holds gradients that this rank has from before, of earlier micro-batches
        for example; they are part of the sum.
        """
        self._missing[:] = self._users
        self._reported.clear()
        self._ready = 0
        self._begun, self._add = True, add
        if self._ring is not None:
            self._ring.begin(add)

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
                    if parameter.trainable:
                        self._missing[self._bucket_of[id(parameter)]] -= 1
        before = self._ready
        while self._ready < len(self._missing) and not self._missing[self._ready]:
            self._ready += 1
        if self._sender is not None and self._ready > before:
            self._sender.release(self._ready)

    def finish(self) -> None:
        """Replace every gradient by its sum over all ranks; of ``own`` if sharded."""
        if not self._begun:
            raise self._too_early("finish")
        self._begun = False
        if self._ring is None:
            self._sum_natively()
        else:
            with self._comm.waiting("sum of gradients"):
                if self._sender is not None:
                    self._sender.finish(len(self._users))
                else:
                    self._ring.release(len(self._users))
                    self._ring.finish()

    def gather(self, values: Array) -> None:
        """Fill ``values``, of the gradients' layout, from each rank's own part of it.

        The gradients are lost. Nothing is to be done where they aren't sharded.
        """
        ring = self._ring
        if isinstance(ring, ShardedSum):
            with self._comm.waiting("exchange of weights"), _verb(ring, "all-gather"):
                ring.gather(values)

    def _sum_natively(self) -> None:
        if self._add is not None:
            np.add(self._store.grads, self._add, out=self._store.grads)
        if self._comm.size > 1:
            start = time.perf_counter()
            self._comm.allreduce(self._store.grads)
            if self._tell is not None:
                grads = self._store.grads
                end = time.perf_counter()
                self._tell("all-reduce", None, grads.nbytes, start, end)

    def _too_early(self, verb: str) -> StateError:
        return StateError(
            f"GradientSync: expected begin before {verb}",
            f"{verb} alone",
            "call begin, then done for each layer, then finish",
        )


@contextmanager
def _verb(ring: AllReduce, verb: str) -> Iterator[None]:
    """Let whoever observes the sum know what is done to its buckets meanwhile."""
    watch = ring.observer
    if watch is None:
        yield
        return
    usual, watch.verb = watch.verb, verb
    yield
    watch.verb = usual


class _Sender:
    """A thread that polls an AllReduce while another one computes.

    ``_busy`` is set from the first release of a round until its sums are complete, or
    failed; it is only changed under the lock, as a round may begin at any moment after
    the last message of the one before.
    """

    def __init__(self, ring: AllReduce) -> None:
        self._ring = ring
        self._state = threading.Condition()
        self._busy = False
        self._hurry = False  # nobody computes any more
        self._fault: BaseException | None = None
        self._thread: threading.Thread | None = None

    def release(self, buckets: int) -> None:
        self._ring.release(buckets)
        with self._state:
            if not self._busy:
                self._busy, self._hurry = True, False
                self._state.notify_all()
        if self._thread is None:
            # a daemon, because a failed rank must end whatever this thread does
            self._thread = threading.Thread(
                target=self._run, name="gradient-sync", daemon=True
            )
            self._thread.start()

    def finish(self, buckets: int) -> None:
        """Let all buckets go, and wait until they hold their sums."""
        self.release(buckets)
        self._hurry = True
        with self._state:
            self._state.wait_for(lambda: not self._busy)
        if self._fault is not None:
            raise self._fault

    def _run(self) -> None:
        while True:
            with self._state:
                self._state.wait_for(lambda: self._busy)
            try:
                self._send()
            except BaseException as error:  # noqa: BLE001  raised again in finish
                self._fault = error
            with self._state:
                self._busy = False
                self._state.notify_all()

    def _send(self) -> None:
        pause = _SHORTEST_PAUSE
        while not self._ring.complete:
            if self._hurry:
                self._ring.finish()
                return
            factor = 0.5 if self._ring.poll() else 1.5
            pause = min(max(pause * factor, _SHORTEST_PAUSE), _LONGEST_PAUSE)
            time.sleep(pause)


def _check_same(comm: Communicator, layout: tuple[object, ...]) -> None:
    """Raise CommError on every rank if not all of them have the same buckets.

    MPI wouldn't always say so: Open MPI may write behind an array that is too short.
    """
    layouts = comm.broadcast_obj(comm.gather_obj(layout))
    for rank, other in enumerate(layouts):
        if other != layouts[0]:
            raise CommError(
                "expected the same gradients on every rank (algorithm, overlap, wire, "
                f"chunk, type, length of each bucket): rank 0 has {layouts[0]}",
                f"rank {rank} has {other}",
                "build the same model from the same configuration on every rank",
            )
