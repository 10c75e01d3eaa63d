"""Convolutions of stride 1 with a third of the multiplications.

Winograd's minimal filtering (Lavin, Gray, "Fast algorithms for convolutional neural
networks", 2016): a tile d of n x n inputs, n = m + k - 1, gives m x m outputs of a
k x k kernel g as

    y = Aᵀ [(G g Gᵀ) ∘ (B d Bᵀ)] A

so that a product over the channels is needed for each of n² points instead of for each
of m² k² pairs: 36 instead of 144 for n = 6 and k = 3. A, G and B evaluate polynomials
in n - 1 points and infinity; the points ±2/3, ±3/2, 0 keep rounding errors small: about
1.5e-6 of the largest output in float32, where the plain sum has 0.4e-6.

The transforms of both axes are one matrix product with a Kronecker product, (n², n²)
for B. Backward is the transposed algorithm, with the same matrices; a small layer's
transformed tiles B d Bᵀ are kept by forward, for the kernel's gradient.

Shapes: P = n² points, Q = m² outputs of a tile, T tiles, C and O channels.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import numpy as np
from numpy.lib.stride_tricks import as_strided

from fastserve.ops.blocks import Array, room
from fastserve.ops.windows import (
    Axis,
    Piece,
    copy_pixels,
    padded,
    pieces,
    write_unpadded,
)

Finish = Callable[[slice], None]
POINTS = (0.0, 2 / 3, -2 / 3, 3 / 2, -3 / 2)
TILE = len(POINTS) + 1
SIZE = 1 << 18  # elements of the tiles of a piece: 1 MB of float32
KEPT = 1 << 20  # elements of tiles that forward keeps at most: 4 MB of float32
LINE = 64  # bytes of a line of the cache
# the slots of ``room``: tiles, their transform, products with the kernel ...
_IMAGE, _ONE, _TWO, _THREE, _KERNEL, _SUMS, _MORE = range(10, 17)


def outputs(kernel: int) -> int:
    """Return m, the outputs of a tile along an axis; 1 if the kernel has size 1."""
    return 1 if kernel == 1 else TILE + 1 - kernel


def _points(kernel: int) -> int:
    return 1 if kernel == 1 else TILE


@functools.cache
def _axis_matrices(kernel: int) -> tuple[Array, Array, Array]:
    """Return A (n, m), G (n, k) and B (n, n) for one axis, in float64."""
    if kernel == 1:
        one = np.ones((1, 1))
        return one, one, one

    def evaluate(degree: int) -> Array:
        values: Array = np.vander(POINTS, degree, increasing=True)
        return np.vstack([values, np.eye(degree)[-1:]])  # the last is infinity

    a, g = evaluate(outputs(kernel)), evaluate(kernel)
    b = np.linalg.inv(evaluate(TILE)).T
    scale = np.sqrt(np.abs(b).sum(1) / np.abs(g).sum(1))[:, None]  # alike in size
    return a, g * scale, b / scale


@functools.cache
def _matrices(height: int, width: int, dtype: str) -> tuple[Array, Array, Array]:
    """Return Aᵀ (Q, P), G (P, kernel) and B (P, P) for both axes together."""
    ah, gh, bh = _axis_matrices(height)
    aw, gw, bw = _axis_matrices(width)
    a, g, b = np.kron(ah, aw).T, np.kron(gh, gw), np.kron(bh, bw)
    return tuple(np.ascontiguousarray(m, dtype) for m in (a, g, b))  # type: ignore[return-value]


def pays(h: Axis, w: Axis, inputs: int, filters: int) -> bool:
    """Return whether a forward and backward are faster here than with patches.

    In units of a multiplication: the products are counted, what it takes to move a
    number was measured.
    """
    for axis in (h, w):
        if axis.stride != 1 or axis.dilation != 1 or axis.kernel >= TILE:
            return False
    p = _points(h.kernel) * _points(w.kernel)
    mh, mw = outputs(h.kernel), outputs(w.kernel)
    q, k = mh * mw, h.kernel * w.kernel
    c, o = inputs, filters
    tiles = -(-h.out // mh) * -(-w.out // mw)
    here = tiles * p * (3 * c * o + 3 * p * c + 2 * q * o + 47 * (c + o) + 1260)
    return k > 1 and here < h.out * w.out * k * c * (3 * o + 60)


def _rows(slot: int, rows: int, tiles: int, channels: int, like: Array) -> Array:
    """Return memory (rows, tiles * channels) whose rows lie apart.

    Rows of a multiple of 4 kB fall on the same lines of the cache; so each has 64 bytes
    more.
    """
    length = tiles * channels
    full = room(slot, (rows, length + LINE // like.itemsize), like.dtype)
    return full[:, :length]


class _Tiles:
    """The tiles of one convolution, and how they are gathered and put back."""

    def __init__(self, h: Axis, w: Axis) -> None:
        self.h, self.w = h, w
        self.nh, self.nw = _points(h.kernel), _points(w.kernel)
        self.mh, self.mw = outputs(h.kernel), outputs(w.kernel)
        self.down, self.across = -(-h.out // self.mh), -(-w.out // self.mw)
        self.width = (self.across - 1) * self.mw + self.nw  # inputs of a row of tiles
        self.before = (h.before, w.before)

    def pieces(self, samples: int, channels: int) -> list[Piece]:
        row = self.across * self.nh * self.nw * channels
        return list(pieces(samples, self.down, row, SIZE))

    def kept(self, memory: Array, number: int, piece: Piece, channels: int) -> Array:
        """Return the part of ``memory`` for a piece's transformed tiles (P, T C)."""
        points, line = self.nh * self.nw, LINE // memory.itemsize
        samples = piece.samples.stop - piece.samples.start
        length = samples * (piece.last - piece.first) * self.across * channels
        before = piece.samples.start * self.down + samples * piece.first
        start = points * (before * self.across * channels + number * line)
        rows = memory[start : start + points * (length + line)]
        return rows.reshape(points, length + line)[:, :length]

    def inputs(self, piece: Piece) -> tuple[int, int]:
        """Rows of the padded input that the piece's tiles read."""
        return piece.first * self.mh, (piece.last - 1) * self.mh + self.nh

    def view(self, full: Array, down: int) -> Array:
        """(nh, nw, N, down, across, C): overlapping tiles of (N, rows, width, C)."""
        n, _, _, c = full.shape
        sn, sh, sw, sc = full.strides
        return as_strided(
            full,
            (self.nh, self.nw, n, down, self.across, c),
            (sh, sw, sn, self.mh * sh, self.mw * sw, sc),
        )

    def apart(self, full: Array, down: int) -> Array:
        """(mh, mw, N, down, across, O): outputs of tiles of (N, rows, columns, O)."""
        n, _, _, c = full.shape
        split = full.reshape(n, down, self.mh, self.across, self.mw, c)
        return split.transpose(2, 4, 0, 1, 3, 5)

    def output_rows(self, piece: Piece) -> Piece:
        last = min(piece.last * self.mh, self.h.out)
        return Piece(piece.samples, piece.first * self.mh, last)

    def gather(self, x: Array, piece: Piece, slot: int) -> Array:
        """Return the piece's tiles as (P, T C)."""
        image = x[piece.samples]
        full = padded(image, self.inputs(piece), self.before, self.width, _IMAGE)
        view = self.view(full, piece.last - piece.first)
        tiles = _rows(slot, view.shape[0] * view.shape[1], _tiles(view), x.shape[3], x)
        copy_pixels(tiles.reshape(view.shape), view)
        return tiles

    def gather_outputs(self, dy: Array, piece: Piece, slot: int) -> Array:
        """Return dy's tiles as (Q, T O), with zeros beyond the output's edge."""
        down = piece.last - piece.first
        rows = (piece.first * self.mh, piece.last * self.mh)
        full = padded(dy[piece.samples], rows, (0, 0), self.across * self.mw, _IMAGE)
        view = self.apart(full, down)
        tiles = _rows(slot, self.mh * self.mw, _tiles(view), dy.shape[3], dy)
        copy_pixels(tiles.reshape(view.shape), view)
        return tiles

    def write_outputs(self, tiles: Array, piece: Piece, y: Array) -> None:
        """Write tiles (Q, T O) to their places in y."""
        down = piece.last - piece.first
        rows = self.output_rows(piece)
        part = y[piece.samples, rows.first : rows.last]
        shape = (part.shape[0], down * self.mh, self.across * self.mw, y.shape[3])
        exact = part.shape == shape
        full = part if exact else room(_IMAGE, shape, y.dtype)
        view = self.apart(full, down)
        copy_pixels(view, tiles.reshape(view.shape))
        if not exact:
            np.copyto(part, full[:, : part.shape[1], : part.shape[2]])

    def add_inputs(self, tiles: Array, piece: Piece, dx: Array) -> None:
        """Add tiles (P, T C) up where they overlap, and write the sums to dx."""
        down = piece.last - piece.first
        first, last = self.inputs(piece)
        n, channels = dx[piece.samples].shape[0], dx.shape[3]
        full = room(_IMAGE, (n, last - first, self.width, channels), dx.dtype)
        mh, mw = self.mh, self.mw
        full[:, down * mh :] = 0
        full[:, :, self.across * mw :] = 0
        view = self.view(full, down)
        parts = tiles.reshape(view.shape)
        copy_pixels(view[:mh, :mw], parts[:mh, :mw])  # these don't overlap
        for i in range(self.nh):
            for j in range(self.nw):
                if i >= mh or j >= mw:
                    np.add(view[i, j], parts[i, j], out=view[i, j])
        written = 0 if piece.first == 0 else first + self.nh - mh
        write_unpadded(full, first, self.before, written, dx[piece.samples])


def _tiles(view: Array) -> int:
    return math.prod(view.shape[2:5])


def _transform_kernel(kernel: Array, g: Array, slot: int) -> Array:
    """Return U (P, C, O) of a kernel (kernel rows, kernel columns, C, O)."""
    c, o = kernel.shape[2:]
    u = room(slot, (g.shape[0], c, o), kernel.dtype)
    np.matmul(g, kernel.reshape(g.shape[1], c * o), out=u.reshape(g.shape[0], c * o))
    return u


def _points_of(rows: Array, channels: int) -> Array:
    """(P, T C) as (P, T, C)"""
    return rows.reshape(rows.shape[0], -1, channels)


def to_keep(samples: int, axes: tuple[Axis, Axis], channels: int, filters: int) -> int:
    """Return the size of what ``kept`` holds if that is little, otherwise 0.

    It is in elements of 4 bytes or more.
    """
    tiles = _Tiles(*axes)
    count = len(tiles.pieces(samples, max(channels, filters)))
    length = samples * tiles.down * tiles.across * channels + count * LINE // 4
    size = tiles.nh * tiles.nw * length
    return 0 if size > KEPT else size


def forward(
    x: Array,
    kernel: Array,
    y: Array,
    axes: tuple[Axis, Axis],
    finish: Finish | None,
    kept: Array | None = None,
) -> None:
    """Write y (N, H', W', O) from x (N, H, W, C) and kernel (k, k, C, O).

    ``kept`` is memory of ``to_keep`` elements for ``backward``.
    """
    tiles = _Tiles(*axes)
    c, o = kernel.shape[2:]
    a, g, b = _matrices(kernel.shape[0], kernel.shape[1], x.dtype.char)
    u = _transform_kernel(kernel, g, _KERNEL)
    for i, piece in enumerate(tiles.pieces(x.shape[0], max(c, o))):
        d = tiles.gather(x, piece, _ONE)
        count = d.shape[1] // c
        if kept is None:
            v = _rows(_TWO, len(b), count, c, x)
        else:
            v = tiles.kept(kept, i, piece, c)
        np.matmul(b, d, out=v)
        m = _rows(_ONE, len(b), count, o, x)
        np.matmul(_points_of(v, c), u, out=_points_of(m, o))
        out = _rows(_TWO, len(a), count, o, x)
        np.matmul(a, m, out=out)
        tiles.write_outputs(out, piece, y)
        if finish is not None:
            finish(tiles.output_rows(piece).rows(axes[0].out, axes[1].out))


def backward(
    x: Array | None,
    dy: Array,
    kernel: Array,
    dkernel: Array | None,
    dx: Array | None,
    axes: tuple[Axis, Axis],
    kept: Array | None = None,
) -> None:
    """Write dkernel and dx, each unless it is None; x is needed for dkernel alone.

    dM = A dy Aᵀ; dU = Vᵀ dM over the tiles, and dV = dM Uᵀ for each point.
    """
    tiles = _Tiles(*axes)
    c, o = kernel.shape[2:]
    a, g, b = _matrices(kernel.shape[0], kernel.shape[1], dy.dtype.char)
    p = len(b)
    sums = room(_SUMS, (p, c, o), dy.dtype)
    if dx is not None:
        turned = room(_MORE, (*kernel.shape[:2], o, c), dy.dtype)
        np.copyto(turned, kernel.transpose(0, 1, 3, 2))
        u = _transform_kernel(turned, g, _KERNEL)  # (P, O, C)
    for i, piece in enumerate(tiles.pieces(dy.shape[0], max(c, o))):
        out = tiles.gather_outputs(dy, piece, _ONE)
        count = out.shape[1] // o
        dm = _rows(_TWO, p, count, o, dy)
        np.matmul(a.T, out, out=dm)
        points = _points_of(dm, o)
        if dkernel is not None and x is not None:
            if kept is None:
                v = _rows(_THREE, p, count, c, dy)
                np.matmul(b, tiles.gather(x, piece, _ONE), out=v)
            else:
                v = tiles.kept(kept, i, piece, c)
            part = sums if i == 0 else room(_MORE, sums.shape, sums.dtype)
            np.matmul(_points_of(v, c).transpose(0, 2, 1), points, out=part)
            if i > 0:
                np.add(sums, part, out=sums)
        if dx is not None:
            dv = _rows(_ONE, p, count, c, dy)
            np.matmul(points, u, out=_points_of(dv, c))
            d = _rows(_THREE, p, count, c, dy)
            np.matmul(b.T, dv, out=d)
            tiles.add_inputs(d, piece, dx)
    if dkernel is not None:  # which may be a group's part of a larger kernel
        dw = room(_MORE, dkernel.shape, dkernel.dtype)
        np.matmul(g.T, sums.reshape(p, c * o), out=dw.reshape(g.shape[1], c * o))
        np.copyto(dkernel, dw)
