"""Callbacks that end the training: when it stops to improve, and when it breaks."""

from __future__ import annotations

import math
from typing import Any

from fastserve.core import Array
from fastserve.errors import ArgumentError
from fastserve.training.callbacks.base import Callback, Logs, Monitor


class EarlyStopping(Monitor):
    """Ends the training when a value has stopped to improve; as Keras'.

    Args:
        monitor, min_delta, mode: see ``Monitor``.
        patience: epochs (in a job: evaluations) without an improvement, after which
            the training ends.
        verbose: 1 prints when it ends.
        baseline: value that must be reached for patience to start again.
        restore_best_weights: at the end, set the weights of the best epoch.
        start_from_epoch: epochs that aren't looked at.

    Attributes:
        stopped_epoch: number of the epoch that ended the training, from 0; 0: none.
        best, best_epoch: the best value and where it was. wait: epochs since then.
    """

    def __init__(
        self,
        monitor: str = "val_loss",
        min_delta: float = 0,
        patience: int = 0,
        verbose: int = 0,
        mode: str = "auto",
        baseline: float | None = None,
        restore_best_weights: bool = False,
        start_from_epoch: int = 0,
    ) -> None:
        super().__init__(monitor, mode, min_delta)
        if patience < 0:
            raise ArgumentError(
                "EarlyStopping: expected a patience of 0 or more", f"{patience}"
            )
        self.patience, self.verbose, self.baseline = patience, verbose, baseline
        self.restore_best_weights = restore_best_weights
        self.start_from_epoch = start_from_epoch
        self._resumed: dict[str, Any] = {}
        self._resumed_weights: Any = None
        self._forget()

    def _forget(self) -> None:
        self.best: float | None = None
        self.best_epoch = self.wait = self.stopped_epoch = 0
        self._weights: Any = None

    def on_train_begin(self, logs: Logs | None = None) -> None:
        super().on_train_begin(logs)
        self._forget()
        for name, value in self._resumed.items():
            setattr(self, name, value)
        self._weights = self._resumed_weights
        self._resumed, self._resumed_weights = {}, None
        if self.stopped_epoch and self.wait >= self.patience:
            self.model.stop_training = True  # it had ended before it was resumed
        else:
            self.stopped_epoch = 0

    def on_epoch_end(self, epoch: int, logs: Logs | None = None) -> None:
        value = self.current(logs)
        if value is None or epoch < self.start_from_epoch:
            return
        self.wait += 1
        if self.improves(value, self.best):
            self.best, self.best_epoch = value, epoch
            self._keep_weights()
            if self.baseline is None or self.improves(value, self.baseline):
                self.wait = 0
        elif self.wait >= self.patience and epoch > 0:
            self.stopped_epoch = epoch
            self.model.stop_training = True

    def _keep_weights(self) -> None:
        trainer = self.model.trainer
        if self.restore_best_weights and trainer is not None:
            store = trainer.store
            self._weights = store.values.copy(), store.moving.copy()

    def on_train_end(self, logs: Logs | None = None) -> None:
        trainer = self.model.trainer
        if self._weights is not None and trainer is not None:
            trainer.store.values[...], trainer.store.moving[...] = self._weights
            self._weights = None
        if self.stopped_epoch and self.verbose and self.rank == 0:
            print(f"epoch {self.stopped_epoch + 1}: early stopping", flush=True)

    def get_state(self) -> dict[str, Any]:
        """Return what a checkpoint needs to go on, as JSON types."""
        names = ("best", "best_epoch", "wait", "stopped_epoch")
        return {name: getattr(self, name) for name in names}

    def set_state(self, state: dict[str, Any]) -> None:
        """Let the next training start from what ``get_state`` returned."""
        self._resumed = dict(state)

    def get_arrays(self) -> dict[str, Array]:
        """Return the weights of the best epoch, if they are kept."""
        names = ("values", "moving")
        return dict(zip(names, self._weights or (), strict=False))

    def set_arrays(self, arrays: dict[str, Array]) -> None:
        """Let the next training start from what ``get_arrays`` returned."""
        self._resumed_weights = arrays["values"], arrays["moving"]


class TerminateOnNaN(Callback):
    """Ends the training when a step's loss is NaN or infinite; as Keras'.

    Without it such a step raises NonFiniteError, which says where the first value that
    isn't finite arose. In both cases the weights are those before the step.

    Args:
        raise_error: let that error be raised all the same.
    """

    def __init__(self, raise_error: bool = False) -> None:
        self.forgives = not raise_error

    def on_train_batch_end(self, batch: int, logs: Logs | None = None) -> None:
        if not math.isfinite((logs or {}).get("loss", 0.0)):
            if self.rank == 0:
                print(f"batch {batch}: invalid loss, training ends", flush=True)
            self.model.stop_training = True
