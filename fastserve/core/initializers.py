"""Initial values of parameters, by Keras' names.

An initializer is called with a shape and a generator and returns a float32 array (or a
number). With a ``seed`` it doesn't use that generator: it gives the same numbers each
time; without one they follow from the model's seed and the place of the weight.
``fan_in`` and ``fan_out`` of a matrix are its rows and columns; further axes in front,
as in a convolution's kernel, count as the receptive field.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastserve.core.memory import Array
from fastserve.core.named import make
from fastserve.core.random import generator
from fastserve.errors import ArgumentError, UnknownNameError

_OTHER = "take another initializer for this parameter"
Initializer = Callable[[tuple[int, ...], np.random.Generator], "Array | float"]


@dataclass(frozen=True)
class Constant:
    """``value`` everywhere."""

    value: float = 0.0

    def __call__(self, shape: tuple[int, ...], rng: np.random.Generator) -> float:
        return self.value


class Zeros(Constant):
    """Zero everywhere."""

    def __init__(self) -> None:
        super().__init__(0.0)


class Ones(Constant):
    """One everywhere."""

    def __init__(self) -> None:
        super().__init__(1.0)


@dataclass(frozen=True)
class RandomNormal:
    """Normal distribution of mean ``mean`` and standard deviation ``stddev``."""

    mean: float = 0.0
    stddev: float = 0.05
    seed: int | None = None

    def __call__(self, shape: tuple[int, ...], rng: np.random.Generator) -> Array:
        rng = _seeded(self.seed, rng)
        values = rng.standard_normal(shape, dtype=np.float32)
        values *= np.float32(self.stddev)
        values += np.float32(self.mean)
        return values


@dataclass(frozen=True)
class TruncatedNormal:
    """``RandomNormal``; values beyond two standard deviations are drawn again."""

    mean: float = 0.0
    stddev: float = 0.05
    seed: int | None = None

    def __call__(self, shape: tuple[int, ...], rng: np.random.Generator) -> Array:
        rng = _seeded(self.seed, rng)
        values = rng.standard_normal(shape, dtype=np.float32)
        while (outside := np.abs(values) > 2).any():
            values[outside] = rng.standard_normal(int(outside.sum()), dtype=np.float32)
        values *= np.float32(self.stddev)
        values += np.float32(self.mean)
        return values


@dataclass(frozen=True)
class RandomUniform:
    """Uniform distribution over [minval, maxval)."""

    minval: float = -0.05
    maxval: float = 0.05
    seed: int | None = None

    def __call__(self, shape: tuple[int, ...], rng: np.random.Generator) -> Array:
        rng = _seeded(self.seed, rng)
        values = rng.random(shape, dtype=np.float32)
        values *= np.float32(self.maxval - self.minval)
        values += np.float32(self.minval)
        return values


@dataclass(frozen=True)
class VarianceScaling:
    """Numbers of mean 0 and variance ``scale / n``.

    Args:
        scale: a number above 0.
        mode: what n is: 'fan_in', 'fan_out', or 'fan_avg', their mean.
        distribution: 'truncated_normal' (also 'normal'), 'untruncated_normal' or
            'uniform'.
    """

    scale: float = 1.0
    mode: str = "fan_in"
    distribution: str = "truncated_normal"
    seed: int | None = None

    def __post_init__(self) -> None:
        if self.distribution == "normal":  # Keras' other name
            object.__setattr__(self, "distribution", "truncated_normal")
        for given, known in (
            (self.mode, ("fan_in", "fan_out", "fan_avg")),
            (self.distribution, ("truncated_normal", "untruncated_normal", "uniform")),
        ):
            if given not in known:
                raise UnknownNameError("VarianceScaling option", given, known)
        if self.scale <= 0:
            raise ArgumentError(
                "VarianceScaling: expected a scale above 0",
                str(self.scale),
                "give for example 1 or 2",
            )

    def __call__(self, shape: tuple[int, ...], rng: np.random.Generator) -> Array:
        rng = _seeded(self.seed, rng)
        fan_in, fan_out = fans(shape)
        n = {"fan_in": fan_in, "fan_out": fan_out, "fan_avg": (fan_in + fan_out) / 2}
        variance = self.scale / max(1.0, n[self.mode])
        if self.distribution == "uniform":
            limit = math.sqrt(3 * variance)
            return RandomUniform(-limit, limit)(shape, rng)
        if self.distribution == "untruncated_normal":
            return RandomNormal(0.0, math.sqrt(variance))(shape, rng)
        # the standard deviation that is left after cutting at two of them
        return TruncatedNormal(0.0, math.sqrt(variance) / 0.87962566103423978)(
            shape, rng
        )


class GlorotUniform(VarianceScaling):
    """Uniform in +-sqrt(6 / (fan_in + fan_out)) (Glorot, Bengio, 2010)."""

    def __init__(self, seed: int | None = None) -> None:
        super().__init__(1.0, "fan_avg", "uniform", seed)


class GlorotNormal(VarianceScaling):
    """Truncated normal of variance 2 / (fan_in + fan_out)."""

    def __init__(self, seed: int | None = None) -> None:
        super().__init__(1.0, "fan_avg", "truncated_normal", seed)


class HeUniform(VarianceScaling):
    """Uniform in +-sqrt(6 / fan_in) (He et al., 2015)."""

    def __init__(self, seed: int | None = None) -> None:
        super().__init__(2.0, "fan_in", "uniform", seed)


class HeNormal(VarianceScaling):
    """Truncated normal of variance 2 / fan_in."""

    def __init__(self, seed: int | None = None) -> None:
        super().__init__(2.0, "fan_in", "truncated_normal", seed)


class LecunUniform(VarianceScaling):
    """Uniform in +-sqrt(3 / fan_in) (LeCun et al., 1998)."""

    def __init__(self, seed: int | None = None) -> None:
        super().__init__(1.0, "fan_in", "uniform", seed)


class LecunNormal(VarianceScaling):
    """Truncated normal of variance 1 / fan_in."""

    def __init__(self, seed: int | None = None) -> None:
        super().__init__(1.0, "fan_in", "truncated_normal", seed)


@dataclass(frozen=True)
class Orthogonal:
    """Rows or columns that are orthonormal, times ``gain`` (Saxe et al., 2013)."""

    gain: float = 1.0
    seed: int | None = None

    def __call__(self, shape: tuple[int, ...], rng: np.random.Generator) -> Array:
        if len(shape) < 2:
            raise ArgumentError(
                "Orthogonal: expected two axes or more", str(shape), _OTHER
            )
        rows, columns = math.prod(shape[:-1]), shape[-1]
        rng = _seeded(self.seed, rng)
        normal = rng.standard_normal((max(rows, columns), min(rows, columns)))
        q, r = _qr(normal)
        q *= np.sign(np.diag(r))
        matrix = q if rows >= columns else q.T
        return (self.gain * matrix).reshape(shape).astype(np.float32)


_one_at_a_time = threading.Lock()  # the number of BLAS threads is the process's


def _qr(matrix: Array) -> tuple[Array, Array]:
    """Return the factors, the same bits whatever number of threads BLAS has."""
    from threadpoolctl import threadpool_limits

    with _one_at_a_time, threadpool_limits(1, user_api="blas"):
        q, r = np.linalg.qr(matrix)
    return q, r


@dataclass(frozen=True)
class Identity:
    """The identity matrix times ``gain``."""

    gain: float = 1.0

    def __call__(self, shape: tuple[int, ...], rng: np.random.Generator) -> Array:
        if len(shape) != 2:
            raise ArgumentError("Identity: expected two axes", str(shape), _OTHER)
        return self.gain * np.eye(*shape, dtype=np.float32)


def fans(shape: tuple[int, ...]) -> tuple[float, float]:
    """Return (fan_in, fan_out) of a kernel of ``shape``."""
    if len(shape) < 2:
        size = float(shape[0]) if shape else 1.0
        return size, size
    field = math.prod(shape[:-2])
    return float(shape[-2] * field), float(shape[-1] * field)


def _seeded(seed: int | None, rng: np.random.Generator) -> np.random.Generator:
    return rng if seed is None else generator(seed, "initializer")


_CLASSES: dict[str, Callable[..., Initializer]] = {
    "constant": Constant,
    "zeros": Zeros,
    "ones": Ones,
    "random_normal": RandomNormal,
    "random_uniform": RandomUniform,
    "truncated_normal": TruncatedNormal,
    "variance_scaling": VarianceScaling,
    "orthogonal": Orthogonal,
    "identity": Identity,
    "glorot_uniform": GlorotUniform,
    "glorot_normal": GlorotNormal,
    "he_uniform": HeUniform,
    "he_normal": HeNormal,
    "lecun_uniform": LecunUniform,
    "lecun_normal": LecunNormal,
}
_NAMED: dict[str, Callable[..., Initializer]] = {
    **_CLASSES,
    **{getattr(cls, "__name__", ""): cls for cls in _CLASSES.values()},
    "normal": RandomNormal,
    "one": Ones,
    "uniform": RandomUniform,
    "zero": Zeros,
}


def get(initializer: str | Initializer | Mapping[str, Any]) -> Initializer:
    """Return the initializer of this name; one that is given as such is returned.

    Also takes a class, and ``{"HeNormal": {"seed": 1}}``.
    """
    made: Initializer = make("initializer", initializer, _NAMED)
    if callable(made):
        return made
    raise ArgumentError(
        "expected an initializer's name, or a function of (shape, generator)",
        repr(initializer),
        "for example 'he_normal'",
    )
