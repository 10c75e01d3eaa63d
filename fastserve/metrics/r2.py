"""R2: the share of the targets' variance that predictions explain."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastserve.core import Array, Shape
from fastserve.errors import ArgumentError, ShapeError, UnknownNameError
from fastserve.losses import Targets
from fastserve.metrics.base import Metric, row_weights

_AGGREGATIONS = ("uniform_average", "variance_weighted_average")


class R2Score(Metric):
    """1 - Σ (y - x)^2 / Σ (y - mean(y))^2, of each output.

    Args:
        class_aggregation: 'uniform_average' or 'variance_weighted_average' of the
            outputs; None: an array with each.
        num_regressors: number of independent variables, for the adjusted score; 0: not
            adjusted. It isn't adjusted either if there are too few samples for that.

    Shapes: y_true and y_pred (B, ..., C); a last axis of 1 may be missing in y_true.
    """

    name = "r2_score"
    size = 1

    def __init__(
        self,
        class_aggregation: str | None = "uniform_average",
        num_regressors: int = 0,
        name: str | None = None,
    ) -> None:
        super().__init__(name)
        if class_aggregation is not None and class_aggregation not in _AGGREGATIONS:
            raise UnknownNameError(
                f"{self.name} class_aggregation", class_aggregation, _AGGREGATIONS
            )
        if num_regressors < 0:
            raise ArgumentError(
                f"{self.name}: expected num_regressors of 0 or more",
                f"{num_regressors}",
                "0 is the score that isn't adjusted",
            )
        self.class_aggregation = class_aggregation
        self.num_regressors = num_regressors

    def build(self, y_true_shape: Shape, output_shape: Shape) -> None:
        outputs = output_shape[-1] if output_shape else 1
        if outputs is None or self.state.size not in (1, 1 + 4 * outputs):
            raise ShapeError(
                f"{self.name}: expected outputs of always the same number",
                f"output shape {output_shape}",
                "make a metric for each model",
            )
        if self.state.size == 1:
            self.state = np.zeros(1 + 4 * outputs)

    def update(self, y_true: Any, y_pred: Any, weights: Any = None) -> None:
        x = np.asarray(y_pred)
        self.build((), x.shape[1:])
        y, rows = Targets(self.name).rows(y_true, x)
        w = row_weights(weights, x.shape, self.name)
        w = np.ones(len(rows)) if w is None else w
        y, rows = y.astype(np.float64), rows.astype(np.float64)
        parts = self._parts()
        parts[0] += w @ y
        parts[1] += w @ y**2
        parts[2] += w @ (y - rows) ** 2
        parts[3] += w.sum()
        self.state[0] += y.size

    def _parts(self) -> Array:
        """Return Σ y, Σ y^2, Σ (y - x)^2 and the sums of weights, by output."""
        return self.state[1:].reshape(4, -1)

    def result(self) -> Any:
        if self.state[0] == 0:
            return 0.0 if self.class_aggregation else np.zeros(self._parts().shape[1])
        total, squares, residual, count = self._parts()
        with np.errstate(all="ignore"):
            spread = squares - total * total / count
            scores = 1 - residual / spread
        scores = np.where(np.isinf(scores), 0.0, scores)
        score: Any = scores
        if self.class_aggregation == "uniform_average":
            score = float(scores.mean())
        elif self.class_aggregation:
            score = float((spread * scores).sum() / spread.sum())
        n, p = self.state[0], self.num_regressors
        if p and p < n - 1:
            score = 1 - (1 - score) * (n - 1) / (n - p - 1)
        return score
