"""``ShardedSum``: each rank gets its own part of a sum, and gives back a vector's part.

The two halves of an all-reduce, with work between them: reduce-scatter the gradients;
each rank changes its own part of the weights; all-gather the weights. So each rank
needs the optimizer's state of its own part alone, and the bytes on the links are those
of one all-reduce (ZeRO stage 1: Rajbhandari, Rasley, Ruwase, He, "ZeRO: memory
optimizations toward training trillion parameter models", 2020).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from fastserve.comm.allreduce import (
    _COMPLETE,
    _COPIED,
    _SUMMED,
    CHUNK_BYTES,
    AllReduce,
    _add_up,
    _cut,
)
from fastserve.comm.base import Array, Communicator, Pending
from fastserve.comm.ring import gather_steps, packed_reduce_steps, reduce_steps


class ShardedSum(AllReduce):
    """An ``AllReduce`` that stops half-way, with this rank's part of each piece summed.

    A round is one of AllReduce, after which ``vector`` holds sums in the slices
    ``own`` and garbage elsewhere, and then ``gather``. The sums are those of AllReduce,
    to the bit; with a 16-bit wire they are rounded once less.

    Attributes:
        own: this rank's slices of the vector, in order: one of each piece, so that
            every rank has its share of every part. Those of all ranks are the vector.
    """

    def __init__(
        self,
        vector: Array,
        parts: Sequence[slice],
        comm: Communicator,
        wire: str = "float32",
        chunk: int = CHUNK_BYTES,
        shared: bool = True,
    ) -> None:
        super().__init__(vector, parts, comm, wire, chunk, shared)
        self._target: Array | None = None  # while the second half goes on
        self._group, self._locals = comm.rank, 1
        if self._memory is not None:
            self._group = next(
                i for i, group in enumerate(comm.groups) if comm.rank in group
            )
            self._locals = comm.local_size
        self.own = [self._own(piece) for piece in self._pieces]

    def gather(self, target: Array) -> None:
        """Send each rank's ``own`` slices of ``target`` to all other ranks' ``target``.

        The vector, whose contents are lost, carries them.
        """
        for part in self.own:
            self.vector[part] = target[part]
        self._target = target
        self.begin()
        self.release(len(self.ends))
        self.finish()
        self._target = None

    def _own(self, piece: slice) -> slice:
        # with a 16-bit wire, chunks go straight to the member of their own number
        shift = 1 if self._wire is None else 0
        chunk = _cut(piece, self.hosts)[(self._group + shift) % self.hosts]
        return _cut(chunk, self._locals)[self._local]

    def _steps(self, index: int, scratch: Array) -> Iterator[Pending]:
        if self._target is None:
            return self._reduce(index, scratch)
        return self._gather(index, self._target)

    def _reduce(self, index: int, scratch: Array) -> Iterator[Pending]:
        piece, own = self._pieces[index], self.own[index]
        if self._add is not None:
            flat = self.vector[piece]
            np.add(flat, self._add[piece], out=flat)
        if self._memory is None:
            yield from self._reduce_between_hosts(index, scratch)
            return
        vectors, me = self._memory.vectors, self._local
        yield self._arrive(index, 0)
        if self.hosts == 1:
            mine = [vector[own] for vector in vectors]
            _add_up(mine.pop(me), mine)
        else:
            part = _cut(piece, len(vectors))[me]
            first, *others = [vector[part] for vector in vectors]
            _add_up(first, others)
            yield self._arrive(index, _SUMMED)
            if me == 0:
                yield from self._reduce_between_hosts(index, scratch)
            yield self._arrive(index, _COMPLETE)
            if me != 0:
                np.copyto(self.vector[own], vectors[0][own])
        self._arrive(index, _COPIED)
        self._copying.append(index)

    def _gather(self, index: int, target: Array) -> Iterator[Pending]:
        piece, own = self._pieces[index], self.own[index]
        if self._memory is None:
            yield from self._gather_between_hosts(index)
            np.copyto(target[piece], self.vector[piece])
            return
        vectors, me = self._memory.vectors, self._local
        if self.hosts > 1 and me != 0:
            np.copyto(vectors[0][own], self.vector[own])
        yield self._arrive(index, 0)
        if self.hosts == 1:
            for other, part in enumerate(_cut(piece, len(vectors))):
                if other != me:
                    np.copyto(target[part], vectors[other][part])
        else:
            if me == 0:
                yield from self._gather_between_hosts(index)
            yield self._arrive(index, _COMPLETE)
            np.copyto(target[piece], vectors[0][piece])
        self._arrive(index, _COPIED)
        self._copying.append(index)

    def _reduce_between_hosts(self, index: int, scratch: Array) -> Iterator[Pending]:
        flat, members, me = self.vector[self._pieces[index]], self._members, self._me
        if self._wire is None:
            steps = reduce_steps(flat, members, me, scratch)
        else:
            steps = packed_reduce_steps(flat, members, me, scratch, self._wire)
        return self._exchange(index, steps)

    def _gather_between_hosts(self, index: int) -> Iterator[Pending]:
        """Weights travel whole: a 16-bit wire is for gradients."""
        flat, me = self.vector[self._pieces[index]], self._me
        own = me + 1 if self._wire is None else me
        return self._exchange(index, gather_steps(flat, self._members, me, own))
