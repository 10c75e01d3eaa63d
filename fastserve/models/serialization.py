"""Layers as JSON: the class by its name, and the arguments of its constructor."""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import numpy as np

from fastserve import layers
from fastserve.core import (
    Layer,
    Node,
    Tensor,
    constraints,
    initializers,
    regularizers,
)
from fastserve.errors import ArgumentError, DataError, UnknownNameError, nearest
from fastserve.layers.chain import Chain, Residual
from fastserve.layers.graph import Graph
from fastserve.layers.shapes import Input, InputLayer
from fastserve.ops.activations import Activation

_KINDS = {
    "regularizer": regularizers.Regularizer,
    "constraint": constraints.Constraint,
}
_MODULES = {
    "initializer": initializers,
    "regularizer": regularizers,
    "constraint": constraints,
}


_with_arrays = ContextVar("_with_arrays", default=True)


@contextmanager
def without_arrays() -> Iterator[None]:
    """Let what is written inside have NaN for arrays that weights begin with: a file
    that has the weights needs no table of vectors once more, as text."""
    token = _with_arrays.set(False)
    try:
        yield
    finally:
        _with_arrays.reset(token)


def layer_config(layer: Layer) -> dict[str, Any]:
    """Return ``{"class": ..., "arguments": ..., "layers": [...]}`` of a layer."""
    return Writer().layer(layer)


def layer_from_config(
    config: dict[str, Any], custom_objects: Mapping[str, Any] | None = None
) -> Layer:
    """Make the layer that ``layer_config`` described."""
    return Reader(custom_objects).layer(config)


class Writer:
    """Writes layers as JSON types; one that comes again is written as a reference."""

    def __init__(self) -> None:
        self._known: dict[int, dict[str, Any]] = {}
        self._referred = 0

    def layer(self, layer: Layer) -> dict[str, Any]:
        """Return the class of a layer, its arguments, and what is inside of it."""
        known = self._known.get(id(layer))
        if known is not None:
            if "key" not in known:
                self._referred += 1
                known["key"] = self._referred
            return {"same": known["key"]}
        config: dict[str, Any] = {"class": type(layer).__name__}
        self._known[id(layer)] = config
        if isinstance(layer, Graph):
            config |= {"name": layer.given_name, "graph": self.graph(layer)}
        elif type(layer) in (Chain, Residual):  # layers may have been appended
            config["layers"] = [self.layer(part) for part in layer.layers]  # type: ignore
            name = layer.given_name
            config["arguments"] = {"name": name} if name else {}
        else:
            config |= self._arguments(layer)
        if layer.label != type(layer).__name__ and not isinstance(layer, Graph):
            config["label"] = layer.label
        if not layer.trainable:
            config["trainable"] = False
        return config

    def _arguments(self, layer: Layer) -> dict[str, Any]:
        args, kwargs = layer.arguments
        inner = []
        if _takes_layers(type(layer)):
            inner, bound = [self.layer(a) for a in args], dict(kwargs)
        else:
            bound = layer.named_arguments()
        arguments = {
            name: {"layer": self.layer(value)}
            if isinstance(value, Layer)
            else _to_json(layer, name, value)
            for name, value in bound.items()
        }
        return ({"layers": inner} if inner else {}) | {"arguments": arguments}

    def graph(self, graph: Graph) -> dict[str, Any]:
        """Return a graph's inputs, layers, calls and outputs.

        A tensor is [number of the call, place among its outputs]; the inputs are the
        outputs of call -1.
        """
        places = {id(t): [-1, i] for i, t in enumerate(graph.inputs)}
        given = set(places)
        layers: dict[str, Any] = {}
        calls: list[dict[str, Any]] = []
        for node in graph.nodes:
            if all(id(t) in given for t in node.outputs):
                continue
            name = graph.name_of(node.layer)
            if name not in layers:
                layers[name] = self.layer(node.layer)
            call: dict[str, Any] = {
                "layer": name,
                "inputs": [places[id(t)] for t in node.inputs],
            }
            if not node.single:
                call["single"] = False
            if node.training is not None:
                call["training"] = node.training
            for i, tensor in enumerate(node.outputs):
                places[id(tensor)] = [len(calls), i]
            calls.append(call)
        return {
            "inputs": [_input_config(graph, t) for t in graph.inputs],
            "inputs_like": _like(graph.inputs_like),
            "layers": layers,
            "calls": calls,
            "outputs": [places[id(t)] for t in graph.outputs],
            "outputs_like": _like(graph.outputs_like),
        }


def _takes_layers(kind: type[Layer]) -> bool:
    """Return whether the arguments begin with any number of layers."""
    first = next(iter(inspect.signature(kind).parameters.values()), None)
    return first is not None and first.kind is first.VAR_POSITIONAL


class Reader:
    """Makes layers from what a ``Writer`` wrote.

    Args:
        custom_objects: classes of layers that aren't this library's, by their names.
    """

    def __init__(self, custom_objects: Mapping[str, Any] | None = None) -> None:
        self._custom = dict(custom_objects or {})
        self._known: dict[int, Layer] = {}

    def layer(self, config: dict[str, Any]) -> Layer:
        if "same" in config:
            return self._known[config["same"]]
        if "graph" in config:
            layer: Layer = self.graph(config["graph"], config["name"])
        else:
            inner = [self.layer(c) for c in config.get("layers", ())]
            arguments = {
                name: self.layer(value["layer"])
                if isinstance(value, dict) and "layer" in value
                else _from_json(value)
                for name, value in config["arguments"].items()
            }
            layer = make_layer(config["class"], arguments, inner, self._custom, False)
        layer.label = config.get("label", layer.label)
        if not config.get("trainable", True):
            layer.trainable = False
        if "key" in config:
            self._known[config["key"]] = layer
        return layer

    def graph(self, config: dict[str, Any], name: str | None = None) -> Graph:
        """Make a graph by calling its layers again."""
        inputs = [
            Input(tuple(one["shape"]), dtype=one["dtype"], name=one["name"])
            for one in config["inputs"]
        ]
        made: list[list[Any]] = []
        layers: dict[str, Layer] = {}

        def tensor(place: list[int]) -> Any:
            call, output = place
            return inputs[output] if call < 0 else made[call][output]

        for call in config["calls"]:
            key = call["layer"]
            if key not in layers:
                layers[key] = self.layer(config["layers"][key])
            node = Node(
                layers[key],
                [tensor(place) for place in call["inputs"]],
                call.get("single", True),
                call.get("training"),
            )
            made.append(list(node.outputs))
        return Graph(
            _arranged(inputs, config["inputs_like"]),
            _arranged(list(map(tensor, config["outputs"])), config["outputs_like"]),
            name,
            {id(layer): key for key, layer in layers.items()},
        )


def _input_config(graph: Graph, tensor: Tensor) -> dict[str, Any]:
    layer = tensor.node.layer
    start = isinstance(layer, InputLayer)
    return {
        "name": graph.name_of(layer) if start else None,
        "shape": list(tensor.shape[1:]),
        "dtype": layer.wanted_dtype if isinstance(layer, InputLayer) else None,
    }


def _like(like: Any) -> Any:
    """Return None for one tensor, 'list', or the keys of a dict."""
    if isinstance(like, Mapping):
        return list(like)
    return "list" if isinstance(like, (list, tuple)) else None


def _arranged(tensors: list[Any], like: Any) -> Any:
    if isinstance(like, list):
        return dict(zip(like, tensors, strict=True))
    return tensors if like == "list" else tensors[0]


def make_layer(
    name: str,
    arguments: dict[str, Any],
    inner: Any = (),
    custom_objects: Mapping[str, Any] | None = None,
    files: bool = True,
) -> Layer:
    """Make a layer by its Python name; errors name the layer and the argument.

    With ``files`` a vocabulary may be the path of a file: in a job, not in a model that
    may come from somebody else.
    """
    names = [n for n in layers.__all__ if n[0].isupper() and n != "Layer"]
    known: dict[str, Any] = {n: getattr(layers, n) for n in names}
    known |= custom_objects or {}
    if name not in known:
        raise UnknownNameError("layer", name, known)
    kind = known[name]
    if "input_shape" in arguments and arguments["input_shape"] is not None:
        arguments = arguments | {"input_shape": tuple(arguments["input_shape"])}
    arguments = {
        k: _inner_layer(v, files) if k.endswith("layer") else v
        for k, v in arguments.items()
    }
    if not files and isinstance(arguments.get("vocabulary"), str):
        raise DataError(
            f"{name}: expected the terms of the vocabulary in a saved model",
            f"the name of a file, {arguments['vocabulary'][:80]!r}",
            "save the model again; it writes the terms themselves",
        )
    try:
        inspect.signature(kind).bind(*inner, **arguments)
    except TypeError as error:
        known_arguments = list(inspect.signature(kind).parameters)
        wrong = next((k for k in arguments if k not in known_arguments), None)
        near = wrong and nearest(wrong, known_arguments)
        raise ArgumentError(
            f"{name}: expected arguments among {', '.join(known_arguments)}",
            repr(wrong) if wrong else str(error),
            f"did you mean {near!r}?" if near else "see the layer's docstring",
        ) from None
    made = kind(*inner, **arguments)
    layer: Layer = made.node.layer if isinstance(made, Tensor) else made
    return layer


def _inner_layer(value: Any, files: bool) -> Any:
    """Return the layer that a name, or a name with arguments, is in a job's file."""
    if isinstance(value, str):
        return make_layer(value, {}, files=files)
    if isinstance(value, dict) and len(value) == 1:
        ((name, arguments),) = value.items()
        return make_layer(name, arguments or {}, files=files)
    return value


def _to_json(layer: Layer, name: str, value: Any) -> Any:
    if isinstance(value, Activation):
        return value.name
    if isinstance(value, (list, tuple)):
        return [_to_json(layer, name, v) for v in value]
    if isinstance(value, initializers.Constant) and not _with_arrays.get():
        value = value if np.ndim(value.value) == 0 else initializers.Constant(math.nan)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {
            k: _to_json(layer, name, v) for k, v in dataclasses.asdict(value).items()
        }
        kind = next((k for k, base in _KINDS.items() if isinstance(value, base)), None)
        return {kind or "initializer": type(value).__name__, **fields}
    if isinstance(value, dict):
        return {k: _to_json(layer, name, v) for k, v in value.items()}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (np.ndarray, np.generic)):
        return value.tolist()
    raise ArgumentError(
        f"{type(layer).__name__}: expected arguments that can be saved",
        f"{name}={value!r}",
        "use save_weights, and make the model in code",
    )


def _from_json(value: Any) -> Any:
    if isinstance(value, dict):
        fields = dict(value)
        if not fields.keys() & _MODULES.keys():
            return fields  # a name with its arguments
        place = next(k for k in _MODULES if k in fields)
        kind = getattr(_MODULES[place], str(fields.pop(place, "")), None)
        if not (isinstance(kind, type) and dataclasses.is_dataclass(kind)):
            raise DataError(f"expected a saved {place}", f"{value}", "save it again")
        names = inspect.signature(kind).parameters
        return kind(**{k: v for k, v in fields.items() if k in names})
    return tuple(map(_from_json, value)) if isinstance(value, list) else value
