"""Conv1D and Conv2D, and their transposes Conv1DTranspose and Conv2DTranspose."""

from __future__ import annotations

import functools

from fastserve.core import Array, Shape, constraints, initializers, regularizers
from fastserve.core.constraints import Constraint
from fastserve.core.initializers import Initializer
from fastserve.core.regularizers import Regularizer
from fastserve.errors import ArgumentError, ShapeError
from fastserve.layers.convolution_base import (
    Axes,
    Filtering,
    Sizes,
    check_channels_last,
    check_choice,
    extents,
)
from fastserve.ops import convolution
from fastserve.ops.activations import Activation
from fastserve.ops.windows import Axis, transposed_axis, window_axis


def window_sizes(kernel: tuple[int, ...], dilation: tuple[int, ...]) -> tuple[int, ...]:
    return tuple((k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True))


def check_strides(
    kind: str, strides: tuple[int, ...], dilation: tuple[int, ...]
) -> None:
    if max(strides) > 1 and max(dilation) > 1:
        raise ArgumentError(
            f"{kind}: expected strides of 1 or a dilation_rate of 1",
            f"strides={strides}, dilation_rate={dilation}",
            "leave one of them out",
        )


class Conv2D(Filtering):
    """y = activation(convolution(x, kernel) + bias), over height and width.

    Input (batch, height, width, channels), output (batch, height', width', filters).
    Weights: ``kernel`` (kernel rows, kernel columns, channels / groups, filters) and,
    unless ``use_bias`` is false, ``bias`` (filters). The formula is in
    ``ops/convolution.py``; with a stride of 1 large ones are computed by Winograd's
    algorithm (``ops/winograd.py``), whose rounding errors are some 1e-6 of the output.

    Args:
        filters: channels of the output.
        kernel_size: rows and columns that an output reads; an integer counts for both.
        strides: inputs from one output to the next.
        padding: 'valid' (only where the kernel fits), 'same' (zeros around, so that
            height' is height / stride, rounded up).
        data_format: only 'channels_last'.
        dilation_rate: inputs from one of the kernel's places to the next; strides and
            dilation can't both be above 1.
        groups: parts that channels and filters are cut into; each filter sees its own
            part's channels.
    """

    rank = 2
    paddings: tuple[str, ...] = ("valid", "same")

    def __init__(
        self,
        filters: int,
        kernel_size: Sizes,
        strides: Sizes = 1,
        padding: str = "valid",
        data_format: str | None = None,
        dilation_rate: Sizes = 1,
        groups: int = 1,
        activation: str | Activation | None = None,
        use_bias: bool = True,
        kernel_initializer: str | Initializer = "glorot_uniform",
        bias_initializer: str | Initializer = "zeros",
        kernel_regularizer: str | Regularizer | None = None,
        bias_regularizer: str | Regularizer | None = None,
        kernel_constraint: str | Constraint | None = None,
        bias_constraint: str | Constraint | None = None,
        input_shape: Shape | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(
            activation,
            use_bias,
            bias_initializer,
            bias_regularizer,
            bias_constraint,
            input_shape,
            name,
        )
        kind = type(self).__name__
        self.filters = self.positive("filters", filters)
        self.groups = self.positive("groups", groups)
        self.kernel_size = extents(kind, "kernel_size", kernel_size, self.rank)
        self.strides = extents(kind, "strides", strides, self.rank)
        self.dilation_rate = extents(kind, "dilation_rate", dilation_rate, self.rank)
        self.padding = check_choice(kind, "padding", padding, self.paddings)
        check_channels_last(kind, data_format)
        check_strides(kind, self.strides, self.dilation_rate)
        if self.filters % self.groups:
            raise ArgumentError(
                f"{kind}: expected filters that can be cut into groups of one size",
                f"filters={filters}, groups={groups}",
                "make filters a multiple of groups",
            )
        self.kernel_initializer = initializers.get(kernel_initializer)
        self.kernel_regularizer = regularizers.get(kernel_regularizer)
        self.kernel_constraint = constraints.get(kernel_constraint)
        self.window = window_sizes(self.kernel_size, self.dilation_rate)
        self._kept: Array | None = None  # of forward, for the gradient

    def axis(self, size: int, i: int) -> Axis:
        return window_axis(
            size,
            self.kernel_size[i],
            self.strides[i],
            self.dilation_rate[i],
            self.padding,
        )

    def make_weights(self, channels: int) -> int:
        if channels % self.groups:
            raise ShapeError(
                f"{type(self).__name__}: expected channels that can be cut into"
                f" {self.groups} groups of one size",
                f"{channels} channels",
                "change groups, or the filters of the layer before",
            )
        shape = (*self.kernel_size, channels // self.groups, self.filters)
        self.kernel = self.weight("kernel", shape, "kernel")
        return self.filters

    def _image_kernel(self, kernel: Array) -> Array:
        return kernel if self.rank == 2 else kernel[None]

    def map(self, x: Array, z: Array, axes: Axes, training: bool) -> None:
        finish = functools.partial(self.finish, z, training=training)
        kernel = self._image_kernel(self.kernel.value)
        size = convolution.to_keep(len(x), kernel, axes, self.groups) if training else 0
        self._kept = self.buffer("kept", (size,)) if size else None
        convolution.forward(x, kernel, z, axes, self.groups, finish, self._kept)

    def map_back(self, x: Array, dz: Array, dx: Array | None, axes: Axes) -> None:
        kernel = self._image_kernel(self.kernel.value)
        trains = self.kernel.trainable
        dkernel = self._image_kernel(self.kernel.grad) if trains else None
        convolution.backward(x, dz, kernel, dkernel, dx, axes, self.groups, self._kept)


class Conv1D(Conv2D):
    """y = activation(convolution(x, kernel) + bias), over time.

    Input (batch, time, channels), output (batch, time', filters). Weights: ``kernel``
    (kernel size, channels / groups, filters) and ``bias`` (filters). The arguments are
    those of ``Conv2D``; with ``padding='causal'`` an output reads nothing later than
    itself (all zeros are before the first input).
    """

    rank = 1
    paddings = ("valid", "same", "causal")


class Conv2DTranspose(Filtering):
    """The transpose of a convolution, as its gradient: it makes images larger.

    Input (batch, height, width, channels), output (batch, height', width', filters):
    each input adds kernel times its value to a window of the output, windows being
    ``strides`` apart. Weights: ``kernel`` (kernel rows, kernel columns, filters,
    channels), ``bias`` (filters).

    Args:
        padding: 'valid': height' is (height - 1) stride + max(kernel, stride); 'same':
            height times stride.
        output_padding: rows and columns that are added at the end; below ``strides``.
            With it, height' is (height - 1) stride + kernel + output_padding for
            'valid', and (height - 1) stride + (1 if kernel is odd, else 0) +
            output_padding for 'same', as in Keras 3.

    The others are those of ``Conv2D``, without groups.
    """

    rank = 2

    def __init__(
        self,
        filters: int,
        kernel_size: Sizes,
        strides: Sizes = 1,
        padding: str = "valid",
        output_padding: Sizes | None = None,
        data_format: str | None = None,
        dilation_rate: Sizes = 1,
        activation: str | Activation | None = None,
        use_bias: bool = True,
        kernel_initializer: str | Initializer = "glorot_uniform",
        bias_initializer: str | Initializer = "zeros",
        kernel_regularizer: str | Regularizer | None = None,
        bias_regularizer: str | Regularizer | None = None,
        kernel_constraint: str | Constraint | None = None,
        bias_constraint: str | Constraint | None = None,
        input_shape: Shape | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(
            activation,
            use_bias,
            bias_initializer,
            bias_regularizer,
            bias_constraint,
            input_shape,
            name,
        )
        kind = type(self).__name__
        self.filters = self.positive("filters", filters)
        self.kernel_size = extents(kind, "kernel_size", kernel_size, self.rank)
        self.strides = extents(kind, "strides", strides, self.rank)
        self.dilation_rate = extents(kind, "dilation_rate", dilation_rate, self.rank)
        self.padding = check_choice(kind, "padding", padding, ("valid", "same"))
        check_channels_last(kind, data_format)
        check_strides(kind, self.strides, self.dilation_rate)
        self.output_padding = self._check_output_padding(kind, output_padding)
        self.kernel_initializer = initializers.get(kernel_initializer)
        self.kernel_regularizer = regularizers.get(kernel_regularizer)
        self.kernel_constraint = constraints.get(kernel_constraint)
        self.window = window_sizes(self.kernel_size, self.dilation_rate)

    def _check_output_padding(
        self, kind: str, given: Sizes | None
    ) -> tuple[int, ...] | None:
        if given is None:
            return None
        found = extents(kind, "output_padding", given, self.rank, 0)
        if any(n >= s for n, s in zip(found, self.strides, strict=True)):
            raise ArgumentError(
                f"{kind}: expected output_padding below strides",
                f"output_padding={given}, strides={self.strides}",
                "change output_padding, or leave it out",
            )
        return found

    def axis(self, size: int, i: int) -> Axis:
        """The windows of the convolution whose gradient this is."""
        return transposed_axis(
            size,
            self.kernel_size[i],
            self.strides[i],
            self.dilation_rate[i],
            self.padding,
            None if self.output_padding is None else self.output_padding[i],
        )

    def outputs(self, axis: Axis) -> int:
        return axis.size

    def make_weights(self, channels: int) -> int:
        shape = (*self.kernel_size, self.filters, channels)
        self.kernel = self.weight("kernel", shape, "kernel")
        return self.filters

    def _image_kernel(self, kernel: Array) -> Array:
        return kernel if self.rank == 2 else kernel[None]

    def map(self, x: Array, z: Array, axes: Axes, training: bool) -> None:
        kernel = self._image_kernel(self.kernel.value)
        convolution.backward(None, x, kernel, None, z, axes)
        self.finish(z, slice(0, z.size // z.shape[-1]), training)

    def map_back(self, x: Array, dz: Array, dx: Array | None, axes: Axes) -> None:
        kernel = self._image_kernel(self.kernel.value)
        if self.kernel.trainable:
            dkernel = self._image_kernel(self.kernel.grad)
            convolution.backward(dz, x, kernel, dkernel, None, axes)
        if dx is not None:
            convolution.forward(dz, kernel, dx, axes)


class Conv1DTranspose(Conv2DTranspose):
    """The transpose of a convolution over time; see ``Conv2DTranspose``.

    Input (batch, time, channels), output (batch, time', filters). Weights: ``kernel``
    (kernel size, filters, channels), ``bias`` (filters).
    """

    rank = 1


Convolution1D, Convolution1DTranspose = Conv1D, Conv1DTranspose
Convolution2D, Convolution2DTranspose = Conv2D, Conv2DTranspose
