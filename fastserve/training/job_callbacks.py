"""When a job saves, which of its checkpoints it keeps, and where it stops early."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

from fastserve.errors import CheckpointError
from fastserve.training import checkpoint
from fastserve.training.callbacks import Callback, Logs, Monitor
from fastserve.training.saver import Saver
from fastserve.training.step import Trainer


class StopAfter(Callback):
    """Ends the training after the step of this number, as a signal would."""

    def __init__(self, trainer: Trainer, step: int) -> None:
        self._trainer, self._last = trainer, step

    def on_train_begin(self, logs: Logs | None = None) -> None:
        self.step = self.params["first_step"]

    def on_train_batch_begin(self, batch: int, logs: Logs | None = None) -> None:
        self.step += 1
        if self.step >= self._last:
            self._trainer.stop_requested = True


class Checkpoints(Callback):
    """Saves every ``every`` steps, and at the end or when the training is stopped.

    Where a validation comes after a step it is part of what is saved, so that a
    resumed run needn't make it again.

    Args:
        state: returns what to save besides weights and optimizer, as JSON types.
    """

    def __init__(
        self,
        saver: Saver,
        every: int | None,
        keep: int,
        at_end: bool,
        state: Callable[[], dict[str, Any]],
    ) -> None:
        self._saver, self.every, self.keep = saver, every, keep
        self.at_end, self.state = at_end, state
        self.saved: int | None = None

    def on_train_begin(self, logs: Logs | None = None) -> None:
        self.step = self.params["first_step"]

    def on_train_batch_end(self, batch: int, logs: Logs | None = None) -> None:
        self.step += 1
        self._saver.check()
        ends = self.step == self.params["total_steps"]
        if not ends and self.step % self.params["steps"]:
            self._save_if_due()

    def on_epoch_end(self, epoch: int, logs: Logs | None = None) -> None:
        self._save_if_due()

    def _save_if_due(self) -> None:
        if self.every and self.step % self.every == 0:
            self._save()

    def on_train_end(self, logs: Logs | None = None) -> None:
        ended = self.step >= self.params["total_steps"]
        if self.saved != self.step and (self.at_end or not ended):
            self._save()
        self._saver.finish()

    def _save(self) -> None:
        self.saved = self.step
        self._saver.save(self.step, self.state(), self.keep)


class BestCheckpoint(Monitor):
    """Keeps the checkpoint with the lowest validation loss, apart from the others.

    The loss to beat is the one of the checkpoint that is there, so a resumed run goes
    on with it.
    """

    def __init__(self, saver: Saver, state: Callable[[], dict[str, Any]]) -> None:
        super().__init__("val_loss")
        self._saver, self.state = saver, state
        self.best: float | None = None
        self.step: int | None = None  # where it is from

    def on_train_begin(self, logs: Logs | None = None) -> None:
        super().on_train_begin(logs)
        trainer = self.model.trainer
        if trainer is None:
            return
        found = None
        if self.rank == 0:
            with suppress(CheckpointError):
                found = checkpoint.read_state(
                    checkpoint.find(self._saver.folder, "best")
                )
        self.best, self.step = trainer.comm.broadcast_obj(
            (found.get("val_loss"), found["step"]) if found else (None, None)
        )

    def on_epoch_end(self, epoch: int, logs: Logs | None = None) -> None:
        value, trainer = self.current(logs), self.model.trainer
        if value is None or trainer is None or not self.improves(value, self.best):
            return
        total = self.params["total_steps"]
        step = min((epoch + 1) * self.params["steps"], total)
        self.best, self.step = value, step
        self._saver.save(step, {**self.state(), "val_loss": value}, None)
