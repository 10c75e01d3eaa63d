"""Means of losses as metrics, by Keras' names; perplexity."""

from __future__ import annotations

import math

import numpy as np

from fastserve import losses
from fastserve.core import Array
from fastserve.losses import Targets
from fastserve.losses.base import CLIP, refuse_axis
from fastserve.metrics.base import MeanLoss, RowMetric


class BinaryCrossentropy(MeanLoss):
    """Mean of ``losses.BinaryCrossentropy``, which has the other arguments."""

    def __init__(
        self,
        name: str | None = None,
        from_logits: bool = False,
        label_smoothing: float = 0.0,
    ) -> None:
        loss = losses.BinaryCrossentropy(from_logits, label_smoothing)
        super().__init__(loss, name)


class CategoricalCrossentropy(MeanLoss):
    """Mean of ``losses.CategoricalCrossentropy``; ``axis`` is -1."""

    def __init__(
        self,
        name: str | None = None,
        from_logits: bool = False,
        label_smoothing: float = 0.0,
        axis: int = -1,
    ) -> None:
        loss = losses.CategoricalCrossentropy(from_logits, label_smoothing, axis)
        super().__init__(loss, name)


class SparseCategoricalCrossentropy(MeanLoss):
    """Mean of ``losses.SparseCategoricalCrossentropy``; ``axis`` is -1."""

    def __init__(
        self, name: str | None = None, from_logits: bool = False, axis: int = -1
    ) -> None:
        loss = losses.SparseCategoricalCrossentropy(from_logits, axis=axis)
        super().__init__(loss, name)


class _Plain(MeanLoss):
    """Mean of a loss without arguments."""

    of: type[losses.Loss]

    def __init__(self, name: str | None = None) -> None:
        super().__init__(self.of(), name)


class CategoricalHinge(_Plain):
    """Mean of the categorical hinge loss."""

    of = losses.CategoricalHinge


class Hinge(_Plain):
    """Mean of the hinge loss."""

    of = losses.Hinge


class KLDivergence(_Plain):
    """Mean of the Kullback-Leibler divergences."""

    of = losses.KLDivergence


class LogCoshError(_Plain):
    """Mean of log(cosh(error))."""

    name = "logcosh"
    of = losses.LogCosh


class MeanAbsoluteError(_Plain):
    """Mean of the absolute errors."""

    of = losses.MeanAbsoluteError


class MeanAbsolutePercentageError(_Plain):
    """Mean of the absolute errors in percent of the targets."""

    of = losses.MeanAbsolutePercentageError


class MeanSquaredError(_Plain):
    """Mean of the squared errors."""

    of = losses.MeanSquaredError


class MeanSquaredLogarithmicError(_Plain):
    """Mean of the squared errors of logarithms."""

    of = losses.MeanSquaredLogarithmicError


class Poisson(_Plain):
    """Mean of the Poisson loss."""

    of = losses.Poisson


class SquaredHinge(_Plain):
    """Mean of the squared hinge loss."""

    of = losses.SquaredHinge


class RootMeanSquaredError(_Plain):
    """Root of the mean of the squared errors."""

    name = "root_mean_squared_error"
    of = losses.MeanSquaredError

    def result(self) -> float:
        return math.sqrt(super().result())


class CosineSimilarity(_Plain):
    """Mean of the cosines of the angles between targets and predictions.

    ``axis`` of the vectors: only the last one, -1.
    """

    name = "cosine_similarity"
    of = losses.CosineSimilarity

    def __init__(self, name: str | None = None, axis: int = -1) -> None:
        refuse_axis(self.name, axis)
        super().__init__(name)

    def result(self) -> float:
        return -super().result()


class _Correlation(RowMetric):
    def __init__(self, name: str | None = None, axis: int = -1) -> None:
        super().__init__(name)
        refuse_axis(self.name, axis)

    def values(self, y: Array, x: Array) -> Array:
        y, x = y.astype(np.float64), x.astype(np.float64)
        with np.errstate(all="ignore"):
            return self.correlations(y, x)

    def correlations(self, y: Array, x: Array) -> Array:
        raise NotImplementedError(f"{type(self).__name__}.correlations")


class PearsonCorrelation(_Correlation):
    """Mean of the rows' correlations of targets and predictions, over the last axis."""

    name = "pearson_correlation"
    targets = Targets(name)

    def correlations(self, y: Array, x: Array) -> Array:
        y, x = (a - a.mean(axis=1, keepdims=True) for a in (y, x))
        y, x = (a / a.std(axis=1, keepdims=True) for a in (y, x))
        each: Array = (y * x).mean(axis=1)
        return each


class ConcordanceCorrelation(_Correlation):
    """Mean of 2 (y - mean(x)) (x - mean(x)) / (var(y) + var(x) + (mean(y) - mean(x))^2)
    over the last axis, x predictions and y targets (Lin, 1989)."""

    name = "concordance_correlation"
    targets = Targets(name)

    def correlations(self, y: Array, x: Array) -> Array:
        of_x, of_y = x.mean(axis=1, keepdims=True), y.mean(axis=1, keepdims=True)
        spread = y.var(axis=1, keepdims=True) + x.var(axis=1, keepdims=True)
        bottom = spread + (of_y - of_x) ** 2 + CLIP
        each: Array = (2 * (y - of_x) * (x - of_x) / bottom).mean(axis=1)
        return each


def perplexity(loss: float) -> float:
    """Return exp(loss) of a mean loss in nats a token; infinite if it is too large."""
    return math.exp(loss) if loss < 700 or math.isnan(loss) else math.inf


class Perplexity(MeanLoss):
    """exp of the mean cross-entropy of labels; infinite if that is too large.

    Args:
        from_logits: whether ``y_pred`` holds logits or probabilities.

    Shapes: y_true (B, ...) or (B, ..., 1), y_pred (B, ..., C).
    """

    name = "perplexity"

    def __init__(self, from_logits: bool = False, name: str | None = None) -> None:
        super().__init__(losses.SparseCategoricalCrossentropy(from_logits), name)

    def result(self) -> float:
        return perplexity(super().result())
