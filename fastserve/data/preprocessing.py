"""What turns raw data into a model's numbers, kept with a run as preprocessing.json."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from fastserve.data.columns import Columns
from fastserve.data.targets import Classes, Values
from fastserve.errors import CheckpointError, DataError

FILE = "preprocessing.json"
_FORMAT = 1
_LARGEST = 1 << 28  # bytes


class Encoder(Protocol):
    """Turns raw inputs of one kind into arrays."""

    kind: str

    @property
    def input_shape(self) -> tuple[int, ...]: ...

    def to_json(self) -> dict[str, Any]: ...


@dataclass(frozen=True)
class ArrayInput:
    """Arrays that are given as they are.

    Attributes:
        shape: of one sample. scale: what it is multiplied with.
        channel: a last axis of size 1 was added to what the files hold.
    """

    shape: tuple[int, ...]
    scale: float = 1.0
    channel: bool = False

    kind = "array"

    @property
    def input_shape(self) -> tuple[int, ...]:
        return self.shape

    def to_json(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "shape": list(self.shape),
            "scale": self.scale,
            "channel": self.channel,
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> ArrayInput:
        shape = tuple(int(n) for n in data["shape"])
        return cls(shape, float(data["scale"]), bool(data["channel"]))


@dataclass(frozen=True)
class Preprocessing:
    """How inputs are encoded, and what outputs mean.

    Attributes:
        target: names of the classes, or the number to predict; None: not known.
        vocabulary: number of different inputs of an Embedding; None: there are none.
    """

    input: Encoder
    target: Classes | Values | None = None

    @property
    def classes(self) -> int | None:
        """Number of classes, None if the target is a number."""
        return len(self.target.names) if isinstance(self.target, Classes) else None

    @property
    def vocabulary(self) -> int | None:
        """Number of different integers among the inputs; None: they are no integers."""
        return getattr(self.input, "vocab_size", None)

    def dumps(self) -> str:
        target = self.target.to_json() if self.target else None
        whole = {"format": _FORMAT, "input": self.input.to_json(), "target": target}
        return json.dumps(whole, ensure_ascii=False, indent=1) + "\n"


def _readers() -> dict[str, Callable[[dict[str, Any]], Encoder]]:
    from fastserve.data.images import Pixels
    from fastserve.data.labelled_texts import TextEncoder
    from fastserve.data.tagged import WordEncoder

    kinds: tuple[Any, ...] = (ArrayInput, Columns, Pixels, TextEncoder, WordEncoder)
    return {kind.kind: kind.from_json for kind in kinds}


_WRONG = (
    *(DataError, ValueError, KeyError, TypeError),
    *(RecursionError, OverflowError),  # of lists in lists, and of int(1e999)
)


def loads(text: str, where: str) -> Preprocessing:
    """Return what ``dumps`` wrote. Raises CheckpointError if it isn't that."""
    try:
        data = json.loads(text)
        if data["format"] != _FORMAT:
            raise ValueError(f"format {data['format']!r}")
        given, target = data["input"], data["target"]
        encoder = _readers()[given["kind"]](given)
        made: Classes | Values | None = None
        if target is not None and target["kind"] == Classes.kind:
            made = Classes(tuple(str(name) for name in target["names"]))
        elif target is not None:
            numbers = float(target["mean"]), float(target["std"])
            made = Values(str(target["name"]), *numbers)
    except _WRONG as error:
        raise CheckpointError(
            f"expected a {FILE} that fastserve wrote",
            f"{where}: {type(error).__name__}: {error}",
            "take it from a copy of the run, or train again",
        ) from None
    return Preprocessing(encoder, made)


def read(run_dir: Path) -> Preprocessing | None:
    """Return a run's preprocessing, None if it has none."""
    path = run_dir / FILE
    if not path.is_file():
        return None
    if path.stat().st_size > _LARGEST:
        raise CheckpointError(
            f"expected a {FILE} that fastserve wrote",
            f"{path}: {path.stat().st_size:,} bytes",
            "take it from a copy of the run",
        )
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(
            f"expected a {FILE} that can be read", f"{path}: {error}", "train again"
        ) from None
    return loads(text, str(path))
