"""Sums whose bits don't depend on the number of ranks.

A batch is cut into shards in a way that doesn't depend on the ranks, and the shards'
vectors are added up along one binary tree: shard 0 with 1, 2 with 3, these two sums,
and so on. Floating-point addition isn't associative, but a rank may compute any part of
the tree that lies over its own shards. Where the parts of several ranks meet, the rank
that owns a slice of the vector adds them up in the tree's order; then the slices go
round.

A rank that has the shards 4, 5 and 6 sends two vectors, (4 + 5) and 6. So the bytes
between ranks are those of a ring if the number of shards is a multiple of that of the
ranks and a power of two, and below twice as many otherwise in the usual cases.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from fastserve.comm.allreduce import CHUNK_BYTES, TAGS, WINDOW, AllReduce
from fastserve.comm.base import Array, Communicator, Pending
from fastserve.comm.ring import cut, gather_steps


class Node(NamedTuple):
    """The sum of the shards from ``place << level`` up to ``(place + 1) << level``."""

    level: int
    place: int


def nodes_of(shards: range) -> list[Node]:
    """Return the fewest nodes that make up consecutive shards, in order."""
    nodes: list[Node] = []
    for shard in shards:
        nodes.append(Node(0, shard))
        while len(nodes) > 1 and _siblings(nodes[-2], nodes[-1]):
            last = nodes.pop()
            nodes[-1] = Node(last.level + 1, last.place // 2)
    return nodes


def merges_after(shards: range, place: int) -> int:
    """Return how many sums can be taken once number ``place`` of them is there."""
    before, now = shards[:place], shards[: place + 1]
    return len(nodes_of(before)) + 1 - len(nodes_of(now))


def add_up(known: dict[Node, Array], count: int) -> Array:
    """Return the sum over all ``count`` shards from the nodes that cover them.

    It is one of the arrays in ``known``, which are overwritten.
    """
    level = max(0, (count - 1).bit_length())
    total = _value(Node(level, 0), known, count)
    assert total is not None
    return total


def _siblings(left: Node, right: Node) -> bool:
    return left.level == right.level and left.place // 2 == right.place // 2


def _value(node: Node, known: dict[Node, Array], count: int) -> Array | None:
    if node in known:
        return known[node]
    if node.place << node.level >= count or node.level == 0:
        return None
    left = _value(Node(node.level - 1, 2 * node.place), known, count)
    right = _value(Node(node.level - 1, 2 * node.place + 1), known, count)
    if left is None or right is None:
        return left
    return np.add(left, right, out=left)


class ExactSum(AllReduce):
    """An ``AllReduce`` along the tree over shards, within hosts and between them.

    A round starts with ``plan``; ``push`` takes the vector of each of this rank's
    shards but the last, in order; the last one's is what ``vector`` holds when it is
    released. A rank without shards takes part all the same. After some rounds it
    allocates no arrays.
    """

    def __init__(
        self,
        vector: Array,
        parts: Sequence[slice],
        comm: Communicator,
        chunk: int = CHUNK_BYTES,
    ) -> None:
        self._chunk, self._rows = 0, 0
        super().__init__(vector, parts, comm, "float32", chunk, shared=False)
        self._stack: list[Array] = []  # sums of this rank's shards so far
        self._spare: list[Array] = []
        self.plan(1, [range(1)] * comm.size)

    def plan(self, count: int, shards: Sequence[range]) -> None:
        """Start a round over ``count`` shards, of which each rank has ``shards``."""
        self._spare += self._stack
        self._stack.clear()
        self._count, self._shards = count, shards[self._comm.rank]
        self._nodes = [nodes_of(each) for each in shards]
        self._place = 0
        self._make_room(sum(map(len, self._nodes)) - len(self._nodes[self._comm.rank]))

    def push(self) -> None:
        """Take what ``vector`` holds: a shard's that isn't this rank's last."""
        top = self._spare.pop() if self._spare else np.empty_like(self.vector)
        np.copyto(top, self.vector)
        for _ in range(merges_after(self._shards, self._place)):
            left = self._stack.pop()
            np.add(left, top, out=left)
            self._spare.append(top)
            top = left
        self._stack.append(top)
        self._place += 1

    def _steps(self, index: int, scratch: Array) -> Iterator[Pending]:
        comm, me, ranks = self._comm, self._comm.rank, range(self._comm.size)
        piece, nodes, tag = self._pieces[index], self._nodes, index % TAGS
        flat = self.vector[piece]
        parts = [cut(root, len(ranks)) for root in self._roots(piece)]
        own = cut(flat, len(ranks))[me]
        known = {node: part[me] for node, part in zip(nodes[me], parts, strict=True)}
        row = 0
        for k in ranks[1:]:
            to, source = (me + k) % len(ranks), (me - k) % len(ranks)
            for j in range(max(map(len, nodes))):
                send, recv = own[:0], own[:0]
                if j < len(parts):
                    send = parts[j][to]
                if j < len(nodes[source]):
                    recv = known[nodes[source][j]] = scratch[row, : own.size]
                    row += 1
                yield comm.start(send, to, recv, source, tag)
        total = add_up(known, self._count)
        if total is not own:
            np.copyto(own, total)
        for exchange in gather_steps(flat, ranks, me, me):
            yield comm.start(*exchange, tag=tag)

    def _roots(self, piece: slice) -> list[Array]:
        """Return this rank's nodes of a piece: those so far and the last shard's."""
        roots = [vector[piece] for vector in self._stack]
        if self._shards:
            last = self.vector[piece]
            for _ in range(merges_after(self._shards, self._place)):
                np.add(roots.pop(), last, out=last)
            roots.append(last)
        return roots

    def _make_scratch(self, chunk: int) -> list[Array]:
        self._chunk = max(1, chunk)
        return [np.empty((0, self._chunk), self.vector.dtype) for _ in range(WINDOW)]

    def _make_room(self, rows: int) -> None:
        """Have memory for so many vectors of others, for each piece in work."""
        if rows > self._rows:
            self._rows = rows
            shape = rows, self._chunk
            self._scratch = [np.empty(shape, self.vector.dtype) for _ in range(WINDOW)]
