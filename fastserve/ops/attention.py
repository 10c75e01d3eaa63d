"""Scaled dot-product attention in tiles, forward and backward.

    S = Q Kᵀ / sqrt(d),  P = softmax(S) over the keys,  O = P V     for each head
    dV = Pᵀ dO,  dP = dO Vᵀ,  dS = P (dP - rowsum(dO O)),
    dQ = dS K / sqrt(d),  dK = dSᵀ Q / sqrt(d)

As in FlashAttention (Dao et al., 2022) no (T, T) array is kept: forward saves one
number for each query, the logarithm of its sum of exponentials, and backward computes
P again from it. Scores are held as keys x queries, so that the reductions of softmax
run down the rows, which NumPy does several times faster than along them. With
``causal``, tiles above the diagonal are never computed.

What is multiplied from the right is transposed into memory of its own first, and
scaled on the way: BLAS is up to twice as fast on it as on a transposed view.

Shapes: B batch, T time, H heads, d width of a head. ``qkv`` is (B, T, 3, H, d). The
functions for one group of heads see (H, T, d), and transposed (H, d, T).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from fastserve.ops.blocks import Array, room
from fastserve.ops.linear import ones

TILE = 48  # queries (forward) or keys (backward) at a time
WORK = 1 << 17  # elements of a tile's scores over all of its heads: 512 kB of float32
MASKED = -1e9  # added to a score: exp gives exactly 0, and never NaN
LARGE = 80.0  # exp of up to this is finite, and so are sums of it
TINY = 1e-20  # a sum of exponentials above this has lost nothing to underflow


def head_groups(heads: int, time: int) -> Iterator[slice]:
    """Yield slices of heads whose tiles of scores fit into the cache together."""
    step = max(1, min(heads, WORK // (min(TILE, time) * time)))
    for start in range(0, heads, step):
        yield slice(start, min(heads, start + step))


def tiles(time: int) -> Iterator[slice]:
    """Yield slices of TILE positions."""
    for start in range(0, time, TILE):
        yield slice(start, min(time, start + TILE))


def by_head(x: Array) -> Array:
    """View (T, H, d) as (H, T, d)."""
    return x.transpose(1, 0, 2)


def triangle(time: int) -> Array:
    """Return a tile (keys, queries) that is true where the key is after the query."""
    size = min(TILE, time)
    return np.tri(size, k=-1, dtype=np.bool_)


def transposed(slot: int, x: Array, scale: np.generic) -> Array:
    """Return ``scale`` times x (H, T, d) as (H, d, T), in memory for the moment."""
    heads, time, width = x.shape
    y = room(slot, (heads, width, time), x.dtype)
    for tile in tiles(time):
        np.multiply(x[:, tile].transpose(0, 2, 1), scale, out=y[:, :, tile])
    return y


def attention(
    qkv: Array,
    out: Array,
    lse: Array,
    causal: bool,
    key_bias: Array | None = None,
    keep: Array | None = None,
) -> None:
    """Write ``out`` (B, T, H, d) and ``lse`` (B, H, T).

    Args:
        key_bias: (B, T), 0 or MASKED for each key, or None.
        keep: (B, H, T keys, T queries), factors of dropout for P, or None.
    """
    batch, time, _, heads, _ = qkv.shape
    later = triangle(time) if causal else None
    for b in range(batch):
        bias = None if key_bias is None else key_bias[b, :, None]
        for group in head_groups(heads, time):
            _attend(
                qkv[b, :, :, group],
                by_head(out[b, :, group]),
                lse[b, group],
                later,
                bias,
                None if keep is None else keep[b, group],
            )


def _attend(
    qkv: Array,
    o: Array,
    lse: Array,
    later: Array | None,
    bias: Array | None,
    keep: Array | None,
) -> None:
    """Attention of one group of heads, a tile of queries at a time."""
    q, k, v = (by_head(qkv[:, i]) for i in range(3))
    heads, time, width = q.shape
    scale = q.dtype.type(width**-0.5)
    for tile in tiles(time):
        end = time if later is None else tile.stop
        queries = tile.stop - tile.start
        s = room(0, (heads, end, queries), q.dtype)
        total = _exponentials(
            k[:, :end],
            transposed(1, q[:, tile], scale),
            s,
            None if later is None else later[:queries, :queries],
            None if bias is None else bias[:end],
            lse[:, tile],
        )
        if keep is not None:
            np.multiply(s, keep[:, :end, tile], out=s)
        ot = o[:, tile]
        np.matmul(s.transpose(0, 2, 1), v[:, :end], out=ot)
        np.divide(ot, total[:, :, None], out=ot)


def _exponentials(
    k: Array,
    qt: Array,
    s: Array,
    later: Array | None,
    bias: Array | None,
    lse: Array,
) -> Array:
    """Write exp(S - shift) to s, log Σ exp S to lse; return Σ s (H, queries).

    A softmax shifts by the maximum so that nothing overflows, and its sum is never 0.
    Two checks that cost much less than a maximum for each query tell whether neither
    would happen anyway.
    """
    one = ones(s.shape[1], s.dtype)
    _scores(k, qt, s, later, bias)
    if s.max() < LARGE:
        np.exp(s, out=s)
        total = np.matmul(one, s)
        if total.min() > TINY:
            np.log(total, out=lse)
            return total
        _scores(k, qt, s, later, bias)
    top = s.max(axis=1)
    np.subtract(s, top[:, None], out=s)
    np.exp(s, out=s)
    total = np.matmul(one, s)
    np.log(total, out=lse)
    np.add(lse, top, out=lse)
    return total


def _scores(
    k: Array, qt: Array, s: Array, later: Array | None, bias: Array | None
) -> None:
    """s (H, keys, queries) = K Qᵀ, with what the masks add."""
    np.matmul(k, qt, out=s)
    if bias is not None:
        np.add(s, bias, out=s)
    if later is not None:
        diagonal = s[:, -len(later) :]
        np.copyto(diagonal, -np.inf, where=later)


def attention_backward(
    dout: Array,
    out: Array,
    qkv: Array,
    lse: Array,
    dqkv: Array,
    causal: bool,
    key_bias: Array | None = None,
    keep: Array | None = None,
) -> None:
    """Write ``dqkv`` (B, T, 3, H, d) from ``dout`` and what forward left."""
    batch, time, _, heads, _ = qkv.shape
    later = triangle(time) if causal else None
    for b in range(batch):
        bias = None if key_bias is None else key_bias[b, :, None]
        for group in head_groups(heads, time):
            _attend_backward(
                by_head(dout[b, :, group]),
                by_head(out[b, :, group]),
                qkv[b, :, :, group],
                lse[b, group],
                dqkv[b, :, :, group],
                later,
                bias,
                None if keep is None else keep[b, group],
            )


def _attend_backward(
    do: Array,
    o: Array,
    qkv: Array,
    lse: Array,
    dqkv: Array,
    later: Array | None,
    bias: Array | None,
    keep: Array | None,
) -> None:
    """Gradients of one group of heads, a tile of keys at a time."""
    q, k, v = (by_head(qkv[:, i]) for i in range(3))
    dq, dk, dv = (by_head(dqkv[:, i]) for i in range(3))
    heads, time, width = q.shape
    scale = q.dtype.type(width**-0.5)
    qt = transposed(2, q, scale)
    # dP and its row sums get the scale here, so dS has it without a pass of its own
    dot = transposed(3, do, scale)
    row_sum = room(4, (heads, time), q.dtype)  # einsum's own would be strided
    np.multiply(np.einsum("htd,htd->ht", do, o), scale, out=row_sum)
    for tile in tiles(time):
        rest = slice(0 if later is None else tile.start, time)
        shape = (heads, tile.stop - tile.start, time - rest.start)
        kept = None if keep is None else keep[:, tile, rest]
        p, ds = room(0, shape, q.dtype), room(1, shape, q.dtype)
        _weights(k[:, tile], qt[:, :, rest], lse[:, None, rest], p, later, bias, tile)
        np.matmul(v[:, tile], dot[:, :, rest], out=ds)
        if kept is not None:
            np.multiply(ds, kept, out=ds)
        np.subtract(ds, row_sum[:, None, rest], out=ds)
        np.multiply(ds, p, out=ds)
        if kept is not None:
            np.multiply(p, kept, out=p)
        np.matmul(p, do[:, rest], out=dv[:, tile])
        np.matmul(ds, q[:, rest], out=dk[:, tile])
        _add_to_queries(ds, k[:, tile], dq[:, rest], first=tile.start == 0)


def _weights(
    k: Array,
    qt: Array,
    lse: Array,
    p: Array,
    later: Array | None,
    bias: Array | None,
    tile: slice,
) -> None:
    """p (H, keys, queries) = the weights of a tile of keys, as forward had them."""
    np.matmul(k, qt, out=p)
    if bias is not None:
        np.add(p, bias[tile], out=p)
    if later is not None:
        size = p.shape[1]
        diagonal = p[:, :, :size]
        np.copyto(diagonal, -np.inf, where=later[:size, :size])
    np.subtract(p, lse, out=p)
    np.exp(p, out=p)


def _add_to_queries(ds: Array, k: Array, dq: Array, first: bool) -> None:
    """dq (H, queries, d) += dSᵀ K of one tile of keys; = if it is the first."""
    if first:
        np.matmul(ds.transpose(0, 2, 1), k, out=dq)
        return
    part = room(5, dq.shape, dq.dtype)
    np.matmul(ds.transpose(0, 2, 1), k, out=part)
    np.add(dq, part, out=dq)
