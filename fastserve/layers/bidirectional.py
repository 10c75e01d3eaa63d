"""Bidirectional: one recurrent layer from the first step on, one from the last."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np

from fastserve.core import Array, Done, Layer, Shape, Training, is_several, nothing
from fastserve.errors import ArgumentError
from fastserve.layers.recurrent import Recurrent

MERGE_MODES = ("concat", "sum", "mul", "ave", None)


class Bidirectional(Layer):
    """y = merge(forward(x), backward(x)) (Schuster, Paliwal, 1997).

    Input (batch, time, features); output (batch, time, 2 units) with ``merge_mode``
    'concat' and ``return_sequences``, where the backward half is turned round to the
    order of the input, so that both belong to the same steps. 'sum', 'mul' and 'ave'
    keep the units; None gives a tuple of both. Further inputs are the initial states
    of the forward layer, then of the backward layer; with ``return_state`` the last
    states come behind the output in that order.

    As in Keras, both layers are new ones, made from the arguments of ``layer``, the
    second with ``go_backwards``, unless ``backward_layer`` is given; and where the mask
    is false, sequences of outputs are 0.

    Raises ArgumentError for layers that don't go together.
    """

    several_inputs = True  # or one
    call_inputs = ("sequences", "initial_state")

    def __init__(
        self,
        layer: Recurrent,
        merge_mode: str | None = "concat",
        backward_layer: Recurrent | None = None,
        input_shape: Shape | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(input_shape, name)
        if merge_mode not in MERGE_MODES:
            raise ArgumentError(
                f"Bidirectional: expected a merge_mode of {MERGE_MODES}",
                repr(merge_mode),
            )
        for given in (layer, backward_layer or layer):
            if not isinstance(given, Recurrent):
                raise ArgumentError(
                    "Bidirectional: expected a recurrent layer",
                    repr(given),
                    "for example LSTM(64)",
                )
        self.merge_mode = merge_mode
        self.forward_layer = self.child("forward_layer", _again(layer))
        self.backward_layer = self.child(
            "backward_layer", backward_layer or _again(layer, go_backwards=True)
        )
        both = self.forward_layer, self.backward_layer
        for option in ("return_sequences", "return_state", "stateful"):
            if getattr(both[0], option) != getattr(both[1], option):
                raise ArgumentError(
                    f"Bidirectional: expected the same {option} in both layers",
                    f"{getattr(both[0], option)} and {getattr(both[1], option)}",
                )
        if both[0].go_backwards == both[1].go_backwards:
            raise ArgumentError(
                "Bidirectional: expected layers of different go_backwards",
                f"{both[0].go_backwards} in both",
                "set it in backward_layer alone",
            )
        self.return_sequences = both[0].return_sequences
        self.return_state = both[0].return_state
        for part in both:
            part.zero_output_for_mask = self.return_sequences

    def build(self, input_shape: Any) -> Any:
        shapes: list[Any] = []
        for n, part in enumerate(self._both()):
            several = is_several(input_shape)
            shape = self._inputs(input_shape, n) if several else input_shape
            out = part.build_once(shape)
            shapes.append(out if self.return_state else (out,))
        (y, *first), (z, *second) = shapes
        if self.merge_mode == "concat":
            y = (*y[:-1], y[-1] + z[-1])
        elif y != z:
            raise ArgumentError(
                f"Bidirectional, {self.merge_mode}: expected layers of the same units",
                f"outputs {y} and {z}",
                "change backward_layer's units, or use merge_mode='concat'",
            )
        outputs = ((y, z) if self.merge_mode is None else (y,)) + (*first, *second)
        return outputs if len(outputs) > 1 else y

    def _both(self) -> tuple[Recurrent, Recurrent]:
        return self.forward_layer, self.backward_layer

    def _inputs(self, given: Sequence[Any], n: int) -> tuple[Any, ...]:
        """Return the sequence and the initial states of layer n."""
        half = (len(given) - 1) // 2
        states = given[1 : 1 + half] if n == 0 else given[1 + half :]
        return (given[0], *states)

    def forward(self, x: Any, training: Training = False) -> Any:
        outputs: list[Any] = []
        states: list[Array] = []
        for n, part in enumerate(self._both()):
            part.mask = self._mask()
            y = part.forward(
                self._inputs(x, n) if isinstance(x, tuple) else x, training
            )
            y, *last = y if self.return_state else (y,)
            outputs.append(y)
            states += last
        y, z = outputs
        if self.return_sequences:
            z = z[:, ::-1]
        self._pair = y, z
        merged = (y, z) if self.merge_mode is None else (self._merge(y, z),)
        if self.merge_mode is None and self.return_sequences:
            turned = self.buffer("turned", z.shape)
            turned[...] = z
            merged = y, turned
        outputs = [*merged, *states]
        return tuple(outputs) if len(outputs) > 1 else outputs[0]

    def _merge(self, y: Array, z: Array) -> Array:
        if self.merge_mode == "concat":
            out = self.buffer("y", (*y.shape[:-1], y.shape[-1] + z.shape[-1]))
            out[..., : y.shape[-1]] = y
            out[..., y.shape[-1] :] = z
            return out
        out = self.buffer("y", y.shape)
        if self.merge_mode == "mul":
            return np.multiply(y, z, out=out)
        np.add(y, z, out=out)
        if self.merge_mode == "ave":
            np.multiply(out, out.dtype.type(0.5), out=out)
        return out

    def backward(self, dy: Any, done: Done = nothing) -> Any:
        grads = list(dy) if isinstance(dy, tuple) else [dy]
        count = 2 if self.merge_mode is None else 1
        pair, states = grads[:count], grads[count:]
        if count == 1:
            pair = [None, None] if pair[0] is None else self._split(pair[0])
        half = len(states) // 2
        results = []
        for n, part in enumerate(self._both()):
            part.input_gradient = self.input_gradient
            dpart = pair[n]
            if dpart is not None and self.return_sequences and n == 1:
                dpart = dpart[:, ::-1]
            own = states[:half] if n == 0 else states[half:]
            given = (dpart, *own) if self.return_state else dpart
            result = part.backward(given, done)
            done(part)
            results.append(result if isinstance(result, tuple) else (result,))
        (dx, *first), (other, *second) = results
        if dx is not None:
            np.add(dx, other, out=dx)
        return (dx, *first, *second) if first else dx

    def _split(self, dy: Array) -> list[Array]:
        """Return the gradients of both outputs that were merged."""
        y, z = self._pair
        if self.merge_mode == "concat":
            return [dy[..., : y.shape[-1]], dy[..., y.shape[-1] :]]
        if self.merge_mode == "sum":
            return [dy, dy]
        if self.merge_mode == "ave":
            half = np.multiply(dy, dy.dtype.type(0.5), out=self.scratch(dy.shape))
            return [half, half]
        return [np.multiply(dy, other, out=self.scratch(dy.shape)) for other in (z, y)]

    def _mask(self) -> Array | None:
        mask: Array | None = self.mask
        return mask[0] if isinstance(mask, tuple) else mask

    def output_mask(self) -> Any:
        mask = self._mask() if self.return_sequences else None
        masks = [mask] * (2 if self.merge_mode is None else 1)
        if self.return_state:
            masks += [None] * (self.forward_layer.states + self.backward_layer.states)
        return tuple(masks) if len(masks) > 1 else mask

    def reset_states(self) -> None:
        """Begin the next batch with zeros (stateful)."""
        for part in self._both():
            part.reset_states()

    reset_state = reset_states


def _again(layer: Recurrent, **changes: Any) -> Recurrent:
    """Return a new layer from the arguments of ``layer``, with some changed."""
    args, kwargs = layer.arguments
    kind = type(layer)
    given = dict(inspect.signature(kind).bind(*args, **kwargs).arguments) | changes
    given.pop("input_shape", None)
    given.pop("name", None)
    return kind(**given)
