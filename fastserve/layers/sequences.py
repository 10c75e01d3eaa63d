"""Masking, and TimeDistributed: a layer on each step of a sequence."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from fastserve.core import (
    Array,
    Done,
    Layer,
    Shape,
    StepKey,
    Training,
    is_several,
    nothing,
)
from fastserve.core.layer import as_layer
from fastserve.errors import ArgumentError, ShapeError


class Masking(Layer):
    """Leaves out the steps whose features all are ``mask_value``.

    (batch, time, features), same out; such steps are 0 in the output, and layers
    behind it that know masks leave them out.
    """

    def __init__(
        self,
        mask_value: float = 0.0,
        input_shape: Shape | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(input_shape, name)
        self.mask_value = mask_value
        self._counts: Array | None = None

    def build(self, input_shape: Shape) -> Shape:
        self.check_features(input_shape, rank=2)
        return input_shape

    def forward(self, x: Array, training: Training = False) -> Array:
        differs = self.buffer("differs", x.shape, np.bool_)
        np.not_equal(x, x.dtype.type(self.mask_value), out=differs)
        counts = self.buffer("counts", x.shape[:2], np.bool_)
        self._counts = np.logical_or.reduce(differs, axis=-1, out=counts)
        y = self.buffer("y", x.shape)
        y.fill(0)
        np.copyto(y, x, where=counts[..., None])
        return y

    def backward(self, dy: Array, done: Done = nothing) -> Any:
        counts = self.saved(self._counts)
        return np.multiply(dy, counts[..., None], out=self.scratch(dy.shape))

    def output_mask(self) -> Array | None:
        return self._counts

    def output_spare(self) -> bool:
        return True


class TimeDistributed(Layer):
    """y[:, t] = layer(x[:, t]) for each step t, with the same weights.

    (batch, time, ...) -> (batch, time, ...). The layer sees batch x time samples at
    once; so one that looks at the whole batch (BatchNormalization) takes all steps
    together. The mask (batch, time) is passed on.

    Raises ArgumentError for a layer of several inputs or outputs.
    """

    def __init__(
        self, layer: Layer, input_shape: Shape | None = None, name: str | None = None
    ) -> None:
        super().__init__(input_shape, name)
        layer = as_layer(layer)
        if not isinstance(layer, Layer):
            raise ArgumentError(
                "TimeDistributed: expected a layer", repr(layer), "for example Dense(3)"
            )
        self.layer = self.child("layer", layer)
        self._time: tuple[int, int] | None = None  # B, T

    def build(self, input_shape: Shape) -> Shape:
        if is_several(input_shape) or len(input_shape) < 2:
            raise ShapeError(
                "TimeDistributed: expected one input (batch, time, ...) with an axis "
                "or more behind the time",
                f"shape {input_shape}",
                "give the layer the input as it is, or reshape it",
            )
        inner = self.layer.build_once(input_shape[1:])
        if is_several(inner):
            raise ArgumentError(
                "TimeDistributed: expected a layer with one output",
                f"{self.layer!r}",
                "leave return_state out",
            )
        return (input_shape[0], *inner)

    def forward(self, x: Array, training: Training = False) -> Array:
        batch, time = self._time = x.shape[0], x.shape[1]
        mask: Array | None = self.mask
        further = mask is not None and mask.ndim > 2
        self.layer.mask = _merged(mask) if mask is not None and further else None
        if isinstance(training, StepKey):  # the layer's samples are our steps
            training = replace(training, first_row=training.first_row * time)
        y = self.layer.forward(_merged(x), training)
        return y.reshape(batch, time, *y.shape[1:])

    def backward(self, dy: Array, done: Done = nothing) -> Any:
        self.layer.input_gradient = self.input_gradient
        dx = self.layer.backward(_merged(dy), done)
        done(self.layer)
        return self._split(dx)

    def _split(self, array: Array | None) -> Array | None:
        if array is None:
            return None
        return array.reshape(*self.saved(self._time), *array.shape[1:])

    def output_spare(self) -> bool | None:
        return self.layer.output_spare()

    @property
    def takes_integers(self) -> bool:  # type: ignore[override]
        return bool(self.layer.takes_integers)

    @property
    def fused_loss(self) -> str | None:  # type: ignore[override]
        return self.layer.fused_loss

    def logits(self) -> Array:
        z = self.layer.logits()
        return z.reshape(*self.saved(self._time), *z.shape[1:])

    def backward_logits(self, dz: Array, done: Done = nothing) -> Any:
        self.layer.input_gradient = self.input_gradient
        dx = self.layer.backward_logits(_merged(dz), done)
        done(self.layer)
        return self._split(dx)


def _merged(array: Array) -> Array:
    """Return (batch x time, ...) of an array (batch, time, ...)."""
    return array.reshape(array.shape[0] * array.shape[1], *array.shape[2:])
