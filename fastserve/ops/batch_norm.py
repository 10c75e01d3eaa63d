"""Batch normalisation (Ioffe, Szegedy: "Batch normalization", 2015).

    h = (x - mean) / sqrt(var + eps),  y = gamma h + beta      mean, var over the rows
    dgamma = Σ dy h,  dbeta = Σ dy
    dx = gamma / sqrt(var + eps) (dy - (Σ dy + h Σ dy h) / n)

Shapes: x, dy (N, C); n rows count, all or those that ``keep`` (N) is true for: only
their dx has the term with the sums, which are over all N. Sums are taken in float64
from sums of pieces.

Where the mean is many deviations away from 0, differences to an ``origin`` (C) near it
are computed first, as x² and x dy would lose their last digits. It costs a pass;
without it the origin is 0 (None). A vector of C numbers is repeated for all rows of a
piece beforehand: NumPy multiplies two flat arrays twice as fast as rows by a vector.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from fastserve.ops.blocks import Array, room, spare
from fastserve.ops.linear import ones

_PIECE = 1 << 17  # elements of a piece: more than elsewhere, as there are more calls
_WIDE = 512  # elements of a row that pay for a product with ones
_FIRST = 64  # rows that tell where the mean is
_NEAR = 8.0  # deviations of the mean from 0 that cost no digit that matters


def moments(x: Array, keep: Array | None = None) -> Array:
    """Return n, Σ x and Σ x² of the rows that count as one vector (1 + 2 C), float64.

    Those of several parts may be added; ``mean_and_variance`` is what they are for.
    """
    n, c = x.shape
    origin = _guess(x, keep)
    sums = _Sums(2, c, x.dtype)
    for rows, (xp,), (op,) in _pieces(c, (x,), (origin,)):
        d = xp
        if op is not None:
            d = np.subtract(xp, op, out=spare(0, xp))
        if keep is not None:
            if d is xp:
                d = spare(0, xp)
                np.copyto(d, xp)
            d.reshape(-1, c)[~keep[rows]] = 0
        sums.add(0, d)
        sums.add(1, np.multiply(d, d, out=spare(0, d)))
    about, squares = sums.result()
    count = float(n if keep is None else np.count_nonzero(keep))
    far = 0.0 if origin is None else origin.astype(float)
    total = np.empty(1 + 2 * c)
    total[0] = count
    total[1 : 1 + c] = about + count * far
    total[1 + c :] = squares + far * (2 * about + count * far)
    return total


def mean_and_variance(total: Array) -> tuple[Array, Array]:
    """Return both (C), float64, of what ``moments`` gave; 0 where no row counts."""
    n = max(float(total[0]), 1.0)
    mean, square = total[1:].reshape(2, -1) / n
    return mean, np.maximum(square - np.square(mean), 0)


def origin_for(mean: Array, rstd: Array, dtype: np.dtype[np.generic]) -> Array | None:
    """Return what to subtract first, (C): the mean, or None where it is near 0."""
    near = bool((np.abs(mean) * rstd <= _NEAR).all())
    return None if near else mean.astype(dtype)


def normalize(
    x: Array, origin: Array | None, factor: Array, offset: Array, y: Array
) -> None:
    """y = (x - origin) factor + offset."""
    vectors = (origin, factor, offset)
    for _, (xp, yp), (op, fp, bp) in _pieces(x.shape[1], (x, y), vectors):
        if op is not None:
            xp = np.subtract(xp, op, out=yp)
        np.multiply(xp, fp, out=yp)
        np.add(yp, bp, out=yp)


def backward_sums(dy: Array, x: Array, origin: Array | None) -> Array:
    """Return Σ dy and Σ dy (x - origin) as (2, C) in float64."""
    c = x.shape[1]
    sums = _Sums(2, c, x.dtype)
    for _, (dyp, xp), (op,) in _pieces(c, (dy, x), (origin,)):
        sums.add(0, dyp)
        if op is not None:
            xp = np.subtract(xp, op, out=spare(0, xp))
        sums.add(1, np.multiply(xp, dyp, out=spare(0, xp)))
    return sums.result()


def backward(
    dy: Array,
    x: Array,
    origin: Array | None,
    factor: Array,
    slope: Array,
    offset: Array,
    keep: Array | None,
    dx: Array,
) -> None:
    """dx = dy factor - ((x - origin) slope + offset); rows without ``keep`` have the
    first term alone."""
    vectors = (origin, factor, slope, offset)
    c = x.shape[1]
    for rows, (dyp, xp, dxp), (op, fp, sp, bp) in _pieces(c, (dy, x, dx), vectors):
        if op is not None:
            xp = np.subtract(xp, op, out=spare(0, xp))
        t = np.multiply(xp, sp, out=spare(0, xp))
        np.multiply(dyp, fp, out=dxp)
        if keep is not None:
            np.add(t, bp, out=t)
            t.reshape(-1, c)[~keep[rows]] = 0
            np.subtract(dxp, t, out=dxp)
        else:
            np.subtract(dxp, t, out=dxp)
            np.subtract(dxp, bp, out=dxp)


def scale(dy: Array, factor: Array, dx: Array) -> None:
    """dx = dy factor: backward where mean and variance aren't those of x."""
    for _, (dyp, dxp), (fp,) in _pieces(dy.shape[1], (dy, dx), (factor,)):
        np.multiply(dyp, fp, out=dxp)


def _guess(x: Array, keep: Array | None) -> Array | None:
    """Return the mean (C) of the first rows that count, or None if it is near 0."""
    start = 0 if keep is None else int(keep.argmax())
    few = slice(start, start + _FIRST)
    first = x[few] if keep is None else x[few][keep[few]]
    if not len(first):
        return None
    mean: Array = first.mean(axis=0)
    near = np.abs(mean) <= 0.5 * _NEAR * first.std(axis=0)
    return None if near.all() else mean


def _rows_of_piece(c: int) -> tuple[int, int]:
    """Return (rows in one that is wide enough, rows in a piece)."""
    wide = max(1, _WIDE // c)
    return wide, wide * max(1, _PIECE // (wide * c))


def _pieces(
    c: int, arrays: Sequence[Array], vectors: Sequence[Array | None]
) -> Iterator[tuple[slice, list[Array], list[Any]]]:
    """Yield (rows, flat pieces of the arrays, the vectors repeated for each row)."""
    n = len(arrays[0])
    _, step = _rows_of_piece(c)
    step = min(step, n)
    repeated: list[Array | None] = []
    for slot, vector in enumerate(vectors, start=4):
        if vector is None:
            repeated.append(None)
            continue
        many = room(slot, (step, c), vector.dtype)
        many[...] = vector
        repeated.append(many.reshape(-1))
    flat = [array.reshape(-1) for array in arrays]
    for start in range(0, n, step):
        rows = slice(start, min(n, start + step))
        size = (rows.stop - start) * c
        place = slice(start * c, start * c + size)
        yield (
            rows,
            [array[place] for array in flat],
            [None if v is None else v[:size] for v in repeated],
        )


class _Sums:
    """Sums over rows of C, in float64, from sums of pieces in their own type."""

    def __init__(self, count: int, c: int, dtype: np.dtype[np.generic]) -> None:
        self._c = c
        self._wide = _rows_of_piece(c)[0] * c
        self._sums = np.zeros((count, self._wide))
        self._row = np.empty(self._wide, dtype)

    def add(self, number: int, piece: Array) -> None:
        sums, wide = self._sums[number], self._wide
        whole = piece.size - piece.size % wide
        if whole:
            rows = piece[:whole].reshape(-1, wide)
            np.matmul(ones(len(rows), piece.dtype), rows, out=self._row)
            np.add(sums, self._row, out=sums)
        rest = piece[whole:]
        np.add(sums[: rest.size], rest, out=sums[: rest.size])

    def result(self) -> Array:
        total: Array = self._sums.reshape(len(self._sums), -1, self._c).sum(axis=1)
        return total
