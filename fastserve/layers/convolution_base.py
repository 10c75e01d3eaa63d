"""What the convolutions share: checks of arguments, bias and activation."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from fastserve.core import (
    Array,
    Done,
    Layer,
    Shape,
    Training,
    constraints,
    initializers,
    nothing,
    regularizers,
)
from fastserve.core.constraints import Constraint
from fastserve.core.initializers import Initializer
from fastserve.core.parameter import Parameter
from fastserve.core.regularizers import Regularizer
from fastserve.errors import ArgumentError, ShapeError
from fastserve.layers.dense import fusable
from fastserve.ops import activations
from fastserve.ops.blocks import FLAT, as_rows, row_blocks
from fastserve.ops.convolution import add_row
from fastserve.ops.linear import sum_rows
from fastserve.ops.windows import Axis

Axes = tuple[Axis, Axis]
Sizes = int | Sequence[int]


def extents(
    kind: str, argument: str, value: Sizes, rank: int, least: int = 1
) -> tuple[int, ...]:
    """Return ``rank`` integers; one alone counts for all axes."""
    values: list[Any] = (
        [value] * rank if not isinstance(value, Iterable) else list(value)
    )
    good = all(
        hasattr(n, "__index__") and not isinstance(n, bool) and n >= least
        for n in values
    )
    if len(values) != rank or not good:
        wanted = f"{rank} integers" if rank > 1 else "an integer"
        raise ArgumentError(
            f"{kind}: expected {argument} to be {wanted} of {least} or more",
            repr(value),
            f"change {argument}",
        )
    return tuple(n.__index__() for n in values)


def check_choice(kind: str, argument: str, value: str, known: tuple[str, ...]) -> str:
    """Return ``value`` in lower case; raise ArgumentError unless it is known."""
    lower = value.lower() if isinstance(value, str) else value
    if lower not in known:
        raise ArgumentError(
            f"{kind}: expected {argument} to be one of {', '.join(map(repr, known))}",
            repr(value),
            f"change {argument}",
        )
    return lower


def check_channels_last(kind: str, data_format: str | None) -> None:
    """Raise ArgumentError unless images are (height, width, channels)."""
    if data_format not in (None, "channels_last"):
        raise ArgumentError(
            f"{kind}: expected data_format None or 'channels_last'",
            repr(data_format),
            "transpose the images to (batch, height, width, channels) beforehand, for"
            " example x.transpose(0, 2, 3, 1)",
        )


def check_rank(layer: Layer, shape: Shape, rank: int) -> int:
    """Return the channels of (H, W, C) or (T, C); raise ShapeError for other ranks."""
    axes = "(time, channels)" if rank == 1 else "(height, width, channels)"
    if len(shape) != rank + 1 or shape[-1] is None:
        raise ShapeError(
            f"{type(layer).__name__}: expected an input of {axes} besides the batch,"
            " with known channels",
            f"shape {shape}",
            "reshape the data; a grey image has an axis of 1 channel"
            if rank == 2
            else "reshape the data; a plain series has an axis of 1 channel",
        )
    return int(shape[-1])


def check_output(
    layer: Layer, sizes: Sequence[int | None], outs: Sequence[int]
) -> None:
    """Raise ShapeError if an axis has no output left."""
    if any(out < 1 for out in outs):
        raise ShapeError(
            f"{type(layer).__name__}: expected an input that its windows fit into",
            f"an input of {' x '.join(map(str, sizes))}, too small for windows of"
            f" {' x '.join(map(str, layer.window))}",  # type: ignore[attr-defined]
            "use padding='same', smaller windows or a larger input",
        )


def as_image(x: Array, rank: int) -> Array:
    """(N, T, C) as (N, 1, T, C); an image as it is."""
    return x if rank == 2 else x[:, None]


class Filtering(Layer):
    """activation(f(x) + bias) for a map f of images; a subclass writes f.

    It writes ``make_weights``, ``axis`` and the three maps below.

    Attributes:
        bare: while it is set, ``forward`` returns f(x) alone.
    """

    rank = 2
    window: tuple[int, ...]  # what an output reads, for error messages

    def __init__(
        self,
        activation: str | activations.Activation | None,
        use_bias: bool,
        bias_initializer: str | Initializer,
        bias_regularizer: str | Regularizer | None,
        bias_constraint: str | Constraint | None,
        input_shape: Shape | None,
        name: str | None,
    ) -> None:
        super().__init__(input_shape, name)
        self.activation = activations.get(activation)
        self.use_bias = use_bias
        self.bias_initializer = initializers.get(bias_initializer)
        self.bias_regularizer = regularizers.get(bias_regularizer)
        self.bias_constraint = constraints.get(bias_constraint)
        self.fused_loss = fusable(self.activation)
        self._x: Array | None = None
        self.bare = False

    # -- what a subclass writes ------------------------------------------------

    def make_weights(self, channels: int) -> int:
        """Make the weights besides the bias; return the output's channels."""
        raise NotImplementedError(f"{type(self).__name__}.make_weights")

    def axis(self, size: int, i: int) -> Axis:
        """Return the windows along axis ``i`` for this many inputs."""
        raise NotImplementedError(f"{type(self).__name__}.axis")

    def outputs(self, axis: Axis) -> int:
        return axis.out

    def map(self, x: Array, z: Array, axes: Axes, training: bool) -> None:
        """Write z from x, and call ``finish`` for all rows of z."""
        raise NotImplementedError(f"{type(self).__name__}.map")

    def map_back(self, x: Array, dz: Array, dx: Array | None, axes: Axes) -> None:
        """Write the weights' gradients, and dx unless it is None."""
        raise NotImplementedError(f"{type(self).__name__}.map_back")

    # ---------------------------------------------------------------------------

    def weight(self, name: str, shape: tuple[int, ...], kind: str) -> Parameter:
        """Make a weight with initializer, regularizer and constraint of ``kind``."""
        return self.param(
            name,
            shape,
            getattr(self, f"{kind}_initializer"),
            regularizer=getattr(self, f"{kind}_regularizer"),
            constraint=getattr(self, f"{kind}_constraint"),
        )

    def build(self, input_shape: Shape) -> Shape:
        channels = check_rank(self, input_shape, self.rank)
        sizes = input_shape[:-1]
        known = [None if n is None else self.axis(n, i) for i, n in enumerate(sizes)]
        outs = [None if axis is None else self.outputs(axis) for axis in known]
        check_output(self, sizes, [1 if out is None else out for out in outs])
        filters = self.make_weights(channels)
        if self.use_bias:
            self.bias = self.weight("bias", (filters,), "bias")
        self.filters_out = filters
        return (*outs, filters)

    def axes(self, x: Array) -> Axes:
        """Return the windows of an input (N, H, W, C)."""
        if self.rank == 1:
            one = self.axis(x.shape[2], 0)
            check_output(self, x.shape[2:3], [self.outputs(one)])
            return Axis(1, 1, out=1), one
        h, w = self.axis(x.shape[1], 0), self.axis(x.shape[2], 1)
        check_output(self, x.shape[1:3], [self.outputs(h), self.outputs(w)])
        return h, w

    def forward(self, x: Array, training: Training = False) -> Array:
        self._x = x = as_image(x, self.rank)
        axes = self.axes(x)
        outs = tuple(self.outputs(axis) for axis in axes)
        z = self.buffer("z", (x.shape[0], *outs, self.filters_out))
        # y takes z's place where backward needs neither z nor z's derivative
        apart = self.activation.needs_slope or self.fused_loss is not None
        apart = apart and not self.bare
        y = self.buffer("y", z.shape) if apart else z
        self._y = y
        self.map(x, z, axes, bool(training))
        return y if self.rank == 2 else y[:, 0]

    def finish(self, z: Array, rows: slice, training: bool) -> None:
        """Add the bias and apply the activation to rows of z, while in the cache."""
        if self.bare:
            return
        linear = self.activation.name == "linear"
        if linear and not self.use_bias:
            return
        z, y = as_rows(z)[rows], as_rows(self._y)[rows]
        for block in row_blocks(z.shape[0], z.shape[1], FLAT):
            part = z[block]
            if self.use_bias:
                add_row(part, self.bias.value)
            if not linear:
                slope = part if training and self.activation.needs_slope else None
                self.activation.forward(part, y[block], slope)

    def output_mask(self) -> None:
        return None

    def output_spare(self) -> bool:
        return self.activation.name == "linear"

    def backward(self, dy: Array, done: Done = nothing) -> Any:
        if self.activation.name == "linear":
            return self.backward_logits(dy, done)
        self.saved(self._x)
        dy = as_image(dy, self.rank)
        saved = self._buffers["z" if self.activation.needs_slope else self._output]
        dz = self.scratch(dy.shape)
        self.activation.backward(as_rows(dy), as_rows(saved), as_rows(dz))
        return self._backward(dz)

    @property
    def _output(self) -> str:
        return "z" if self.fused_loss is None else "y"

    def logits(self) -> Array:
        z = self._buffers["z"]
        return z if self.rank == 2 else z[:, 0]

    def backward_logits(self, dz: Array, done: Done = nothing) -> Any:
        return self._backward(as_image(dz, self.rank))

    def backward_bare(self, dz: Array) -> Any:
        """``backward`` where ``forward`` was bare."""
        return self._map_back(as_image(dz, self.rank))

    def _backward(self, dz: Array) -> Any:
        if self.use_bias and self.bias.trainable:
            sum_rows(as_rows(dz), self.bias.grad)
        return self._map_back(dz)

    def _map_back(self, dz: Array) -> Any:
        x = self.saved(self._x)
        dx = self.scratch(x.shape) if self.input_gradient else None
        self.map_back(x, dz, dx, self.axes(x))
        return dx if dx is None or self.rank == 2 else dx[:, 0]
