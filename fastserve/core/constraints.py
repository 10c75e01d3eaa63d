"""What holds for weights after each update, by Keras' names."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastserve.core.memory import Array
from fastserve.core.named import make
from fastserve.errors import ArgumentError, ShapeError
from fastserve.ops.blocks import room

Axis = int | tuple[int, ...]
_EPSILON = 1e-7


class Constraint:
    """Changes a weight's value in place, so that something holds for it."""

    def check(self, name: str, shape: tuple[int, ...]) -> None:
        """Raise ShapeError for a weight that this can't be used for."""

    def apply(self, value: Array) -> None:
        raise NotImplementedError(f"{type(self).__name__}.apply")

    def __call__(self, value: Any) -> Array:
        """Return a changed copy."""
        changed = np.array(value)
        self.apply(changed)
        return changed

    def get_config(self) -> dict[str, Any]:
        """Return the arguments of the constructor."""
        fields: Any = self
        return dataclasses.asdict(fields)


@dataclass(frozen=True)
class NonNeg(Constraint):
    """No value below 0."""

    def apply(self, value: Array) -> None:
        np.maximum(value, 0, out=value)


class _OfNorms(Constraint):
    axis: Axis

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            if field.name != "axis" and not 0 <= value < math.inf:
                raise ArgumentError(
                    f"{type(self).__name__}: expected {field.name} of 0 or more",
                    f"{value}",
                    "it is, or changes, the length of a vector",
                )

    def check(self, name: str, shape: tuple[int, ...]) -> None:
        axes = _axes(self.axis)
        axes = axes if isinstance(axes, tuple) else (axes,)
        if any(not -len(shape) <= axis < len(shape) for axis in axes):
            raise ShapeError(
                f"{type(self).__name__}: expected axes that {name} has, of shape "
                f"{shape}",
                f"axis={self.axis}",
                "0 is the axis of a Dense kernel's inputs, (0, 1, 2) are those of a "
                "Conv2D kernel",
            )


@dataclass(frozen=True)
class MaxNorm(_OfNorms):
    """Vectors along ``axis`` are scaled down to the Euclidean norm ``max_value``."""

    max_value: float = 2.0
    axis: Axis = 0

    def apply(self, value: Array) -> None:
        norms = _norms(value, self.axis)
        value *= np.clip(norms, 0, self.max_value) / (norms + _EPSILON)


@dataclass(frozen=True)
class UnitNorm(_OfNorms):
    """Vectors along ``axis`` have the Euclidean norm 1."""

    axis: Axis = 0

    def apply(self, value: Array) -> None:
        value /= _norms(value, self.axis) + _EPSILON


@dataclass(frozen=True)
class MinMaxNorm(_OfNorms):
    """Vectors along ``axis`` move to a norm from ``min_value`` to ``max_value``.

    ``rate`` is the share of the way that each update makes them go.
    """

    min_value: float = 0.0
    max_value: float = 1.0
    rate: float = 1.0
    axis: Axis = 0

    def apply(self, value: Array) -> None:
        norms = _norms(value, self.axis)
        wanted = np.clip(norms, self.min_value, self.max_value)
        wanted = self.rate * wanted + (1 - self.rate) * norms
        value *= wanted / (norms + _EPSILON)


def _axes(axis: Axis) -> Axis:
    return tuple(axis) if isinstance(axis, (tuple, list)) else axis


def _norms(value: Array, axis: Axis) -> Array:
    squares = np.square(value, out=room(0, value.shape, value.dtype))
    norms: Array = np.sqrt(np.sum(squares, axis=_axes(axis), keepdims=True))
    return norms


max_norm, min_max_norm = MaxNorm, MinMaxNorm
non_neg, unit_norm = NonNeg, UnitNorm

_NAMED: dict[str, Callable[..., Constraint]] = {
    "max_norm": MaxNorm,
    "min_max_norm": MinMaxNorm,
    "non_neg": NonNeg,
    "unit_norm": UnitNorm,
    "MaxNorm": MaxNorm,
    "MinMaxNorm": MinMaxNorm,
    "NonNeg": NonNeg,
    "UnitNorm": UnitNorm,
}


def get(
    constraint: str | Constraint | type[Constraint] | Mapping[str, Any] | None,
) -> Constraint | None:
    """Return the constraint of this name; one that is given as such is returned.

    Also takes ``{"MaxNorm": {"max_value": 3}}``.
    """
    made = make("constraint", constraint, _NAMED)
    if made is None or isinstance(made, Constraint):
        return made
    raise ArgumentError(
        "expected a constraint's name or an object such as constraints.MaxNorm(2)",
        repr(constraint),
        "subclass constraints.Constraint and write apply",
    )
