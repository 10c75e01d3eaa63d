"""Dropout, keyed by sample so that it doesn't depend on the number of ranks."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastserve.core import Array, Done, Layer, Shape, StepKey, Training, nothing
from fastserve.errors import ArgumentError


def check_rate(kind: str, rate: float) -> float:
    if not 0 <= rate < 1:
        raise ArgumentError(
            f"{kind}: expected a rate from 0 up to below 1",
            str(rate),
            "give the share that is dropped, for example 0.1",
        )
    return float(rate)


def keep_factors(
    keep: Array, rate: float, training: Training, path: str, work: Array
) -> None:
    """Fill ``keep`` (batch, ...) with 0, or 1 / (1 - rate), for each element.

    The factors of a sample are a function of (seed, path, step, sample) alone: Philox
    is keyed by the first two and counts from the others. ``work`` is float32 of the
    shape of one sample.
    """
    key = training if isinstance(training, StepKey) else StepKey()
    scale = keep.dtype.type(1 / (1 - rate))
    base = np.random.SeedSequence([key.seed, *path.encode()]).generate_state(
        2, np.uint64
    )
    for i, factors in enumerate(keep):
        counter = np.array([0, 0, key.first_row + i, key.step], np.uint64)
        philox = np.random.Philox(key=base, counter=counter)
        np.random.Generator(philox).random(dtype=np.float32, out=work)
        np.greater_equal(work, np.float32(rate), out=factors)
        np.multiply(factors, scale, out=factors)


class Dropout(Layer):
    """In training, sets a share ``rate`` of the inputs to 0, the others / (1 - rate).

    Srivastava et al., "Dropout", 2014. Any shape.
    """

    def __init__(
        self, rate: float, input_shape: Shape | None = None, name: str | None = None
    ) -> None:
        super().__init__(input_shape, name)
        self.rate = check_rate("Dropout", rate)
        self._active = False

    def forward(self, x: Array, training: Training = False) -> Array:
        self._active = bool(training) and self.rate > 0
        if not self._active:
            return x
        keep = self.buffer("keep", x.shape)
        work = self.buffer("work", x.shape[1:], np.float32)
        keep_factors(keep, self.rate, training, self.path, work)
        return np.multiply(x, keep, out=self.buffer("y", x.shape))

    def output_spare(self) -> bool | None:
        return True if self._active else None

    def backward(self, dy: Array, done: Done = nothing) -> Any:
        if not self._active:
            return dy
        return np.multiply(dy, self._buffers["keep"], out=self.scratch(dy.shape))
