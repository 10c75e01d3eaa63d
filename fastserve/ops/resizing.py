"""Images made larger: repeated pixels, or weighted means of those near by."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import numpy as np

from fastserve.ops.blocks import Array

EPSILON = 1e-4  # a sum of weights below this is taken as none, as in JAX


def _triangle(x: Array) -> Array:
    return np.maximum(0, 1 - x)


def _cubic(x: Array) -> Array:
    """Keys, "Cubic convolution interpolation", 1981, with a = -1/2."""
    near = ((1.5 * x - 2.5) * x) * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return np.where(x < 1, near, np.where(x < 2, far, 0))


def _lanczos(radius: float, x: Array) -> Array:
    window: Array = np.sinc(x) * np.sinc(x / radius)
    return np.where(x < radius, window, 0)


KERNELS: dict[str, Callable[[Array], Array]] = {
    "bilinear": _triangle,
    "bicubic": _cubic,
    "lanczos3": functools.partial(_lanczos, 3.0),
    "lanczos5": functools.partial(_lanczos, 5.0),
}


@functools.cache
def weights(size: int, factor: int, kernel: str, dtype: str) -> Array:
    """Return R (size factor, size): what each new place takes from the old ones.

    Places are the middles of pixels, so the new place i lies at (i + 1/2) / factor -
    1/2. Beyond the edge nothing is taken, and each row adds up to 1.
    """
    places = (np.arange(size * factor) + 0.5) / factor - 0.5
    found = KERNELS[kernel](np.abs(places[:, None] - np.arange(size)))
    total = found.sum(axis=1, keepdims=True)
    found = np.where(np.abs(total) > EPSILON, found / total, 0)
    return found.astype(dtype)


def interpolate(x: Array, rows: Array, columns: Array, middle: Array, y: Array) -> None:
    """y (N, H', W', C) = rows x columnsᵀ, for rows (H', H) and columns (W', W).

    ``middle`` is memory (N, H', W, C). Transposed matrices give the gradient.
    """
    n, h, w, c = x.shape
    tall = len(rows)
    np.matmul(rows, x.reshape(n, h, w * c), out=middle.reshape(n, tall, w * c))
    flat = y.reshape(n * tall, len(columns), c)
    np.matmul(columns, middle.reshape(n * tall, w, c), out=flat)


def repeat(x: Array, y: Array, factors: tuple[int, int]) -> None:
    """Write y (N, H fh, W fw, C): each pixel of x as fh x fw pixels."""
    n, h, w, c = x.shape
    np.copyto(y.reshape(n, h, factors[0], w, factors[1], c), x[:, :, None, :, None])


def repeat_gradient(dy: Array, dx: Array, factors: tuple[int, int]) -> None:
    """Write dx (N, H, W, C), the sums of dy over each pixel's fh x fw."""
    n, h, w, c = dx.shape
    fh, fw = factors
    apart = dy.reshape(n, h, fh, w, fw, c)
    for sample, parts in zip(dx, apart, strict=True):  # a sample stays in the cache
        np.copyto(sample, parts[:, 0, :, 0])
        for number in range(1, math.prod(factors)):
            i, j = divmod(number, fw)
            np.add(sample, parts[:, i, :, j], out=sample)
