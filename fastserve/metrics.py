"""Metrics, by Keras' names, as sums that can be merged.

``update`` adds a batch to ``state``, a float64 vector; the states of several batches or
ranks, added up, are the state of all of them together, and ``result`` is computed from
the state alone. So evaluation counts every sample once however it is split.

All metrics here come from weighted means over the rows: a row is a sample, or a
position of a sequence, as for losses. Weights are None, (B,), or one for each row. The
mean of nothing is 0, as in Keras.

``y_pred`` is what the loss is given: logits if it takes logits.

A new metric is a subclass of ``RowMetric`` with one method, ``values``.

B batch, C classes or features, N rows
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from fastserve import losses
from fastserve.core import Array, Shape
from fastserve.errors import ArgumentError, ShapeError, UnknownNameError
from fastserve.losses import Loss, Targets, row_count, spread_weights
from fastserve.ops.blocks import row_blocks


class Metric:
    """A number about a data set, from sums over its batches.

    Attributes:
        name: the key in logs and in the history.
        state: float64 vector; it may be summed over ranks in place.
    """

    name = "metric"
    size = 2  # numbers in the state

    def __init__(self, name: str | None = None) -> None:
        self.name = name or self.name
        self.state = np.zeros(self.size)

    def update(self, y_true: Any, y_pred: Any, weights: Any = None) -> None:
        """Add a batch; the arrays are only read."""
        raise NotImplementedError(f"{type(self).__name__}.update")

    def result(self) -> float:
        """Return the metric of all that was added since ``reset``."""
        raise NotImplementedError(f"{type(self).__name__}.result")

    def reset(self) -> None:
        self.state.fill(0)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r})"


class Mean(Metric):
    """A weighted mean; the state is (weighted sum, sum of weights)."""

    def add(self, total: float, count: int, weights: Array | None) -> None:
        """Add the weighted sum of ``count`` rows of these weights."""
        self.state[0] += total
        self.state[1] += count if weights is None else weights.sum()

    def result(self) -> float:
        return float(self.state[0] / self.state[1]) if self.state[1] else 0.0


class RowMetric(Mean):
    """Mean of a number for each row."""

    targets = Targets("metric")

    def values(self, y: Array, x: Array) -> Array:
        """Return a number for each row (N) from y (N) or (N, C) and x (N, C)."""
        raise NotImplementedError(f"{type(self).__name__}.values")

    def update(self, y_true: Any, y_pred: Any, weights: Any = None) -> None:
        x = np.asarray(y_pred)
        y, rows = self.targets.rows(y_true, x)
        w = row_weights(weights, x.shape, self.name)
        total = 0.0
        for part in row_blocks(*rows.shape):
            values = self.values(y[part], rows[part])
            if w is not None:
                values = values * w[part]
            total += float(values.sum(dtype=np.float64))
        self.add(total, len(rows), w)


class BinaryAccuracy(RowMetric):
    """Share of outputs that are on their target's side of ``threshold``.

    An output above the threshold counts as 1, all others as 0, so one that equals it,
    or is NaN, is a 0. A row's value is the mean over its last axis.

    Shapes: y_true and y_pred (B, ..., C); a last axis of 1 may be missing in y_true.
    """

    name = "binary_accuracy"
    targets = Targets(name)

    def __init__(self, threshold: float = 0.5, name: str | None = None) -> None:
        super().__init__(name)
        self.threshold = threshold

    def values(self, y: Array, x: Array) -> Array:
        share: Array = np.mean((x > self.threshold) == y, axis=1)
        return share


class CategoricalAccuracy(RowMetric):
    """Share of rows whose largest output is where the target is largest.

    Of equal values the first counts; NaN counts as the largest.

    Shapes: y_true, one-hot, and y_pred (B, ..., C).
    """

    name = "categorical_accuracy"
    targets = Targets(name, False, True, "sparse_categorical_accuracy")

    def values(self, y: Array, x: Array) -> Array:
        hits: Array = x.argmax(axis=1) == y.argmax(axis=1)
        return hits


class SparseCategoricalAccuracy(RowMetric):
    """Share of rows whose largest output is at the label.

    Of equal values the first counts; NaN counts as the largest.

    Shapes: y_true (B, ...) or (B, ..., 1), y_pred (B, ..., C).
    """

    name = "sparse_categorical_accuracy"
    targets = Targets(name, True, True, "categorical_accuracy")

    def values(self, y: Array, x: Array) -> Array:
        hits: Array = x.argmax(axis=1) == y
        return hits


class _TopK(RowMetric):
    """What both top-k accuracies share."""

    def __init__(self, k: int = 5, name: str | None = None) -> None:
        super().__init__(name)
        if k < 1:
            raise ArgumentError(f"{self.name}: expected k of 1 or more", f"k={k}")
        self.k = k

    def hits(self, labels: Array, x: Array) -> Array:
        own = x[np.arange(len(x)), labels]
        larger = np.count_nonzero(x > own[:, None], axis=1)
        hits: Array = (larger < self.k) & ~np.isnan(own)
        return hits


class TopKCategoricalAccuracy(_TopK):
    """Share of rows with fewer than k outputs above the target class' output.

    So of equal values at the border all are in the top k. A NaN at the target's class
    is a miss; a NaN elsewhere isn't above anything.

    Shapes: y_true, one-hot, and y_pred (B, ..., C).
    """

    name = "top_k_categorical_accuracy"
    targets = Targets(name, False, True, "sparse_top_k_categorical_accuracy")

    def values(self, y: Array, x: Array) -> Array:
        return self.hits(y.argmax(axis=1), x)


class SparseTopKCategoricalAccuracy(_TopK):
    """Share of rows with fewer than k outputs above the label's output.

    So of equal values at the border all are in the top k. A NaN at the label is a miss;
    a NaN elsewhere isn't above anything.

    Shapes: y_true (B, ...) or (B, ..., 1), y_pred (B, ..., C).
    """

    name = "sparse_top_k_categorical_accuracy"
    targets = Targets(name, True, True, "top_k_categorical_accuracy")

    def values(self, y: Array, x: Array) -> Array:
        losses.check_labels(self.name, y, x.shape[1])
        return self.hits(y.astype(np.int64, copy=False), x)


class MeanLoss(Mean):
    """Mean of a loss over the rows; NaN where the loss is NaN.

    Unlike the loss itself, the weighted sum is divided by the sum of the weights, as
    Keras' metrics do.
    """

    def __init__(self, loss: Loss, name: str | None = None) -> None:
        super().__init__(name or loss.name)
        self.loss = loss

    def update(self, y_true: Any, y_pred: Any, weights: Any = None) -> None:
        x = np.asarray(y_pred)
        x = x if x.dtype.kind == "f" else x.astype(np.float32)
        w = row_weights(weights, x.shape, self.name)
        total = self.loss.sum_and_gradient(y_true, x, weights)
        self.add(total, row_count(x.shape), w)


class MeanSquaredError(MeanLoss):
    """Mean of the squared errors."""

    def __init__(self, name: str | None = None) -> None:
        super().__init__(losses.MeanSquaredError(), name)


class MeanAbsoluteError(MeanLoss):
    """Mean of the absolute errors."""

    def __init__(self, name: str | None = None) -> None:
        super().__init__(losses.MeanAbsoluteError(), name)


def perplexity(loss: float) -> float:
    """Return exp(loss) of a mean loss in nats a token; infinite if it is too large."""
    return math.exp(loss) if loss < 700 or math.isnan(loss) else math.inf


class Perplexity(MeanLoss):
    """exp of the mean cross-entropy of labels; infinite if that is too large.

    Args:
        from_logits: whether ``y_pred`` holds logits or probabilities.

    Shapes: y_true (B, ...) or (B, ..., 1), y_pred (B, ..., C).
    """

    def __init__(self, from_logits: bool = False, name: str | None = None) -> None:
        loss = losses.SparseCategoricalCrossentropy(from_logits)
        super().__init__(loss, name or "perplexity")

    def result(self) -> float:
        return perplexity(super().result())


class FunctionMetric(Mean):
    """Mean of the numbers that a plain function returns.

    Args:
        function: ``function(y_true, y_pred)`` returns a number for each sample, or for
            each row; further axes are averaged.
    """

    def __init__(self, function: Callable[..., Any], name: str | None = None) -> None:
        super().__init__(name or getattr(function, "__name__", type(function).__name__))
        self.function = function

    def update(self, y_true: Any, y_pred: Any, weights: Any = None) -> None:
        values = np.asarray(self.function(y_true, y_pred), np.float64)
        count = len(y_pred)
        if values.ndim == 0 or len(values) != count:
            raise ShapeError(
                f"metric {self.name}: expected {count} numbers, one for each sample",
                f"shape {values.shape}",
                "return them before taking the mean",
            )
        if weights is None or values.shape != np.shape(weights):
            values = values.reshape(count, math.prod(values.shape[1:])).mean(axis=1)
        values = values.reshape(-1)
        w = None if weights is None else np.asarray(weights).reshape(-1)
        if w is not None and w.shape != values.shape:
            w = row_weights(weights, values.shape, self.name)
        self.add(float((values if w is None else values * w).sum()), values.size, w)


def row_weights(weights: Any, shape: tuple[int, ...], owner: str) -> Array | None:
    """Return the weights (N) of the rows of y_pred's ``shape``, in float64, or None."""
    if weights is None:
        return None
    spread = np.empty(row_count(shape))
    spread_weights(weights, shape, spread, owner)
    return spread


_CLASSES: tuple[type[Metric], ...] = (
    BinaryAccuracy,
    CategoricalAccuracy,
    SparseCategoricalAccuracy,
    TopKCategoricalAccuracy,
    SparseTopKCategoricalAccuracy,
)
NAMED: dict[str, type[Metric]] = {
    **{cls.name: cls for cls in _CLASSES},
    **{cls.__name__: cls for cls in _CLASSES},
}
KNOWN = ("accuracy", "acc", "perplexity", "Perplexity", *NAMED, *losses.NAMED)

MetricLike = str | Metric | type[Metric] | Callable[..., Any]


def get(
    metric: MetricLike,
    loss: Loss,
    y_true_shape: Shape,
    output_shape: Shape,
) -> Metric:
    """Return a metric by Keras' name, from its class, or around a plain function.

    'accuracy' and 'acc' are chosen by shape, as Keras does: binary if the output's last
    axis is 1; sparse if the targets have fewer axes, or a last axis of 1; categorical
    otherwise. A metric made from a string has that string as its name.

    Args:
        metric: what ``compile(metrics=[...])`` was given.
        loss: the loss that gets the same ``y_pred``. If it takes logits, binary
            accuracy has the threshold 0 (probability 0.5), and perplexity and
            cross-entropies take logits too.
        y_true_shape, output_shape: without the batch.

    Raises:
        UnknownNameError: another string.
        ArgumentError: another object.
    """
    if isinstance(metric, str):
        made = _named(metric, loss, y_true_shape, output_shape)
        made.name = metric
        return made
    if isinstance(metric, Metric):
        return metric
    if isinstance(metric, type) and issubclass(metric, Metric):
        return metric()
    if isinstance(metric, Loss):
        return MeanLoss(metric)
    if callable(metric):
        return FunctionMetric(metric)
    raise ArgumentError(
        "expected a metric's name, a Metric, or a function of (y_true, y_pred)",
        repr(metric),
        "for example metrics=['accuracy']",
    )


def _named(name: str, loss: Loss, y_shape: Shape, output_shape: Shape) -> Metric:
    cls = NAMED.get(name)
    if name.lower() in ("accuracy", "acc"):
        cls = _accuracy(y_shape, output_shape)
    if cls is BinaryAccuracy:
        return BinaryAccuracy(0.0 if loss.from_logits else 0.5)
    if cls is not None:
        return cls()
    if name.lower() == "perplexity":
        return Perplexity(loss.from_logits)
    if name not in losses.NAMED:
        raise UnknownNameError("metric", name, KNOWN)
    made = losses.get(name)
    return MeanLoss(
        made.with_logits() if loss.from_logits and made.fused_loss else made
    )


def _accuracy(y_shape: Shape, output_shape: Shape) -> type[Metric]:
    if not output_shape or output_shape[-1] == 1:
        return BinaryAccuracy
    if len(y_shape) < len(output_shape) or y_shape[-1] == 1:
        return SparseCategoricalAccuracy
    return CategoricalAccuracy
