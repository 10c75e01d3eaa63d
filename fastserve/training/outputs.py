"""``OutputsTrainer``: steps of a model with several outputs, or weighted losses.

The loss is Σ w_i L_i, where L_i is the mean of output i's losses over all its rows, as
without the others. Besides ``loss`` the logs have each L_i, without its weight.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastserve.core import Array, Layer, StepKey
from fastserve.data.sources import Batch
from fastserve.errors import ArgumentError, DataError
from fastserve.layers.graph import Graph
from fastserve.losses import Loss
from fastserve.metrics import Mean, Metric
from fastserve.training.masks import apply_mask
from fastserve.training.step import Trainer, _ignore


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

    Batches have tuples of targets, and None or tuples of weights.
    """

    def __init__(
        self, root: Layer, store: Any, outputs: Sequence[Output], *args: Any
    ) -> None:
        losses = root.fused_losses if isinstance(root, Graph) else (root.fused_loss,)
        for output, fusable in zip(outputs, losses, strict=True):
            loss = output.loss
            if loss is not None and loss.reduction == "sum":
                raise ArgumentError(
                    "expected mean losses for several outputs or loss_weights",
                    f"{loss.name} with reduction 'sum'",
                    "leave out reduction, and give the loss a larger weight",
                )
            if loss is not None and fusable and fusable == loss.fused_loss:
                output.loss, output.fused = loss.with_logits(), True
        self.outputs = list(outputs)
        self.several = len(self.outputs) > 1
        logged: list[tuple[str, Metric]] = []
        if self.several:
            logged = [(f"{o.name}_loss", o.mean) for o in outputs if o.loss is not None]
        for output in outputs:
            prefix = f"{output.name}_" if self.several else ""
            logged += [(f"{prefix}{m.name}", m) for m in output.metrics]
        self._names = [name for name, _ in logged]
        first = next(o.loss for o in outputs if o.loss is not None)
        optimizer, *rest = args
        super().__init__(root, store, first, optimizer, [m for _, m in logged], *rest)
        self._head = None

    def results(self, totals: Array | None = None) -> dict[str, float]:
        """Return mean loss, each output's loss, and metrics; see ``Trainer``."""
        totals = self.totals if totals is None else totals
        named = {"loss": float(totals[0] / totals[1]) if totals[1] else float("nan")}
        for name, (metric, part) in zip(self._names, self._states(totals), strict=True):
            metric.state[...] = part
            named[name] = metric.result()
        return named

    def _losses_per_row(self, time: int) -> int:
        return 1  # the sum has a part for each row of the batch

    def _forward_backward(
        self, batch: Batch, key: StepKey, scale: float, last: bool
    ) -> float:
        root = self.root
        done = self.sync.done if last else _ignore
        total, gradients = self._run(batch, key, scale, self._status)
        fused = [output.fused for output in self.outputs]
        if isinstance(root, Graph):
            root.backward_outputs(gradients, fused, done)
        elif fused[0]:
            root.backward_logits(gradients[0], done)
        else:
            root.backward(gradients[0], done)
        done(root)
        return total

    def _evaluate_part(self, part: Batch, status: Array, times: int) -> None:
        total, _ = self._run(part, False, None, status)
        status[0] += total * times
        status[1] += len(part.x[0] if isinstance(part.x, tuple) else part.x)

    def _run(
        self, batch: Batch, key: StepKey | bool, scale: float | None, status: Array
    ) -> tuple[float, list[Any]]:
        """Make forward and losses; return their sum over the rows, and the gradients
        times ``scale``, unless that is None."""
        if batch.masked:
            raise DataError(
                "expected batches without a mask for several outputs or loss_weights",
                "a source whose batches are masked",
                "use one output, or weights",
            )
        root = self.root
        found = root.forward(self._input(batch.x), key)
        ys = found if isinstance(found, tuple) else (found,)
        total, gradients = 0.0, []
        for metric, _ in self._states(status):
            metric.reset()
        for i, (output, y) in enumerate(zip(self.outputs, ys, strict=True)):
            target, gradient = self._of(batch.y, i), None
            if output.loss is not None:
                prediction = self._logits(i) if output.fused else y
                self._refuse_mask(output, self._of(root.output_mask(), i), prediction)
                if scale is not None:
                    gradient = root.scratch(prediction.shape)
                count = output.loss.count(prediction.shape)
                share = output.weight * len(prediction) / count
                loss = output.loss.sum_and_gradient(
                    target,
                    prediction,
                    self._of(batch.weights, i),
                    (scale or 1.0) * share,
                    gradient,
                )
                output.mean.add(loss, count, None)
                total += loss * share
            for metric in output.metrics:
                metric.update(target, y)
            gradients.append(gradient)
        for metric, part in self._states(status):
            part += metric.state
        return total, gradients

    def _refuse_mask(self, output: Output, mask: Any, prediction: Array) -> None:
        """Raise DataError if a mask leaves losses out: their number on all ranks isn't
        known before backward, and one for each output can't be put right after it."""
        if apply_mask(Batch(mask, mask, None), mask, prediction.shape)[1]:
            raise DataError(
                "expected outputs without masked positions, for several outputs or "
                "loss_weights",
                f"output {output.name} with a mask",
                "use one output, or take the mask away (mask_zero=False) and give "
                "sample_weight 0 to what doesn't count",
            )

    def _logits(self, i: int) -> Array:
        root = self.root
        return root.logits(i) if isinstance(root, Graph) else root.logits()

    def _of(self, values: Any, i: int) -> Any:
        """Return output i's of a tuple; what is no tuple is for all of them."""
        return values[i] if isinstance(values, tuple) else values
