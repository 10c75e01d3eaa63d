"""Sums over shards: the same bits on any number of ranks."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastserve.comm import GradientSync, run_threads
from fastserve.comm.base import Communicator
from fastserve.comm.exact import ExactSum, Node, add_up, merges_after, nodes_of
from fastserve.data.sampler import share
from fastserve.errors import ArgumentError


def shards_of(count: int, ranks: int) -> list[range]:
    cuts = [share(count, rank, ranks) for rank in range(ranks)]
    return [range(cut.start, cut.stop) for cut in cuts]


def vectors(count: int, size: int) -> np.ndarray:
    rng = np.random.default_rng(count)
    scale = np.exp2(rng.integers(-20, 20, (count, 1)))
    return (rng.standard_normal((count, size)) * scale).astype(np.float32)


def by_hand(rows: np.ndarray) -> np.ndarray:
    """Add neighbours up, and what comes out of it, until one row is left."""
    level = [row.copy() for row in rows]
    while len(level) > 1:
        pairs = [a + b for a, b in zip(level[::2], level[1::2], strict=False)]
        level = pairs + level[len(level) - len(level) % 2 :]
    return level[0]


@given(st.integers(1, 70), st.data())
@settings(max_examples=200, deadline=None)
def test_nodes_make_up_their_shards(count: int, data: st.DataObject) -> None:
    first = data.draw(st.integers(0, count))
    shards = range(first, data.draw(st.integers(first, count)))
    nodes = nodes_of(shards)
    covered = [
        i for level, place in nodes for i in range(place << level, place + 1 << level)
    ]
    assert covered == list(shards)
    assert len(nodes) <= 2 * max(1, math.ceil(math.log2(len(shards) + 1)))
    merges = sum(merges_after(shards, place) for place in range(len(shards)))
    assert len(shards) - merges == len(nodes)


@pytest.mark.parametrize("count", range(1, 18))
def test_the_tree_adds_neighbours(count: int) -> None:
    rows = vectors(count, 5)
    leaves = {Node(0, i): row.copy() for i, row in enumerate(rows)}
    assert add_up(leaves, count).tobytes() == by_hand(rows).tobytes()


def exact(count: int, ranks: int, overlap: bool, rounds: int = 2) -> list[bytes]:
    """Return each rank's bytes of the sum of ``count`` shards."""
    size = 70_001
    rows = vectors(count, size)
    shards = shards_of(count, ranks)
    parts = [slice(0, 100), slice(100, 60_000), slice(60_000, size)]

    def rank_program(comm: Communicator) -> bytes:
        total = ExactSum(np.zeros(size, np.float32), parts, comm, chunk=1 << 14)
        for _ in range(rounds):
            total.plan(count, shards)
            mine = shards[comm.rank]
            for shard in mine[:-1]:
                total.vector[...] = rows[shard]
                total.push()
            total.vector[...] = rows[mine[-1]] if mine else np.nan
            total.begin()
            for part in range(1, len(parts) + 1):
                total.release(part)
                if overlap:
                    total.poll()
            total.finish()
        return total.vector.tobytes()

    return run_threads(ranks, rank_program)


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8, 13])
def test_the_same_bits_on_any_number_of_ranks(count: int) -> None:
    wanted = by_hand(vectors(count, 70_001)).tobytes()
    for ranks in (1, 2, 3, 4, 6, 8):
        for overlap in (False, True):
            assert set(exact(count, ranks, overlap)) == {wanted}, (ranks, overlap)


def test_a_plain_sum_would_differ() -> None:
    rows = vectors(8, 70_001)
    one = np.add.reduce(rows, axis=0)
    halves = np.add.reduce(rows[:3], axis=0) + np.add.reduce(rows[3:], axis=0)
    assert one.tobytes() != halves.tobytes()


def test_only_whole_numbers_travel() -> None:
    from test_comm import (
        FakeStore,
        Weight,
    )  # the same buckets as the other algorithms' tests

    def rank_program(comm: Communicator) -> None:
        with pytest.raises(ArgumentError, match="wire float32"):
            GradientSync(FakeStore([Weight()]), comm, "exact", wire="bfloat16")

    run_threads(2, rank_program)
