"""F-scores: means of precision and recall."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from fastserve.core import Array, Shape
from fastserve.errors import ArgumentError, ShapeError, UnknownNameError
from fastserve.losses import Targets, check_labels
from fastserve.metrics.base import Metric, row_weights

_EPSILON = 1e-7
_AVERAGES = ("micro", "macro", "weighted")


class FBetaScore(Metric):
    """(1 + beta^2) precision recall / (beta^2 precision + recall), of each class.

    Args:
        average: None: an array with each class's score; 'micro': of all counts
            together; 'macro': the mean; 'weighted': the mean by the classes' targets.
        beta: weight of recall beside precision.
        threshold: predictions above it are positive; None: the largest of each row is.

    Shapes: y_true, of 0 and 1, and y_pred (B, ..., C). Labels (B, ...) will do, too.
    """

    name = "fbeta_score"
    size = 0

    def __init__(
        self,
        average: str | None = None,
        beta: float = 1.0,
        threshold: float | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(name)
        if average is not None and average not in _AVERAGES:
            raise UnknownNameError(f"{self.name} average", average, _AVERAGES)
        if not 0 < beta < math.inf:
            raise ArgumentError(
                f"{self.name}: expected a beta above 0", f"beta={beta}", "F1 has 1.0"
            )
        if threshold is not None and not 0 < threshold <= 1:
            raise ArgumentError(
                f"{self.name}: expected a threshold above 0, up to 1, or None",
                f"threshold={threshold}",
                "None takes the largest of each row",
            )
        self.average, self.beta, self.threshold = average, beta, threshold

    def build(self, y_true_shape: Shape, output_shape: Shape) -> None:
        classes = output_shape[-1] if output_shape else 1
        if classes is None or self.state.size not in (0, 4 * classes):
            raise ShapeError(
                f"{self.name}: expected outputs of {self.state.size // 4 or 'some'} "
                "classes, always the same number",
                f"output shape {output_shape}",
                "make a metric for each model",
            )
        if not self.state.size:
            self.state = np.zeros(4 * classes)

    def update(self, y_true: Any, y_pred: Any, weights: Any = None) -> None:
        x = np.asarray(y_pred)
        y = np.asarray(y_true)
        self.build((), x.shape[1:])
        sparse = y.ndim == x.ndim - 1 or y.shape[-1:] == (1,)
        if x.ndim > 1 and x.shape[-1] > 1 and sparse:
            labels, rows = Targets(self.name, sparse=True).rows(y, x)
            check_labels(self.name, labels, rows.shape[1])
            y = labels[:, None] == np.arange(rows.shape[1])
        else:
            y, rows = Targets(self.name).rows(y, x)
        w = row_weights(weights, x.shape, self.name)
        if self.threshold is None:
            largest = rows >= rows.max(axis=1, keepdims=True)
            positive = largest & (np.abs(rows) > 1e-9)
        else:
            positive = rows > self.threshold
        y = y.astype(np.float64)
        for part, counted in zip(
            self._parts(),
            (positive * y, positive * (1 - y), (1 - positive) * y, y),
            strict=True,
        ):
            part += counted.sum(axis=0) if w is None else w @ counted

    def _parts(self) -> Array:
        """Return true and false positives, false negatives, targets, by class."""
        return self.state.reshape(4, -1)

    def result(self) -> Any:
        if not self.state.size:
            return 0.0 if self.average else np.zeros(0)
        parts = self._parts()
        if self.average == "micro":
            parts = parts.sum(axis=1, keepdims=True)
        tp, fp, fn, targets = parts
        precision = tp / (tp + fp + _EPSILON)
        recall = tp / (tp + fn + _EPSILON)
        square = self.beta**2
        bottom = square * precision + recall + _EPSILON
        scores = precision * recall / bottom * (1 + square)
        if self.average == "weighted":
            return float((scores * targets / (targets.sum() + _EPSILON)).sum())
        return scores if self.average is None else float(scores.mean())


class F1Score(FBetaScore):
    """Harmonic mean of precision and recall; see ``FBetaScore``."""

    name = "f1_score"

    def __init__(
        self,
        average: str | None = None,
        threshold: float | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(average, 1.0, threshold, name)
