"""Scaled dot-product attention in tiles, forward and backward.

    S = Q Kᵀ / sqrt(d),  P = softmax(S) over the keys,  O = P V     for each head
    dV = Pᵀ dO,  dP = dO Vᵀ,  dS = P (dP - rowsum(dO O)),
    dQ = dS K / sqrt(d),  dK = dSᵀ Q / sqrt(d)

As in FlashAttention (Dao et al., 2022) no (T, T) array is kept: forward saves one
number for each query, the logarithm of its sum of exponentials, and backward computes
P again from it. Scores are held as keys x queries, so that the reductions of softmax
run down the rows, which NumPy does several times faster than along them. With
``causal``, tiles above the diagonal are never computed.

Shapes: B batch, T time, H heads, d width of a head. ``qkv`` is (B, T, 3, H, d).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from fastserve.ops.blocks import Array
from fastserve.ops.linear import ones

TILE = 64  # queries (forward) or keys (backward) at a time
WORK = 1 << 16  # elements of a tile's scores over all of its heads: 256 kB of float32
MASKED = -1e9  # added to a score: exp gives exactly 0, and never NaN


def head_groups(heads: int, time: int) -> Iterator[slice]:
    """Yield slices of heads whose tiles of scores fit into the cache together."""
    step = max(1, min(heads, WORK // (min(TILE, time) * time)))
    for start in range(0, heads, step):
        yield slice(start, min(heads, start + step))


def work_size(heads: int, time: int) -> int:
    """Return the number of elements that a work array needs."""
    first = next(head_groups(heads, time))
    return (first.stop - first.start) * min(TILE, time) * time


def by_head(x: Array) -> Array:
    """View (T, H, d) as (H, T, d)."""
    return x.transpose(1, 0, 2)


def triangle(size: int, dtype: np.dtype[np.generic]) -> Array:
    """Return (keys, queries) with MASKED where the key lies after the query."""
    return np.tril(np.full((size, size), MASKED, dtype), -1)


def attention(
    qkv: Array,
    out: Array,
    lse: Array,
    work: Array,
    causal: bool,
    key_bias: Array | None = None,
    keep: Array | None = None,
) -> None:
    """Write ``out`` (B, T, H, d) and ``lse`` (B, H, T).

    Args:
        work: flat scratch of ``work_size(H, T)`` elements.
        key_bias: (B, T), 0 or MASKED for each key, or None.
        keep: (B, H, T keys, T queries), factors of dropout for P, or None.
    """
    batch, time, _, heads, width = qkv.shape
    scale = qkv.dtype.type(width**-0.5)
    upper = triangle(min(TILE, time), qkv.dtype) if causal else None
    for b in range(batch):
        bias = None if key_bias is None else key_bias[b, :, None]
        for group in head_groups(heads, time):
            q, k, v = (by_head(qkv[b, :, i, group]) for i in range(3))
            o, kept = by_head(out[b, :, group]), None
            for t0 in range(0, time, TILE):
                t1 = min(time, t0 + TILE)
                end = t1 if causal else time
                if keep is not None:
                    kept = keep[b, group, :end, t0:t1]
                lse[b, group, t0:t1] = _query_tile(
                    q[:, t0:t1] * scale,
                    k[:, :end],
                    v[:, :end],
                    o[:, t0:t1],
                    work,
                    None if upper is None else upper[: t1 - t0, : t1 - t0],
                    None if bias is None else bias[:end],
                    kept,
                )


def _query_tile(
    q: Array,
    k: Array,
    v: Array,
    o: Array,
    work: Array,
    upper: Array | None,
    bias: Array | None,
    keep: Array | None,
) -> Array:
    """Attention of one tile of scaled queries; return log Σ exp as (H, queries)."""
    heads, keys, queries = k.shape[0], k.shape[1], q.shape[1]
    s = work[: heads * keys * queries].reshape(heads, keys, queries)
    np.matmul(k, q.transpose(0, 2, 1), out=s)
    if bias is not None:
        np.add(s, bias, out=s)
    if upper is not None:
        diagonal = s[:, keys - queries :]
        np.add(diagonal, upper, out=diagonal)
    top = s.max(axis=1)
    np.subtract(s, top[:, None], out=s)
    np.exp(s, out=s)
    total = np.matmul(ones(keys, s.dtype), s)
    if keep is not None:
        np.multiply(s, keep, out=s)
    np.matmul(s.transpose(0, 2, 1), v, out=o)
    np.divide(o, total[:, :, None], out=o)
    np.log(total, out=total)
    return np.add(total, top, out=total)


def attention_backward(
    dout: Array,
    out: Array,
    qkv: Array,
    lse: Array,
    dqkv: Array,
    work: tuple[Array, Array],
    causal: bool,
    key_bias: Array | None = None,
    keep: Array | None = None,
) -> None:
    """Write ``dqkv`` (B, T, 3, H, d) from ``dout`` and what forward left.

    ``work`` holds two flat arrays of ``work_size(H, T)`` elements.
    """
    batch, time, _, heads, width = qkv.shape
    scale = qkv.dtype.type(width**-0.5)
    upper = triangle(min(TILE, time), qkv.dtype) if causal else None
    for b in range(batch):
        for group in head_groups(heads, time):
            q, k, v = (by_head(qkv[b, :, i, group]) for i in range(3))
            dq, dk, dv = (by_head(dqkv[b, :, i, group]) for i in range(3))
            do = by_head(dout[b, :, group])
            dot = np.einsum("htd,htd->ht", do, by_head(out[b, :, group]))
            log_sum = lse[b, group]
            for j0 in range(0, time, TILE):
                tile = slice(j0, min(time, j0 + TILE))
                rest = slice(j0 if causal else 0, time)
                ks = k[:, tile] * scale
                shape = (ks.shape[0], ks.shape[1], time - rest.start)
                p = work[0][: np.prod(shape)].reshape(shape)
                np.matmul(ks, q[:, rest].transpose(0, 2, 1), out=p)
                if key_bias is not None:
                    np.add(p, key_bias[b, tile, None], out=p)
                if upper is not None:
                    size = shape[1]
                    diagonal = p[:, :, :size]
                    np.add(diagonal, upper[:size, :size], out=diagonal)
                np.subtract(p, log_sum[:, None, rest], out=p)
                np.exp(p, out=p)
                ds = work[1][: np.prod(shape)].reshape(shape)
                np.matmul(v[:, tile], do[:, rest].transpose(0, 2, 1), out=ds)
                kept = None if keep is None else keep[b, group, tile, rest]
                if kept is not None:
                    np.multiply(ds, kept, out=ds)
                np.subtract(ds, dot[:, None, rest], out=ds)
                np.multiply(ds, p, out=ds)
                if kept is not None:
                    np.multiply(p, kept, out=p)
                np.matmul(p, do[:, rest], out=dv[:, tile])
                np.matmul(ds, q[:, rest], out=dk[:, tile])
                np.multiply(dk[:, tile], scale, out=dk[:, tile])
                if j0 == 0:
                    np.matmul(ds.transpose(0, 2, 1), ks, out=dq)
                else:
                    part = dq[:, rest]
                    np.add(part, ds.transpose(0, 2, 1) @ ks, out=part)
