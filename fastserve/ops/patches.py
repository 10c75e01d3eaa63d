"""Convolutions as products with patches: any kernel, stride and dilation.

The patch of an output is all that it reads; patches P (T, K) of T outputs, with K =
kernel rows x kernel columns x channels, and the kernel W (K, O) give

    y = P W,   dW = Pᵀ dy,   dP = dy Wᵀ,   dx = sums of dP where patches overlap

One or two MB of patches are gathered at a time, which the product then reads from
the cache.
"""

from __future__ import annotations

import math
from collections.abc import Callable

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
SHORT = 24  # numbers that lie together: fewer are slower to copy than a row
_IMAGE, _PATCHES, _KERNEL = 10, 11, 12  # the slots of ``room``


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
        self, piece: Piece, samples: int, like: Array, by_channel: bool
    ) -> tuple[Array, Array]:
        """Return memory for patches as (T, K), and as (kh, kw, N, rows, out, C).

        With ``by_channel`` K is the first axis in memory: rows of outputs lie together.
        """
        kh, kw, c = self.h.kernel, self.w.kernel, self.channels
        outs = (samples, piece.last - piece.first, self.w.out)
        if by_channel:
            block = room(_PATCHES, (kh, kw, c, *outs), like.dtype)
            rows = block.reshape(self.size, math.prod(outs)).T
            return rows, block.transpose(0, 1, 3, 4, 5, 2)
        block = room(_PATCHES, (*outs, kh, kw, c), like.dtype)
        rows = block.reshape(math.prod(outs), self.size)
        return rows, block.transpose(3, 4, 0, 1, 2, 5)

    def gather(self, x: Array, piece: Piece) -> Array:
        """Return the piece's patches as (T, K)."""
        image = x[piece.samples]
        outs = (piece.last - piece.first, self.w.out)
        if self.plain:
            part = image[:, piece.first : piece.last]
            return part.reshape(math.prod(part.shape[:3]), self.channels)
        full = padded(
            image, piece_inputs(self.h, piece), self.before, self.w.padded, _IMAGE
        )
        by_channel = self.short(self.channels * self.w.kernel)
        rows, places = self.memory(piece, image.shape[0], x, by_channel)
        np.copyto(places, windows(full, (self.h, self.w), outs))
        return rows


def _flat(y: Array, piece: Piece) -> Array:
    """The piece's rows of y (N, H', W', O) as (T, O)."""
    part = y[piece.samples, piece.first : piece.last]
    return part.reshape(math.prod(part.shape[:3]), y.shape[3])


def _matrix(kernel: Array) -> Array:
    """(kernel rows, kernel columns, C, O) as (K, O)"""
    return kernel.reshape(math.prod(kernel.shape[:3]), kernel.shape[3])


def forward(
    x: Array, kernel: Array, y: Array, axes: Axes, finish: Finish | None
) -> None:
    """Write y (N, H', W', O) from x (N, H, W, C) and kernel (kh, kw, C, O)."""
    patches = _Patches(*axes, kernel.shape[2])
    matrix = _matrix(kernel)
    for piece in patches.pieces(x.shape[0], kernel.shape[3]):
        np.matmul(patches.gather(x, piece), matrix, out=_flat(y, piece))
        if finish is not None:
            finish(piece.rows(axes[0].out, axes[1].out))


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
        _kernel_gradient(x, dy, dkernel, axes)
    if dx is None:
        return
    channels, filters = kernel.shape[2:]
    if axes[0].stride == axes[1].stride == 1 and filters <= 2 * channels:
        back = room(_KERNEL, (*kernel.shape[:2], filters, channels), dy.dtype)
        np.copyto(back, kernel[::-1, ::-1].transpose(0, 1, 3, 2))
        forward(dy, back, dx, turned(axes), None)
    else:
        _input_gradient(dy, kernel, dx, axes)


def _kernel_gradient(x: Array, dy: Array, dkernel: Array, axes: Axes) -> None:
    patches = _Patches(*axes, dkernel.shape[2])
    dmatrix = _matrix(dkernel)
    for i, piece in enumerate(patches.pieces(x.shape[0], dkernel.shape[3])):
        found, rows = patches.gather(x, piece), _flat(dy, piece)
        if i == 0:
            np.matmul(found.T, rows, out=dmatrix)
        else:
            add_product(found, rows, dmatrix)


def _input_gradient(dy: Array, kernel: Array, dx: Array, axes: Axes) -> None:
    patches = _Patches(*axes, kernel.shape[2])
    matrix = _matrix(kernel)
    by_channel = patches.short(patches.channels)
    for piece in patches.pieces(dy.shape[0], kernel.shape[3]):
        samples = piece.samples.stop - piece.samples.start
        found, places = patches.memory(piece, samples, dy, by_channel)
        np.matmul(_flat(dy, piece), matrix.T, out=found)
        scatter(lambda *at, of=places: of[at], axes, piece, dx, _IMAGE, by_channel)
