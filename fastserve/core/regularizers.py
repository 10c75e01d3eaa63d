"""Penalties on weights that are added to the loss, by Keras' names."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from fastserve.core.memory import Array
from fastserve.errors import ArgumentError, UnknownNameError
from fastserve.ops.blocks import FLAT, spare


class Regularizer:
    """A number for a weight, and its gradient. A subclass writes both methods."""

    def penalty(self, value: Array) -> float:
        """Return what is added to the loss for a weight of this value."""
        raise NotImplementedError(f"{type(self).__name__}.penalty")

    def add_gradient(self, value: Array, grad: Array) -> None:
        """Add the penalty's gradient to ``grad``, which has the shape of ``value``."""
        raise NotImplementedError(f"{type(self).__name__}.add_gradient")


@dataclass(frozen=True)
class L1L2(Regularizer):
    """l1 Σ |w| + l2 Σ w², whose gradient is l1 sign(w) + 2 l2 w."""

    l1: float = 0.0
    l2: float = 0.0

    def __post_init__(self) -> None:
        for name in ("l1", "l2"):
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                raise ArgumentError(
                    f"{type(self).__name__}: expected {name} of 0 or more", f"{value}"
                )

    def penalty(self, value: Array) -> float:
        total, flat = 0.0, value.reshape(-1)
        for start in range(0, flat.size, FLAT):
            w = flat[start : start + FLAT]
            if self.l1:
                total += self.l1 * float(np.abs(w, out=spare(0, w)).sum(dtype=float))
            if self.l2:
                total += self.l2 * float(np.dot(w, w))
        return total

    def add_gradient(self, value: Array, grad: Array) -> None:
        flat, dw = value.reshape(-1), grad.reshape(-1)
        for start in range(0, flat.size, FLAT):
            w, g = flat[start : start + FLAT], dw[start : start + FLAT]
            t = spare(0, w)
            if self.l1:
                np.sign(w, out=t)
                np.multiply(t, w.dtype.type(self.l1), out=t)
                np.add(g, t, out=g)
            if self.l2:
                np.multiply(w, w.dtype.type(2 * self.l2), out=t)
                np.add(g, t, out=g)


class L1(L1L2):
    """l1 Σ |w|."""

    def __init__(self, l1: float = 0.01) -> None:
        super().__init__(l1=l1)


class L2(L1L2):
    """l2 Σ w²."""

    def __init__(self, l2: float = 0.01) -> None:
        super().__init__(l2=l2)


_NAMED = {
    "l1": L1,
    "l2": L2,
    "l1_l2": lambda: L1L2(0.01, 0.01),
    "L1": L1,
    "L2": L2,
    "L1L2": lambda: L1L2(0.01, 0.01),
}


def get(regularizer: str | Regularizer | None) -> Regularizer | None:
    """Return the regularizer of this name; one that is given as such is returned."""
    if regularizer is None or isinstance(regularizer, Regularizer):
        return regularizer
    if not isinstance(regularizer, str):
        raise ArgumentError(
            "expected a regularizer's name or an object such as regularizers.L2(1e-4)",
            repr(regularizer),
            "a function has no gradient: subclass regularizers.Regularizer",
        )
    if regularizer not in _NAMED:
        raise UnknownNameError("regularizer", regularizer, _NAMED)
    return _NAMED[regularizer]()
