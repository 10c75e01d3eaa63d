"""Losses of overlap, for images in which each place has a class: Dice, Tversky."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from fastserve.core import Array
from fastserve.errors import ArgumentError
from fastserve.losses.base import CLIP, Loss, check_range, column
from fastserve.losses.targets import Targets


class Tversky(Loss):
    """1 - I / (I + alpha Σ y (1 - x) + beta Σ x (1 - y) + 1e-7), where I = Σ x y.

    (Salehi et al., 2017; with alpha = beta = 0.5 it is the Dice loss.)

    Args:
        alpha, beta: weights of what is missed, and of what is wrongly found.
        axis: axes of the sums. None: all, also that of the batch, so that the loss is
            one number for a batch. Such a batch can't be cut: it trains on a single
            rank, without micro-batches. (1, 2, 3) gives a loss for each image.

    Shapes: y_true and y_pred (B, ...), losses of the axes that are left.
    """

    name = "tversky"
    targets = Targets(name)

    def __init__(
        self,
        alpha: float = 0.5,
        beta: float = 0.5,
        reduction: str | None = "sum_over_batch_size",
        name: str | None = None,
        axis: int | tuple[int, ...] | list[int] | None = None,
    ) -> None:
        super().__init__(reduction, name)
        check_range(self.name, "alpha", alpha, 0)
        check_range(self.name, "beta", beta, 0)
        self.alpha, self.beta = alpha, beta
        axes = [axis] if isinstance(axis, int) else axis
        self.axis = None if axes is None else tuple(axes)
        self.whole_batch = axis is None

    def _axes(self, rank: int) -> tuple[int, ...]:
        """Return the axes of the sums, sorted, for arrays of so many axes."""
        axes = sorted({a + rank if a < 0 else a for a in self.axis or ()})
        if not axes or axes[0] < 1 or axes[-1] >= rank:
            raise ArgumentError(
                f"{self.name}: expected axes of the samples, 1..{rank - 1}, or None",
                f"axis={self.axis}",
                "leave out the batch's axis 0: give for example axis=(1, 2, 3)",
            )
        return tuple(axes)

    def loss_shape(self, y_pred_shape: tuple[int, ...]) -> tuple[int, ...]:
        if self.axis is None:
            return y_pred_shape[:1]
        axes = self._axes(len(y_pred_shape))
        return tuple(n for a, n in enumerate(y_pred_shape) if a not in axes)

    def rows(self, y_true: Any, y_pred: Array) -> tuple[Array, Array]:
        self.targets.rows(y_true, y_pred)  # checks the shapes
        y = np.asarray(y_true).reshape(y_pred.shape)
        return self._rows(y), self._rows(y_pred)

    def _rows(self, a: Array) -> Array:
        """Return a with a row for each loss."""
        if self.axis is None:
            return np.ascontiguousarray(a).reshape(1, -1)
        axes = self._axes(a.ndim)
        last = tuple(range(a.ndim - len(axes), a.ndim))
        moved = np.ascontiguousarray(np.moveaxis(a, axes, last))
        return moved.reshape(-1, math.prod(moved.shape[-len(axes) :]))

    def sum_and_gradient(
        self,
        y_true: Any,
        y_pred: Array,
        weights: Any = None,
        scale: float = 1.0,
        dy: Array | None = None,
    ) -> float:
        y, x = self.rows(y_true, y_pred)
        factors = self.factors(weights, y_pred.shape, x.dtype)
        if self.axis is None:  # one loss, which each sample has
            times = float(len(y_pred) if factors is None else factors.sum())
            total = self._sum(y, x, None, scale * times, dy, y_pred)
            return total * times
        return self._sum(y, x, factors, scale, dy, y_pred)

    def _sum(
        self,
        y: Array,
        x: Array,
        factors: Array | None,
        scale: float,
        dy: Array | None,
        y_pred: Array,
    ) -> float:
        dx = None if dy is None else self.kept("dx", x.shape, x.dtype)
        if dy is not None:
            self.check_gradient(y_pred, dy)
        total = sum(
            float(losses.sum()) for _, losses in self._blocks(y, x, factors, scale, dx)
        )
        if dy is not None and dx is not None:
            axes = () if self.axis is None else self._axes(y_pred.ndim)
            last = tuple(range(y_pred.ndim - len(axes), y_pred.ndim))
            moved = np.moveaxis(dy, axes, last)
            np.copyto(moved, dx.reshape(moved.shape))
        return total

    def losses(self, y_true: Any, y_pred: Array, weights: Any = None) -> Any:
        if self.axis is not None:
            return super().losses(y_true, y_pred, weights)
        total = self._sum(*self.rows(y_true, y_pred), None, 1.0, None, y_pred)
        factors = self.factors(weights, y_pred.shape, y_pred.dtype)
        return np.float64(total) if factors is None else total * factors

    def block(
        self, y: Array, x: Array, losses: Array, dx: Array | None, factor: Array
    ) -> None:
        t = self.like(y, x)
        both = np.multiply(t, x, out=self.kept("both", x.shape, x.dtype))
        shared, of_t, of_x = (a.sum(axis=1).astype(np.float64) for a in (both, t, x))
        top, bottom, of_both, of_own = self.ratio(shared, of_t, of_x)
        np.subtract(1, top / bottom, out=losses)
        if dx is not None:
            # top grows by top_slope t with x, bottom by of_both t + of_own
            slope = (self.top_slope * bottom - of_both * top) / bottom**2 * factor
            rest = of_own * top / bottom**2 * factor
            np.multiply(t, column(np.asarray(-slope, x.dtype)), out=dx)
            np.add(dx, column(np.asarray(rest, x.dtype)), out=dx)

    top_slope = 1.0

    def ratio(
        self, shared: Array, of_t: Array, of_x: Array
    ) -> tuple[Array, Array, float, float]:
        """Return top and bottom of the quotient, and how the bottom grows: by t, and
        by 1, for each x."""
        missed, wrong = of_t - shared, of_x - shared
        bottom = shared + self.alpha * missed + self.beta * wrong + CLIP
        return shared, bottom, 1 - self.alpha - self.beta, self.beta


class Dice(Tversky):
    """1 - 2 Σ x y / (Σ y + Σ x + 1e-7).

    Args:
        axis: see ``Tversky``.

    Shapes: y_true and y_pred (B, ...), losses of the axes that are left.
    """

    name = "dice"
    targets = Targets(name)
    top_slope = 2.0

    def __init__(
        self,
        reduction: str | None = "sum_over_batch_size",
        name: str | None = None,
        axis: int | tuple[int, ...] | list[int] | None = None,
    ) -> None:
        super().__init__(reduction=reduction, name=name, axis=axis)

    def ratio(
        self, shared: Array, of_t: Array, of_x: Array
    ) -> tuple[Array, Array, float, float]:
        return 2 * shared, of_t + of_x + CLIP, 0.0, 1.0
