"""Layers that make one tensor of several: Add, Concatenate, Dot and their kin.

They are called on a list of tensors, whose samples may have different shapes where
broadcasting allows that, as NumPy's do: (batch, 5) and (batch, 3, 5) go together.

xs the inputs, dxs their gradients
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fastserve.core import Array, Done, Layer, Shape, Training, is_several, nothing
from fastserve.errors import ArgumentError, ShapeError


class Merge(Layer):
    """What the merging layers share; a subclass writes ``merge`` and ``unmerge``."""

    several_inputs = True
    count: int | None = None  # of inputs that there must be, if not any number

    _xs: tuple[Array, ...] | None = None

    def build(self, input_shape: Any) -> Any:
        kind = type(self).__name__
        wanted = "1 or more" if self.count is None else f"exactly {self.count}"
        count = len(input_shape) if is_several(input_shape) else 0
        if not count or self.count not in (None, count):
            raise ShapeError(
                f"{kind}: expected a list of {wanted} inputs",
                f"{count} inputs" if count else f"one input of shape {input_shape}",
                f"call it on a list of tensors, for example {kind}()([a, b])",
            )
        return self.merged_shape(input_shape)

    def merged_shape(self, shapes: tuple[Shape, ...]) -> Shape:
        merged = shapes[0]
        for shape in shapes[1:]:
            merged = self._broadcast(merged, shape, shapes)
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
        # (batch, 5) as (batch, 1, 5), so that only the samples are broadcast
        self._xs = xs = tuple(
            a.reshape(len(a), *[1] * (rank - a.ndim), *a.shape[1:]) for a in x
        )
        y = self.buffer("y", np.broadcast_shapes(*(a.shape for a in xs)))
        self.merge(xs, y)
        return y

    def backward(self, dy: Any, done: Done = nothing) -> Any:
        xs = self.saved(self._xs)
        dxs = []
        for i, (x, shape) in enumerate(zip(xs, self._shapes, strict=True)):
            dx = self.unmerge(i, dy)
            dxs.append(self._reduced(dx, x.shape).reshape(shape))
        return tuple(dxs)

    def _reduced(self, dx: Array, shape: tuple[int, ...]) -> Array:
        """Return the sum of dx over the axes that were broadcast."""
        axes = tuple(i for i, n in enumerate(shape) if n != dx.shape[i])
        if not axes:
            return dx
        return np.add.reduce(dx, axis=axes, keepdims=True, out=self.scratch(shape))

    def merge(self, xs: tuple[Array, ...], y: Array) -> None:
        """Write y, of the shape of all xs broadcast together."""
        raise NotImplementedError(f"{type(self).__name__}.merge")

    def unmerge(self, i: int, dy: Array) -> Array:
        """Return the gradient of input ``i``, of dy's shape: dy or own memory."""
        raise NotImplementedError(f"{type(self).__name__}.unmerge")

    def output_mask(self) -> Any:
        """Where any input counts; None if an input has no mask, as in Keras."""
        masks = self.mask
        if masks is None or any(mask is None for mask in masks):
            return None
        out = self.buffer("mask", masks[0].shape, np.bool_)
        np.copyto(out, masks[0])
        for mask in masks[1:]:
            np.logical_or(out, mask, out=out)
        return out


class Add(Merge):
    """y = Σ xs, broadcast."""

    def merge(self, xs: tuple[Array, ...], y: Array) -> None:
        np.copyto(y, xs[0])
        for x in xs[1:]:
            np.add(y, x, out=y)

    def unmerge(self, i: int, dy: Array) -> Array:
        return dy


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
        if not is_several(input_shape):
            raise ShapeError(
                "Concatenate: expected a list of inputs",
                f"one input of shape {input_shape}",
                "call it on a list of tensors, for example Concatenate()([a, b])",
            )
        first, rank = input_shape[0], len(input_shape[0])
        axis = self.axis - 1 if self.axis > 0 else self.axis + rank
        if not 0 <= axis < rank:
            raise ShapeError(
                f"Concatenate: expected inputs with the axis {self.axis}",
                f"samples of shape {first}",
                "change axis; the batch is axis 0",
            )
        merged = list(first)
        for shape in input_shape[1:]:
            if len(shape) != rank:
                raise self._differ(input_shape)
            for i, n in enumerate(shape):
                if i == axis:
                    known = merged[i] is not None and n is not None
                    merged[i] = merged[i] + n if known else None
                elif merged[i] is None:
                    merged[i] = n
                elif n not in (None, merged[i]):
                    raise self._differ(input_shape)
        self._axis = axis + 1
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
        y = self.buffer("y", tuple(shape))
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
            np.ones(x.shape[:2], bool) if mask is None else mask
            for x, mask in zip(xs, masks, strict=True)
        ]
        if self._axis == 1:
            return np.concatenate(whole, axis=1)
        return np.logical_or.reduce(whole)
