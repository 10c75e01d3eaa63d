"""Steps divided by the root of squared gradients: RMSprop, Adagrad, Adadelta."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from fastserve.core import Array
from fastserve.optimizers.base import LearningRate, Optimizer, approach


class RMSprop(Optimizer):
    """Steps divided by the root of a moving mean of squared gradients.

    v = rho * v + (1 - rho) * g²; if ``centered``, the square of a = rho * a +
    (1 - rho) * g is taken from v, and not less than 0 is left. The step is
    lr * g / sqrt(v + epsilon); with momentum, m = momentum * m + step is used instead.
    """

    name = "rmsprop"

    def __init__(
        self,
        learning_rate: LearningRate = 0.001,
        rho: float = 0.9,
        momentum: float = 0.0,
        epsilon: float = 1e-7,
        centered: bool = False,
        weight_decay: float | None = None,
        **options: Any,
    ) -> None:
        super().__init__(learning_rate, weight_decay, **options)
        self._check_fraction(rho=rho, momentum=momentum)
        self._check("epsilon", epsilon, 0 <= epsilon < math.inf)
        self.rho, self.momentum, self.epsilon = rho, momentum, epsilon
        self.centered = centered
        self.slots = ("v", *(["a"] if centered else []), *(["m"] if momentum else []))

    def constants(self, lr: float, scale: float) -> tuple[float, ...]:
        return scale, 1 - self.rho, lr, self.momentum, self.epsilon, 0.0

    def apply(
        self, k: tuple[Any, ...], p: Array, g: Array, t: Array, u: Array, *slots: Array
    ) -> None:
        scale, rest, lr, momentum, epsilon, zero = k
        v = slots[0]
        np.multiply(g, scale, out=t)
        np.multiply(t, t, out=u)
        approach(v, u, rest)
        if self.centered:
            a = slots[1]
            np.copyto(u, t)
            approach(a, u, rest)
            np.multiply(a, a, out=u)
            np.subtract(v, u, out=u)
            np.maximum(u, zero, out=u)
            np.add(u, epsilon, out=u)
        else:
            np.add(v, epsilon, out=u)
        np.sqrt(u, out=u)
        np.multiply(t, lr, out=t)
        np.divide(t, u, out=t)
        if self.momentum:
            m = slots[-1]
            np.multiply(m, momentum, out=m)
            t = np.add(m, t, out=m)
        np.subtract(p, t, out=p)


class Adagrad(Optimizer):
    """Steps divided by the root of all squared gradients so far (Duchi et al., 2011).

    v += g², from ``initial_accumulator_value`` on; values -= lr * g / sqrt(v + epsilon)
    """

    name = "adagrad"
    slots = ("v",)

    def __init__(
        self,
        learning_rate: LearningRate = 0.001,
        initial_accumulator_value: float = 0.1,
        epsilon: float = 1e-7,
        weight_decay: float | None = None,
        **options: Any,
    ) -> None:
        super().__init__(learning_rate, weight_decay, **options)
        first = initial_accumulator_value
        self._check("initial_accumulator_value", first, 0 <= first < math.inf)
        self._check("epsilon", epsilon, 0 <= epsilon < math.inf)
        self.initial_accumulator_value, self.epsilon = first, epsilon
        self.initial = {"v": first}

    def constants(self, lr: float, scale: float) -> tuple[float, ...]:
        return scale, lr, self.epsilon

    def apply(
        self, k: tuple[Any, ...], p: Array, g: Array, t: Array, u: Array, *slots: Array
    ) -> None:
        scale, lr, epsilon = k
        (v,) = slots
        np.multiply(g, scale, out=t)
        np.multiply(t, t, out=u)
        np.add(v, u, out=v)
        np.add(v, epsilon, out=u)
        np.sqrt(u, out=u)
        np.multiply(t, lr, out=t)
        np.divide(t, u, out=t)
        np.subtract(p, t, out=p)


class Adadelta(Optimizer):
    """Steps of the size that past steps had (Zeiler, 2012).

    v = rho * v + (1 - rho) * g²; d = g * sqrt(s + epsilon) / sqrt(v + epsilon);
    s = rho * s + (1 - rho) * d²; values -= lr * d.
    """

    name = "adadelta"
    slots = ("v", "s")

    def __init__(
        self,
        learning_rate: LearningRate = 0.001,
        rho: float = 0.95,
        epsilon: float = 1e-7,
        weight_decay: float | None = None,
        **options: Any,
    ) -> None:
        super().__init__(learning_rate, weight_decay, **options)
        self._check_fraction(rho=rho)
        self._check("epsilon", epsilon, 0 <= epsilon < math.inf)
        self.rho, self.epsilon = rho, epsilon

    def constants(self, lr: float, scale: float) -> tuple[float, ...]:
        return scale, 1 - self.rho, lr, self.epsilon

    def apply(
        self, k: tuple[Any, ...], p: Array, g: Array, t: Array, u: Array, *slots: Array
    ) -> None:
        scale, rest, lr, epsilon = k
        v, s = slots
        np.multiply(g, scale, out=t)
        np.multiply(t, t, out=u)
        approach(v, u, rest)
        np.add(s, epsilon, out=u)
        np.sqrt(u, out=u)
        np.multiply(t, u, out=t)
        np.add(v, epsilon, out=u)
        np.sqrt(u, out=u)
        np.divide(t, u, out=t)
        np.multiply(t, t, out=u)
        approach(s, u, rest)
        np.multiply(t, lr, out=t)
        np.subtract(p, t, out=p)
