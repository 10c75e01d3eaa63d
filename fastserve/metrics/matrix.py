"""The confusion matrix, and what follows from it: intersection over union."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fastserve.core import Array, Shape
from fastserve.errors import ArgumentError, ShapeError, UnknownNameError
from fastserve.losses import spread_weights
from fastserve.metrics.base import Metric

_EPSILON = 1e-7


class Matrix(Metric):
    """Weighted counts of places by their target's class and the predicted one.

    Classes outside of 0..num_classes-1 aren't counted.
    """

    name = "matrix"
    num_classes = 0
    ignore_class: int | None = None

    def set_classes(self, num_classes: int) -> None:
        if num_classes < 1:
            raise ArgumentError(
                f"{self.name}: expected num_classes of 1 or more",
                f"num_classes={num_classes}",
                "give the number of classes",
            )
        self.num_classes = num_classes
        self.state = np.zeros(num_classes**2)

    @property
    def counts(self) -> Array:
        """(classes, classes): rows are targets, columns predictions."""
        return self.state.reshape(self.num_classes, self.num_classes)

    def count(self, y: Array, x: Array, weights: Any) -> None:
        """Add places with the classes y and x, of the same shape (B, ...)."""
        if y.shape != x.shape and y.size == x.size and len(y) == len(x):
            y = y.reshape(x.shape)  # a last axis of 1
        if y.shape != x.shape:
            raise ShapeError(
                f"{self.name}: expected targets and predictions of the same classes",
                f"classes of shape {y.shape} and {x.shape}",
                "a last axis of scores or one-hot rows needs sparse_y_pred=False or "
                "sparse_y_true=False",
            )
        y, x = y.astype(np.int64), x.astype(np.int64)
        w = np.ones(y.size)
        if weights is not None and np.shape(weights) == y.shape:
            w = np.asarray(weights, np.float64).reshape(-1)
        elif weights is not None:
            spread_weights(weights, (*y.shape, 1), w, self.name)
        y, x = y.reshape(-1), x.reshape(-1)
        n = self.num_classes
        inside = (y >= 0) & (y < n) & (x >= 0) & (x < n)
        if self.ignore_class is not None:
            inside &= y != self.ignore_class
        places = np.where(inside, y * n + x, 0)
        self.state += np.bincount(places, w * inside, minlength=n * n)


class ConfusionMatrix(Matrix):
    """How often each class (rows) was taken for each (columns).

    The result is an array: it isn't in the logs; ``evaluate`` returns it.

    Args:
        num_classes: None: the size of the output's last axis; two if that is 1.
        threshold: outputs of one unit above it are class 1.
        normalize: None: counts; 'true': shares of each row; 'pred': of each column;
            'all': of all.

    Shapes: y_true (B, ...), labels, or one-hot (B, ..., C); y_pred (B, ..., C).
    """

    name = "confusion_matrix"
    size = 0

    def __init__(
        self,
        num_classes: int | None = None,
        threshold: float = 0.5,
        normalize: str | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(name)
        if normalize not in (None, "true", "pred", "all"):
            raise UnknownNameError(
                f"{self.name} normalize", str(normalize), ("true", "pred", "all")
            )
        self.threshold, self.normalize = threshold, normalize
        if num_classes is not None:
            self.set_classes(num_classes)

    def build(self, y_true_shape: Shape, output_shape: Shape) -> None:
        classes = output_shape[-1] if output_shape else 1
        if not self.num_classes and classes is not None:
            self.set_classes(max(2, classes))

    def update(self, y_true: Any, y_pred: Any, weights: Any = None) -> None:
        y, x = np.asarray(y_true), np.asarray(y_pred)
        self.build((), x.shape[1:])
        if x.ndim > 1 and x.shape[-1] > 1:
            y = y.argmax(axis=-1) if y.shape == x.shape else y
            x = x.argmax(axis=-1)
        else:
            x = x > self.threshold
        self.count(y, x.reshape(x.shape[:-1]) if x.shape[1:2] == (1,) else x, weights)

    def result(self) -> Array:
        counts = self.counts.copy()
        if self.normalize is None:
            return counts
        axis = {"true": 1, "pred": 0, "all": None}[self.normalize]
        sums = np.broadcast_to(counts.sum(axis=axis, keepdims=True), counts.shape)
        return np.divide(counts, sums, out=np.zeros_like(counts), where=sums > 0)


class IoU(Matrix):
    """Mean over some classes of intersection / union of targets and predictions.

    Classes that neither targets nor predictions have aren't counted.

    Args:
        num_classes: number of classes, in targets and predictions.
        target_class_ids: these classes.
        ignore_class: places with this target aren't counted.
        sparse_y_true: targets are classes, not one-hot rows.
        sparse_y_pred: predictions are classes, not scores of each class (the last
            axis), of which the largest counts.
        axis: of the scores and one-hot rows; only the last one, -1.

    Shapes: y_true and y_pred (B, ...), or (B, ..., C) where they aren't sparse.
    """

    name = "io_u"

    def __init__(
        self,
        num_classes: int,
        target_class_ids: Sequence[int],
        name: str | None = None,
        ignore_class: int | None = None,
        sparse_y_true: bool = True,
        sparse_y_pred: bool = True,
        axis: int = -1,
    ) -> None:
        super().__init__(name)
        self.set_classes(num_classes)
        ids = list(target_class_ids)
        if not ids or min(ids) < 0 or max(ids) >= num_classes:
            raise ArgumentError(
                f"{self.name}: expected target_class_ids in 0..{num_classes - 1}",
                f"{ids}",
                "change num_classes or target_class_ids",
            )
        if axis != -1:
            raise ArgumentError(
                f"{self.name}: expected axis=-1, the last",
                f"axis={axis}",
                "transpose the data",
            )
        self.target_class_ids, self.ignore_class = ids, ignore_class
        self.sparse_y_true, self.sparse_y_pred = sparse_y_true, sparse_y_pred

    def update(self, y_true: Any, y_pred: Any, weights: Any = None) -> None:
        y, x = np.asarray(y_true), np.asarray(y_pred)
        y = y if self.sparse_y_true else y.argmax(axis=-1)
        self.count(y, x if self.sparse_y_pred else x.argmax(axis=-1), weights)

    def result(self) -> float:
        counts = self.counts
        shared = np.diag(counts)
        union = (counts.sum(axis=0) + counts.sum(axis=1) - shared)[
            self.target_class_ids
        ]
        valid = union > 1e-9
        each = np.where(valid, shared[self.target_class_ids] / (union + _EPSILON), 0)
        return float(each.sum() / (valid.sum() + _EPSILON))


class BinaryIoU(IoU):
    """``IoU`` of two classes, or of those of them that ``target_class_ids`` names.

    Predictions of ``threshold`` and more are class 1.
    """

    name = "binary_io_u"

    def __init__(
        self,
        target_class_ids: Sequence[int] = (0, 1),
        threshold: float = 0.5,
        name: str | None = None,
    ) -> None:
        super().__init__(2, target_class_ids, name)
        self.threshold = threshold

    def update(self, y_true: Any, y_pred: Any, weights: Any = None) -> None:
        x = np.asarray(y_pred, np.float32) >= self.threshold
        super().update(y_true, x, weights)


class MeanIoU(IoU):
    """Mean of all classes' ``IoU``, whose arguments it has."""

    name = "mean_io_u"

    def __init__(
        self,
        num_classes: int,
        name: str | None = None,
        ignore_class: int | None = None,
        sparse_y_true: bool = True,
        sparse_y_pred: bool = True,
        axis: int = -1,
    ) -> None:
        super().__init__(
            num_classes,
            range(num_classes),
            name,
            ignore_class,
            sparse_y_true,
            sparse_y_pred,
            axis,
        )


class OneHotIoU(IoU):
    """``IoU``, whose arguments it has, of one-hot targets and of scores."""

    name = "one_hot_io_u"

    def __init__(
        self,
        num_classes: int,
        target_class_ids: Sequence[int],
        name: str | None = None,
        ignore_class: int | None = None,
        sparse_y_pred: bool = False,
        axis: int = -1,
    ) -> None:
        super().__init__(
            num_classes,
            target_class_ids,
            name,
            ignore_class,
            False,
            sparse_y_pred,
            axis,
        )


class OneHotMeanIoU(MeanIoU):
    """Mean of all classes' ``OneHotIoU``, whose arguments it has."""

    name = "one_hot_mean_io_u"

    def __init__(
        self,
        num_classes: int,
        name: str | None = None,
        ignore_class: int | None = None,
        sparse_y_pred: bool = False,
        axis: int = -1,
    ) -> None:
        super().__init__(num_classes, name, ignore_class, False, sparse_y_pred, axis)
