"""Layers that make one tensor of several: Add, Concatenate, Dot and their kin.

They are called on a list of tensors. Samples may have different shapes where
broadcasting allows that, as NumPy's do: (batch, 5) and (batch, 3, 5) go together.

xs the inputs, y the output, dx the gradient of an input
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fastserve.core import Array, Done, Layer, Shape, Training, is_several, nothing
from fastserve.errors import ArgumentError, ShapeError

LEAST = 1e-7  # of the norms that Dot divides by, as in Keras


class Merge(Layer):
    """What the element-wise ones share; a subclass writes ``merge`` and ``unmerge``.

    Input: a list of (batch, ...); output: the shape of all broadcast together.
    """

    several_inputs = True
    count: int | None = None  # of inputs that there must be, if not any number
    _xs: tuple[Array, ...] | None = None

    def build(self, input_shape: Any) -> Any:
        _check_count(self, input_shape, self.count)
        merged: Shape = input_shape[0]
        for shape in input_shape[1:]:
            merged = self._broadcast(merged, shape, input_shape)
        return merged

    def _broadcast(self, one: Shape, other: Shape, shapes: Any) -> Shape:
        rank = max(len(one), len(other))
        a, b = ((1,) * (rank - len(s)) + s for s in (one, other))
        out: list[int | None] = []
        for n, m in zip(a, b, strict=True):
            if n is None or m is None:
                out.append(None)
            elif n != m and 1 not in (n, m):
                raise ShapeError(
                    f"{type(self).__name__}: expected inputs whose axes are alike or 1",
                    f"samples of shapes {', '.join(map(str, shapes))}",
                    "change the layers before",
                )
            else:
                out.append(m if n == 1 else n)
        return tuple(out)

    def forward(self, x: Any, training: Training = False) -> Any:
        rank = max(a.ndim for a in x)
        self._shapes = [a.shape for a in x]
        # (batch, 5) as (batch, 1, 5), so that samples are broadcast, not the batch
        self._xs = xs = tuple(
            a.reshape(len(a), *[1] * (rank - a.ndim), *a.shape[1:]) for a in x
        )
        y = self.buffer("y", np.broadcast_shapes(*(a.shape for a in xs)))
        self.merge(xs, self._masks(xs), y)
        return y

    def _masks(self, xs: tuple[Array, ...]) -> list[Array | None]:
        """Return for each input None, or its mask with axes of 1 for the others."""
        if self.mask is None:
            return [None] * len(xs)
        return [
            None if m is None else m.reshape(*m.shape, *[1] * (x.ndim - m.ndim))
            for x, m in zip(xs, self.mask, strict=True)
        ]

    def backward(self, dy: Any, done: Done = nothing) -> Any:
        dxs = []
        for i, (x, shape) in enumerate(
            zip(self.saved(self._xs), self._shapes, strict=True)
        ):
            dx = self.unmerge(i, dy)
            axes = tuple(j for j, n in enumerate(x.shape) if n != dx.shape[j])
            if axes:
                small = self.scratch(x.shape)
                dx = np.add.reduce(dx, axis=axes, keepdims=True, out=small)
            dxs.append(dx.reshape(shape))
        return tuple(dxs)

    def merge(self, xs: tuple[Array, ...], masks: list[Array | None], y: Array) -> None:
        """Write y from xs, all of the same rank."""
        raise NotImplementedError(f"{type(self).__name__}.merge")

    def unmerge(self, i: int, dy: Array) -> Array:
        """Return the gradient of input i in y's shape: dy, or memory of its own."""
        raise NotImplementedError(f"{type(self).__name__}.unmerge")

    def output_mask(self) -> Any:
        """Where any input counts; None if one of them has no mask."""
        masks = self.mask
        if masks is None or any(mask is None for mask in masks):
            return None
        out = self.buffer("mask", masks[0].shape, np.bool_)
        np.copyto(out, masks[0])
        for mask in masks[1:]:
            np.logical_or(out, mask, out=out)
        return out


class Add(Merge):
    """y = Σ xs."""

    def merge(self, xs: tuple[Array, ...], masks: list[Array | None], y: Array) -> None:
        _fold(np.add, xs, y)

    def unmerge(self, i: int, dy: Array) -> Array:
        return dy


class Subtract(Merge):
    """y = xs[0] - xs[1]."""

    count = 2

    def merge(self, xs: tuple[Array, ...], masks: list[Array | None], y: Array) -> None:
        np.subtract(xs[0], xs[1], out=y)

    def unmerge(self, i: int, dy: Array) -> Array:
        return np.negative(dy, out=self.scratch(dy.shape)) if i else dy


class Average(Merge):
    """y = Σ xs / number of xs."""

    def merge(self, xs: tuple[Array, ...], masks: list[Array | None], y: Array) -> None:
        _fold(np.add, xs, y)
        np.divide(y, y.dtype.type(len(xs)), out=y)

    def unmerge(self, i: int, dy: Array) -> Array:
        share = dy.dtype.type(1 / len(self.saved(self._xs)))
        return np.multiply(dy, share, out=self.scratch(dy.shape))


class Multiply(Merge):
    """y = Π xs; dx is dy times the product of the others.

    As in Keras, what an input's mask leaves out is 1, and if all have masks, what all
    of them leave out is 0.
    """

    def merge(self, xs: tuple[Array, ...], masks: list[Array | None], y: Array) -> None:
        self._factors = [
            x if mask is None else self._filled(i, x, mask)
            for i, (x, mask) in enumerate(zip(xs, masks, strict=True))
        ]
        self._masked = masks
        _fold(np.multiply, tuple(self._factors), y)
        self._none: Array | None = None
        known = [mask for mask in masks if mask is not None]
        if len(known) == len(masks):
            some = known[0]
            for mask in known[1:]:
                some = some | mask
            self._none = ~some
            np.copyto(y, 0, where=self._none)

    def _filled(self, i: int, x: Array, mask: Array) -> Array:
        filled = self.buffer(f"filled{i}", np.broadcast_shapes(x.shape, mask.shape))
        np.copyto(filled, x)
        np.copyto(filled, 1, where=~mask)
        return filled

    def unmerge(self, i: int, dy: Array) -> Array:
        self.saved(self._xs)
        dx = self.scratch(dy.shape)
        np.copyto(dx, dy)
        for j, factor in enumerate(self._factors):
            if j != i:
                np.multiply(dx, factor, out=dx)
        for left_out in (self._none, _inverted(self._masked[i])):
            if left_out is not None:
                np.copyto(dx, 0, where=left_out)
        return dx


class _Extreme(Merge):
    """What Maximum and Minimum share.

    Where inputs are equal they share the gradient by halves, as in Keras: the third of
    three gets a half, the first two a quarter each. As in Keras too, the values that an
    input's mask leaves out are taken from the others.
    """

    choose: Any = None  # the function of two arrays
    ahead: Any = None  # whether the first of two is the one

    def merge(self, xs: tuple[Array, ...], masks: list[Array | None], y: Array) -> None:
        # shares[i]: of y's gradient, what input i gets
        shares = [self.buffer(f"share{i}", y.shape) for i in range(len(xs))]
        first, half, other = (self.buffer(n, y.shape) for n in ("first", "half", "x"))
        np.copyto(y, xs[0])
        shares[0].fill(1)
        before = masks[0]
        for i, x in enumerate(xs[1:], 1):
            mask = masks[i]
            np.copyto(other, x)
            if mask is not None:
                np.copyto(other, y, where=~mask)
            if before is not None:
                # where the others are left out this one counts alone
                np.copyto(y, other, where=~before)
            np.equal(y, other, out=half, casting="unsafe")
            np.multiply(half, 0.5, out=half)
            self.ahead(y, other, out=first, casting="unsafe")
            np.add(first, half, out=first)  # share of the ones before
            np.subtract(1, first, out=shares[i])
            if mask is not None or before is not None:
                self._as_masked(shares, i, first, mask, before)
            for share in shares[:i]:
                np.multiply(share, first, out=share)
            self.choose(y, other, out=y)
            both = mask is not None and before is not None
            before = (before | mask) if both else None  # type: ignore[operator]

    def _as_masked(
        self,
        shares: list[Array],
        i: int,
        first: Array,
        mask: Array | None,
        before: Array | None,
    ) -> None:
        """Give the whole gradient to the side that the values come from."""
        if mask is not None:  # both sides were y before
            np.copyto(first, 1, where=~mask)
            np.copyto(shares[i], 0, where=~mask)
        if before is not None:
            left = ~before if mask is None else ~before & mask
            np.copyto(first, 0, where=left)
            np.copyto(shares[i], 1, where=left)

    def unmerge(self, i: int, dy: Array) -> Array:
        share = self._buffers[f"share{i}"]
        return np.multiply(dy, share, out=self.scratch(dy.shape))


class Maximum(_Extreme):
    """y = the largest of xs."""

    choose = staticmethod(np.maximum)
    ahead = staticmethod(np.greater)


class Minimum(_Extreme):
    """y = the smallest of xs."""

    choose = staticmethod(np.minimum)
    ahead = staticmethod(np.less)


class Divide(Merge):
    """y = xs[0] / xs[1]; for ``/`` of two tensors."""

    count = 2

    def merge(self, xs: tuple[Array, ...], masks: list[Array | None], y: Array) -> None:
        np.divide(xs[0], xs[1], out=y)

    def unmerge(self, i: int, dy: Array) -> Array:
        divisor = self.saved(self._xs)[1]
        dx = np.divide(dy, divisor, out=self.scratch(dy.shape))
        if i:
            np.multiply(dx, self._buffers["y"], out=dx)
            np.negative(dx, out=dx)
        return dx


class Concatenate(Layer):
    """The inputs behind one another along ``axis``; all other axes are alike.

    ``axis`` counts with the batch, so 1 is the first of a sample's; it can't be 0.
    """

    several_inputs = True

    def __init__(self, axis: int = -1, name: str | None = None) -> None:
        super().__init__(name=name)
        if not isinstance(axis, int) or isinstance(axis, bool) or axis == 0:
            raise ArgumentError(
                "Concatenate: expected an axis that isn't the batch's, 0",
                repr(axis),
                "give for example axis=-1, the last one",
            )
        self.axis = axis
        self._xs: tuple[Array, ...] | None = None

    def build(self, input_shape: Any) -> Any:
        _check_count(self, input_shape)
        merged = list(input_shape[0])
        self._axis = _axis(self, self.axis, input_shape[0])
        place = self._axis - 1
        for shape in input_shape[1:]:
            if len(shape) != len(merged):
                raise self._differ(input_shape)
            for i, (n, m) in enumerate(zip(merged, shape, strict=True)):
                if i == place:
                    merged[i] = None if n is None or m is None else n + m
                elif n is None or m is None or n == m:
                    merged[i] = m if n is None else n
                else:
                    raise self._differ(input_shape)
        return tuple(merged)

    def _differ(self, shapes: Any) -> ShapeError:
        return ShapeError(
            f"Concatenate: expected inputs that differ along axis {self.axis} alone",
            f"samples of shapes {', '.join(map(str, shapes))}",
            "change the layers before",
        )

    def forward(self, x: Any, training: Training = False) -> Any:
        self._xs = tuple(x)
        shape = list(x[0].shape)
        shape[self._axis] = sum(a.shape[self._axis] for a in x)
        y = self.buffer("y", tuple(shape), x[0].dtype)  # indices stay integers
        return np.concatenate(x, axis=self._axis, out=y, casting="unsafe")

    def backward(self, dy: Any, done: Done = nothing) -> Any:
        dxs, start = [], 0
        for x in self.saved(self._xs):
            end = start + x.shape[self._axis]
            part = dy[(slice(None),) * self._axis + (slice(start, end),)]
            dx = self.scratch(x.shape)
            np.copyto(dx, part)
            dxs.append(dx)
            start = end
        return tuple(dxs)

    def output_mask(self) -> Any:
        """The masks behind one another along the axis of time; along another axis,
        where any input counts. An input without a mask counts everywhere."""
        masks, xs = self.mask, self.saved(self._xs)
        if masks is None or all(mask is None for mask in masks):
            return None
        whole = [
            np.ones(x.shape[:2], np.bool_) if mask is None else mask
            for x, mask in zip(xs, masks, strict=True)
        ]
        if self._axis == 1:
            return np.concatenate(whole, axis=1)
        return np.logical_or.reduce(whole)


class Dot(Layer):
    """The products of two inputs, summed over an axis of each: y = Σ_k x1[k] x2[k].

    Input [(batch, ...), (batch, ...)], output: the axes of the first, then those of
    the second, without the two; (batch, 1) if no other axes are there.

    Args:
        axes: the axis of both, or one for each; the batch is axis 0.
        normalize: divide by the Euclidean norms along the axes before: the cosine.
    """

    several_inputs = True

    def __init__(
        self,
        axes: int | tuple[int, int],
        normalize: bool = False,
        name: str | None = None,
    ) -> None:
        super().__init__(name=name)
        pair = (axes, axes) if isinstance(axes, int) else tuple(axes)
        if len(pair) != 2 or not all(isinstance(a, int) and a != 0 for a in pair):
            raise ArgumentError(
                "Dot: expected axes as an integer, or two of them, none the batch's, 0",
                repr(axes),
                "give for example axes=1, or axes=(2, 1)",
            )
        self.axes, self.normalize = pair, normalize
        self._xs: list[Array] | None = None

    def build(self, input_shape: Any) -> Any:
        _check_count(self, input_shape, 2)
        one, other = input_shape
        self._axes = a, b = tuple(
            _axis(self, axis, shape)
            for axis, shape in zip(self.axes, input_shape, strict=True)
        )
        n, m = one[a - 1], other[b - 1]
        if n != m and None not in (n, m):
            raise ShapeError(
                f"Dot: expected the same extent of the axes {self.axes}",
                f"{n} and {m}, of samples of shapes {one} and {other}",
                "change axes",
            )
        rest = (*one[: a - 1], *one[a:], *other[: b - 1], *other[b:])
        return rest or (1,)

    def forward(self, x: Any, training: Training = False) -> Any:
        self._shapes = [a.shape for a in x]
        self._xs, self._norms = [], []
        for i, (a, axis) in enumerate(zip(x, self._axes, strict=True)):
            rows = self._as_rows(a, axis, f"rows{i}")
            if self.normalize:
                norms = self.buffer(f"norms{i}", rows.shape[:2])
                np.einsum("brk,brk->br", rows, rows, out=norms)
                np.maximum(norms, LEAST**2, out=norms)
                np.sqrt(norms, out=norms)
                unit = self.buffer(f"unit{i}", rows.shape)
                rows = np.divide(rows, norms[..., None], out=unit)
                self._norms.append(norms)
            self._xs.append(rows)
        one, other = self._xs
        y = self.buffer("y", (len(one), one.shape[1], other.shape[1]))
        np.matmul(one, other.transpose(0, 2, 1), out=y)
        rest = [n for i, n in enumerate(x[0].shape) if i != self._axes[0]]
        rest += [n for i, n in enumerate(x[1].shape) if i not in (0, self._axes[1])]
        return y.reshape(tuple(rest) if len(rest) > 1 else (len(one), 1))

    def _as_rows(self, x: Array, axis: int, name: str) -> Array:
        """Return x as (batch, product of the other axes, extent of the axis)."""
        if axis == x.ndim - 1:
            return x.reshape(len(x), -1, x.shape[-1])
        moved = np.moveaxis(x, axis, -1)
        copied = self.buffer(name, moved.shape)
        np.copyto(copied, moved)
        return copied.reshape(len(x), -1, moved.shape[-1])

    def backward(self, dy: Any, done: Done = nothing) -> Any:
        one, other = self.saved(self._xs)
        dy = dy.reshape(len(one), one.shape[1], other.shape[1])
        drows = [self.scratch(one.shape), self.scratch(other.shape)]
        np.matmul(dy, other, out=drows[0])
        np.matmul(dy.transpose(0, 2, 1), one, out=drows[1])
        return tuple(self._backward_rows(i, d) for i, d in enumerate(drows))

    def _backward_rows(self, i: int, d: Array) -> Array:
        """Return the gradient of input i from that of its rows."""
        if self.normalize:
            unit = self.saved(self._xs)[i]
            norms = self._norms[i]
            dot = self.scratch(norms.shape)
            np.einsum("brk,brk->br", d, unit, out=dot)
            np.copyto(dot, 0, where=norms <= LEAST)
            along = self.scratch(d.shape)
            np.multiply(unit, dot[..., None], out=along)
            np.subtract(d, along, out=d)
            np.divide(d, norms[..., None], out=d)
        shape, axis = self._shapes[i], self._axes[i]
        if axis == len(shape) - 1:
            return d.reshape(shape)
        rest = [n for j, n in enumerate(shape) if j != axis]
        dx = self.scratch(shape)
        np.copyto(dx, np.moveaxis(d.reshape(*rest, shape[axis]), -1, axis))
        return dx

    def output_mask(self) -> None:
        return None


# -- as functions ----------------------------------------------------------------------


def add(inputs: Any, name: str | None = None) -> Any:
    """Call ``Add`` on ``inputs``, a list of tensors; return one."""
    return Add(name=name)(inputs)


def subtract(inputs: Any, name: str | None = None) -> Any:
    """Call ``Subtract`` on ``inputs``, a list of two tensors; return one."""
    return Subtract(name=name)(inputs)


def multiply(inputs: Any, name: str | None = None) -> Any:
    """Call ``Multiply`` on ``inputs``, a list of tensors; return one."""
    return Multiply(name=name)(inputs)


def average(inputs: Any, name: str | None = None) -> Any:
    """Call ``Average`` on ``inputs``, a list of tensors; return one."""
    return Average(name=name)(inputs)


def maximum(inputs: Any, name: str | None = None) -> Any:
    """Call ``Maximum`` on ``inputs``, a list of tensors; return one."""
    return Maximum(name=name)(inputs)


def minimum(inputs: Any, name: str | None = None) -> Any:
    """Call ``Minimum`` on ``inputs``, a list of tensors; return one."""
    return Minimum(name=name)(inputs)


def concatenate(inputs: Any, axis: int = -1, name: str | None = None) -> Any:
    """Call ``Concatenate`` on ``inputs``, a list of tensors; return one."""
    return Concatenate(axis, name=name)(inputs)


def dot(
    inputs: Any,
    axes: int | tuple[int, int] = -1,
    normalize: bool = False,
    name: str | None = None,
) -> Any:
    """Call ``Dot`` on ``inputs``, a list of two tensors; return one."""
    return Dot(axes, normalize, name=name)(inputs)


# -- helpers ---------------------------------------------------------------------------


def _fold(function: Any, xs: tuple[Array, ...], y: Array) -> None:
    if len(xs) == 1:
        np.copyto(y, xs[0])
        return
    function(xs[0], xs[1], out=y)
    for x in xs[2:]:
        function(y, x, out=y)


def _inverted(mask: Array | None) -> Array | None:
    return None if mask is None else ~mask


def _check_count(layer: Layer, shapes: Any, count: int | None = None) -> None:
    """Raise ShapeError unless there are so many shapes, or any number if None."""
    found = len(shapes) if is_several(shapes) else 0
    if found and count in (None, found):
        return
    kind = type(layer).__name__
    wanted = "inputs" if count is None else f"exactly {count} inputs"
    raise ShapeError(
        f"{kind}: expected a list of {wanted}",
        f"{found} inputs" if found else f"one input of shape {shapes}",
        f"call it on a list of tensors, for example {kind}(...)([a, b])",
    )


def _axis(layer: Layer, axis: int, shape: Shape) -> int:
    """Return the axis as one from 1 on; raise ShapeError if there is no such one."""
    place = axis if axis > 0 else axis + len(shape) + 1
    if not 1 <= place <= len(shape):
        raise ShapeError(
            f"{type(layer).__name__}: expected inputs that have an axis {axis}",
            f"samples of shape {shape}",
            "change it; the batch is axis 0",
        )
    return place
