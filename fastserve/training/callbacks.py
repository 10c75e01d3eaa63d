"""Callbacks: what ``fit`` tells others at each moment, by Keras' names.

All ranks call all callbacks with the same logs, so a decision that follows from the
logs (``model.stop_training = True``) is the same on every rank. A callback that writes
or prints does so on rank 0: ``self.rank``.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastserve.comm import world
from fastserve.errors import ArgumentError

if TYPE_CHECKING:
    from fastserve.training.loop import Trainable

Logs = dict[str, float]
_GREATER_IS_BETTER = ("acc", "auc", "AUC", "precision", "recall")


class Callback:
    """Base class; each method may be left out.

    ``logs`` holds the mean loss and metrics since the start of the epoch; at the end
    of an epoch also those of the validation data, with ``val_`` in front.

    Attributes:
        model: the model that is trained; set ``model.stop_training`` to end early.
        params: ``epochs``, ``steps`` (of an epoch), ``samples``, ``verbose``,
            ``do_validation``.
    """

    model: Trainable
    params: dict[str, Any]

    @property
    def rank(self) -> int:
        return world().rank

    def set_model(self, model: Trainable) -> None:
        self.model = model

    def set_params(self, params: dict[str, Any]) -> None:
        self.params = params

    def on_train_begin(self, logs: Logs | None = None) -> None: ...

    def on_train_end(self, logs: Logs | None = None) -> None: ...

    def on_epoch_begin(self, epoch: int, logs: Logs | None = None) -> None: ...

    def on_epoch_end(self, epoch: int, logs: Logs | None = None) -> None: ...

    def on_train_batch_begin(self, batch: int, logs: Logs | None = None) -> None: ...

    def on_train_batch_end(self, batch: int, logs: Logs | None = None) -> None: ...


class History(Callback):
    """Collects the logs of each epoch; ``fit`` returns it.

    Attributes:
        history: name -> list of values, one an epoch. epoch: list of their numbers.
    """

    def __init__(self) -> None:
        self.history: dict[str, list[float]] = {}
        self.epoch: list[int] = []

    def on_epoch_end(self, epoch: int, logs: Logs | None = None) -> None:
        self.epoch.append(epoch)
        for name, value in (logs or {}).items():
            self.history.setdefault(name, []).append(value)


class Monitor(Callback):
    """Looks at one of the values in the logs of an epoch.

    Args:
        monitor: name of the value.
        mode: 'min' or 'max', which is better; 'auto' is max for accuracy, AUC,
            precision and recall.
        min_delta: a value must be better by more than this to be an improvement.
    """

    def __init__(self, monitor: str, mode: str = "auto", min_delta: float = 0) -> None:
        if mode not in ("auto", "min", "max"):
            raise ArgumentError(
                f"{type(self).__name__}: expected mode 'auto', 'min' or 'max'",
                repr(mode),
            )
        if mode == "auto":
            greater = any(part in monitor for part in _GREATER_IS_BETTER)
            mode = "max" if greater else "min"
        self.monitor, self.mode, self.min_delta = monitor, mode, abs(min_delta)

    def on_train_begin(self, logs: Logs | None = None) -> None:
        """Raise ArgumentError if there is no validation to take the value from."""
        if self.monitor.startswith("val_") and not self.params["do_validation"]:
            raise ArgumentError(
                f"{type(self).__name__}: expected validation data for {self.monitor}",
                "a training without any",
                "give fit validation_data or validation_split, or monitor 'loss'",
            )

    def current(self, logs: Logs | None) -> float | None:
        """Return the value; None after an epoch without validation.

        Raises ArgumentError if there is no value of this name.
        """
        logs = logs or {}
        if self.monitor in logs:
            return logs[self.monitor]
        validated = any(name.startswith("val_") for name in logs)
        if self.monitor.startswith("val_") and not validated:
            return None
        raise ArgumentError(
            f"{type(self).__name__}: expected the name of a value that is measured",
            repr(self.monitor),
            f"monitor one of {', '.join(sorted(logs))}, or add a metric in compile",
        )

    def improves(self, value: float, best: float | None) -> bool:
        """Return whether ``value`` is better than ``best``; None is the worst."""
        if not math.isfinite(value):
            return False
        if best is None:
            return True
        gain = best - value if self.mode == "min" else value - best
        return gain > self.min_delta


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
        self._resumed = {}
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
            self._weights = trainer.store.values.copy()

    def on_train_end(self, logs: Logs | None = None) -> None:
        trainer = self.model.trainer
        if self._weights is not None and trainer is not None:
            trainer.store.values[...] = self._weights
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


class ModelCheckpoint(Monitor):
    """Saves the model at the end of each epoch, or of the best ones; as Keras'.

    A file is replaced only once the new one is complete. Rank 0 writes.

    Args:
        filepath: may hold ``{epoch}``, ``{batch}`` and names of the logs, for example
            ``runs/{epoch:02d}-{val_loss:.2f}.safetensors``; epochs count from 1.
        monitor, mode: see ``Monitor``; for ``save_best_only``.
        verbose: 1 prints each save.
        save_best_only: save only what is better than all before.
        save_weights_only: leave out the architecture, which ``load_model`` needs.
        save_freq: 'epoch', or a number of batches.
        initial_value_threshold: value that the first one saved must be better than.
    """

    def __init__(
        self,
        filepath: str | Path,
        monitor: str = "val_loss",
        verbose: int = 0,
        save_best_only: bool = False,
        save_weights_only: bool = False,
        mode: str = "auto",
        save_freq: str | int = "epoch",
        initial_value_threshold: float | None = None,
    ) -> None:
        super().__init__(monitor, mode)
        if save_freq != "epoch" and not (isinstance(save_freq, int) and save_freq > 0):
            raise ArgumentError(
                "ModelCheckpoint: expected save_freq 'epoch' or a number of batches",
                repr(save_freq),
            )
        self.filepath, self.verbose = str(filepath), verbose
        self.save_best_only = save_best_only
        self.save_weights_only = save_weights_only
        self.save_freq, self.best = save_freq, initial_value_threshold

    def on_train_begin(self, logs: Logs | None = None) -> None:
        if self.save_best_only:
            super().on_train_begin(logs)
        self._epoch = self._batches = 0

    def on_epoch_begin(self, epoch: int, logs: Logs | None = None) -> None:
        self._epoch = epoch

    def on_train_batch_end(self, batch: int, logs: Logs | None = None) -> None:
        self._batches += 1
        if self.save_freq != "epoch" and self._batches % int(self.save_freq) == 0:
            self._save(batch, logs)

    def on_epoch_end(self, epoch: int, logs: Logs | None = None) -> None:
        if self.save_freq == "epoch":
            self._save(None, logs)

    def _save(self, batch: int | None, logs: Logs | None) -> None:
        if self.save_best_only:
            value = self.current(logs)
            if value is None or not self.improves(value, self.best):
                return
            self.best = value
        path = self._path(batch, logs or {})
        if self.save_weights_only:
            self.model.save_weights(path)
        else:
            self.model.save(path)
        if self.verbose and self.rank == 0:
            print(f"epoch {self._epoch + 1}: saved {path}", flush=True)

    def _path(self, batch: int | None, logs: Logs) -> str:
        known = {"epoch": self._epoch + 1, **logs}
        if batch is not None:
            known["batch"] = batch + 1
        try:
            return self.filepath.format(**known)
        except (KeyError, IndexError, ValueError) as error:
            raise ArgumentError(
                "ModelCheckpoint: expected a filepath with names of values, such as "
                "'{epoch:02d}-{val_loss:.2f}.safetensors'",
                f"{self.filepath!r}: {error}",
                f"known: {', '.join(sorted(known))}",
            ) from None


class CallbackList:
    """Calls the same method of several callbacks, in order."""

    def __init__(
        self, callbacks: list[Callback], model: Trainable, params: dict[str, Any]
    ) -> None:
        self.callbacks = callbacks
        for callback in callbacks:
            callback.set_model(model)
            callback.set_params(params)

    def __call__(self, moment: str, *arguments: Any) -> None:
        for callback in self.callbacks:
            getattr(callback, f"on_{moment}")(*arguments)
