"""Callbacks: what ``fit`` tells others at each moment, by Keras' names.

All ranks call all callbacks with the same logs, so a decision that follows from the
logs (``model.stop_training = True``) is the same on every rank. A callback that writes
or prints does so on rank 0: ``self.rank``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastserve.comm import world

if TYPE_CHECKING:
    from fastserve.training.loop import Trainable

Logs = dict[str, float]


class Callback:
    """Base class; each method may be left out.

    ``logs`` holds the mean loss and metrics since the start of the epoch; at the end
    of an epoch also those of the validation data, with ``val_`` in front.

    Attributes:
        model: the model that is trained; set ``model.stop_training`` to end early.
        params: ``epochs``, ``steps`` (of an epoch), ``samples``, ``verbose``.
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
