"""Numbers made ready for a model: Rescaling, Normalization, bins and categories."""

from __future__ import annotations

import inspect
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from fastserve.core import (
    Array,
    Done,
    Layer,
    Parameter,
    ParameterStore,
    Shape,
    Training,
    is_several,
    nothing,
)
from fastserve.errors import (
    ArgumentError,
    DataError,
    ShapeError,
    StateError,
    UnknownNameError,
)
from fastserve.layers.normalization_base import AxesLast, Axis
from fastserve.ops.blocks import FLAT
from fastserve.ops.encoding import encode

_PIECE = 1 << 20  # numbers that adapt looks at together
_LEAST = 1e-7  # deviation


def _samples(x: Array) -> Iterator[slice]:
    step = max(1, FLAT // max(1, math.prod(x.shape[1:])))
    for start in range(0, len(x), step):
        yield slice(start, min(len(x), start + step))


class _Linear(Layer):
    """y = x factor + shift; a subclass says which, as arrays that are broadcast."""

    def coefficients(self) -> tuple[Array, Array]:
        raise NotImplementedError

    def forward(self, x: Array, training: Training = False) -> Array:
        factor, shift = (c.astype(x.dtype) for c in self.coefficients())
        y = self.buffer("y", x.shape)
        for part in _samples(x):
            np.multiply(x[part], factor, out=y[part])
            np.add(y[part], shift, out=y[part])
        return y

    def backward(self, dy: Array, done: Done = nothing) -> Any:
        factor = self.coefficients()[0].astype(dy.dtype)
        return np.multiply(dy, factor, out=self.scratch(dy.shape))

    def output_spare(self) -> bool:
        return True


class Rescaling(_Linear):
    """y = x scale + offset; any shape.

    Args:
        scale, offset: numbers, or lists that are broadcast from the last axis on, such
            as one number for each channel.
    """

    def __init__(
        self,
        scale: float | Sequence[float],
        offset: float | Sequence[float] = 0.0,
        input_shape: Shape | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(input_shape, name)
        self.scale, self.offset = scale, offset
        self._coefficients = (np.asarray(scale, float), np.asarray(offset, float))

    def build(self, input_shape: Shape) -> Shape:
        for argument, array in zip(
            ("scale", "offset"), self._coefficients, strict=True
        ):
            given = input_shape[len(input_shape) - array.ndim :]
            if array.ndim > len(input_shape) or any(
                n not in (1, m) for n, m in zip(array.shape, given, strict=True)
            ):
                raise ShapeError(
                    f"Rescaling: expected a {argument} that fits the last axes of "
                    f"{input_shape}",
                    f"shape {array.shape}",
                    f"give a number as {argument}, or one for each channel",
                )
        return input_shape

    def coefficients(self) -> tuple[Array, Array]:
        return self._coefficients


class Normalization(_Linear):
    """y = (x - mean) / deviation, or with ``invert`` y = x deviation + mean; any shape.

    Mean and variance are learned by ``adapt``, and then are weights that aren't
    trained, or they are given. Weights, of the shape of the axes: ``mean`` and
    ``variance``, unless they are given.

    Args:
        axis: one or several axes whose places have a mean each, the batch being axis 0;
            None: one mean for all.
        mean, variance: numbers, or lists of the shape of the axes.
    """

    def __init__(
        self,
        axis: Axis | None = -1,
        mean: Any = None,
        variance: Any = None,
        invert: bool = False,
        input_shape: Shape | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(input_shape, name)
        if (mean is None) != (variance is None) or np.shape(mean) != np.shape(variance):
            raise ArgumentError(
                "Normalization: expected mean and variance of one shape, or neither",
                f"mean={mean}, variance={variance}",
            )
        self.axis, self.invert = axis, invert
        self._given: tuple[Array, Array] | None = None
        if mean is not None:
            self._given = (np.asarray(mean, float), np.asarray(variance, float))
        self._adapted: tuple[Array, Array] | None = None
        self.mean: Parameter | None = None
        self.variance: Parameter | None = None

    def build(self, input_shape: Shape) -> Shape:
        rank = len(input_shape) + 1
        axes: tuple[int, ...] = ()
        shape: tuple[int, ...] = ()
        if self.axis is not None:
            shape = AxesLast("Normalization", self.axis, input_shape).shape
            given = self.axis if isinstance(self.axis, Sequence) else [self.axis]
            axes = tuple(sorted(a % rank for a in given))
        self._reduced = tuple(a for a in range(rank) if a not in axes)
        self._wide = tuple(
            int(input_shape[a - 1] or 0) if a in axes else 1 for a in range(1, rank)
        )
        if self._given is not None:
            mean, variance = self._given
            try:
                self._given = (
                    np.broadcast_to(mean, shape),
                    np.broadcast_to(variance, shape),
                )
            except ValueError:
                raise ShapeError(
                    f"Normalization: expected mean and variance of shape {shape}",
                    f"shape {mean.shape}",
                    "change axis, or give one number for all",
                ) from None
        else:
            self.mean = self.state("mean", shape, self._initial(0))
            self.variance = self.state("variance", shape, self._initial(1))
        return input_shape

    def _initial(self, which: int) -> Any:
        """Return what gives a new weight its value: what was learned, or 0 and 1."""

        def initial(shape: tuple[int, ...], rng: np.random.Generator) -> Array:
            if self._adapted is not None:
                return self._adapted[which]
            return np.full(shape, float(which))

        return initial

    def adapt(self, data: Any) -> None:
        """Learn mean and variance.

        Args:
            data: an array (samples, ...), or an iterable of such batches.

        Raises DataError for no data, ShapeError if it isn't what the layer is for, and
        StateError if they were given.
        """
        if self._given is not None:
            raise StateError(
                "Normalization.adapt: expected a layer without mean and variance",
                "one that was given them",
                "leave them out",
            )
        count, mean, squares = 0, np.zeros(()), np.zeros(())
        for batch in _batches(data):
            self.build_once(batch.shape[1:])
            n = math.prod(batch.shape[axis] for axis in self._reduced)
            wide = batch.astype(float)
            here = wide.mean(axis=self._reduced)
            off = ((wide - here.reshape(self._wide)) ** 2).sum(axis=self._reduced)
            away = here - mean
            count += n
            mean = mean + away * (n / count)
            squares = squares + off + away**2 * (n * (count - n) / count)
        if not count:
            raise DataError("Normalization.adapt: expected data", "none")
        self._adapted = (mean, squares / count)
        if self.mean is None or self.variance is None or not self.mean.bound:
            ParameterStore(self)  # so that the layer can be used without a model
        else:
            self.mean.assign(mean)
            self.variance.assign(squares / count)

    def coefficients(self) -> tuple[Array, Array]:
        if self._given is not None:
            mean, variance = self._given
        else:
            assert self.mean is not None
            assert self.variance is not None
            mean, variance = self.mean.value.astype(float), self.variance.value
        mean = mean.reshape(self._wide)
        deviation = np.maximum(np.sqrt(variance.astype(float)), _LEAST)
        deviation = deviation.reshape(self._wide)
        if self.invert:
            return deviation, mean
        return 1 / deviation, -mean / deviation


def _batches(data: Any) -> Iterator[Array]:
    """Yield arrays (samples, ...) of numbers, in pieces, of an array or of batches."""
    if isinstance(data, np.ndarray):
        whole, step = data, max(1, _PIECE * len(data) // max(1, data.size))
        data = (whole[i : i + step] for i in range(0, len(whole), step))
    for batch in data:
        array = np.asarray(batch[0] if isinstance(batch, tuple) else batch)
        if array.dtype.kind not in "fiub" or array.ndim < 1:
            raise DataError(
                "adapt: expected an array of numbers, or batches that are arrays",
                f"type {array.dtype}, shape {array.shape}",
                "for a list of numbers use np.array(...)",
            )
        yield array


class _Encoder(Layer):
    """Base of layers that give indices, or vectors with a place for each index."""

    takes_integers = True
    modes: tuple[str, ...] = ("one_hot", "multi_hot", "count")

    def __init__(
        self, output_mode: str, input_shape: Shape | None, name: str | None
    ) -> None:
        super().__init__(input_shape, name)
        if output_mode not in self.modes:
            raise UnknownNameError("output_mode", output_mode, self.modes)
        self.output_mode = output_mode

    @property
    def depth(self) -> int:
        """Length of an encoded vector."""
        raise NotImplementedError

    def encoded_shape(self, shape: Shape) -> Shape:
        if self.output_mode == "int":
            return shape
        if self.output_mode == "one_hot":
            return (*(shape[:-1] if shape[-1:] == (1,) else shape), self.depth)
        if len(shape) != 1:
            raise ShapeError(
                f"{type(self).__name__}: expected (batch, n) for output_mode "
                f"{self.output_mode!r}",
                f"samples of shape {shape}",
                "reshape the data, or use one_hot",
            )
        return (self.depth,)

    def encode(self, indices: Array, weights: Array | None = None) -> Array:
        """Return vectors for indices (batch, ...), in a buffer."""
        shape = tuple(int(n or 0) for n in self.encoded_shape(indices.shape[1:]))
        y = self.buffer("y", (len(indices), *shape))
        hot = self.output_mode != "count"
        flat = indices.reshape(-1)
        out = y.reshape(-1, self.depth)
        rows = np.repeat(np.arange(len(out)), flat.size // max(1, len(out)))
        encode(rows, flat, out, hot, None if weights is None else weights.reshape(-1))
        return y

    def backward(self, dy: Array, done: Done = nothing) -> Any:
        return None

    def output_mask(self) -> None:
        return None


class CategoryEncoding(_Encoder):
    """Integers from 0 up to below ``num_tokens`` -> vectors of that length.

    Args:
        output_mode: 'one_hot', a vector for each integer; 'multi_hot' (batch, n) ->
            (batch, num_tokens), 1 for what is there; 'count', how often. With 'count'
            it may be called on two tensors: the second has a weight for each integer.
    """

    several_inputs = True
    call_inputs = ("inputs", "count_weights")

    def __init__(
        self,
        num_tokens: int,
        output_mode: str = "multi_hot",
        input_shape: Shape | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(output_mode, input_shape, name)
        self.num_tokens = self.positive("num_tokens", num_tokens)

    @property
    def depth(self) -> int:
        return self.num_tokens

    def build(self, input_shape: Any) -> Shape:
        self.several_inputs = is_several(input_shape)
        if self.several_inputs and self.output_mode != "count":
            raise ArgumentError(
                "CategoryEncoding: expected count_weights with output_mode 'count'",
                f"output_mode={self.output_mode!r}",
            )
        return self.encoded_shape(
            input_shape[0] if self.several_inputs else input_shape
        )

    def forward(self, x: Any, training: Training = False) -> Array:
        x, weights = x if self.several_inputs else (x, None)
        indices = x.astype(np.int64)
        if indices.size and (indices.min() < 0 or indices.max() >= self.num_tokens):
            raise DataError(
                f"CategoryEncoding: expected integers from 0 to {self.num_tokens - 1}",
                f"{indices.min()} to {indices.max()}",
                "raise num_tokens, or use IntegerLookup",
            )
        return self.encode(indices, weights)

    def backward(self, dy: Array, done: Done = nothing) -> Any:
        return (None, None) if self.several_inputs else None


class Discretization(_Encoder):
    """Numbers -> index of the bin that they are in; any shape.

    With boundaries b0 < b1 < ..., bin 0 is below b0, bin 1 from b0 up to below b1, and
    so on.

    Args:
        bin_boundaries: increasing numbers; or
        num_bins: how many bins of about the same number of values ``adapt`` shall make.
        epsilon: how exact its boundaries are, as a part of the values.
        output_mode: 'int', or as in ``CategoryEncoding``.
    """

    modes = ("int", "one_hot", "multi_hot", "count")

    def __init__(
        self,
        bin_boundaries: Sequence[float] | None = None,
        num_bins: int | None = None,
        epsilon: float = 0.01,
        output_mode: str = "int",
        input_shape: Shape | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(output_mode, input_shape, name)
        if (bin_boundaries is None) == (num_bins is None):
            raise ArgumentError(
                "Discretization: expected bin_boundaries or num_bins",
                "neither" if num_bins is None else "both",
            )
        if num_bins is not None:
            self.positive("num_bins", num_bins)
        if not 0 < epsilon < 1:
            raise ArgumentError(
                "Discretization: expected an epsilon between 0 and 1", f"{epsilon}"
            )
        self.num_bins, self.epsilon = num_bins, epsilon
        self.bin_boundaries: list[float] | None = None
        if bin_boundaries is not None:
            self._use(bin_boundaries)

    def _use(self, boundaries: Iterable[float]) -> None:
        found = [float(b) for b in boundaries]
        if not found or any(a > b for a, b in itertools.pairwise(found)):
            raise DataError(
                "Discretization: expected increasing bin_boundaries", f"{found}"
            )
        self.bin_boundaries = found

    @property
    def depth(self) -> int:
        return len(self._known()) + 1

    def _known(self) -> list[float]:
        if self.bin_boundaries is None:
            raise StateError(
                "Discretization: expected boundaries",
                "none yet",
                "call adapt(data), or give bin_boundaries",
            )
        return self.bin_boundaries

    def adapt(self, data: Any, steps: int | None = None) -> None:
        """Choose boundaries from an array or an iterable of ``steps`` batches."""
        if self.num_bins is None:
            raise StateError(
                "Discretization.adapt: expected a layer with num_bins",
                "one with bin_boundaries",
                "give num_bins instead",
            )
        summary = np.empty((2, 0), np.float32)
        for i, batch in enumerate([data] if isinstance(data, np.ndarray) else data):
            if steps is not None and i >= steps:
                break
            part = _summarize(np.asarray(batch, np.float32), self.epsilon)
            merged = np.concatenate([part, summary], axis=1)
            order = np.argsort(merged[0], kind="stable")
            summary = _compress(merged[:, order], self.epsilon)
        if not summary.size:
            raise DataError("Discretization.adapt: expected data", "none")
        self._use(_compress(summary, 1 / self.num_bins)[0, :-1])
        args, kwargs = self.arguments
        known = dict(inspect.signature(type(self)).bind(*args, **kwargs).arguments)
        known.pop("num_bins", None)
        self.arguments = ((), {**known, "bin_boundaries": self.bin_boundaries})

    def build(self, input_shape: Shape) -> Shape:
        self._known()
        return self.encoded_shape(input_shape)

    def forward(self, x: Array, training: Training = False) -> Array:
        boundaries = np.array(self._known(), x.dtype if x.dtype.kind == "f" else float)
        indices = np.searchsorted(boundaries, x, side="right")
        if self.output_mode == "int":
            return indices.astype(np.int32)
        return self.encode(indices)


def _summarize(values: Array, epsilon: float) -> Array:
    """Return (2, about 1 / epsilon): some of the values, sorted, and how many each
    stands for."""
    values = np.sort(values.reshape(-1))
    step = max(values.size * epsilon, 1)
    chosen = values[int(step - 1) :: int(step)]
    return np.stack([chosen, np.full_like(chosen, step)])


def _compress(summary: Array, epsilon: float) -> Array:
    """Return a summary of 1 / epsilon values, between those of a longer one."""
    if summary.shape[1] * epsilon < 1:
        return summary
    percents = epsilon + np.arange(0.0, 1.0, epsilon)
    weights = summary[1].cumsum()
    share = weights / weights[-1]
    values = np.interp(percents, share, summary[0])
    weights = np.diff(np.interp(percents, share, weights), prepend=0)
    return np.stack([values, weights]).astype(np.float32)
