"""Metrics from the counts of true and false positives and negatives.

A prediction is positive at each of ``thresholds`` that it lies above. The state holds,
for positive and for negative targets, how many predictions lie above 0, 1, 2, ...
thresholds: sums of them over batches and ranks are those of the whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fastserve.core import Array, Shape
from fastserve.errors import ArgumentError, ShapeError, UnknownNameError
from fastserve.losses import Targets
from fastserve.metrics.base import Metric, row_weights
from fastserve.ops import smooth

Thresholds = float | Sequence[float] | None
_EPSILON = 1e-7
_NEVER = -1e10  # a prediction that isn't among the top k, and the threshold for it


class Counts(Metric):
    """True and false positives and negatives; what the metrics made of them share.

    Args:
        thresholds: a number or several; as many results.
        top_k: count only the k largest predictions of each row as positive.
        class_id: look at this one of the last axis alone.

    Attributes:
        true_positives, false_positives, true_negatives, false_negatives: (thresholds),
            or (thresholds, labels) if labels are counted apart.
    """

    name = "counts"
    labels = 0  # number of labels that are counted apart; 0: all together

    def __init__(
        self,
        thresholds: Thresholds = None,
        top_k: int | None = None,
        class_id: int | None = None,
        name: str | None = None,
    ) -> None:
        if thresholds is None:
            thresholds = 0.5 if top_k is None else _NEVER
        single = np.ndim(thresholds) == 0
        self.thresholds = [float(t) for t in np.atleast_1d(np.asarray(thresholds))]
        for value in self.thresholds if top_k is None else ():
            if not 0 <= value <= 1:
                raise ArgumentError(
                    f"{name or self.name}: expected thresholds in 0..1",
                    f"{value:g}",
                    "thresholds are probabilities",
                )
        for what, number, least in (("top_k", top_k, 1), ("class_id", class_id, 0)):
            if number is not None and number < least:
                raise ArgumentError(
                    f"{name or self.name}: expected {what} of {least} or more",
                    f"{what}={number}",
                    f"choose another {what}",
                )
        self._arrange()
        self._single = single or len(self.thresholds) == 1
        self.top_k, self.class_id = top_k, class_id
        self._even = _evenly(self.thresholds)
        self.size = 2 * (len(self.thresholds) + 1)
        super().__init__(name)
        self._targets = Targets(self.name)

    def _arrange(self) -> None:
        """Keep the thresholds sorted, and the place of each among them."""
        order = np.argsort(self.thresholds, kind="stable")
        self._sorted = np.asarray(self.thresholds, np.float32)[order]
        self._ranks = np.argsort(order)

    def update(self, y_true: Any, y_pred: Any, weights: Any = None) -> None:
        shape = np.shape(y_pred)
        y, x = self._targets.rows(y_true, np.asarray(y_pred))
        w = row_weights(weights, shape, self.name)
        x = self.scores(x.astype(np.float32, copy=False))
        if self.top_k is not None:
            first = np.argsort(-x, axis=1, kind="stable")[:, : self.top_k]
            kept = np.full_like(x, _NEVER)
            np.put_along_axis(kept, first, np.take_along_axis(x, first, 1), 1)
            x = kept
        if self.class_id is not None:
            if self.class_id >= x.shape[1]:
                raise ShapeError(
                    f"{self.name}: expected a class_id below {x.shape[1]}, for outputs "
                    f"of shape {shape}",
                    f"class_id={self.class_id}",
                    "classes are numbered from 0",
                )
            chosen = slice(self.class_id, self.class_id + 1)
            y, x = y[:, chosen], x[:, chosen]
        above = self._above(x)
        each = np.ones(x.shape) if w is None else np.broadcast_to(w[:, None], x.shape)
        each = self.weigh(each)
        places = above + (len(self.thresholds) + 1) * (y == 0)
        if self.labels:
            places = places * self.labels + np.arange(self.labels)
        self.state += np.bincount(
            places.reshape(-1), each.reshape(-1), minlength=self.state.size
        )

    def scores(self, x: Array) -> Array:
        """Return what is compared with the thresholds."""
        return x

    def weigh(self, weights: Array) -> Array:
        """Return the weights (N, C) of all predictions."""
        return weights

    def _above(self, x: Array) -> Array:
        """Return how many thresholds each of x is above; NaN is above none."""
        count = len(self.thresholds)
        if self._even:  # float32, as Keras has it, decides what is on a threshold
            above = np.ceil(np.clip(x, 0, 1) * np.float32(count - 1))
            if self.thresholds[0] < 0:
                above = np.maximum(above, 1)
        else:
            above = np.searchsorted(self._sorted, x)
        return np.where(np.isnan(x), 0, above).astype(np.int64)

    def _counts(self) -> tuple[Array, Array]:
        """Return (positives, negatives) by the number of thresholds they are above."""
        shape = (2, len(self.thresholds) + 1, *([self.labels] if self.labels else []))
        positives, negatives = self.state.reshape(shape)
        return positives, negatives

    def _found(self, counts: Array) -> Array:
        """Return how many are above each threshold, in the order of ``thresholds``."""
        above = counts[::-1].cumsum(axis=0)[::-1][1:]
        return above[self._ranks]

    @property
    def true_positives(self) -> Array:
        return self._found(self._counts()[0])

    @property
    def false_positives(self) -> Array:
        return self._found(self._counts()[1])

    @property
    def false_negatives(self) -> Array:
        positives, _ = self._counts()
        return positives.sum(axis=0) - self._found(positives)

    @property
    def true_negatives(self) -> Array:
        _, negatives = self._counts()
        return negatives.sum(axis=0) - self._found(negatives)

    def shaped(self, values: Array) -> Any:
        return float(values[0]) if self._single else values


class _Count(Counts):
    def __init__(self, thresholds: Thresholds = None, name: str | None = None) -> None:
        super().__init__(thresholds, name=name)


class TruePositives(_Count):
    """Weighted number of predictions above ``thresholds`` whose target isn't 0.

    ``thresholds`` is a number, by default 0.5, or several with a result each.
    """

    name = "true_positives"

    def result(self) -> Any:
        return self.shaped(self.true_positives)


class FalsePositives(_Count):
    """Weighted number of predictions above the threshold whose target is 0.

    ``thresholds``: see ``TruePositives``.
    """

    name = "false_positives"

    def result(self) -> Any:
        return self.shaped(self.false_positives)


class TrueNegatives(_Count):
    """Weighted number of other predictions whose target is 0.

    ``thresholds``: see ``TruePositives``.
    """

    name = "true_negatives"

    def result(self) -> Any:
        return self.shaped(self.true_negatives)


class FalseNegatives(_Count):
    """Weighted number of other predictions whose target isn't 0.

    ``thresholds``: see ``TruePositives``.
    """

    name = "false_negatives"

    def result(self) -> Any:
        return self.shaped(self.false_negatives)


class Precision(Counts):
    """Share of the positive predictions whose target is positive; 0 if there are none.

    Shapes: y_true, of 0 and 1, and y_pred (B, ..., C); a last axis of 1 may be missing
    in y_true. The arguments are those of ``Counts``.
    """

    name = "precision"

    def result(self) -> Any:
        found = self.true_positives
        return self.shaped(_quotient(found, found + self.false_positives))


class Recall(Counts):
    """Share of the positive targets whose prediction is positive; 0 if there are none.

    Shapes and arguments: see ``Precision``.
    """

    name = "recall"

    def result(self) -> Any:
        found = self.true_positives
        return self.shaped(_quotient(found, found + self.false_negatives))


# -- over many thresholds --------------------------------------------------------


class _Best(Counts):
    """The best of one rate where another is at least ``value``.

    Args:
        num_thresholds: thresholds from 0 to 1 that are tried.
    """

    def __init__(
        self,
        value: float,
        num_thresholds: int = 200,
        class_id: int | None = None,
        name: str | None = None,
    ) -> None:
        name = name or self.name
        if not 0 <= value <= 1:
            raise ArgumentError(
                f"{name}: expected a value in 0..1", f"{value}", "give a share"
            )
        if num_thresholds < 1:
            raise ArgumentError(
                f"{name}: expected num_thresholds of 1 or more",
                f"{num_thresholds}",
                "the default is 200",
            )
        self.value = value
        tried = _between(num_thresholds) if num_thresholds > 1 else [0.5]
        super().__init__(tried, class_id=class_id, name=name)

    def result(self) -> float:
        held, best = self.rates()
        return float(np.where(held >= self.value, best, 0).max(initial=0))

    def rates(self) -> tuple[Array, Array]:
        raise NotImplementedError(f"{type(self).__name__}.rates")

    def _recall(self) -> Array:
        found = self.true_positives
        return _quotient(found, found + self.false_negatives)

    def _precision(self) -> Array:
        found = self.true_positives
        return _quotient(found, found + self.false_positives)

    def _specificity(self) -> Array:
        left = self.true_negatives
        return _quotient(left, left + self.false_positives)


class SensitivityAtSpecificity(_Best):
    """Largest recall where at least the share ``specificity`` of negatives is found.

    ``arguments`` and ``options``: num_thresholds, of thresholds from 0 to 1 that are
    tried, by default 200; class_id, as in ``Counts``; name.
    """

    name = "sensitivity_at_specificity"

    def __init__(self, specificity: float, *arguments: Any, **options: Any) -> None:
        super().__init__(specificity, *arguments, **options)

    def rates(self) -> tuple[Array, Array]:
        return self._specificity(), self._recall()


class SpecificityAtSensitivity(_Best):
    """Largest share of negatives that is found, at a recall of ``sensitivity`` or more.

    ``arguments`` and ``options``: see ``SensitivityAtSpecificity``.
    """

    name = "specificity_at_sensitivity"

    def __init__(self, sensitivity: float, *arguments: Any, **options: Any) -> None:
        super().__init__(sensitivity, *arguments, **options)

    def rates(self) -> tuple[Array, Array]:
        return self._recall(), self._specificity()


class PrecisionAtRecall(_Best):
    """Largest precision at a recall of at least ``recall``, in 0..1.

    ``arguments`` and ``options``: see ``SensitivityAtSpecificity``.
    """

    name = "precision_at_recall"

    def __init__(self, recall: float, *arguments: Any, **options: Any) -> None:
        super().__init__(recall, *arguments, **options)

    def rates(self) -> tuple[Array, Array]:
        return self._recall(), self._precision()


class RecallAtPrecision(_Best):
    """Largest recall at a precision of at least ``precision``, in 0..1.

    ``arguments`` and ``options``: see ``SensitivityAtSpecificity``.
    """

    name = "recall_at_precision"

    def __init__(self, precision: float, *arguments: Any, **options: Any) -> None:
        super().__init__(precision, *arguments, **options)

    def rates(self) -> tuple[Array, Array]:
        return self._precision(), self._recall()


class AUC(Counts):
    """Area under a curve through the rates at many thresholds.

    Args:
        num_thresholds: how many, from 0 to 1. thresholds: those between, instead.
        curve: 'ROC', recall over the share of negatives that is called positive; 'PR',
            precision over recall; or 'PRGAIN' (Flach, Kull, 2015).
        summation_method: 'interpolation', 'minoring' or 'majoring' of the area between
            two thresholds; of PR's, interpolation is that of Davis and Goadrich (2006).
        multi_label: the mean of the areas of each label (last axis), instead of one
            area for all predictions.
        num_labels: how many these are, if that shall be checked.
        label_weights: their weights.
        from_logits: take the sigmoid of predictions first.

    Shapes: y_true, of 0 and 1, and y_pred (B, ..., C); a last axis of 1 may be missing
    in y_true.
    """

    name = "auc"

    def __init__(
        self,
        num_thresholds: int = 200,
        curve: str = "ROC",
        summation_method: str = "interpolation",
        name: str | None = None,
        thresholds: Sequence[float] | None = None,
        multi_label: bool = False,
        num_labels: int | None = None,
        label_weights: Sequence[float] | None = None,
        from_logits: bool = False,
    ) -> None:
        name = name or self.name
        for what, given, known in (
            ("curve", curve.upper(), ("ROC", "PR", "PRGAIN")),
            (
                "summation_method",
                summation_method.lower(),
                ("interpolation", "minoring", "majoring"),
            ),
        ):
            if given not in known:
                raise UnknownNameError(f"{name} {what}", given, known)
        if num_thresholds < 2:
            raise ArgumentError(
                f"{name}: expected num_thresholds of 2 or more",
                f"{num_thresholds}",
                "the default is 200",
            )
        if num_labels and not multi_label:
            raise ArgumentError(
                f"{name}: expected no num_labels without multi_label",
                f"num_labels={num_labels}",
                "give multi_label=True, or leave out num_labels",
            )
        between = _between(num_thresholds)[1:-1] if thresholds is None else thresholds
        super().__init__([0.0, *sorted(between), 1.0], name=name)
        # so that all are above the first, and none above the last
        self.thresholds[0], self.thresholds[-1] = -_EPSILON, 1 + _EPSILON
        self._arrange()
        self._single = False
        self.curve, self.summation_method = curve.upper(), summation_method.lower()
        self.multi_label, self.from_logits = multi_label, from_logits
        self.label_weights = (
            None if label_weights is None else np.asarray(label_weights, np.float64)
        )
        if num_labels:
            self._count_apart(num_labels)

    def build(self, y_true_shape: Shape, output_shape: Shape) -> None:
        if self.multi_label and output_shape and output_shape[-1] is not None:
            self._count_apart(output_shape[-1])

    def _count_apart(self, labels: int) -> None:
        if self.labels not in (0, labels):
            raise ShapeError(
                f"{self.name}: expected {self.labels} labels",
                f"{labels}",
                "change num_labels, or the last layer's size",
            )
        if not self.labels:
            self.labels = labels
            self.state = np.zeros(2 * (len(self.thresholds) + 1) * labels)

    def update(self, y_true: Any, y_pred: Any, weights: Any = None) -> None:
        shape = np.shape(y_pred)
        self.build((), shape[1:] or (1,))
        super().update(y_true, y_pred, weights)

    def scores(self, x: Array) -> Array:
        if not self.from_logits:
            return x
        y = np.empty_like(x)
        smooth.sigmoid(np.ascontiguousarray(x), y)
        return y

    def weigh(self, weights: Array) -> Array:
        if self.label_weights is None or self.multi_label:
            return weights
        return weights * self.label_weights

    def result(self) -> float:
        if self.state.size == 0:
            return 0.0
        if self.curve == "PR" and self.summation_method == "interpolation":
            areas = self._interpolated()
        else:
            x, y = self._points()
            low, high = y[:-1], y[1:]
            heights = {
                "interpolation": (low + high) / 2,
                "minoring": np.minimum(low, high),
                "majoring": np.maximum(low, high),
            }[self.summation_method]
            areas = (x[:-1] - x[1:]) * heights
        area = areas.sum(axis=0)
        if not self.multi_label:
            return float(area)
        if self.label_weights is None:
            return float(area.mean())
        w = self.label_weights
        return float(_quotient((area * w).sum(), w.sum()))

    def _points(self) -> tuple[Array, Array]:
        """Return the curve's x and y at each threshold."""
        tp, fp = self.true_positives, self.false_positives
        tn, fn = self.true_negatives, self.false_negatives
        recall = _quotient(tp, tp + fn)
        if self.curve == "ROC":
            return _quotient(fp, fp + tn), recall
        if self.curve == "PR":
            return recall, _quotient(tp, tp + fp)
        share = _quotient(tp + fn, tn + fp)
        gain = np.where(tp == 0, 0, 1 - share * _quotient(fn, tp))
        precision = np.where(tp == 0, 1, 1 - share * _quotient(fp, tp))
        return np.maximum(gain, 0), precision

    def _interpolated(self) -> Array:
        """Return the areas below PR, with true positives in a line of positives."""
        tp, fn = self.true_positives, self.false_negatives
        p = tp + self.false_positives
        dtp, dp = tp[:-1] - tp[1:], p[:-1] - p[1:]
        slope = _quotient(dtp, np.maximum(dp, 0))
        intercept = tp[1:] - slope * p[1:]
        inside = (p[:-1] > 0) & (p[1:] > 0)
        ratio = np.where(inside, _quotient(p[:-1], np.maximum(p[1:], 0)), 1)
        return _quotient(
            slope * (dtp + intercept * np.log(ratio)), np.maximum(tp[1:] + fn[1:], 0)
        )


def _between(count: int) -> list[float]:
    """Return so many thresholds, from 0 to 1."""
    return [0.0, *((i + 1) / (count - 1) for i in range(count - 2)), 1.0]


def _evenly(thresholds: list[float]) -> bool:
    """Return whether they lie evenly from 0 to 1, by Keras' tolerance."""
    count = len(thresholds)
    if count < 3:
        return False
    even = np.arange(count, dtype=np.float32) / (count - 1)
    return bool(np.allclose(thresholds, even, atol=_EPSILON))


def _quotient(top: Any, bottom: Any) -> Array:
    """Return top / bottom, and 0 where bottom is 0."""
    top, bottom = np.asarray(top, np.float64), np.asarray(bottom, np.float64)
    out: Array = np.zeros(np.broadcast_shapes(top.shape, bottom.shape))
    np.divide(top, bottom, out=out, where=bottom != 0)
    return out
