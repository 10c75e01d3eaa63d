"""Callbacks that change the learning rate."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from fastserve.errors import ArgumentError, StateError
from fastserve.schedules import Adjustable
from fastserve.training.callbacks.base import Callback, Logs, Monitor

if TYPE_CHECKING:
    from fastserve.training.loop import Trainable


def constant_rate(model: Trainable, who: str) -> float:
    """Return the optimizer's learning rate, if it can be set.

    Raises StateError if it has a schedule, or none is known: it can't be set then.
    """
    rate = None if model.optimizer is None else model.optimizer.learning_rate
    if isinstance(rate, Adjustable):
        return rate.rate
    if rate is None or callable(rate):
        raise StateError(
            f"{who}: expected an optimizer with a number as learning rate",
            f"{rate}",
            "compile with a number, or leave the schedule alone to change it",
        )
    return rate


def set_rate(model: Trainable, rate: float) -> None:
    assert model.optimizer is not None
    if isinstance(model.optimizer.learning_rate, Adjustable):
        model.optimizer.learning_rate.rate = rate
    else:
        model.optimizer.learning_rate = rate


class LearningRateScheduler(Callback):
    """Sets the learning rate at the start of each epoch; as Keras'.

    At the end of an epoch ``learning_rate`` is in the logs.

    Args:
        schedule: ``schedule(epoch, rate)`` or ``schedule(epoch)`` returns the rate of
            the epoch, which counts from 0.
        verbose: 1 prints the rate.
    """

    def __init__(self, schedule: Callable[..., float], verbose: int = 0) -> None:
        if not callable(schedule):
            raise ArgumentError(
                "LearningRateScheduler: expected a function of (epoch, rate)",
                repr(schedule),
                "give a function; for a whole schedule by steps see fs.schedules",
            )
        self.schedule, self.verbose = schedule, verbose

    def on_epoch_begin(self, epoch: int, logs: Logs | None = None) -> None:
        before = constant_rate(self.model, "LearningRateScheduler")
        try:
            rate = self.schedule(epoch, before)
        except TypeError:  # a function of the epoch alone
            rate = self.schedule(epoch)
        if not isinstance(rate, (float, np.floating)) or not 0 < rate < math.inf:
            raise ArgumentError(
                "LearningRateScheduler: expected the schedule to return a number "
                "above 0",
                f"{rate!r} for epoch {epoch}",
                "correct the function",
            )
        set_rate(self.model, float(rate))
        if self.verbose and self.rank == 0:
            print(f"epoch {epoch + 1}: learning rate {rate:g}", flush=True)

    def on_epoch_end(self, epoch: int, logs: Logs | None = None) -> None:
        if logs is not None and self.model.optimizer is not None:
            logs["learning_rate"] = self.model.optimizer.current_lr()


class ReduceLROnPlateau(Monitor):
    """Lowers the learning rate when a value has stopped to improve; as Keras'.

    ``learning_rate`` is in the logs, that of the epoch that has ended.

    Args:
        monitor, mode, min_delta: see ``Monitor``.
        factor: the new rate is the old one times this.
        patience: epochs without an improvement after which the rate is lowered.
        verbose: 1 prints each change.
        cooldown: epochs after a change in which none are counted.
        min_lr: the rate is never lowered below.

    Raises StateError in ``fit`` if the optimizer has a schedule.
    """

    def __init__(
        self,
        monitor: str = "val_loss",
        factor: float = 0.1,
        patience: int = 10,
        verbose: int = 0,
        mode: str = "auto",
        min_delta: float = 1e-4,
        cooldown: int = 0,
        min_lr: float = 0.0,
    ) -> None:
        super().__init__(monitor, mode, min_delta)
        for name, value, fits, wanted in (
            ("factor", factor, 0 < factor < 1, "between 0 and 1"),
            ("patience", patience, patience >= 0, "of 0 or more"),
            ("cooldown", cooldown, cooldown >= 0, "of 0 or more"),
            ("min_lr", min_lr, min_lr >= 0, "of 0 or more"),
        ):
            if not fits:
                raise ArgumentError(
                    f"ReduceLROnPlateau: expected a {name} {wanted}", f"{value}"
                )
        self.factor, self.patience, self.verbose = factor, patience, verbose
        self.cooldown, self.min_lr = cooldown, min_lr
        self.say: Callable[[str], None] = partial(print, flush=True)
        self._resumed: dict[str, Any] = {}
        self._forget()

    def _forget(self) -> None:
        self.best: float | None = None
        self.wait = self.cooldown_counter = 0

    def on_train_begin(self, logs: Logs | None = None) -> None:
        super().on_train_begin(logs)
        self._rate = constant_rate(self.model, "ReduceLROnPlateau")
        self._forget()
        for name, value in self._resumed.items():
            setattr(self, name, value)
        self._resumed = {}
        set_rate(self.model, self._rate)

    def on_epoch_end(self, epoch: int, logs: Logs | None = None) -> None:
        logs = {} if logs is None else logs
        rate = constant_rate(self.model, "ReduceLROnPlateau")
        self._rate = logs["learning_rate"] = rate
        value = self.current(logs)
        if value is None:
            return
        if self.cooldown_counter > 0:
            self.cooldown_counter -= 1
            self.wait = 0
        if self.improves(value, self.best):
            self.best, self.wait = value, 0
        elif self.cooldown_counter == 0:
            self.wait += 1
            if self.wait >= self.patience and rate > self.min_lr:
                self._reduce(epoch, rate)

    def _reduce(self, epoch: int, rate: float) -> None:
        rate = max(rate * self.factor, self.min_lr)
        self._rate = rate
        set_rate(self.model, rate)
        self.cooldown_counter, self.wait = self.cooldown, 0
        if self.verbose and self.rank == 0:
            self.say(f"epoch {epoch + 1}: learning rate reduced to {rate:g}")

    def get_state(self) -> dict[str, Any]:
        """Return what a backup needs to go on, as JSON types."""
        names = ("best", "wait", "cooldown_counter", "_rate")
        return {name: getattr(self, name) for name in names}

    def set_state(self, state: dict[str, Any]) -> None:
        """Let the next training start from what ``get_state`` returned."""
        self._resumed = dict(state)
