"""LAMB: Adam whose steps are as long as the parameter's values allow."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterator
from typing import Any

import numpy as np

from fastserve.core import Array, ParameterStore
from fastserve.ops.blocks import spare
from fastserve.optimizers.adam import Moments
from fastserve.optimizers.base import LearningRate, Sum, approach


class Lamb(Moments):
    """Adam's steps, scaled to the norm of each parameter (You et al., 2019).

    m and v as in Adam; d = m / (1 - beta_1^t) / (sqrt(v / (1 - beta_2^t)) + epsilon);
    values -= lr * norm(values) / norm(d) * d for each parameter; where one of the norms
    is 0, their ratio is 1. If the optimizer is sharded, the squares of the norms are
    summed over the ranks: two numbers for each parameter.
    """

    name = "lamb"
    by_parameter = True

    def __init__(
        self,
        learning_rate: LearningRate = 0.001,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-7,
        weight_decay: float | None = None,
        **options: Any,
    ) -> None:
        super().__init__(
            learning_rate, beta_1, beta_2, epsilon, weight_decay, **options
        )
        # in the gaps of the store d is 0 / epsilon
        self._check("epsilon", epsilon, epsilon > 0, "an epsilon above 0")

    def bind(
        self,
        store: ParameterStore,
        own: list[slice] | None = None,
        add_up: Sum | None = None,
    ) -> None:
        super().bind(store, own, add_up)
        starts = sorted(store.offsets.values())
        self._owners = [bisect_right(starts, p.start) - 1 for p, _ in self._pieces]
        self._squares = np.zeros((2, len(starts)))  # of values, and of d

    def constants(self, lr: float, scale: float) -> tuple[float, ...]:
        t = self.step + 1
        root = math.sqrt(1 - self.beta_2**t)
        return (
            scale,
            1 - self.beta_1,
            1 - self.beta_2,
            lr,
            1 / (1 - self.beta_1**t),
            1 / root,
            self.epsilon,
        )

    def run(self, k: tuple[Any, ...], kept: Any) -> None:
        scale, rest_1, rest_2, lr, *_ = k
        squares = self._squares
        squares.fill(0)
        for owner, decays, p, g, m, v in self._owned():
            t, u = spare(0, p), spare(1, p)
            if decays:
                np.multiply(p, kept, out=p)
            np.multiply(g, scale, out=t)
            np.multiply(t, t, out=u)
            approach(v, u, rest_2)
            approach(m, t, rest_1)
            np.multiply(p, p, out=t)
            squares[0, owner] += np.add.reduce(t)
            d = self._direction(k, m, v, t)
            squares[1, owner] += np.add.reduce(np.multiply(d, d, out=d))
        if self.own is not None and self._add_up is not None:
            self._add_up(squares)
        values, steps = np.sqrt(squares)
        ratios = np.ones_like(values)
        np.divide(values, steps, out=ratios, where=(values > 0) & (steps > 0))
        ratios[~np.isfinite(values + steps)] = math.nan
        for owner, _, p, _, m, v in self._owned():
            d = self._direction(k, m, v, spare(0, p))
            np.multiply(d, p.dtype.type(ratios[owner] * lr), out=d)
            np.subtract(p, d, out=p)

    def _direction(self, k: tuple[Any, ...], m: Array, v: Array, out: Array) -> Array:
        *_, level, root, epsilon = k
        bottom = spare(1, m)
        np.sqrt(v, out=bottom)
        np.multiply(bottom, root, out=bottom)
        np.add(bottom, epsilon, out=bottom)
        np.multiply(m, level, out=out)
        d: Array = np.divide(out, bottom, out=out)
        return d

    def _owned(self) -> Iterator[tuple[Any, ...]]:
        """Yield (number of the parameter, whether it decays, p, g, m, v)."""
        for owner, piece in zip(self._owners, self.each(), strict=True):
            yield owner, *piece
