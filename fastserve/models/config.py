"""Layers as JSON: the class by its name, and the arguments of its constructor."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

from fastserve import layers
from fastserve.core import Layer, constraints, initializers, regularizers
from fastserve.errors import ArgumentError, DataError, UnknownNameError
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


def layer_config(layer: Layer) -> dict[str, Any]:
    """Return ``{"class": ..., "arguments": ..., "layers": [...]}`` of a layer."""
    args, kwargs = layer.arguments
    inner = []
    if _takes_layers(type(layer)):
        inner = [layer_config(a) for a in args]
    config: dict[str, Any] = {"class": type(layer).__name__}
    if inner:
        config["layers"] = inner
        bound = dict(kwargs)
    else:
        bound = dict(inspect.signature(type(layer)).bind(*args, **kwargs).arguments)
    config["arguments"] = {
        name: {"layer": layer_config(value)}
        if isinstance(value, Layer)
        else _to_json(layer, name, value)
        for name, value in bound.items()
    }
    if not layer.trainable:
        config["trainable"] = False
    return config


def _takes_layers(kind: type[Layer]) -> bool:
    """Return whether the arguments begin with any number of layers."""
    first = next(iter(inspect.signature(kind).parameters.values()), None)
    return first is not None and first.kind is first.VAR_POSITIONAL


def layer_from_config(config: dict[str, Any]) -> Layer:
    """Make the layer that ``layer_config`` described."""
    inner = [layer_from_config(c) for c in config.get("layers", ())]
    arguments = {
        name: layer_from_config(value["layer"])
        if isinstance(value, dict) and "layer" in value
        else _from_json(value)
        for name, value in config["arguments"].items()
    }
    layer = make_layer(config["class"], arguments, inner)
    if not config.get("trainable", True):
        layer.trainable = False
    return layer


def make_layer(name: str, arguments: dict[str, Any], inner: Any = ()) -> Layer:
    """Make a layer by its Python name; errors name the layer and the argument."""
    known = {n for n in layers.__all__ if n != "Layer"}
    if name not in known:
        raise UnknownNameError("layer", name, known)
    kind = getattr(layers, name)
    if "input_shape" in arguments and arguments["input_shape"] is not None:
        arguments = arguments | {"input_shape": tuple(arguments["input_shape"])}
    arguments = {
        k: _inner_layer(v) if k.endswith("layer") else v for k, v in arguments.items()
    }
    try:
        inspect.signature(kind).bind(*inner, **arguments)
    except TypeError as error:
        raise ArgumentError(
            f"{name}: expected arguments {inspect.signature(kind)}",
            str(error),
            "see the layer's docstring",
        ) from None
    layer: Layer = kind(*inner, **arguments)
    return layer


def _inner_layer(value: Any) -> Any:
    """Return the layer that a name, or a name with arguments, is in a job's file."""
    if isinstance(value, str):
        return make_layer(value, {})
    if isinstance(value, dict) and len(value) == 1:
        ((name, arguments),) = value.items()
        return make_layer(name, arguments or {})
    return value


def _to_json(layer: Layer, name: str, value: Any) -> Any:
    if isinstance(value, Activation):
        return value.name
    if isinstance(value, (list, tuple)):
        return [_to_json(layer, name, v) for v in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = dataclasses.asdict(value)
        kind = next((k for k, base in _KINDS.items() if isinstance(value, base)), None)
        return {kind or "initializer": type(value).__name__, **fields}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise ArgumentError(
        f"{type(layer).__name__}: expected arguments that can be saved",
        f"{name}={value!r}",
        "use save_weights, and make the model in code",
    )


def _from_json(value: Any) -> Any:
    if isinstance(value, dict):
        fields = dict(value)
        place = next((k for k in _MODULES if k in fields), "initializer")
        kind = getattr(_MODULES[place], str(fields.pop(place, "")), None)
        if not (isinstance(kind, type) and dataclasses.is_dataclass(kind)):
            raise DataError(f"expected a saved {place}", f"{value}", "save it again")
        names = inspect.signature(kind).parameters
        return kind(**{k: v for k, v in fields.items() if k in names})
    return tuple(map(_from_json, value)) if isinstance(value, list) else value
