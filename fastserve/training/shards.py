"""Checkpoints of an optimizer whose state is spread over the ranks, or isn't.

A checkpoint doesn't show how many ranks wrote it: rank 0 writes whole vectors, and
hands them out again. They pass through the memory of the gradients, which are spent
after a step, so that no rank needs memory for a whole vector besides.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from fastserve.comm import Communicator
from fastserve.core import Array, ParameterStore
from fastserve.optimizers import Optimizer
from fastserve.training import checkpoint

_NOTHING = np.empty(0, np.uint8)


def save(
    folder: Path,
    step: int,
    store: ParameterStore,
    optimizer: Optimizer,
    state: dict[str, Any],
    keep: int | None,
    comm: Communicator,
    keep_every: int | None = None,
) -> None:
    """As ``checkpoint.save``, called by all ranks; the gradients are lost if the
    optimizer is sharded."""
    vectors = None
    with comm.after_rank_0():
        if optimizer.own is not None:
            vectors = _gathered(store, optimizer, optimizer.own, comm)
        if comm.rank == 0:
            parts = store, optimizer, state, keep, vectors, keep_every
            checkpoint.save(folder, step, *parts)
        elif vectors is not None:
            for _ in vectors:
                pass


def hand_out(
    path: Path | None, store: ParameterStore, optimizer: Optimizer, comm: Communicator
) -> None:
    """Give all ranks the state that rank 0 has loaded; called by all ranks.

    ``path`` is the checkpoint that rank 0 reads a sharded state from; others don't
    need it.
    """
    if optimizer.own is None:
        for vector in optimizer.state.values():
            comm.broadcast(vector)
        return
    vectors: Iterator[Array] = itertools.repeat(store.grads)
    if comm.rank == 0 and path is not None:
        vectors = checkpoint.read_slots(path, store, optimizer, store.grads)
    for kept, whole in zip(optimizer.state.values(), vectors, strict=False):
        comm.broadcast(whole)
        for part, place in _places(optimizer.own):
            kept[place] = whole[part]


def _gathered(
    store: ParameterStore,
    optimizer: Optimizer,
    own: list[slice],
    comm: Communicator,
) -> Iterator[Array]:
    """Yield each state vector, whole on rank 0, always in the same memory."""
    parts = comm.gather_obj(own)
    for kept in optimizer.state.values():
        if parts is None:
            for _, place in _places(own):
                comm.sendrecv(kept[place], 0, _NOTHING.copy(), 0)
        else:
            for part, place in _places(own):
                store.grads[part] = kept[place]
            for rank, theirs in enumerate(parts[1:], 1):
                for part in theirs:
                    comm.sendrecv(_NOTHING, rank, store.grads[part], rank)
        yield store.grads


def _places(own: list[slice]) -> Iterator[tuple[slice, slice]]:
    """Yield this rank's slices of the store and where they are in its state."""
    start = 0
    for part in own:
        stop = start + part.stop - part.start
        yield part, slice(start, stop)
        start = stop
