"""Metrics, by Keras' names.

``m.update_state(y_true, y_pred, sample_weight)`` adds samples, ``m.result()`` is the
value of all of them, ``m.reset_state()`` begins anew. States are sums, so that those of
several ranks add up to the value of all samples. ``name`` is that in the logs; None:
made from the class. What doesn't fit raises ArgumentError, ShapeError or DataError.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fastserve import losses
from fastserve.core import Shape, named
from fastserve.errors import ArgumentError, UnknownNameError
from fastserve.losses import Loss
from fastserve.metrics.accuracy import (
    Accuracy,
    BinaryAccuracy,
    CategoricalAccuracy,
    SparseCategoricalAccuracy,
    SparseTopKCategoricalAccuracy,
    TopKCategoricalAccuracy,
)
from fastserve.metrics.base import (
    FunctionMetric,
    Mean,
    MeanLoss,
    Metric,
    RowMetric,
    Sum,
    row_weights,
)
from fastserve.metrics.confusion import (
    AUC,
    Counts,
    FalseNegatives,
    FalsePositives,
    Precision,
    PrecisionAtRecall,
    Recall,
    RecallAtPrecision,
    SensitivityAtSpecificity,
    SpecificityAtSensitivity,
    TrueNegatives,
    TruePositives,
)
from fastserve.metrics.fscore import F1Score, FBetaScore
from fastserve.metrics.matrix import (
    BinaryIoU,
    ConfusionMatrix,
    IoU,
    MeanIoU,
    OneHotIoU,
    OneHotMeanIoU,
)
from fastserve.metrics.means import (
    BinaryCrossentropy,
    CategoricalCrossentropy,
    CategoricalHinge,
    ConcordanceCorrelation,
    CosineSimilarity,
    Hinge,
    KLDivergence,
    LogCoshError,
    MeanAbsoluteError,
    MeanAbsolutePercentageError,
    MeanSquaredError,
    MeanSquaredLogarithmicError,
    PearsonCorrelation,
    Perplexity,
    Poisson,
    RootMeanSquaredError,
    SparseCategoricalCrossentropy,
    SquaredHinge,
    perplexity,
)
from fastserve.metrics.r2 import R2Score

MeanMetricWrapper = FunctionMetric  # Keras' name

# those that can be made without arguments, and aren't the mean of a loss
_CLASSES: tuple[type[Metric], ...] = (
    AUC,
    BinaryAccuracy,
    BinaryIoU,
    CategoricalAccuracy,
    ConcordanceCorrelation,
    ConfusionMatrix,
    CosineSimilarity,
    F1Score,
    FBetaScore,
    FalseNegatives,
    FalsePositives,
    PearsonCorrelation,
    Precision,
    R2Score,
    Recall,
    RootMeanSquaredError,
    SparseCategoricalAccuracy,
    SparseTopKCategoricalAccuracy,
    TopKCategoricalAccuracy,
    TrueNegatives,
    TruePositives,
)
NAMED: dict[str, type[Metric]] = {
    **{cls.name: cls for cls in _CLASSES},
    **{cls.__name__: cls for cls in _CLASSES},
    "cosine_similarity": CosineSimilarity,
    "root_mean_squared_error": RootMeanSquaredError,
    "rmse": RootMeanSquaredError,
    "LogCoshError": LogCoshError,
    "log_cosh_error": LogCoshError,
}
_BINARY = (losses.BinaryCrossentropy, losses.BinaryFocalCrossentropy)
KNOWN = ("accuracy", "acc", "perplexity", "Perplexity", *NAMED, *losses.NAMED)

WITH_ARGUMENTS: dict[str, type[Metric]] = {
    **NAMED,
    **{
        cls.__name__: cls
        for cls in (
            IoU,
            MeanIoU,
            OneHotIoU,
            OneHotMeanIoU,
            PrecisionAtRecall,
            RecallAtPrecision,
            SensitivityAtSpecificity,
            SpecificityAtSensitivity,
            BinaryCrossentropy,
            CategoricalCrossentropy,
            SparseCategoricalCrossentropy,
            Perplexity,
        )
    },
}
MetricLike = str | Metric | type[Metric] | Callable[..., Any]


def make(entry: Mapping[str, Any]) -> Metric:
    """Return the metric of an ``entry`` such as ``{"Precision": {"class_id": 1}}``.

    Its name is made from its class.

    Raises UnknownNameError for other names, ArgumentError for other arguments.
    """
    made: Metric = named.make("metric", entry, WITH_ARGUMENTS)
    return made


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
        loss: the loss that gets the same ``y_pred``. If it takes logits, then of
            metrics that are given by name binary accuracy, and with a binary loss
            precision, recall and counts have the threshold 0 (probability 0.5), and
            AUC, perplexity and cross-entropies take logits too.
        y_true_shape, output_shape: without the batch.

    Raises:
        UnknownNameError: another string.
        ArgumentError: another object.
    """
    made = _made(metric, loss, y_true_shape, output_shape)
    made.build(y_true_shape, output_shape)
    return made


def get_all(
    metrics: Sequence[MetricLike],
    weighted: Sequence[MetricLike],
    loss: Loss,
    y_true_shape: Shape,
    output_shape: Shape,
) -> list[Metric]:
    """Return all metrics; see ``get``, which has the other arguments.

    One of ``weighted`` with the name of another gets ``weighted_`` in front; two of one
    name otherwise raise ArgumentError. ``loss``, ``y_true_shape`` and ``output_shape``,
    with the batch, decide what 'accuracy' is.
    """
    made = [get(m, loss, y_true_shape, output_shape) for m in metrics]
    for metric in weighted:
        one = get(metric, loss, y_true_shape, output_shape)
        one.weighted = True
        if one.name in {m.name for m in made}:
            one.name = f"weighted_{one.name}"
        made.append(one)
    names = [m.name for m in made]
    for name in names:
        if names.count(name) > 1 or name == "loss":
            raise ArgumentError(
                "expected metrics of different names, and none called loss",
                f"{', '.join(names)}",
                "give one of them another name=",
            )
    return made


def _made(
    metric: MetricLike, loss: Loss, y_true_shape: Shape, output_shape: Shape
) -> Metric:
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
        by_name = losses.NAMED.get(getattr(metric, "__name__", ""))
        if by_name is not None and type(losses.get(metric)) is by_name:
            return MeanLoss(by_name(), metric.__name__)
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
        return BinaryAccuracy(threshold=0.0 if loss.from_logits else 0.5)
    if cls is not None and loss.from_logits and isinstance(loss, _BINARY):
        if cls is AUC:
            return AUC(from_logits=True)
        if issubclass(cls, Counts):
            return cls(thresholds=0.0)
        if cls is BinaryIoU or cls is ConfusionMatrix:
            return cls(threshold=0.0)
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


__all__ = [
    "AUC",
    "KNOWN",
    "NAMED",
    "Accuracy",
    "BinaryAccuracy",
    "BinaryCrossentropy",
    "BinaryIoU",
    "CategoricalAccuracy",
    "CategoricalCrossentropy",
    "CategoricalHinge",
    "ConcordanceCorrelation",
    "ConfusionMatrix",
    "CosineSimilarity",
    "Counts",
    "F1Score",
    "FBetaScore",
    "FalseNegatives",
    "FalsePositives",
    "FunctionMetric",
    "Hinge",
    "IoU",
    "KLDivergence",
    "LogCoshError",
    "Mean",
    "MeanAbsoluteError",
    "MeanAbsolutePercentageError",
    "MeanIoU",
    "MeanLoss",
    "MeanMetricWrapper",
    "MeanSquaredError",
    "MeanSquaredLogarithmicError",
    "Metric",
    "OneHotIoU",
    "OneHotMeanIoU",
    "PearsonCorrelation",
    "Perplexity",
    "Poisson",
    "Precision",
    "PrecisionAtRecall",
    "R2Score",
    "Recall",
    "RecallAtPrecision",
    "RootMeanSquaredError",
    "RowMetric",
    "SensitivityAtSpecificity",
    "SparseCategoricalAccuracy",
    "SparseCategoricalCrossentropy",
    "SparseTopKCategoricalAccuracy",
    "SpecificityAtSensitivity",
    "SquaredHinge",
    "Sum",
    "TopKCategoricalAccuracy",
    "TrueNegatives",
    "TruePositives",
    "get",
    "get_all",
    "make",
    "perplexity",
    "row_weights",
]
