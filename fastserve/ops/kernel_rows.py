"""Convolutions of stride 1 as one product for each row of the kernel.

What an output reads of one row of inputs lies together: kernel columns x channels
numbers. Gathered for all inputs, Z (N, H, W', K) with K = kernel columns x C, they give

    y[n, i] = Σ Z[n, i + u d] W[u]      over the kernel's rows u, with W[u] (K, O)

so that an input is copied once for each of the kernel's columns, not for each of its
places as in ``patches.py``. Backward gathers dy alone, for both gradients: dx is the
convolution of dy with the turned kernel, and with Z made of dy

    dW[u] = Σ x[n]ᵀ Z[n, u d : u d + H]     (C, kernel columns x O), turned alike
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.lib.stride_tricks import as_strided

from fastserve.ops.blocks import Array, room
from fastserve.ops.windows import Axis, Piece, padded, piece_inputs, pieces, turned

Axes = tuple[Axis, Axis]
Finish = Callable[[slice], None]
SIZE = 1 << 18  # elements of Z of a piece: 1 MB of float32
FEW, MANY = 8, 16  # filters for which it pays: with more, Winograd's filtering does
_IMAGE, _ROWS, _PART, _KERNEL, _SUMS, _SUM = range(10, 16)  # the slots of ``room``


def pays(h: Axis, w: Axis, inputs: int, filters: int) -> bool:
    """Return whether a forward and backward are faster here than the other ways."""
    if any(axis.stride != 1 or axis.kernel == 1 for axis in (h, w)):
        return False
    # backward multiplies for each input, not for each output
    alike = h.size * w.size <= 1.2 * h.out * w.out
    return alike and min(inputs, filters) >= FEW and filters <= MANY


def _pieces(samples: int, h: Axis, w: Axis, channels: int) -> list[Piece]:
    return list(pieces(samples, h.out, w.out * w.kernel * channels, SIZE))


def _gather(x: Array, piece: Piece, h: Axis, w: Axis) -> Array:
    """Return Z (N, rows that the piece's outputs read, W', kernel columns x C)."""
    image, before = x[piece.samples], (h.before, w.before)
    full = padded(image, piece_inputs(h, piece), before, w.padded, _IMAGE)
    n, rows, _, c = full.shape
    sn, sh, sw, sc = full.strides
    view = as_strided(
        full, (n, rows, w.out, w.kernel, c), (sn, sh, sw, w.dilation * sw, sc)
    )
    z = room(_ROWS, view.shape, x.dtype)
    np.copyto(z, view)
    return z.reshape(n, rows, w.out, w.kernel * c)


def _row(z: Array, u: int, h: Axis, piece: Piece) -> Array:
    """Return what the kernel's row u multiplies, (N, outputs, K)."""
    rows = z[:, u * h.dilation :][:, : piece.last - piece.first]
    return rows.reshape(len(z), -1, z.shape[3])


def _outputs(y: Array, piece: Piece) -> Array:
    """(N, H', W', O) as (N, outputs of the piece, O)"""
    part = y[piece.samples, piece.first : piece.last]
    return part.reshape(len(part), -1, y.shape[3])


def _multiply(z: Array, kernel: Array, h: Axis, piece: Piece, out: Array) -> None:
    """Write out (N, outputs, O), the sum over the kernel's rows."""
    matrices = kernel.reshape(h.kernel, z.shape[3], kernel.shape[3])
    part = room(_PART, out.shape, out.dtype)
    np.matmul(_row(z, 0, h, piece), matrices[0], out=out)
    for u in range(1, h.kernel):
        np.matmul(_row(z, u, h, piece), matrices[u], out=part)
        np.add(out, part, out=out)


def forward(
    x: Array, kernel: Array, y: Array, axes: Axes, finish: Finish | None
) -> None:
    """Write y (N, H', W', O) from x (N, H, W, C) and kernel (kh, kw, C, O)."""
    h, w = axes
    for piece in _pieces(len(x), h, w, kernel.shape[2]):
        z = _gather(x, piece, h, w)
        _multiply(z, kernel, h, piece, _outputs(y, piece))
        if finish is not None:
            finish(piece.rows(h.out, w.out))


def backward(
    x: Array | None,
    dy: Array,
    kernel: Array,
    dkernel: Array | None,
    dx: Array | None,
    axes: Axes,
) -> None:
    """Write dkernel and dx, each unless it is None; x is needed for dkernel alone."""
    kh, kw, channels, filters = kernel.shape
    h, w = turned(axes)
    back = room(_KERNEL, (kh, kw, filters, channels), kernel.dtype)
    np.copyto(back, kernel[::-1, ::-1].transpose(0, 1, 3, 2))
    sums = room(_SUMS, (kh, channels, kw * filters), dy.dtype)
    total = room(_SUM, sums.shape[1:], dy.dtype)
    sums.fill(0)
    for piece in _pieces(len(dy), h, w, filters):
        z = _gather(dy, piece, h, w)
        if dkernel is not None and x is not None:
            columns = _outputs(x, piece).transpose(0, 2, 1)
            each = room(_PART, (len(z), *sums.shape[1:]), dy.dtype)
            for u in range(kh):
                np.matmul(columns, _row(z, u, h, piece), out=each)
                np.add.reduce(each, axis=0, out=total)
                np.add(sums[u], total, out=sums[u])
        if dx is not None:
            _multiply(z, back, h, piece, _outputs(dx, piece))
    if dkernel is not None:
        found = sums.reshape(kh, channels, kw, filters).transpose(0, 2, 1, 3)
        np.copyto(dkernel, found[::-1, ::-1])
