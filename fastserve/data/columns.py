"""Columns of a table as numbers: what a model's run remembers of them."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fastserve.core import Array

CATEGORIES = 1000  # different texts of a column
_SPACE = r"[^\S\x1c-\x1f]*"  # float() doesn't take all that \s does
_NUMBER = re.compile(rf"{_SPACE}[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?{_SPACE}")


class BadValue(ValueError):
    """A value doesn't fit its column; the caller knows file and line."""


def number(value: Any) -> float | None:
    """Return a finite number of a text or JSON value, None if it isn't one."""
    if isinstance(value, str):
        if not _NUMBER.fullmatch(value):
            return None
        value = float(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        result = float(value)
    except OverflowError:
        return None
    return result if math.isfinite(result) else None


def text(value: Any) -> str:
    """Return a category's name: JSON's true and 1 are the texts 'true' and '1'."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return value.strip() if isinstance(value, str) else str(value)


@dataclass
class Column:
    """One column: numbers, a list of them, or categories.

    Attributes:
        size: how many numbers a value has: more than 1 for a list of numbers.
        values: the categories, in order; empty for numbers.
        encoding: of categories: 'one_hot', or 'index' (0 is one that isn't known).
        mean, std: what numbers are standardised with, each (size,).
    """

    name: str
    size: int = 1
    values: list[str] = field(default_factory=list)
    encoding: str = "one_hot"
    mean: list[float] = field(default_factory=lambda: [0.0])
    std: list[float] = field(default_factory=lambda: [1.0])

    def __post_init__(self) -> None:
        self._places = {value: i for i, value in enumerate(self.values)}

    @property
    def width(self) -> int:
        """Number of inputs that it becomes."""
        return len(self.values) if self.values and self.one_hot else self.size

    @property
    def one_hot(self) -> bool:
        return self.encoding == "one_hot"

    def put(self, value: Any, missing: bool, out: Array) -> None:
        """Write a value as ``width`` numbers. Raises BadValue if it doesn't fit.

        A missing one is the mean, or no category, as is a text that isn't known.
        """
        if self.values:
            place = -1 if missing else self._places.get(text(value), -1)
            if not self.one_hot:
                out[0] = place + 1
            else:
                out[:] = 0
                if place >= 0:
                    out[place] = 1
            return
        if missing:
            out[:] = 0
            return
        for i, one in enumerate(self.numbers(value)):
            out[i] = (one - self.mean[i]) / self.std[i]

    def numbers(self, value: Any) -> list[float]:
        """Return the numbers of a value. Raises BadValue."""
        items = value if isinstance(value, list) else [value]
        if len(items) != self.size:
            raise BadValue(f"{self.size} numbers, not {len(items)}")
        found = [number(item) for item in items]
        if None in found:
            raise BadValue(f"a number, not {items[found.index(None)]!r:.40}")
        return found  # type: ignore[return-value]

    def to_json(self) -> dict[str, Any]:
        shown: dict[str, Any] = {"name": self.name}
        if self.values:
            return shown | {"values": self.values, "encoding": self.encoding}
        return shown | {"size": self.size, "mean": self.mean, "std": self.std}


@dataclass
class Columns:
    """The input columns of a table, in order.

    Attributes:
        missing: texts that stand for a missing value.
        fill: whether missing values are allowed (and filled).
    """

    columns: list[Column]
    missing: tuple[str, ...]
    fill: bool

    kind = "table"

    def __post_init__(self) -> None:
        self._missing = frozenset(self.missing)

    @property
    def input_shape(self) -> tuple[int, ...]:
        return (sum(column.width for column in self.columns),)

    def is_missing(self, value: Any) -> bool:
        if value is None:
            return True
        return isinstance(value, str) and value.strip() in self._missing

    def put(self, values: Sequence[Any], out: Array) -> None:
        """Write a record's values, in the columns' order, to ``out`` (width,).

        Raises BadValue that names the column.
        """
        start = 0
        for column, value in zip(self.columns, values, strict=True):
            missing = self.is_missing(value)
            if missing and not self.fill:
                raise BadValue(f"a value in column {column.name!r}, not {value!r}")
            try:
                column.put(value, missing, out[start : start + column.width])
            except BadValue as error:
                raise BadValue(f"in column {column.name!r} {error}") from None
            start += column.width

    def to_json(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "columns": [column.to_json() for column in self.columns],
            "missing": list(self.missing),
            "fill": self.fill,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Columns:
        columns = [Column(**one) for one in data["columns"]]
        return cls(columns, tuple(data["missing"]), bool(data["fill"]))


class Statistics:
    """Mean and deviation of lists of numbers, in one pass (Welford 1962)."""

    def __init__(self, size: int) -> None:
        self.count = 0
        self._mean, self._squares = np.zeros(size), np.zeros(size)

    def add(self, values: Sequence[float]) -> None:
        self.count += 1
        delta = np.asarray(values) - self._mean
        self._mean += delta / self.count
        self._squares += delta * (np.asarray(values) - self._mean)

    @property
    def mean(self) -> list[float]:
        return [float(value) for value in self._mean]

    @property
    def std(self) -> list[float]:
        """The deviation; 1 where all values are the same."""
        found = np.sqrt(self._squares / max(1, self.count))
        same = found <= 1e-12 * np.maximum(1, np.abs(self._mean))
        return [float(value) for value in np.where(same, 1.0, found)]
