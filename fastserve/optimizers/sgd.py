"""Gradient descent, with momentum and Nesterov's look ahead, and Lion."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastserve.core import Array
from fastserve.optimizers.base import LearningRate, Optimizer

# the smallest number that isn't 0, times this, and again, is above any learning rate
_LARGE = {
    dtype.char: dtype.type(2.0 ** int(0.8 * np.finfo(dtype).maxexp))
    for dtype in (np.dtype(np.float32), np.dtype(np.float64))
}


class SGD(Optimizer):
    """Gradient descent: values -= lr * g; with momentum, or Nesterov's variant.

    m = momentum * m - lr * g, then values += m, or, if ``nesterov``,
    values += momentum * m - lr * g.
    """

    name = "sgd"

    def __init__(
        self,
        learning_rate: LearningRate = 0.01,
        momentum: float = 0.0,
        nesterov: bool = False,
        weight_decay: float | None = None,
        **options: Any,
    ) -> None:
        super().__init__(learning_rate, weight_decay, **options)
        self._check_fraction(momentum=momentum)
        self.momentum, self.nesterov = momentum, nesterov
        self.slots = ("m",) if momentum else ()

    def constants(self, lr: float, scale: float) -> tuple[float, ...]:
        return lr * scale, self.momentum

    def apply(
        self, k: tuple[Any, ...], p: Array, g: Array, t: Array, u: Array, *slots: Array
    ) -> None:
        rate, momentum = k
        np.multiply(g, rate, out=t)
        if not slots:
            np.subtract(p, t, out=p)
            return
        (m,) = slots
        np.multiply(m, momentum, out=m)
        np.subtract(m, t, out=m)
        if self.nesterov:
            np.multiply(m, momentum, out=u)
            np.subtract(u, t, out=u)
            np.add(p, u, out=p)
        else:
            np.add(p, m, out=p)


class Lion(Optimizer):
    """Steps of the length lr, whatever the gradient (Chen et al., 2023).

    values -= lr * sign(beta_1 * m + (1 - beta_1) * g), then
    m = beta_2 * m + (1 - beta_2) * g.
    """

    name = "lion"
    slots = ("m",)

    def __init__(
        self,
        learning_rate: LearningRate = 0.001,
        beta_1: float = 0.9,
        beta_2: float = 0.99,
        weight_decay: float | None = None,
        **options: Any,
    ) -> None:
        super().__init__(learning_rate, weight_decay, **options)
        self._check_fraction(beta_1=beta_1, beta_2=beta_2)
        # with 0 it would be the gradient's sign alone
        self._check("beta_1", beta_1, beta_1 > 0, "a beta_1 above 0")
        self.beta_1, self.beta_2 = beta_1, beta_2

    def constants(self, lr: float, scale: float) -> tuple[float, ...]:
        rest_1, rest_2 = (1 - self.beta_1) * scale, (1 - self.beta_2) * scale
        return lr, self.beta_1, rest_1, self.beta_2, rest_2

    def apply(
        self, k: tuple[Any, ...], p: Array, g: Array, t: Array, u: Array, *slots: Array
    ) -> None:
        lr, beta_1, rest_1, beta_2, rest_2 = k
        (m,) = slots
        np.multiply(m, beta_1, out=t)
        np.multiply(g, rest_1, out=u)
        np.add(t, u, out=t)
        # lr * sign(t): NumPy's sign takes four times as long for numbers of any order
        large = _LARGE[p.dtype.char]
        np.multiply(t, large, out=t)
        np.multiply(t, large, out=t)
        np.clip(t, -lr, lr, out=t)
        np.subtract(p, t, out=p)
        np.multiply(m, beta_2, out=m)
        np.multiply(g, rest_2, out=u)
        np.add(m, u, out=m)
