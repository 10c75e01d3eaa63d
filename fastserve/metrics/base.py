"""Metrics, by Keras' names, as sums that can be merged.

``update`` adds a batch to ``state``, a float64 vector; the states of several batches or
ranks, added up, are the state of all of them together, and ``result`` is computed from
the state alone. So evaluation counts every sample once however it is split.

Most are weighted means over the rows, others sums of rows: a row is a sample, or a
position of a sequence, as for losses. Weights are None, (B,), or one for each row. The
mean of nothing is 0, as in Keras.

``y_pred`` is what the loss is given: logits if it takes logits.

A new metric is a subclass of ``RowMetric`` with one method, ``values``, or one of
``Metric`` with ``update`` and ``result``; if its state's size depends on the number of
classes, with ``build``. As in Keras it may also have ``update_state`` and ``result``,
and sums made by ``add_variable``.

B batch, C classes or features, N rows
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from fastserve.core import Array, Shape
from fastserve.errors import ArgumentError, ShapeError
from fastserve.losses import Loss, Targets, row_count, spread_weights
from fastserve.ops.blocks import row_blocks


class Metric:
    """A number about a data set, from sums over its batches.

    By itself it is used as Keras' are: ``update_state``, ``result``, ``reset_state``.

    Attributes:
        name: the key in logs and in the history.
        state: float64 vector; it may be summed over ranks in place.
        weighted: in training, count samples by their weights.
    """

    name = "metric"
    size = 2  # numbers in the state, before those of add_variable
    weighted = False
    _adds = False  # update_state was seen to add

    def __init__(self, name: str | None = None) -> None:
        self.name = name or self.name
        self.state = np.zeros(self.size)

    def build(self, y_true_shape: Shape, output_shape: Shape) -> None:
        """Make the state for ``y_true_shape`` and ``output_shape``, without the batch;
        it is kept if there is one that fits. Most metrics have nothing to do."""

    def update(self, y_true: Any, y_pred: Any, weights: Any = None) -> None:
        """Add a batch; the arrays are only read."""
        raise NotImplementedError(f"{type(self).__name__}.update")

    def take(self, y_true: Any, y_pred: Any, weights: Any = None) -> None:
        """Add a batch in training: by ``update``, or by the ``update_state`` of a
        subclass, which may call that of its base."""
        places = [_defined(type(self), name) for name in ("update_state", "update")]
        if places[0] >= places[1]:
            self.update(y_true, y_pred, weights)
            return
        batch = (y_true, y_pred) if weights is None else (y_true, y_pred, weights)
        before, numbers = self.state.copy(), {} if self._adds else self._numbers()
        self.update_state(*batch)
        if self._adds:
            return
        made = len(self.state) > self.size or (self.state != before).any()
        if not made and self._numbers() != numbers:
            raise ArgumentError(
                f"metric {self.name}: expected update_state to add to its variables",
                "numbers of its own, which nobody adds up over ranks or resets",
                "make them in the constructor: self.total = self.add_variable(())",
            )
        self._check_that_it_adds(before, batch)

    def _numbers(self) -> dict[str, Any]:
        kinds = int, float, np.number
        return {k: v for k, v in vars(self).items() if isinstance(v, kinds)}

    def _check_that_it_adds(self, before: Array, batch: tuple[Any, ...]) -> None:
        """Raise ArgumentError unless a batch changes the state by the same numbers
        whatever it was: states of batches and ranks are added up."""
        once = self.state.copy()
        self.update_state(*batch)
        twice, self.state[...] = self.state - once, once
        if not np.allclose(twice, once - before, rtol=1e-4, atol=1e-6, equal_nan=True):
            raise ArgumentError(
                f"metric {self.name}: expected update_state to add to its variables, "
                "as those of several batches and ranks are added up",
                f"another change the second time: {once - before}, then {twice}",
                "keep sums and counts, and compute the rest in result",
            )
        self._adds = bool((once != before).any())  # else the next batch tells

    def add_variable(
        self,
        shape: tuple[int, ...] = (),
        initializer: Any = "zeros",
        dtype: Any = None,
        name: str | None = None,
    ) -> Total:
        """Return a part of the state, a sum that ``update_state`` adds to. It begins
        with 0, which is the only ``initializer``; numbers are float64."""
        if initializer not in ("zeros", "Zeros", None):
            raise ArgumentError(
                f"metric {self.name}: expected a variable that begins with zeros",
                repr(initializer),
                "keep sums and counts, and compute the rest in result",
            )
        total = Total(self, len(self.state), tuple(shape))
        self.state = np.concatenate([self.state, np.zeros(math.prod(shape))])
        return total

    add_weight = add_variable

    def result(self) -> Any:
        """Return the metric of all that was added since ``reset``: number or array."""
        raise NotImplementedError(f"{type(self).__name__}.result")

    def reset(self) -> None:
        """Forget all that was added."""
        self.state.fill(0)

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        """Add a batch of targets, outputs and weights: (batch,), or one a row."""
        self.update(y_true, y_pred, sample_weight)

    def reset_state(self) -> None:
        """Forget all that was added; Keras' name."""
        self.reset()

    def __call__(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        """Add a batch; return the result of all so far."""
        self.update_state(y_true, y_pred, sample_weight)
        return self.result()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r})"


class Total(np.lib.mixins.NDArrayOperatorsMixin):
    """A sum in a metric's state, by the methods of Keras' variables. In formulas, and
    for NumPy, it is its array.

    Args:
        metric: whose state it is a part of.
        start: its place there.
    """

    def __init__(self, metric: Metric, start: int, shape: tuple[int, ...]) -> None:
        self._metric, self.shape = metric, shape
        self._part = slice(start, start + math.prod(shape))

    @property
    def value(self) -> Array:
        return self._metric.state[self._part].reshape(self.shape)

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def numpy(self) -> Array:
        return self.value.copy()

    def assign(self, value: Any) -> None:
        self.value[...] = value

    def assign_add(self, value: Any) -> None:
        self.value[...] += value

    def assign_sub(self, value: Any) -> None:
        self.value[...] -= value

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        return self.value.astype(dtype)

    def __array_ufunc__(
        self, ufunc: Any, method: str, *inputs: Any, **rest: Any
    ) -> Any:
        plain = [i.numpy() if isinstance(i, Total) else i for i in inputs]
        return getattr(ufunc, method)(*plain, **rest)

    def __getitem__(self, key: Any) -> Any:
        return self.numpy()[key]

    def __float__(self) -> float:
        return float(self.value)

    def __repr__(self) -> str:
        return f"Total({self.value})"


class Averaged(Metric):
    """A weighted mean; the state is (weighted sum, sum of weights)."""

    def add(self, total: float, count: int, weights: Array | None) -> None:
        """Add the weighted sum of ``count`` rows of these weights."""
        self.state[0] += total
        self.state[1] += count if weights is None else weights.sum()

    def result(self) -> float:
        return float(self.state[0] / self.state[1]) if self.state[1] else 0.0


class Mean(Averaged):
    """Weighted mean of values, by itself: ``mean.update_state(values, weights)``.

    Values (B, ...) are first averaged over all axes that the weights don't have.
    """

    name = "mean"

    def update_state(self, values: Any, sample_weight: Any = None) -> None:  # type: ignore[override]
        each, weights = _sample_values(values, sample_weight, np.mean)
        self.add(float(each.sum()), len(each), weights)

    def update(self, y_true: Any, y_pred: Any, weights: Any = None) -> None:
        raise _not_for_training(self)

    def __call__(self, values: Any, sample_weight: Any = None) -> Any:  # type: ignore[override]
        self.update_state(values, sample_weight)
        return self.result()


class Sum(Metric):
    """Weighted sum of values, by itself: ``total.update_state(values, weights)``."""

    name = "sum"
    size = 1

    def update_state(self, values: Any, sample_weight: Any = None) -> None:  # type: ignore[override]
        each, _ = _sample_values(values, sample_weight, np.sum)
        self.state[0] += each.sum()

    def update(self, y_true: Any, y_pred: Any, weights: Any = None) -> None:
        raise _not_for_training(self)

    def __call__(self, values: Any, sample_weight: Any = None) -> Any:  # type: ignore[override]
        self.update_state(values, sample_weight)
        return self.result()

    def result(self) -> float:
        return float(self.state[0])


class RowMetric(Averaged):
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


class MeanLoss(Averaged):
    """Mean of a loss over the rows; NaN where the loss is NaN.

    Unlike the loss itself, the weighted sum is divided by the sum of the weights, as
    Keras' metrics do.
    """

    def __init__(self, loss: Loss, name: str | None = None) -> None:
        own = type(self).name
        super().__init__(name or (loss.name if own == Metric.name else own))
        if loss.whole_batch:
            raise ArgumentError(
                f"metric {self.name}: expected a loss of each sample",
                "one number for a whole batch",
                "give the loss the axes of a sample: axis=(1, 2, 3)",
            )
        self.loss = loss

    def update(self, y_true: Any, y_pred: Any, weights: Any = None) -> None:
        x = np.asarray(y_pred)
        x = x if x.dtype.kind == "f" else x.astype(np.float32)
        keep = self.loss.counted(y_true)
        w = None
        if weights is not None or keep is not None:
            w = np.ones(self.loss.count(x.shape))
        if w is not None and weights is not None:
            shape = (*self.loss.loss_shape(x.shape), 1)
            spread_weights(weights, shape, w, self.name)
        if w is not None and keep is not None:
            w *= keep.reshape(-1)
        total = self.loss.sum_and_gradient(y_true, x, weights)
        self.add(total, self.loss.count(x.shape), w)


class FunctionMetric(Averaged):
    """Mean of the numbers that a plain function returns.

    Args:
        function: ``function(y_true, y_pred)`` returns a number for each sample, or for
            each row; further axes are averaged.
        arguments: keywords that it gets besides.
    """

    def __init__(
        self, function: Callable[..., Any], name: str | None = None, **arguments: Any
    ) -> None:
        super().__init__(name or getattr(function, "__name__", type(function).__name__))
        self.function, self.arguments = function, arguments

    def update(self, y_true: Any, y_pred: Any, weights: Any = None) -> None:
        values = np.asarray(self.function(y_true, y_pred, **self.arguments), np.float64)
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


def _defined(kind: type, name: str) -> int:
    """Return how many classes are before the one that defines a method."""
    return next(i for i, base in enumerate(kind.__mro__) if name in vars(base))


def row_weights(weights: Any, shape: tuple[int, ...], owner: str) -> Array | None:
    """Return the weights (N) of the rows of y_pred's ``shape``, in float64, or None.

    Raises ShapeError, which names ``owner``, for weights of another shape.
    """
    if weights is None:
        return None
    spread = np.empty(row_count(shape))
    spread_weights(weights, shape, spread, owner)
    return spread


def _sample_values(
    values: Any, weights: Any, reduce: Callable[..., Any]
) -> tuple[Array, Array | None]:
    """Return the weighted values (B) and weights (B), other axes reduced."""
    v = np.asarray(values, np.float64)
    v = v.reshape(1) if v.ndim == 0 else v
    w = None
    if weights is not None:
        w = np.asarray(weights, np.float64)
        if w.ndim == v.ndim + 1 and w.shape[-1] == 1:
            w = w[..., 0]
        v = reduce(v, axis=tuple(range(w.ndim, v.ndim)))
        w = np.broadcast_to(w, v.shape)
        v = v * w
        w = reduce(w, axis=tuple(range(1, w.ndim)))
    return reduce(v, axis=tuple(range(1, v.ndim))), w


def _not_for_training(metric: Metric) -> ArgumentError:
    return ArgumentError(
        f"metric {metric.name}: expected a metric of targets and predictions",
        f"{type(metric).__name__}, which is one of plain values",
        "use it by itself with update_state(values), or pass a function to compile",
    )
