"""Pooling: the largest or the mean of each window, and the gradients.

x (N, H, W, C) and y (N, H', W', C). Windows reach beyond the edges with padding 'same':
what lies there never wins and isn't counted. Work goes in pieces that stay in the
cache.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from fastserve.ops.blocks import Array, room
from fastserve.ops.linear import ones
from fastserve.ops.windows import (
    Axis,
    Piece,
    copy_pixels,
    padded,
    piece_inputs,
    pieces,
    place,
    scatter,
)

Axes = tuple[Axis, Axis]
SIZE = 1 << 17  # elements of a piece's input: 512 kB of float32
_IMAGE, _BETTER, _PART, _NUMBER = 10, 11, 12, 13  # the slots of ``room``
_BOOL = np.dtype(np.bool_)


def _pieces(samples: int, axes: Axes, channels: int) -> Iterator[Piece]:
    h, w = axes
    return pieces(samples, h.out, h.stride * w.padded * channels, SIZE)


def _places(x: Array, piece: Piece, axes: Axes, fill: float) -> Iterator[Array]:
    """Yield each place of the piece's windows, as (N, rows, W', C)."""
    h, w = axes
    before = (h.before, w.before)
    rows = piece_inputs(h, piece)
    full = padded(x[piece.samples], rows, before, w.padded, _IMAGE, fill)
    for at in range(h.kernel * w.kernel):
        yield place(full, at, axes, (piece.last - piece.first, w.out))


def maximum(x: Array, y: Array, winner: Array | None, axes: Axes) -> None:
    """Write y, the largest of each window, and its place i kw + j to ``winner``.

    The first of equal ones wins, as in XLA and PyTorch. ``winner`` (uint8 or larger)
    has y's shape; it may be None if there will be no backward.
    """
    for piece in _pieces(x.shape[0], axes, x.shape[3]):
        best = y[piece.samples, piece.first : piece.last]
        value = room(_PART, best.shape, x.dtype)
        if winner is not None:
            won = winner[piece.samples, piece.first : piece.last]
            won.fill(0)
            better = room(_BETTER, best.shape, _BOOL)
            number_there = room(_NUMBER, best.shape, won.dtype)
        for number, there in enumerate(_places(x, piece, axes, -np.inf)):
            if number == 0:
                copy_pixels(best, there)
                continue
            copy_pixels(value, there)
            if winner is not None:  # the last one that is better is the winner
                np.greater(value, best, out=better)
                np.multiply(better, won.dtype.type(number), out=number_there)
                np.maximum(won, number_there, out=won)
            np.maximum(best, value, out=best)


def maximum_gradient(dy: Array, winner: Array, dx: Array, axes: Axes) -> None:
    """Write dx: dy goes to the place that won."""
    _clear_between(dx, axes)
    for piece in _pieces(dy.shape[0], axes, dy.shape[3]):
        part = dy[piece.samples, piece.first : piece.last]
        won = winner[piece.samples, piece.first : piece.last]
        here = room(_BETTER, part.shape, _BOOL)
        each = room(_NUMBER, part.shape, dy.dtype)

        def sent(
            number: int,
            out: Array,
            part: Array = part,
            won: Array = won,
            here: Array = here,
            each: Array = each,
        ) -> None:
            # a product with bools, or one that writes pixels apart, takes longer
            np.equal(won, number, out=here)
            np.copyto(each, here)
            np.multiply(part, each, out=each)
            copy_pixels(out, each)

        _send(sent, axes, piece, dx)


def _send(
    sent: Callable[[int, Array], None], axes: Axes, piece: Piece, dx: Array
) -> None:
    """Write dx from what goes to each place of the piece's windows.

    ``sent(number, out)`` writes it to ``out``, (N, rows, W', C).
    """
    h, w = axes
    n, _, _, c = dx[piece.samples].shape
    outs = (piece.last - piece.first, w.out)
    if _apart(axes):
        image = dx[piece.samples, slice(*piece_inputs(h, piece))]
        for number in range(h.kernel * w.kernel):
            sent(number, place(image, number, axes, outs))
        return
    out = room(_PART, (n, *outs, c), dx.dtype)

    def part(i: int, j: int) -> Array:
        sent(i * w.kernel + j, out)
        return out

    scatter(part, axes, piece, dx, _IMAGE)


def _apart(axes: Axes) -> bool:
    """Whether no two windows share an input, and all lie within the image."""
    return all(
        a.stride >= a.span and a.before == 0 and a.padded == a.size for a in axes
    )


def _clear_between(dx: Array, axes: Axes) -> None:
    """Write zeros to what no window reads: between windows and after the last."""
    if not _apart(axes):  # then sums are written everywhere
        return
    h, w = axes
    for i in range(h.span, h.stride):
        dx[:, i :: h.stride] = 0
    for j in range(w.span, w.stride):
        dx[:, :, j :: w.stride] = 0
    dx[:, h.out * h.stride :] = 0
    dx[:, :, w.out * w.stride :] = 0


def counts(axes: Axes, dtype: np.dtype[np.generic]) -> Array:
    """Return 1 / (inputs in a window) as (H', W', 1)."""

    def inside(axis: Axis) -> Array:
        first = np.arange(axis.out) * axis.stride - axis.before
        last = np.minimum(first + axis.kernel, axis.size)
        found: Array = last - np.maximum(first, 0)
        return found

    h, w = (inside(axis) for axis in axes)
    share: Array = 1 / (h[:, None, None] * w[None, :, None])
    return share.astype(dtype)


def mean(x: Array, y: Array, axes: Axes) -> None:
    """Write y, the mean of each window."""
    share = counts(axes, x.dtype)
    for piece in _pieces(x.shape[0], axes, x.shape[3]):
        total = y[piece.samples, piece.first : piece.last]
        for number, value in enumerate(_places(x, piece, axes, 0.0)):
            if number == 0:
                np.copyto(total, value)
            else:
                np.add(total, value, out=total)
        np.multiply(total, share[piece.first : piece.last], out=total)


def mean_gradient(dy: Array, dx: Array, axes: Axes) -> None:
    """Write dx: each of a window's inputs gets its share of dy."""
    share = counts(axes, dy.dtype)
    _clear_between(dx, axes)
    for piece in _pieces(dy.shape[0], axes, dy.shape[3]):
        part = dy[piece.samples, piece.first : piece.last]
        each = room(_NUMBER, part.shape, dy.dtype)
        np.multiply(part, share[piece.first : piece.last], out=each)

        def sent(number: int, out: Array, each: Array = each) -> None:
            copy_pixels(out, each)

        _send(sent, axes, piece, dx)


def global_mean(x: Array, y: Array) -> None:
    """y (N, C) = the mean of x (N, T, C) over T; a product with ones."""
    t = x.shape[1]
    row = ones(t, x.dtype)[None]
    np.matmul(row, x, out=y[:, None])
    np.multiply(y, x.dtype.type(1 / t), out=y)


def masked_mean(x: Array, share: Array, y: Array) -> None:
    """y (N, C) = Σ share x over T, for x (N, T, C) and share (N, T)."""
    np.matmul(share[:, None], x, out=y[:, None])


def global_maximum_gradient(x: Array, y: Array, dy: Array, dx: Array) -> None:
    """dx (N, T, C) from dy (N, C): equal ones share it, as in JAX."""
    for n in range(len(x)):
        won = np.equal(x[n], y[n], out=room(_BETTER, x[n].shape, _BOOL))
        number = room(_PART, y[n].shape, dy.dtype)
        np.add.reduce(won, axis=0, dtype=dy.dtype, out=number)
        np.divide(dy[n], number, out=number)
        np.multiply(won, number, out=dx[n])
