"""What a model learns to tell: classes by their names, or numbers."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastserve.core import Array
from fastserve.errors import DataError, nearest

MOST = 100_000  # classes
_NUMBER = re.compile(r"-?\d+(\.\d+)?")


@dataclass(frozen=True)
class Classes:
    """Names of classes; the target of a sample is the number of its class."""

    names: tuple[str, ...]

    kind = "classes"

    @classmethod
    def of(cls, labels: Iterable[str], where: object = "the data") -> Classes:
        """Return the classes that occur, by name; numbers by their size.

        Raises DataError that names ``where`` if there are too few or too many.
        """
        names = sorted(set(labels))
        if all(_NUMBER.fullmatch(name) for name in names):
            names.sort(key=float)
        if not 2 <= len(names) <= MOST:
            raise DataError(
                f"{where}: expected from 2 to {MOST:,} classes",
                f"{len(names)}: {', '.join(map(repr, names[:3]))}",
                "check which labels the data has",
            )
        return cls(tuple(names))

    def number(self, name: str) -> int | None:
        """Return the number of a class, None if there is none of this name."""
        return self._numbers().get(name)

    def _numbers(self) -> dict[str, int]:
        found: dict[str, int] | None = self.__dict__.get("_kept")
        if found is None:
            found = {name: i for i, name in enumerate(self.names)}
            object.__setattr__(self, "_kept", found)
        return found

    def unknown(self, name: str, where: str) -> DataError:
        """Return the error of a label that isn't a class."""
        near = nearest(name, self.names)
        some = ", ".join(self.names[:20]) + (", ..." if self.names[20:] else "")
        return DataError(
            f"{where}: expected one of the classes {some}",
            repr(name),
            f"did you mean {near!r}?" if near else "correct the label, or start anew",
        )

    def balance(self, labels: Array) -> str:
        """Return how many samples each class has, the most frequent 10 of many."""
        counts = np.bincount(labels.reshape(-1), minlength=len(self.names))
        order: Sequence[int] = range(len(self.names))
        if len(order) > 10:
            order = np.argsort(-counts, kind="stable")[:10].tolist()
        shown = ", ".join(f"{self.names[i]} {counts[i]:,}" for i in order)
        more = len(self.names) - len(order)
        return shown + (f", and {more} more" if more else "")

    def to_json(self) -> dict[str, Any]:
        return {"kind": self.kind, "names": list(self.names)}


@dataclass(frozen=True)
class Values:
    """A number to predict: what the model gives x ``std`` + ``mean``."""

    name: str
    mean: float = 0.0
    std: float = 1.0

    kind = "value"

    def encode(self, values: Array) -> Array:
        return ((values - self.mean) / self.std).astype(np.float32)

    def decode(self, outputs: Array) -> Array:
        return outputs.astype(np.float64) * self.std + self.mean

    def to_json(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "name": self.name,
            "mean": self.mean,
            "std": self.std,
        }
