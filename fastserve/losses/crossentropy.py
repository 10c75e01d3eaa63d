"""Cross-entropies: of classes, of labels, of two classes; and their focal variants."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from fastserve.core import Array
from fastserve.errors import ArgumentError
from fastserve.losses.base import (
    ElementwiseLoss,
    Loss,
    check_range,
    column,
    refuse_axis,
)
from fastserve.losses.targets import Targets, check_labels, check_probabilities
from fastserve.ops import smooth
from fastserve.ops.linear import ones

NO_SHIFT = 60.0  # exp of logits up to here, and a sum of them, fits into float32


class _Smoothed(Loss):
    """What label smoothing does: part s of each target goes to all of C classes."""

    smoothing = 0.0

    def smooth(self, label_smoothing: float) -> None:
        if not 0 <= label_smoothing <= 1:
            raise ArgumentError(
                f"{self.name}: expected label_smoothing in 0..1",
                f"label_smoothing={label_smoothing}",
                "give for example 0.1",
            )
        self.smoothing = label_smoothing

    def like(self, y: Array, x: Array) -> Array:
        """Return y (1 - s) + s / C in the type of x."""
        t = super().like(y, x)
        if self.smoothing:
            if t is y:
                t = self.kept("y", y.shape, x.dtype)
                np.copyto(t, y)
            classes = x.shape[1] if isinstance(self, _OfClasses) else 2
            np.multiply(t, x.dtype.type(1 - self.smoothing), out=t)
            np.add(t, x.dtype.type(self.smoothing / classes), out=t)
        return t


class _OfClasses(_Smoothed):
    """What the cross-entropies over classes share: -Σ t log p, for targets t."""

    def __init__(
        self,
        from_logits: bool = False,
        label_smoothing: float = 0.0,
        axis: int = -1,
        reduction: str | None = "sum_over_batch_size",
        name: str | None = None,
    ) -> None:
        super().__init__(reduction, name)
        refuse_axis(self.name, axis)
        self.smooth(label_smoothing)
        self.from_logits = from_logits
        self.fused_loss = None if from_logits else "softmax"

    def with_logits(self) -> Loss:
        return _with_logits(self)

    def block(
        self, y: Array, x: Array, losses: Array, dx: Array | None, factor: Array
    ) -> None:
        work = self.logits if self.from_logits else self.probabilities
        work(y, x, losses, dx, factor)

    def logits(
        self, y: Array, x: Array, losses: Array, dx: Array | None, factor: Array
    ) -> None:
        t = self.like(y, x)
        e = self.exp_memory(x, dx)
        sums, shift = self.exponentials(x, e)
        mass = np.matmul(t, ones(x.shape[1], x.dtype))
        np.log(sums, out=losses, dtype=np.float64)
        if shift is not None:
            losses += shift
        losses *= mass
        losses -= np.einsum("ij,ij->i", t, x)
        if dx is not None:
            np.multiply(e, (factor * mass / sums)[:, None], out=dx)
            scaled = self.kept("scaled", x.shape, x.dtype)
            np.multiply(t, column(factor), out=scaled)
            np.subtract(dx, scaled, out=dx)

    def probabilities(
        self, y: Array, x: Array, losses: Array, dx: Array | None, factor: Array
    ) -> None:
        t = self.like(y, x)
        total = x.sum(axis=1)
        q = np.divide(x, total[:, None], out=self.kept("q", x.shape, x.dtype))
        p, inside = self.clipped(q)
        if dx is not None:
            np.divide(t, p, out=dx)
            np.multiply(dx, inside, out=dx)
            dot = np.einsum("ij,ij->i", dx, q)
            np.subtract(dot[:, None], dx, out=dx)
            np.multiply(dx, (factor / total)[:, None], out=dx)
        np.log(p, out=p)
        np.negative(np.einsum("ij,ij->i", t, p), out=losses)

    def exponentials(self, x: Array, e: Array) -> tuple[Array, Array | None]:
        """Write e (R, C) = exp(x - shift); return its sums (R) and the shift (R).

        Logits of ordinary size need no shift, which saves finding each row's maximum:
        only the block's matters, that exp doesn't overflow. A row of very negative
        logits shows as a tiny sum, and is then done again with its shift.
        """
        sums = self.kept("sums", (len(x),), x.dtype)
        one = ones(x.shape[1], x.dtype)
        if x.max() <= NO_SHIFT:
            np.exp(x, out=e)
            np.matmul(e, one, out=sums)
            if sums.min() >= math.exp(-NO_SHIFT):
                return sums, None
        shift = x.max(axis=1)
        np.subtract(x, shift[:, None], out=e)
        np.exp(e, out=e)
        np.matmul(e, one, out=sums)
        return sums, shift

    def exp_memory(self, x: Array, dx: Array | None) -> Array:
        return self.kept("exp", x.shape, x.dtype) if dx is None else dx


class SparseCategoricalCrossentropy(_OfClasses):
    """-log p[y] for labels y in 0..C-1, where p are the probabilities of C classes.

    From logits z: log(Σ exp z) - z[y], gradient softmax(z) - onehot(y). From
    probabilities q, as Keras does: p = clip(q / Σ q, 1e-7, 1 - 1e-7); where that
    clips, the gradient is 0.

    Args:
        from_logits: whether ``y_pred`` holds logits z or probabilities q.
        ignore_class: positions with this label, which may be out of range, don't
            count: their loss is 0, and means are over the others.
        label_smoothing: s; the label's target is 1 - s + s / C, each other class' s / C
            (as in PyTorch; Keras has it for one-hot targets alone).

    Shapes: y_true (B, ...) or (B, ..., 1), y_pred (B, ..., C), a loss for each label.
    """

    name = "sparse_categorical_crossentropy"
    targets = Targets(name, True, True, "categorical_crossentropy")

    def __init__(
        self,
        from_logits: bool = False,
        ignore_class: int | None = None,
        reduction: str | None = "sum_over_batch_size",
        axis: int = -1,
        name: str | None = None,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(from_logits, label_smoothing, axis, reduction, name)
        self.ignore_class = ignore_class

    def counted(self, y_true: Any) -> Array | None:
        if self.ignore_class is None:
            return None
        keep: Array = np.asarray(y_true) != self.ignore_class
        return keep

    def _blocks(
        self, y: Array, x: Array, factors: Array | None, scale: float, dx: Array | None
    ) -> Iterator[tuple[slice, Array]]:
        if self.ignore_class is not None:
            keep = y != self.ignore_class
            y = np.where(keep, y, 0)
            kept = keep.astype(x.dtype)
            factors = kept if factors is None else kept * factors
        return super()._blocks(y, x, factors, scale, dx)

    def check_values(self, y: Array, classes: int, first: int = 0) -> None:
        if self.ignore_class is not None:
            y = np.where(y == self.ignore_class, 0, y)
        check_labels(self.name, y, classes, first)

    def places(self, y: Array, x: Array) -> Array:
        """Return where in the flat block each row's label is, (R) int64."""
        index = np.dtype(np.int64)
        places = self.kept("places", (len(x),), index)
        np.copyto(places, y, casting="unsafe")
        places += np.arange(0, x.size, x.shape[1])
        return places

    def one_hot(self, y: Array, x: Array) -> Array:
        """Return (R, C) with 1 at each row's label, in the type of x."""
        rows = self.kept("one_hot", x.shape, x.dtype)
        rows.fill(0)
        rows.reshape(-1)[self.places(y, x)] = 1
        return rows

    def logits(
        self, y: Array, x: Array, losses: Array, dx: Array | None, factor: Array
    ) -> None:
        if self.smoothing:
            super().logits(self.one_hot(y, x), x, losses, dx, factor)
            return
        e = self.exp_memory(x, dx)
        sums, shift = self.exponentials(x, e)
        places = self.places(y, x)
        np.log(sums, out=losses, dtype=np.float64)
        losses -= x.reshape(-1)[places]
        if shift is not None:
            losses += shift
        if dx is not None:
            np.multiply(e, (factor / sums)[:, None], out=dx)
            dx.reshape(-1)[places] -= factor

    def probabilities(
        self, y: Array, x: Array, losses: Array, dx: Array | None, factor: Array
    ) -> None:
        if self.smoothing:
            super().probabilities(self.one_hot(y, x), x, losses, dx, factor)
            return
        places = self.places(y, x)
        total = x.sum(axis=1)
        q = x.reshape(-1)[places] / total
        p, inside = self.clipped(q)
        np.negative(np.log(p), out=losses)
        if dx is not None:
            slope = np.where(inside, factor / (p * total), x.dtype.type(0))
            dx[...] = (slope * q)[:, None]
            dx.reshape(-1)[places] -= slope


class CategoricalCrossentropy(_OfClasses):
    """-Σ t log p for target probabilities t, most often one-hot rows.

    From logits z: Σ t (log(Σ exp z) - z), gradient softmax(z) Σ t - t. From
    probabilities q, as Keras does: p = clip(q / Σ q, 1e-7, 1 - 1e-7); where that
    clips, the gradient is 0.

    Args:
        from_logits: whether ``y_pred`` holds logits z or probabilities q.
        label_smoothing: s; the targets are t (1 - s) + s / C.

    Shapes: y_true and y_pred (B, ..., C), a loss for each row.
    """

    name = "categorical_crossentropy"
    targets = Targets(name, False, True, "sparse_categorical_crossentropy")

    def check_values(self, y: Array, classes: int, first: int = 0) -> None:
        check_probabilities(self.name, y, first)


class BinaryCrossentropy(_Smoothed, ElementwiseLoss):
    """-mean(y log p + (1 - y) log(1 - p)) over the last axis, for y in 0..1.

    From logits z: max(z, 0) - z y + log(1 + exp(-abs(z))), gradient sigmoid(z) - y.
    From probabilities q, as Keras does: p = clip(q, 1e-7, 1 - 1e-7); where that clips,
    the gradient is 0.

    Args:
        from_logits: whether ``y_pred`` holds logits z or probabilities q.
        label_smoothing: s; the targets are y (1 - s) + s / 2.

    Shapes: y_true and y_pred (B, ..., C), a loss for each row. A last axis of 1 may be
    missing in y_true.
    """

    name = "binary_crossentropy"
    targets = Targets(name)

    def __init__(
        self,
        from_logits: bool = False,
        label_smoothing: float = 0.0,
        axis: int = -1,
        reduction: str | None = "sum_over_batch_size",
        name: str | None = None,
    ) -> None:
        super().__init__(reduction, name)
        refuse_axis(self.name, axis)
        self.smooth(label_smoothing)
        self.from_logits = from_logits
        self.fused_loss = None if from_logits else "sigmoid"

    def with_logits(self) -> Loss:
        return _with_logits(self)

    def check_values(self, y: Array, classes: int, first: int = 0) -> None:
        check_probabilities(self.name, y, first)

    def elements(self, y: Array, x: Array, values: Array, dx: Array | None) -> None:
        work = self._logits if self.from_logits else self._probabilities
        work(y, x, values, dx)

    def _logits(self, y: Array, x: Array, values: Array, dx: Array | None) -> None:
        other = self.kept("other", x.shape, x.dtype)
        np.abs(x, out=values)
        np.negative(values, out=values)
        np.exp(values, out=values)
        if dx is not None:
            positive = self.kept("positive", x.shape, np.dtype(np.bool_))
            np.greater_equal(x, x.dtype.type(0), out=positive)
            np.copyto(dx, values)
            np.copyto(dx, x.dtype.type(1), where=positive)
            np.add(values, x.dtype.type(1), out=other)
            np.divide(dx, other, out=dx)
            np.subtract(dx, y, out=dx)
        np.log1p(values, out=values)
        np.multiply(x, y, out=other)
        np.subtract(values, other, out=values)
        np.maximum(x, x.dtype.type(0), out=other)
        np.add(values, other, out=values)

    def _probabilities(
        self, y: Array, x: Array, values: Array, dx: Array | None
    ) -> None:
        one = x.dtype.type(1)
        p, inside = self.clipped(x)
        rest = np.subtract(one, p, out=self.kept("rest", x.shape, x.dtype))
        if dx is not None:
            np.multiply(p, rest, out=values)
            np.subtract(p, y, out=dx)
            np.divide(dx, values, out=dx)
            np.multiply(dx, inside, out=dx)
        np.log(p, out=p)
        np.log(rest, out=rest)
        np.subtract(p, rest, out=p)
        np.multiply(p, y, out=p)
        np.add(p, rest, out=p)
        np.negative(p, out=values)


# -- focal: rows that are right already count less -------------------------------


class BinaryFocalCrossentropy(_Smoothed, ElementwiseLoss):
    """mean((1 - p_t)^gamma * binary cross-entropy) over the last axis (Lin, 2017).

    p_t = y q + (1 - y) (1 - q); q are probabilities, in the cross-entropy within
    1e-7..1 - 1e-7; where that clips, it has no gradient.

    Args:
        apply_class_balancing: multiply by alpha where y is 1, 1 - alpha where it is 0.
        alpha: weight of the class 1. gamma: 0 is the plain cross-entropy.
        from_logits: whether ``y_pred`` holds logits or probabilities q.
        label_smoothing: s; the targets are y (1 - s) + s / 2.

    Shapes: y_true and y_pred (B, ..., C), a loss for each row. A last axis of 1 may be
    missing in y_true.
    """

    name = "binary_focal_crossentropy"
    targets = Targets(name)

    def __init__(
        self,
        apply_class_balancing: bool = False,
        alpha: float = 0.25,
        gamma: float = 2.0,
        from_logits: bool = False,
        label_smoothing: float = 0.0,
        axis: int = -1,
        reduction: str | None = "sum_over_batch_size",
        name: str | None = None,
    ) -> None:
        super().__init__(reduction, name)
        refuse_axis(self.name, axis)
        check_range(self.name, "alpha", alpha, 0)
        check_range(self.name, "gamma", gamma, 0)
        self.smooth(label_smoothing)
        self.apply_class_balancing = apply_class_balancing
        self.alpha, self.gamma, self.from_logits = alpha, gamma, from_logits

    def check_values(self, y: Array, classes: int, first: int = 0) -> None:
        check_probabilities(self.name, y, first)

    def elements(self, y: Array, x: Array, values: Array, dx: Array | None) -> None:
        one, gamma = x.dtype.type(1), x.dtype.type(self.gamma)
        q, spare = x, self.kept("spare", x.shape, x.dtype)
        if self.from_logits:
            q = self.kept("q", x.shape, x.dtype)
            smooth.sigmoid(x, q)
        p, inside = self.clipped(q)
        left = np.subtract(one, p, out=self.kept("left", x.shape, x.dtype))
        cross = np.log(left, out=self.kept("cross", x.shape, x.dtype))
        np.log(p, out=values)
        np.subtract(cross, values, out=values)
        np.multiply(values, y, out=values)
        np.subtract(values, cross, out=cross)  # -y log p - (1 - y) log(1 - p)
        sign = np.multiply(y, x.dtype.type(-2), out=self.kept("sign", x.shape, x.dtype))
        np.add(sign, one, out=sign)
        if dx is not None:
            np.multiply(p, left, out=spare)
            np.subtract(p, y, out=dx)
            np.divide(dx, spare, out=dx)
            np.multiply(dx, inside, out=dx)
        np.multiply(sign, q, out=left)
        np.add(left, y, out=left)  # 1 - p_t = y + (1 - 2 y) q
        np.power(left, gamma, out=values)
        if dx is not None:
            np.multiply(dx, values, out=dx)
            if self.gamma:
                np.power(left, gamma - one, out=left)
                np.multiply(left, cross, out=left)
                np.multiply(left, sign, out=left)
                np.multiply(left, gamma, out=left)
                np.add(dx, left, out=dx)
            if self.from_logits:
                np.subtract(one, q, out=spare)
                np.multiply(spare, q, out=spare)
                np.multiply(dx, spare, out=dx)
        np.multiply(values, cross, out=values)
        if self.apply_class_balancing:
            np.multiply(y, x.dtype.type(2 * self.alpha - 1), out=spare)
            np.add(spare, x.dtype.type(1 - self.alpha), out=spare)
            np.multiply(values, spare, out=values)
            if dx is not None:
                np.multiply(dx, spare, out=dx)


class CategoricalFocalCrossentropy(_OfClasses):
    """-Σ alpha (1 - p)^gamma t log p for target probabilities t (Lin, 2017).

    p = clip(q / Σ q, 1e-7, 1 - 1e-7); where that clips, the gradient is 0.

    Args:
        alpha: factor. gamma: 0 is alpha times the plain cross-entropy.
        from_logits: whether ``y_pred`` holds logits or probabilities q.
        label_smoothing: s; the targets are t (1 - s) + s / C.

    Shapes: y_true and y_pred (B, ..., C), a loss for each row.
    """

    name = "categorical_focal_crossentropy"
    targets = Targets(name, False, True, "sparse_categorical_crossentropy")

    def __init__(
        self,
        alpha: float = 0.25,
        gamma: float = 2.0,
        from_logits: bool = False,
        label_smoothing: float = 0.0,
        axis: int = -1,
        reduction: str | None = "sum_over_batch_size",
        name: str | None = None,
    ) -> None:
        super().__init__(from_logits, label_smoothing, axis, reduction, name)
        check_range(self.name, "alpha", alpha, 0)
        check_range(self.name, "gamma", gamma, 0)
        self.alpha, self.gamma = alpha, gamma
        self.fused_loss = None

    def check_values(self, y: Array, classes: int, first: int = 0) -> None:
        check_probabilities(self.name, y, first)

    def block(
        self, y: Array, x: Array, losses: Array, dx: Array | None, factor: Array
    ) -> None:
        one, gamma = x.dtype.type(1), x.dtype.type(self.gamma)
        alpha = x.dtype.type(self.alpha)
        t, q = self.like(y, x), self.kept("q", x.shape, x.dtype)
        if self.from_logits:
            sums, _ = self.exponentials(x, q)
            np.divide(q, sums[:, None], out=q)
        total = q.sum(axis=1) if self.from_logits else x.sum(axis=1)
        np.divide(q if self.from_logits else x, total[:, None], out=q)
        p, inside = self.clipped(q)
        log = np.log(p, out=self.kept("log", x.shape, x.dtype))
        left = np.subtract(one, p, out=self.kept("left", x.shape, x.dtype))
        power = np.power(left, gamma, out=self.kept("power", x.shape, x.dtype))
        if dx is not None:
            np.divide(power, p, out=dx)
            if self.gamma:
                np.power(left, gamma - one, out=left)
                np.multiply(left, log, out=left)
                np.multiply(left, gamma, out=left)
                np.subtract(dx, left, out=dx)
            np.multiply(dx, t, out=dx)
            np.multiply(dx, inside, out=dx)  # minus the slope of p, over alpha
            dot = np.einsum("ij,ij->i", dx, q)
            np.subtract(dot[:, None], dx, out=dx)
            if self.from_logits:
                np.multiply(dx, q, out=dx)
                total = np.ones_like(total)
            np.multiply(dx, (factor * alpha / total)[:, None], out=dx)
        np.multiply(log, power, out=log)
        np.negative(np.einsum("ij,ij->i", t, log) * alpha, out=losses)


def _with_logits(loss: Loss) -> Loss:
    """Return the same loss for outputs from before the activation."""
    made = copy.copy(loss)
    made.from_logits, made.fused_loss, made._kept = True, None, {}
    return made
