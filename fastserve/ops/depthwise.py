"""Depthwise convolutions: each channel has kernels of its own.

y[n, i, j, c D + m] = Σ x[n, i s + u d - p, j s + v d - p, c] W[u, v, c, m]
                      over u and v, with stride s, dilation d and p zeros around

x (N, H, W, C), W (kernel rows, kernel columns, C, D), y (N, H', W', C D). No product
of matrices helps here; ``einsum`` multiplies and adds in one pass over pieces that stay
in the cache.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.lib.stride_tricks import as_strided

from fastserve.ops.blocks import Array, room
from fastserve.ops.windows import (
    Axis,
    Piece,
    padded,
    piece_inputs,
    pieces,
    scatter,
    turned,
    windows,
)

Axes = tuple[Axis, Axis]
Finish = Callable[[slice], None]
SIZE = 1 << 18  # elements of a piece: 1 MB of float32
_IMAGE, _REPEATED, _KERNEL, _PART, _SUM = range(10, 15)  # the slots of ``room``


def _repeated(full: Array, times: int) -> Array:
    """(N, H, W, C) as (N, H, W, C times): what each of a channel's kernels sees."""
    if times == 1:
        return full
    more = room(_REPEATED, (*full.shape, times), full.dtype)
    np.copyto(more, full[..., None])
    return more.reshape(*full.shape[:3], full.shape[3] * times)


def _views(full: Array, axes: Axes, rows: int) -> Array:
    """(kh, kw, N, rows, W', C), or (kh, kw, N, rows, W' C) where rows are contiguous.

    Long rows are what NumPy's loops need.
    """
    w = axes[1]
    view = windows(full, axes, (rows, w.out))
    pixel = (full.shape[3] * full.itemsize, full.itemsize)
    if w.stride > 1 or full.strides[2:] != pixel:
        return view
    shape = (*view.shape[:4], w.out * full.shape[3])
    return as_strided(full, shape, (*view.strides[:4], full.itemsize))


def _along_rows(kernel: Array, width: int, slot: int) -> Array:
    """(kh, kw, C) as (kh, kw, width C): one row of a kernel's factors."""
    kh, kw, c = kernel.shape
    row = room(slot, (kh, kw, width, c), kernel.dtype)
    np.copyto(row, kernel[:, :, None])
    return row.reshape(kh, kw, width * c)


def _correlate(
    x: Array,
    kernel: Array,
    times: int,
    axes: Axes,
    into: Callable[[Piece], Array],
    finish: Callable[[Piece], None] | None = None,
) -> None:
    """Write each piece of the output to ``into(piece)``, (N, rows, W', C)."""
    h, w = axes
    c = kernel.shape[2]
    factors = _along_rows(kernel, w.out, _KERNEL)
    for piece in pieces(x.shape[0], h.out, w.padded * c, SIZE):
        before = (h.before, w.before)
        rows = piece_inputs(h, piece)
        full = padded(x[piece.samples], rows, before, w.padded, _IMAGE)
        view = _views(_repeated(full, times), axes, piece.last - piece.first)
        y = into(piece)
        if view.ndim == 5:
            flat = y.reshape(*y.shape[:2], w.out * c)
            np.einsum("ijnhx,ijx->nhx", view, factors, out=flat)
        else:
            np.einsum("ijnhwc,ijc->nhwc", view, kernel, out=y)
        if finish is not None:
            finish(piece)


def _part_of(y: Array) -> Callable[[Piece], Array]:
    return lambda piece: y[piece.samples, piece.first : piece.last]


def forward(
    x: Array, kernel: Array, y: Array, axes: Axes, finish: Finish | None = None
) -> None:
    """Write y; see ``convolution.forward`` for ``finish``."""
    h, w = axes

    def finished(piece: Piece) -> None:
        if finish is not None:
            finish(piece.rows(h.out, w.out))

    _correlate(x, _joined(kernel), kernel.shape[3], axes, _part_of(y), finished)


def _joined(kernel: Array) -> Array:
    """(kh, kw, C, D) as (kh, kw, C D)"""
    return kernel.reshape(*kernel.shape[:2], kernel.shape[2] * kernel.shape[3])


def kernel_gradient(x: Array, dy: Array, dkernel: Array, axes: Axes) -> None:
    """Write dW, the sum of x where each place of the kernel saw it, times dy."""
    h, w = axes
    times, dw = dkernel.shape[3], _joined(dkernel)
    c = dw.shape[2]
    if len(x) == 0:
        dkernel.fill(0)
    for i, piece in enumerate(pieces(x.shape[0], h.out, w.padded * c, SIZE)):
        before = (h.before, w.before)
        rows = piece_inputs(h, piece)
        full = padded(x[piece.samples], rows, before, w.padded, _IMAGE)
        part = dy[piece.samples, piece.first : piece.last]
        view = _views(_repeated(full, times), axes, piece.last - piece.first)
        long = view.ndim == 5
        if long:
            part = part.reshape(*part.shape[:2], w.out * c)
        found = dw if i == 0 else room(_SUM, dw.shape, dw.dtype)
        for at in np.ndindex(h.kernel, w.kernel):
            if long:
                row = room(_PART, (w.out, c), dy.dtype)
                np.einsum("nhx,nhx->x", view[at], part, out=row.reshape(w.out * c))
                np.add.reduce(row, axis=0, out=found[at])
            else:
                np.einsum("nhwc,nhwc->c", view[at], part, out=found[at])
        if i > 0:
            np.add(dw, found, out=dw)


def input_gradient(dy: Array, kernel: Array, dx: Array, axes: Axes) -> None:
    """Write dx: without strides it is a convolution with the kernel turned round."""
    times = kernel.shape[3]
    joined = _joined(kernel)
    if axes[0].stride == axes[1].stride == 1:
        into, finish = _part_of(dx), None
        if times > 1:
            into, finish = _summed(dx, times)
        _correlate(dy, joined[::-1, ::-1], 1, turned(axes), into, finish)
    else:
        _scatter(dy, joined, dx, axes, times)


def _summed(
    dx: Array, times: int
) -> tuple[Callable[[Piece], Array], Callable[[Piece], None]]:
    """Return memory for a piece of (..., C times), and what adds it up to dx's."""

    def into(piece: Piece) -> Array:
        n, _, w, c = dx[piece.samples].shape
        return room(_SUM, (n, piece.last - piece.first, w, c * times), dx.dtype)

    def finish(piece: Piece) -> None:
        part = dx[piece.samples, piece.first : piece.last]
        apart = into(piece).reshape(*part.shape, times)
        np.add.reduce(apart, axis=-1, out=part)

    return into, finish


def _scatter(dy: Array, kernel: Array, dx: Array, axes: Axes, times: int) -> None:
    h, w = axes
    c = kernel.shape[2]
    for piece in pieces(dy.shape[0], h.out, h.stride * w.padded * c, SIZE):
        rows = dy[piece.samples, piece.first : piece.last]
        product = room(_PART, rows.shape, dy.dtype)
        total = room(_SUM, (*rows.shape[:3], c // times), dy.dtype)

        def part(
            i: int,
            j: int,
            rows: Array = rows,
            out: Array = product,
            sums: Array = total,
        ) -> Array:
            np.multiply(rows, kernel[i, j], out=out)
            if times == 1:
                return out
            return np.add.reduce(out.reshape(*sums.shape, times), axis=-1, out=sums)

        scatter(part, axes, piece, dx, _IMAGE)


def backward(
    x: Array | None,
    dy: Array,
    kernel: Array,
    dkernel: Array | None,
    dx: Array | None,
    axes: Axes,
) -> None:
    """Write dkernel and dx, each unless it is None; x is needed for dkernel alone."""
    if dkernel is not None and x is not None:
        kernel_gradient(x, dy, dkernel, axes)
    if dx is not None:
        input_gradient(dy, kernel, dx, axes)
