"""Accuracies: shares of targets that were met."""

from __future__ import annotations

import numpy as np

from fastserve import losses
from fastserve.core import Array
from fastserve.errors import ArgumentError
from fastserve.losses import Targets
from fastserve.metrics.base import RowMetric


class Accuracy(RowMetric):
    """Share of outputs that equal their targets, as numbers.

    Shapes: y_true and y_pred (B, ..., C); a last axis of 1 may be missing in y_true.
    """

    name = "accuracy"
    targets = Targets(name)

    def values(self, y: Array, x: Array) -> Array:
        share: Array = np.mean(x == y, axis=1)
        return share


class BinaryAccuracy(RowMetric):
    """Share of outputs that are on their target's side of ``threshold``.

    An output above the threshold counts as 1, all others as 0, so one that equals it,
    or is NaN, is a 0. A row's value is the mean over its last axis.

    Shapes: y_true and y_pred (B, ..., C); a last axis of 1 may be missing in y_true.
    """

    name = "binary_accuracy"
    targets = Targets(name)

    def __init__(self, name: str | None = None, threshold: float = 0.5) -> None:
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
