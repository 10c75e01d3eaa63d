"""Optimizers, with Keras' names, arguments and formulas.

In the formulas g is the gradient, t the number of this update, from 1 on. Arguments
that all of them have:

- ``learning_rate``: a number above 0, or a schedule of ``fs.schedules``.
- ``weight_decay``: see below; None or 0: none.
- ``options``: those of ``Optimizer``: clipping, a moving average of the weights.

Numbers out of range raise ArgumentError.

What Keras does otherwise than PyTorch, and is done here as in Keras:

- ``weight_decay`` is decoupled for all of them: values *= 1 - lr * weight_decay, before
  the update. Only parameters with ``decay`` (matrices) are decayed.
- SGD's velocity contains the learning rate: m = momentum * m - lr * g.
- Adam's epsilon is added after the bias correction was moved out of the root:
  lr * sqrt(1 - beta_2^t) / (1 - beta_1^t) * m / (sqrt(v) + epsilon). PyTorch's eps is
  this epsilon / sqrt(1 - beta_2^t).
- RMSprop's and Adagrad's epsilon is inside of the root: lr * g / sqrt(v + epsilon).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastserve import schedules
from fastserve.errors import ArgumentError, UnknownNameError
from fastserve.optimizers.adam import Adam, Adamax, AdamW, Nadam
from fastserve.optimizers.base import LearningRate, Optimizer, global_norm, quick_norm
from fastserve.optimizers.ftrl import Ftrl
from fastserve.optimizers.lamb import Lamb
from fastserve.optimizers.rmsprop import Adadelta, Adagrad, RMSprop
from fastserve.optimizers.sgd import SGD, Lion

LAMB = Lamb

__all__ = [
    "LAMB",
    "SGD",
    "Adadelta",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "Ftrl",
    "Lamb",
    "LearningRate",
    "Lion",
    "Nadam",
    "Optimizer",
    "RMSprop",
    "get",
    "global_norm",
    "quick_norm",
    "schedules",
]

NAMED: dict[str, Callable[..., Optimizer]] = {
    cls.name: cls
    for cls in (
        SGD,
        RMSprop,
        Adam,
        AdamW,
        Adadelta,
        Adagrad,
        Adamax,
        Ftrl,
        Lamb,
        Lion,
        Nadam,
    )
}


def get(optimizer: str | Optimizer | Callable[..., Optimizer]) -> Optimizer:
    """Return an optimizer by Keras' name, in any case, or from its class.

    Raises UnknownNameError for other names, ArgumentError for other objects.
    """
    if isinstance(optimizer, Optimizer):
        return optimizer
    if isinstance(optimizer, str):
        if optimizer.lower() not in NAMED:
            raise UnknownNameError("optimizer", optimizer, NAMED)
        return NAMED[optimizer.lower()]()
    if isinstance(optimizer, type) and issubclass(optimizer, Optimizer):
        make: Any = optimizer
        made: Optimizer = make()
        return made
    raise ArgumentError(
        "expected an optimizer's name or an Optimizer",
        repr(optimizer),
        "for example optimizer='adam'",
    )
