"""``MovingWeights``: weights that layers change, the same on all ranks after a step."""

from __future__ import annotations

import numpy as np

from fastserve.comm import Communicator
from fastserve.core import ParameterStore


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

    def hold(self) -> None:
        """As ``undo``, but note what the step has changed: it may still be refused."""
        np.subtract(self._values, self._before, out=self._change, dtype=float)
        self.undo()

    def apply(self, rows: int, total: int) -> None:
        """Make the change; this rank had so many of the step's ``total`` rows."""
        change = self._change
        if self._comm.size > 1 and change.size:
            np.multiply(change, rows / total, out=change)
            self._comm.allreduce(change)
        np.add(change, self._before, out=change)
        np.copyto(self._values, change, casting="same_kind")
