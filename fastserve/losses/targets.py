"""What targets must look like beside predictions, and the weights of their losses."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastserve.core import Array, Shape
from fastserve.errors import DataError, ShapeError


@dataclass(frozen=True)
class Targets:
    """What ``y_true`` must look like beside ``y_pred``, and the errors if it doesn't.

    Args:
        owner: the loss or metric on whose behalf errors are raised.
        sparse: labels, without the axis of classes; else the shape of ``y_pred``.
        classes: the last axis holds classes, of which there must be two or more.
        instead: what to use if labels and one-hot rows were mixed up.
    """

    owner: str
    sparse: bool = False
    classes: bool = False
    instead: str = ""

    def check_shape(self, y_shape: Shape, output_shape: Shape) -> None:
        """Raise ShapeError unless both (without the batch) belong together."""
        if self.classes and (not output_shape or output_shape[-1] == 1):
            raise ShapeError(
                f"{self.owner}: expected an output of two or more classes",
                f"output shape {_with_batch(output_shape)}",
                "use the binary form, or as many output units as there are classes",
            )
        wanted = output_shape[:-1] if self.sparse else output_shape
        if _same(_squeezed(y_shape), _squeezed(wanted)) or _same(y_shape, wanted):
            return
        raise ShapeError(
            f"{self.owner}: expected targets of shape {_with_batch(wanted)}",
            f"shape {_with_batch(y_shape)} for outputs of {_with_batch(output_shape)}",
            self._todo(y_shape, output_shape),
        )

    def _todo(self, y_shape: Shape, output_shape: Shape) -> str:
        labels = _same(_squeezed(y_shape), output_shape[:-1])
        if self.sparse and _same(y_shape, output_shape):
            return f"these look one-hot: use {self.instead}, or y.argmax(-1)"
        if self.classes and labels:
            return f"these look like labels: use {self.instead}, or one-hot rows"
        if labels:
            return (
                "labels of classes need sparse_categorical_crossentropy; otherwise "
                "give a target for each output"
            )
        if output_shape[-1:] == (1,) and _same(y_shape[:-1], output_shape[:-1]):
            return (
                f"these look one-hot: use categorical_crossentropy and a last layer "
                f"of {y_shape[-1]} units with softmax"
            )
        return "change the last layer's size, or reshape the targets"

    def rows(self, y_true: Any, y_pred: Array) -> tuple[Array, Array]:
        """Return y (R) or (R, C) and x (R, C); no copies of contiguous arrays."""
        y, x = np.asarray(y_true), y_pred
        if x.ndim == 0 or y.ndim == 0 or len(x) != len(y):
            raise ShapeError(
                f"{self.owner}: expected as many targets as predictions",
                f"targets {y.shape}, predictions {x.shape}",
                "pass arrays whose first axis is the batch",
            )
        self.check_shape(y.shape[1:], x.shape[1:])
        n, columns = row_count(x.shape), x.shape[-1] if x.ndim > 1 else 1
        x = np.ascontiguousarray(x).reshape(n, columns)
        return (y.reshape(n) if self.sparse else y.reshape(n, columns)), x


def row_count(y_pred_shape: tuple[int, ...]) -> int:
    """Return the number of losses in a batch.

    ``y_pred_shape`` (B, C) has B, (B, T, C) has B x T.
    """
    return math.prod(y_pred_shape[:-1]) if len(y_pred_shape) > 1 else y_pred_shape[0]


def spread_weights(
    weights: Any, y_pred_shape: tuple[int, ...], out: Array, owner: str
) -> None:
    """Write to out (R) the weights of the rows, from (B,) or one for each row.

    ``y_pred_shape`` is that of the outputs. Raises ShapeError, which names ``owner``,
    if ``weights`` has another shape.
    """
    w = np.asarray(weights)
    own = y_pred_shape[:-1] if len(y_pred_shape) > 1 else y_pred_shape
    if w.shape == own:
        np.copyto(out.reshape(own), w, casting="unsafe")
    elif w.shape == own[:1]:
        column = w.reshape(own[:1] + (1,) * (len(own) - 1))
        np.copyto(out.reshape(own), column, casting="unsafe")
    else:
        shapes = f"{own[:1]}" if len(own) == 1 else f"{own[:1]} or {own}"
        raise ShapeError(
            f"{owner}: expected weights of shape {shapes}",
            f"shape {w.shape}",
            "give one weight for each sample, or for each position",
        )


def check_labels(owner: str, y: Array, classes: int, first: int = 0) -> None:
    """Raise DataError unless all of y are whole numbers in 0..classes-1.

    The message names ``owner``, a loss, and the place in y, counted from ``first``.
    """
    if y.size == 0:
        return
    whole = y.dtype.kind != "f" or bool((y == np.floor(y)).all())
    if whole and y.min() >= 0 and y.max() < classes:
        return
    wrong = ~((y >= 0) & (y < classes))
    if y.dtype.kind == "f":
        wrong |= y != np.floor(y)
    label, place = _first(y, wrong, first)
    raise DataError(
        f"{owner}: expected labels in 0..{classes - 1}, for {classes} classes",
        f"label {label} at {place}",
        "number the classes from 0, and give the last layer as many units",
    )


def check_probabilities(owner: str, y: Array, first: int) -> None:
    if y.size == 0 or (y.min() >= 0 and y.max() <= 1):
        return
    value, place = _first(y, ~((y >= 0) & (y <= 1)), first)
    raise DataError(
        f"{owner}: expected targets in 0..1",
        f"{value} at {place}",
        "use labels of 0 and 1, one-hot rows, or probabilities",
    )


def check_finite(owner: str, y: Array, first: int) -> None:
    if y.dtype.kind != "f" or np.isfinite(y).all():
        return
    value, place = _first(y, ~np.isfinite(y), first)
    raise DataError(
        f"{owner}: expected targets that are finite numbers",
        f"{value} at {place}",
        "remove or replace these samples",
    )


def _first(y: Array, wrong: Array, first: int) -> tuple[str, str]:
    """Return the first wrong value and where it is, both as text."""
    place = tuple(int(i) for i in np.argwhere(wrong)[0])
    where = f"sample {first + place[0]}"
    if len(place) > 1:
        where += f", position {', '.join(map(str, place[1:]))}"
    return str(y[place]), where


def _squeezed(shape: Shape) -> Shape:
    return shape[:-1] if shape and shape[-1] == 1 else shape


def _same(a: Shape, b: Shape) -> bool:
    return len(a) == len(b) and all(
        i == j or i is None or j is None for i, j in zip(a, b, strict=True)
    )


def _with_batch(shape: Shape) -> str:
    inner = ["samples", *("any" if i is None else str(i) for i in shape)]
    return f"({', '.join(inner)}{',' if len(inner) == 1 else ''})"
