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

Several query heads may share a head of keys and values (grouped-query attention,
Ainslie et al., 2023): G of these, and H / G neighbouring query heads for each.

Shapes: B batch, T time, H heads, d width of a head. ``qkv`` is (B, T, H + 2 G, d):
queries, keys, values; (B, T, 3, H, d) is the same for G = H. The functions for one
group of heads see (H, T, d), and transposed (H, d, T).

With ``starts`` a row holds several documents: (B, T), for each query the first key that
it sees, which is where its document starts. Tiles between documents are left out.
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


def shared_groups(
    heads: int, kv_heads: int, time: int
) -> Iterator[tuple[slice, slice]]:
    """Yield slices of query heads, and of the heads of their keys and values.

    A group has the same number of query heads for each of its heads of keys.
    """
    share = heads // kv_heads
    step = next(head_groups(heads, time)).stop
    if step >= share:
        step -= step % share
        for start in range(0, heads, step):
            stop = min(heads, start + step)
            yield slice(start, stop), slice(start // share, stop // share)
        return
    for start in range(0, heads, share):
        for group in head_groups(share, time):
            one = slice(start // share, start // share + 1)
            yield slice(start + group.start, start + group.stop), one


def split_heads(qkv: Array, heads: int) -> tuple[Array, Array, Array]:
    """View qkv as queries (B, T, H, d), keys and values (B, T, G, d)."""
    qkv = qkv.reshape(*qkv.shape[:2], -1, qkv.shape[-1])
    kv_heads = (qkv.shape[2] - heads) // 2
    cut = heads + kv_heads
    return qkv[:, :, :heads], qkv[:, :, heads:cut], qkv[:, :, cut:]


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
    starts: Array | None = None,
) -> None:
    """Write ``out`` (B, T, H, d) and ``lse`` (B, H, T).

    Args:
        key_bias: (B, T), 0 or MASKED for each key, or None.
        keep: (B, H, T keys, T queries), factors of dropout for P, or None.
        starts: (B, T) integers that never fall along a row, for causal attention.
    """
    assert starts is None or causal
    batch, time, heads, _ = out.shape
    q, k, v = split_heads(qkv, heads)
    later = triangle(time) if causal else None
    for b in range(batch):
        bias = None if key_bias is None else key_bias[b, :, None]
        for group, kv in shared_groups(heads, k.shape[2], time):
            _attend(
                _each_head(q[b, :, group], k[b, :, kv], v[b, :, kv]),
                by_head(out[b, :, group]),
                lse[b, group],
                later,
                bias,
                None if keep is None else keep[b, group],
                None if starts is None else starts[b],
            )


def _attend(
    qkv: tuple[Array, Array, Array],
    o: Array,
    lse: Array,
    later: Array | None,
    bias: Array | None,
    keep: Array | None,
    starts: Array | None,
) -> None:
    """Attention of one group of heads, a tile of queries at a time."""
    q, k, v = map(by_head, qkv)
    heads, time, width = q.shape
    scale = q.dtype.type(width**-0.5)
    for tile in tiles(time):
        end = time if later is None else tile.stop
        keys = slice(0 if starts is None else int(starts[tile.start]), end)
        queries = tile.stop - tile.start
        s = room(0, (heads, end - keys.start, queries), q.dtype)
        total = _exponentials(
            k[:, keys],
            transposed(1, q[:, tile], scale),
            s,
            None if later is None else later[:queries, :queries],
            None if bias is None else bias[keys],
            _elsewhere(starts, keys, tile),
            lse[:, tile],
        )
        if keep is not None:
            np.multiply(s, keep[:, keys, tile], out=s)
        ot = o[:, tile]
        np.matmul(s.transpose(0, 2, 1), v[:, keys], out=ot)
        np.divide(ot, total[:, :, None], out=ot)


def _elsewhere(starts: Array | None, keys: slice, queries: slice) -> Array | None:
    """Return (keys, queries), true for a key of an earlier document; None for none."""
    if starts is None or starts[queries.stop - 1] <= keys.start:
        return None
    hidden: Array = np.arange(keys.start, keys.stop)[:, None] < starts[queries]
    return hidden


def _exponentials(
    k: Array,
    qt: Array,
    s: Array,
    later: Array | None,
    bias: Array | None,
    elsewhere: Array | None,
    lse: Array,
) -> Array:
    """Write exp(S - shift) to s, log Σ exp S to lse; return Σ s (H, queries).

    A softmax shifts by the maximum so that nothing overflows, and its sum is never 0.
    Two checks that cost much less than a maximum for each query tell whether neither
    would happen anyway.
    """
    one = ones(s.shape[1], s.dtype)
    _scores(k, qt, s, later, bias, elsewhere)
    if s.max() < LARGE:
        np.exp(s, out=s)
        total = np.matmul(one, s)
        if total.min() > TINY:
            np.log(total, out=lse)
            return total
        _scores(k, qt, s, later, bias, elsewhere)
    top = s.max(axis=1)
    np.subtract(s, top[:, None], out=s)
    np.exp(s, out=s)
    total = np.matmul(one, s)
    np.log(total, out=lse)
    np.add(lse, top, out=lse)
    return total


def _scores(
    k: Array,
    qt: Array,
    s: Array,
    later: Array | None,
    bias: Array | None,
    elsewhere: Array | None,
) -> None:
    """s (H, keys, queries) = K Qᵀ, with what the masks add."""
    np.matmul(k, qt, out=s)
    if bias is not None:
        np.add(s, bias, out=s)
    if later is not None:
        diagonal = s[:, -len(later) :]
        np.copyto(diagonal, -np.inf, where=later)
    if elsewhere is not None:
        np.copyto(s, -np.inf, where=elsewhere)


def attention_backward(
    dout: Array,
    out: Array,
    qkv: Array,
    lse: Array,
    dqkv: Array,
    causal: bool,
    key_bias: Array | None = None,
    keep: Array | None = None,
    starts: Array | None = None,
) -> None:
    """Write ``dqkv``, of the shape of qkv, from ``dout`` and what forward left."""
    batch, time, heads, width = out.shape
    q, k, v = split_heads(qkv, heads)
    dq, dk, dv = split_heads(dqkv, heads)
    shared = heads != k.shape[2]
    later = triangle(time) if causal else None
    for b in range(batch):
        bias = None if key_bias is None else key_bias[b, :, None]
        for group, kv in shared_groups(heads, k.shape[2], time):
            dk_group, dv_group = dk[b, :, kv], dv[b, :, kv]
            if shared:  # a gradient for each of the heads, to be summed
                each = (time, group.stop - group.start, width)
                dk_group, dv_group = room(6, each, q.dtype), room(7, each, q.dtype)
            _attend_backward(
                by_head(dout[b, :, group]),
                by_head(out[b, :, group]),
                _each_head(q[b, :, group], k[b, :, kv], v[b, :, kv]),
                lse[b, group],
                (dq[b, :, group], dk_group, dv_group),
                later,
                bias,
                None if keep is None else keep[b, group],
                None if starts is None else starts[b],
            )
            if shared:
                first = group.start % (heads // k.shape[2]) == 0
                _sum_heads(dk_group, dk[b, :, kv], first)
                _sum_heads(dv_group, dv[b, :, kv], first)


def _each_head(q: Array, k: Array, v: Array) -> tuple[Array, Array, Array]:
    """Return q (T, H, d), and k and v for each of its heads, in memory for the moment
    if they are shared."""
    if q.shape[1] == k.shape[1]:
        return q, k, v
    time, kept, width = k.shape
    copies = []
    for slot, shared in ((8, k), (9, v)):
        copy = room(slot, q.shape, q.dtype)
        copy.reshape(time, kept, -1, width)[...] = shared[:, :, None]
        copies.append(copy)
    return q, copies[0], copies[1]


def _sum_heads(each: Array, total: Array, first: bool) -> None:
    """total (T, G, d) += the sums of each (T, H, d); = if ``first``."""
    time, kept, width = total.shape
    each = each.reshape(time, kept, -1, width)
    if first:
        np.sum(each, axis=2, out=total)
        return
    for head in range(each.shape[2]):
        np.add(total, each[:, :, head], out=total)


def _attend_backward(
    do: Array,
    o: Array,
    qkv: tuple[Array, Array, Array],
    lse: Array,
    dqkv: tuple[Array, Array, Array],
    later: Array | None,
    bias: Array | None,
    keep: Array | None,
    starts: Array | None,
) -> None:
    """Gradients of one group of heads, a tile of keys at a time."""
    q, k, v = map(by_head, qkv)
    dq, dk, dv = map(by_head, dqkv)
    heads, time, width = q.shape
    scale = q.dtype.type(width**-0.5)
    qt = transposed(2, q, scale)
    # dP and its row sums get the scale here, so dS has it without a pass of its own
    dot = transposed(3, do, scale)
    row_sum = room(4, (heads, time), q.dtype)  # einsum's own would be strided
    np.multiply(np.einsum("htd,htd->ht", do, o), scale, out=row_sum)
    if starts is not None:
        dq.fill(0)  # the first tile doesn't reach all queries
    for tile in tiles(time):
        rest = slice(0 if later is None else tile.start, time)
        if starts is not None:  # later queries don't see these keys
            rest = slice(tile.start, int(np.searchsorted(starts, tile.stop)))
        shape = (heads, tile.stop - tile.start, rest.stop - rest.start)
        kept = None if keep is None else keep[:, tile, rest]
        p, ds = room(0, shape, q.dtype), room(1, shape, q.dtype)
        elsewhere = _elsewhere(starts, tile, rest)
        _weights(
            k[:, tile],
            qt[:, :, rest],
            lse[:, None, rest],
            p,
            later,
            None if bias is None else bias[tile],
            elsewhere,
        )
        np.matmul(v[:, tile], dot[:, :, rest], out=ds)
        if kept is not None:
            np.multiply(ds, kept, out=ds)
        np.subtract(ds, row_sum[:, None, rest], out=ds)
        np.multiply(ds, p, out=ds)
        if kept is not None:
            np.multiply(p, kept, out=p)
        np.matmul(p, do[:, rest], out=dv[:, tile])
        np.matmul(ds, q[:, rest], out=dk[:, tile])
        first = tile.start == 0 and starts is None
        _add_to_queries(ds, k[:, tile], dq[:, rest], first)


def _weights(
    k: Array,
    qt: Array,
    lse: Array,
    p: Array,
    later: Array | None,
    bias: Array | None,
    elsewhere: Array | None,
) -> None:
    """p (H, keys, queries) = the weights of a tile of keys, as forward had them."""
    np.matmul(k, qt, out=p)
    if bias is not None:
        np.add(p, bias, out=p)
    if later is not None:
        size = p.shape[1]
        diagonal = p[:, :, :size]
        np.copyto(diagonal, -np.inf, where=later[:size, :size])
    if elsewhere is not None:
        np.copyto(p, -np.inf, where=elsewhere)
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
