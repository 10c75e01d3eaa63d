"""What holds for weights after each update, by Keras' names."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from fastserve.core.memory import Array
from fastserve.errors import ArgumentError, UnknownNameError

Axis = int | tuple[int, ...]
_EPSILON = 1e-7


class Constraint:
    """Changes a weight's value in place, so that something holds for it."""

    def apply(self, value: Array) -> None:
        raise NotImplementedError(f"{type(self).__name__}.apply")


@dataclass(frozen=True)
class NonNeg(Constraint):
    """No value below 0."""

    def apply(self, value: Array) -> None:
        np.maximum(value, 0, out=value)


@dataclass(frozen=True)
class MaxNorm(Constraint):
    """Vectors along ``axis`` are scaled down to this Euclidean norm."""

    max_value: float = 2.0
    axis: Axis = 0

    def apply(self, value: Array) -> None:
        norms = _norms(value, self.axis)
        value *= np.clip(norms, 0, self.max_value) / (norms + _EPSILON)


@dataclass(frozen=True)
class UnitNorm(Constraint):
    """Vectors along ``axis`` have the Euclidean norm 1."""

    axis: Axis = 0

    def apply(self, value: Array) -> None:
        value /= _norms(value, self.axis) + _EPSILON


@dataclass(frozen=True)
class MinMaxNorm(Constraint):
    """Vectors along ``axis`` move by ``rate`` to a norm within the two values."""

    min_value: float = 0.0
    max_value: float = 1.0
    rate: float = 1.0
    axis: Axis = 0

    def apply(self, value: Array) -> None:
        norms = _norms(value, self.axis)
        wanted = np.clip(norms, self.min_value, self.max_value)
        wanted = self.rate * wanted + (1 - self.rate) * norms
        value *= wanted / (norms + _EPSILON)


def _norms(value: Array, axis: Axis) -> Array:
    axes = tuple(axis) if isinstance(axis, (tuple, list)) else axis
    norms: Array = np.sqrt(np.sum(np.square(value), axis=axes, keepdims=True))
    return norms


_NAMED: dict[str, Callable[[], Constraint]] = {
    "max_norm": MaxNorm,
    "min_max_norm": MinMaxNorm,
    "non_neg": NonNeg,
    "unit_norm": UnitNorm,
    "MaxNorm": MaxNorm,
    "MinMaxNorm": MinMaxNorm,
    "NonNeg": NonNeg,
    "UnitNorm": UnitNorm,
}


def get(constraint: str | Constraint | None) -> Constraint | None:
    """Return the constraint of this name; one that is given as such is returned."""
    if constraint is None or isinstance(constraint, Constraint):
        return constraint
    if not isinstance(constraint, str):
        raise ArgumentError(
            "expected a constraint's name or an object such as constraints.MaxNorm(2)",
            repr(constraint),
            "subclass constraints.Constraint and write apply",
        )
    if constraint not in _NAMED:
        raise UnknownNameError("constraint", constraint, _NAMED)
    return _NAMED[constraint]()
