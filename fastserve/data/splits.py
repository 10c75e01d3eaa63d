"""Training, validation and test parts of examples."""

from __future__ import annotations

import hashlib
from typing import NamedTuple

import numpy as np

from fastserve.core import Array, generator
from fastserve.errors import DataError


class Split(NamedTuple):
    """The rows of each part, ascending."""

    train: Array
    validation: Array
    test: Array


def split(
    rows: Array, targets: Array | None, validation: float, test: float, seed: int
) -> Split:
    """Return the parts of ``rows``, drawn by ``seed``, with all targets in proportion.

    Rows are sorted by target, those of one target by chance, and every 1/share-th of
    them is taken: each class, or for numbers each range of them, has its share in each
    part to within one row. First the test part is taken, then of the rest the one to
    validate on, so another ``validation`` leaves the test part as it is.

    Args:
        rows: (n,) numbers of rows. targets: (n,) of these rows, or None.
        validation, test: shares of all rows.

    Raises DataError if a part that is wanted, or the training part, is empty.
    """
    left, taken = rows, {}
    for name, share in (("test", test), ("validation", validation)):
        size = min(1.0, share * len(rows) / max(1, len(left)))
        kinds = None if targets is None else targets[np.isin(rows, left)]
        chosen = _draw(left, kinds, size, seed, name)
        taken[name] = left[chosen]
        left = left[~chosen]
        if share and not chosen.any():
            raise _empty(name, len(rows), share)
    if not len(left):
        raise _empty("train", len(rows), 1 - validation - test)
    return Split(left, taken["validation"], taken["test"])


def _draw(
    rows: Array, kinds: Array | None, share: float, seed: int, name: str
) -> Array:
    """Return which of the rows are in the part, (n,) of bool."""
    chosen = np.zeros(len(rows), bool)
    if share > 0:
        rng = generator(seed, "split", name)
        order = rng.permutation(len(rows))
        if kinds is not None:
            order = order[np.argsort(kinds[order], kind="stable")]
        steps = np.floor(np.arange(len(rows) + 1) * share + rng.random())
        chosen[order] = np.diff(steps) > 0
    return chosen


def _empty(name: str, rows: int, share: float) -> DataError:
    return DataError(
        f"expected at least one row in the {name} part",
        f"none: {rows} rows, a share of {share:.3g}",
        "change data.validation_split and data.test_split, or add data",
    )


def digest(data: bytes) -> bytes:
    """Return 8 bytes that tell examples apart."""
    return hashlib.blake2b(data, digest_size=8).digest()


def copies(digests: bytes | bytearray) -> Array:
    """Return for each example the first one that is equal to it, (n,) of int64.

    ``digests`` has 8 bytes for each.
    """
    numbers = np.frombuffer(digests, np.uint64)
    _, first, back = np.unique(numbers, return_index=True, return_inverse=True)
    found: Array = first[back].astype(np.int64)
    return found
