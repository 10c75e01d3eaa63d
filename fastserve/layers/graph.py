"""``Graph``: the calls of layers between some tensors, run as one layer.

Its calls run in the order in which they were written, and backward in the opposite
order. A tensor that several calls use gets the sum of their gradients. Of a layer that
is called several times, the later calls run copies that hold the same weights and have
arrays of their own; as each backward overwrites the weights' gradients, those of the
calls before are put aside and added.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from fastserve.core import (
    Array,
    Done,
    Layer,
    Node,
    Parameter,
    Tensor,
    Training,
    nothing,
)
from fastserve.core.layer import snake_case
from fastserve.core.tensor import copy_for_call
from fastserve.errors import ArgumentError, StateError
from fastserve.layers.chain import needs_backward
from fastserve.layers.shapes import Input, InputLayer


def flatten(values: Any) -> list[Any]:
    """Return the parts of a list, a tuple or a dict, or the only value, as a list."""
    if isinstance(values, Mapping):
        return list(values.values())
    return list(values) if isinstance(values, (list, tuple)) else [values]


def arrange(values: Sequence[Any], like: Any) -> Any:
    """Return the values as a list or dict like ``like``, or the only one by itself.

    A list of one is that one by itself, as in Keras.
    """
    if isinstance(like, Mapping):
        return dict(zip(like, values, strict=True))
    return list(values) if len(values) > 1 else values[0]


class Call:
    """One run of a layer in a graph.

    Attributes:
        layer: what is run; ``origin``: the layer that was called.
        inputs, outputs: places of the tensors.
        used_up: places of tensors that no later call needs.
        needed: whether the gradient of its outputs is of use.
        wants: whether the gradient of its inputs is.
        shared: parameters whose gradient has a part from a call before, in backward.
        alone: no other call has any of its parameters.
        final: layers whose gradients are final after this call's backward.
    """

    def __init__(
        self,
        node: Node,
        layer: Layer,
        inputs: tuple[int, ...],
        outputs: tuple[int, ...],
    ) -> None:
        self.node, self.layer, self.inputs, self.outputs = node, layer, inputs, outputs
        self.used_up: list[int] = []
        self.needed = self.wants = self.alone = True
        self.shared: list[Parameter] = []
        self.final: list[Layer] = []

    @property
    def origin(self) -> Layer:
        return self.node.layer


class Graph(Layer):
    """What lies between ``inputs`` and ``outputs``.

    A layer's path is its name, or its kind with a number if there are several of it, in
    the order in which they were called: dense, dense_1.

    Args:
        inputs, outputs: tensors, or lists or dicts of them.
        names: of layers, by ``id``, for those that have none.

    Attributes:
        layers: in Keras' order, which is that of its weights: those that are farther
            from the outputs first.

    Raises ArgumentError for what isn't a tensor, outputs that need other inputs too,
    and two layers of one name.
    """

    def __init__(
        self,
        inputs: Any,
        outputs: Any,
        name: str | None = None,
        names: Mapping[int, str] | None = None,
    ) -> None:
        super().__init__(name=name)
        self.label = "Functional"
        self.inputs_like, self.outputs_like = inputs, outputs
        self.inputs = _tensors("inputs", flatten(inputs))
        self.outputs = _tensors("outputs", flatten(outputs))
        self.several_inputs = isinstance(inputs, (list, tuple, Mapping))
        self.several_outputs = len(self.outputs) > 1
        shapes = tuple(t.shape[1:] for t in self.inputs)
        # a list of one input is called with an array, as by Keras
        self.one_input = len(shapes) == 1
        self.input_shape = shapes[0] if self.one_input else shapes  # type: ignore
        self.nodes = _nodes_between(self.inputs, self.outputs)
        self._name_layers(names or {})
        self._make_calls()
        self._find_shared()
        each = tuple(self._takes_integers(place) for place in self._in)
        self.takes_integers = each[0] if self.one_input else each
        self.plan_gradients()
        self._mask_out: Any = None
        self._ran: bool | None = None

    def build(self, input_shape: Any) -> Any:
        shapes = tuple(t.shape[1:] for t in self.outputs)
        return shapes if self.several_outputs else shapes[0]

    # -- structure ---------------------------------------------------------------

    def _name_layers(self, names: Mapping[int, str]) -> None:
        layers = list({id(n.layer): n.layer for n in self.nodes}.values())
        given = {id(x): x.given_name or names.get(id(x)) for x in layers}
        taken = [name for name in given.values() if name]
        for name in taken:
            if taken.count(name) > 1:
                raise ArgumentError(
                    "expected layers of different names in a model",
                    f"{name!r} for {taken.count(name)} layers",
                    "rename one of them with name=...",
                )
        known, counts = set(taken), dict[str, int]()
        for layer in layers:
            if given[id(layer)]:
                continue
            label, name = snake_case(layer.label), ""
            while not name or name in known:
                count = counts.get(label, 0)
                counts[label] = count + 1
                name = f"{label}_{count}" if count else label
            known.add(name)
            given[id(layer)] = name
        for layer in layers:
            self.child(str(given[id(layer)]), layer)
            layer.counted_name = layer.counted_name or given[id(layer)]
        self.layers = list(_as_keras_orders(self.nodes, self.inputs, self.outputs))

    def name_of(self, layer: Layer) -> str:
        """Return the name that a layer has in this graph."""
        found = (name for name, child in self.children().items() if child is layer)
        return next(found, layer.name)

    def parameters(self) -> Iterator[Parameter]:
        """Yield them in Keras' order, not in that of execution."""
        for layer in self.layers:
            yield from layer.parameters()

    def before(self, layer: Layer) -> list[str]:
        """Return the names of what a layer's calls are given, as in Keras' summary: a
        layer's name, [number of its call] and [place of its output] if not 0."""
        calls: dict[int, list[Node]] = {}
        for node in self.nodes:
            calls.setdefault(id(node.layer), []).append(node)
        found = []
        for node in calls.get(id(layer), ()):
            for tensor in node.inputs:
                name = self.name_of(tensor.node.layer)
                among = calls.get(id(tensor.node.layer), [tensor.node])
                number = among.index(tensor.node)
                if len(among) > 1 or len(tensor.node.outputs) > 1:
                    name += f"[{number}][{tensor.index}]"
                found.append(name)
        return found

    @property
    def input_names(self) -> list[str]:
        if isinstance(self.inputs_like, Mapping):
            return list(self.inputs_like)
        return _numbered([self.name_of(t.node.layer) for t in self.inputs])

    @property
    def output_names(self) -> list[str]:
        if isinstance(self.outputs_like, Mapping):
            return list(self.outputs_like)
        return _numbered([self.name_of(t.node.layer) for t in self.outputs])

    def _make_calls(self) -> None:
        places: dict[int, int] = {}
        for tensor in [*self.inputs, *(t for n in self.nodes for t in n.outputs)]:
            places.setdefault(id(tensor), len(places))
        self._size = len(places)
        self.calls: list[Call] = []
        inside: set[int] = set()  # layers that have run: later calls need copies
        given = {id(t) for t in self.inputs}
        for node in self.nodes:
            if all(id(t) in given for t in node.outputs):
                continue
            layer = node.copy or node.layer
            parts = {id(part) for _, part in layer.walk()}
            if parts & inside:
                self._check_copy(layer)
                layer = copy_for_call(layer)
            inside |= parts
            ins = tuple(places[id(t)] for t in node.inputs)
            outs = tuple(places[id(t)] for t in node.outputs)
            self.calls.append(Call(node, layer, ins, outs))
        self._in = [places[id(t)] for t in self.inputs]
        self._out = [places[id(t)] for t in self.outputs]
        kept = set(self._out)
        for call in reversed(self.calls):
            call.used_up = [p for p in set(call.inputs) if p not in kept]
            kept.update(call.used_up)

    def _check_copy(self, layer: Layer) -> None:
        if any(part.synchronized for _, part in layer.walk()):
            raise ArgumentError(
                f"{self.name_of(layer)}: expected a synchronized layer to be called "
                "once: the ranks must know when the others do",
                "a second call",
                "leave out synchronized, or make another layer",
            )

    def _find_shared(self) -> None:
        """Find out which calls have parameters in common."""
        users: dict[int, list[Call]] = {}
        for call in reversed(self.calls):
            for p in {id(p): p for p in call.layer.parameters()}.values():
                before = users.setdefault(id(p), [])
                if before:
                    call.shared.append(p)
                    call.alone = False
                    before[0].alone = False
                before.append(call)
        order = {id(call): i for i, call in enumerate(self.calls)}
        for layer in self.layers:
            of = [c for c in self.calls if c.origin is layer]
            of += [c for p in layer.parameters() for c in users.get(id(p), ())]
            if of:
                min(of, key=lambda c: order[id(c)]).final.append(layer)

    def after_bind(self) -> None:
        for call in self.calls:
            name = self.name_of(call.origin)
            origin = {id(part) for _, part in call.origin.walk()}
            if id(call.layer) in origin:
                continue
            # a copy is no child; its random numbers shall differ from the others'
            place = f"{self.path}.{name}" if self.path else name
            number = [c.node for c in self.calls if c.origin is call.origin].index(
                call.node
            )
            call.layer.bind(self.memory, self.dtype)
            for (path, part), (_, like) in zip(
                call.layer.walk(f"{place}@{number}"), call.origin.walk(), strict=True
            ):
                part.path, part._trainable = path, like._trainable

    def call_values(
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[list[Any], bool]:
        values = args[0] if len(args) == 1 and not kwargs else list(args)
        if isinstance(values, Mapping):
            names = self.input_names
            if set(values) != set(names):
                raise ArgumentError(
                    f"expected inputs {', '.join(names)}",
                    ", ".join(map(str, values)),
                    "give a tensor for each",
                )
            values = [values[name] for name in names]
        flat = flatten(values)
        if kwargs or len(flat) != len(self.inputs):
            raise ArgumentError(
                f"{self.given_name or 'model'}: expected {len(self.inputs)} inputs",
                f"{len(flat)}, {', '.join(kwargs) or 'none by name'}",
                "call it on a list with a tensor for each input",
            )
        return flat, self.one_input

    def arrange_outputs(self, outputs: list[Any]) -> Any:
        return arrange(outputs, self.outputs_like)

    def unbuilt(self) -> Layer | None:
        return None

    # -- forward -----------------------------------------------------------------

    def forward(self, x: Any, training: Training = False) -> Any:
        arrays = (x,) if self.one_input else x
        values: list[Any] = [None] * self._size
        masks: list[Any] = [None] * self._size
        given = self.mask if isinstance(self.mask, tuple) else (self.mask,)
        for place, array, mask in zip(
            self._in, arrays, given if self.mask is not None else masks, strict=False
        ):
            values[place], masks[place] = array, mask
        for call in self.calls:
            layer, node = call.layer, call.node
            if node.single:
                place = call.inputs[0]
                layer.mask, inputs = masks[place], values[place]
            else:
                mask = tuple(masks[p] for p in call.inputs)
                layer.mask = None if all(m is None for m in mask) else mask
                inputs = tuple(values[p] for p in call.inputs)
            y = layer.forward(inputs, False if node.training is False else training)
            out = layer.output_mask()
            if node.several_outputs:
                several = out if isinstance(out, tuple) else (None,) * len(y)
                for place, array, mask in zip(call.outputs, y, several, strict=True):
                    values[place], masks[place] = array, mask
            else:
                values[call.outputs[0]], masks[call.outputs[0]] = y, out
            for place in call.used_up:
                values[place] = None
        self._ran = True
        outputs = tuple(values[p] for p in self._out)
        out_masks = tuple(masks[p] for p in self._out)
        self._mask_out = out_masks if self.several_outputs else out_masks[0]
        return outputs if self.several_outputs else outputs[0]

    def output_mask(self) -> Any:
        return self._mask_out

    @property
    def takes_strings(self) -> bool:  # type: ignore[override]
        readers = [c.layer for c in self.calls if self._in[0] in c.inputs]
        return self.one_input and any(layer.takes_strings for layer in readers)

    def _takes_integers(self, place: int) -> bool:
        source = self.inputs[self._in.index(place)].node.layer
        if isinstance(source, InputLayer) and source.integers is not None:
            return source.integers
        for call in self.calls:
            takes = call.layer.takes_integers
            for i, p in enumerate(call.inputs):
                if p == place and (takes[i] if isinstance(takes, tuple) else takes):
                    return True
        return False

    # -- backward ----------------------------------------------------------------

    def plan_gradients(self, inputs: bool = True) -> None:
        """Find out which gradients are needed; ``inputs``: those of the inputs."""
        wanted = set(self._in) if inputs else set()
        for call in self.calls:
            layer = call.layer
            takes = layer.takes_integers
            each = takes if isinstance(takes, tuple) else (takes,) * len(call.inputs)
            call.wants = any(
                p in wanted and not integers
                for p, integers in zip(call.inputs, each, strict=True)
            )
            call.needed = call.wants or needs_backward(layer)
            if call.needed:
                wanted.update(call.outputs)
            for _, part in layer.walk():
                part.input_gradient = True
                if isinstance(part, Graph):
                    part.plan_gradients()
            if not call.wants and hasattr(layer, "skip_input_gradient"):
                layer.skip_input_gradient()
        self._wanted = wanted

    def skip_input_gradient(self) -> None:
        """Nobody needs the gradients of the inputs: don't compute them, nor those of
        calls that have nothing to train before them."""
        self.plan_gradients(inputs=False)

    @property
    def fused_losses(self) -> tuple[str | None, ...]:
        """For each output the activation that a loss can be fused with, or None."""
        used = {p for call in self.calls for p in call.inputs}
        found: list[str | None] = []
        for place in self._out:
            call = self._maker(place)
            alone = place not in used and self._out.count(place) == 1
            one = call is not None and not call.node.several_outputs
            found.append(call.layer.fused_loss if call and alone and one else None)
        return tuple(found)

    @property
    def fused_loss(self) -> str | None:  # type: ignore[override]
        return None if self.several_outputs else self.fused_losses[0]

    def _maker(self, place: int) -> Call | None:
        return next((c for c in self.calls if place in c.outputs), None)

    def logits(self, output: int = 0) -> Array:
        call = self._maker(self._out[output])
        assert call is not None  # there is nothing to fuse with an input
        return call.layer.logits()

    def backward(self, dy: Any, done: Done = nothing) -> Any:
        dys = dy if self.several_outputs else (dy,)
        return self.backward_outputs(dys, (False,) * len(dys), done)

    def backward_logits(self, dz: Array, done: Done = nothing) -> Any:
        return self.backward_outputs((dz,), (True,), done)

    def backward_outputs(
        self, dys: Sequence[Array | None], fused: Sequence[bool], done: Done = nothing
    ) -> Any:
        """``backward`` from the gradients of all outputs; None for those of no use.

        ``fused`` says which are gradients of ``logits(i)`` instead.
        """
        self.saved(self._ran)
        grads = _Sums(self, self._size)
        logits = set()
        for place, dy, is_fused in zip(self._out, dys, fused, strict=True):
            if dy is not None:
                grads.add(place, dy)
                logits |= {place} if is_fused else set()
        for call in reversed(self.calls):
            if call.needed:
                self._backward_call(call, grads, call.outputs[0] in logits, done)
            for layer in call.final:
                done(layer)
        dxs = tuple(grads.take(place) for place in self._in)
        return dxs[0] if self.one_input else dxs

    def _backward_call(self, call: Call, grads: _Sums, fused: bool, done: Done) -> None:
        layer, node = call.layer, call.node
        dys = tuple(grads.take(place) for place in call.outputs)
        shared = [p for p in call.shared if p.trainable]
        if all(dy is None for dy in dys):
            put_before = {id(p) for p in shared}
            for p in layer.parameters():
                if p.trainable and id(p) not in put_before:
                    p.grad.fill(0)
            return
        if node.training is False:
            raise StateError(
                f"{self.name_of(call.origin)}: expected a layer that needs no "
                "gradient, as it was called with training=False",
                "one with weights to train in it or before it",
                "set its trainable, and that of what is before it, to False",
            )
        before = [(p, self.scratch(p.shape)) for p in shared]
        for p, kept in before:
            np.copyto(kept, p.grad)
            if p.users > 1:  # its layers may add instead of overwriting
                p.grad.fill(0)
        layer.input_gradient = call.wants
        report = done if call.alone else nothing
        dy: Any = dys if node.several_outputs else dys[0]
        del dys
        dx = (layer.backward_logits if fused else layer.backward)(dy, report)
        del dy
        for p, kept in before:
            np.add(p.grad, kept, out=p.grad)
        if not call.wants:
            return
        for place, d in zip(call.inputs, (dx,) if node.single else dx, strict=True):
            if d is not None and place in self._wanted:
                grads.add(place, d)


class _Sums:
    """Gradients of tensors, each the sum over those who use it."""

    def __init__(self, graph: Graph, size: int) -> None:
        self._graph = graph
        self._sums: list[Array | None] = [None] * size
        self._own = [False] * size

    def add(self, place: int, gradient: Array) -> None:
        known = self._sums[place]
        if known is None:  # it may be someone else's: not to be written to
            self._sums[place] = gradient
        elif self._own[place]:
            np.add(known, gradient, out=known)
        else:
            total = self._graph.scratch(gradient.shape)
            self._sums[place] = np.add(known, gradient, out=total)
            self._own[place] = True

    def take(self, place: int) -> Array | None:
        """Return the sum and forget it, so that its memory can be used again."""
        gradient, self._sums[place] = self._sums[place], None
        return gradient


# -- helpers ---------------------------------------------------------------------------


def _tensors(what: str, values: list[Any]) -> list[Tensor]:
    if not values or not all(isinstance(value, Tensor) for value in values):
        wrong = next((v for v in values if not isinstance(v, Tensor)), None)
        raise ArgumentError(
            f"expected {what} to be tensors, in a list or dict if there are several",
            "an empty list" if not values else f"{type(wrong).__name__}",
            "start with fs.Input(shape), and call layers on it",
        )
    return values


def _nodes_between(inputs: list[Tensor], outputs: list[Tensor]) -> list[Node]:
    """Return the calls that lead from inputs to outputs, in the order of writing."""
    given = {id(t) for t in inputs}
    nodes = {t.node.number: t.node for t in inputs if _is_start(t)}
    todo = [t for t in outputs if id(t) not in given]
    while todo:
        node = todo.pop().node
        if node.number in nodes:
            continue
        if not node.inputs:
            raise ArgumentError(
                "expected outputs that follow from the inputs",
                f"one that also needs the Input {node.outputs[0]!r}",
                "add it to the model's inputs",
            )
        nodes[node.number] = node
        todo.extend(t for t in node.inputs if id(t) not in given)
    return [nodes[number] for number in sorted(nodes)]


def _is_start(tensor: Tensor) -> bool:
    return not tensor.node.inputs


def _as_keras_orders(
    nodes: list[Node], inputs: list[Tensor], outputs: list[Tensor]
) -> Iterator[Layer]:
    """Yield the layers in Keras' order, which is that of its weights too.

    Those that are farther from the outputs come first; of the same distance, those
    that are found first from the outputs backwards.
    """
    known = {id(node) for node in nodes}
    given = {id(t) for t in inputs}
    found: dict[int, int] = {}
    seen: set[int] = set()
    finished: list[Node] = []

    def visit(tensor: Tensor) -> None:
        # by hand instead of by calls of itself: graphs may be deep
        stack: list[tuple[Node, Iterator[Tensor]]] = []

        def enter(t: Tensor) -> None:
            node = t.node
            if id(node) in known and id(node) not in seen:
                seen.add(id(node))
                found.setdefault(id(node.layer), len(found))
                stops = id(t) in given
                stack.append((node, iter(() if stops else node.inputs)))

        enter(tensor)
        while stack:
            node, rest = stack[-1]
            following = next(rest, None)
            if following is None:
                finished.append(node)
                stack.pop()
            else:
                enter(following)

    for tensor in outputs:
        visit(tensor)
    depths: dict[int, int] = {}
    layer_depths: dict[int, int] = {}
    for node in reversed(finished):
        depth = max(depths.get(id(node), 0), layer_depths.get(id(node.layer), 0))
        depths[id(node)] = layer_depths[id(node.layer)] = depth
        for tensor in node.inputs:
            before = id(tensor.node)
            depths[before] = max(depth + 1, depths.get(before, 0))
    layers = {id(node.layer): node.layer for node in nodes}
    yield from sorted(
        layers.values(),
        key=lambda x: (-layer_depths.get(id(x), 0), found.get(id(x), -1)),
    )


def _numbered(names: list[str]) -> list[str]:
    """Return the names with a number behind each one that was there before."""
    return [
        name if name not in names[:i] else f"{name}_{names[:i].count(name)}"
        for i, name in enumerate(names)
    ]


def make_inputs(shape: Any) -> Any:
    """Return an Input for a shape, or a list or dict of them for several."""
    if isinstance(shape, Mapping):
        return {name: Input(s, name=name) for name, s in shape.items()}
    if len(shape) and isinstance(shape[0], (tuple, list)):
        return [Input(s) for s in shape]
    return Input(shape)


# -- classes with a method call --------------------------------------------------------


class _AsTheModel:
    """What ``call`` gets for ``training``: it may be passed on, not looked at."""

    def __bool__(self) -> bool:
        raise ArgumentError(
            "expected a call(self, inputs, training) that passes training on to layers",
            "one that decides by it",
            "call is run once, for training and for all else: use layers, which know "
            "whether the model trains",
        )


def trace_call(
    owner: Any, shape: Any, as_layer: Callable[[Any], Any] = lambda value: value
) -> Graph:
    """Return what ``owner.call`` does with inputs of ``shape`` as a graph.

    Layers without a name are named after the owner's attributes that hold them.
    """
    inputs = make_inputs(shape)
    known = inspect.signature(owner.call).parameters
    options = {"training": _AsTheModel()} if "training" in known else {}
    outputs = owner.call(inputs, **options)
    if isinstance(outputs, tuple):
        outputs = list(outputs)
    names = {}
    for name, value in vars(owner).items():
        if isinstance(value, (list, tuple)):
            for i, part in enumerate(value):
                names[id(as_layer(part))] = f"{name}_{i}"
        else:
            names[id(as_layer(value))] = name
    return Graph(inputs, outputs, names=names)


Layer.trace = staticmethod(trace_call)
