"""Parameters, and the two flat vectors that hold all of a model's values and grads."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import DTypeLike

from fastserve.core.constraints import Constraint
from fastserve.core.initializers import Initializer
from fastserve.core.memory import ALIGNMENT, Array, aligned_zeros
from fastserve.core.random import generator
from fastserve.core.regularizers import Regularizer
from fastserve.errors import ArgumentError, ShapeError, StateError

if TYPE_CHECKING:
    from fastserve.core.layer import Layer

# With overlap the last bucket leaves when backward has ended, so it shall be small. A
# bucket costs little, as messages are cut in another way.
BUCKET_BYTES = 4 << 20


_initialize = ContextVar("_initialize", default=True)


@contextmanager
def without_initial_values() -> Iterator[None]:
    """Let models that are built inside have zeros as weights: others will be loaded.

    Drawing random numbers takes longer than reading a file.
    """
    token = _initialize.set(False)
    try:
        yield
    finally:
        _initialize.reset(token)


_most = ContextVar("_most", default=0)


@contextmanager
def at_most(numbers: int) -> Iterator[None]:
    """Let models that are built inside have so many numbers as weights, and no more.

    What a file asks for is compared with what it can hold before memory is taken.
    ``ParameterStore`` raises ShapeError for more.
    """
    token = _most.set(numbers)
    try:
        yield
    finally:
        _most.reset(token)


def _check_total(parameters: Iterable[Parameter]) -> None:
    most = _most.get()
    count = sum(p.size for p in parameters)
    if most and count > most:
        raise ShapeError(
            f"expected a model of at most {most:,} weights, as its file or this "
            "machine's memory holds no more",
            f"one of {count:,}",
            "get the model again from where it was written",
        )


class Parameter:
    """A weight; ``value`` and ``grad`` are views into the store's vectors.

    Attributes:
        path: place in the model's tree, for example ``blocks.0.attention.qkv.kernel``.
        decay: whether weight decay applies; by default to matrices only.
        users: number of layers that hold it; more than one if it is tied.
        regularizer: adds a penalty to the loss; None: none.
        constraint: what is done to the value after each update; None: nothing.
        trainable: false: the optimizer leaves the value, and ``grad`` is memory that
            frozen parameters share and nobody reads; a layer needn't write to it.
        moving: its layer changes the value in ``forward`` when it trains, as moving
            averages are changed; it is never trainable.
        base: the value never changes in a run, so checkpoints write it once.
    """

    def __init__(
        self,
        name: str,
        shape: tuple[int, ...],
        init: Initializer,
        decay: bool,
        regularizer: Regularizer | None = None,
        constraint: Constraint | None = None,
    ) -> None:
        self.name, self.shape, self.init, self.decay = name, shape, init, decay
        self.regularizer, self.constraint = regularizer, constraint
        self.path = name
        self.users = 1
        self.trainable = True
        self.moving = self.base = False
        self.store: ParameterStore | None = None  # whose memory it has
        self._value: Array | None = None
        self._grad: Array | None = None

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def value(self) -> Array:
        if self._value is None:
            raise self._unbound()
        return self._value

    @property
    def grad(self) -> Array:
        if self._grad is None:
            raise self._unbound()
        return self._grad

    @property
    def bound(self) -> bool:
        return self._value is not None

    def bind(
        self, value: Array, grad: Array, store: ParameterStore | None = None
    ) -> None:
        self._value, self._grad, self.store = value, grad, store

    def assign(self, array: Array) -> None:
        """Copy ``array`` into the value; raises ShapeError if the shapes differ."""
        self.check(array)
        self.value[...] = array

    def check(self, array: Array) -> None:
        """Raise ShapeError unless ``array`` has the parameter's shape."""
        if np.shape(array) != self.shape:
            raise ShapeError(
                f"parameter {self.path}: expected an array of shape {self.shape}",
                f"shape {np.shape(array)}",
                "load weights that were saved from the same model",
            )

    def _unbound(self) -> StateError:
        return StateError(
            f"parameter {self.path} has no memory yet",
            "a layer that was built without a ParameterStore",
            "build the model, or call ParameterStore(layer)",
        )

    def __repr__(self) -> str:
        return f"Parameter({self.path}, {self.shape})"


class ParameterStore:
    """All parameters of a tree of layers, in one vector of values and one of grads.

    The layout is the reverse of the order of execution, so backward completes bucket
    0 first, and each bucket is one slice that goes to MPI without a copy. Inside of a
    bucket, parameters that decay come first, so weight decay is a slice too. Every
    parameter starts at a multiple of 64 bytes; the gaps hold zeros. Parameters that
    aren't trainable have a vector of their own, ``frozen``, and no gradients; its first
    part, ``moving``, holds those that their layers change.

    Args:
        root: a built layer.
        seed: with each parameter's path it determines its initial value.
        dtype: float32, or float64 for gradient checks.
        bucket_bytes: a bucket is closed once it holds this much.
    """

    def __init__(
        self,
        root: Layer,
        seed: int = 0,
        dtype: DTypeLike = np.float32,
        bucket_bytes: int = BUCKET_BYTES,
    ) -> None:
        if bucket_bytes < 1:
            raise ArgumentError(
                "expected bucket_bytes of 1 or more",
                str(bucket_bytes),
                "give for example 4 << 20",
            )
        self.dtype = np.dtype(dtype)
        self.values: Array
        self.grads: Array
        self.bucket_bytes, self._root = bucket_bytes, root
        self._lay_out()
        if _initialize.get():
            self._draw(self.parameters + self.frozen_parameters, seed)

    def regroup(self, bucket_bytes: int) -> None:
        """Lay the vectors out again, in buckets of another size; values stay."""
        self.bucket_bytes = bucket_bytes
        self.rebuild()

    def rebuild(self, seed: int = 0) -> None:
        """Lay the vectors out again after parameters came, went or were frozen.

        Values stay; new parameters get their initial ones.
        """
        known = [p for p in named_parameters(self._root) if p.bound]
        values = [(p, p.value.copy()) for p in known]
        added = [p for p in named_parameters(self._root) if not p.bound]
        self._lay_out()
        for parameter, value in values:
            parameter.value[...] = value
        self._draw(added, seed)

    def _draw(self, parameters: Iterable[Parameter], seed: int) -> None:
        for parameter in parameters:
            rng = generator(seed, "init", parameter.path)
            parameter.value[...] = parameter.init(parameter.shape, rng)

    def move_grads(self, vector: Array) -> None:
        """Keep the gradients in other memory of the same length and type."""
        if vector.shape != self.grads.shape or vector.dtype != self.grads.dtype:
            raise ShapeError(
                f"move_grads: expected {self.grads.size} numbers of {self.dtype}",
                f"shape {vector.shape} of {vector.dtype}",
                "make memory for the whole flat vector",
            )
        vector[...] = self.grads
        self.grads = vector
        self._bind()

    def _bind(self) -> None:
        for parameter in self.parameters:
            parameter.bind(
                self.view(self.values, parameter),
                self.view(self.grads, parameter),
                self,
            )

    def _group(self, root: Layer, bucket_bytes: int) -> list[list[Parameter]]:
        groups: list[list[Parameter]] = [[]]
        room = bucket_bytes
        trained = [p for p in named_parameters(root) if p.trainable]
        for parameter in reversed(trained):
            if room <= 0:
                groups.append([])
                room = bucket_bytes
            groups[-1].append(parameter)
            room -= parameter.size * self.dtype.itemsize
        # decaying ones first; the sort is stable, so all ranks agree on the order
        return [sorted(group, key=lambda p: not p.decay) for group in groups if group]

    def _lay_out(self) -> None:
        _check_total(named_parameters(self._root))
        self._by_bucket = self._group(self._root, self.bucket_bytes)
        self._allocate()
        self._allocate_frozen()
        self._held = self.parameters + self.frozen_parameters

    def _allocate_frozen(self) -> None:
        """Put what isn't trained behind one another, with one gradient for all."""
        frozen = [p for p in named_parameters(self._root) if not p.trainable]
        self.frozen_parameters = sorted(frozen, key=lambda p: not p.moving)
        step = ALIGNMENT // self.dtype.itemsize
        spans = [-(-p.size // step) * step for p in self.frozen_parameters]
        self.frozen = self._vector(sum(spans))
        self._unread = self._vector(max(spans, default=0))
        self._bind_frozen()
        movers = [p.moving for p in self.frozen_parameters].count(True)
        self.moving = self.frozen[: sum(spans[:movers])]

    def _bind_frozen(self) -> None:
        step = ALIGNMENT // self.dtype.itemsize
        spans = [-(-p.size // step) * step for p in self.frozen_parameters]
        offset = 0
        for parameter, span in zip(self.frozen_parameters, spans, strict=True):
            value = self.frozen[offset : offset + parameter.size]
            grad = self._unread[: parameter.size]
            parameter.bind(
                value.reshape(parameter.shape), grad.reshape(parameter.shape), self
            )
            offset += span

    def claim(self) -> bool:
        """Take parameters back that another model has bound since, with their values
        of now; return whether there were any.

        Layers may be part of several models; who trains has them in its vectors.
        """
        if all(p.store is self for p in self._held):
            return False
        values = [(p, p.value) for p in self._held if p.store is not self]
        for path, layer in self._root.walk():
            layer.path = path
        for _, layer in self._root.walk():
            layer.after_bind()
        for _ in named_parameters(self._root):
            pass  # their paths are those of this model again
        self._bind()
        self._bind_frozen()
        for parameter, value in values:
            parameter.value[...] = value
        return True

    @property
    def stale(self) -> bool:
        """Whether parameters were frozen or the opposite since they were laid out."""
        return not all(p.trainable for p in self.parameters) or any(
            p.trainable for p in self.frozen_parameters
        )

    def _allocate(self) -> None:
        step = ALIGNMENT // self.dtype.itemsize
        offset = 0
        offsets: dict[str, int] = {}
        self.buckets: list[slice] = []
        self.decayed: list[slice] = []
        for group in self._by_bucket:
            start = decay_end = offset
            for parameter in group:
                offsets[parameter.path] = offset
                offset += -(-parameter.size // step) * step
                decay_end = offset if parameter.decay else decay_end
            self.buckets.append(slice(start, offset))
            if decay_end > start:
                self.decayed.append(slice(start, decay_end))
        self.offsets = offsets
        self.values = self._vector(offset)
        self.grads = self._vector(offset)
        self._bind()

    def _vector(self, size: int) -> Array:
        return aligned_zeros(size * self.dtype.itemsize).view(self.dtype)

    @property
    def parameters(self) -> list[Parameter]:
        """All parameters that are trained, in the order of the vectors."""
        return [p for group in self._by_bucket for p in group]

    @property
    def count(self) -> int:
        """Number of trainable numbers, without the gaps."""
        return sum(p.size for p in self.parameters)

    def parameters_of_bucket(self, index: int) -> list[Parameter]:
        return self._by_bucket[index]

    def view(self, vector: Array, parameter: Parameter) -> Array:
        """Return the part of a flat vector of this layout that is ``parameter``'s."""
        start = self.offsets[parameter.path]
        return vector[start : start + parameter.size].reshape(parameter.shape)

    def at(self, index: int) -> Parameter:
        """Return the parameter that holds place ``index`` of the flat vectors."""
        return max(
            (p for p in self.parameters if self.offsets[p.path] <= index),
            key=lambda p: self.offsets[p.path],
        )


def named_parameters(root: Layer) -> Iterable[Parameter]:
    """Yield each parameter once, in order of execution, with its path set."""
    seen: set[int] = set()
    for path, layer in root.walk():
        for parameter in layer.own_parameters():
            if id(parameter) not in seen:
                seen.add(id(parameter))
                parameter.path = f"{path}.{parameter.name}" if path else parameter.name
                yield parameter
