"""``Sequential``: one layer after the other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastserve.core import Layer, Tensor
from fastserve.errors import ArgumentError, StateError
from fastserve.layers.chain import Chain
from fastserve.layers.graph import snake_case
from fastserve.layers.shapes import InputLayer
from fastserve.models.config import Reader, Writer
from fastserve.models.model import Model


class Sequential(Model):
    """A model that is a chain of layers.

    It is built at once if the first layer has an ``input_shape`` or is an ``Input``,
    otherwise when it first sees data.

    Args:
        layers: the layers; more can follow with ``add``.
        name: of the model as a layer of others.
        seed: determines the initial weights, the order of samples and dropout.
        dtype: 'float32' or 'float64', in which all is computed.
    """

    def __init__(
        self,
        layers: Sequence[Any] = (),
        name: str | None = None,
        seed: int = 0,
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
            counts: dict[str, int] = {}
            for layer in self.layers:
                kind = snake_case(layer.label)
                count = counts.get(kind, 0)
                if not layer.name:
                    counts[kind] = count + 1
                    if name == (f"{kind}_{count}" if count else kind):
                        return layer
        return super().get_layer(name, index)

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
        return self.chain.pop()

    @property
    def known_input_shape(self) -> tuple[int | None, ...] | None:
        layers = self.chain.layers
        return layers[0].input_shape if layers else None

    def get_config(self) -> dict[str, Any]:
        """Return class, seed, type, input shape and layers, as JSON types."""
        return {
            "class": "Sequential",
            "name": self.chain.name,
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
