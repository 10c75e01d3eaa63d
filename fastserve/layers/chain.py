"""Layers made of layers: Chain and Residual."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastserve.core import Array, Done, Layer, Shape, Tensor, Training, nothing
from fastserve.errors import ArgumentError
from fastserve.layers.pooled_convolution import Pooled, pooled
from fastserve.layers.shapes import InputLayer


class Chain(Layer):
    """One layer after the other. A layer's path is its name, or else its number."""

    def __init__(self, *layers: Layer | Tensor, name: str | None = None) -> None:
        super().__init__(name=name)
        self.layers: list[Layer] = []
        self._mask_out: Any = None
        self._steps: dict[int, list[Layer | Pooled]] = {}  # by how many
        for layer in layers:
            self.append(layer)

    def append(self, layer: Layer | Tensor) -> None:
        """Add a layer, or what ``Input`` returned."""
        if isinstance(layer, Tensor):
            layer = layer.node.layer
        if any(layer is known for known in self.layers):
            raise ArgumentError(
                "expected each layer once: it keeps what its backward needs",
                f"{layer!r} a second time",
                "make another layer",
            )
        self.child(layer.given_name or str(len(self.layers)), layer)
        self.layers.append(layer)
        self._steps.clear()

    def pop(self) -> Layer:
        """Remove the last layer and return it."""
        layer = self.layers.pop()
        self._steps.clear()
        kept = {name: one for name, one in self._children.items() if one is not layer}
        self._children = kept
        return layer

    def build(self, input_shape: Shape) -> Shape:
        shape = input_shape
        for layer in self.layers:
            shape = layer.build_once(shape)
        return shape

    def forward(self, x: Array, training: Training = False) -> Array:
        return self._forward(self.layers, x, training)

    def forward_until_last(self, x: Array, training: Training = False) -> Array:
        """Return the input of the last layer."""
        return self._forward(self.layers[:-1], x, training)

    def backward_until_last(self, dy: Array, done: Done = nothing) -> Any:
        """``backward`` from the gradient of the last layer's input."""
        return self._backward(self.layers[:-1], dy, done)

    def _forward(self, layers: list[Layer], x: Array, training: Training) -> Array:
        mask = self.mask
        for step in self._steps_of(layers):
            if isinstance(step, Pooled):
                step.filtering.mask, mask = mask, None
                x = step.forward(x, training)
                continue
            step.mask = mask
            x = step.forward(x, training)
            mask = step.output_mask()
        self._mask_out = mask
        return x

    def _steps_of(self, layers: list[Layer]) -> list[Layer | Pooled]:
        """Return all of the layers, or the first ones, with those taken together that
        are faster so."""
        known = self._steps.get(len(layers))
        if known is None:
            known = self._steps[len(layers)] = []
            left = list(layers)
            while left:
                both = pooled(left[0], left[1] if len(left) > 1 else None)
                known.append(both or left[0])
                del left[: 2 if both else 1]
        return known

    def backward(self, dy: Array, done: Done = nothing) -> Any:
        return self._backward(self.layers, dy, done)

    def _backward(self, layers: list[Layer], dy: Any, done: Done) -> Any:
        for step in reversed(self._steps_of(layers)):
            if dy is None:  # nobody needs the gradient from here on
                break
            dy = step.backward(dy, done)
            if not isinstance(step, Pooled):  # it says itself what is done
                done(step)
        return dy

    @property
    def takes_integers(self) -> Any:  # type: ignore[override]
        for layer in self.layers:
            if not isinstance(layer, InputLayer):
                return layer.takes_integers
            if layer.integers is not None:
                return layer.integers
        return False

    @property
    def takes_strings(self) -> bool:  # type: ignore[override]
        layers = (x for x in self.layers if not isinstance(x, InputLayer))
        first = next(layers, None)
        return first is not None and first.takes_strings

    @property
    def fused_loss(self) -> str | None:  # type: ignore[override]
        return self.layers[-1].fused_loss if self.layers else None

    def logits(self) -> Array:
        return self.layers[-1].logits()

    def backward_logits(self, dz: Array, done: Done = nothing) -> Any:
        dy = self.layers[-1].backward_logits(dz, done)
        done(self.layers[-1])
        return self._backward(self.layers[:-1], dy, done)

    def skip_input_gradient(self) -> None:
        """Nobody needs the gradient of the chain's input: don't compute it, nor those
        of layers that have nothing to train before them."""
        needed = False
        for layer in self.layers:
            layer.input_gradient = needed
            if not needed and hasattr(layer, "skip_input_gradient"):
                layer.skip_input_gradient()
            needed = needed or needs_backward(layer)

    def output_mask(self) -> Any:
        return self._mask_out

    def unbuilt(self) -> Layer | None:
        if type(self).build is not Chain.build:  # it makes its layers by itself
            return super().unbuilt()
        layers = [layer.unbuilt() for layer in self.layers]
        known = [layer for layer in layers if layer is not None]
        if len(known) < len(layers):
            return None
        made = type(self)(*known, name=self.given_name)
        made.label = self.label
        return made


def skip_input_gradient(root: Layer) -> None:
    """Let no layer of a model compute a gradient that nothing before it needs.

    What was told its layers before, as parts of another model perhaps, is forgotten.
    """
    for _, layer in root.walk():
        layer.input_gradient = True
        if hasattr(layer, "plan_gradients"):
            layer.plan_gradients()
    if hasattr(root, "skip_input_gradient"):
        root.skip_input_gradient()


def needs_backward(layer: Layer) -> bool:
    """Return whether there is something to train, or that other ranks wait for."""
    return any(p.trainable for p in layer.parameters()) or any(
        part.synchronized for _, part in layer.walk()
    )


class Residual(Chain):
    """y = x + chain(x), and so dx = dy + chain'(dy) (He et al., 2015)."""

    def forward(self, x: Array, training: Training = False) -> Array:
        fx = super().forward(x, training)
        last = (layer.output_spare() for layer in reversed(self.layers))
        spare = next((s for s in last if s is not None), False)
        alike = x.shape == fx.shape and x.dtype == fx.dtype
        y = fx if spare and alike else self.buffer("y", x.shape)
        return np.add(x, fx, out=y)

    def backward(self, dy: Array, done: Done = nothing) -> Any:
        dfx = super().backward(dy, done)
        if dfx is None:  # nobody needs the gradient of the input
            return None
        return np.add(dy, dfx, out=self.scratch(dy.shape))

    def output_mask(self) -> Any:
        return self.mask

    @property
    def fused_loss(self) -> None:  # type: ignore[override]
        return None
