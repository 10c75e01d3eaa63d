"""Adam and its kin: AdamW, Adamax, Nadam."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from fastserve.core import Array
from fastserve.optimizers.base import LearningRate, Optimizer, approach


class Adam(Optimizer):
    """Adam (Kingma, Ba: "Adam: a method for stochastic optimization", 2014).

    m += (1 - beta_1) (g - m);  v += (1 - beta_2) (g² - v);  with t updates made,
    values -= lr * sqrt(1 - beta_2^t) / (1 - beta_1^t) * m / (sqrt(v) + epsilon).
    With ``amsgrad`` the largest v so far takes the place of v (Reddi et al., 2018).
    """

    name = "adam"
    slots: tuple[str, ...] = ("m", "v")

    def __init__(
        self,
        learning_rate: LearningRate = 0.001,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-7,
        amsgrad: bool = False,
        weight_decay: float | None = None,
        **options: Any,
    ) -> None:
        super().__init__(learning_rate, weight_decay, **options)
        self._check_fraction(beta_1=beta_1, beta_2=beta_2)
        self._check("epsilon", epsilon, 0 <= epsilon < math.inf)
        self.beta_1, self.beta_2, self.epsilon = beta_1, beta_2, epsilon
        self.amsgrad = amsgrad
        if amsgrad:
            self.slots = ("m", "v", "v_max")

    def constants(self, lr: float, scale: float) -> tuple[float, ...]:
        t = self.step + 1
        rate = lr * math.sqrt(1 - self.beta_2**t) / (1 - self.beta_1**t)
        rests = 1 - self.beta_1, 1 - self.beta_2
        return scale, self.beta_1, self.beta_2, *rests, rate, self.epsilon

    def apply(
        self, k: tuple[Any, ...], p: Array, g: Array, t: Array, u: Array, *slots: Array
    ) -> None:
        scale, beta_1, beta_2, rest_1, rest_2, rate, epsilon = k
        m, v, *v_max = slots
        if scale != 1:
            g = np.multiply(g, scale, out=t)
        # in place, and with one scratch: few bytes pass through the cache
        np.multiply(m, beta_1, out=m)
        np.multiply(g, rest_1, out=u)
        np.add(m, u, out=m)
        np.multiply(v, beta_2, out=v)
        np.multiply(g, g, out=u)
        np.multiply(u, rest_2, out=u)
        np.add(v, u, out=v)
        if v_max:
            v = np.maximum(v_max[0], v, out=v_max[0])
        np.sqrt(v, out=u)
        np.add(u, epsilon, out=u)
        np.divide(m, u, out=u)
        np.multiply(u, rate, out=u)
        np.subtract(p, u, out=p)


class AdamW(Adam):
    """``Adam``, whose arguments it has, with decay of matrices by default.

    Loshchilov, Hutter, "Decoupled weight decay regularization", 2017.
    """

    name = "adamw"

    def __init__(
        self,
        learning_rate: LearningRate = 0.001,
        weight_decay: float | None = 0.004,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-7,
        amsgrad: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(
            learning_rate, beta_1, beta_2, epsilon, amsgrad, weight_decay, **options
        )


class Moments(Optimizer):
    """What Adamax, Nadam and LAMB share with Adam: arguments and state."""

    slots = ("m", "v")

    def __init__(
        self,
        learning_rate: LearningRate = 0.001,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-7,
        weight_decay: float | None = None,
        **options: Any,
    ) -> None:
        super().__init__(learning_rate, weight_decay, **options)
        self._check_fraction(beta_1=beta_1, beta_2=beta_2)
        self._check("epsilon", epsilon, 0 <= epsilon < math.inf)
        self.beta_1, self.beta_2, self.epsilon = beta_1, beta_2, epsilon


class Adamax(Moments):
    """Adam with the largest gradient for the root of squares (Kingma, Ba, 2014).

    m += (1 - beta_1) (g - m);  v = max(beta_2 * v, abs(g));
    values -= lr / (1 - beta_1^t) * m / (v + epsilon).
    """

    name = "adamax"

    def constants(self, lr: float, scale: float) -> tuple[float, ...]:
        rate = lr / (1 - self.beta_1 ** (self.step + 1))
        return scale, 1 - self.beta_1, self.beta_2, rate, self.epsilon

    def apply(
        self, k: tuple[Any, ...], p: Array, g: Array, t: Array, u: Array, *slots: Array
    ) -> None:
        scale, rest_1, beta_2, rate, epsilon = k
        m, v = slots
        np.multiply(g, scale, out=t)
        np.abs(t, out=u)
        np.multiply(v, beta_2, out=v)
        np.maximum(v, u, out=v)
        approach(m, t, rest_1)
        np.add(v, epsilon, out=u)
        np.divide(m, u, out=u)
        np.multiply(u, rate, out=u)
        np.subtract(p, u, out=p)


class Nadam(Moments):
    """Adam with Nesterov's momentum (Dozat, 2015).

    m and v as in Adam; u_t = beta_1 * (1 - 0.96^t / 2) and U_t = u_1 * ... * u_t;
    values -= lr * (u_{t+1} m / (1 - U_{t+1}) + (1 - u_t) g / (1 - U_t))
    / (sqrt(v / (1 - beta_2^t)) + epsilon).
    """

    name = "nadam"
    _product = (0, 1.0)  # t and U_t, which follows from t alone

    def constants(self, lr: float, scale: float) -> tuple[float, ...]:
        t = self.step + 1
        now, after = self._momentum(t), self._momentum(t + 1)
        done, product = self._product if self._product[0] <= t else (0, 1.0)
        for i in range(done + 1, t + 1):
            product *= self._momentum(i)
        self._product = t, product
        ahead = lr * after / (1 - product * after)
        direct = lr * (1 - now) / (1 - product)
        root = 1 / math.sqrt(1 - self.beta_2**t)
        rest_1, rest_2 = 1 - self.beta_1, 1 - self.beta_2
        return scale, rest_1, rest_2, ahead, direct, root, self.epsilon

    def _momentum(self, t: int) -> float:
        return self.beta_1 * (1 - 0.5 * 0.96**t)

    def apply(
        self, k: tuple[Any, ...], p: Array, g: Array, t: Array, u: Array, *slots: Array
    ) -> None:
        scale, rest_1, rest_2, ahead, direct, root, epsilon = k
        m, v = slots
        np.multiply(g, scale, out=t)
        np.multiply(t, t, out=u)
        approach(v, u, rest_2)
        np.copyto(u, t)
        approach(m, u, rest_1)
        np.multiply(t, direct, out=t)
        np.multiply(m, ahead, out=u)
        np.add(t, u, out=t)
        np.sqrt(v, out=u)
        np.multiply(u, root, out=u)
        np.add(u, epsilon, out=u)
        np.divide(t, u, out=t)
        np.subtract(p, t, out=p)
