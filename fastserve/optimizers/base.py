"""``Optimizer``: what all optimizers share, on the flat vectors of a store.

An optimizer works on the flat vectors of a ``ParameterStore``, piece by piece in the
cache and in place; it sees single parameters only where a formula needs their norms.
Only additions, products, quotients and roots of single numbers are used, in a fixed
order: the same gradients give the same parameters, to the bit, on every rank, CPU and
number of threads.

A new optimizer is a subclass with ``slots``, the names of its state vectors,
``constants``, the numbers of one step, and ``apply``, the formula for one piece.
"""

from __future__ import annotations

import itertools
import math
import numbers
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from fastserve.core import Array, ParameterStore
from fastserve.core.memory import aligned_zeros
from fastserve.errors import ArgumentError, StateError
from fastserve.ops.blocks import FLAT, spare

LearningRate = float | Callable[[int], float]
Sum = Callable[[Array], None]  # adds up an array over all ranks, in place
AT_ONCE = 3 << 14  # elements of a piece: 192 kB of float32 of each of four vectors
AVERAGE = "average"  # the slot of use_ema


class Optimizer:
    """Changes a store's values by its gradients.

    Args:
        learning_rate: a number above 0, or a schedule that is called with ``step``.
        weight_decay: share of a matrix' values, times the learning rate, that each
            update takes away; None for none.
        clipnorm: longest norm of each parameter's gradient.
        clipvalue: largest absolute value in a gradient.
        global_clipnorm: longest norm of all gradients together. At most one of the
            three may be given. If a norm isn't finite, what it scales becomes NaN.
        use_ema: keep a moving average of the values, which takes their place at the
            end of ``fit``, and every ``ema_overwrite_frequency`` updates unless None.
        ema_momentum: share of the average that each update keeps.
        name: for summaries.

    Attributes:
        step: number of updates made.
        state: name -> flat vector with the store's layout, for checkpoints. To resume,
            copy into the vectors and set ``step``.
        own: slices of the store that this optimizer updates, and whose state alone
            ``state`` then holds, one after the other; None: all of it.
    """

    name = "optimizer"
    slots: tuple[str, ...] = ()
    initial: Mapping[str, float] = {}  # what a slot begins with, if not with 0
    by_parameter = False  # no piece holds numbers of two parameters

    def __init__(
        self,
        learning_rate: LearningRate,
        weight_decay: float | None = None,
        clipnorm: float | None = None,
        clipvalue: float | None = None,
        global_clipnorm: float | None = None,
        use_ema: bool = False,
        ema_momentum: float = 0.99,
        ema_overwrite_frequency: int | None = None,
        name: str | None = None,
    ) -> None:
        self.name = name or self.name
        self.learning_rate = learning_rate
        if weight_decay is not None:
            self._check("weight_decay", weight_decay, 0 <= weight_decay < math.inf)
        clips = {
            "clipnorm": clipnorm,
            "clipvalue": clipvalue,
            "global_clipnorm": global_clipnorm,
        }
        given = {key: value for key, value in clips.items() if value is not None}
        if len(given) > 1:
            raise ArgumentError(
                f"{self.name}: expected one way to clip at most",
                ", ".join(f"{key}={value}" for key, value in given.items()),
                "leave out the others",
            )
        for key, value in given.items():
            self._check(key, value, 0 < value < math.inf)
        self.weight_decay = weight_decay
        self.clipnorm, self.clipvalue = clipnorm, clipvalue
        self.global_clipnorm = global_clipnorm
        self._check("ema_momentum", ema_momentum, 0 <= ema_momentum <= 1)
        every = ema_overwrite_frequency
        self._check("ema_overwrite_frequency", every, every is None or every >= 1)
        self.use_ema, self.ema_momentum = use_ema, ema_momentum
        self.ema_overwrite_frequency = every
        self.step = 0
        self.state: dict[str, Array] = {}
        self.own: list[slice] | None = None
        self._store: ParameterStore | None = None

    # -- what a subclass writes ------------------------------------------------

    def constants(self, lr: float, scale: float) -> tuple[float, ...]:
        """Return the numbers that ``apply`` needs at this step, gradients x scale."""
        raise NotImplementedError(f"{type(self).__name__}.constants")

    def apply(
        self, k: tuple[Any, ...], p: Array, g: Array, t: Array, u: Array, *slots: Array
    ) -> None:
        """Update one piece: values p and state in place, g is read, t and u scratch."""
        raise NotImplementedError(f"{type(self).__name__}.apply")

    # -- what callers use ------------------------------------------------------

    @property
    def learning_rate(self) -> LearningRate:
        return self._learning_rate

    @learning_rate.setter
    def learning_rate(self, value: LearningRate) -> None:
        if not callable(value):
            number = isinstance(value, numbers.Real)
            self._check("learning_rate", value, number and 0 < value < math.inf)
            value = float(value)
        self._learning_rate = value

    def current_lr(self) -> float:
        """Return the learning rate of the next update."""
        rate = self._learning_rate
        return float(rate(self.step)) if callable(rate) else rate

    def bind(
        self,
        store: ParameterStore,
        own: list[slice] | None = None,
        add_up: Sum | None = None,
    ) -> None:
        """Work on ``store`` from now on, with fresh state and step 0.

        ``own`` are slices in order: this optimizer updates them alone, others the rest;
        ``add_up`` sums over them all.
        Raises ArgumentError for ``clipnorm``, which needs whole parameters, beside it.
        """
        if own is not None and self.clipnorm:
            raise ArgumentError(
                f"{self.name}: expected no clipnorm with a sharded optimizer, as a "
                "rank has only a part of a parameter's gradient",
                f"clipnorm={self.clipnorm}",
                "use global_clipnorm or clipvalue, or leave out shard_optimizer",
            )
        self._store, self.own, self._add_up = store, own, add_up
        self.step = 0
        decayed = store.decayed if self.weight_decay else []
        starts = sorted(store.offsets.values()) if self.by_parameter else []
        pieces: Iterable[tuple[slice, bool]] = _pieces(
            store.values.size, decayed, starts
        )
        self._pieces = list(pieces if own is None else _within(pieces, own))
        lengths = [part.stop - part.start for part, _ in self._pieces]
        ends = np.cumsum(lengths, dtype=np.int64).tolist()
        self._places = [slice(e - n, e) for e, n in zip(ends, lengths, strict=True)]
        size = ends[-1] if ends else 0
        self.state = {}
        for slot in (*self.slots, *([AVERAGE] if self.use_ema else [])):
            vector = aligned_zeros(size * store.dtype.itemsize).view(store.dtype)
            if slot in self.initial:
                vector.fill(self.initial[slot])
            self.state[slot] = vector

    def check_store(self, store: ParameterStore) -> None:
        """Raise StateError if another model has taken this optimizer since."""
        if self._store is not store:
            raise StateError(
                f"{self.name}: expected an optimizer of this model alone",
                "one that another model was compiled with since",
                "make an optimizer for each model",
            )

    def update(self, scale: float = 1.0, norm: float | None = None) -> None:
        """Make one update from the store's gradients, times ``scale``.

        ``norm`` is that of all gradients, if the caller knows it.
        The gradients are only read, unless ``clipnorm`` or ``clipvalue`` change them.
        Raises StateError before ``bind``.
        """
        store = self._bound()
        lr = self.current_lr()
        with np.errstate(all="ignore"):
            scale = self._clip(store, scale, norm)
            # NumPy takes an array without axes faster than a number
            k = tuple(np.array(c, store.dtype) for c in self.constants(lr, scale))
            self.run(k, np.array(1 - lr * (self.weight_decay or 0.0), store.dtype))
        self.skip()

    def run(self, k: tuple[Any, ...], kept: Any) -> None:
        """Update all pieces, with weights that decay times ``kept`` before."""
        t = u = np.empty(0)
        for decays, p, g, *slots in self.each():
            if decays:
                np.multiply(p, kept, out=p)
            if t.size != p.size:  # most pieces are of one size
                t, u = spare(0, p), spare(1, p)
            self.apply(k, p, g, t, u, *slots)

    def each(self) -> Iterator[tuple[Any, ...]]:
        """Yield (whether it decays, values, gradients, *slots) of each piece."""
        store = self._bound()
        vectors = [self.state[name] for name in self.slots]
        for (part, decays), place in zip(self._pieces, self._places, strict=True):
            slots = [vector[place] for vector in vectors]
            yield decays, store.values[part], store.grads[part], *slots

    def skip(self) -> None:
        """Count an update, without changing values for it."""
        if self.use_ema:
            self._average()
        self.step += 1

    def finalize(self) -> None:
        """Put the moving average of the values in their place, if there is one."""
        if self.use_ema and self.step:
            for p, average in self._averages():
                np.copyto(p, average)

    def _averages(self) -> Iterator[tuple[Array, Array]]:
        values, average = self._bound().values, self.state[AVERAGE]
        for (part, _), place in zip(self._pieces, self._places, strict=True):
            yield values[part], average[place]

    def _average(self) -> None:
        number: Any = self._bound().dtype.type
        rest = number(1 - self.ema_momentum if self.step else 1.0)
        every = self.ema_overwrite_frequency
        overwrite = every is not None and (self.step + 1) % every == 0
        for p, average in self._averages():
            new = spare(0, p)
            np.copyto(new, p)
            approach(average, new, rest)
            if overwrite:
                np.copyto(p, average)

    def _clip(self, store: ParameterStore, scale: float, norm: float | None) -> float:
        """Clip; return the scale by which the gradients are still to be multiplied."""
        number: Any = store.dtype.type
        if self.global_clipnorm:
            norm = global_norm(store.grads) if norm is None else norm
            return scale * _shrink(abs(scale) * norm, self.global_clipnorm)
        if self.clipnorm:
            for parameter in store.parameters:
                grad = parameter.grad.reshape(-1)
                factor = _shrink(abs(scale) * global_norm(grad), self.clipnorm)
                if factor != 1:
                    np.multiply(grad, number(factor), out=grad)
        if self.clipvalue:
            most = number(self.clipvalue)
            for part, _ in self._pieces:
                g = store.grads[part]
                np.multiply(g, number(scale), out=g)
                np.clip(g, -most, most, out=g)
            return 1.0
        return scale

    def _bound(self) -> ParameterStore:
        if self._store is None:
            raise StateError(
                f"optimizer {self.name}: expected bind(store) before update",
                "update alone",
                "build and compile the model first",
            )
        return self._store

    def _check(self, argument: str, value: Any, good: bool, wanted: str = "") -> None:
        if not good:
            raise ArgumentError(
                f"optimizer {self.name}: expected {wanted or _RANGES[argument]}",
                f"{argument}={value}",
                f"choose another {argument}",
            )

    def _check_fraction(self, **values: float) -> None:
        for argument, value in values.items():
            self._check(argument, value, 0 <= value < 1)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(learning_rate={self.learning_rate})"


_RANGES = {
    "learning_rate": "a learning_rate above 0, or a schedule",
    "weight_decay": "a weight_decay of 0 or more, or None",
    "clipnorm": "a clipnorm above 0, or None",
    "clipvalue": "a clipvalue above 0, or None",
    "global_clipnorm": "a global_clipnorm above 0, or None",
    "momentum": "a momentum in 0..1, without 1",
    "rho": "a rho in 0..1, without 1",
    "beta_1": "a beta_1 in 0..1, without 1",
    "beta_2": "a beta_2 in 0..1, without 1",
    "epsilon": "an epsilon of 0 or more",
    "ema_momentum": "an ema_momentum in 0..1",
    "ema_overwrite_frequency": "an ema_overwrite_frequency of 1 or more, or None",
    "initial_accumulator_value": "an initial_accumulator_value of 0 or more",
    "learning_rate_power": "a learning_rate_power of 0 or less",
    "l1_regularization_strength": "an l1_regularization_strength of 0 or more",
    "l2_regularization_strength": "an l2_regularization_strength of 0 or more",
    "l2_shrinkage_regularization_strength": "an l2_shrinkage_regularization_strength "
    "of 0 or more",
    "beta": "a beta of 0 or more",
}


def global_norm(grads: Array) -> float:
    """Return the Euclidean norm of ``grads``, a flat vector.

    Squares are added pairwise within pieces, and the pieces' sums in float64, always
    in the same order: every rank, CPU and number of threads gets the same bits.
    """
    total = 0.0
    with np.errstate(all="ignore"):
        for start in range(0, grads.size, FLAT):
            g = grads[start : start + FLAT]
            squares = np.multiply(g, g, out=spare(0, g))
            total += float(np.add.reduce(squares))
    return math.sqrt(total)


def quick_norm(grads: Array) -> float:
    """Return ``grads``' norm, its last bits by the CPU and the number of threads."""
    total = 0.0
    with np.errstate(all="ignore"):
        for start in range(0, grads.size, FLAT):
            g = grads[start : start + FLAT]
            total += float(np.dot(g, g))
    return math.sqrt(total)


def _within(
    pieces: Iterable[tuple[slice, bool]], own: list[slice]
) -> Iterator[tuple[slice, bool]]:
    """Yield the parts of the pieces that lie in ``own``; both are in order."""
    left = iter(own)
    mine = next(left, None)
    for piece, decays in pieces:
        while mine is not None and mine.start < piece.stop:
            start, stop = max(mine.start, piece.start), min(mine.stop, piece.stop)
            if start < stop:
                yield slice(start, stop), decays
            if mine.stop > piece.stop:
                break
            mine = next(left, None)


def _shrink(norm: float, most: float) -> float:
    """Return the factor that brings ``norm`` down to ``most``; NaN if not finite."""
    if not math.isfinite(norm):
        return math.nan
    return most / norm if norm > most else 1.0


def approach(mean: Array, new: Array, rest: Any) -> None:
    """mean += rest * (new - mean), in place; overwrites ``new``."""
    np.subtract(new, mean, out=new)
    np.multiply(new, rest, out=new)
    np.add(mean, new, out=mean)


def _pieces(
    size: int, decayed: list[slice], starts: list[int]
) -> Iterator[tuple[slice, bool]]:
    """Yield slices of at most AT_ONCE, and whether all of one decays or none.

    No slice reaches over one of ``starts``.
    """
    start = 0
    borders = [(s.start, s.stop) for s in decayed] + [(size, size)]
    for decay_start, decay_stop in borders:
        for stop, decays in ((decay_start, False), (decay_stop, True)):
            cuts = [start, *(c for c in starts if start < c < stop), stop]
            for low, high in itertools.pairwise(cuts):
                for first in range(low, high, AT_ONCE):
                    yield slice(first, min(first + AT_ONCE, high)), decays
            start = stop
