"""Convolutions of images, and their gradients: the way that suits each.

y[n, i, j, o] = Σ x[n, i s + u d - p, j s + v d - p, c] W[u, v, c, o]
                over u, v and c, with stride s, dilation d and p zeros around

x (N, H, W, C), W (kernel rows, kernel columns, C, O), y (N, H', W', O); a sequence is
an image of height 1. With groups, channels and filters are cut into as many parts and
each filter sees those of its part: W (kernel rows, kernel columns, C / groups, O). As
in all such libraries the kernel isn't flipped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from fastserve.ops import kernel_rows, patches, winograd
from fastserve.ops.blocks import Array, room
from fastserve.ops.windows import Axis

Axes = tuple[Axis, Axis]
LONG = 512  # numbers of a row that is long enough for NumPy's loops
_ROWS = 20  # a slot of ``room``
Finish = Callable[[slice], None]


def _way(axes: Axes, inputs: int, filters: int) -> Any:
    for way in (kernel_rows, winograd):
        if way.pays(*axes, inputs, filters):
            return way
    return patches


def _groups(kernel: Array, groups: int) -> Iterator[tuple[slice, slice]]:
    """Yield each group's channels and filters."""
    c, o = kernel.shape[2], kernel.shape[3] // groups
    for g in range(groups):
        yield slice(g * c, g * c + c), slice(g * o, g * o + o)


def to_keep(samples: int, kernel: Array, axes: Axes, groups: int) -> int:
    """Return the number of elements that forward shall keep for dkernel, mostly 0."""
    c, o = kernel.shape[2:]
    way = _way(axes, c, o)
    if groups > 1 or way is kernel_rows:
        return 0
    size: int = way.to_keep(samples, axes, c, o)
    return size


def forward(
    x: Array,
    kernel: Array,
    y: Array,
    axes: Axes,
    groups: int = 1,
    finish: Finish | None = None,
    kept: Array | None = None,
) -> None:
    """Write y; ``kept`` is memory of ``to_keep`` elements, to be given to backward.

    ``finish(rows)`` is called once for all rows of y as (N H' W', O), a piece at a time
    while that is in the cache.
    """
    way = _way(axes, kernel.shape[2], kernel.shape[3] // groups)
    if groups == 1:
        given = () if kept is None else (kept,)
        way.forward(x, kernel, y, axes, finish, *given)
        return
    for c, o in _groups(kernel, groups):
        way.forward(x[..., c], kernel[..., o], y[..., o], axes, None)
    if finish is not None:
        finish(slice(0, y.size // y.shape[-1]))


def backward(
    x: Array | None,
    dy: Array,
    kernel: Array,
    dkernel: Array | None,
    dx: Array | None,
    axes: Axes,
    groups: int = 1,
    kept: Array | None = None,
) -> None:
    """Write dkernel and dx, each unless it is None; x is needed for dkernel alone."""
    if len(dy) == 0 and dkernel is not None:
        dkernel.fill(0)
        return
    way = _way(axes, kernel.shape[2], kernel.shape[3] // groups)
    given = () if kept is None else (kept,)
    for c, o in _groups(kernel, groups):
        way.backward(
            None if x is None else x[..., c],
            dy[..., o],
            kernel[..., o],
            None if dkernel is None else dkernel[..., o],
            None if dx is None else dx[..., c],
            axes,
            *given,
        )


def add_row(z: Array, row: Array) -> None:
    """Add ``row`` (C) to each row of z (N, C), several rows at once if C is small."""
    n, c = z.shape
    times = max(1, LONG // c)
    whole = n - n % times
    several = room(_ROWS, (times, c), z.dtype)
    np.copyto(several, row)
    part = z[:whole].reshape(-1, times * c)
    np.add(part, several.reshape(times * c), out=part)
    if whole < n:
        np.add(z[whole:], row, out=z[whole:])
