"""SimpleRNN, LSTM and GRU: what they share, and what each does in a step.

All of an input is first laid out as rows [h' | 1 | x], time by time: h' is the state
before the step, which the step before writes there. So one product with [U; b; W] gives
what a step's gates are functions of, and after backward one product of all rows with
all dz gives all gradients of the weights.

B batch, T time, F features, H units, G gates, K = H + 1 + F
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from fastserve.core import (
    Array,
    Done,
    Layer,
    Parameter,
    Shape,
    StepKey,
    Training,
    constraints,
    initializers,
    is_several,
    nothing,
    regularizers,
)
from fastserve.core.constraints import Constraint
from fastserve.core.initializers import Initializer
from fastserve.core.regularizers import Regularizer
from fastserve.errors import DataError, ShapeError, StateError
from fastserve.layers.dropout import check_rate, keep_factors
from fastserve.ops import activations, gru, lstm
from fastserve.ops.linear import add_product
from fastserve.ops.pieces import Pieces, multiply, piece

ROWS = 1024
LINE = 16  # rows of the layout begin at multiples of so many numbers


class Recurrent(Layer):
    """What the recurrent layers share: the loop over time, states, masks, dropout.

    ``SimpleRNN`` tells shapes and arguments, which are Keras'.

    Weights: ``kernel`` (features, G units), ``recurrent_kernel`` (units, G units), and
    ``bias``.
    """

    gates = 1
    states = 1
    _kernel_t: Pieces  # (G H, F), for backward
    several_inputs = True  # or one
    call_inputs = ("sequences", "initial_state")

    def __init__(
        self,
        units: int,
        activation: str | activations.Activation | None = "tanh",
        use_bias: bool = True,
        kernel_initializer: str | Initializer = "glorot_uniform",
        recurrent_initializer: str | Initializer = "orthogonal",
        bias_initializer: str | Initializer = "zeros",
        kernel_regularizer: str | Regularizer | None = None,
        recurrent_regularizer: str | Regularizer | None = None,
        bias_regularizer: str | Regularizer | None = None,
        kernel_constraint: str | Constraint | None = None,
        recurrent_constraint: str | Constraint | None = None,
        bias_constraint: str | Constraint | None = None,
        dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        return_sequences: bool = False,
        return_state: bool = False,
        go_backwards: bool = False,
        stateful: bool = False,
        unroll: bool = False,
        zero_output_for_mask: bool = False,
        seed: int | None = None,
        input_shape: Shape | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(input_shape, name)
        kind = type(self).__name__
        self.units = self.positive("units", units)
        self.activation = activations.get(activation)
        self.use_bias = use_bias
        self.kernel_initializer = initializers.get(kernel_initializer)
        self.recurrent_initializer = initializers.get(recurrent_initializer)
        self.bias_initializer = initializers.get(bias_initializer)
        self.kernel_regularizer = regularizers.get(kernel_regularizer)
        self.recurrent_regularizer = regularizers.get(recurrent_regularizer)
        self.bias_regularizer = regularizers.get(bias_regularizer)
        self.kernel_constraint = constraints.get(kernel_constraint)
        self.recurrent_constraint = constraints.get(recurrent_constraint)
        self.bias_constraint = constraints.get(bias_constraint)
        self.dropout = check_rate(f"{kind}, dropout", dropout)
        self.recurrent_dropout = check_rate(
            f"{kind}, recurrent_dropout", recurrent_dropout
        )
        self.return_sequences, self.return_state = return_sequences, return_state
        self.go_backwards, self.stateful = go_backwards, stateful
        self.unroll, self.seed = unroll, seed
        self.zero_output_for_mask = zero_output_for_mask
        self._shape: tuple[int, int, int] | None = None  # B, T, F
        self._skipped: list[Array | None] = []
        self._given = False  # the initial states are inputs
        self._carried: list[Array] = []
        self._place: StepKey | None = None

    # -- what a subclass writes ------------------------------------------------------

    def _bias_shape(self) -> tuple[int, ...]:
        return (self.gates * self.units,)

    def _bias_init(self) -> Initializer:
        return self.bias_initializer

    def _begin(self, training: bool) -> None:
        """Take buffers and pack the weights for a pass over the time."""
        raise NotImplementedError(f"{type(self).__name__}._begin")

    def _step(self, t: int) -> None:
        """Write the states after step t."""
        raise NotImplementedError(f"{type(self).__name__}._step")

    def _begin_backward(self) -> int:
        """Transpose the weights, ...; return the columns of dz."""
        raise NotImplementedError(f"{type(self).__name__}._begin_backward")

    def _step_backward(self, t: int, grads: list[Array], dz: Array) -> None:
        """Write dz (B, columns) from the gradients of the states after step t."""
        raise NotImplementedError(f"{type(self).__name__}._step_backward")

    def _state_backward(self, grads: list[Array], dz: Array) -> None:
        """Make ``grads`` those of the states before the step."""
        raise NotImplementedError(f"{type(self).__name__}._state_backward")

    def _input_part(self, dz: Array) -> Array:
        """Return the columns of dz (..., columns) that the kernel has."""
        return dz

    def _collect(self, rows: Array, times: slice, dz: Array, first: bool) -> None:
        """Add to the weights' gradients: rows (P, N, K) of some steps, dz (N, ...)."""
        raise NotImplementedError(f"{type(self).__name__}._collect")

    def _store(self) -> None:
        """Write the gradients of the weights, which were collected."""
        raise NotImplementedError(f"{type(self).__name__}._store")

    # -- building --------------------------------------------------------------------

    def build(self, input_shape: Any) -> Any:
        states = input_shape[1:] if is_several(input_shape) else ()
        shape = input_shape[0] if is_several(input_shape) else input_shape
        features = self.check_features(shape, rank=2)
        columns, units = self.gates * self.units, self.units
        if is_several(input_shape) and states != ((units,),) * self.states:
            raise ShapeError(
                f"{type(self).__name__}: expected {self.states} initial state(s) of "
                f"shape ({units},) besides the sequence",
                f"{states}",
                "give as many states as the layer has, of its units",
            )
        self.kernel = self.param(
            "kernel",
            (features, columns),
            self.kernel_initializer,
            regularizer=self.kernel_regularizer,
            constraint=self.kernel_constraint,
        )
        self.recurrent_kernel = self.param(
            "recurrent_kernel",
            (units, columns),
            self.recurrent_initializer,
            regularizer=self.recurrent_regularizer,
            constraint=self.recurrent_constraint,
        )
        self.bias: Parameter | None = None
        if self.use_bias:
            self.bias = self.param(
                "bias",
                self._bias_shape(),
                self._bias_init(),
                decay=False,
                regularizer=self.bias_regularizer,
                constraint=self.bias_constraint,
            )
        output = (shape[0], units) if self.return_sequences else (units,)
        return (output, *[(units,)] * self.states) if self.return_state else output

    def output_mask(self) -> Any:
        mask = self._mask() if self.return_sequences else None
        return (mask, *[None] * self.states) if self.return_state else mask

    def _mask(self) -> Array | None:
        mask: Array | None = self.mask
        return mask[0] if isinstance(mask, tuple) else mask

    # -- forward ---------------------------------------------------------------------

    def forward(self, x: Any, training: Training = False) -> Any:
        x, *initial = x if isinstance(x, tuple) else (x,)
        batch, time, features = self._shape = x.shape
        if time < 1:
            raise ShapeError(
                f"{type(self).__name__}: expected a time of 1 or more",
                f"shape {x.shape}",
                "leave empty batches out",
            )
        self._given = bool(initial)
        self._kept = bool(training)  # all steps' gates stay, for backward
        self._drop(batch, features, training)
        self._lay_out(x)
        self._begin(self._kept)
        before = initial or self._carry(batch, training)
        for n in range(self.states):
            self._state(n, 0)[...] = before[n] if before else 0
        if self._recurrent_keep is not None:
            self._drop_state(0)
        self._skipped = self._steps_to_skip(time)
        y = None
        if self.return_sequences:
            y = self.buffer("y", (batch, time, self.units))
        for t, skip in enumerate(self._skipped):
            held = self._rows_of_states(t, skip)
            self._step(t)
            for n, rows in enumerate(held):
                self._state(n, t + 1)[skip] = rows
            h = self._hidden[t + 1]
            if self._recurrent_keep is not None:
                self._drop_state(t + 1)
            if y is not None:
                y[:, t] = h
                if skip is not None and self.zero_output_for_mask:
                    y[skip, t] = 0
        return self._outputs(y, training)

    def _rows_of_states(self, t: int, skip: Array | None) -> list[Array]:
        if skip is None:
            return []
        return [self._state(n, t)[skip] for n in range(self.states)]

    def _outputs(self, y: Array | None, training: Training) -> Any:
        batch, time, _ = self.saved(self._shape)
        last = []
        for n in range(self.states):
            last.append(self.buffer(f"last {n}", (batch, self.units)))
            last[n][...] = self._state(n, time)
        if self.stateful:
            self._carried = [array.copy() for array in last]
        if y is None:
            y = self.buffer("y", (batch, self.units))
            y[...] = last[0]
            skip = self._skipped[-1]
            if skip is not None and self.zero_output_for_mask:
                y[skip] = 0
        return (y, *last) if self.return_state else y

    def _drop(self, batch: int, features: int, training: Training) -> None:
        """Draw what this pass drops: (B, P, F) of x and (B, P, H) of h, or None."""
        parts = self.gates if self.recurrent_dropout else 1
        path = self.path if self.seed is None else f"{self.path}/{self.seed}"
        kept: list[Array | None] = []
        for name, rate, width in (
            ("dropout", self.dropout, features),
            ("recurrent_dropout", self.recurrent_dropout, self.units),
        ):
            kept.append(None)
            if training and rate:
                keep = self.buffer(name, (batch, parts, width))
                work = self.buffer(f"{name} work", (parts, width), np.float32)
                keep_factors(keep, rate, training, f"{path}/{name}", work)
                kept[-1] = keep
        self._input_keep, self._recurrent_keep = kept
        self._parts = parts if training else 1

    def _lay_out(self, x: Array) -> None:
        """Fill rows (P, T + 1, B, width) with 1 and x, and say where h goes."""
        batch, time, features = x.shape
        units = self.units
        self._columns = units + 1 + features
        width = -(-self._columns // LINE) * LINE
        rows = self.buffer("rows", (self._parts, time + 1, batch, width))
        by_time = x.transpose(1, 0, 2)
        if self.go_backwards:
            by_time = by_time[::-1]
        keep = self._input_keep
        for p, part in enumerate(rows):
            place = part[:time, :, units + 1 : self._columns]
            if keep is None:
                place[...] = by_time
            else:
                np.multiply(by_time, keep[:, p], out=place)
        rows[..., units] = 1
        self._rows = rows[..., : self._columns]
        if self._recurrent_keep is None:
            self._hidden = rows[0, :, :, :units]
        else:
            self._hidden = self.buffer("hidden", (time + 1, batch, units))

    def _drop_state(self, t: int) -> None:
        keep = self._recurrent_keep
        assert keep is not None
        for p in range(self._parts):
            np.multiply(
                self._hidden[t], keep[:, p], out=self._rows[p, t, :, : self.units]
            )

    def _state(self, n: int, t: int) -> Array:
        """Return state n (B, H) before step t."""
        return self._hidden[t]

    def _steps_to_skip(self, time: int) -> list[Array | None]:
        """Return for each step the rows that it leaves as they are, or None."""
        mask = self._mask()
        if mask is None:
            return [None] * time
        mask = np.asarray(mask, bool)
        if mask.shape != self.saved(self._shape)[:2]:
            raise ShapeError(
                f"{type(self).__name__}: expected a mask (batch, time) of "
                f"{self.saved(self._shape)[:2]}",
                f"shape {mask.shape}",
                "mask the input's own steps",
            )
        if mask.all():
            return [None] * time
        if self.go_backwards:
            mask = mask[:, ::-1]
        return [np.flatnonzero(~now) if not now.all() else None for now in mask.T]

    # -- states that go on -----------------------------------------------------------

    def reset_states(self) -> None:
        """Begin the next batch, which may have another size, with zeros (stateful)."""
        self._carried, self._place = [], None

    reset_state = reset_states

    def _carry(self, batch: int, training: Training) -> list[Array]:
        """Return the states that the last batch left, if the layer is stateful."""
        if not self.stateful:
            return []
        key = training if isinstance(training, StepKey) else None
        if self._carried and len(self._carried[0]) != batch:
            raise DataError(
                f"{type(self).__name__}, stateful: expected {len(self._carried[0])} "
                "rows, as in the batch before: each goes on where it was",
                f"{batch}",
                "take a batch size that divides the samples, and the ranks that; or "
                "call reset_states() in between",
            )
        known = self._place
        if key and known and key.first_row != known.first_row:
            raise StateError(
                f"{type(self).__name__}, stateful: expected the rows from "
                f"{known.first_row} of each batch, whose states are here",
                f"rows from {key.first_row}",
                "leave micro_batch out, or call reset_states() in between",
            )
        self._place = key or known
        return self._carried

    # -- backward --------------------------------------------------------------------

    def backward(self, dy: Any, done: Done = nothing) -> Any:
        batch, time, features = self.saved(self._shape)
        if not self._kept:
            raise StateError(
                f"{type(self).__name__}: expected a forward for training first",
                "backward after forward(x, training=False)",
                "call forward(x, training=StepKey())",
            )
        dy, *last = dy if self.return_state else (dy,)
        grads = self._gradients_of_states(dy, last)
        columns = self._begin_backward()
        steps = min(time, max(1, ROWS // batch))
        kept = self.scratch((steps, batch, columns))
        dx = None
        if self.input_gradient:
            dx = self.scratch((batch, time, features))
        for stop in range(time, 0, -steps):
            times = slice(max(0, stop - steps), stop)
            for t in range(stop - 1, times.start - 1, -1):
                self._back(t, grads, kept[t - times.start], dy)
            dz = kept[: stop - times.start].reshape(-1, columns)
            rows = self._rows[:, times].reshape(self._parts, len(dz), -1)
            self._collect(rows, times, dz, first=stop == time)
            if dx is not None:
                self._input_backward(dz, times, dx)
        self._store()
        return (dx, *grads) if self._given else dx

    def _gradients_of_states(self, dy: Any, last: Sequence[Any]) -> list[Array]:
        batch, _, _ = self.saved(self._shape)
        grads = []
        for n in range(self.states):
            grad = self.scratch((batch, self.units))
            grad[...] = last[n] if last and last[n] is not None else 0
            grads.append(grad)
        if dy is not None and not self.return_sequences:
            self._add_output(grads[0], dy, self._skipped[-1])
        return grads

    def _add_output(self, grad: Array, dy: Array, skip: Array | None) -> None:
        """Add the output's gradient; of skipped rows it is h too, or a constant 0."""
        if skip is None or not self.zero_output_for_mask:
            np.add(grad, dy, out=grad)
        else:
            held = grad[skip]
            np.add(grad, dy, out=grad)
            grad[skip] = held

    def _back(self, t: int, grads: list[Array], dz: Array, dy: Array | None) -> None:
        skip = self._skipped[t]
        if dy is not None and self.return_sequences:
            self._add_output(grads[0], dy[:, t], skip)
        held = [grad[skip] for grad in grads] if skip is not None else []
        self._step_backward(t, grads, dz)
        if skip is not None:
            dz[skip] = 0
        if t or self._given:
            self._state_backward(grads, dz)
        for n, rows in enumerate(held):
            grads[n][skip] = rows

    def _input_backward(self, dz: Array, times: slice, dx: Array) -> None:
        batch, _, features = self.saved(self._shape)
        part, weights, keep = self._input_part(dz), self._kernel_t, self._input_keep
        by_time = (dx[:, ::-1] if self.go_backwards else dx).transpose(1, 0, 2)[times]
        if self._parts == 1 and weights.rows:  # each step's product goes to its place
            multiply(part.reshape(*by_time.shape[:2], -1), weights, by_time)
            if keep is not None:
                np.multiply(by_time, keep[:, 0], out=by_time)
            return
        out = self.scratch((len(dz) // batch, batch, features))
        self._product(part, weights, keep, range(self.gates), out)
        by_time[...] = out

    def _product(
        self,
        dz: Array,
        weights: Pieces,
        keep: Array | None,
        order: Sequence[int],
        out: Array,
    ) -> None:
        """Write to out (..., B, C) dz (N, G H) times weights (G H, C), with dropout.

        ``order`` says for each gate of dz which part of ``keep`` is its.
        """
        flat = out.reshape(len(dz), -1)
        if self._parts == 1:
            multiply(dz, weights, flat)
            if keep is not None:
                np.multiply(out, keep[:, 0], out=out)
            return
        work = self.scratch(out.shape)
        for j, p in enumerate(order):
            columns = slice(j * self.units, (j + 1) * self.units)
            target = work if j else out
            multiply(dz[:, columns], weights.part(columns), target.reshape(flat.shape))
            if keep is not None:
                np.multiply(target, keep[:, p], out=target)
            if j:
                np.add(out, work, out=out)

    def _sum(
        self, name: str, rows: Array, dz: Array, order: Sequence[int], first: bool
    ) -> None:
        """Add rowsᵀ dz, of rows (P, N, C) and dz (N, G H), to the buffer ``name``."""
        total = self.buffer(name, (rows.shape[2], dz.shape[1]))
        if self._parts == 1:
            pieces = [(rows[0], dz, total)]
        else:
            pieces = []
            for j, p in enumerate(order):
                columns = slice(j * self.units, (j + 1) * self.units)
                pieces.append((rows[p], dz[:, columns], total[:, columns]))
        for left, right, out in pieces:
            if first:
                np.matmul(left.T, right, out=out)
            else:
                add_product(left, right, out)

    # -- weights, gate by gate -------------------------------------------------------

    def _of_gate(self, array: Array, gate: int) -> Array:
        """Return the columns of a gate, in Keras' order."""
        return array[..., gate * self.units : (gate + 1) * self.units]

    def _packed(self, name: str, order: Sequence[int], halves: int) -> Pieces:
        """Return [U; b; W] (G, K, H), the gates in this order, the first ones halved.

        The row of b is zeros if the bias isn't one vector.
        """
        units, half = self.units, self.dtype.type(0.5)
        rows, width = piece(self.saved(self._shape)[0], self._columns, units)
        pieces = units // width
        out = self.buffer(name, (len(order), pieces, 1, self._columns, width))
        for j, gate in enumerate(order):
            by_row = out[j, :, 0].transpose(1, 0, 2)  # (K, pieces, width)
            by_row[units] = 0
            for value, place in (
                (self.recurrent_kernel.value, slice(0, units)),
                (self.kernel.value, slice(units + 1, None)),
            ):
                part = self._of_gate(value, gate)
                by_row[place] = part.reshape(-1, pieces, width)
            if self.bias is not None and self.bias.value.ndim == 1:
                part = self._of_gate(self.bias.value, gate)
                by_row[units] = part.reshape(pieces, width)
        if halves:
            np.multiply(out[:halves], half, out=out[:halves])
        return Pieces(out, rows)

    def _transposed(self, name: str, weights: Array, order: Sequence[int]) -> Pieces:
        """Return weights (R, G H) as (G H, R), the gates in this order."""
        count, units = len(weights), self.units
        depth = len(order) * units
        rows, width = piece(self.saved(self._shape)[0], depth, count)
        out = self.buffer(name, (count // width, 1, depth, width))
        for j, gate in enumerate(order):
            block = out[:, 0, j * units : (j + 1) * units]
            part = self._of_gate(weights, gate)
            for i in range(0, count, 8):  # of whole cache lines
                n, k = divmod(i, width)
                block[n, :, k : k + 8] = part[i : i + 8].T
        return Pieces(out, rows)

    def _grads(self) -> Iterator[tuple[Parameter, slice]]:
        """Yield each weight that is trained with its rows among [U; b; W]."""
        units = self.units
        for parameter, rows in (
            (self.recurrent_kernel, slice(0, units)),
            (self.bias, slice(units, units + 1)),
            (self.kernel, slice(units + 1, self._columns)),
        ):
            if parameter is not None and parameter.trainable:
                yield parameter, rows


@contextmanager
def states_kept(root: Layer) -> Iterator[None]:
    """Within it a model may be run on the side: states that go on from batch to batch
    are afterwards what they were."""
    layers = [layer for _, layer in root.walk() if isinstance(layer, Recurrent)]
    before = [(layer._carried, layer._place) for layer in layers]
    try:
        yield
    finally:
        for layer, (carried, place) in zip(layers, before, strict=True):
            layer._carried, layer._place = carried, place


class SimpleRNN(Recurrent):
    """h = φ(x W + h' U + b), where φ is ``activation`` (Elman, 1990).

    Input (batch, time, features), or a tuple of it and the initial states (batch,
    units), which are zeros otherwise. Output (batch, time, units) with
    ``return_sequences``, else (batch, units), the last one. Weights: ``kernel``
    (features, units), ``recurrent_kernel`` (units, units), ``bias`` (units).

    Args:
        units: numbers in a state.
        dropout, recurrent_dropout: shares of x and of h that are dropped in training,
            the same ones in all steps of a sample; LSTM and GRU have other ones of h
            for each gate.
        return_sequences: give the outputs of all steps.
        return_state: give a tuple of the output and the last states.
        go_backwards: begin with the last step; outputs come in the order in which they
            are computed.
        stateful: begin each batch where the last one ended, row by row, until
            ``reset_states()``. Backward stops there; every batch must have the same
            size, without micro-batches.
        unroll: changes nothing here.
        zero_output_for_mask: where the mask (batch, time) is false give zeros, instead
            of the output of the step before; the state stays in both.
    """

    def _begin(self, training: bool) -> None:
        batch, time, _ = self.saved(self._shape)
        self._weights = self._packed("weights", (0,), halves=0)
        shape = (time if training else 1, batch, self.units)
        self._z = self.buffer("z", shape)
        needs = self.activation.needs_slope
        self._slopes = self.buffer("slopes", shape) if needs else self._z

    def _step(self, t: int) -> None:
        k = t if self._kept else 0
        z = self._z[k]
        multiply(self._rows[0, t], self._weights, z)
        slope = self._slopes[k] if self.activation.needs_slope else None
        lstm.apply(self.activation, z, slope)
        self._hidden[t + 1] = z

    def _begin_backward(self) -> int:
        self._kernel_t = self._transposed("kernel_t", self.kernel.value, (0,))
        self._recurrent_t = self._transposed(
            "recurrent_t", self.recurrent_kernel.value, (0,)
        )
        return self.units

    def _step_backward(self, t: int, grads: list[Array], dz: Array) -> None:
        self.activation.backward(grads[0], self._slopes[t], dz)

    def _state_backward(self, grads: list[Array], dz: Array) -> None:
        self._product(dz, self._recurrent_t, self._recurrent_keep, (0,), grads[0])

    def _collect(self, rows: Array, times: slice, dz: Array, first: bool) -> None:
        self._sum("gradient", rows, dz, (0,), first)

    def _store(self) -> None:
        total = self._buffers["gradient"]
        for parameter, rows in self._grads():
            parameter.grad[...] = total[rows].reshape(parameter.shape)


class LSTM(Recurrent):
    """Long short-term memory (Hochreiter, Schmidhuber, 1997).

    i, f, o = σ(x W + h' U + b), c = f c' + i φ(x W + h' U + b), h = o φ(c), where φ is
    ``activation`` and σ ``recurrent_activation``. States h, c. The columns of the
    weights, (features, 4 units) and (units, 4 units), are i, f, c, o; ``bias`` is (4
    units), 1 for f at first with ``unit_forget_bias``. Shapes and other arguments are
    those of ``SimpleRNN``.
    """

    gates = 4
    states = 2

    def __init__(
        self,
        units: int,
        activation: str | activations.Activation | None = "tanh",
        recurrent_activation: str | activations.Activation | None = "sigmoid",
        use_bias: bool = True,
        kernel_initializer: str | Initializer = "glorot_uniform",
        recurrent_initializer: str | Initializer = "orthogonal",
        bias_initializer: str | Initializer = "zeros",
        unit_forget_bias: bool = True,
        kernel_regularizer: str | Regularizer | None = None,
        recurrent_regularizer: str | Regularizer | None = None,
        bias_regularizer: str | Regularizer | None = None,
        kernel_constraint: str | Constraint | None = None,
        recurrent_constraint: str | Constraint | None = None,
        bias_constraint: str | Constraint | None = None,
        dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        seed: int | None = None,
        return_sequences: bool = False,
        return_state: bool = False,
        go_backwards: bool = False,
        stateful: bool = False,
        unroll: bool = False,
        zero_output_for_mask: bool = False,
        input_shape: Shape | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(
            units,
            activation,
            use_bias,
            kernel_initializer,
            recurrent_initializer,
            bias_initializer,
            kernel_regularizer,
            recurrent_regularizer,
            bias_regularizer,
            kernel_constraint,
            recurrent_constraint,
            bias_constraint,
            dropout,
            recurrent_dropout,
            return_sequences,
            return_state,
            go_backwards,
            stateful,
            unroll,
            zero_output_for_mask,
            seed,
            input_shape,
            name,
        )
        self.recurrent_activation = activations.get(recurrent_activation)
        self.unit_forget_bias = unit_forget_bias

    def _bias_init(self) -> Initializer:
        if not self.unit_forget_bias:
            return self.bias_initializer
        units, init = self.units, self.bias_initializer

        def initial(shape: tuple[int, ...], rng: np.random.Generator) -> Array:
            bias = np.ones(shape, np.float32)
            bias[:units] = init((units,), rng)
            bias[2 * units :] = init((2 * units,), rng)
            return bias

        return initial

    def _begin(self, training: bool) -> None:
        batch, time, _ = self.saved(self._shape)
        self._functions = (self.activation, self.recurrent_activation)
        self._fast = lstm.usual(self._functions)
        self._weights = self._packed("weights", lstm.ORDER, halves=self._fast * 3)
        # the last one for c alone; without backward two take turns
        steps = time + 1 if training else 2
        self._gates = self.buffer("gates", (steps, 5, batch, self.units))
        shape = (steps if not self._fast else 0, 5, batch, self.units)
        self._slopes = self.buffer("slopes", shape)
        self._work = self.buffer("work", (4, batch, self.units))

    def _state(self, n: int, t: int) -> Array:
        """Return h or c before step t."""
        if n == 0:
            return self._hidden[t]
        c: Array = self._gates[t if self._kept else t % 2, 4]
        return c

    def _step(self, t: int) -> None:
        k = t if self._kept else t % 2
        gates, c, h = self._gates[k], self._state(1, t + 1), self._hidden[t + 1]
        if self._fast:
            multiply(self._rows[:, t], self._weights, self._work)
            lstm.step(gates, c, h, self._work)
        else:
            multiply(self._rows[:, t], self._weights, gates[:4])
            lstm.step_of(self._functions, gates, c, h, self._work, self._slopes[k])

    def _begin_backward(self) -> int:
        order = lstm.ORDER
        self._kernel_t = self._transposed("kernel_t", self.kernel.value, order)
        self._recurrent_t = self._transposed(
            "recurrent_t", self.recurrent_kernel.value, order
        )
        self._work = self.buffer("work", (4, self._gates.shape[2], self.units))
        return 4 * self.units

    def _step_backward(self, t: int, grads: list[Array], dz: Array) -> None:
        gates, c = self._gates[t], self._gates[t + 1, 4]
        if self._fast:
            lstm.step_backward(gates, c, grads[0], grads[1], dz, self._work)
        else:
            dh, dc = grads
            lstm.step_backward_of(
                self._functions, gates, c, dh, dc, dz, self._work, self._slopes[t]
            )

    def _state_backward(self, grads: list[Array], dz: Array) -> None:
        keep = self._recurrent_keep
        self._product(dz, self._recurrent_t, keep, range(4), grads[0])

    def _collect(self, rows: Array, times: slice, dz: Array, first: bool) -> None:
        self._sum("gradient", rows, dz, range(4), first)

    def _store(self) -> None:
        total = self._buffers["gradient"]
        for parameter, rows in self._grads():
            grad = parameter.grad.reshape(-1, 4 * self.units)
            for j, gate in enumerate(lstm.ORDER):
                self._of_gate(grad, gate)[...] = self._of_gate(total[rows], j)


class GRU(Recurrent):
    """Gated recurrent unit (Cho et al., 2014).

    z, r = σ(x W + b + h' U + b'), h = z h' + (1 - z) n, where n is, with φ
    ``activation`` and σ ``recurrent_activation``: φ(x W + b + r (h' U + b')) with
    ``reset_after``, else φ(x W + b + (r h') U). The columns of the weights are z, r, n;
    ``bias`` is (2, 3 units), b and b', with ``reset_after``, else (3 units). Shapes and
    other arguments are those of ``SimpleRNN``.
    """

    gates = 3

    def __init__(
        self,
        units: int,
        activation: str | activations.Activation | None = "tanh",
        recurrent_activation: str | activations.Activation | None = "sigmoid",
        use_bias: bool = True,
        kernel_initializer: str | Initializer = "glorot_uniform",
        recurrent_initializer: str | Initializer = "orthogonal",
        bias_initializer: str | Initializer = "zeros",
        kernel_regularizer: str | Regularizer | None = None,
        recurrent_regularizer: str | Regularizer | None = None,
        bias_regularizer: str | Regularizer | None = None,
        kernel_constraint: str | Constraint | None = None,
        recurrent_constraint: str | Constraint | None = None,
        bias_constraint: str | Constraint | None = None,
        dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        seed: int | None = None,
        return_sequences: bool = False,
        return_state: bool = False,
        go_backwards: bool = False,
        stateful: bool = False,
        unroll: bool = False,
        zero_output_for_mask: bool = False,
        reset_after: bool = True,
        input_shape: Shape | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(
            units,
            activation,
            use_bias,
            kernel_initializer,
            recurrent_initializer,
            bias_initializer,
            kernel_regularizer,
            recurrent_regularizer,
            bias_regularizer,
            kernel_constraint,
            recurrent_constraint,
            bias_constraint,
            dropout,
            recurrent_dropout,
            return_sequences,
            return_state,
            go_backwards,
            stateful,
            unroll,
            zero_output_for_mask,
            seed,
            input_shape,
            name,
        )
        self.recurrent_activation = activations.get(recurrent_activation)
        self.reset_after = reset_after

    def _bias_shape(self) -> tuple[int, ...]:
        columns = 3 * self.units
        return (2, columns) if self.reset_after else (columns,)

    def _begin(self, training: bool) -> None:
        batch, time, _ = self.saved(self._shape)
        units = self.units
        self._functions = (self.activation, self.recurrent_activation)
        self._fast = lstm.usual(self._functions)
        weights, rows = self._packed("weights", (0, 1, 2), halves=self._fast * 2)
        of_h = self.buffer("of h", (*weights.shape[1:3], units + 1, weights.shape[4]))
        of_h[..., :units, :] = weights[2, ..., :units, :]
        of_h[..., units, :] = 0
        if self.bias is not None and self.reset_after:
            half = self.dtype.type(0.5 if self._fast else 1)
            biases = self.bias.value.reshape(2, 3, *weights.shape[1:3], -1)
            of_x = weights[..., units, :]  # their row of biases
            np.add(biases[0, :2], biases[1, :2], out=of_x[:2])
            np.multiply(of_x[:2], half, out=of_x[:2])
            of_x[2] = biases[0, 2]
            of_h[..., units, :] = biases[1, 2]
        self._open = Pieces(weights[:2], rows)
        self._of_x = Pieces(weights[2], rows).part(slice(units, None))
        self._of_h = Pieces(of_h, rows)
        steps = time if training else 1
        self._gates = self.buffer("gates", (steps, 3, batch, units))
        self._inner = self.buffer("inner", (steps, batch, units))
        shape = (0 if self._fast else steps, 3, batch, units)
        self._slopes = self.buffer("slopes", shape)
        self._work = self.buffer("work", (4, batch, units))

    def _step(self, t: int) -> None:
        k = t if self._kept else 0
        gates, inner, work = self._gates[k], self._inner[k], self._work[0]
        functions, fast, units = self._functions, self._fast, self.units
        slopes = gates if fast else self._slopes[k]
        rows, last = self._rows[:, t], self._rows[-1, t]
        multiply(rows[:2], self._open, gates[:2])
        multiply(last[:, units:], self._of_x, gates[2])
        gru.open_gates(functions, fast, gates[:2], slopes[:2])
        if self.reset_after:
            multiply(last[:, : units + 1], self._of_h, inner)
            np.multiply(gates[1], inner, out=work)
        else:
            np.multiply(gates[1], last[:, :units], out=inner)
            multiply(inner, self._of_h.part(slice(units)), work)
        np.add(gates[2], work, out=gates[2])
        before, h = self._hidden[t], self._hidden[t + 1]
        gru.mix(functions, fast, gates, before, h, work, slopes[2])

    def _begin_backward(self) -> int:
        self._kernel_t = self._transposed("kernel_t", self.kernel.value, (0, 1, 2))
        self._recurrent_t = self._transposed(
            "recurrent_t", self.recurrent_kernel.value, (2, 0, 1)
        )
        self._work = self.buffer("work", (4, self._gates.shape[2], self.units))
        return 4 * self.units

    def _step_backward(self, t: int, grads: list[Array], dz: Array) -> None:
        gates, inner, work = self._gates[t], self._inner[t], self._work
        functions, fast, units = self._functions, self._fast, self.units
        slopes = gates if fast else self._slopes[t]
        by_gate = gru.columns(dz)
        share, dn = gru.mix_backward(
            functions, fast, gates, self._hidden[t], grads[0], dz, work, slopes
        )
        drh = work[2]
        if self.reset_after:
            np.multiply(dn, gates[1], out=drh)
            by_gate[0] = drh
            if not fast:
                drh[...] = dn
            other = inner
        else:
            multiply(dn, self._recurrent_t.part(slice(units)), drh)
            other = self._rows[-1, t, :, :units]
            np.multiply(drh, gates[1], out=dn)
            if self._recurrent_keep is None:
                np.add(share, dn, out=share)
            else:
                np.multiply(dn, self._recurrent_keep[:, -1], out=work[3])
                np.add(share, work[3], out=share)
            if fast:
                drh[...] = dn
        gru.reset_backward(
            functions, fast, gates, drh, other, by_gate[2], work[3], slopes
        )

    def _state_backward(self, grads: list[Array], dz: Array) -> None:
        keep, units = self._recurrent_keep, self.units
        order: Sequence[int] = (2, 0, 1) if self.reset_after else (0, 1)
        part = slice(0 if self.reset_after else units, 3 * units)
        weights = self._recurrent_t.part(part)
        self._product(dz[:, part], weights, keep, order, grads[0])
        np.add(grads[0], self._work[0], out=grads[0])

    def _input_part(self, dz: Array) -> Array:
        return dz[:, self.units :]

    def _collect(self, rows: Array, times: slice, dz: Array, first: bool) -> None:
        units = self.units
        self._sum("of x", rows[..., units:], dz[:, units:], (0, 1, 2), first)
        rows = rows[..., : units + 1]
        if self.reset_after:
            self._sum("of h'", rows, dz[:, : 3 * units], (2, 0, 1), first)
            return
        self._sum("of h'", rows, dz[:, units : 3 * units], (0, 1), first)
        total = self.buffer("of r h'", (units, units))
        reset = self._inner[times].reshape(-1, units)
        if first:
            np.matmul(reset.T, dz[:, 3 * units :], out=total)
        else:
            add_product(reset, dz[:, 3 * units :], total)

    def _store(self) -> None:
        units = self.units
        of_x, of_h = self._buffers["of x"], self._buffers["of h'"]
        if self.kernel.trainable:
            self.kernel.grad[...] = of_x[1:]
        order = (2, 0, 1) if self.reset_after else (0, 1)
        if self.recurrent_kernel.trainable:
            grad = self.recurrent_kernel.grad
            for j, gate in enumerate(order):
                self._of_gate(grad, gate)[...] = self._of_gate(of_h[:units], j)
            if not self.reset_after:
                self._of_gate(grad, 2)[...] = self._buffers["of r h'"]
        if self.bias is not None and self.bias.trainable:
            first = self.bias.grad.reshape(-1, 3 * units)
            first[0] = of_x[0]
            if self.reset_after:
                for j, gate in enumerate(order):
                    self._of_gate(first[1], gate)[...] = self._of_gate(of_h[units], j)
