"""The windows of a convolution or a pooling: which inputs belong to which output.

Images are (N, H, W, C); a sequence (N, T, C) is an image of height 1. Work goes in
pieces: some samples whole, or a band of rows of one large sample, so that what is made
of a piece stays in the cache.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import as_strided

from fastserve.ops.blocks import Array, room


@dataclass(frozen=True)
class Axis:
    """Windows along one axis: output ``o`` reads inputs from o stride - before on.

    Attributes:
        size: inputs; ``out``: outputs.
        kernel: inputs that an output reads, ``dilation`` apart.
        before: zeros that stand before the first input.
    """

    size: int
    kernel: int
    stride: int = 1
    dilation: int = 1
    before: int = 0
    out: int = 0

    @property
    def span(self) -> int:
        """Inputs from the first to the last that one output reads."""
        return (self.kernel - 1) * self.dilation + 1

    @property
    def padded(self) -> int:
        """Inputs with the zeros before and after them."""
        return max(self.before + self.size, (self.out - 1) * self.stride + self.span)


def window_axis(
    size: int, kernel: int, stride: int = 1, dilation: int = 1, padding: str = "valid"
) -> Axis:
    """Return the windows for Keras' ``padding``: 'valid', 'same' or 'causal'.

    ``out`` is 0 or less if a window doesn't fit. With 'same', ceil(size / stride)
    outputs; an odd number of zeros has the one more at the end, as TensorFlow has it.
    """
    span = (kernel - 1) * dilation + 1
    before = 0
    if padding == "valid":
        out = (size - span) // stride + 1
    else:
        out = -(-size // stride)
        missing = max((out - 1) * stride + span - size, 0)
        before = missing // 2 if padding == "same" else span - 1
    return Axis(size, kernel, stride, dilation, before, out)


def transposed_axis(
    size: int,
    kernel: int,
    stride: int = 1,
    dilation: int = 1,
    padding: str = "valid",
    output_padding: int | None = None,
) -> Axis:
    """Return the windows whose convolution maps the *output* of a transposed one back.

    ``size`` is the transposed convolution's input, here ``out``; its output is here
    ``size``. Padding is Keras 3's with JAX.
    """
    span = (kernel - 1) * dilation + 1
    if padding == "valid":
        extra = max(stride - span, 0) if output_padding is None else output_padding
        return Axis(
            (size - 1) * stride + span + extra, kernel, stride, dilation, 0, size
        )
    if output_padding is None:
        total = stride + span - 2
    else:
        total = span + span % 2 - 2 + output_padding
    left = min(total // 2 + total % 2, span - 1)
    result = (size - 1) * stride + total - span + 2
    return Axis(result, kernel, stride, dilation, span - 1 - left, size)


def turned(axes: tuple[Axis, Axis]) -> tuple[Axis, Axis]:
    """Return the windows of the outputs that an input goes into, for strides of 1."""
    h, w = (
        Axis(a.out, a.kernel, 1, a.dilation, a.span - 1 - a.before, a.size)
        for a in axes
    )
    return h, w


@dataclass(frozen=True)
class Piece:
    """Samples, and rows of their output."""

    samples: slice
    first: int
    last: int  # one past the last row

    def rows(self, height: int, width: int) -> slice:
        """The piece's rows of the output (N, height, width, C) as (N H W, C)."""
        start = self.samples.start * height + self.first
        stop = (self.samples.stop - 1) * height + self.last
        return slice(start * width, stop * width)


def pieces(samples: int, rows: int, row_size: int, size: int) -> Iterator[Piece]:
    """Yield pieces of about ``size`` elements; a row of one sample has ``row_size``."""
    if rows * row_size > size:
        step = max(1, size // row_size)
        step = -(-rows // -(-rows // step))  # equal bands
        for n in range(samples):
            for first in range(0, rows, step):
                yield Piece(slice(n, n + 1), first, min(first + step, rows))
    else:
        step = max(1, size // (rows * row_size))
        for n in range(0, samples, step):
            yield Piece(slice(n, min(n + step, samples)), 0, rows)


def padded(
    x: Array,
    rows: tuple[int, int],
    before: tuple[int, int],
    width: int,
    slot: int,
    fill: float = 0.0,
) -> Array:
    """Return rows from ``rows[0]`` to ``rows[1]`` of x (N, H, W, C) with zeros around.

    Rows count from the first of the ``before[0]`` zero rows; ``before[1]`` zeros are
    left of each row and it is cut or filled to ``width``. It is a view of x if no zeros
    are needed, otherwise memory of this slot. ``fill`` may take the place of zero.
    """
    first, last = rows[0] - before[0], rows[1] - before[0]
    height, columns = x.shape[1:3]
    if first >= 0 and last <= height and before[1] == 0 and width <= columns:
        return x[:, first:last, :width]
    full = room(slot, (x.shape[0], last - first, width, x.shape[3]), x.dtype)
    top, bottom = max(0, -first), max(0, min(last, height) - first)
    left, right = before[1], min(before[1] + columns, width)
    full[:, :top] = fill
    full[:, bottom:] = fill
    middle = full[:, top:bottom]
    middle[:, :, :left] = fill
    middle[:, :, right:] = fill
    middle[:, :, left:right] = x[
        :, max(0, first) : max(0, first) + bottom - top, : right - left
    ]
    return full


def write_unpadded(
    full: Array, first: int, before: tuple[int, int], written: int, x: Array
) -> None:
    """The reverse of ``padded``: write ``full`` without its zeros to x (N, H, W, C).

    ``first`` is the padded row where ``full`` begins; rows before the padded row
    ``written`` hold something already, so it is added there.
    """
    height, columns = x.shape[1:3]
    start = first - before[0]
    top, bottom = max(0, start), min(height, start + full.shape[1])
    if bottom <= top:
        return
    right = min(columns, full.shape[2] - before[1])
    inner = full[:, top - start : bottom - start, before[1] : before[1] + right]
    both = min(max(written - before[0], top), bottom)
    if both > top:
        part = x[:, top:both, :right]
        np.add(part, inner[:, : both - top], out=part)
    np.copyto(x[:, both:bottom, :right], inner[:, both - top :])


def place(
    full: Array, at: int, axes: tuple[Axis, Axis], outs: tuple[int, int]
) -> Array:
    """Return ``windows(...)[i, j]`` for at = i kw + j; several times as fast alone."""
    h, w = axes
    i, j = divmod(at, w.kernel)
    top, left = i * h.dilation, j * w.dilation
    return full[
        :,
        top : top + (outs[0] - 1) * h.stride + 1 : h.stride,
        left : left + (outs[1] - 1) * w.stride + 1 : w.stride,
    ]


def windows(full: Array, axes: tuple[Axis, Axis], outs: tuple[int, int]) -> Array:
    """Return the view (kernel rows, kernel columns, N, outs, C) of a padded piece."""
    n, _, _, c = full.shape
    sn, sh, sw, sc = full.strides
    h, w = axes
    return as_strided(
        full,
        (h.kernel, w.kernel, n, *outs, c),
        (h.dilation * sh, w.dilation * sw, sn, h.stride * sh, w.stride * sw, sc),
    )


def copy_pixels(out: Array, view: Array) -> None:
    """Copy (..., C) where pixels lie apart but their channels together.

    All channels of a pixel are copied at once, which takes half of the time.
    """
    if view.strides[-1] == view.itemsize:
        pixel = np.dtype((np.void, view.shape[-1] * view.itemsize))
        out, view = out.view(pixel), view.view(pixel)
    np.copyto(out, view)


def piece_inputs(h: Axis, piece: Piece) -> tuple[int, int]:
    """Return the first padded row that the piece's outputs read, and the end."""
    return piece.first * h.stride, (piece.last - 1) * h.stride + h.span


def scatter(
    part: Callable[[int, int], Array],
    axes: tuple[Axis, Axis],
    piece: Piece,
    dx: Array,
    slot: int,
    by_channel: bool = False,
    by_column: bool = False,
) -> None:
    """Add what the piece's outputs send back to their windows; write the sums to dx.

    ``part(i, j)`` is what goes to the place (i, j) of each window: (N, rows, W', C) for
    dx (N, H, W, C). Pieces come in order, each sample's from top to bottom. With
    ``by_channel`` the parts lie channel by channel in memory, and so shall the sums:
    long runs where channels are few. With ``by_column`` part(i, j) is what the outputs
    of column j send to row i of their windows: (kernel columns, N, rows, C).
    """
    h, w = axes
    first, last = piece_inputs(h, piece)
    start, written = first, 0
    if piece.first > 0:
        written = first - h.stride + h.span
        start = min(first, written)  # a stride beyond the kernel leaves rows between
    if piece.last == h.out:
        last = h.padded
    image = dx[piece.samples]
    shape = (image.shape[0], last - start, w.padded)
    if by_channel:
        full = room(slot, (dx.shape[3], *shape), dx.dtype).transpose(1, 2, 3, 0)
    else:
        full = room(slot, (*shape, dx.shape[3]), dx.dtype)
    full.fill(0)
    below, outs = full[:, first - start :], (piece.last - piece.first, w.out)
    if by_column:
        view = windows(below, axes, outs)
        for i, j in itertools.product(range(h.kernel), range(w.out)):
            there = view[i, :, :, :, j]
            np.add(there, part(i, j), out=there)
    else:
        for at in range(h.kernel * w.kernel):
            there = place(below, at, axes, outs)
            np.add(there, part(*divmod(at, w.kernel)), out=there)
    write_unpadded(full, start, (h.before, w.before), written, image)
