"""Faults of a job file: collected, then shown together, each on one line.

Where a job comes from a file, a fault names its line; where a key was set on the
command line, it names ``--set`` instead.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from ..errors import ConfigError, nearest

Path = tuple[str | int, ...]
Lines = Mapping[Path, int | None]

_SHOWN = 60  # characters of a received value that a fault repeats
_KNOWN = 12  # names that a fault lists before it only counts them


class Faults:
    """The faults found so far, at most one for each key."""

    def __init__(self) -> None:
        self._texts: dict[Path, str] = {}

    def add(self, path: Path, expected: str, received: str, hint: str = "") -> None:
        """Add a fault, unless the same key already has one."""
        text = f"expected {expected}, received {received}"
        self._texts.setdefault(path, f"{text}, {hint}" if hint else text)

    def __bool__(self) -> bool:
        return bool(self._texts)

    def touch(self, path: Path) -> bool:
        """Whether the value at ``path``, or one that it is part of, has a fault."""
        return any(path[:end] in self._texts for end in range(len(path) + 1))

    def merge(self, other: Faults, root: Path) -> None:
        """Take over the faults of a value that was put at ``root``."""
        for path, text in other._texts.items():
            self._texts.setdefault(root + path, text)

    def texts(self, lines: Lines) -> list[str]:
        """Return each fault as ``line N: key.path: …``, in the order of the lines."""
        found = [(line_of(path, lines), path) for path in self._texts]
        found.sort(key=lambda item: (item[0] is None, item[0] or 0))
        return [
            f"{'--set' if line is None else f'line {line}'}: "
            f"{dotted(path)}: {self._texts[path]}"
            for line, path in found
        ]

    def check(self, source: str, lines: Lines) -> None:
        """Raise a ConfigError with all faults if there are any."""
        if self:
            raise ConfigError(source, self.texts(lines))


def line_of(path: Path, lines: Lines) -> int | None:
    """Return the line of a key, or of the nearest section around it."""
    for end in range(len(path), -1, -1):
        if path[:end] in lines:
            return lines[path[:end]]
    return 1


def dotted(path: Path) -> str:
    """Return ``model.layers[0].Dense`` for ``('model', 'layers', 0, 'Dense')``."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            text += "." + (part if re.fullmatch(r"[\w-]+", part) else show(part))
    return text.removeprefix(".") or "the file"


def show(value: Any) -> str:
    """Return a value as a fault repeats it: in YAML's words, short, on one line."""
    if value is None:
        return "nothing (null)"
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return str(int(value))
    if isinstance(value, str):
        text = repr(value)
    else:
        text = json.dumps(value, ensure_ascii=False)
    text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text[: _SHOWN + 1])
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def did_you_mean(received: Any, known: Iterable[str]) -> str:
    """Return the question for the nearest known name, or '' if none is near."""
    near = nearest(received, known) if isinstance(received, str) else None
    return f"did you mean {near!r}?" if near else ""


def listed(names: Iterable[str]) -> str:
    """Return ``a, b or c``, cut where there are very many."""
    names = list(names)
    if len(names) > _KNOWN:
        return f"{', '.join(names[:_KNOWN])} or {len(names) - _KNOWN} others"
    return " or ".join(filter(None, (", ".join(names[:-1]), names[-1])))
