"""``MovingWeights``: weights that layers change, the same on all ranks after a step."""

from __future__ import annotations

import numpy as np

from fastserve.comm import Communicator
from fastserve.core import Array, ParameterStore


class MovingWeights:
    """What ``Layer.state`` made: moving averages, for example.

    In a step each rank changes them by its own rows. Afterwards all have the value
    before plus the mean of the changes, weighted by the rows. It is taken in float64,
    so what all ranks have changed alike, or not at all, is the same to the bit.
    """

    def __init__(self, store: ParameterStore, comm: Communicator) -> None:
        self._values, self._comm = store.moving, comm
        self._before = np.empty_like(store.moving)
        self._change = np.empty(store.moving.shape)

    def begin(self) -> None:
        """Note the values before the step."""
        np.copyto(self._before, self._values)

    def undo(self) -> None:
        """Put the values before the step back."""
        np.copyto(self._values, self._before)

    @property
    def size(self) -> int:
        return self._change.size

    def take(self, share: float) -> Array:
        """As ``undo``, but return the change so far, (size,), times ``share``."""
        np.subtract(self._values, self._before, out=self._change, dtype=float)
        self.undo()
        return np.multiply(self._change, share, out=self._change)

    def sum(self, share: float) -> None:
        """Have the change of the step; this rank has a ``share`` of its rows.

        It isn't made before ``apply``: the step may still be refused.
        """
        change = self.take(share if self._comm.size > 1 else 1.0)
        if self._comm.size > 1 and change.size:
            self._comm.allreduce(change)

    def hold(self, change: Array) -> None:
        """Take this as the change of the step on all ranks."""
        self._change[...] = change

    def apply(self) -> None:
        """Make the change."""
        np.add(self._change, self._before, out=self._change)
        np.copyto(self._values, self._change, casting="same_kind")
