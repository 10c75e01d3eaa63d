"""Dropout and other noise, keyed by sample so that no number of ranks changes it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from fastserve.core import Array, Done, Layer, Shape, StepKey, Training, nothing
from fastserve.errors import ArgumentError, ShapeError


def check_rate(kind: str, rate: float) -> float:
    if not 0 <= rate < 1:
        raise ArgumentError(
            f"{kind}: expected a rate from 0 up to below 1",
            str(rate),
            "give the share that is dropped, for example 0.1",
        )
    return float(rate)


def check_seed(kind: str, seed: int | None) -> int | None:
    if seed is not None and (not isinstance(seed, int) or seed < 0):
        raise ArgumentError(
            f"{kind}: expected a seed of 0 or more, or None for the model's",
            repr(seed),
        )
    return seed


def sample_generators(
    count: int, training: Training, path: str, seed: int | None = None
) -> Iterator[np.random.Generator]:
    """Yield a generator for each of a micro-batch's ``count`` samples.

    The numbers of a sample are a function of (seed, path, step, sample) alone: Philox
    is keyed by the first two and counts from the others. ``seed`` takes the place of
    the model's.
    """
    key = training if isinstance(training, StepKey) else StepKey()
    base = np.random.SeedSequence(
        [key.seed if seed is None else seed, *path.encode()]
    ).generate_state(2, np.uint64)
    for i in range(count):
        counter = np.array([0, 0, key.first_row + i, key.step], np.uint64)
        yield np.random.Generator(np.random.Philox(key=base, counter=counter))


def keep_factors(
    keep: Array,
    rate: float,
    training: Training,
    path: str,
    work: Array,
    seed: int | None = None,
) -> None:
    """Fill ``keep`` (batch, ...) with 0, or 1 / (1 - rate), for each element.

    See ``sample_generators``; ``work`` is float32 of the shape of one sample.
    """
    scale = keep.dtype.type(1 / (1 - rate))
    generators = sample_generators(len(keep), training, path, seed)
    for factors, rng in zip(keep, generators, strict=True):
        rng.random(dtype=np.float32, out=work)
        np.greater_equal(work, np.float32(rate), out=factors)
        np.multiply(factors, scale, out=factors)


class Dropout(Layer):
    """In training, sets a share ``rate`` of the inputs to 0, the others / (1 - rate).

    Srivastava et al., "Dropout", 2014. Any shape.

    Args:
        noise_shape: as the input's, batch first, with 1 for axes whose elements are
            dropped together, and None for those as long as the input's; the batch is
            always None, as each sample has numbers of its own.
        seed: takes the place of the model's.
    """

    def __init__(
        self,
        rate: float,
        noise_shape: Sequence[int | None] | None = None,
        seed: int | None = None,
        input_shape: Shape | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(input_shape, name)
        self.rate = check_rate(type(self).__name__, rate)
        self.seed = check_seed(type(self).__name__, seed)
        self.noise_shape = None if noise_shape is None else tuple(noise_shape)
        self._active = False

    def build(self, input_shape: Shape) -> Shape:
        noise = self.noise_shape
        if noise is not None and not (
            len(noise) == len(input_shape) + 1
            and noise[0] is None
            and all(
                n in (None, 1, m) for n, m in zip(noise[1:], input_shape, strict=True)
            )
        ):
            raise ShapeError(
                f"{type(self).__name__}: expected a noise_shape that starts with None, "
                f"and then has 1 or None for each axis of {input_shape}",
                f"{noise}",
                "for example (None, 1, None) for (batch, time, features)",
            )
        return input_shape

    def _noise_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        if self.noise_shape is None:
            return shape
        return tuple(
            n if m is None else m for n, m in zip(shape, self.noise_shape, strict=True)
        )

    def forward(self, x: Array, training: Training = False) -> Array:
        self._active = bool(training) and self.rate > 0
        if not self._active:
            return x
        keep = self.buffer("keep", self._noise_shape(x.shape))
        work = self.buffer("work", keep.shape[1:], np.float32)
        keep_factors(keep, self.rate, training, self.path, work, self.seed)
        return np.multiply(x, keep, out=self.buffer("y", x.shape))

    def output_spare(self) -> bool | None:
        return True if self._active else None

    def backward(self, dy: Array, done: Done = nothing) -> Any:
        if not self._active:
            return dy
        return np.multiply(dy, self._buffers["keep"], out=self.scratch(dy.shape))


class SpatialDropout1D(Dropout):
    """Dropout of a share ``rate`` of features of (batch, time, features), at all times.

    Tompson et al., "Efficient object localization using convolutional networks", 2014.
    """

    rank = 2  # of a sample

    def __init__(
        self,
        rate: float,
        seed: int | None = None,
        input_shape: Shape | None = None,
        name: str | None = None,
    ) -> None:
        noise = (None, *[1] * (self.rank - 1), None)
        super().__init__(rate, noise, seed, input_shape, name)

    def build(self, input_shape: Shape) -> Shape:
        self.check_features(input_shape, rank=self.rank)
        return super().build(input_shape)


class SpatialDropout2D(SpatialDropout1D):
    """Dropout of a share ``rate`` of channels of (batch, height, width, channels).

    Tompson et al., "Efficient object localization using convolutional networks", 2014.
    """

    rank = 3

    def __init__(
        self,
        rate: float,
        data_format: str | None = None,
        seed: int | None = None,
        input_shape: Shape | None = None,
        name: str | None = None,
    ) -> None:
        if data_format not in (None, "channels_last"):
            raise ArgumentError(
                "SpatialDropout2D: expected data_format 'channels_last'",
                repr(data_format),
                "transpose the images to (batch, height, width, channels)",
            )
        super().__init__(rate, seed, input_shape, name)


class _Noise(Layer):
    """Base of layers that add or multiply normal random numbers in training."""

    def __init__(
        self, seed: int | None, input_shape: Shape | None, name: str | None
    ) -> None:
        super().__init__(input_shape, name)
        self.seed = check_seed(type(self).__name__, seed)
        self._active = False

    def _normal(self, name: str, x: Array, training: Training, stddev: float) -> Array:
        """Return normal random numbers in the shape of x, in a buffer."""
        noise = self.buffer(name, x.shape)
        work = self.buffer("work", x.shape[1:], np.float32)
        generators = sample_generators(len(x), training, self.path, self.seed)
        for sample, rng in zip(noise, generators, strict=True):
            rng.standard_normal(dtype=np.float32, out=work)
            np.multiply(work, sample.dtype.type(stddev), out=sample)
        return noise

    def output_spare(self) -> bool | None:
        return True if self._active else None


class GaussianNoise(_Noise):
    """In training, adds normal noise of the deviation ``stddev``, from 0 to 1."""

    def __init__(
        self,
        stddev: float,
        seed: int | None = None,
        input_shape: Shape | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(seed, input_shape, name)
        if not 0 <= stddev <= 1:
            raise ArgumentError(
                "GaussianNoise: expected a stddev from 0 to 1", f"{stddev}"
            )
        self.stddev = float(stddev)

    def forward(self, x: Array, training: Training = False) -> Array:
        self._active = bool(training) and self.stddev > 0
        if not self._active:
            return x
        noise = self._normal("y", x, training, self.stddev)
        return np.add(noise, x, out=noise)

    def backward(self, dy: Array, done: Done = nothing) -> Any:
        return dy


class GaussianDropout(_Noise):
    """In training, multiplies by normal noise about 1 of variance rate / (1 - rate).

    Srivastava et al., "Dropout", 2014, section 10: as strong as dropping ``rate``.
    """

    def __init__(
        self,
        rate: float,
        seed: int | None = None,
        input_shape: Shape | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(seed, input_shape, name)
        self.rate = check_rate("GaussianDropout", rate)

    def forward(self, x: Array, training: Training = False) -> Array:
        self._active = bool(training) and self.rate > 0
        if not self._active:
            return x
        stddev = math.sqrt(self.rate / (1 - self.rate))
        noise = self._normal("noise", x, training, stddev)
        np.add(noise, noise.dtype.type(1), out=noise)
        return np.multiply(x, noise, out=self.buffer("y", x.shape))

    def backward(self, dy: Array, done: Done = nothing) -> Any:
        if not self._active:
            return dy
        return np.multiply(dy, self._buffers["noise"], out=self.scratch(dy.shape))


class AlphaDropout(Dropout):
    """Dropout that keeps mean and variance of what ``selu`` gives.

    Klambauer et al., "Self-normalizing neural networks", 2017: a share ``rate`` is set
    to selu's lowest value s, then y = a x + b with a = ((1 - rate) (1 + rate s²))^-1/2
    and b = -a rate s. The arguments are those of ``Dropout``.
    """

    _LOWEST = -1.6732632423543772848170429916717 * 1.0507009873554804934193349852946

    def forward(self, x: Array, training: Training = False) -> Array:
        self._active = bool(training) and self.rate > 0
        if not self._active:
            return x
        rate, low = self.rate, self._LOWEST
        a = ((1 - rate) * (1 + rate * low**2)) ** -0.5
        keep = self.buffer("keep", self._noise_shape(x.shape))
        work = self.buffer("work", keep.shape[1:], np.float32)
        keep_factors(keep, rate, training, self.path, work, self.seed)
        number = keep.dtype.type
        np.multiply(keep, number(a * (1 - rate)), out=keep)  # a, or 0 where dropped
        y = np.multiply(x, keep, out=self.buffer("y", x.shape))
        shift = self.buffer("shift", keep.shape)
        np.multiply(keep, number(-low), out=shift)  # a s (1 - kept) - a rate s
        np.add(shift, number(a * low * (1 - rate)), out=shift)
        return np.add(y, shift, out=y)
