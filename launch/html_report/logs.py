"""Warnings and errors that the ranks of a run have logged."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

_BEGIN = re.compile(
    r"^(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d),\d+ (DEBUG|INFO|WARNING|ERROR|CRITICAL) ",
    re.MULTILINE,
)
_LEVELS = ("WARNING", "ERROR", "CRITICAL")
_TAIL = 1 << 20  # bytes at the end of a log that are read
_FILES = 512
SHOWN = 100


@dataclass
class Message:
    """What one or several ranks have logged: when for the first time, how often."""

    time: str
    level: str
    text: str
    ranks: set[int]
    times: int = 1


def messages(run_dir: Path) -> list[Message]:
    """Return the warnings and errors of all ranks by time, equal ones as one.

    Of a long log only the end is read.
    """
    found: dict[tuple[str, str], Message] = {}
    for path in sorted(run_dir.glob("logs/rank-*.log"))[:_FILES]:
        number = path.stem.removeprefix("rank-")
        if not number.isdecimal():
            continue
        for time, level, text in _parse(_end(path)):
            known = found.get((level, text))
            if known is None:
                found[level, text] = Message(time, level, text, {int(number)})
                continue
            known.ranks.add(int(number))
            known.times += 1
            known.time = min(known.time, time)
    return sorted(found.values(), key=lambda message: message.time)


def _end(path: Path) -> str:
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _TAIL))
            return file.read(_TAIL).decode("utf-8", errors="replace")
    except OSError:
        return ""


def _parse(text: str) -> list[tuple[str, str, str]]:
    begins = list(_BEGIN.finditer(text))
    ends = [match.start() for match in begins[1:]] + [len(text)] * bool(begins)
    return [
        (match[1], match[2], text[match.end() : end].strip())
        for match, end in zip(begins, ends, strict=True)
        if match[2] in _LEVELS
    ]
