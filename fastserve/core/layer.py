"""``Layer``: explicit forward and backward, in memory that is kept."""

from __future__ import annotations

import dataclasses
import inspect
import re
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import DTypeLike

from fastserve.core.constraints import Constraint
from fastserve.core.initializers import Initializer
from fastserve.core.memory import Array, Memory
from fastserve.core.parameter import Parameter
from fastserve.core.random import StepKey
from fastserve.core.regularizers import Regularizer
from fastserve.core.tensor import call
from fastserve.core.weights import Weighted
from fastserve.errors import ArgumentError, ShapeError, StateError

if TYPE_CHECKING:
    from fastserve.core.tensor import Node

Shape = tuple[int | None, ...]  # without the batch axis; None where it may vary
Training = StepKey | bool
Done = Callable[["Layer"], None]
L = TypeVar("L", bound="Layer")
V = TypeVar("V")


def is_several(shape: Any) -> bool:
    """Return whether ``shape`` is a tuple of shapes, of several inputs or outputs."""
    return len(shape) > 0 and isinstance(shape[0], tuple)


def same_shape(one: Any, other: Any) -> bool:
    """Return whether the shapes can be the same; None stands for any extent.

    Both may be tuples of shapes.
    """
    if is_several(one) and is_several(other):
        return len(one) == len(other) and all(map(same_shape, one, other))
    return len(one) == len(other) and all(
        a == b or a is None or b is None for a, b in zip(one, other, strict=True)
    )


def as_layer(value: Any) -> Any:
    """Return a model's network, which can be a part of layers; all else as it is."""
    return value.as_layer() if hasattr(value, "as_layer") else value


def snake_case(name: str) -> str:
    """Return the name as Keras writes layers': LayerNormalization,
    layer_normalization."""
    name = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", name)
    return re.sub("([a-z])([A-Z])", r"\1_\2", name).lower()


def nothing(layer: Layer) -> None:
    """A ``done`` for callers that don't need to know which gradients are ready."""


class Layer(Weighted):
    """A function with parameters, and the function that gives its gradients.

    A subclass writes three methods: ``build`` makes the parameters, from shapes alone;
    ``forward`` computes; ``backward`` fills the parameters' ``grad`` and returns the
    gradient of the input. The rules:

    - Arrays that come in (``x``, ``dy``) are read, never written.
    - What must live until ``backward`` goes into ``self.buffer``; it may also be a
      reference to ``x``. What is needed for a moment, and the gradient that is
      returned, comes from ``self.scratch``.
    - ``backward`` overwrites ``grad``; only the second user of a tied parameter adds.
    - A layer with children calls ``done(child)`` when a child's gradients are final.

    A layer of several inputs says ``several_inputs = True``: it is built with a tuple
    of shapes, called with a tuple of arrays, and its ``backward`` returns a tuple of
    gradients, None for an input of integers; ``mask`` is a tuple too, or None. If
    ``build`` returns a tuple of shapes the layer has several outputs: ``forward``
    returns a tuple of arrays, ``backward`` is given one of gradients, None for an
    output that nobody used, and ``output_mask`` returns a tuple.

    Instead of the three methods a layer that is made of others may have a method
    ``call(self, inputs)`` that calls them; it is run once, on symbolic tensors.

    ``training`` is false, or a ``StepKey`` that says which random numbers to take.

    Args:
        input_shape: shape of one sample, without the batch; only needed for the
            first layer, and only if the model shall be built before it sees data.
        name: takes the place of the layer's number in the paths of its weights.

    Attributes:
        given_name: the name that it was given, or None.
        counted_name: of a layer without one, what Keras would call it in its model.
    """

    inline = False  # its children's paths are as if they were its parent's
    takes_integers: bool | tuple[bool, ...] = False  # the input holds indices, not
    # numbers to differentiate; a tuple for each of several inputs
    several_inputs = False
    call_inputs: tuple[str, ...] = ("inputs",)  # what a call's tensors are named
    input_gradient = True  # False: nobody needs dx, so backward may return None
    fused_loss: str | None = None  # 'softmax' or 'sigmoid' if the output is one

    trace: Any = None  # makes a graph of what ``call`` does; set by ``layers/graph.py``
    _graph: Any = None  # that graph

    _trainable = True
    takes_strings = False  # the input holds texts
    synchronized = False  # its results depend on the rows of all ranks
    rows_apart = False  # the last axis is mapped linearly; there is backward_rows

    arguments: tuple[tuple[Any, ...], dict[str, Any]]  # those of the constructor

    def __new__(cls: type[L], *args: Any, **kwargs: Any) -> L:
        _check_call(cls)
        layer = super().__new__(cls)
        named = {name: as_layer(value) for name, value in kwargs.items()}
        layer.arguments = (tuple(map(as_layer, args)), named)
        return layer

    def __init__(
        self, input_shape: Shape | None = None, name: str | None = None
    ) -> None:
        if name is not None and (not name or "." in name or "/" in name):
            raise ArgumentError(
                "expected a layer name without '.' and '/'", repr(name), "rename it"
            )
        self.given_name = name
        self.counted_name: str | None = None
        self._called: list[weakref.ref[Node]] = []  # its calls on tensors
        self.within: weakref.ref[Any] | None = None  # a model that it is a layer of
        self.label = type(self).__name__  # what a graph names it after
        if isinstance(input_shape, (int, str)):
            raise ArgumentError(
                f"{type(self).__name__}: expected the shape of a sample as a tuple",
                repr(input_shape),
                f"({input_shape},) for a vector; the batch isn't part of it",
            )
        self.input_shape = None if input_shape is None else tuple(input_shape)
        self.output_shape: Shape | None = None
        self.path = ""  # place in the model's tree
        self.dtype = np.dtype(np.float32)
        self.memory = Memory()
        self.mask: Any = None  # (batch, time) bool: which positions count
        self._parameters: list[Parameter] = []
        self._children: dict[str, Layer] = {}
        self._buffers: dict[str, Array] = {}
        self._blocks: dict[str, Array] = {}

    @property
    def name(self) -> str:
        """The name that was given, or else the kind, with a number in its model if
        there are several of it: dense, dense_1."""
        return self.given_name or self.counted_name or snake_case(self.label)

    @name.setter
    def name(self, name: str | None) -> None:
        self.given_name = name

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy has, also by pickle: not its calls and its model, which
        a model that is copied gives to its layers anew."""
        return {**self.__dict__, "_called": [], "within": None}

    # -- what a subclass writes ------------------------------------------------

    def build(self, input_shape: Any) -> Any:
        """Make the parameters for inputs of ``input_shape``; return the output's."""
        if not hasattr(self, "call"):
            return input_shape
        self._graph = graph = self.child("graph", self.trace(self, input_shape))
        graph.inline = True
        self.takes_integers = graph.takes_integers
        return graph.build_once(graph.input_shape)

    def add_weight(self, *args: Any, **kwargs: Any) -> Any:
        """Keras' way to make a weight for ``call``, which needs a tape: an error."""
        raise ArgumentError(
            f"{type(self).__name__}: expected weights made by self.param, for forward "
            "and backward",
            "add_weight",
            "write self.param(name, shape, initializer) and a backward, as there is no "
            "automatic differentiation; see docs/from-keras.md",
        )

    def forward(self, x: Any, training: Training = False) -> Any:
        """Return the output for x (batch, ...); ``training`` tells how, see above."""
        if self._graph is None:
            raise NotImplementedError(f"{type(self).__name__}.forward")
        self._graph.mask = self.mask
        return self._graph.forward(x, training)

    def backward(self, dy: Any, done: Done = nothing) -> Any:
        """Fill the parameters' ``grad``; return the gradient dx of the last input.

        ``dy`` is the gradient of the last output, and has its shape.
        """
        if self._graph is None:
            raise NotImplementedError(f"{type(self).__name__}.backward")
        self._graph.input_gradient = self.input_gradient
        dx = self._graph.backward(dy, done)
        done(self._graph)
        return dx

    def logits(self) -> Array:
        """Return what the final softmax or sigmoid was computed from."""
        raise NotImplementedError(f"{type(self).__name__}.logits")

    def backward_logits(self, dz: Array, done: Done = nothing) -> Any:
        """``backward`` from the gradient of ``logits()``, for a fused loss."""
        raise NotImplementedError(f"{type(self).__name__}.backward_logits")

    def backward_rows(self, dy: Array, dx: Array, add: bool) -> None:
        """``backward`` of some rows, which ``forward`` was given before; writes dx.

        With ``add`` the parameters' gradients are added to those of rows before them.
        """
        raise NotImplementedError(f"{type(self).__name__}.backward_rows")

    def output_mask(self) -> Any:
        """Return the mask of the output; ``self.mask`` is the input's.

        By default it is passed on from the only input to the only output.
        """
        if self._graph is not None:
            return self._graph.output_mask()
        several = self.output_shape and is_several(self.output_shape)
        return None if several or isinstance(self.mask, tuple) else self.mask

    def output_spare(self) -> bool | None:
        """Return whether the output, an array of this layer's own, isn't needed for
        backward, so that the next layer may overwrite it; None if it is the input."""
        return False

    # -- calling on tensors ----------------------------------------------------

    @property
    def input(self) -> Any:
        """The tensor, or list of tensors, of the layer's first call; see ``output``."""
        values = list(self._first_call().inputs)
        return values if len(values) != 1 else values[0]

    @property
    def output(self) -> Any:
        """What the layer's first call in a model returned, so that a part of the model
        can be made: ``fs.Model(model.inputs, model.get_layer("dense").output)``.

        Raises StateError if it wasn't called, and isn't in a model that is built.
        """
        return self.arrange_outputs(list(self._first_call().outputs))

    def _first_call(self) -> Node:
        model = None if self.within is None else self.within()
        if model is not None:
            model.inputs  # noqa: B018  the chain as a graph, made once
        for reference in self._called:
            node = reference()
            if node is not None:
                return node
        raise StateError(
            f"{self.name}: expected a layer that was called on a tensor",
            "a layer that is in no model",
            "put it into a model, or call it on fs.Input(shape)",
        )

    def __call__(self, *inputs: Any, **kwargs: Any) -> Any:
        """Return the tensor, or list of tensors, that the layer makes of others.

        Several inputs come as a list, or one after the other; some layers also know
        them by name. See ``core/tensor.py``.
        """
        return call(self, inputs, kwargs)

    def call_values(
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[list[Any], bool]:
        """Return a call's tensors in order, and whether it was one, not a list."""
        kind, names = type(self).__name__, self.call_inputs
        if len(args) > 1 and len(names) == 1:
            args = (list(args),)
        given = {k: v for k, v in kwargs.items() if v is not None}
        given |= {k: v for k, v in zip(names, args, strict=False) if v is not None}
        count = len(given)
        unknown = [name for name in given if name not in names]
        if (
            unknown
            or len(args) > len(names)
            or list(names[:count]) != [name for name in names if name in given]
            or not given
        ):
            raise ArgumentError(
                f"{kind}: expected to be called with {', '.join(names)}",
                f"{len(args)} tensors and {', '.join(kwargs) or 'no names'}",
                "give several tensors as a list, and all else to the constructor",
            )
        values = [given[name] for name in names[:count]]
        single = count == 1 and not isinstance(values[0], (list, tuple))
        flat: list[Any] = []
        for value in values:
            flat.extend(value if isinstance(value, (list, tuple)) else [value])
        return flat, single

    def arrange_outputs(self, outputs: list[Any]) -> Any:
        """Return outputs as callers want them: a list, or the only one by itself."""
        return outputs if len(outputs) > 1 else outputs[0]

    def unbuilt(self) -> Layer | None:
        """Return a new layer from the same arguments; None if there is no such one."""

        def again(value: Any) -> Any:
            return value.unbuilt() if isinstance(value, Layer) else value

        args, kwargs = self.arguments
        layers = [v for v in (*args, *kwargs.values()) if isinstance(v, Layer)]
        if any(layer.unbuilt() is None for layer in layers):
            return None
        named = {name: again(value) for name, value in kwargs.items()}
        made = type(self)(*map(again, args), **named)
        if not self._trainable:
            made.trainable = False
        return made

    def get_weights(self) -> list[Array]:
        self._get_memory()
        return super().get_weights()

    def set_weights(self, weights: Sequence[Array]) -> None:
        self._get_memory()
        super().set_weights(weights)

    def _get_memory(self) -> None:
        """Build the model that this is a layer of if it can, unless it was done."""
        model = None if self.within is None else self.within()
        bound = self.built and all(p.bound for p in self.parameters())
        if model is not None and not bound and model.known_input_shape is not None:
            model.store  # noqa: B018  builds it

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments by their names, as JSON types, except
        layers, which are new ones; ``from_config`` takes them."""
        return {name: _plain(value) for name, value in self.named_arguments().items()}

    @classmethod
    def from_config(cls: type[L], config: dict[str, Any]) -> L:
        """Make a layer from what ``get_config`` returned; its weights are new."""
        return cls(**config)

    def named_arguments(self) -> dict[str, Any]:
        """Return what the constructor was given, by the arguments' names."""
        args, kwargs = self.arguments
        signature = inspect.signature(type(self))
        named = dict(signature.bind(*args, **kwargs).arguments)
        for name, parameter in signature.parameters.items():
            if parameter.kind is parameter.VAR_KEYWORD:
                named |= named.pop(name, {})
        return named

    def _in_order(self) -> list[Parameter]:
        return list({id(p): p for p in self.parameters()}.values())

    # -- what a subclass uses --------------------------------------------------

    def param(
        self,
        name: str,
        shape: tuple[int, ...],
        init: Initializer,
        decay: bool | None = None,
        regularizer: Regularizer | None = None,
        constraint: Constraint | None = None,
    ) -> Parameter:
        """Make a parameter, for ``build``.

        Args:
            name: the last word of its path.
            shape: of the array.
            init: makes its values; one of ``fs.initializers``.
            decay: whether weight decay applies; None: if it has two axes or more.
            regularizer, constraint: of ``fs.regularizers``, ``fs.constraints``.

        Returns a Parameter, whose ``value`` and ``grad`` are arrays once it is built.
        """
        decay = len(shape) >= 2 if decay is None else decay
        shape = tuple(map(int, shape))
        for rule in (regularizer, constraint):
            if rule is not None:
                rule.check(name, shape)
        parameter = Parameter(name, shape, init, decay, regularizer, constraint)
        parameter.trainable = self._trainable
        self._parameters.append(parameter)
        return parameter

    def state(self, name: str, shape: tuple[int, ...], init: Initializer) -> Parameter:
        """Make a weight that isn't trained, but that ``forward`` may change.

        ``init`` makes its values. It is saved like the others. What ``forward`` makes
        of it in a step differs between ranks, so afterwards each gets the mean,
        weighted by the ranks' rows.
        """
        parameter = Parameter(name, tuple(map(int, shape)), init, decay=False)
        parameter.trainable, parameter.moving = False, True
        self._parameters.append(parameter)
        return parameter

    def share(self, parameter: Parameter) -> Parameter:
        """Use a parameter that another layer made; it keeps that layer's path."""
        parameter.users += 1
        self._parameters.append(parameter)
        return parameter

    def child(self, name: str, layer: L) -> L:
        """Register a layer that this one is made of; names are part of the paths."""
        if name in self._children:
            raise ArgumentError(
                "expected layers of different names", repr(name), "rename one of them"
            )
        self._children[name] = layer
        if not self._trainable:
            layer.trainable = False
        return layer

    def buffer(
        self, name: str, shape: tuple[int, ...], dtype: DTypeLike | None = None
    ) -> Array:
        """Return the layer's array of this name: the same memory every step.

        It only grows, and holds garbage until written. ``dtype`` is the layer's unless
        given.
        """
        dtype = self.dtype if dtype is None else np.dtype(dtype)
        kept = self._buffers.get(name)
        if kept is not None and kept.shape == shape and kept.dtype == dtype:
            return kept
        count = 1
        for extent in shape:
            count *= extent
        block = self._blocks.get(name)
        if block is None or block.dtype != dtype or block.size < count:
            block = self._blocks[name] = np.empty(count, dtype)
        array = self._buffers[name] = block[:count].reshape(shape)
        return array

    def share_buffers(self, other: Layer) -> None:
        """Use another layer's arrays from now on: each overwrites the other's."""
        self._buffers, self._blocks = other._buffers, other._blocks

    def scratch(self, shape: tuple[int, ...], dtype: DTypeLike | None = None) -> Array:
        """Return an array of the model's pool; it goes back when it is dropped.

        ``dtype`` is the layer's unless given.
        """
        return self.memory.take(shape, self.dtype if dtype is None else dtype)

    # -- what callers use ------------------------------------------------------

    def build_once(self, input_shape: Shape) -> Shape:
        """Build unless that was done; raise ShapeError if it is for another shape."""
        shape = tuple(input_shape)
        if self.input_shape is not None and not same_shape(self.input_shape, shape):
            raise ShapeError(
                f"{type(self).__name__}: expected an input of shape {self.input_shape}"
                " (besides the batch), as it was told or built before",
                f"shape {shape}",
                "change input_shape or the layer before, or make another layer",
            )
        if self.output_shape is None:
            self.input_shape = shape
            self.output_shape = tuple(self.build(shape))
        return self.output_shape

    @property
    def built(self) -> bool:
        return self.output_shape is not None

    @property
    def trainable(self) -> bool:
        """Whether the weights of this layer and of all inside of it are trained.

        What is set counts from the next ``compile`` of the model on.
        """
        return self._trainable

    @trainable.setter
    def trainable(self, value: bool) -> None:
        for _, layer in self.walk():
            layer._trainable = bool(value)
            for parameter in layer.own_parameters():
                fixed = parameter.moving or parameter.base
                parameter.trainable = bool(value) and not fixed

    def bind(self, memory: Memory, dtype: np.dtype[Any]) -> None:
        """Give this layer and all inside of it the model's pool and its type."""
        for path, layer in self.walk():
            layer.path, layer.memory, layer.dtype = path, memory, dtype
            layer._buffers.clear()
            layer._blocks.clear()
        for _, layer in self.walk():
            layer.after_bind()

    def after_bind(self) -> None:
        """Do what a layer must that has others which ``walk`` doesn't find."""

    def own_parameters(self) -> list[Parameter]:
        """Return the parameters of this layer without those of its children."""
        return self._parameters

    def children(self) -> dict[str, Layer]:
        """Return the layers that this one is made of, by their names."""
        return self._children

    def parameters(self) -> Iterator[Parameter]:
        """Yield the parameters of this layer and of all inside of it."""
        yield from self._parameters
        for child in self._children.values():
            yield from child.parameters()

    def walk(self, path: str = "") -> Iterator[tuple[str, Layer]]:
        """Yield (path, layer) for this layer and all inside, in order of execution."""
        yield path, self
        for name, child in self._children.items():
            place = f"{path}.{name}" if path else name
            yield from child.walk(path if child.inline and path else place)

    def check_features(self, shape: Shape, rank: int | None = None) -> int:
        """Return the size of the last axis of ``shape``, which must be known."""
        kind = type(self).__name__
        if not shape or shape[-1] is None or (rank is not None and len(shape) != rank):
            wanted = "a known last axis" if rank is None else f"{rank} axes"
            raise ShapeError(
                f"{kind}: expected an input with {wanted} (besides the batch)",
                f"shape {shape}",
                "give the first layer an input_shape, or reshape the data",
            )
        return int(shape[-1])

    def positive(self, argument: str, value: int) -> int:
        """Return ``value``; raise ArgumentError unless it is an integer above 0."""
        if isinstance(value, bool) or not hasattr(value, "__index__") or value < 1:
            raise ArgumentError(
                f"{type(self).__name__}: expected {argument} to be an integer above 0",
                repr(value),
                f"change {argument}",
            )
        return value.__index__()

    def saved(self, value: V | None) -> V:
        """Return what ``forward`` saved; raise StateError if there was no forward."""
        if value is None:
            raise StateError(
                f"{type(self).__name__}: expected forward before backward",
                "backward alone",
                "call forward(x, training) first",
            )
        return value

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.input_shape} -> {self.output_shape})"


def _check_call(kind: type[Layer]) -> None:
    """Raise ArgumentError for a ``call`` that takes the place of a ``forward``."""
    for base in kind.__mro__:
        if "forward" in vars(base):
            return
        if "call" in vars(base):
            break
    if getattr(kind, "forward", Layer.forward) is not Layer.forward:
        raise ArgumentError(
            f"{kind.__name__}: expected forward and backward in a subclass of a layer "
            "that has them",
            "call, which would never be called",
            "make it a subclass of Layer with the other layer inside, or write forward "
            "and backward",
        )


def _plain(value: Any) -> Any:
    """Return an argument as Keras' configs have it: objects by class and arguments."""
    if isinstance(value, Layer):
        return value.unbuilt() or value
    if isinstance(value, (list, tuple)):
        return type(value)(map(_plain, value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        if hasattr(value, "forward"):  # an activation
            return value.name  # type: ignore[attr-defined]
        known = inspect.signature(type(value)).parameters
        fields = {k: v for k, v in vars(value).items() if k in known}
        return {"class_name": type(value).__name__, "config": fields}
    return value
