"""Convolutions of each channel by itself, alone or before a mix of the channels."""

from __future__ import annotations

import functools

from fastserve.core import Array, Shape, constraints, initializers, regularizers
from fastserve.core.constraints import Constraint
from fastserve.core.initializers import Initializer
from fastserve.core.regularizers import Regularizer
from fastserve.layers.convolution import window_sizes
from fastserve.layers.convolution_base import (
    Axes,
    Filtering,
    Sizes,
    check_channels_last,
    check_choice,
    extents,
)
from fastserve.ops import convolution, depthwise
from fastserve.ops.activations import Activation
from fastserve.ops.windows import Axis, window_axis


class _Depthwise(Filtering):
    """What the four layers share: windows and the depthwise kernel."""

    def set_up(
        self,
        kernel_size: Sizes,
        strides: Sizes,
        padding: str,
        depth_multiplier: int,
        data_format: str | None,
        dilation_rate: Sizes,
        initializer: str | Initializer,
        regularizer: str | Regularizer | None,
        constraint: str | Constraint | None,
    ) -> None:
        kind = type(self).__name__
        self.kernel_size = extents(kind, "kernel_size", kernel_size, self.rank)
        self.strides = extents(kind, "strides", strides, self.rank)
        self.dilation_rate = extents(kind, "dilation_rate", dilation_rate, self.rank)
        self.padding = check_choice(kind, "padding", padding, ("valid", "same"))
        self.depth_multiplier = self.positive("depth_multiplier", depth_multiplier)
        check_channels_last(kind, data_format)
        self.depthwise_initializer = initializers.get(initializer)
        self.depthwise_regularizer = regularizers.get(regularizer)
        self.depthwise_constraint = constraints.get(constraint)
        self.window = window_sizes(self.kernel_size, self.dilation_rate)

    def axis(self, size: int, i: int) -> Axis:
        return window_axis(
            size,
            self.kernel_size[i],
            self.strides[i],
            self.dilation_rate[i],
            self.padding,
        )

    def _image_kernel(self, kernel: Array) -> Array:
        return kernel if self.rank == 2 else kernel[None]


class DepthwiseConv2D(_Depthwise):
    """y = activation(depthwise convolution(x) + bias).

    Input (batch, height, width, channels), output (batch, height', width', channels x
    depth_multiplier): each channel has ``depth_multiplier`` kernels of its own, whose
    outputs lie together. Weights: ``kernel`` (kernel rows, kernel columns, channels,
    depth_multiplier) and, unless ``use_bias`` is false, ``bias`` (channels x
    depth_multiplier). The formula is in ``ops/depthwise.py``; the arguments are those
    of ``Conv2D``.
    """

    rank = 2

    def __init__(
        self,
        kernel_size: Sizes,
        strides: Sizes = 1,
        padding: str = "valid",
        depth_multiplier: int = 1,
        data_format: str | None = None,
        dilation_rate: Sizes = 1,
        activation: str | Activation | None = None,
        use_bias: bool = True,
        depthwise_initializer: str | Initializer = "glorot_uniform",
        bias_initializer: str | Initializer = "zeros",
        depthwise_regularizer: str | Regularizer | None = None,
        bias_regularizer: str | Regularizer | None = None,
        depthwise_constraint: str | Constraint | None = None,
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
        self.set_up(
            kernel_size,
            strides,
            padding,
            depth_multiplier,
            data_format,
            dilation_rate,
            depthwise_initializer,
            depthwise_regularizer,
            depthwise_constraint,
        )

    def make_weights(self, channels: int) -> int:
        shape = (*self.kernel_size, channels, self.depth_multiplier)
        self.kernel = self.weight("kernel", shape, "depthwise")
        return channels * self.depth_multiplier

    def map(self, x: Array, z: Array, axes: Axes, training: bool) -> None:
        finish = functools.partial(self.finish, z, training=training)
        depthwise.forward(x, self._image_kernel(self.kernel.value), z, axes, finish)

    def map_back(self, x: Array, dz: Array, dx: Array | None, axes: Axes) -> None:
        kernel = self._image_kernel(self.kernel.value)
        trains = self.kernel.trainable
        dkernel = self._image_kernel(self.kernel.grad) if trains else None
        depthwise.backward(x, dz, kernel, dkernel, dx, axes)


class DepthwiseConv1D(DepthwiseConv2D):
    """A depthwise convolution over time; see ``DepthwiseConv2D``.

    Input (batch, time, channels), output (batch, time', channels x depth_multiplier).
    Weights: ``kernel`` (kernel size, channels, depth_multiplier), ``bias``.
    """

    rank = 1


class SeparableConv2D(_Depthwise):
    """A depthwise convolution, then a 1 x 1 convolution that mixes the channels.

    y = activation(convolution(depthwise convolution(x)) + bias). Input (batch, height,
    width, channels), output (batch, height', width', filters). Weights:
    ``depthwise_kernel`` (kernel rows, kernel columns, channels, depth_multiplier),
    ``pointwise_kernel`` (1, 1, channels x depth_multiplier, filters), ``bias``
    (filters). Chollet, "Xception", 2017; the arguments are those of ``Conv2D``.
    """

    rank = 2

    def __init__(
        self,
        filters: int,
        kernel_size: Sizes,
        strides: Sizes = 1,
        padding: str = "valid",
        data_format: str | None = None,
        dilation_rate: Sizes = 1,
        depth_multiplier: int = 1,
        activation: str | Activation | None = None,
        use_bias: bool = True,
        depthwise_initializer: str | Initializer = "glorot_uniform",
        pointwise_initializer: str | Initializer = "glorot_uniform",
        bias_initializer: str | Initializer = "zeros",
        depthwise_regularizer: str | Regularizer | None = None,
        pointwise_regularizer: str | Regularizer | None = None,
        bias_regularizer: str | Regularizer | None = None,
        depthwise_constraint: str | Constraint | None = None,
        pointwise_constraint: str | Constraint | None = None,
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
        self.filters = self.positive("filters", filters)
        self.set_up(
            kernel_size,
            strides,
            padding,
            depth_multiplier,
            data_format,
            dilation_rate,
            depthwise_initializer,
            depthwise_regularizer,
            depthwise_constraint,
        )
        self.pointwise_initializer = initializers.get(pointwise_initializer)
        self.pointwise_regularizer = regularizers.get(pointwise_regularizer)
        self.pointwise_constraint = constraints.get(pointwise_constraint)

    def make_weights(self, channels: int) -> int:
        inner = channels * self.depth_multiplier
        self.depthwise_kernel = self.weight(
            "depthwise_kernel",
            (*self.kernel_size, channels, self.depth_multiplier),
            "depthwise",
        )
        self.pointwise_kernel = self.weight(
            "pointwise_kernel", (*(1,) * self.rank, inner, self.filters), "pointwise"
        )
        return self.filters

    def _pointwise_axes(self, axes: Axes) -> Axes:
        h, w = axes
        return Axis(h.out, 1, out=h.out), Axis(w.out, 1, out=w.out)

    def map(self, x: Array, z: Array, axes: Axes, training: bool) -> None:
        inner = self.pointwise_kernel.shape[-2]
        middle = self.buffer("middle", (*z.shape[:3], inner))
        kernel = self._image_kernel(self.depthwise_kernel.value)
        depthwise.forward(x, kernel, middle, axes)
        kernel = self._image_kernel(self.pointwise_kernel.value)
        finish = functools.partial(self.finish, z, training=training)
        inner_axes = self._pointwise_axes(axes)
        convolution.forward(middle, kernel, z, inner_axes, finish=finish)

    def map_back(self, x: Array, dz: Array, dx: Array | None, axes: Axes) -> None:
        pointwise, own = self.pointwise_kernel, self.depthwise_kernel
        middle = self._buffers["middle"]
        needed = dx is not None or own.trainable
        convolution.backward(
            middle,
            dz,
            self._image_kernel(pointwise.value),
            self._image_kernel(pointwise.grad) if pointwise.trainable else None,
            dmiddle := self.scratch(middle.shape) if needed else None,
            self._pointwise_axes(axes),
        )
        if dmiddle is not None:
            kernel = self._image_kernel(own.value)
            dkernel = self._image_kernel(own.grad) if own.trainable else None
            depthwise.backward(x, dmiddle, kernel, dkernel, dx, axes)


class SeparableConv1D(SeparableConv2D):
    """A separable convolution over time; see ``SeparableConv2D``.

    Input (batch, time, channels), output (batch, time', filters). Weights:
    ``depthwise_kernel`` (kernel size, channels, depth_multiplier),
    ``pointwise_kernel`` (1, channels x depth_multiplier, filters), ``bias``.
    """

    rank = 1


SeparableConvolution1D, SeparableConvolution2D = SeparableConv1D, SeparableConv2D
