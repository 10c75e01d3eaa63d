"""Convolutions as products with patches: any kernel, stride and dilation.

The patch of an output is all that it reads; patches P (T, K) of T outputs, with K =
kernel rows x kernel columns x channels, and the kernel W (K, O) give

    y = P W,   dW = Pᵀ dy,   dP = dy Wᵀ,   dx = sums of dP where patches overlap

One or two MB of patches are gathered at a time, which the product then reads from
the cache. A small layer's are all kept by forward, for dW.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator

import numpy as np

from fastserve.ops.blocks import Array, room
from fastserve.ops.linear import add_product
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
SIZE = 1 << 19  # elements of the patches of a piece: 2 MB of float32
KEPT = 1 << 20  # elements of all patches that forward keeps at most: 4 MB of float32
SHORT = 24  # numbers that lie together: fewer are slower to copy than a row
WIDE = 32  # filters that a product shall have at least
_IMAGE, _PATCHES, _SUMS, _TURNED, _KERNEL = range(10, 15)  # the slots of ``room``


class _Patches:
    """The patches of one convolution, piece by piece."""

    def __init__(self, h: Axis, w: Axis, channels: int) -> None:
        self.h, self.w, self.channels = h, w, channels
        self.before = (h.before, w.before)
        self.size = h.kernel * w.kernel * channels
        # 1 x 1 without strides: the image itself holds the patches
        self.plain = self.size == channels and all(
            axis.stride == 1 and axis.before == 0 and axis.padded == axis.size
            for axis in (h, w)
        )

    def pieces(self, samples: int, filters: int) -> list[Piece]:
        row = self.w.out * max(self.size, filters)
        return list(pieces(samples, self.h.out, row, SIZE))

    def short(self, run: int) -> bool:
        """Whether ``run`` numbers that lie together are worse to copy than a row."""
        return run < min(SHORT, self.w.out)

    def memory(
        self,
        piece: Piece,
        samples: int,
        like: Array,
        by_channel: bool,
        kept: Array | None = None,
    ) -> tuple[Array, Array]:
        """Return memory for patches as (T, K), and as (kh, kw, N, rows, out, C).

        It is the piece's part of ``kept`` if that is given. With ``by_channel`` K is
        the first axis in memory: rows of outputs lie together.
        """
        kh, kw, c = self.h.kernel, self.w.kernel, self.channels
        outs = (samples, piece.last - piece.first, self.w.out)
        count = math.prod(outs)
        if kept is None:
            flat = room(_PATCHES, (count * self.size,), like.dtype)
        else:
            start = piece.rows(self.h.out, self.w.out).start
            flat = kept[start * self.size : (start + count) * self.size]
        if by_channel:
            block = flat.reshape(kh, kw, c, *outs)
            rows = block.reshape(self.size, count).T
            return rows, block.transpose(0, 1, 3, 4, 5, 2)
        block = flat.reshape(*outs, kh, kw, c)
        rows = block.reshape(count, self.size)
        return rows, block.transpose(3, 4, 0, 1, 2, 5)

    def gather(self, x: Array, piece: Piece, kept: Array | None = None) -> Array:
        """Return the piece's patches as (T, K); keep them."""
        image = x[piece.samples]
        outs = (piece.last - piece.first, self.w.out)
        if self.plain:
            part = image[:, piece.first : piece.last]
            return part.reshape(math.prod(part.shape[:3]), self.channels)
        full = padded(
            image, piece_inputs(self.h, piece), self.before, self.w.padded, _IMAGE
        )
        rows, places = self._own_memory(x, piece, kept)
        np.copyto(places, windows(full, (self.h, self.w), outs))
        return rows

    def _own_memory(
        self, x: Array, piece: Piece, kept: Array | None
    ) -> tuple[Array, Array]:
        samples = piece.samples.stop - piece.samples.start
        by_channel = self.short(self.channels * self.w.kernel)
        return self.memory(piece, samples, x, by_channel, kept)

    def gathered(self, x: Array, piece: Piece, kept: Array | None) -> Array:
        """Return the patches that forward has kept, or gather them."""
        if kept is None:
            return self.gather(x, piece)
        return self._own_memory(x, piece, kept)[0]


def _flat(y: Array, piece: Piece) -> Array:
    """The piece's rows of y (N, H', W', O) as (T, O)."""
    part = y[piece.samples, piece.first : piece.last]
    return part.reshape(math.prod(part.shape[:3]), y.shape[3])


def _matrix(kernel: Array) -> Array:
    """(kernel rows, kernel columns, C, O) as (K, O)"""
    return kernel.reshape(math.prod(kernel.shape[:3]), kernel.shape[3])


def to_keep(samples: int, axes: Axes, channels: int, filters: int) -> int:
    """Return the number of elements of all patches if they are few, otherwise 0."""
    w = _wide_axis(axes[1], _columns(axes[1], filters))
    patches = _Patches(axes[0], w, channels)
    size = samples * axes[0].out * w.out * patches.size
    return 0 if patches.plain or size > KEPT else size


def forward(
    x: Array,
    kernel: Array,
    y: Array,
    axes: Axes,
    finish: Finish | None,
    kept: Array | None = None,
) -> None:
    """Write y (N, H', W', O) from x (N, H, W, C) and kernel (kh, kw, C, O).

    ``kept`` is memory of ``to_keep`` elements for ``backward``; y is contiguous then.
    """
    step = _columns(axes[1], kernel.shape[3]) if y.flags.c_contiguous else 1
    matrix = _matrix(_widen(kernel, axes[1], step))
    h, w = axes[0], _wide_axis(axes[1], step)
    patches = _Patches(h, w, kernel.shape[2])
    wide = _wide(y, step)
    for piece in patches.pieces(x.shape[0], wide.shape[3]):
        np.matmul(patches.gather(x, piece, kept), matrix, out=_flat(wide, piece))
        if finish is not None:
            finish(piece.rows(axes[0].out, axes[1].out))


def backward(
    x: Array | None,
    dy: Array,
    kernel: Array,
    dkernel: Array | None,
    dx: Array | None,
    axes: Axes,
    kept: Array | None = None,
) -> None:
    """Write dkernel and dx, each unless it is None; x is needed for dkernel alone."""
    if dkernel is not None and x is not None:
        _kernel_gradient(x, dy, dkernel, axes, kept)
    if dx is None:
        return
    channels, filters = kernel.shape[2:]
    if filters <= 2 * channels and all(axis.stride == 1 for axis in axes):
        # what the outputs send back to an input is a convolution too
        back = room(_TURNED, (*kernel.shape[:2], filters, channels), kernel.dtype)
        np.copyto(back, kernel[::-1, ::-1].transpose(0, 1, 3, 2))
        forward(dy, back, dx, turned(axes), None)
    else:
        _scattered(dy, kernel, dx, axes)


def _kernel_gradient(
    x: Array, dy: Array, dkernel: Array, axes: Axes, kept: Array | None
) -> None:
    step = _columns(axes[1], dkernel.shape[3]) if dy.flags.c_contiguous else 1
    kept = kept if dy.flags.c_contiguous else None
    wide, w = _wide(dy, step), _wide_axis(axes[1], step)
    patches = _Patches(axes[0], w, dkernel.shape[2])
    shape = (axes[0].kernel, w.kernel, dkernel.shape[2], wide.shape[3])
    sums = room(_SUMS, shape, dy.dtype)
    for i, piece in enumerate(patches.pieces(dy.shape[0], wide.shape[3])):
        found, rows = patches.gathered(x, piece, kept), _flat(wide, piece)
        if i == 0:
            np.matmul(found.T, rows, out=_matrix(sums))
        else:
            add_product(found, rows, _matrix(sums))
    for i, part in enumerate(_parts(sums, axes[1], step)):
        np.copyto(dkernel, part) if i == 0 else np.add(dkernel, part, out=dkernel)


def _scattered(dy: Array, kernel: Array, dx: Array, axes: Axes) -> None:
    """Write dx as the sums of dP where patches overlap."""
    h, step = axes[0], _columns_back(axes[1], kernel.shape[2])
    by_column = step > 1 and dy.flags.c_contiguous
    step = step if by_column else 1
    w, wide = _wide_axis(axes[1], step), _wide(dy, step)
    patches = _Patches(h, w, kernel.shape[2])
    matrix = _matrix(_widen(kernel, axes[1], step))
    by_channel = not by_column and patches.short(patches.channels)
    for piece in patches.pieces(dy.shape[0], wide.shape[3]):
        rows = _flat(wide, piece)
        if patches.plain:
            np.matmul(rows, matrix.T, out=_flat(dx, piece))
            continue
        samples = piece.samples.stop - piece.samples.start
        found, places = patches.memory(piece, samples, dy, by_channel)
        np.matmul(rows, matrix.T, out=found)
        if by_column:  # few additions of long runs, all columns of a window together
            places = places.transpose(0, 4, 1, 2, 3, 5)
        part = functools.partial(_part, places)
        scatter(part, (h, w), piece, dx, _IMAGE, by_channel, by_column)


def _part(places: Array, i: int, j: int) -> Array:
    part: Array = places[i, j]
    return part


# -- several columns at a time -------------------------------------------------------
#
# A product with few filters is slow: BLAS' kernels compute 16 or more at a time. g
# neighbouring outputs with O filters are one output with g O filters of a wider kernel,
# of stride g s, which has zeros where a filter doesn't reach. It multiplies more
# numbers, but gathers fewer, as neighbours share most of their inputs.


def _columns(w: Axis, filters: int) -> int:
    """Return g, a divisor of the outputs of a row."""
    if w.kernel == 1:
        return 1
    most = max(1, WIDE // filters)
    return max(g for g in range(1, most + 1) if w.out % g == 0)


def _columns_back(w: Axis, channels: int) -> int:
    """Return g for the sums of what windows get back: where they overlap much."""
    most = w.kernel if w.kernel >= 5 and channels >= 3 else 1
    return max(g for g in range(1, most + 1) if w.out % g == 0)


def _wide_axis(w: Axis, g: int) -> Axis:
    if g == 1:
        return w
    span = (g - 1) * w.stride + w.span
    return Axis(w.size, span, g * w.stride, 1, w.before, w.out // g)


def _wide(y: Array, g: int) -> Array:
    """(N, H', W', O) as (N, H', W' / g, g O)"""
    return y.reshape(*y.shape[:2], y.shape[2] // g, g * y.shape[3])


def _parts(wide: Array, w: Axis, g: int) -> Iterator[Array]:
    """Yield where the kernel lies in the wide one, for each of the g outputs."""
    o = wide.shape[3] // g
    for i in range(g):
        first = i * w.stride
        place = slice(first, first + w.span, w.dilation if g > 1 else 1)
        yield wide[:, place, :, i * o : (i + 1) * o]


def _widen(kernel: Array, w: Axis, g: int) -> Array:
    """Return (kernel rows, wide kernel columns, C, g O)."""
    if g == 1:
        return kernel
    kh, _, c, o = kernel.shape
    wide = room(_KERNEL, (kh, (g - 1) * w.stride + w.span, c, g * o), kernel.dtype)
    wide.fill(0)
    for part in _parts(wide, w, g):
        np.copyto(part, kernel)
    return wide
