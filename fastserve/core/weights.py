"""Weights by Keras' names, of layers and of models."""

from __future__ import annotations

from collections.abc import Sequence

from fastserve.core.memory import Array
from fastserve.core.parameter import Parameter
from fastserve.errors import ShapeError


class Weighted:
    """The part of ``Layer`` and ``Model`` that lists, reads and sets weights."""

    def _in_order(self) -> list[Parameter]:
        """Return each parameter once, in order of execution."""
        raise NotImplementedError(f"{type(self).__name__}._in_order")

    @property
    def weights(self) -> list[Parameter]:
        """All parameters in order of execution; their arrays are ``value``."""
        return self._in_order()

    @property
    def trainable_weights(self) -> list[Parameter]:
        return [p for p in self._in_order() if p.trainable]

    @property
    def non_trainable_weights(self) -> list[Parameter]:
        """Those that are frozen, and those that layers change themselves."""
        return [p for p in self._in_order() if not p.trainable]

    @property
    def variables(self) -> list[Parameter]:
        return self.weights

    @property
    def trainable_variables(self) -> list[Parameter]:
        return self.trainable_weights

    @property
    def non_trainable_variables(self) -> list[Parameter]:
        return self.non_trainable_weights

    def count_params(self) -> int:
        """Return the number of all weights, trained or not."""
        return sum(p.size for p in self._in_order())

    def get_weights(self) -> list[Array]:
        """Return copies of all weights in order of execution.

        Raises StateError if they have no values yet, before the model is built.
        """
        return [p.value.copy() for p in self._in_order()]

    def set_weights(self, weights: Sequence[Array]) -> None:
        """Set all weights, in the order of ``get_weights``; raises ShapeError."""
        parameters = self._in_order()
        if len(weights) != len(parameters):
            raise ShapeError(
                f"set_weights: expected {len(parameters)} arrays",
                f"{len(weights)}",
                "build the model first, by an Input or build; see get_weights",
            )
        for parameter, value in zip(parameters, weights, strict=True):
            parameter.check(value)
        for parameter, value in zip(parameters, weights, strict=True):
            parameter.assign(value)
