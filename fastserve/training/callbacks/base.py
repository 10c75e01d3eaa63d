"""``Callback`` and what calls it, by Keras' names.

All ranks call all callbacks with the same logs, so a decision that follows from the
logs (``model.stop_training = True``) is the same on every rank. A callback that writes
or prints does so on rank 0: ``self.rank``. A callback may decide by what only its rank
knows, such as the time: ``stop_training`` on one rank stops all of them before the same
step; learning rates that differ between ranks are an error.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from fastserve.comm import world
from fastserve.core import Array
from fastserve.errors import ArgumentError

if TYPE_CHECKING:
    from fastserve.training.loop import Trainable

Logs = dict[str, float]
Function = Callable[..., Any]
_GREATER_IS_BETTER = ("acc", "auc", "AUC", "precision", "recall")


class Callback:
    """Base class; each method may be left out.

    ``logs`` holds the mean loss and metrics since the start of the epoch; at the end
    of an epoch also those of the validation data, with ``val_`` in front.

    Attributes:
        model: the model that is trained; set ``model.stop_training`` to end early.
        params: ``epochs``, ``steps`` (of an epoch; None: not known), ``samples``,
            ``verbose``, ``do_validation``.
    """

    model: Trainable
    params: dict[str, Any]

    @property
    def rank(self) -> int:
        """This process' number among the ranks; files are rank 0's to write."""
        return world().rank

    def set_model(self, model: Trainable) -> None:
        """Be told the model, before the first moment."""
        self.model = model

    def set_params(self, params: dict[str, Any]) -> None:
        """Be told ``params``, before the first moment."""
        self.params = params

    def get_state(self) -> Any:
        """Return what a backup needs for the callback to go on, as JSON types."""
        return {}

    def set_state(self, state: Any) -> None:
        """Let the next training start from what ``get_state`` returned."""

    def get_arrays(self) -> dict[str, Array]:
        """Return the arrays that a backup needs besides, the same on all ranks."""
        return {}

    def set_arrays(self, arrays: dict[str, Array]) -> None:
        """Let the next training start from what ``get_arrays`` returned."""

    def on_train_begin(self, logs: Logs | None = None) -> None:
        """Before the first epoch."""

    def on_train_end(self, logs: Logs | None = None) -> None:
        """After the last epoch; not after an error."""

    def on_epoch_begin(self, epoch: int, logs: Logs | None = None) -> None:
        """Before the first batch of an epoch, which is counted from 0."""

    def on_epoch_end(self, epoch: int, logs: Logs | None = None) -> None:
        """After an epoch and its validation."""

    def on_batch_begin(self, batch: int, logs: Logs | None = None) -> None:
        """Another name of ``on_train_batch_begin``."""

    def on_batch_end(self, batch: int, logs: Logs | None = None) -> None:
        """Another name of ``on_train_batch_end``."""

    def on_train_batch_begin(self, batch: int, logs: Logs | None = None) -> None:
        """Before a batch, which is counted from 0 in its epoch."""
        self.on_batch_begin(batch, logs)

    def on_train_batch_end(self, batch: int, logs: Logs | None = None) -> None:
        """After a batch; ``logs`` has the means of the epoch so far."""
        self.on_batch_end(batch, logs)

    def on_test_begin(self, logs: Logs | None = None) -> None:
        """Before a validation, and at the begin of ``evaluate``."""

    def on_test_end(self, logs: Logs | None = None) -> None:
        """After a validation, and at the end of ``evaluate``."""

    def on_test_batch_begin(self, batch: int, logs: Logs | None = None) -> None:
        """Before a batch of a validation or of ``evaluate``."""

    def on_test_batch_end(self, batch: int, logs: Logs | None = None) -> None:
        """After such a batch."""

    def on_predict_begin(self, logs: Logs | None = None) -> None:
        """Before the first batch of ``predict``."""

    def on_predict_end(self, logs: Logs | None = None) -> None:
        """After the last batch of ``predict``."""

    def on_predict_batch_begin(self, batch: int, logs: Logs | None = None) -> None:
        """Before a batch of ``predict``."""

    def on_predict_batch_end(self, batch: int, logs: Logs | None = None) -> None:
        """After a batch of ``predict``."""


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
                "'min' where less is better, 'max' where more is",
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


class LambdaCallback(Callback):
    """Calls the functions that it is given, by the moments' names; as Keras'.

    The moments are ``on_epoch_begin``, ``on_epoch_end``, ``on_train_begin``,
    ``on_train_end``, ``on_train_batch_begin``, ``on_train_batch_end`` and, among
    ``others``, all that ``Callback`` has. A function takes what the method takes:
    ``(epoch, logs)``, ``(batch, logs)`` or ``(logs)``.

    Raises ArgumentError for a name that isn't one of a moment.
    """

    def __init__(
        self,
        on_epoch_begin: Function | None = None,
        on_epoch_end: Function | None = None,
        on_train_begin: Function | None = None,
        on_train_end: Function | None = None,
        on_train_batch_begin: Function | None = None,
        on_train_batch_end: Function | None = None,
        **others: Function | None,
    ) -> None:
        given = {
            "on_epoch_begin": on_epoch_begin,
            "on_epoch_end": on_epoch_end,
            "on_train_begin": on_train_begin,
            "on_train_end": on_train_end,
            "on_train_batch_begin": on_train_batch_begin,
            "on_train_batch_end": on_train_batch_end,
            **others,
        }
        known = [name for name in vars(Callback) if name.startswith("on_")]
        for name, function in given.items():
            if name not in known:
                raise ArgumentError(
                    "LambdaCallback: expected names of moments",
                    repr(name),
                    f"known: {', '.join(known)}",
                )
            if function is not None:
                setattr(self, name, function)


class CallbackList:
    """Calls the same method of several callbacks, in order.

    Each is given the ``model`` and ``params`` (epochs, steps, verbose) first. Raises
    ArgumentError for what is no ``Callback``.
    """

    def __init__(
        self, callbacks: Sequence[Callback], model: Trainable, params: dict[str, Any]
    ) -> None:
        self.callbacks = list(callbacks)
        for callback in callbacks:
            if not isinstance(callback, Callback):
                raise ArgumentError(
                    "expected callbacks to be objects of Callback's subclasses",
                    repr(callback),
                    "for example fs.callbacks.EarlyStopping()",
                )
        for callback in callbacks:
            callback.set_model(model)
            callback.set_params(params)

    def __call__(self, moment: str, *arguments: Any) -> None:
        for callback in self.callbacks:
            getattr(callback, f"on_{moment}")(*arguments)

    def hears(self, *moments: str, foreign: bool = False) -> bool:
        """Return whether a callback has a method of its own for one of the moments;
        with ``foreign`` only those count that aren't this library's."""
        return any(
            _is_own(callback, f"on_{moment}", foreign)
            for callback in self.callbacks
            for moment in moments
        )


def _is_own(callback: Callback, name: str, foreign: bool) -> bool:
    method = getattr(callback, name)
    function = getattr(method, "__func__", method)
    if function is getattr(Callback, name):
        return False
    ours = str(getattr(function, "__module__", "")).startswith("fastserve.")
    return not (foreign and ours)
