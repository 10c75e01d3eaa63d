"""Models made by calling layers: what ``call`` does as a graph, and a chain as one."""

from __future__ import annotations

from typing import Any

from fastserve.core import Layer
from fastserve.errors import ArgumentError
from fastserve.layers.graph import Graph, trace_call
from fastserve.layers.shapes import Input, InputLayer


def check_traceable(model: Any) -> None:
    """Raise ArgumentError unless the model's class has a method ``call``."""
    if not callable(getattr(model, "call", None)):
        raise ArgumentError(
            f"{type(model).__name__}: expected inputs and outputs",
            "neither, in a class without a method call(self, inputs)",
            "write fs.Model(inputs, outputs), or give the class such a method",
        )


def trace(model: Any, shape: Any) -> Graph:
    """Return what ``model.call`` does with inputs of ``shape`` as a graph.

    A layer is named after the attribute of the model that holds it. Models that are
    attributes are layers too.
    """
    return trace_call(model, shape, lambda value: getattr(value, "root", value))


def chain_graph(root: Layer) -> Graph:
    """Return the layers of a chain that is built as a graph of its own."""
    x = y = Input(root.input_shape or ())
    for layer in getattr(root, "layers", [root]):
        if not isinstance(layer, InputLayer):
            y = layer(y)
    return Graph(x, y)
