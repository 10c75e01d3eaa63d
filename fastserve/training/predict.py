"""Predictions over ranks: each computes its rows of every batch, all get all."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from fastserve.comm import Communicator
from fastserve.core import Array
from fastserve.data.prefetch import Share
from fastserve.data.sampler import share
from fastserve.data.sources import Batch
from fastserve.errors import ShapeError

Outputs = tuple[Array, ...]
Call = Callable[..., None]


def slices(x: Any, batch: int, comm: Communicator) -> Iterator[Share]:
    """Yield this rank's rows of arrays in memory, batch by batch, without a copy."""
    arrays = x if isinstance(x, tuple) else (x,)
    samples = len(arrays[0])
    for start in range(0, samples, batch):
        total = min(batch, samples - start)
        mine = share(total, comm.rank, comm.size)
        rows = slice(start + mine.start, start + mine.stop)
        part = tuple(array[rows] for array in arrays)
        inputs: Any = part if isinstance(x, tuple) else part[0]
        some = mine.stop > mine.start
        nothing = np.empty(0)
        yield Share(Batch(inputs, nothing, None) if some else None, mine, total, batch)


def predict(
    forward: Callable[[Any], Any],
    parts: Iterable[Share],
    comm: Communicator,
    call: Call | None = None,
) -> Any:
    """Return the outputs of all rows in order, on every rank; a tuple if there are
    several.

    Args:
        forward: returns outputs that the next call may write over.
        call: is told the moments of callbacks.

    Raises ShapeError if the outputs of two batches can't be put together.
    """
    say: Call = (lambda *_: None) if call is None else call
    made: list[Outputs] = []  # this rank's rows
    totals: list[int] = []
    several = False
    say("predict_begin", {})
    for number, part in enumerate(parts):
        say("predict_batch_begin", number, {})
        totals.append(part.total)
        if part.batch is not None:
            y = forward(part.batch.x)
            several = isinstance(y, tuple)
            made.append(tuple(a.copy() for a in (y if several else (y,))))
        say("predict_batch_end", number, {})
    say("predict_end", {})
    several, kinds = comm.broadcast_obj((several, _kinds(made)))
    outputs: list[Array] = []
    for i, (shape, dtype) in enumerate(kinds):
        rows = [batch[i] for batch in made]
        outputs.append(_gather(rows, totals, shape, dtype, comm))
    return tuple(outputs) if several else outputs[0]


def _kinds(made: list[Outputs]) -> list[tuple[tuple[int, ...], str]]:
    """Return shape (without rows) and type of each output."""
    return [(array.shape[1:], array.dtype.str) for array in made[0]] if made else []


def _gather(
    made: list[Array],
    totals: list[int],
    shape: tuple[int, ...],
    dtype: str,
    comm: Communicator,
) -> Array:
    """Return the rows of all ranks in the order of the batches, (rows, *shape)."""
    for array in made:
        if array.shape[1:] != shape:
            raise ShapeError(
                "predict: expected outputs of one shape for all batches",
                f"(batch, {', '.join(map(str, shape))}) and (batch, "
                f"{', '.join(map(str, array.shape[1:]))})",
                "pad the inputs to one length, or predict batch by batch",
            )
    if comm.size == 1:
        return made[0] if len(made) == 1 else np.concatenate(made)
    out = np.empty((sum(totals), *shape), dtype)
    starts = np.cumsum([0, *totals])
    for rank in range(comm.size):
        places = [share(total, rank, comm.size) for total in totals]
        rows = sum(place.stop - place.start for place in places)
        if rank == comm.rank and made:
            packed = np.concatenate(made)
        else:
            packed = np.empty((rows, *shape), dtype)
        if rows:
            comm.broadcast(packed, rank)
        taken = 0
        for start, place in zip(starts.tolist(), places, strict=False):
            count = place.stop - place.start
            out[start + place.start : start + place.stop] = packed[
                taken : taken + count
            ]
            taken += count
    return out
