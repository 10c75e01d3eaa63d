"""Losses, by Keras' names: sums over the batch, and their gradients.

Every loss gives one number for each *row*, which is a sample, or a position of a
sequence: ``y_pred`` of shape (B, C) holds B rows, (B, T, C) holds B x T. Training adds
the weighted losses of the rows up and divides once, by the global number of rows
(``count``), so uneven shares and short batches change nothing. ``loss(y_true, y_pred)``
is Keras' value: weighted sum / number of rows.

A new loss is one method. Simplest is ``call``, as in Keras, that also returns the
gradient; see ``FunctionLoss``. Without arrays of its own in each step it is: for a mean
(or a sum) over the last axis a subclass of ``ElementwiseLoss`` with ``elements``, else
one of ``Loss`` with ``block``. None of them may write to its inputs; large temporary
arrays come from ``kept``.

NaN and infinities in ``y_pred`` pass silently into the sum; the caller checks it.

B batch, T time, C classes or features, R rows of a block
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from fastserve.core import Array, Shape
from fastserve.errors import ArgumentError, DataError, ShapeError, UnknownNameError
from fastserve.losses.targets import Targets, check_finite, spread_weights
from fastserve.ops.blocks import row_blocks

CLIP = 1e-7  # probabilities are kept this far from 0 and 1, as in Keras
BLOCK = 1 << 16  # elements in a block: with their gradient, half of a 1 MB L2 cache
SCAN = 1 << 16  # targets that are looked at in one go before training
MEANS = ("sum_over_batch_size", "mean")
REDUCTIONS = (*MEANS, "sum", "mean_with_sample_weight", "none", None)


class Loss:
    """One loss for each row, and its gradient; see the module for the contract.

    Args:
        reduction: what a call returns. 'sum_over_batch_size' or 'mean': weighted sum /
            number of losses; 'sum'; 'mean_with_sample_weight': weighted sum / sum of
            weights; None or 'none': an array with each loss. Training takes the first
            three.
        name: for logs.

    Attributes:
        whole_batch: one loss of all rows together, so a batch can't be cut.
        fused_loss: 'softmax' or 'sigmoid' if that activation and this loss have a
            simpler common gradient, which ``with_logits()`` computes; else None.
        from_logits: whether ``y_pred`` comes from before that activation.
    """

    name = "loss"
    fused_loss: str | None = None
    from_logits = False
    targets = Targets("loss")
    whole_batch = False
    block_size = BLOCK

    def __init__(
        self, reduction: str | None = "sum_over_batch_size", name: str | None = None
    ) -> None:
        self.name = name or self.name
        if reduction not in REDUCTIONS:
            raise UnknownNameError(
                "reduction", str(reduction), [r for r in REDUCTIONS if r]
            )
        self.reduction = None if reduction == "none" else reduction
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

    @property
    def has_call(self) -> bool:
        """Whether the class has a method ``call(y_true, y_pred)``."""
        return callable(getattr(self, "call", None))

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

    def loss_shape(self, y_pred_shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of the losses: (B,) for (B, C), (B, T) for (B, T, C)."""
        return y_pred_shape[:-1] if len(y_pred_shape) > 1 else y_pred_shape

    def count(self, y_pred_shape: tuple[int, ...]) -> int:
        """Return the number of losses in a batch: B for (B, C), B*T for (B, T, C)."""
        return math.prod(self.loss_shape(y_pred_shape))

    def counted(self, y_true: Any) -> Array | None:
        """Return which losses count, bool, of the shape of labels; None: all do."""
        return None

    def ignored(self, y_true: Any, counts: Any = None) -> int:
        """Return how many losses don't count, of those whose ``counts`` isn't 0."""
        keep = self.counted(y_true)
        if keep is None:
            return 0
        if counts is None:
            return int(np.count_nonzero(~keep))
        c = np.asarray(counts)
        if keep.shape[-1:] == (1,) and c.ndim < keep.ndim:
            keep = keep[..., 0]  # labels with a last axis of 1
        c = c.reshape(c.shape + (1,) * (keep.ndim - c.ndim))
        return int(np.count_nonzero(~keep & (c != 0)))

    def check_training(self, cut: bool) -> None:
        """Raise ArgumentError if training can't reduce as this loss does.

        ``cut``: batches are cut, for several ranks or micro-batches.
        """
        if self.reduction not in (*MEANS, "sum"):
            raise ArgumentError(
                f"{self.name}: expected a reduction that training knows, "
                "'sum_over_batch_size' or 'sum'",
                f"{self.reduction!r}",
                "change the loss's reduction, or scale the sample weights",
            )
        if self.whole_batch and cut:
            raise ArgumentError(
                f"{self.name}: expected one rank without micro-batches, as the loss is "
                "one number for a whole batch",
                "several ranks, micro_batch or algorithm 'exact'",
                "give axis=(1, 2, 3), or those of your samples: a loss for each sample",
            )

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
            check_finite(self.name, part, first)
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
        y, x = self.rows(y_true, y_pred)
        dx = _gradient_rows(self.name, y_pred, dy, x.shape)
        factors = self.factors(weights, y_pred.shape, x.dtype)
        total = 0.0
        for _, losses in self._blocks(y, x, factors, scale, dx):
            total += float(losses.sum())
        return total

    def losses(self, y_true: Any, y_pred: Array, weights: Any = None) -> Any:
        """Return each loss, float64, of the shape ``loss_shape(y_pred.shape)``."""
        y, x = self.rows(y_true, y_pred)
        factors = self.factors(weights, y_pred.shape, x.dtype)
        each = np.empty(len(x))
        for part, losses in self._blocks(y, x, factors, 1.0, None):
            each[part] = losses
        return each.reshape(self.loss_shape(y_pred.shape))

    def rows(self, y_true: Any, y_pred: Array) -> tuple[Array, Array]:
        """Return what ``block`` takes: y and x with a row for each loss."""
        return self.targets.rows(y_true, y_pred)

    def _blocks(
        self, y: Array, x: Array, factors: Array | None, scale: float, dx: Array | None
    ) -> Iterator[tuple[slice, Array]]:
        """Yield rows and their weighted losses, in memory that is used again."""
        if self.targets.sparse:
            self.check_values(y, x.shape[1])
        scale = x.dtype.type(scale)
        with np.errstate(all="ignore"):
            for part in row_blocks(len(x), max(32, x.shape[1]), self.block_size):
                xp, dxp = x[part], None if dx is None else dx[part]
                losses = self.kept("losses", (len(xp),), np.dtype(np.float64))
                factor = scale if factors is None else factors[part] * scale
                self.block(y[part], xp, losses, dxp, np.asarray(factor))
                if factors is not None:
                    np.multiply(losses, factors[part], out=losses)
                yield part, losses

    def check_gradient(self, y_pred: Array, dy: Array) -> None:
        """Raise ShapeError unless the gradient can be written to ``dy``."""
        _gradient_rows(self.name, y_pred, dy, y_pred.shape)

    def __call__(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        """Return what ``reduction`` says, by default the mean over the losses."""
        if self.has_call:
            return FunctionLoss.of(self)(y_true, y_pred, sample_weight)
        y_pred = _as_float(y_pred)
        if self.reduction is None:
            return self.losses(y_true, y_pred, sample_weight)
        total = self.sum_and_gradient(y_true, y_pred, sample_weight)
        if self.reduction == "sum":
            return total
        count = float(self.count(y_pred.shape) - self.ignored(y_true))
        if self.reduction == "mean_with_sample_weight" and sample_weight is not None:
            factors = self.factors(sample_weight, y_pred.shape, y_pred.dtype)
            count = 0.0 if factors is None else float(factors.sum(dtype=np.float64))
        return total / count if count else 0.0

    def _check_shape(self, y_shape: Shape, output_shape: Shape) -> None:
        self.targets.check_shape(y_shape, output_shape)

    def factors(
        self, weights: Any, y_pred_shape: tuple[int, ...], dtype: np.dtype[Any]
    ) -> Array | None:
        """Return the weight of each loss, in scratch memory, from (B,) or one for
        each; raise ShapeError for another shape."""
        if weights is None:
            return None
        shape = self.loss_shape(y_pred_shape)
        factors = self.kept("weights", (math.prod(shape),), dtype)
        spread_weights(weights, (*shape, 1), factors, self.name)
        return factors

    def __repr__(self) -> str:
        return f"{type(self).__name__}(from_logits={self.from_logits})"


class ElementwiseLoss(Loss):
    """Mean over the last axis of a function of one prediction and its target.

    Attributes:
        mean: false: a sum.
    """

    mean = True

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
        size = x.shape[1] if self.mean else 1
        np.divide(sums, size, out=losses)
        if dx is not None:
            np.multiply(dx, column(factor / x.dtype.type(size)), out=dx)


class FunctionLoss(Loss):
    """A loss from a plain function.

    Args:
        function: ``function(y_true, y_pred)`` returns ``(losses, gradient)``: the
            losses of shape ``y_pred.shape[:-1]``, and the gradient of their sum, of
            ``y_pred``'s shape. The losses alone are enough to evaluate, not to train:
            there is no automatic differentiation.
    """

    def __init__(self, function: Callable[..., Any], name: str | None = None) -> None:
        super().__init__(
            name=name or getattr(function, "__name__", type(function).__name__)
        )
        self.function = function

    @classmethod
    def of(cls, loss: Loss) -> FunctionLoss:
        """Return the loss that a subclass's method ``call`` is."""
        made = cls(loss.call, loss.name)  # type: ignore[attr-defined]
        made.reduction = loss.reduction
        return made

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
        losses, gradient = self._call(y_true, y_pred)
        factors = self.factors(weights, y_pred.shape, y_pred.dtype)
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

    def losses(self, y_true: Any, y_pred: Array, weights: Any = None) -> Any:
        losses, _ = self._call(y_true, y_pred)
        factors = self.factors(weights, y_pred.shape, y_pred.dtype)
        each = losses if factors is None else losses * factors
        return each.reshape(self.loss_shape(y_pred.shape))

    def _call(self, y_true: Any, y_pred: Array) -> tuple[Array, Any]:
        """Return the flat losses, and the gradient or None."""
        result = self.function(y_true, y_pred)
        losses, gradient = result if isinstance(result, tuple) else (result, None)
        losses = self._shaped("losses", losses, self.loss_shape(y_pred.shape))
        return losses.reshape(-1), gradient

    def _shaped(self, what: str, value: Any, shape: tuple[int, ...]) -> Array:
        array = np.asarray(value)
        if array.shape != shape:
            raise ShapeError(
                f"loss {self.name}: expected {what} of shape {shape} from the function",
                f"shape {array.shape}",
                "return one loss for each row: a mean over the last axis, not all",
            )
        return array


def refuse_axis(owner: str, axis: int) -> None:
    """Raise ArgumentError unless the classes or features are on the last axis."""
    if axis != -1:
        raise ArgumentError(
            f"{owner}: expected axis=-1, the last", f"axis={axis}", "transpose the data"
        )


def check_range(owner: str, argument: str, value: float, least: float) -> None:
    """Raise ArgumentError unless ``value`` is finite and not below ``least``."""
    if not least <= value < math.inf:
        raise ArgumentError(
            f"{owner}: expected {argument} of {least:g} or more",
            f"{argument}={value}",
            f"choose another {argument}",
        )


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


def column(factor: Array) -> Array:
    return factor[:, None] if factor.ndim else factor
