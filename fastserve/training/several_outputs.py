"""``OutputsTrainer``: steps of a model with several outputs, or weighted losses.

The loss is Σ w_i L_i, where L_i is the mean of output i's losses over all its rows, as
without the others. Besides ``loss`` the logs have each L_i, without its weight.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fastserve.core import Array, Layer, StepKey
from fastserve.data.sources import Batch
from fastserve.errors import ArgumentError, DataError
from fastserve.layers.graph import Graph
from fastserve.layers.recurrent import states_kept
from fastserve.losses import Loss
from fastserve.metrics import Mean, Metric
from fastserve.training.masks import apply_mask
from fastserve.training.step import StepResult, Trainer, _ignore


class Output:
    """What an output is trained for.

    Attributes:
        name: before the names of its loss and its metrics in the logs.
        loss: None: none, so only what other outputs need of it is trained.
        weight: of the loss in the sum.
        fused: whether the loss is given logits.
        mean: of the loss, for the logs.
    """

    def __init__(
        self,
        name: str,
        loss: Loss | None,
        weight: float = 1.0,
        metrics: Sequence[Metric] = (),
    ) -> None:
        self.name, self.loss, self.weight, self.metrics = name, loss, weight, metrics
        self.fused, self.mean = False, Mean()


class OutputsTrainer(Trainer):
    """A ``Trainer`` for these outputs, in the model's order.

    Batches have tuples of targets, and None or tuples of weights. Where masks arrive at
    outputs, or labels are ignored, the losses that count in a step are counted before
    it, by a forward of its own: each output's gradient has to be divided by their
    number over all ranks.

    Args:
        sample: a batch, to find out at which outputs masks arrive.
    """

    def __init__(
        self,
        root: Layer,
        store: Any,
        outputs: Sequence[Output],
        sample: Batch,
        *args: Any,
    ) -> None:
        losses = root.fused_losses if isinstance(root, Graph) else (root.fused_loss,)
        for output, fusable in zip(outputs, losses, strict=True):
            loss = output.loss
            if loss is not None and (loss.reduction == "sum" or loss.whole_batch):
                raise ArgumentError(
                    f"{output.name}: expected a loss that is a mean over the samples, "
                    "for several outputs or loss_weights",
                    f"{loss.name} of a whole batch, or with reduction 'sum'",
                    "use reduction 'sum_over_batch_size', and axes of the samples",
                )
            if loss is not None:
                loss.check_training(cut=False)
            if loss is not None and fusable and fusable == loss.fused_loss:
                output.loss, output.fused = loss.with_logits(), True
        self.outputs = list(outputs)
        trained = [output for output in outputs if output.loss is not None]
        several = len(self.outputs) > 1
        logged: list[tuple[str | None, Metric]] = [
            (f"{output.name}_loss" if several else None, output.mean)
            for output in trained
        ]
        for output in outputs:
            prefix = f"{output.name}_" if several else ""
            logged += [(f"{prefix}{m.name}", m) for m in output.metrics]
        self._names = [name for name, _ in logged]
        self._evaluating = False
        self._counted: list[float] = []  # losses of the step's outputs, if masked
        optimizer, *rest = args
        first = trained[0].loss
        assert first is not None
        super().__init__(root, store, first, optimizer, [m for _, m in logged], *rest)
        self._head = None
        with states_kept(root):
            self._predict(sample, False)
        self._masked = any(mask is not None for mask in self._masks()) or any(
            output.loss is not None and output.loss.counted(np.zeros(1)) is not None
            for output in outputs
        )

    def results(self, totals: Array | None = None) -> dict[str, float]:
        """Return mean loss, each output's loss, and metrics; see ``Trainer``."""
        totals = self.totals if totals is None else totals
        named = {"loss": self.mean_loss(totals)}
        for name, (metric, part) in zip(self._names, self._states(totals), strict=True):
            metric.state[...] = part
            value = metric.result()
            if name is not None and np.ndim(value) == 0:
                named[name] = float(value)
        if self._evaluating:
            trained = [o for o in self.outputs if o.loss is not None]
            means = sum(o.weight * o.mean.result() for o in trained)
            named["loss"] = means + self._penalty()
        return named

    def with_arrays(self, results: dict[str, float]) -> dict[str, Any]:
        """Return the last results with those of metrics that are arrays, in order."""
        named = [(n, m) for n, m in zip(self._names, self.metrics, strict=True) if n]
        measured = {name: m.result() for name, m in named if name not in results}
        known = {**results, **measured}
        return {name: known[name] for name in ("loss", *(name for name, _ in named))}

    def evaluate_shares(self, *args: Any) -> dict[str, float]:
        self._evaluating = True
        try:
            return super().evaluate_shares(*args)
        finally:
            self._evaluating = False

    def train_batch(
        self,
        batch: Batch | None,
        mine: slice,
        total: int,
        *args: Any,
    ) -> StepResult:
        if self._masked:
            self.timing.to("forward")
            counts = np.zeros(len(self.outputs))
            for _, part in self._pieces(batch, mine) if batch is not None else ():
                with states_kept(self.root):
                    ys = self._predict(part, False)
                for i, y in enumerate(ys):
                    counts[i] += self._part_of(part, i, y)[1]
            with self.timing.within("sums", "sum of counts"):
                self.comm.allreduce(counts)
            self._counted = (counts / total).tolist()
        return super().train_batch(batch, mine, total, *args)

    def _forward_backward(self, batch: Batch, key: StepKey, last: bool) -> float:
        root = self.root
        done = self.sync.done if last else _ignore
        self.timing.to("forward")
        self._status[1] += _rows(batch)  # the sum has a part for each row
        total, gradients = self._run(batch, key, 1.0 / self._total, self._status)
        self.timing.to("backward")
        fused = [output.fused for output in self.outputs]
        if isinstance(root, Graph):
            root.backward_outputs(gradients, fused, done)
        elif fused[0]:
            root.backward_logits(gradients[0], done)
        else:
            root.backward(gradients[0], done)
        done(root)
        return total

    def _evaluate_part(self, part: Batch, status: Array) -> None:
        self._run(part, False, None, status)
        status[1] += _rows(part)

    def _run(
        self, batch: Batch, key: StepKey | bool, scale: float | None, status: Array
    ) -> tuple[float, list[Any]]:
        """Make forward and losses; return their weighted sum, and the gradients times
        ``scale``, unless that is None."""
        root = self.root
        ys = self._predict(batch, key)
        total, gradients = 0.0, []
        for metric, _ in self._states(status):
            metric.reset()
        for i, (output, y) in enumerate(zip(self.outputs, ys, strict=True)):
            part, counted = self._part_of(batch, i, y)
            gradient = None
            if output.loss is not None:
                prediction = self._logits(i) if output.fused else y
                # the step divides by the number of rows, not of this output's losses
                per_row = counted / len(y)
                if scale is not None:
                    gradient = root.scratch(prediction.shape)
                    per_row = self._counted[i] if self._masked else per_row
                share = output.weight / per_row if per_row else 0.0
                loss = output.loss.sum_and_gradient(
                    part.y, prediction, part.weights, (scale or 1.0) * share, gradient
                )
                output.mean.add(loss, counted, None)
                total += loss * share
            for metric in output.metrics:
                weights = part.weights if metric.weighted else part.measured
                metric.take(part.y, y, weights)
            gradients.append(gradient)
        for metric, place in self._states(status):
            place += metric.state
        return total, gradients

    def _predict(self, batch: Batch, key: StepKey | bool) -> Sequence[Array]:
        if batch.masked:
            raise DataError(
                "expected batches without a mask for several outputs or loss_weights",
                "a source whose batches are masked",
                "use one output, or weights",
            )
        found = self.root.forward(self._input(batch.x), key)
        return found if isinstance(found, tuple) else (found,)

    def _masks(self) -> Sequence[Any]:
        masks = self.root.output_mask()
        return masks if isinstance(masks, tuple) else (masks,) * len(self.outputs)

    def _part_of(self, batch: Batch, i: int, y: Array) -> tuple[Batch, int]:
        """Return targets and weights of output i, and how many losses count."""
        part = Batch(batch.x, self._of(batch.y, i), self._of(batch.weights, i))
        loss = self.outputs[i].loss
        if loss is None:
            return part, 0
        part, hidden = apply_mask(part, self._masks()[i], y.shape, loss)
        return part, loss.count(y.shape) - hidden

    def _logits(self, i: int) -> Array:
        root = self.root
        return root.logits(i) if isinstance(root, Graph) else root.logits()

    def _of(self, values: Any, i: int) -> Any:
        """Return output i's of a tuple; what is no tuple is for all of them."""
        return values[i] if isinstance(values, tuple) else values


def _rows(batch: Batch) -> int:
    return len(batch.x[0] if isinstance(batch.x, tuple) else batch.x)
