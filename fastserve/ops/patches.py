"""Convolutions as products with patches: any kernel, stride and dilation.

The patch of an output is all that it reads; patches P (T, K) of T outputs, with K =
kernel rows x kernel columns x channels, and the kernel W (K, O) give

    y = P W,   dW = Pᵀ dy,   dP = dy Wᵀ,   dx = sums of dP where patches overlap

A few hundred kB of patches are gathered at a time, which the product then reads from
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
    windows,
)

Finish = Callable[[slice], None]
SIZE = 1 << 17  # elements of the patches of a piece: 512 kB of float32
SHORT = 32  # channels x kernel columns below which runs of them are slow to copy
_IMAGE, _PATCHES = 10, 11  # the slots of ``room``


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

    def memory(self, piece: Piece, samples: int, like: Array) -> tuple[Array, Array]:
        """Return memory for patches as (T, K), and as (kh, kw, N, rows, out, C).

        Few channels are short runs to copy: then K is the first axis in memory.
        """
        kh, kw, c = self.h.kernel, self.w.kernel, self.channels
        outs = (samples, piece.last - piece.first, self.w.out)
        if c * kw < SHORT:
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
        rows, places = self.memory(piece, image.shape[0], x)
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
    x: Array, kernel: Array, y: Array, axes: tuple[Axis, Axis], finish: Finish | None
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
    axes: tuple[Axis, Axis],
) -> None:
    """Write dkernel and dx, each unless it is None; x is needed for dkernel alone."""
    patches = _Patches(*axes, kernel.shape[2])
    matrix = _matrix(kernel)
    for i, piece in enumerate(patches.pieces(dy.shape[0], kernel.shape[3])):
        rows = _flat(dy, piece)
        if dkernel is not None and x is not None:
            found = patches.gather(x, piece)
            if i == 0:
                np.matmul(found.T, rows, out=_matrix(dkernel))
            else:
                add_product(found, rows, _matrix(dkernel))
        if dx is None:
            continue
        if patches.plain:
            np.matmul(rows, matrix.T, out=_flat(dx, piece))
            continue
        samples = piece.samples.stop - piece.samples.start
        found, places = patches.memory(piece, samples, dy)
        np.matmul(rows, matrix.T, out=found)
        scatter(lambda *at, of=places: of[at], axes, piece, dx, _IMAGE)
