"""Small functions as layers: Lambda, Identity, and what tensors' operators make."""

from __future__ import annotations

import numbers
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fastserve.core import Array, Done, Layer, Shape, Tensor, Training, nothing
from fastserve.core.layer import is_several
from fastserve.errors import ArgumentError, ShapeError
from fastserve.layers.merging import Add, Divide, Multiply, Subtract

_EXTENTS = (11, 13)  # that stand for an axis of unknown extent


class Identity(Layer):
    """y = x; any shape."""

    def forward(self, x: Array, training: Training = False) -> Array:
        return x

    def backward(self, dy: Array, done: Done = nothing) -> Any:
        return dy

    def output_spare(self) -> None:
        return None


class Lambda(Layer):
    """y = function(x), with NumPy: any shapes, of several inputs too.

    Nothing is derived automatically, so without ``gradient`` it can only stand where no
    gradient is needed: on the model's inputs, or where nothing before it is trained.
    The function's arrays are new at every call, unlike those of other layers.

    Args:
        function: of an array (batch, ...), or of a list of them, and ``arguments``;
            returns an array (batch, ...). It may not write to its inputs.
        output_shape: of a sample, or a function of the input's; by default the function
            is tried on zeros.
        gradient: ``gradient(x, y, dy)`` returns dx, or a list of them.
        mask: what becomes of the mask: a function of (x, mask), or an array; by
            default there is none behind a Lambda.
        arguments: further arguments of ``function`` by name.
    """

    several_inputs = True

    def __init__(
        self,
        function: Callable[..., Any],
        output_shape: Any = None,
        gradient: Callable[..., Any] | None = None,
        mask: Any = None,
        arguments: dict[str, Any] | None = None,
        input_shape: Shape | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(input_shape, name)
        for what, value in (("function", function), ("gradient", gradient)):
            if not callable(value) and (what == "function" or value is not None):
                raise ArgumentError(
                    f"Lambda: expected a {what} that can be called", repr(value)
                )
        self.function, self.gradient = function, gradient
        self.wanted_shape, self.mask_function = output_shape, mask
        self.options = dict(arguments or {})
        self._x: Any = None

    def build(self, input_shape: Any) -> Any:
        if callable(self.wanted_shape):
            return tuple(self.wanted_shape(input_shape))
        if self.wanted_shape is not None:
            return tuple(self.wanted_shape)
        return shape_after(self._run, input_shape)

    def _run(self, x: Any) -> Array:
        given = list(x) if isinstance(x, tuple) else x
        return np.asarray(self.function(given, **self.options))

    def forward(self, x: Any, training: Training = False) -> Any:
        self._x = x
        y = self._run(x)
        batch = len(x[0] if isinstance(x, tuple) else x)
        known = self.output_shape or ()
        fits = y.ndim == len(known) + 1 and all(
            n is None or n == m for n, m in zip(known, y.shape[1:], strict=True)
        )
        if not fits or len(y) != batch:
            raise ShapeError(
                f"Lambda: expected ({batch}, {', '.join(map(str, known))}) from the "
                "function",
                f"shape {y.shape}",
                "change the function or output_shape",
            )
        self._y = y.astype(self.dtype, copy=False) if y.dtype.kind == "f" else y
        return self._y

    def backward(self, dy: Any, done: Done = nothing) -> Any:
        x = self.saved(self._x)
        several = isinstance(x, tuple)
        if not self.input_gradient:
            return (None,) * len(x) if several else None
        if self.gradient is None:
            raise ArgumentError(
                f"Lambda {self.path}: expected its gradient, as layers before it are "
                "trained",
                "gradient=None",
                "give gradient=function(x, y, dy) that returns dx, use other layers, "
                "or put the Lambda before all layers with weights",
            )
        found = self.gradient(list(x) if several else x, self._y, dy)
        arrays = x if several else (x,)
        grads = list(found) if several else [found]
        if len(grads) != len(arrays) or any(
            np.shape(g) != a.shape for g, a in zip(grads, arrays, strict=True)
        ):
            raise ShapeError(
                f"Lambda: expected gradients of shapes {[a.shape for a in arrays]}",
                f"{[np.shape(g) for g in grads]}",
                "change the function gradient",
            )
        dxs = tuple(np.asarray(g, self.dtype) for g in grads)
        return dxs if several else dxs[0]

    def output_mask(self) -> Any:
        if callable(self.mask_function):
            return self.mask_function(self._x, self.mask)
        return self.mask_function


class Affine(Layer):
    """y = scale x + offset, with numbers; what ``2 * t - 1`` makes. Any shape."""

    def __init__(
        self,
        scale: float = 1.0,
        offset: float = 0.0,
        input_shape: Shape | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(input_shape, name)
        self.scale, self.offset = float(scale), float(offset)

    def forward(self, x: Array, training: Training = False) -> Array:
        y = self.buffer("y", x.shape)
        np.multiply(x, y.dtype.type(self.scale), out=y)
        if self.offset:
            np.add(y, y.dtype.type(self.offset), out=y)
        return y

    def backward(self, dy: Array, done: Done = nothing) -> Any:
        return np.multiply(dy, dy.dtype.type(self.scale), out=self.scratch(dy.shape))

    def output_spare(self) -> bool:
        return True


class Item(Layer):
    """y = x[index], as NumPy's basic indexing; what ``t[:, 0]`` makes.

    Args:
        index: for each axis, from the batch on, an integer, a list [start, stop, step]
            for a slice, '...' for all axes between, or None for a new axis. The batch
            must be taken whole.
    """

    def __init__(
        self,
        index: Sequence[Any],
        input_shape: Shape | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(input_shape, name)
        self.index = tuple(
            slice(*part)
            if isinstance(part, (list, tuple))
            else Ellipsis
            if part == "..."
            else part
            for part in index
        )
        whole = self.index[:1] in ((slice(None),), (Ellipsis,))
        parts = (int, slice, type(None), type(Ellipsis))
        if not whole or not all(isinstance(part, parts) for part in self.index):
            raise ArgumentError(
                "expected an index of the whole batch, then of integers and slices",
                f"{list(index)}",
                "write t[:, ...]; to choose by arrays use a Lambda",
            )
        self._shape: tuple[int, ...] | None = None

    def build(self, input_shape: Shape) -> Shape:
        try:
            return shape_after(lambda x: x[self.index], input_shape)
        except IndexError as error:
            raise ShapeError(
                f"expected an index that fits samples of shape {input_shape}",
                str(error),
                "the batch is axis 0",
            ) from None

    def forward(self, x: Array, training: Training = False) -> Array:
        self._shape = x.shape
        part = x[self.index]
        y = self.buffer("y", part.shape, x.dtype)
        np.copyto(y, part)
        return y

    def backward(self, dy: Array, done: Done = nothing) -> Any:
        dx = self.scratch(self.saved(self._shape))
        dx.fill(0)
        dx[self.index] = dy
        return dx

    def output_mask(self) -> None:
        return None


def shape_after(function: Callable[[Any], Array], shape: Any) -> tuple[int | None, ...]:
    """Return the shape of a sample of function(x) for samples of ``shape``.

    It is tried on zeros; an axis is unknown if it changes with unknown ones.
    """
    made = []
    for extent in _EXTENTS:
        shapes = shape if is_several(shape) else (shape,)
        arrays = tuple(
            np.zeros((2, *(extent if n is None else n for n in s)), np.float32)
            for s in shapes
        )
        made.append(function(arrays if is_several(shape) else arrays[0]).shape)
    if len(made[0]) != len(made[1]) or made[0][:1] != (2,):
        raise ShapeError(
            "expected a function that gives (batch, ...)",
            f"shape {made[0]} for a batch of 2",
            "keep the first axis",
        )
    return tuple(
        n if n == m else None for n, m in zip(made[0][1:], made[1][1:], strict=True)
    )


# -- operators of tensors --------------------------------------------------------------


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _binary(
    layer: Callable[[], Layer], scalar: Callable[[Any, Any], Layer]
) -> Callable[[Any, Any], Any]:
    """Return an operator: a layer of two tensors, or one of a tensor and a number."""

    def operate(one: Any, other: Any) -> Any:
        if isinstance(one, Tensor) and isinstance(other, Tensor):
            return layer()([one, other])
        tensor, number = (one, other) if isinstance(one, Tensor) else (other, one)
        if not _is_number(number):
            raise ArgumentError(
                "expected a tensor and a number, or two tensors",
                type(number).__name__,
                "give arrays to the model as inputs, or use a Lambda",
            )
        return scalar(one, other)(tensor)

    return operate


def _item(tensor: Tensor, key: Any) -> Any:
    parts = key if isinstance(key, tuple) else (key,)
    return Item(
        [
            [part.start, part.stop, part.step]
            if isinstance(part, slice)
            else "..."
            if part is Ellipsis
            else part
            for part in parts
        ]
    )(tensor)


def _less(one: Any, other: Any) -> Layer:
    return Affine(1, -other) if _is_number(other) else Affine(-1, one)


def _times(one: Any, other: Any) -> Layer:
    return Affine(other if _is_number(other) else one)


def _plus(one: Any, other: Any) -> Layer:
    return Affine(1, other if _is_number(other) else one)


Tensor.operators = {
    "add": _binary(Add, _plus),
    "subtract": _binary(Subtract, _less),
    "multiply": _binary(Multiply, _times),
    "divide": _binary(Divide, lambda one, other: Affine(1 / other)),
    "item": _item,
}
