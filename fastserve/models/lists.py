"""What a model has, as lists by Keras' names."""

from __future__ import annotations

from typing import Any

from fastserve.core import Layer
from fastserve.core.weights import Weighted
from fastserve.training.step import Trainer


class Lists(Weighted):
    """The part of ``Model`` that only looks."""

    root: Layer
    trainer: Trainer | None

    @property
    def input_shape(self) -> Any:
        """Shape of one sample, without the batch; None before it is known."""
        return self.root.input_shape

    @property
    def metrics_names(self) -> list[str]:
        """Names of what ``train_on_batch`` returns; the metrics' after a first step."""
        named = [] if self.trainer is None else [m.name for m in self.trainer.metrics]
        return ["loss", *named]

    def reset_metrics(self) -> None:
        """Start the means of loss and metrics anew."""
        if self.trainer is not None:
            self.trainer.reset_totals()
