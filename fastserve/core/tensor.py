"""Calling layers before there are numbers: ``Tensor`` and ``Node``.

``layer(tensor)`` builds the layer and notes what it was called on; nothing is computed.
A ``Graph`` (``layers/graph.py``) then runs the calls between its inputs and outputs.
"""

from __future__ import annotations

import copy
import itertools
import weakref
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

import numpy as np

from fastserve.errors import ArgumentError, ShapeError, StateError

if TYPE_CHECKING:
    from fastserve.core.layer import Layer


class Tensor:
    """What a layer will give: an array (batch, ...) whose numbers aren't known yet.

    ``+``, ``-``, ``*`` and ``/`` with another tensor or with a number make a layer, and
    so does ``t[:, 0]``.

    Attributes:
        shape: the batch first, which is None; other axes are None where they may vary.
        node: the call that made it; ``index`` is its place among that call's outputs.
    """

    __array_ufunc__ = None  # array + tensor is refused instead of made an array
    operators: ClassVar[dict[str, Callable[..., Any]]] = {}  # set by the layers

    def __init__(self, node: Node, index: int, sample: tuple[int | None, ...]) -> None:
        self.node, self.index = node, index
        self.shape = (None, *sample)

    @property
    def name(self) -> str:
        """The name that the layer was given, or else its kind."""
        return self.node.layer.given_name or type(self.node.layer).__name__

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def _operate(self, operator: str, *values: Any) -> Tensor:
        made: Tensor = self.operators[operator](*values)
        return made

    def __add__(self, other: Any) -> Tensor:
        return self._operate("add", self, other)

    def __radd__(self, other: Any) -> Tensor:
        return self._operate("add", other, self)

    def __sub__(self, other: Any) -> Tensor:
        return self._operate("subtract", self, other)

    def __rsub__(self, other: Any) -> Tensor:
        return self._operate("subtract", other, self)

    def __mul__(self, other: Any) -> Tensor:
        return self._operate("multiply", self, other)

    def __rmul__(self, other: Any) -> Tensor:
        return self._operate("multiply", other, self)

    def __truediv__(self, other: Any) -> Tensor:
        return self._operate("divide", self, other)

    def __neg__(self) -> Tensor:
        return self._operate("multiply", self, -1)

    def __getitem__(self, key: Any) -> Tensor:
        return self._operate("item", self, key)

    def __bool__(self) -> NoReturn:
        raise self._unknown("a condition")

    def __iter__(self) -> Iterator[Any]:
        raise self._unknown("a loop")

    def __len__(self) -> int:
        raise self._unknown("a length")

    def __float__(self) -> float:
        raise self._unknown("a number")

    def __array__(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise self._unknown("a NumPy function")

    def _unknown(self, use: str) -> ArgumentError:
        return ArgumentError(
            f"expected layers, or + - * /, on a symbolic {self!r}",
            f"{use} that needs its values",
            "values are known when the model runs: use a layer, for example Lambda",
        )

    def __repr__(self) -> str:
        return f"Tensor(shape={self.shape}, from {self.name})"


class Node:
    """One call of a layer.

    Attributes:
        inputs: tensors; outputs: tensors.
        single: the layer is given an array, not a tuple of arrays.
        copy: what is run in place of a layer that was built for another shape.
        training: None: as the model; False: the layer never trains in this call.
        number: later calls have larger ones.
    """

    _numbers = itertools.count()

    def __init__(
        self, layer: Layer, inputs: list[Tensor], single: bool, training: bool | None
    ) -> None:
        shapes = tuple(tensor.shape[1:] for tensor in inputs)
        given: Any = (shapes or (layer.input_shape,))[0] if single else shapes
        self.layer, self.inputs, self.single = layer, tuple(inputs), single
        self.training = training
        self.copy: Layer | None = None
        if layer.built and layer.input_shape != given:
            self.copy = for_shape(layer, given)
        shape: Any = (self.copy or layer).build_once(given)
        self.several_outputs = len(shape) > 0 and isinstance(shape[0], tuple)
        self.outputs = tuple(
            Tensor(self, i, s)
            for i, s in enumerate(shape if self.several_outputs else (shape,))
        )
        self.number = next(self._numbers)
        alive = [call for call in layer._called if call() is not None]
        layer._called = [*alive, weakref.ref(self)]


def call(layer: Layer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Call a layer on tensors: return its output, or a list of them.

    On arrays it computes, if it has no weights, or has got them as part of a model.
    """
    kwargs = dict(kwargs)
    training = kwargs.pop("training", None)
    values, single = layer.call_values(args, kwargs)
    symbolic = [isinstance(value, Tensor) for value in values]
    if not any(symbolic):
        return _compute(layer, values, single, training)
    if not all(symbolic):
        wrong = values[symbolic.index(False)]
        raise ArgumentError(
            f"{type(layer).__name__}: expected tensors alone",
            f"{type(wrong).__name__} beside tensors",
            "give the array to the model as an input: fs.Input(shape)",
        )
    alone = not layer.several_inputs and len(layer.call_inputs) == 1
    if not single and alone and not hasattr(layer, "call"):
        raise ArgumentError(
            f"{type(layer).__name__}: expected to be called on one tensor",
            f"{len(values)} tensors in a list",
            "call it on each of them, or merge them, for example with Concatenate()",
        )
    training = training if isinstance(training, (bool, int)) else None
    node = Node(layer, values, single, None if training is None else bool(training))
    return layer.arrange_outputs(list(node.outputs))


def _compute(layer: Layer, values: list[Any], single: bool, training: Any) -> Any:
    """Return a copy of what ``forward`` gives for arrays."""
    arrays = [np.asarray(value) for value in values]
    shapes = tuple(array.shape[1:] for array in arrays)
    layer.build_once(shapes[0] if single else shapes)  # type: ignore[arg-type]
    if any(not parameter.bound for parameter in layer.parameters()):
        raise StateError(
            f"{type(layer).__name__}: expected tensors: the layer's weights have no "
            "values yet",
            "arrays",
            "put the layer into a model, and call predict",
        )
    if not layer.takes_integers:
        arrays = [
            a.astype(layer.dtype) if a.dtype.kind in "fiub" else a for a in arrays
        ]
    y = layer.forward(arrays[0] if single else tuple(arrays), bool(training or False))
    return list(map(np.copy, y)) if isinstance(y, tuple) else np.copy(y)


def copy_for_call(layer: Layer) -> Layer:
    """Return a layer with the same weights, and memory of its own."""
    known: dict[int, Any] = {id(p): p for p in layer.parameters()}
    known |= {id(part.memory): part.memory for _, part in layer.walk()}
    return copy.deepcopy(layer, known)


def for_shape(layer: Layer, shape: Any) -> Layer:
    """Return a layer with the same weights that is built for inputs of ``shape``.

    Raises ShapeError if weights for that shape would be of other shapes.
    """
    made = layer.unbuilt()
    if made is None:
        layer.build_once(shape)  # says what is wrong, unless None was for any extent
        return copy_for_call(layer)
    made.build_once(shape)
    known, new = list(layer.parameters()), list(made.parameters())
    if [p.shape for p in known] != [p.shape for p in new]:
        raise ShapeError(
            f"{type(layer).__name__}: expected an input like the first call's, of shape"
            f" {layer.input_shape} (besides the batch)",
            f"shape {shape}, for which its weights would have other shapes",
            "make another layer",
        )
    same: Any = {id(b): a for a, b in zip(known, new, strict=True)}
    same |= {id(part.memory): part.memory for _, part in made.walk()}
    return copy.deepcopy(made, same)
