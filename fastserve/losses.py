"""Losses, by Keras' names: sums over the batch, and their gradients.

Every loss gives one number for each *row*, which is a sample, or a position of a
sequence: ``y_pred`` of shape (B, C) holds B rows, (B, T, C) holds B x T. Training adds
the weighted losses of the rows up and divides once, by the global number of rows
(``count``), so uneven shares and short batches change nothing. ``loss(y_true, y_pred)``
is Keras' value: weighted sum / number of rows.

A new loss is one method. If it is a mean over the last axis, subclass
``ElementwiseLoss`` and write ``elements``; otherwise subclass ``Loss`` and write
``block``. Neither may write to its inputs; large temporary arrays come from ``kept``.

NaN and infinities in ``y_pred`` pass silently into the sum; the caller checks it.

B batch, T time, C classes or features, R rows of a block
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastserve.core import Array, Shape
from fastserve.errors import ArgumentError, DataError, ShapeError, UnknownNameError
from fastserve.ops.blocks import row_blocks
from fastserve.ops.linear import ones

CLIP = 1e-7  # probabilities are kept this far from 0 and 1, as in Keras
NO_SHIFT = 60.0  # exp of logits up to here, and a sum of them, fits into float32
BLOCK = 1 << 16  # elements in a block: with their gradient, half of a 1 MB L2 cache
SCAN = 1 << 16  # targets that are looked at in one go before training


@dataclass(frozen=True)
class Targets:
    """What ``y_true`` must look like beside ``y_pred``, and the errors if it doesn't.

    Args:
        owner: the loss or metric on whose behalf errors are raised.
        sparse: labels, without the axis of classes; else the shape of ``y_pred``.
        classes: the last axis holds classes, of which there must be two or more.
        instead: what to use if labels and one-hot rows were mixed up.
    """

    owner: str
    sparse: bool = False
    classes: bool = False
    instead: str = ""

    def check_shape(self, y_shape: Shape, output_shape: Shape) -> None:
        """Raise ShapeError unless both (without the batch) belong together."""
        if self.classes and (not output_shape or output_shape[-1] == 1):
            raise ShapeError(
                f"{self.owner}: expected an output of two or more classes",
                f"output shape {_with_batch(output_shape)}",
                "use the binary form, or as many output units as there are classes",
            )
        wanted = output_shape[:-1] if self.sparse else output_shape
        if _same(_squeezed(y_shape), _squeezed(wanted)) or _same(y_shape, wanted):
            return
        raise ShapeError(
            f"{self.owner}: expected targets of shape {_with_batch(wanted)}",
            f"shape {_with_batch(y_shape)} for outputs of {_with_batch(output_shape)}",
            self._todo(y_shape, output_shape),
        )

    def _todo(self, y_shape: Shape, output_shape: Shape) -> str:
        labels = _same(_squeezed(y_shape), output_shape[:-1])
        if self.sparse and _same(y_shape, output_shape):
            return f"these look one-hot: use {self.instead}, or y.argmax(-1)"
        if self.classes and labels:
            return f"these look like labels: use {self.instead}, or one-hot rows"
        if labels:
            return (
                "labels of classes need sparse_categorical_crossentropy; otherwise "
                "give a target for each output"
            )
        if output_shape[-1:] == (1,) and _same(y_shape[:-1], output_shape[:-1]):
            return (
                f"these look one-hot: use categorical_crossentropy and a last layer "
                f"of {y_shape[-1]} units with softmax"
            )
        return "change the last layer's size, or reshape the targets"

    def rows(self, y_true: Any, y_pred: Array) -> tuple[Array, Array]:
        """Return y (R) or (R, C) and x (R, C); no copies of contiguous arrays."""
        y, x = np.asarray(y_true), y_pred
        if x.ndim == 0 or y.ndim == 0 or len(x) != len(y):
            raise ShapeError(
                f"{self.owner}: expected as many targets as predictions",
                f"targets {y.shape}, predictions {x.shape}",
                "pass arrays whose first axis is the batch",
            )
        self.check_shape(y.shape[1:], x.shape[1:])
        n, columns = row_count(x.shape), x.shape[-1] if x.ndim > 1 else 1
        x = np.ascontiguousarray(x).reshape(n, columns)
        return (y.reshape(n) if self.sparse else y.reshape(n, columns)), x


def row_count(y_pred_shape: tuple[int, ...]) -> int:
    """Return the number of losses in a batch: B for (B, C), B x T for (B, T, C)."""
    return math.prod(y_pred_shape[:-1]) if len(y_pred_shape) > 1 else y_pred_shape[0]


def spread_weights(
    weights: Any, y_pred_shape: tuple[int, ...], out: Array, owner: str
) -> None:
    """Write to out (R) the weights of the rows, from (B,) or one for each row.

    Raises ShapeError if ``weights`` has another shape.
    """
    w = np.asarray(weights)
    own = y_pred_shape[:-1] if len(y_pred_shape) > 1 else y_pred_shape
    if w.shape == own:
        np.copyto(out.reshape(own), w, casting="unsafe")
    elif w.shape == own[:1]:
        column = w.reshape(own[:1] + (1,) * (len(own) - 1))
        np.copyto(out.reshape(own), column, casting="unsafe")
    else:
        shapes = f"{own[:1]}" if len(own) == 1 else f"{own[:1]} or {own}"
        raise ShapeError(
            f"{owner}: expected weights of shape {shapes}",
            f"shape {w.shape}",
            "give one weight for each sample, or for each position",
        )


class Loss:
    """One loss for each row, and its gradient; see the module for the contract.

    Attributes:
        name: Keras' name in snake case.
        fused_loss: 'softmax' or 'sigmoid' if that activation and this loss have a
            simpler common gradient, which ``with_logits()`` computes; else None.
        from_logits: whether ``y_pred`` comes from before that activation.
    """

    name = "loss"
    fused_loss: str | None = None
    from_logits = False
    targets = Targets("loss")

    def __init__(self, name: str | None = None) -> None:
        self.name = name or self.name
        self._kept: dict[str, Array] = {}

    # -- what a subclass writes ------------------------------------------------

    def block(
        self, y: Array, x: Array, losses: Array, dx: Array | None, factor: Array
    ) -> None:
        """Write the losses (R), float64, and unless None dx (R, C).

        y is (R) or (R, C), x is (R, C); ``factor`` is () or (R), and row i of dx is
        ``factor[i] * d(losses[i]) / d(x[i])``.
        """
        raise NotImplementedError(f"{type(self).__name__}.block")

    def check_values(self, y: Array, classes: int, first: int = 0) -> None:
        """Raise DataError for targets that this loss can't take.

        y holds samples ``first``, ``first + 1``, ... on its first axis.
        """

    def with_logits(self) -> Loss:
        """Return this loss for outputs from before the activation it fuses with."""
        raise ArgumentError(
            f"{self.name}: expected a loss that fuses with softmax or sigmoid",
            f"fused_loss {self.fused_loss}",
            "keep the last layer's activation apart from the loss",
        )

    # -- what a subclass uses --------------------------------------------------

    def kept(self, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        """Return scratch memory of this loss; it only grows, and holds garbage."""
        size = math.prod(shape)
        block = self._kept.get(name)
        if block is None or block.size < size or block.dtype != dtype:
            block = self._kept[name] = np.empty(size, dtype)
        return block[:size].reshape(shape)

    def like(self, y: Array, x: Array) -> Array:
        """Return y in the type of x, copied into scratch memory if it has another."""
        if y.dtype == x.dtype:
            return y
        converted = self.kept("y", y.shape, x.dtype)
        np.copyto(converted, y, casting="unsafe")
        return converted

    def clipped(self, q: Array) -> tuple[Array, Array]:
        """Return q within CLIP..1-CLIP, and where it was so before, both scratch."""
        p = self.kept("clipped", q.shape, q.dtype)
        np.clip(q, q.dtype.type(CLIP), q.dtype.type(1 - CLIP), out=p)
        inside = self.kept("inside", q.shape, np.dtype(np.bool_))
        return p, np.equal(p, q, out=inside)

    # -- what callers use ------------------------------------------------------

    def count(self, y_pred_shape: tuple[int, ...]) -> int:
        """Return the number of losses in a batch: B for (B, C), B*T for (B, T, C)."""
        return row_count(y_pred_shape)

    def check_targets(self, y: Any, output_shape: Shape) -> None:
        """Raise ShapeError or DataError for targets that can't be trained on.

        Args:
            y: all targets, samples on the first axis; may be a memory map.
            output_shape: the model's, without the batch, None where it may vary.
        """
        y = y if isinstance(y, np.ndarray) else np.asarray(y)
        if y.dtype.kind not in "biuf" or y.ndim == 0:
            raise DataError(
                f"{self.name}: expected targets that are an array of numbers",
                f"type {y.dtype}, shape {y.shape}",
                "convert them, for example labels as text to integers",
            )
        self._check_shape(y.shape[1:], output_shape)
        classes = output_shape[-1] if output_shape and output_shape[-1] else 1
        step = max(1, SCAN // max(1, math.prod(y.shape[1:])))
        for first in range(0, len(y), step):
            part = y[first : first + step]
            _check_finite(self.name, part, first)
            self.check_values(part, classes, first)

    def sum_and_gradient(
        self,
        y_true: Any,
        y_pred: Array,
        weights: Any = None,
        scale: float = 1.0,
        dy: Array | None = None,
    ) -> float:
        """Return the weighted sum of the losses; write scale x its gradient to dy.

        Args:
            y_true: labels, or targets of the shape of ``y_pred``; only read.
            y_pred: predictions (B, C) or (B, ..., C), float32 or float64; only read.
            weights: None, (B,), or a weight for each loss.
            scale: factor of the gradient, not of the sum.
            dy: None, or an array of ``y_pred``'s shape and type that doesn't overlap
                it: gets ``scale * d(sum) / d(y_pred)``.

        Raises:
            ShapeError: shapes that don't belong together.
            DataError: a label out of range.
        """
        y, x = self.targets.rows(y_true, y_pred)
        dx = _gradient_rows(self.name, y_pred, dy, x.shape)
        factors = self._factors(weights, y_pred.shape, x.dtype)
        if self.targets.sparse:
            self.check_values(y, x.shape[1])
        scale = x.dtype.type(scale)
        total = 0.0
        with np.errstate(all="ignore"):
            for part in row_blocks(len(x), max(32, x.shape[1]), BLOCK):
                xp, dxp = x[part], None if dx is None else dx[part]
                losses = self.kept("losses", (len(xp),), np.dtype(np.float64))
                factor = scale if factors is None else factors[part] * scale
                self.block(y[part], xp, losses, dxp, np.asarray(factor))
                if factors is not None:
                    np.multiply(losses, factors[part], out=losses)
                total += float(losses.sum())
        return total

    def __call__(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> float:
        """Return the mean over the rows: weighted sum / number of losses."""
        y_pred = _as_float(y_pred)
        total = self.sum_and_gradient(y_true, y_pred, sample_weight)
        return total / max(1, self.count(y_pred.shape))

    def _check_shape(self, y_shape: Shape, output_shape: Shape) -> None:
        self.targets.check_shape(y_shape, output_shape)

    def _factors(
        self, weights: Any, shape: tuple[int, ...], dtype: np.dtype[Any]
    ) -> Array | None:
        if weights is None:
            return None
        factors = self.kept("weights", (row_count(shape),), dtype)
        spread_weights(weights, shape, factors, self.name)
        return factors

    def __repr__(self) -> str:
        return f"{type(self).__name__}(from_logits={self.from_logits})"


# -- cross-entropies over classes ----------------------------------------------


class _OfClasses(Loss):
    """What the two cross-entropies over classes share."""

    def __init__(self, from_logits: bool = False, name: str | None = None) -> None:
        super().__init__(name)
        self.from_logits = from_logits
        self.fused_loss = None if from_logits else "softmax"

    def with_logits(self) -> Loss:
        return type(self)(from_logits=True, name=self.name)

    def block(
        self, y: Array, x: Array, losses: Array, dx: Array | None, factor: Array
    ) -> None:
        work = self.logits if self.from_logits else self.probabilities
        work(y, x, losses, dx, factor)

    def logits(
        self, y: Array, x: Array, losses: Array, dx: Array | None, factor: Array
    ) -> None:
        raise NotImplementedError(f"{type(self).__name__}.logits")

    def probabilities(
        self, y: Array, x: Array, losses: Array, dx: Array | None, factor: Array
    ) -> None:
        raise NotImplementedError(f"{type(self).__name__}.probabilities")

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

    Shapes: y_true (B, ...) or (B, ..., 1), y_pred (B, ..., C), a loss for each label.
    """

    name = "sparse_categorical_crossentropy"
    targets = Targets(name, True, True, "categorical_crossentropy")

    def check_values(self, y: Array, classes: int, first: int = 0) -> None:
        check_labels(self.name, y, classes, first)

    def places(self, y: Array, x: Array) -> Array:
        """Return where in the flat block each row's label is, (R) int64."""
        index = np.dtype(np.int64)
        places = self.kept("places", (len(x),), index)
        np.copyto(places, y, casting="unsafe")
        places += np.arange(0, x.size, x.shape[1])
        return places

    def logits(
        self, y: Array, x: Array, losses: Array, dx: Array | None, factor: Array
    ) -> None:
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

    Shapes: y_true and y_pred (B, ..., C), a loss for each row.
    """

    name = "categorical_crossentropy"
    targets = Targets(name, False, True, "sparse_categorical_crossentropy")

    def check_values(self, y: Array, classes: int, first: int = 0) -> None:
        _check_probabilities(self.name, y, first)

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
            np.multiply(t, _column(factor), out=scaled)
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


# -- means over the last axis --------------------------------------------------


class ElementwiseLoss(Loss):
    """Mean over the last axis of a function of one prediction and its target."""

    def elements(self, y: Array, x: Array, values: Array, dx: Array | None) -> None:
        """Write values (R, C) = f(y, x) and, unless None, dx (R, C) = df/dx."""
        raise NotImplementedError(f"{type(self).__name__}.elements")

    def block(
        self, y: Array, x: Array, losses: Array, dx: Array | None, factor: Array
    ) -> None:
        values = self.kept("values", x.shape, x.dtype)
        self.elements(self.like(y, x), x, values, dx)
        sums = np.add.reduce(
            values, axis=1, out=self.kept("sums", x.shape[:1], x.dtype)
        )
        np.divide(sums, x.shape[1], out=losses)
        if dx is not None:
            np.multiply(dx, _column(factor / x.dtype.type(x.shape[1])), out=dx)


class MeanSquaredError(ElementwiseLoss):
    """mean((x - y)^2) over the last axis.

    Shapes: y_true and y_pred (B, ..., C), a loss for each row. A last axis of 1 may be
    missing in y_true.
    """

    name = "mean_squared_error"
    targets = Targets(name)

    def elements(self, y: Array, x: Array, values: Array, dx: Array | None) -> None:
        np.subtract(x, y, out=values)
        if dx is not None:
            np.add(values, values, out=dx)
        np.multiply(values, values, out=values)


class MeanAbsoluteError(ElementwiseLoss):
    """mean(abs(x - y)) over the last axis; the gradient at x = y is 0.

    Shapes: y_true and y_pred (B, ..., C), a loss for each row. A last axis of 1 may be
    missing in y_true.
    """

    name = "mean_absolute_error"
    targets = Targets(name)

    def elements(self, y: Array, x: Array, values: Array, dx: Array | None) -> None:
        np.subtract(x, y, out=values)
        if dx is not None:
            np.sign(values, out=dx)
        np.abs(values, out=values)


class BinaryCrossentropy(ElementwiseLoss):
    """-mean(y log p + (1 - y) log(1 - p)) over the last axis, for y in 0..1.

    From logits z: max(z, 0) - z y + log(1 + exp(-abs(z))), gradient sigmoid(z) - y.
    From probabilities q, as Keras does: p = clip(q, 1e-7, 1 - 1e-7); where that clips,
    the gradient is 0.

    Args:
        from_logits: whether ``y_pred`` holds logits z or probabilities q.

    Shapes: y_true and y_pred (B, ..., C), a loss for each row. A last axis of 1 may be
    missing in y_true.
    """

    name = "binary_crossentropy"
    targets = Targets(name)

    def __init__(self, from_logits: bool = False, name: str | None = None) -> None:
        super().__init__(name)
        self.from_logits = from_logits
        self.fused_loss = None if from_logits else "sigmoid"

    def with_logits(self) -> Loss:
        return BinaryCrossentropy(from_logits=True, name=self.name)

    def check_values(self, y: Array, classes: int, first: int = 0) -> None:
        _check_probabilities(self.name, y, first)

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


# -- a function of the user's --------------------------------------------------


class FunctionLoss(Loss):
    """A loss from a plain function.

    Args:
        function: ``function(y_true, y_pred)`` returns ``(losses, gradient)``: the
            losses of shape ``y_pred.shape[:-1]``, and the gradient of their sum, of
            ``y_pred``'s shape. The losses alone are enough to evaluate, not to train:
            there is no automatic differentiation.
    """

    def __init__(self, function: Callable[..., Any], name: str | None = None) -> None:
        super().__init__(name or getattr(function, "__name__", type(function).__name__))
        self.function = function

    def _check_shape(self, y_shape: Shape, output_shape: Shape) -> None:
        """Any shape may be right: only the function knows."""

    def sum_and_gradient(
        self,
        y_true: Any,
        y_pred: Array,
        weights: Any = None,
        scale: float = 1.0,
        dy: Array | None = None,
    ) -> float:
        result = self.function(y_true, y_pred)
        losses, gradient = result if isinstance(result, tuple) else (result, None)
        own = y_pred.shape[:-1] if y_pred.ndim > 1 else y_pred.shape
        losses = self._shaped("losses", losses, own).reshape(-1)
        factors = self._factors(weights, y_pred.shape, y_pred.dtype)
        if dy is not None:
            if gradient is None:
                raise ArgumentError(
                    f"loss {self.name}: expected (losses, gradient) from the function",
                    "losses alone",
                    "return d(sum of losses)/d(y_pred) too: it isn't derived",
                )
            gradient = self._shaped("gradient", gradient, y_pred.shape)
            np.multiply(gradient, y_pred.dtype.type(scale), out=dy, casting="same_kind")
            if factors is not None:
                rows = dy.reshape(len(factors), -1)
                np.multiply(rows, factors[:, None], out=rows)
        if factors is not None:
            losses = losses * factors
        return float(np.sum(losses, dtype=np.float64))

    def _shaped(self, what: str, value: Any, shape: tuple[int, ...]) -> Array:
        array = np.asarray(value)
        if array.shape != shape:
            raise ShapeError(
                f"loss {self.name}: expected {what} of shape {shape} from the function",
                f"shape {array.shape}",
                "return one loss for each row: a mean over the last axis, not all",
            )
        return array


_CLASSES: tuple[type[Loss], ...] = (
    BinaryCrossentropy,
    CategoricalCrossentropy,
    MeanAbsoluteError,
    MeanSquaredError,
    SparseCategoricalCrossentropy,
)
NAMED: dict[str, type[Loss]] = {
    **{cls.name: cls for cls in _CLASSES},
    **{cls.__name__: cls for cls in _CLASSES},
    "bce": BinaryCrossentropy,
    "BCE": BinaryCrossentropy,
    "mae": MeanAbsoluteError,
    "MAE": MeanAbsoluteError,
    "mse": MeanSquaredError,
    "MSE": MeanSquaredError,
}


def get(loss: str | Loss | type[Loss] | Callable[..., Any]) -> Loss:
    """Return a loss by Keras' name, from its class, or around a plain function.

    Raises UnknownNameError for other names, ArgumentError for other objects.
    """
    if isinstance(loss, Loss):
        return loss
    if isinstance(loss, str):
        if loss not in NAMED:
            raise UnknownNameError("loss", loss, NAMED)
        return NAMED[loss]()
    if isinstance(loss, type) and issubclass(loss, Loss):
        return loss()
    if callable(loss):
        return FunctionLoss(loss)
    raise ArgumentError(
        "expected a loss's name, a Loss, or a function of (y_true, y_pred)",
        repr(loss),
        "for example loss='categorical_crossentropy'",
    )


# -- helpers ---------------------------------------------------------------------


def check_labels(owner: str, y: Array, classes: int, first: int = 0) -> None:
    """Raise DataError unless all of y are whole numbers in 0..classes-1."""
    if y.size == 0:
        return
    whole = y.dtype.kind != "f" or bool((y == np.floor(y)).all())
    if whole and y.min() >= 0 and y.max() < classes:
        return
    wrong = ~((y >= 0) & (y < classes))
    if y.dtype.kind == "f":
        wrong |= y != np.floor(y)
    label, place = _first(y, wrong, first)
    raise DataError(
        f"{owner}: expected labels in 0..{classes - 1}, for {classes} classes",
        f"label {label} at {place}",
        "number the classes from 0, and give the last layer as many units",
    )


def _check_probabilities(owner: str, y: Array, first: int) -> None:
    if y.size == 0 or (y.min() >= 0 and y.max() <= 1):
        return
    value, place = _first(y, ~((y >= 0) & (y <= 1)), first)
    raise DataError(
        f"{owner}: expected targets in 0..1",
        f"{value} at {place}",
        "use labels of 0 and 1, one-hot rows, or probabilities",
    )


def _check_finite(owner: str, y: Array, first: int) -> None:
    if y.dtype.kind != "f" or np.isfinite(y).all():
        return
    value, place = _first(y, ~np.isfinite(y), first)
    raise DataError(
        f"{owner}: expected targets that are finite numbers",
        f"{value} at {place}",
        "remove or replace these samples",
    )


def _first(y: Array, wrong: Array, first: int) -> tuple[str, str]:
    """Return the first wrong value and where it is, both as text."""
    place = tuple(int(i) for i in np.argwhere(wrong)[0])
    where = f"sample {first + place[0]}"
    if len(place) > 1:
        where += f", position {', '.join(map(str, place[1:]))}"
    return str(y[place]), where


def _gradient_rows(
    owner: str, y_pred: Array, dy: Array | None, shape: tuple[int, ...]
) -> Array | None:
    if dy is None:
        return None
    fits = dy.shape == y_pred.shape and dy.dtype == y_pred.dtype
    if not fits or not dy.flags.c_contiguous:
        raise ShapeError(
            f"{owner}: expected a contiguous dy of shape {y_pred.shape}, "
            f"{y_pred.dtype}, as y_pred",
            f"shape {dy.shape}, {dy.dtype}",
            "allocate dy as np.empty_like(y_pred)",
        )
    return dy.reshape(shape)


def _as_float(y_pred: Any) -> Array:
    array = np.asarray(y_pred)
    return array if array.dtype.kind == "f" else array.astype(np.float32)


def _column(factor: Array) -> Array:
    return factor[:, None] if factor.ndim else factor


def _squeezed(shape: Shape) -> Shape:
    return shape[:-1] if shape and shape[-1] == 1 else shape


def _same(a: Shape, b: Shape) -> bool:
    return len(a) == len(b) and all(
        i == j or i is None or j is None for i, j in zip(a, b, strict=True)
    )


def _with_batch(shape: Shape) -> str:
    inner = ["samples", *("any" if i is None else str(i) for i in shape)]
    return f"({', '.join(inner)}{',' if len(inner) == 1 else ''})"
