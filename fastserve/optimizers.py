"""Optimizers, with Keras' names, arguments and formulas.

An optimizer works on the flat vectors of a ``ParameterStore``, piece by piece in the
cache and in place; it never sees a single parameter, unless it clips each by its norm.
Only additions, products, quotients and roots of single numbers are used, in a fixed
order: the same gradients give the same parameters, to the bit, on every rank, CPU and
number of threads.

A new optimizer is a subclass with ``slots``, the names of its state vectors,
``constants``, the numbers of one step, and ``apply``, the formula for one piece.

What Keras does otherwise than PyTorch, and is done here as in Keras:

- ``weight_decay`` is decoupled for all of them: values *= 1 - lr * weight_decay, before
  the update. Only parameters with ``decay`` (matrices) are decayed.
- SGD's velocity contains the learning rate: m = momentum * m - lr * g.
- Adam's epsilon is added after the bias correction was moved out of the root:
  lr * sqrt(1 - beta_2^t) / (1 - beta_1^t) * m / (sqrt(v) + epsilon). PyTorch's eps is
  this epsilon / sqrt(1 - beta_2^t).
- RMSprop's epsilon is inside of the root: lr * g / sqrt(v + epsilon).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from fastserve.core import Array, ParameterStore
from fastserve.core.memory import aligned_zeros
from fastserve.errors import ArgumentError, StateError, UnknownNameError
from fastserve.ops.blocks import FLAT, spare

LearningRate = float | Callable[[int], float]


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

    def __init__(
        self,
        learning_rate: LearningRate,
        weight_decay: float | None = None,
        clipnorm: float | None = None,
        clipvalue: float | None = None,
        global_clipnorm: float | None = None,
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
            self._check("learning_rate", value, 0 < value < math.inf)
            value = float(value)
        self._learning_rate = value

    def current_lr(self) -> float:
        """Return the learning rate of the next update."""
        rate = self._learning_rate
        return float(rate(self.step)) if callable(rate) else rate

    def bind(self, store: ParameterStore, own: list[slice] | None = None) -> None:
        """Work on ``store`` from now on, with fresh state and step 0.

        ``own`` are slices in order: this optimizer updates them alone, others the rest.
        Raises ArgumentError for ``clipnorm``, which needs whole parameters, beside it.
        """
        if own is not None and self.clipnorm:
            raise ArgumentError(
                f"{self.name}: expected no clipnorm with a sharded optimizer, as a "
                "rank has only a part of a parameter's gradient",
                f"clipnorm={self.clipnorm}",
                "use global_clipnorm or clipvalue, or leave out shard_optimizer",
            )
        self._store, self.own = store, own
        self.step = 0
        decayed = store.decayed if self.weight_decay else []
        pieces = _pieces(store.values.size, decayed)
        self._pieces = list(pieces if own is None else _within(pieces, own))
        lengths = [part.stop - part.start for part, _ in self._pieces]
        ends = np.cumsum(lengths, dtype=np.int64).tolist()
        self._places = [slice(e - n, e) for e, n in zip(ends, lengths, strict=True)]
        size = ends[-1] if ends else 0
        self.state = {}
        for slot in self.slots:
            vector = aligned_zeros(size * store.dtype.itemsize)
            self.state[slot] = vector.view(store.dtype)

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
        number: Any = store.dtype.type
        with np.errstate(all="ignore"):
            scale = self._clip(store, scale, norm)
            k = tuple(number(value) for value in self.constants(lr, scale))
            kept = number(1 - lr * (self.weight_decay or 0.0))
            for (part, decays), place in zip(self._pieces, self._places, strict=True):
                p, g = store.values[part], store.grads[part]
                slots = [vector[place] for vector in self.state.values()]
                if decays:
                    np.multiply(p, kept, out=p)
                self.apply(k, p, g, spare(0, p), spare(1, p), *slots)
        self.step += 1

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

    def _check(self, argument: str, value: float, good: bool) -> None:
        if not good:
            raise ArgumentError(
                f"optimizer {self.name}: expected {_RANGES[argument]}",
                f"{argument}={value}",
                f"choose another {argument}",
            )

    def _check_fraction(self, **values: float) -> None:
        for argument, value in values.items():
            self._check(argument, value, 0 <= value < 1)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(learning_rate={self.learning_rate})"


class SGD(Optimizer):
    """Gradient descent: values -= lr * g; with momentum, or Nesterov's variant.

    m = momentum * m - lr * g, then values += m, or, if ``nesterov``,
    values += momentum * m - lr * g.
    """

    name = "sgd"

    def __init__(
        self,
        learning_rate: LearningRate = 0.01,
        momentum: float = 0.0,
        nesterov: bool = False,
        weight_decay: float | None = None,
        **options: Any,
    ) -> None:
        super().__init__(learning_rate, weight_decay, **options)
        self._check_fraction(momentum=momentum)
        self.momentum, self.nesterov = momentum, nesterov
        self.slots = ("m",) if momentum else ()

    def constants(self, lr: float, scale: float) -> tuple[float, ...]:
        return lr * scale, self.momentum

    def apply(
        self, k: tuple[Any, ...], p: Array, g: Array, t: Array, u: Array, *slots: Array
    ) -> None:
        rate, momentum = k
        np.multiply(g, rate, out=t)
        if not slots:
            np.subtract(p, t, out=p)
            return
        (m,) = slots
        np.multiply(m, momentum, out=m)
        np.subtract(m, t, out=m)
        if self.nesterov:
            np.multiply(m, momentum, out=u)
            np.subtract(u, t, out=u)
            np.add(p, u, out=p)
        else:
            np.add(p, m, out=p)


class RMSprop(Optimizer):
    """Steps divided by the root of a moving mean of squared gradients.

    v = rho * v + (1 - rho) * g²; if ``centered``, the square of a = rho * a +
    (1 - rho) * g is taken from v, and not less than 0 is left. The step is
    lr * g / sqrt(v + epsilon); with momentum, m = momentum * m + step is used instead.
    """

    name = "rmsprop"

    def __init__(
        self,
        learning_rate: LearningRate = 0.001,
        rho: float = 0.9,
        momentum: float = 0.0,
        epsilon: float = 1e-7,
        centered: bool = False,
        weight_decay: float | None = None,
        **options: Any,
    ) -> None:
        super().__init__(learning_rate, weight_decay, **options)
        self._check_fraction(rho=rho, momentum=momentum)
        self._check("epsilon", epsilon, 0 <= epsilon < math.inf)
        self.rho, self.momentum, self.epsilon = rho, momentum, epsilon
        self.centered = centered
        self.slots = ("v", *(["a"] if centered else []), *(["m"] if momentum else []))

    def constants(self, lr: float, scale: float) -> tuple[float, ...]:
        return scale, 1 - self.rho, lr, self.momentum, self.epsilon, 0.0

    def apply(
        self, k: tuple[Any, ...], p: Array, g: Array, t: Array, u: Array, *slots: Array
    ) -> None:
        scale, rest, lr, momentum, epsilon, zero = k
        v = slots[0]
        np.multiply(g, scale, out=t)
        np.multiply(t, t, out=u)
        _approach(v, u, rest)
        if self.centered:
            a = slots[1]
            np.copyto(u, t)
            _approach(a, u, rest)
            np.multiply(a, a, out=u)
            np.subtract(v, u, out=u)
            np.maximum(u, zero, out=u)
            np.add(u, epsilon, out=u)
        else:
            np.add(v, epsilon, out=u)
        np.sqrt(u, out=u)
        np.multiply(t, lr, out=t)
        np.divide(t, u, out=t)
        if self.momentum:
            m = slots[-1]
            np.multiply(m, momentum, out=m)
            t = np.add(m, t, out=m)
        np.subtract(p, t, out=p)


class Adam(Optimizer):
    """Adam (Kingma, Ba: "Adam: a method for stochastic optimization", 2014).

    m += (1 - beta_1) (g - m);  v += (1 - beta_2) (g² - v);  with t updates made,
    values -= lr * sqrt(1 - beta_2^t) / (1 - beta_1^t) * m / (sqrt(v) + epsilon).
    """

    name = "adam"
    slots = ("m", "v")

    def __init__(
        self,
        learning_rate: LearningRate = 0.001,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-7,
        weight_decay: float | None = None,
        **options: Any,
    ) -> None:
        super().__init__(learning_rate, weight_decay, **options)
        self._check_fraction(beta_1=beta_1, beta_2=beta_2)
        self._check("epsilon", epsilon, 0 <= epsilon < math.inf)
        self.beta_1, self.beta_2, self.epsilon = beta_1, beta_2, epsilon

    def constants(self, lr: float, scale: float) -> tuple[float, ...]:
        t = self.step + 1
        rate = lr * math.sqrt(1 - self.beta_2**t) / (1 - self.beta_1**t)
        return scale, 1 - self.beta_1, 1 - self.beta_2, rate, self.epsilon

    def apply(
        self, k: tuple[Any, ...], p: Array, g: Array, t: Array, u: Array, *slots: Array
    ) -> None:
        scale, rest_1, rest_2, rate, epsilon = k
        m, v = slots
        if scale != 1:
            g = np.multiply(g, scale, out=t)
        np.multiply(g, g, out=u)
        _approach(v, u, rest_2)
        np.subtract(g, m, out=t)
        np.multiply(t, rest_1, out=t)
        np.add(m, t, out=m)
        np.sqrt(v, out=u)
        np.add(u, epsilon, out=u)
        np.divide(m, u, out=u)
        np.multiply(u, rate, out=u)
        np.subtract(p, u, out=p)


class AdamW(Adam):
    """Adam with decoupled decay of matrices (Loshchilov, Hutter, 2017)."""

    name = "adamw"

    def __init__(
        self,
        learning_rate: LearningRate = 0.001,
        weight_decay: float | None = 0.004,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-7,
        **options: Any,
    ) -> None:
        super().__init__(
            learning_rate, beta_1, beta_2, epsilon, weight_decay, **options
        )


NAMED: dict[str, Callable[..., Optimizer]] = {
    cls.name: cls for cls in (SGD, RMSprop, Adam, AdamW)
}

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
}


def get(optimizer: str | Optimizer | Callable[..., Optimizer]) -> Optimizer:
    """Return an optimizer by Keras' name, in any case, or from its class.

    Raises UnknownNameError for other names, ArgumentError for other objects.
    """
    if isinstance(optimizer, Optimizer):
        return optimizer
    if isinstance(optimizer, str):
        if optimizer.lower() not in NAMED:
            raise UnknownNameError("optimizer", optimizer, NAMED)
        return NAMED[optimizer.lower()]()
    if isinstance(optimizer, type) and issubclass(optimizer, Optimizer):
        make: Any = optimizer
        made: Optimizer = make()
        return made
    raise ArgumentError(
        "expected an optimizer's name or an Optimizer",
        repr(optimizer),
        "for example optimizer='adam'",
    )


def global_norm(grads: Array) -> float:
    """Return the Euclidean norm of a flat vector.

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


def _approach(mean: Array, new: Array, rest: Any) -> None:
    """mean += rest * (new - mean), in place; overwrites ``new``."""
    np.subtract(new, mean, out=new)
    np.multiply(new, rest, out=new)
    np.add(mean, new, out=mean)


def _pieces(size: int, decayed: list[slice]) -> Iterator[tuple[slice, bool]]:
    """Yield slices of at most FLAT, and whether all of one decays or none."""
    start = 0
    borders = [(s.start, s.stop) for s in decayed] + [(size, size)]
    for decay_start, decay_stop in borders:
        for stop, decays in ((decay_start, False), (decay_stop, True)):
            for first in range(start, stop, FLAT):
                yield slice(first, min(first + FLAT, stop)), decays
            start = stop
