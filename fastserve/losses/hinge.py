"""Hinge losses, for outputs of which the sign, or the largest, decides."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from fastserve.core import Array
from fastserve.losses.base import ElementwiseLoss, Loss, column
from fastserve.losses.targets import Targets
from fastserve.ops.blocks import row_blocks


class Hinge(ElementwiseLoss):
    """mean(max(1 - y x, 0)) over the last axis, for y of -1 and 1.

    If a batch has no other targets than 0 and 1, its 0 count as -1.

    Shapes: y_true and y_pred (B, ..., C), a loss for each row. A last axis of 1 may be
    missing in y_true.
    """

    name = "hinge"
    targets = Targets(name)
    squared = False
    _binary = False

    def _blocks(
        self, y: Array, x: Array, *arguments: Any
    ) -> Iterator[tuple[slice, Array]]:
        self._binary = all(
            ((y[part] == 0) | (y[part] == 1)).all() for part in row_blocks(*y.shape)
        )
        return super()._blocks(y, x, *arguments)

    def elements(self, y: Array, x: Array, values: Array, dx: Array | None) -> None:
        one, zero = x.dtype.type(1), x.dtype.type(0)
        t = np.negative(y, out=self.kept("t", x.shape, x.dtype))
        if self._binary:  # -(2 y - 1)
            np.add(t, t, out=t)
            np.add(t, one, out=t)
        np.multiply(t, x, out=values)
        np.add(values, one, out=values)
        np.maximum(values, zero, out=values)
        if dx is not None and self.squared:
            np.add(values, values, out=dx)
            np.multiply(dx, t, out=dx)
        elif dx is not None:
            inside = self.kept("inside", x.shape, np.dtype(np.bool_))
            np.multiply(t, np.greater(values, zero, out=inside), out=dx)
        if self.squared:
            np.multiply(values, values, out=values)


class SquaredHinge(Hinge):
    """mean(max(1 - y x, 0)^2) over the last axis; see ``Hinge``."""

    name = "squared_hinge"
    targets = Targets(name)
    squared = True


class CategoricalHinge(Loss):
    """max(1 + max((1 - y) x) - Σ y x, 0) over the last axis, for one-hot y.

    Shapes: y_true and y_pred (B, ..., C), a loss for each row.
    """

    name = "categorical_hinge"
    targets = Targets(name)

    def block(
        self, y: Array, x: Array, losses: Array, dx: Array | None, factor: Array
    ) -> None:
        t = self.like(y, x)
        others = self.kept("others", x.shape, x.dtype)
        np.subtract(x.dtype.type(1), t, out=others)
        np.multiply(others, x, out=others)
        places = others.argmax(axis=1)
        own = np.einsum("ij,ij->i", t, x)
        each = np.arange(len(x))
        np.subtract(others[each, places] + 1, own, out=losses)
        np.maximum(losses, 0, out=losses)
        if dx is not None:
            slope = np.asarray(factor * (losses > 0), x.dtype)
            np.multiply(t, column(-slope), out=dx)
            dx[each, places] += slope * (1 - t[each, places])
