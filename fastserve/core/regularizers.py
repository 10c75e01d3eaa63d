"""Penalties on weights that are added to the loss, by Keras' names."""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastserve.core.memory import Array
from fastserve.core.named import make
from fastserve.errors import ArgumentError, ShapeError, UnknownNameError
from fastserve.ops.blocks import FLAT, room, spare


class Regularizer:
    """A number for a weight, and its gradient. A subclass writes both methods."""

    def check(self, name: str, shape: tuple[int, ...]) -> None:
        """Raise ShapeError for a weight that can't be regularized by this."""

    def penalty(self, value: Array) -> float:
        """Return what is added to the loss for a weight of this value."""
        raise NotImplementedError(f"{type(self).__name__}.penalty")

    def add_gradient(self, value: Array, grad: Array) -> None:
        """Add the penalty's gradient to ``grad``, which has the shape of ``value``."""
        raise NotImplementedError(f"{type(self).__name__}.add_gradient")

    def __call__(self, value: Any) -> float:
        return self.penalty(np.asarray(value))

    def get_config(self) -> dict[str, Any]:
        """Return the arguments of the constructor."""
        fields: Any = self
        names = inspect.signature(type(self)).parameters
        known = dataclasses.asdict(fields)
        return {name: value for name, value in known.items() if name in names}


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
                    f"{type(self).__name__}: expected {name} of 0 or more",
                    f"{value}",
                    "give for example 1e-4",
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


@dataclass(frozen=True)
class OrthogonalRegularizer(Regularizer):
    """factor x the mean of abs(cos) of the angles between all pairs of rows.

    Args:
        mode: 'rows', or 'columns'.

    Only for matrices. A single row has no penalty.
    """

    factor: float = 0.01
    mode: str = "rows"

    def __post_init__(self) -> None:
        if not 0 <= self.factor < math.inf:
            raise ArgumentError(
                "OrthogonalRegularizer: expected a factor of 0 or more",
                f"{self.factor}",
                "give for example 0.01",
            )
        if self.mode not in ("rows", "columns"):
            raise UnknownNameError(
                "OrthogonalRegularizer mode", self.mode, ("rows", "columns")
            )

    def check(self, name: str, shape: tuple[int, ...]) -> None:
        if len(shape) != 2:
            raise ShapeError(
                f"OrthogonalRegularizer: expected a matrix for {name}",
                f"shape {shape}",
                "take L1, L2 or L1L2 for weights of other shapes",
            )

    def penalty(self, value: Array) -> float:
        _, _, cosines, each = self._cosines(value)
        return each * float(np.abs(cosines, out=cosines).sum(dtype=np.float64))

    def add_gradient(self, value: Array, grad: Array) -> None:
        unit, norms, cosines, each = self._cosines(value)
        # of P = U U': d|P_ij| = sign(P_ij) (dU_i U_j + U_i dU_j)
        np.sign(cosines, out=cosines)
        by_unit = np.matmul(cosines, unit, out=room(2, unit.shape, unit.dtype))
        by_unit *= value.dtype.type(2 * each)
        along = np.einsum("ij,ij->i", by_unit, unit)
        unit *= along[:, None]
        by_unit -= unit
        by_unit /= norms
        rows = grad if self.mode == "rows" else grad.T
        np.add(rows, by_unit, out=rows)

    def _cosines(self, value: Array) -> tuple[Array, Array, Array, float]:
        """Return the unit rows U, their norms before (n, 1), U U' without its diagonal,
        and the factor of each of its numbers, of which each pair has two."""
        rows = value if self.mode == "rows" else value.T
        unit = room(0, rows.shape, rows.dtype)
        norms = np.sqrt(np.einsum("ij,ij->i", rows, rows))[:, None]
        norms = np.maximum(norms, rows.dtype.type(1e-7))
        np.divide(rows, norms, out=unit)
        n = len(rows)
        cosines = np.matmul(unit, unit.T, out=room(1, (n, n), rows.dtype))
        np.fill_diagonal(cosines, 0)
        pairs = n * (n - 1) / 2
        return unit, norms, cosines, 0.5 * self.factor / pairs if pairs else 0.0


l1, l2, l1_l2, orthogonal_regularizer = L1, L2, L1L2, OrthogonalRegularizer

_NAMED: dict[str, Callable[..., Regularizer]] = {
    "l1": L1,
    "l2": L2,
    "l1_l2": lambda l1=0.01, l2=0.01: L1L2(l1, l2),
    "l1l2": L1L2,
    "orthogonal_regularizer": OrthogonalRegularizer,
    "L1": L1,
    "L2": L2,
    "L1L2": L1L2,
    "OrthogonalRegularizer": OrthogonalRegularizer,
}


def get(
    regularizer: str | Regularizer | type[Regularizer] | Mapping[str, Any] | None,
) -> Regularizer | None:
    """Return the regularizer of this name; one that is given as such is returned.

    Also takes ``{"L2": {"l2": 1e-4}}``. As in Keras, 'L1L2' alone has no penalty.
    """
    made = make("regularizer", regularizer, _NAMED)
    if made is None or isinstance(made, Regularizer):
        return made
    raise ArgumentError(
        "expected a regularizer's name or an object such as regularizers.L2(1e-4)",
        repr(regularizer),
        "a function has no gradient: subclass regularizers.Regularizer",
    )
