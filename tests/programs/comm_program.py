"""A rank of the MPI tests: checks communicators, or ends in one of several ways.

Usage: comm_program.py MODE
"""

from __future__ import annotations

import hashlib
import os
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

import fastserve as fs
import fastserve.comm.mpi as mpi_module
from fastserve.comm import GradientSync, make_scratch, ring_allreduce, world
from fastserve.comm.mpi import MpiCommunicator
from fastserve.errors import ArgumentError, CommError, ShapeError

LENGTHS = (0, 1, 2, 3, 5, 64, 1000, 300_001)
TYPES = ("int32", "int64", "float32", "float64")


class Watched:
    """An MPI communicator that notes the bytes of each message, and never pickles."""

    def __init__(self, comm: Any) -> None:
        self.comm, self.largest = comm, 0

    def __getattr__(self, name: str) -> Any:
        verb = getattr(self.comm, name)
        assert name[0].isupper(), f"{name} pickles"

        def call(*args: Any) -> Any:
            sizes = [a.nbytes for a in args if isinstance(a, np.ndarray)]
            self.largest = max(self.largest, *sizes)
            return verb(*args)

        return call


class Weight:
    """A parameter and the layer that holds it."""

    users = 1
    trainable = True

    def own_parameters(self) -> list[Weight]:
        return [self]

    def walk(self) -> Iterator[tuple[str, Weight]]:
        yield "", self


class Store:
    """Three buckets, one of them below the crossover."""

    def __init__(self, dtype: str) -> None:
        self.layers = [Weight(), Weight(), Weight()]
        self.grads = np.zeros(1_900_000, dtype)
        self.buckets = [slice(0, 900_001), slice(900_001, 1_800_000)]
        self.buckets.append(slice(1_800_000, 1_900_000))

    def parameters_of_bucket(self, index: int) -> list[Weight]:
        return [self.layers[index]]

    def move_grads(self, vector: Any) -> None:
        vector[...] = self.grads
        self.grads = vector


def part_of(rank: int, length: int, dtype: str) -> Any:
    rng = np.random.default_rng([rank, length])
    return (rng.standard_normal(length) * 1000).astype(dtype)


def check_same_sum(comm: fs.comm.Communicator, array: Any, dtype: str) -> None:
    """Check that all ranks hold the same bits, and that these are the sum."""
    digest = hashlib.sha256(array.tobytes()).hexdigest()
    digests = comm.gather_obj(digest)
    assert digests is None or digests == [digest] * comm.size
    parts = [part_of(rank, array.size, dtype) for rank in range(comm.size)]
    wanted = np.sum(parts, axis=0, dtype=dtype)
    if np.dtype(dtype).kind == "i":
        assert (array == wanted).all()
    else:
        np.testing.assert_allclose(array, wanted, rtol=1e-5, atol=2e-3)


def check_sums(comm: fs.comm.Communicator) -> None:
    for dtype in TYPES:
        for length in LENGTHS:
            array = part_of(comm.rank, length, dtype)
            comm.allreduce(array)
            check_same_sum(comm, array, dtype)
            for piece in (7, 4096) if length <= 1000 else (4096, 1 << 20):
                array = part_of(comm.rank, length, dtype)
                scratch = make_scratch(array, comm.size, piece * 8)
                ring_allreduce(array, comm, scratch, crossover=0)
                check_same_sum(comm, array, dtype)


def check_verbs(comm: fs.comm.Communicator) -> None:
    n, me = comm.size, comm.rank
    left, right = (me - 1) % n, (me + 1) % n
    assert (comm.local_rank, comm.local_size) == (me, n)
    for length in (0, 1, 100, 1_000_000):
        array = np.full((length, 2), me, np.float16)
        comm.broadcast(array, root=n - 1)
        assert (array == n - 1).all()
        received = np.empty(length, np.uint16)
        comm.sendrecv(np.full(length, me, np.uint16), right, received, left)
        assert (received == left).all()
    gathered = comm.gather_obj({"rank": me}, root=n - 1)
    assert gathered == ([{"rank": r} for r in range(n)] if me == n - 1 else None)
    assert comm.broadcast_obj(("of", me), root=n - 1) == ("of", n - 1)
    comm.barrier()


def check_small_messages() -> None:
    """With a small limit the same sums come in many messages, and none is larger."""
    comm = MpiCommunicator(limit=64)
    comm._comm = watched = Watched(comm._comm)  # type: ignore[assignment]
    pickle, mpi_module.pickle = mpi_module.pickle, None  # type: ignore[assignment]
    sums = {}
    for dtype in TYPES:
        for length in (1, 63, 300):
            sums[dtype, length] = part_of(comm.rank, length, dtype)
            comm.allreduce(sums[dtype, length])
            ring = part_of(comm.rank, length, dtype)
            ring_allreduce(ring, comm, np.empty(length, dtype), crossover=0)
            np.testing.assert_allclose(ring, sums[dtype, length], 1e-5, 2e-3)
            comm.broadcast(ring, root=comm.size - 1)
    assert watched.largest == 64
    mpi_module.pickle, comm._comm = pickle, watched.comm
    for (dtype, _), array in sums.items():
        check_same_sum(world(), array, dtype)
    try:
        comm.gather_obj("x" * 65)
    except ArgumentError as error:
        assert "at most 64 bytes" in str(error)
    else:
        raise AssertionError("an object above the limit was sent")
    comm.close()
    comm.close()


def check_errors(comm: fs.comm.Communicator) -> None:
    for call in (
        lambda: comm.allreduce(np.zeros((4, 4))[:, 1]),
        lambda: comm.allreduce(np.zeros(4, np.float16)),
        lambda: comm.broadcast(np.array([None])),
        lambda: comm.sendrecv(np.zeros(1), comm.size, np.zeros(1), 0),
        lambda: comm.gather_obj(np.zeros(2)),
    ):
        try:
            call()
        except (ShapeError, ArgumentError) as error:
            assert error.expected and error.received and error.todo
        else:
            raise AssertionError("a bad argument was accepted")


def check_lengths(comm: fs.comm.Communicator) -> None:
    """Longer or shorter than what arrives: an error, and the next message is whole.

    Long messages that are cut off are left out: there Open MPI writes behind the array
    before it reports the error.
    """
    left, right = (comm.rank - 1) % comm.size, (comm.rank + 1) % comm.size
    for sent, length in ((10, 9), (10, 11), (300_000, 300_001)):
        try:
            comm.sendrecv(np.zeros(sent), right, np.zeros(length), left)
        except CommError as error:
            assert "same length" in error.todo
        else:
            raise AssertionError("a message of another length was accepted")
        comm.barrier()
        received = np.zeros(3)
        comm.sendrecv(np.full(3, comm.rank), right, received.view(np.int64), left)
        assert (received.view(np.int64) == left).all()


def check_sync(comm: fs.comm.Communicator) -> None:
    for algorithm, dtype, overlap in (
        ("ring", "float32", None),
        ("ring", "float64", False),
        ("ring", "float32", True),
        ("mpi", "float32", None),
    ):
        store = Store(dtype)
        sync = GradientSync(store, comm, algorithm, overlap)
        for step in range(3):
            store.grads[:] = part_of(comm.rank, store.grads.size, dtype)
            if step == 2:
                tracemalloc.start()
            sync.begin()
            for layer in store.layers:
                sync.done(layer)
            assert sync.ready == 3
            sync.finish()
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 16 << 10, f"{peak} bytes were allocated in a step"
        check_same_sum(comm, store.grads, dtype)
    try:
        GradientSync(Store("float32"), comm, chunk=64 + comm.rank)
    except CommError as error:
        assert comm.size > 1 and "rank 1" in error.received
    else:
        assert comm.size == 1


def check_all() -> None:
    comm = fs.init()
    assert comm is world() and isinstance(comm, MpiCommunicator)
    check_verbs(comm)
    check_sums(comm)
    check_small_messages()
    check_errors(comm)
    check_lengths(comm)
    check_sync(comm)
    comm.barrier()
    if comm.rank == 0:
        print(f"all checks passed on {comm.size} ranks", flush=True)


def wait_in(verb: str, comm: fs.comm.Communicator) -> None:
    """Wait for the last rank, which does not come."""
    if verb == "ring":
        array = np.ones(2_000_000, np.float32)
        ring_allreduce(array, comm, make_scratch(array, comm.size))
    elif verb == "allreduce":
        comm.allreduce(np.ones(100))
    elif verb == "gather_obj":
        comm.gather_obj(1, root=0)
        comm.barrier()  # only the root waits in a gather
    else:
        comm.barrier()
    print("the wait has ended", flush=True)


def leave(how: str) -> None:
    if how == "raise":
        raise KeyError("the cause")
    if how == "exit0":
        sys.exit(0)
    if how == "exit3":
        sys.exit(3)
    if how == "systemexit":
        raise SystemExit("a message")


def one_leaves(how: str, verb: str) -> None:
    comm = fs.init()
    comm.barrier()
    if comm.rank == comm.size - 1:
        time.sleep(0.2)
        note()
        leave(how)  # or by the end of the script
    else:
        wait_in(verb, comm)


def one_is_early() -> None:
    """The last rank ends in good order, long before the others."""
    comm = fs.init()
    comm.barrier()
    if comm.rank < comm.size - 1:
        time.sleep(2.5)
        print("done later", flush=True)


def one_is_late() -> None:
    """The others wait for the last rank, which comes."""
    comm = fs.init()
    if comm.rank == comm.size - 1:
        time.sleep(2.5)
    comm.barrier()
    wait_in("ring", comm)


def note() -> None:
    """Let the time of the file that BEGAN names be now."""
    if place := os.environ.get("BEGAN"):
        Path(place).touch()


def main() -> None:
    mode, *rest = sys.argv[1:]
    note()
    modes: dict[str, Callable[..., Any]] = {
        "all": check_all,
        "leaves": one_leaves,
        "early": one_is_early,
        "late": one_is_late,
        "init": fs.init,
        "all-raise": lambda: 1 // (fs.init().size * 0),
    }
    modes[mode](*rest)


if __name__ == "__main__":
    main()
