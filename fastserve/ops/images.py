"""Images (B, H, W, C) of another size, and images that are moved, turned or scaled.

Resizing is a product with a matrix for each axis: row i of it holds the weights of the
pixels that new pixel i is made of. Its gradient is the product with the transpose.

An affine map takes new pixel (i, j) from the place (b0 j + b1 i + b2, a0 j + a1 i + a2)
of the image, by the weights of the four pixels around it, or from the nearest one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from fastserve.ops.blocks import PIECE, Array

_KRONECKER = 4  # channels up to which a row of pixels is one vector


def resize_matrix(
    size: int, old: int, interpolation: str, antialias: bool = False
) -> Array:
    """Return (size, old) weights, whose rows' sums are 1, for pixels' centres.

    ``interpolation`` is 'bilinear' or 'nearest'. With ``antialias`` a smaller image is
    made of means of all pixels.
    """
    centre = (np.arange(size) + 0.5) * (old / size)
    if interpolation == "nearest":
        matrix = np.zeros((size, old))
        matrix[np.arange(size), np.minimum(centre.astype(int), old - 1)] = 1
        return matrix
    width = max(1.0, old / size) if antialias else 1.0
    distance = np.abs(centre[:, None] - 0.5 - np.arange(old)) / width
    matrix = np.maximum(0, 1 - distance)
    matrix /= matrix.sum(axis=1, keepdims=True)
    return matrix


def resize(x: Array, rows: Array, columns: Array, half: Array, y: Array) -> None:
    """y (B, h, w, C) = rows (h, H) x columns (w, W)ᵀ; ``half`` is (B, h, W, C)."""
    np.matmul(rows, x.reshape(*x.shape[:2], -1), out=half.reshape(*half.shape[:2], -1))
    channels = x.shape[3]
    if channels <= _KRONECKER:
        wide = np.kron(columns, np.eye(channels, dtype=columns.dtype))
        np.matmul(
            half.reshape(-1, wide.shape[1]), wide.T, out=y.reshape(-1, wide.shape[0])
        )
    else:
        np.matmul(columns, half, out=y)


def affine_places(matrices: Array, height: int, width: int) -> tuple[Array, Array]:
    """Return the rows and columns (B, H, W) of the places of matrices (B, 6)."""
    i, j = np.arange(height)[:, None], np.arange(width)
    a0, a1, a2, b0, b1, b2 = (matrices[:, k, None, None] for k in range(6))
    return b0 * j + b1 * i + b2, a0 * j + a1 * i + a2


def corners(
    places: tuple[Array, Array],
    shape: tuple[int, int],
    fill_mode: str,
    interpolation: str,
) -> Iterator[tuple[Array, Array, Array | None]]:
    """Yield for each pixel that new ones are made of: index (B, H W) in the image as
    one row of pixels, weight (B, H W), and where it exists, or None if all do."""
    batch = len(places[0])
    sides = []
    for place in (part.reshape(batch, -1) for part in places):
        if interpolation == "nearest":
            near = np.copysign(np.floor(np.abs(place) + 0.5), place)
            sides.append([(near.astype(np.int64), np.ones_like(place))])
        else:
            low = np.floor(place)
            up, index = place - low, low.astype(np.int64)
            sides.append([(index, 1 - up), (index + 1, up)])
    for row, row_weight in sides[0]:
        for column, column_weight in sides[1]:
            exists = None
            if fill_mode == "constant":
                exists = (row >= 0) & (row < shape[0])
                exists &= (column >= 0) & (column < shape[1])
            r = _within(row, shape[0], fill_mode)
            c = _within(column, shape[1], fill_mode)
            yield r * shape[1] + c, row_weight * column_weight, exists


def _within(index: Array, size: int, fill_mode: str) -> Array:
    """Return which pixel takes the place of one outside of the image."""
    if fill_mode == "wrap":
        return index % size
    if fill_mode == "reflect":  # d c b a | a b c d | d c b a
        index = index % (2 * size)
        return np.minimum(index, 2 * size - 1 - index)
    return np.clip(index, 0, size - 1)


def affine(
    x: Array,
    matrices: Array,
    fill_mode: str,
    fill_value: float,
    interpolation: str,
    y: Array,
) -> None:
    """Write y (B, H, W, C), the images x moved by matrices (B, 6)."""
    _, height, width, channels = x.shape
    pixels, out = x.reshape(len(x), -1, channels), y.reshape(len(y), -1, channels)
    for part in _images(x):
        places = affine_places(matrices[part], height, width)
        made = out[part]
        made.fill(0)
        first = np.arange(len(made))[:, None] * (height * width)
        flat = pixels[part].reshape(-1, channels)
        for index, weight, exists in corners(
            places, (height, width), fill_mode, interpolation
        ):
            found = flat.take(first + index, axis=0)
            if exists is not None:
                found[~exists] = fill_value
            np.multiply(found, weight[..., None].astype(x.dtype), out=found)
            np.add(made, found, out=made)


def affine_backward(
    dy: Array,
    matrices: Array,
    fill_mode: str,
    interpolation: str,
    dx: Array,
) -> None:
    """Write dx (B, H, W, C): each pixel gets its share of those made of it."""
    _, height, width, channels = dy.shape
    dx.fill(0)
    for part in _images(dy):
        places = affine_places(matrices[part], height, width)
        gradient = dy[part].reshape(len(dy[part]), -1, channels)
        flat = dx[part].reshape(-1, channels)
        first = np.arange(len(gradient))[:, None] * (height * width)
        for index, weight, exists in corners(
            places, (height, width), fill_mode, interpolation
        ):
            if exists is not None:
                weight = weight * exists
            share = gradient * weight[..., None].astype(dy.dtype)
            np.add.at(flat, (first + index).reshape(-1), share.reshape(-1, channels))


def _images(x: Array) -> Iterator[slice]:
    step = max(1, PIECE // max(1, math.prod(x.shape[1:3])))
    for start in range(0, len(x), step):
        yield slice(start, min(len(x), start + step))
