"""What a model has, as lists by Keras' names."""

from __future__ import annotations

from typing import Any

from fastserve.core import Layer, Parameter
from fastserve.training.step import Trainer


class Lists:
    """The part of ``Model`` that only looks."""

    root: Layer
    trainer: Trainer | None

    def _in_order(self) -> list[Parameter]:
        raise NotImplementedError(f"{type(self).__name__}._in_order")

    @property
    def weights(self) -> list[Parameter]:
        """All parameters in order of execution; their arrays are ``value``."""
        return self._in_order()

    @property
    def trainable_weights(self) -> list[Parameter]:
        return [p for p in self._in_order() if p.trainable]

    @property
    def non_trainable_weights(self) -> list[Parameter]:
        """Those that are frozen, and those that layers change themselves."""
        return [p for p in self._in_order() if not p.trainable]

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
