"""Rotary positions (Su et al., "RoFormer", 2021).

Each pair of numbers (x_i, x_(i + d/2)) of a head, i < d/2, is turned by an angle that
grows with the position t, so that the product of a query and a key depends on their
distance alone:

    y_i         = x_i cos a - x_(i + d/2) sin a
    y_(i + d/2) = x_(i + d/2) cos a + x_i sin a        a = t theta^(-2i/d)

The two halves of a head make the pairs, as in Hugging Face's ``rotate_half``; in the
paper neighbours do. The inverse, which backward needs, is the same with -a.

Shapes: B batch, T time, H heads, d width of a head.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from fastserve.ops.blocks import FLAT, Array, room, row_blocks


@lru_cache(maxsize=16)
def angles(
    time: int, width: int, theta: float, dtype: np.dtype[np.generic]
) -> tuple[Array, Array]:
    """Return cos and sin (T, 1, 2, d/2) for positions from 0; sin has the signs of
    the formula. They are kept, so all layers of a model share them."""
    rate = theta ** (-2.0 * np.arange(width // 2) / width)
    angle = np.arange(time)[:, None, None] * rate  # (T, 1, d/2)
    cos = np.stack([np.cos(angle), np.cos(angle)], axis=2).astype(dtype)
    sin = np.stack([-np.sin(angle), np.sin(angle)], axis=2).astype(dtype)
    cos.flags.writeable = sin.flags.writeable = False
    return cos, sin


def rotate(x: Array, cos: Array, sin: Array, inverse: bool = False) -> None:
    """Turn x (B, T, H, d) in place, with the first T rows of ``angles``.

    The angles are written out for every head first: NumPy's loops then run over whole
    rows, where they would end after each head, and the samples share them.
    """
    time, heads, width = x.shape[1:]
    combine = np.subtract if inverse else np.add
    for rows in row_blocks(time, heads * width, FLAT):
        shape = (rows.stop - rows.start, heads, 2, width // 2)
        all_cos, all_sin, kept, other = (room(i, shape, x.dtype) for i in range(4))
        all_cos[...], all_sin[...] = cos[rows], sin[rows]
        for sample in x:
            pairs = sample[rows].reshape(shape)
            np.multiply(pairs, all_cos, out=kept)
            np.multiply(pairs[:, :, ::-1], all_sin, out=other)
            combine(kept, other, out=pairs)
