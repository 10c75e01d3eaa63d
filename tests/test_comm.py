"""Communicators without MPI, the ring, and gradient sync."""

from __future__ import annotations

import importlib
import random
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from types import FrameType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastserve import environment
from fastserve.comm import (
    Communicator,
    GradientSync,
    SingleCommunicator,
    make_scratch,
    ring_allreduce,
    run_threads,
    world,
)
from fastserve.comm import departures as departures_module
from fastserve.comm import sync as sync_module
from fastserve.comm.allreduce import AllReduce
from fastserve.comm.departures import Departures
from fastserve.comm.wire import BFloat16, Float16, make_wire
from fastserve.environment import Ranks
from fastserve.errors import (
    ArgumentError,
    CommError,
    FastserveError,
    ShapeError,
    StateError,
    UnknownNameError,
)

world_module = importlib.import_module("fastserve.comm.world")

KINDS: dict[str, Callable[[Callable[[Communicator], Any]], list[Any]]] = {
    "single": lambda function: [function(SingleCommunicator())],
    "threads": lambda function: run_threads(3, function),
}


# -- the verbs -----------------------------------------------------------------


@pytest.fixture(params=KINDS)
def everywhere(request: pytest.FixtureRequest) -> Any:
    """A function that calls another one with each kind of communicator."""
    return KINDS[request.param]


def test_verbs(everywhere: Any) -> None:
    def program(comm: Communicator) -> None:
        n, me = comm.size, comm.rank
        assert (comm.local_rank, comm.local_size) == (me, n)
        total = np.full((2, 3), me + 1, np.float64)
        comm.allreduce(total)
        assert (total == n * (n + 1) / 2).all()
        text = np.array([[me, 7]], np.float16)
        comm.broadcast(text, root=n - 1)
        assert text.tolist() == [[n - 1, 7]]
        received = np.empty(4, np.int64)
        comm.sendrecv(np.full(4, me), (me + 1) % n, received, (me - 1) % n)
        assert (received == (me - 1) % n).all()
        gathered = comm.gather_obj({"rank": me}, root=n - 1)
        assert gathered == ([{"rank": r} for r in range(n)] if me == n - 1 else None)
        assert comm.broadcast_obj([me], root=n - 1) == [n - 1]
        comm.barrier()

    everywhere(program)


READ_ONLY = np.zeros(4)
READ_ONLY.flags.writeable = False
GOOD = np.zeros(4)
BAD_CALLS: dict[str, tuple[type[FastserveError], Callable[[Communicator], Any]]] = {
    "list": (ShapeError, lambda c: c.allreduce([1.0])),  # type: ignore[arg-type]
    "strided": (ShapeError, lambda c: c.allreduce(np.zeros((4, 4))[:, 1])),
    "columns first": (ShapeError, lambda c: c.broadcast(np.zeros((4, 4)).T[:3])),
    "read-only": (ShapeError, lambda c: c.allreduce(READ_ONLY)),
    "read-only recv": (ShapeError, lambda c: c.sendrecv(GOOD, 0, READ_ONLY, 0)),
    "strided send": (ShapeError, lambda c: c.sendrecv(GOOD[::2], 0, GOOD, 0)),
    "half": (ShapeError, lambda c: c.allreduce(np.zeros(3, np.float16))),
    "bool": (ShapeError, lambda c: c.allreduce(np.zeros(3, np.bool_))),
    "complex": (ShapeError, lambda c: c.allreduce(np.zeros(3, np.complex64))),
    "swapped bytes": (ShapeError, lambda c: c.allreduce(np.zeros(3, ">f4"))),
    "objects": (ShapeError, lambda c: c.broadcast(np.array([None, {}]))),
    "root": (ArgumentError, lambda c: c.broadcast(np.zeros(3), root=c.size)),
    "negative": (ArgumentError, lambda c: c.gather_obj(1, root=-1)),
    "dest": (ArgumentError, lambda c: c.sendrecv(GOOD, c.size, np.zeros(4), 0)),
    "pickled array": (ArgumentError, lambda c: c.gather_obj(np.zeros(3))),
    "pickled root": (ArgumentError, lambda c: c.broadcast_obj(np.zeros(3))),
}


@pytest.mark.parametrize("name", BAD_CALLS)
def test_bad_arguments(everywhere: Any, name: str) -> None:
    error, call = BAD_CALLS[name]
    with pytest.raises(error) as caught:
        everywhere(call)
    assert caught.value.expected
    assert caught.value.received
    assert caught.value.todo


def test_lengths_must_agree(everywhere: Any) -> None:
    def program(comm: Communicator) -> None:
        left, right = (comm.rank - 1) % comm.size, (comm.rank + 1) % comm.size
        comm.sendrecv(np.zeros(3), right, np.zeros(4), left)

    with pytest.raises(CommError, match="expected 32 bytes"):
        everywhere(program)


def test_abort_of_a_single_process_is_its_exit_status() -> None:
    with pytest.raises(SystemExit) as caught:
        SingleCommunicator().abort(7)
    assert caught.value.code == 7


# -- threads -------------------------------------------------------------------


def test_threads_return_by_rank_and_see_their_world() -> None:
    def program(comm: Communicator) -> int:
        assert world() is comm
        return comm.rank * 10

    before = world()
    assert run_threads(4, program) == [0, 10, 20, 30]
    assert world() is before
    with pytest.raises(ArgumentError):
        run_threads(0, program)


WAITS: dict[str, Callable[[Communicator], Any]] = {
    "barrier": lambda c: c.barrier(),
    "allreduce": lambda c: c.allreduce(np.zeros(3)),
    "gather_obj": lambda c: c.gather_obj(0),
    "sendrecv": lambda c: c.sendrecv(np.zeros(1), 1, np.zeros(1), 1),
}


@pytest.mark.parametrize("verb", WAITS)
def test_an_exception_ends_the_other_threads(verb: str) -> None:
    ended: list[str] = []

    def program(comm: Communicator) -> None:
        if comm.rank == 1:
            raise KeyError("mine")
        with pytest.raises(CommError, match="rank 1 failed with KeyError"):
            WAITS[verb](comm)
        ended.append(verb)

    start = time.monotonic()
    with pytest.raises(KeyError, match="mine"):
        run_threads(3, program)
    assert ended == [verb] * 2
    assert time.monotonic() - start < 5


@pytest.mark.parametrize("verb", WAITS)
def test_a_thread_that_ends_early_is_missed(verb: str) -> None:
    def program(comm: Communicator) -> None:
        if comm.rank != 1:
            WAITS[verb](comm)

    with pytest.raises(CommError, match="rank 1 has ended"):
        run_threads(2, program)


def test_abort_of_a_thread() -> None:
    def program(comm: Communicator) -> None:
        if comm.rank == 0:
            comm.abort(3)
        comm.barrier()

    with pytest.raises(CommError, match="rank 0 aborted the job with status 3"):
        run_threads(2, program)


def test_threads_must_call_the_same() -> None:
    def program(comm: Communicator) -> None:
        comm.barrier() if comm.rank else comm.gather_obj(1)

    with pytest.raises(CommError, match="rank 0: gather_obj, rank 1: barrier"):
        run_threads(2, program)


def test_no_threads_are_left() -> None:
    before = threading.active_count()
    run_threads(4, lambda comm: comm.barrier())
    assert threading.active_count() == before


# -- the ring ------------------------------------------------------------------


@settings(deadline=None, max_examples=150)
@given(
    ranks=st.integers(1, 6),
    length=st.integers(0, 60),
    piece=st.integers(1, 9),
    dtype=st.sampled_from([np.float32, np.float64, np.int32, np.int64]),
    seed=st.integers(0, 99),
    crossover=st.sampled_from([0, 100, 1 << 20]),
)
def test_ring_sums_to_the_same_bits(
    ranks: int, length: int, piece: int, dtype: Any, seed: int, crossover: int
) -> None:
    rng = np.random.default_rng(seed)
    given_arrays = (rng.standard_normal((ranks, length)) * 1000).astype(dtype)

    def program(comm: Communicator) -> Any:
        array = given_arrays[comm.rank].copy()
        ring_allreduce(array, comm, np.empty(piece, dtype), crossover)
        return array

    results = run_threads(ranks, program)
    for other in results[1:]:
        assert other.tobytes() == results[0].tobytes()
    wanted = given_arrays.astype(np.float64).sum(axis=0)
    np.testing.assert_allclose(results[0], wanted, rtol=1e-5, atol=2e-3)
    if np.issubdtype(dtype, np.integer):
        assert (results[0] == given_arrays.sum(axis=0)).all()


class Recorder(SingleCommunicator):
    """Passes everything on and notes what was called with how many bytes."""

    def __init__(self, comm: Communicator) -> None:
        super().__init__()
        self.comm, self.rank, self.size = comm, comm.rank, comm.size
        self.calls: list[tuple[str, int]] = []

    def allreduce(self, array: Any) -> None:
        self.calls.append(("allreduce", array.nbytes))
        self.comm.allreduce(array)

    def sendrecv(self, send: Any, dest: int, recv: Any, source: int) -> None:
        self.calls.append(("sendrecv", send.nbytes))
        self.comm.sendrecv(send, dest, recv, source)


@pytest.mark.parametrize("ranks", [2, 3, 5])
def test_ring_sends_the_least(ranks: int) -> None:
    """2(n-1)/n of the array leave each rank, partial sums in pieces of the scratch."""

    def program(comm: Communicator) -> None:
        recorder = Recorder(comm)
        array = np.ones(ranks * 10, np.float32)
        ring_allreduce(array, recorder, np.empty(4, np.float32), crossover=0)
        assert (array == ranks).all()
        sent = [nbytes for _, nbytes in recorder.calls]
        assert sent == [16, 16, 8] * (ranks - 1) + [40] * (ranks - 1)

    run_threads(ranks, program)


def test_ring_leaves_short_arrays_to_the_native_collective() -> None:
    def program(comm: Communicator) -> list[tuple[str, int]]:
        recorder = Recorder(comm)
        for length in (8, 9):
            array = np.ones(length)
            ring_allreduce(array, recorder, make_scratch(array, 2), crossover=64)
        return recorder.calls

    calls = run_threads(2, program)[0]
    assert calls[0] == ("allreduce", 64)
    assert [name for name, _ in calls[1:]] == ["sendrecv"] * 2


def test_ring_checks_its_arrays() -> None:
    comm = SingleCommunicator()
    with pytest.raises(ShapeError, match="contiguous"):
        ring_allreduce(np.zeros(8)[::2], comm, np.zeros(1))
    for scratch in (np.zeros(3, np.float32), np.zeros(0), np.zeros((2, 2))):
        with pytest.raises(ShapeError, match="scratch"):
            ring_allreduce(np.zeros(8), comm, scratch)


def test_scratch_is_a_chunk_but_at_most_a_piece() -> None:
    assert make_scratch(np.zeros(100, np.float32), 3, 1000).size == 34
    assert make_scratch(np.zeros(100, np.float32), 3, 64).size == 16
    assert make_scratch(np.zeros(0), 3).size == 1


# -- gradient sync -------------------------------------------------------------


class Weight:
    """A parameter of some layers."""

    def __init__(self, users: int = 1) -> None:
        self.users, self.trainable = users, True


class FakeLayer:
    """Some parameters, and layers inside."""

    def __init__(self, *own: Weight, inside: tuple[FakeLayer, ...] = ()) -> None:
        self.own, self.inside = own, inside

    def own_parameters(self) -> tuple[Weight, ...]:
        return self.own

    def walk(self) -> Iterator[tuple[str, FakeLayer]]:
        yield "", self
        for layer in self.inside:
            yield from layer.walk()


class FakeStore:
    """One bucket of ``length`` numbers for each list of parameters."""

    def __init__(self, *groups: list[Weight], length: int = 10) -> None:
        self.groups = groups
        self.grads = np.zeros(len(groups) * length, np.float32)
        self.buckets = [slice(i * length, (i + 1) * length) for i in range(len(groups))]

    def parameters_of_bucket(self, index: int) -> list[Weight]:
        return self.groups[index]

    def move_grads(self, vector: Any) -> None:
        vector[...] = self.grads
        self.grads = vector


def test_ready_counts_buckets_from_the_first() -> None:
    a, b, c = Weight(), Weight(), Weight()
    last, middle, first = FakeLayer(a, b), FakeLayer(c), FakeLayer()
    sync = GradientSync(FakeStore([a], [b, c]), SingleCommunicator())
    sync.begin()
    assert sync.ready == 0
    sync.done(middle)  # bucket 1 has half, bucket 0 nothing
    assert sync.ready == 0
    sync.done(first)
    sync.done(last)
    assert sync.ready == 2
    sync.finish()
    sync.begin()
    assert sync.ready == 0
    sync.done(last)
    assert sync.ready == 1


def test_a_bucket_waits_for_those_before_it() -> None:
    a, b, c = Weight(), Weight(), Weight()
    sync = GradientSync(FakeStore([a], [b], [c]), SingleCommunicator())
    sync.begin()
    for weight, ready in ((c, 0), (a, 1), (b, 3)):
        sync.done(FakeLayer(weight))
        assert sync.ready == ready


def test_a_tied_parameter_waits_for_all_who_hold_it() -> None:
    table, bias = Weight(users=2), Weight()
    head, embedding = FakeLayer(table, bias), FakeLayer(table)
    model = FakeLayer(inside=(embedding, FakeLayer(inside=(head,))))
    sync = GradientSync(FakeStore([table, bias]), SingleCommunicator())
    sync.begin()
    sync.done(head)
    sync.done(model.inside[1])  # the same head again, as a part of something larger
    assert sync.ready == 0
    sync.done(embedding)
    assert sync.ready == 1
    sync.done(model)
    assert sync.ready == 1


def test_a_composite_reports_all_inside() -> None:
    a, b = Weight(), Weight(users=2)
    model = FakeLayer(a, inside=(FakeLayer(b), FakeLayer(inside=(FakeLayer(b),))))
    sync = GradientSync(FakeStore([a], [b]), SingleCommunicator())
    sync.begin()
    sync.done(model)
    assert sync.ready == 2


@pytest.mark.parametrize("algorithm", ["ring", "mpi"])
def test_small_gradients_are_summed_natively(algorithm: str) -> None:
    def program(comm: Communicator) -> None:
        recorder = Recorder(comm)
        store = FakeStore([Weight()], [Weight()], [Weight()])
        sync = GradientSync(store, recorder, algorithm)
        for step in range(3):
            store.grads[:] = comm.rank + step
            sync.begin(add=np.full(30, 0.5, np.float32))
            sync.finish()
            assert (store.grads == 2 + 2 * step).all()
        assert recorder.calls == [("allreduce", 120)] * 3

    run_threads(2, program)


ORDERS = ([0, 1, 2], [2, 1, 0], [1, 2, 0])


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("per_host", [[3], [1, 1, 1], [2, 1], [1, 2, 2]])
def test_sync_in_any_order_of_layers(per_host: list[int], overlap: bool) -> None:
    """Each rank's layers end in an order of their own; buckets leave in theirs."""

    def program(comm: Communicator) -> list[Any]:
        layers = [FakeLayer(Weight()) for _ in range(3)]
        store = FakeStore(*(layer.own for layer in layers), length=20_000)
        sync = GradientSync(store, comm, overlap=overlap, chunk=4096)
        assert sync.overlap == overlap
        results = []
        for step in range(4):
            store.grads[:] = np.random.default_rng(step * 9 + comm.rank).random(60_000)
            whole = store.grads.copy()
            extra = np.full(60_000, 2.0, np.float32) if step == 2 else None
            sync.begin(extra)
            for index in ORDERS[(comm.rank + step) % 3]:
                # a bucket that isn't reported yet must not have left
                part = store.grads[store.buckets[index]]
                assert (part == whole[store.buckets[index]]).all()
                sync.done(layers[index])
            sync.finish()
            results.append(store.grads.copy())
        return results

    size = sum(per_host)
    results = run_threads(size, program, per_host)
    for step in range(4):
        parts = [
            np.random.default_rng(step * 9 + rank).random(60_000)
            for rank in range(size)
        ]
        expected = np.sum(parts, axis=0) + (2.0 * size if step == 2 else 0.0)
        for rank in range(size):
            np.testing.assert_array_equal(results[rank][step], results[0][step])
        np.testing.assert_allclose(results[0][step], expected, rtol=1e-5)


def test_overlap_is_for_several_hosts_unless_told() -> None:
    def program(comm: Communicator) -> tuple[bool, bool]:
        store = FakeStore([Weight()], length=20_000)
        small = FakeStore([Weight()])
        return GradientSync(store, comm).overlap, GradientSync(small, comm).overlap

    assert run_threads(2, program) == [(False, False)] * 2
    assert run_threads(2, program, [1, 1]) == [(True, False)] * 2


def test_an_error_in_the_sending_thread_is_raised_in_finish() -> None:
    def program(comm: Communicator) -> None:
        layer = FakeLayer(Weight())
        store = FakeStore(list(layer.own), length=20_000)
        sync = GradientSync(store, comm, overlap=True)
        if comm.rank == 0:
            raise KeyError("the cause")
        sync.begin()
        sync.done(layer)
        with pytest.raises(CommError, match="rank 0"):
            sync.finish()

    with pytest.raises(KeyError, match="the cause"):
        run_threads(2, program, [1, 1])


def test_sync_refuses_ranks_with_other_buckets() -> None:
    def program(comm: Communicator) -> None:
        store = FakeStore([Weight()], length=10 + comm.rank // 2)
        with pytest.raises(CommError, match=r"rank 2 has .*11"):
            GradientSync(store, comm)

    run_threads(3, program)


class Loopback(SingleCommunicator):
    """Looks like two ranks, and costs no memory, as MPI does."""

    def __init__(self) -> None:
        super().__init__()
        self.size, self.groups = 2, [[0], [1]]

    def start(
        self, send: Any, dest: int, recv: Any, source: int, tag: int
    ) -> LoopedBack:
        recv[...] = send
        return LOOPED_BACK


class LoopedBack:
    def done(self) -> bool:
        return True


LOOPED_BACK = LoopedBack()


def test_sync_allocates_nothing_after_it_is_made() -> None:
    layer = FakeLayer(Weight())
    store = FakeStore(list(layer.own), length=1 << 20)
    sync = GradientSync(store, Loopback())

    def step() -> None:
        sync.begin()
        sync.done(layer)
        sync.finish()

    step()
    tracemalloc.start()
    try:
        step()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 16 << 10


def test_sync_checks_its_use() -> None:
    comm = SingleCommunicator()
    store = FakeStore([Weight()])
    with pytest.raises(UnknownNameError, match="did you mean 'ring'"):
        GradientSync(store, comm, "rings")
    with pytest.raises(UnknownNameError, match="did you mean 'bfloat16'"):
        make_wire("bfloat")
    sync = GradientSync(store, comm)
    with pytest.raises(StateError, match="begin before done"):
        sync.done(FakeLayer())
    with pytest.raises(StateError, match="begin before finish"):
        sync.finish()


def test_sync_of_a_model_without_parameters() -> None:
    store = FakeStore()
    sync = GradientSync(store, SingleCommunicator())
    sync.begin()
    assert sync.ready == 0
    sync.finish()
    assert store.grads.size == 0


# -- AllReduce and 16-bit floats ---------------------------------------------------


def reduce_by_threads(
    per_host: list[int], length: int, wire: str, chunk: int, shared: bool
) -> tuple[list[Any], Any]:
    """Return each rank's sum, and the sum in float64."""
    size = sum(per_host)
    numbers = np.random.default_rng(1).standard_normal((size, length), np.float32)

    def program(comm: Communicator) -> Any:
        half = length // 2
        ring = AllReduce(
            np.zeros(length, np.float32),
            [slice(0, half), slice(half, length)],
            comm,
            wire,
            chunk,
            shared,
        )
        for _ in range(2):  # the memory is used again
            ring.vector[:] = numbers[comm.rank]
            ring.begin()
            ring.release(1)
            ring.poll()
            ring.release(2)
            ring.finish()
        return ring.vector.copy()

    sums = run_threads(size, program, per_host)
    return sums, numbers.astype(np.float64).sum(axis=0)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.integers(1, 3), min_size=1, max_size=4),
    st.integers(0, 3000),
    st.sampled_from([8, 64, 1000, 1 << 17]),
    st.booleans(),
)
def test_sums_are_the_same_everywhere(
    per_host: list[int], length: int, chunk: int, shared: bool
) -> None:
    sums, expected = reduce_by_threads(per_host, length, "float32", chunk, shared)
    for other in sums:
        np.testing.assert_array_equal(other, sums[0])
    np.testing.assert_allclose(sums[0], expected, rtol=1e-5, atol=1e-5)


# what is rounded: half a unit in the last place, on the way there and back
@pytest.mark.parametrize(
    ("wire", "ulp"), [("float16", 2.0**-11), ("bfloat16", 2.0**-8)]
)
@pytest.mark.parametrize("per_host", [[1, 1], [1, 1, 1, 1, 1], [2, 3]])
def test_sums_with_16_bits_on_the_wire(
    wire: str, ulp: float, per_host: list[int]
) -> None:
    sums, expected = reduce_by_threads(per_host, 5001, wire, 4096, True)
    for other in sums:
        np.testing.assert_array_equal(other, sums[0])
    error = np.abs(sums[0] - expected).max()
    # each of the numbers sent is at most about 4; the sum's own rounding comes on top
    assert ulp / 20 < error < 4 * ulp * len(per_host) + np.abs(expected).max() * ulp


def test_half_the_bytes_travel() -> None:
    sent: dict[str, int] = {}

    def program(comm: Communicator) -> None:
        for wire in ("float32", "float16", "bfloat16"):
            ring = AllReduce(
                np.ones(30_000, np.float32), [slice(0, 30_000)], comm, wire
            )
            count, start = 0, comm.start

            def counting(send: Any, *rest: Any, **more: Any) -> Any:
                nonlocal count
                count += send.nbytes
                return start(send, *rest, **more)  # noqa: B023

            comm.start = counting  # type: ignore[method-assign]
            ring.begin()
            ring.release(1)
            ring.finish()
            comm.start = start  # type: ignore[method-assign]
            sent[wire] = count

    run_threads(3, program, [1, 1, 1])
    assert sent["float32"] == 4 * 30_000 * 4 // 3
    assert sent["bfloat16"] * 2 == sent["float32"]
    assert sent["float32"] / 2 <= sent["float16"] < sent["float32"] / 2 + 100


@pytest.mark.parametrize("kind", [Float16, BFloat16])
@pytest.mark.parametrize("scale", [1e-30, 1e-9, 1.0, 3e4, 1e30])
def test_packing_keeps_small_and_large_numbers(kind: Any, scale: float) -> None:
    wire = kind()
    values = (np.random.default_rng(0).standard_normal(70_001) * scale).astype("f4")
    values[:3] = 0, -0.0, scale
    packed = np.zeros(wire.length(values.size), np.uint16)
    wire.pack(values, packed)
    back = np.empty_like(values)
    wire.unpack(packed, back)
    # float16 loses bits of numbers far below the largest of the message
    floor = np.abs(values).max() * (2.0**-36 if kind is Float16 else 0.0)
    ulp = 2.0**-11 if kind is Float16 else 2.0**-8
    assert (np.abs(back - values) <= np.maximum(np.abs(values) * ulp, floor)).all()
    total = values.copy()
    wire.add(packed, total)
    np.testing.assert_array_equal(total, values + back)


@pytest.mark.parametrize("kind", [Float16, BFloat16])
@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_packing_hides_nothing_that_is_not_finite(kind: Any, bad: float) -> None:
    wire = kind()
    values = np.ones(100, np.float32)
    values[7] = bad
    packed = np.zeros(wire.length(100), np.uint16)
    wire.pack(values, packed)
    back = np.empty_like(values)
    wire.unpack(packed, back)
    assert not np.isfinite(back[7])
    np.testing.assert_array_equal(np.delete(back, 7), 1)


def test_bfloat16_rounds_to_nearest_even() -> None:
    bits = np.array([0x3F808000, 0x3F818000, 0x3F808001, 0x3F807FFF], np.uint32)
    packed = np.zeros(4, np.uint16)
    BFloat16().pack(bits.view(np.float32), packed)
    assert packed.tolist() == [0x3F80, 0x3F82, 0x3F81, 0x3F80]


# -- who has left --------------------------------------------------------------


class FakeControl:
    """A communicator on which a rank's last message may lie."""

    def __init__(self) -> None:
        self.arrived: dict[int, list[int]] = {}
        self.waiting: set[int] = set()  # ranks that have told that they wait too
        self.told: list[int] = []
        self.looks = 0  # of this rank for those that have left, itself the first

    def Get_rank(self) -> int:
        return 0

    def Iprobe(self, source: int, tag: int) -> bool:
        self.looks += (source, tag) == (0, 0)
        return source in (self.arrived, self.waiting)[tag]

    def Recv(self, counts: Any, source: int, tag: int) -> None:
        if tag == 1:
            self.waiting.remove(source)
        else:
            counts[:] = self.arrived.pop(source)

    def Isend(self, notice: Any, dest: int, tag: int) -> FakeControl:
        assert tag == 1
        self.told.append(dest)
        return self

    def Wait(self) -> None: ...


@pytest.mark.parametrize(
    ("left", "noticed"),
    [
        ([2, 0, 0], False),  # took part in both collectives: the second will end
        ([1, 0, 0], True),
        ([9, 0, 0], False),
    ],
)
def test_a_collective_without_a_rank_that_left(
    left: list[int], noticed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(departures_module, "_INTERVAL", 0.01)
    assert _notices(left, lambda departures: departures.collective("barrier")) is (
        noticed
    )


@pytest.mark.parametrize(
    ("left", "noticed"),
    [
        ([2, 1, 1], False),  # sent one to us, received one from us
        ([2, 0, 1], True),
        ([2, 1, 0], True),
    ],
)
def test_an_exchange_with_a_rank_that_left(
    left: list[int], noticed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(departures_module, "_INTERVAL", 0.01)
    assert _notices(left, lambda departures: departures.exchange(1, 1)) is noticed


def _until(what: Callable[[], Any], seconds: float = 20.0) -> None:
    """Wait until ``what()`` is true, which it must be in the end."""
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def _notices(left: list[int], wait: Callable[[Departures], Departures]) -> bool:
    """Return whether a rank waiting in its third call ends the job."""
    control = FakeControl()
    errors: list[CommError] = []
    departures = Departures(control, ["a", "b"], errors.append)
    with departures.collective("barrier"):
        pass
    with wait(departures):
        control.arrived[1] = left
        _until(lambda: not control.arrived)  # the message was taken
        looks = control.looks
        _until(lambda: errors or control.looks > looks + 1)  # and thought about
    departures._stop.set()
    departures._watch.join()
    assert all("rank 1 on b has left" in str(error) for error in errors)
    return bool(errors)


# -- which world ---------------------------------------------------------------


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Communicator]:
    """A function that connects in an environment with some ranks and settings."""
    hooks: list[Communicator] = []
    monkeypatch.setattr(world_module, "_end_together", hooks.append)

    def connect(ranks: Ranks, found: int = 1, **settings: str) -> Communicator:
        comm = Loopback()
        comm.size = found
        monkeypatch.setattr(environment, "expected_ranks", lambda: ranks)
        monkeypatch.setattr(environment, "setting", settings.get)
        monkeypatch.setattr(world_module, "_connect_mpi", lambda: comm)
        result: Communicator = world_module._connect()
        assert hooks == ([comm] if result is comm else [])
        return result

    return connect


ALONE = Ranks(0, 1, 0, 1, "none")
PAIR = Ranks(0, 2, 0, 2, "openmpi")


def test_without_a_launcher_the_world_is_single(launched: Any) -> None:
    assert type(launched(ALONE)) is SingleCommunicator
    assert type(launched(ALONE, RANKS="1")) is SingleCommunicator
    assert type(launched(PAIR, COMM="local")) is SingleCommunicator


def test_a_launcher_means_mpi(launched: Any) -> None:
    assert launched(PAIR, found=2).size == 2


def test_a_bare_pmix_launcher_tells_a_lower_bound(launched: Any) -> None:
    assert launched(Ranks(0, 1, 0, 1, "pmix"), found=4).size == 4


def test_mpi_can_be_forced(launched: Any) -> None:
    assert type(launched(ALONE, COMM="mpi")) is Loopback


@pytest.mark.parametrize(
    ("ranks", "found", "settings", "cure"),
    [
        (PAIR, 1, {}, "mpirun of the same MPI"),
        (Ranks(0, 4, 0, 4, "mpich"), 2, {}, "mpirun of the same MPI"),
        (Ranks(0, 4, 0, 4, "slurm"), 1, {}, "srun --mpi=pmix"),
        (ALONE, 1, {"RANKS": "2"}, "mpirun"),
        (PAIR, 2, {"RANKS": "4"}, "mpirun"),
        (PAIR, 2, {"RANKS": "1"}, "mpirun"),
    ],
)
def test_worlds_of_another_size_are_refused(
    launched: Any, ranks: Ranks, found: int, settings: dict[str, str], cure: str
) -> None:
    with pytest.raises(CommError, match=f"a world of {found}") as caught:
        launched(ranks, found, **settings)
    assert cure in caught.value.todo


def test_bad_settings(launched: Any) -> None:
    with pytest.raises(UnknownNameError, match="FASTSERVE_COMM"):
        launched(ALONE, COMM="tcp")
    with pytest.raises(ArgumentError, match="FASTSERVE_RANKS"):
        launched(ALONE, RANKS="two")


def test_lines_have_the_rank_before_them() -> None:
    comm = SingleCommunicator()
    comm.rank, comm.host = 3, "n1"
    assert world_module.with_prefix(comm, "a\n  b\n") == (
        "[rank 3 n1] a\n[rank 3 n1]   b\n"
    )


def test_a_single_process_loads_no_mpi() -> None:
    code = (
        "import sys, fastserve as fs; comm = fs.init(); assert fs.world() is comm;"
        "assert fs.init() is comm and comm.size == 1; print('mpi4py' in sys.modules)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.stdout == "False\n", result.stderr


class SlowRing:
    """Stands in for an AllReduce of two buckets whose messages take a random time."""

    def __init__(self) -> None:
        self.round = self.finished = self._released = 0
        self.random = random.Random(0)

    @property
    def complete(self) -> bool:
        return self.finished == self.round

    def release(self, buckets: int) -> None:
        self._released = buckets

    def poll(self) -> bool:
        if self._released == 2 and self.random.random() < 0.5:
            self.finished = self.round
        return True

    def finish(self) -> None:
        time.sleep(self.random.random() * 2e-5)
        self.finished = self.round


def test_no_round_ends_before_its_sums_are_there() -> None:
    """Wherever the thread that sends is held up: here before each of its lines."""
    hold_up = random.Random(1)

    def trace(frame: FrameType, event: str, arg: object) -> Any:
        if frame.f_code.co_filename != sync_module.__file__:
            return None
        if hold_up.random() < 0.2:
            time.sleep(hold_up.random() * 2e-3)
        return trace

    ring = SlowRing()
    sender = sync_module._Sender(ring)  # type: ignore[arg-type]
    threading.settrace(trace)
    try:
        for _ in range(400):
            ring.round += 1
            sender.release(1)
            time.sleep(ring.random.random() * 1e-3)  # the rest of backward
            sender.release(2)
            time.sleep(ring.random.random() * 1e-3)
            sender.finish(2)
            assert ring.complete
    finally:
        threading.settrace(None)


@pytest.mark.parametrize("comes_late", [False, True])
def test_who_is_late_is_named(
    comes_late: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(departures_module, "_INTERVAL", 0.01)
    ended = threading.Event()  # what is between the notices and the look at them
    clock = SimpleNamespace(monotonic=time.monotonic, sleep=lambda _: ended.wait(20))
    monkeypatch.setattr(departures_module, "time", clock)
    control = FakeControl()
    errors: list[CommError] = []
    control.waiting = {1}  # told in an earlier call, to which a late rank then came
    departures = departures_module.Departures(
        control, ["a", "b", "c"], errors.append, lambda: 0.05
    )
    with departures.collective("allreduce"):
        _until(lambda: not control.waiting)
        looks = control.looks
        _until(lambda: control.looks > looks)  # all that was told before is forgotten
        control.waiting = {2}
        _until(lambda: set(control.told) == {1, 2})
        if not comes_late:
            ended.set()
            _until(lambda: errors)
    departures._stop.set()
    ended.set()
    departures._watch.join()
    assert set(control.told) == {1, 2}
    if comes_late:
        assert errors == []
    else:
        message = str(errors[0])
        assert "join this allreduce within 0.05 s" in message
        assert "missing: rank 1 on b\n" in message
