"""Losses of numbers: squared, absolute, relative and logarithmic errors, directions.

Shapes of all: y_true and y_pred (B, ..., C), a loss for each row. A last axis of 1 may
be missing in y_true.
"""

from __future__ import annotations

import math

import numpy as np

from fastserve.core import Array
from fastserve.errors import ArgumentError
from fastserve.losses.base import CLIP, ElementwiseLoss, Loss, column, refuse_axis
from fastserve.losses.targets import Targets


class MeanSquaredError(ElementwiseLoss):
    """mean((x - y)^2) over the last axis.

    Shapes: y_true and y_pred (B, ..., C), a loss for each row. A last axis of 1 may be
    missing in y_true.
    """

    name = "mean_squared_error"
    targets = Targets(name)

    def elements(self, y: Array, x: Array, values: Array, dx: Array | None) -> None:
        np.subtract(x, y, out=values)
        if dx is not None:
            np.add(values, values, out=dx)
        np.multiply(values, values, out=values)


class MeanAbsoluteError(ElementwiseLoss):
    """mean(abs(x - y)) over the last axis; the gradient at x = y is 0.

    Shapes: y_true and y_pred (B, ..., C), a loss for each row. A last axis of 1 may be
    missing in y_true.
    """

    name = "mean_absolute_error"
    targets = Targets(name)

    def elements(self, y: Array, x: Array, values: Array, dx: Array | None) -> None:
        np.subtract(x, y, out=values)
        if dx is not None:
            np.sign(values, out=dx)
        np.abs(values, out=values)


class MeanAbsolutePercentageError(ElementwiseLoss):
    """100 mean(abs(x - y) / max(abs(y), 1e-7)) over the last axis."""

    name = "mean_absolute_percentage_error"
    targets = Targets(name)

    def elements(self, y: Array, x: Array, values: Array, dx: Array | None) -> None:
        bottom = self.kept("bottom", x.shape, x.dtype)
        np.abs(y, out=bottom)
        np.maximum(bottom, x.dtype.type(CLIP), out=bottom)
        np.divide(x.dtype.type(100), bottom, out=bottom)
        np.subtract(x, y, out=values)
        if dx is not None:
            np.sign(values, out=dx)
            np.multiply(dx, bottom, out=dx)
        np.abs(values, out=values)
        np.multiply(values, bottom, out=values)


class MeanSquaredLogarithmicError(ElementwiseLoss):
    """mean((log(1 + x) - log(1 + y))^2) over the last axis, of numbers above 0.

    Smaller ones count as 1e-7, and have no gradient.
    """

    name = "mean_squared_logarithmic_error"
    targets = Targets(name)

    def elements(self, y: Array, x: Array, values: Array, dx: Array | None) -> None:
        least, one = x.dtype.type(CLIP), x.dtype.type(1)
        top = np.maximum(x, least, out=self.kept("top", x.shape, x.dtype))
        inside = self.kept("inside", x.shape, np.dtype(np.bool_))
        np.greater(x, least, out=inside)
        other = np.maximum(y, least, out=self.kept("other", x.shape, x.dtype))
        np.log1p(other, out=other)
        np.log1p(top, out=values)
        np.subtract(values, other, out=values)
        if dx is not None:
            np.add(top, one, out=top)
            np.divide(values, top, out=dx)
            np.add(dx, dx, out=dx)
            np.multiply(dx, inside, out=dx)
        np.multiply(values, values, out=values)


class Huber(ElementwiseLoss):
    """Mean over the last axis of e^2 / 2 where abs(e) <= delta, e = x - y, and of
    delta abs(e) - delta^2 / 2 elsewhere (Huber, 1964)."""

    name = "huber_loss"
    targets = Targets(name)

    def __init__(
        self,
        delta: float = 1.0,
        reduction: str | None = "sum_over_batch_size",
        name: str | None = None,
    ) -> None:
        super().__init__(reduction, name)
        if not 0 < delta < math.inf:
            raise ArgumentError(
                f"{self.name}: expected a delta above 0",
                f"delta={delta}",
                "give for example 1.0",
            )
        self.delta = delta

    def elements(self, y: Array, x: Array, values: Array, dx: Array | None) -> None:
        delta, half = x.dtype.type(self.delta), x.dtype.type(0.5)
        near = self.kept("near", x.shape, x.dtype)
        np.subtract(x, y, out=values)
        np.clip(values, -delta, delta, out=near)
        if dx is not None:
            np.copyto(dx, near)
        # near * (e - near / 2) is both: near is e, or delta with the sign of e
        other = np.multiply(near, half, out=self.kept("other", x.shape, x.dtype))
        np.subtract(values, other, out=values)
        np.multiply(values, near, out=values)


class LogCosh(ElementwiseLoss):
    """mean(log(cosh(x - y))) over the last axis."""

    name = "log_cosh"
    targets = Targets(name)

    def elements(self, y: Array, x: Array, values: Array, dx: Array | None) -> None:
        # abs(e) + log(1 + exp(-2 abs(e))) - log(2) doesn't overflow
        other = self.kept("other", x.shape, x.dtype)
        np.subtract(x, y, out=values)
        if dx is not None:
            np.tanh(values, out=dx)
        np.abs(values, out=values)
        np.multiply(values, x.dtype.type(-2), out=other)
        np.exp(other, out=other)
        np.log1p(other, out=other)
        np.add(values, other, out=values)
        np.subtract(values, x.dtype.type(math.log(2)), out=values)


class CosineSimilarity(Loss):
    """-cos of the angle between x and y, over the last axis: -1 is the same direction.

    Where one of both is 0 the loss is 0, without a gradient.
    """

    name = "cosine_similarity"
    targets = Targets(name)

    def __init__(
        self,
        axis: int = -1,
        reduction: str | None = "sum_over_batch_size",
        name: str | None = None,
    ) -> None:
        super().__init__(reduction, name)
        refuse_axis(self.name, axis)

    def block(
        self, y: Array, x: Array, losses: Array, dx: Array | None, factor: Array
    ) -> None:
        t = self.like(y, x)
        most = x.dtype.type(1 / CLIP)
        of_x = np.minimum(1 / np.sqrt(np.einsum("ij,ij->i", x, x)), most)
        of_t = np.minimum(1 / np.sqrt(np.einsum("ij,ij->i", t, t)), most)
        cosine = np.einsum("ij,ij->i", x, t) * of_x * of_t
        np.negative(cosine, out=losses)
        if dx is not None:
            inside = of_x < most  # elsewhere the length of x isn't divided by
            of_own = cosine * of_x * of_x * inside
            np.multiply(x, column(of_own * factor), out=dx)
            other = self.kept("other", x.shape, x.dtype)
            np.multiply(t, column(of_x * of_t * factor), out=other)
            np.subtract(dx, other, out=dx)
