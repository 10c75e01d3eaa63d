"""Where samples come from: arrays in memory, memory-mapped arrays, token files."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import numpy as np

from fastserve.core import Array, generator
from fastserve.errors import DataError, ShapeError
from fastserve.layers.lookup import as_strings

from .token_files import Shards

CHECK_ROWS = 1 << 16  # bytes are read in pieces of about so many rows to look for NaN


class Batch(NamedTuple):
    """Inputs, targets and weights of some samples; the arrays are used again.

    Of a model with several inputs ``x`` is a tuple of arrays, in their order; with
    several outputs ``y`` and ``weights`` are, where one may be None.

    With ``masked`` the weights are 0 or 1, and only losses with 1 count: means are
    over these alone. Where a model's own mask has been put in, ``measured`` says the
    same, and the weights may be others.
    """

    x: Any
    y: Any
    weights: Any
    masked: bool = False
    measured: Array | None = None


class Source(ABC):
    """Samples by number. ``batch`` may return the same memory at every call.

    It is called by one thread at a time, which may be another one than that which
    trains: batches that take long are made ahead.
    """

    samples: int
    in_memory = False  # a batch is no more than a copy, so no thread makes it ahead
    tokens_per_sample = 0  # of a text; 0 for other data

    @abstractmethod
    def batch(self, rows: Array, epochs: Array) -> Batch:
        """Return the samples ``rows``, in the passes ``epochs`` over the data."""

    def losses(self, rows: Array) -> int | None:
        """Return how many losses the samples ``rows`` have together if their batches
        are masked; None: every sample has as many as the model has outputs for it.

        Every rank asks for all rows of a step, so none has to be told by the others.
        """
        return None

    @property
    @abstractmethod
    def input_shape(self) -> tuple[Any, ...]:
        """Shape of one input, without the batch; a tuple of them if x is one."""

    @property
    def time(self) -> int:
        """Extent of the first axis of a sample, of the first input; 1 without axes."""
        shape = self.input_shape
        if shape and isinstance(shape[0], tuple):
            shape = shape[0]
        return shape[0] if shape else 1


class ArraySource(Source):
    """Arrays whose first axis counts the samples; also ``numpy.memmap``.

    Args:
        x: (samples, ...). y: (samples, ...). weights: (samples,), or None. Each may be
            a tuple of arrays, for several inputs or outputs, where those of y and
            weights may be None.

    With ``strings`` x holds texts, for a model that takes them.

    Raises DataError for no samples, different lengths, a type that isn't numeric,
    and values that are NaN or infinite.
    """

    def __init__(
        self, x: Any, y: Any, weights: Any = None, strings: bool = False
    ) -> None:
        self.strings = strings
        self.x, self.y = _numeric("x", x, strings), _numeric("y", y)
        self.weights = None if weights is None else _numeric("sample_weight", weights)
        self._several = any(isinstance(v, tuple) for v in self._parts())
        first = self.x[0] if isinstance(self.x, tuple) else self.x
        self.samples = len(first)
        self.in_memory = True
        for name, value in zip(("x", "y", "sample_weight"), self._parts(), strict=True):
            for i, array in enumerate(value if isinstance(value, tuple) else (value,)):
                if array is None:
                    continue
                self.in_memory &= not isinstance(array, np.memmap)
                if len(array) != self.samples:
                    place = f"{name}[{i}]" if isinstance(value, tuple) else name
                    raise DataError(
                        f"expected as many rows in {place} as in x, {self.samples}",
                        f"{len(array)}",
                        "check how the data was split",
                    )
        self._kept: dict[Any, Array] = {}

    def _parts(self) -> tuple[Any, Any, Any]:
        return self.x, self.y, self.weights

    @property
    def input_shape(self) -> tuple[Any, ...]:
        if isinstance(self.x, tuple):
            return tuple(array.shape[1:] for array in self.x)
        return self.x.shape[1:]

    def rows(self, part: slice) -> ArraySource:
        """Return a source of some of the samples."""
        x, y, weights = (_cut(value, part) for value in self._parts())
        return ArraySource(x, y, weights, self.strings)

    def batch(self, rows: Array, epochs: Array) -> Batch:
        weights = self.weights
        if self._several:
            return Batch(*(self._take_each(i, rows) for i in range(3)))
        return Batch(
            self._take("x", self.x, rows),
            self._take("y", self.y, rows),
            None if weights is None else self._take("weights", weights, rows),
        )

    def _take_each(self, place: int, rows: Array) -> Any:
        value = self._parts()[place]
        if not isinstance(value, tuple):
            return None if value is None else self._take(place, value, rows)
        return tuple(
            None if array is None else self._take((place, i), array, rows)
            for i, array in enumerate(value)
        )

    def _take(self, name: Any, array: Array, rows: Array) -> Array:
        kept = self._kept.get(name)
        if kept is None or len(kept) < len(rows):
            kept = np.empty((len(rows), *array.shape[1:]), array.dtype)
            self._kept[name] = kept
        out = kept[: len(rows)]
        if array.flags.c_contiguous:
            np.take(array, rows, axis=0, out=out, mode="clip")
        else:  # take would copy the whole array first
            out[...] = array[rows]
        return out


class TokenSource(Source):
    """Windows of ``block_size`` tokens; the target of each token is the next one.

    Pass ``epoch`` over the data starts at an offset below ``block_size``, another
    one in each pass, and sample ``i`` is the i-th window from there: in every pass
    each token comes once, and over the passes with all contexts.

    Args:
        tokens: (n,) integers, also memory-mapped, also in shards.
        seed: of the offsets.
        shift: false: every pass starts at the first token, as a validation does.

    Raises DataError for other arrays, and for too few tokens for a window.
    """

    def __init__(
        self, tokens: Array | Shards, block_size: int, seed: int = 0, shift: bool = True
    ) -> None:
        if not isinstance(tokens, Shards):
            tokens = np.asanyarray(tokens)
        if tokens.ndim != 1 or tokens.dtype.kind not in "iu":
            raise DataError(
                "expected one axis of integer tokens",
                f"shape {tokens.shape}, type {tokens.dtype}",
            )
        spare = block_size if shift else 1
        self.samples = (len(tokens) - spare) // block_size
        if self.samples < 1:
            raise DataError(
                f"expected at least {block_size + spare} tokens for a context of "
                f"{block_size}",
                f"{len(tokens)}",
                "use a longer text, or a smaller block_size",
            )
        self.tokens, self.block_size, self.seed = tokens, block_size, seed
        self.shift = shift
        self.tokens_per_sample = block_size
        self._x = self._y = np.empty((0, block_size), np.int64)

    @property
    def input_shape(self) -> tuple[int, ...]:
        return (self.block_size,)

    def offset(self, epoch: int) -> int:
        if not self.shift:
            return 0
        return int(generator(self.seed, "offset", epoch).integers(self.block_size))

    def batch(self, rows: Array, epochs: Array) -> Batch:
        if len(self._x) < len(rows):
            self._x = np.empty((len(rows), self.block_size), np.int64)
            self._y = np.empty_like(self._x)
        offsets = {epoch: self.offset(epoch) for epoch in set(epochs.tolist())}
        for i, (row, epoch) in enumerate(
            zip(rows.tolist(), epochs.tolist(), strict=True)
        ):
            start = offsets[epoch] + row * self.block_size
            window = self.tokens[start : start + self.block_size + 1]
            self._x[i], self._y[i] = window[:-1], window[1:]
        return Batch(self._x[: len(rows)], self._y[: len(rows)], None)


def _numeric(name: str, value: Any, strings: bool = False) -> Any:
    """Return ``value`` as an array of numbers, or a tuple of those."""
    if not isinstance(value, tuple) or not any(hasattr(v, "shape") for v in value):
        return numeric(name, value, strings)
    return tuple(
        None if v is None else numeric(f"{name}[{i}]", v) for i, v in enumerate(value)
    )


def _cut(value: Any, part: slice) -> Any:
    if isinstance(value, tuple):
        return tuple(_cut(v, part) for v in value)
    return None if value is None else value[part]


def numeric(name: str, array: Any, strings: bool = False) -> Array:
    """Return ``array`` as a NumPy array of numbers with at least one row, all finite.

    float64 and float16 are left as they are; training converts each batch. With
    ``strings`` it holds those instead.
    """
    if strings and len(array):
        return as_strings(array)
    try:
        result = np.asanyarray(array)
    except ValueError as error:
        raise DataError(
            f"expected {name} to be an array", str(error), "pad or cut the rows"
        ) from None
    if result.dtype.kind not in "fiub":
        raise DataError(
            f"expected {name} to hold numbers",
            f"type {result.dtype}",
            "convert it, or encode text as integers first",
        )
    if result.ndim == 0 or len(result) == 0:
        raise DataError(
            f"expected {name} to have at least one row",
            f"shape {result.shape}",
            "check how the data was made",
        )
    check_finite(name, result)
    return result


def check_finite(name: str, array: Array) -> None:
    """Raise DataError, with the place, if a value is NaN or infinite."""
    if array.dtype.kind != "f":
        return
    step = max(1, CHECK_ROWS * len(array) // max(1, array.size))
    for start in range(0, len(array), step):
        piece = array[start : start + step]
        finite = np.isfinite(piece)
        if not finite.all():
            place = np.argwhere(~finite)[0]
            value = piece[tuple(place)]
            place[0] += start
            raise DataError(
                f"expected only finite values in {name}",
                f"{value} at {tuple(place.tolist())}",
                "remove or replace such rows",
            )


def check_input(x: Any, input_shape: tuple[Any, ...], name: str = "") -> None:
    """Raise ShapeError unless x is a batch of samples of ``input_shape``.

    Both may be tuples, for several inputs.
    """
    if isinstance(x, tuple):
        for i, (array, shape) in enumerate(zip(x, input_shape, strict=True)):
            check_input(array, shape, f" {i}")
        return
    given = x.shape[1:]
    if len(given) != len(input_shape) or any(
        want is not None and want != got
        for want, got in zip(input_shape, given, strict=True)
    ):
        wanted = ", ".join(map(str, input_shape))
        raise ShapeError(
            f"expected inputs{name} of shape (batch, {wanted})",
            f"{x.shape}",
            "reshape the data, or change the model's input_shape",
        )
