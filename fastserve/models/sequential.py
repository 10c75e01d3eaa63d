"""``Sequential``: one layer after the other."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

from fastserve.core import Layer, Tensor
from fastserve.core.layer import snake_case
from fastserve.errors import ArgumentError, StateError
from fastserve.layers.chain import Chain
from fastserve.layers.shapes import InputLayer
from fastserve.models.model import Model
from fastserve.models.serialization import Reader, Writer


class Sequential(Model):
    """A model that is a chain of layers.

    It is built at once if the first layer has an ``input_shape`` or is an ``Input``,
    otherwise when it first sees data.

    Args:
        layers: the layers; more can follow with ``add``.
        name: of the model as a layer of others.
        seed: determines the initial weights, the order of samples and dropout; None:
            that of ``utils.set_random_seed``, or 0.
        dtype: 'float32' or 'float64', in which all is computed.
    """

    def __init__(
        self,
        layers: Sequence[Any] = (),
        name: str | None = None,
        seed: int | None = None,
        dtype: str = "float32",
    ) -> None:
        self.chain = Chain()
        super().__init__(name=name, seed=seed, dtype=dtype, root=self.chain)
        for layer in layers:
            self.add(layer)

    @property
    def layers(self) -> list[Layer]:
        """The layers without the ``Input`` they begin with, as in Keras."""
        layers = self.chain.layers
        starts = bool(layers) and isinstance(layers[0], InputLayer)
        return layers[1:] if starts else list(layers)

    def get_layer(self, name: str | None = None, index: int | None = None) -> Layer:
        """Return a layer by its name or number, or by its place in ``layers``.

        A layer without a name has also the one that Keras gives to it in the first
        model of a process: ``dense``, ``dense_1``.
        """
        if index is None and name not in self.chain.children():
            for layer, known in zip(self.layers, self._names(), strict=True):
                if name == known:
                    return layer
        return super().get_layer(name, index)

    def _names(self) -> list[str]:
        """Return the layers' names, each once: one that is in another model as well
        keeps the name that it has there, unless that is taken."""
        names: list[str] = []
        for layer in self.layers:
            name, kind, count = layer.name, snake_case(layer.label), 0
            while name in names and not layer.given_name:
                count += 1
                name = f"{kind}_{count}"
            names.append(name)
        return names

    def add(self, layer: Layer | Model | Tensor) -> None:
        """Append a layer, a model, or what ``Input`` returned.

        Raises StateError if the model has its weights already.
        """
        if isinstance(layer, Model):
            layer = layer.as_layer()
        elif isinstance(layer, Tensor):
            layer = layer.node.layer
        if not isinstance(layer, Layer):
            raise ArgumentError(
                "Sequential: expected a layer", repr(layer), "for example Dense(10)"
            )
        if self.built or self.chain.built:
            raise StateError(
                "Sequential.add: expected a model that isn't built yet",
                "a model with weights",
                "add all layers before the first fit, predict, summary or build",
            )
        self.chain.append(layer)
        if not isinstance(layer, InputLayer):
            layer.counted_name = layer.counted_name or self._names()[-1]
        holder = None if layer.within is None else layer.within()
        if holder is None or holder.known_input_shape is None:
            layer.within = weakref.ref(self)

    def pop(self) -> Layer:
        """Remove the last layer and return it.

        Raises StateError if the model has its weights already, or no layer.
        """
        if self.built or self.chain.built or not self.chain.layers:
            raise StateError(
                "Sequential.pop: expected a model with layers that isn't built yet",
                "a model with weights" if self.chain.layers else "no layers",
                "make another model of the layers that are wanted",
            )
        layer = self.chain.pop()
        if layer.within is not None and layer.within() is self:
            layer.within = None
        return layer

    @property
    def known_input_shape(self) -> tuple[int | None, ...] | None:
        layers = self.chain.layers
        return layers[0].input_shape if layers else None

    def get_config(self) -> dict[str, Any]:
        """Return class, seed, type, input shape and layers, as JSON types."""
        return {
            "class": "Sequential",
            "name": self.chain.given_name,
            "seed": self.seed,
            "dtype": self.dtype.name,
            "input_shape": list(self.root.input_shape or ()) if self.built else None,
            "layers": Writer().layer(self.chain)["layers"],
        }

    @classmethod
    def from_config(
        cls, config: dict[str, Any], custom_objects: Any = None
    ) -> Sequential:
        """Make a model from what ``get_config`` returned; its weights are new."""
        reader = Reader(custom_objects)
        model = cls(
            [reader.layer(layer) for layer in config["layers"]],
            config["name"],
            config["seed"],
            config["dtype"],
        )
        if config["input_shape"] is not None:
            model.build(config["input_shape"])
        return model
