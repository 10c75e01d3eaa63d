"""Ftrl: follow the regularized leader."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from fastserve.core import Array
from fastserve.ops.blocks import spare
from fastserve.optimizers.base import LearningRate, Optimizer


class Ftrl(Optimizer):
    """Follow the regularized leader, proximal (McMahan et al., 2013).

    With n' = n + g², s = (n'^-power - n^-power) / lr and l2' = l2 + beta / (2 lr):
    z += g + 2 * shrinkage * values - s * values, then
    values = (clip(z, -l1, l1) - z) / (n'^-power / lr + 2 * l2'), where power is
    ``learning_rate_power`` and n begins with ``initial_accumulator_value``; l1, l2 and
    shrinkage are ``l1_regularization_strength``, ``l2_regularization_strength`` and
    ``l2_shrinkage_regularization_strength``.
    """

    name = "ftrl"
    slots = ("n", "z")

    def __init__(
        self,
        learning_rate: LearningRate = 0.001,
        learning_rate_power: float = -0.5,
        initial_accumulator_value: float = 0.1,
        l1_regularization_strength: float = 0.0,
        l2_regularization_strength: float = 0.0,
        l2_shrinkage_regularization_strength: float = 0.0,
        beta: float = 0.0,
        weight_decay: float | None = None,
        **options: Any,
    ) -> None:
        super().__init__(learning_rate, weight_decay, **options)
        power = learning_rate_power
        self._check("learning_rate_power", power, -math.inf < power <= 0)
        for argument, value in {
            "initial_accumulator_value": initial_accumulator_value,
            "l1_regularization_strength": l1_regularization_strength,
            "l2_regularization_strength": l2_regularization_strength,
            "l2_shrinkage_regularization_strength": (
                l2_shrinkage_regularization_strength
            ),
            "beta": beta,
        }.items():
            self._check(argument, value, 0 <= value < math.inf)
        self.l1_regularization_strength = l1_regularization_strength
        self.l2_regularization_strength = l2_regularization_strength
        self.l2_shrinkage_regularization_strength = l2_shrinkage_regularization_strength
        self.learning_rate_power, self.beta = power, beta
        self.initial = {"n": initial_accumulator_value}

    def constants(self, lr: float, scale: float) -> tuple[float, ...]:
        inverse = 1 / lr if lr else math.inf
        return (
            scale,
            inverse,
            -self.learning_rate_power,
            2 * self.l2_regularization_strength + self.beta * inverse,
            2 * self.l2_shrinkage_regularization_strength,
            self.l1_regularization_strength,
        )

    def run(self, k: tuple[Any, ...], kept: Any) -> None:
        if math.isfinite(k[1]):  # a rate of 0 changes nothing
            super().run(k, kept)

    def apply(
        self, k: tuple[Any, ...], p: Array, g: Array, t: Array, u: Array, *slots: Array
    ) -> None:
        scale, inverse, power, l2, shrinkage, l1 = k
        n, z = slots
        after = spare(2, p)
        np.multiply(g, scale, out=t)
        np.multiply(t, t, out=u)
        np.add(n, u, out=u)
        _power(n, power, n)
        _power(u, power, after)
        np.subtract(after, n, out=n)
        np.multiply(n, inverse, out=n)
        np.multiply(n, p, out=n)
        np.add(z, t, out=z)
        np.subtract(z, n, out=z)
        if shrinkage:
            np.multiply(p, shrinkage, out=t)
            np.add(z, t, out=z)
        np.copyto(n, u)
        np.multiply(after, inverse, out=after)
        np.add(after, l2, out=after)
        np.clip(z, -l1, l1, out=t)
        np.subtract(t, z, out=t)
        np.divide(t, after, out=p)


def _power(x: Array, power: Any, out: Array) -> None:
    if power == 0.5:
        np.sqrt(x, out=out)
    else:
        np.power(x, power, out=out)
