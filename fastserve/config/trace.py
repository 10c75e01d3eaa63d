"""The option ``--trace [FIRST:COUNT]`` of the commands that train."""

from __future__ import annotations

import re
from collections.abc import Sequence

from fastserve.errors import ArgumentError

AUTO = "auto"
_STEPS = re.compile(r"\d{1,9}:\d{1,9}")


def joined(words: Sequence[str]) -> list[str]:
    """Return a command's words with ``--trace`` and its value as one word.

    The value may be left out, and a config that follows isn't one.
    """
    found: list[str] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if word == "--trace":
            given = bool(rest) and _STEPS.fullmatch(rest[0]) is not None
            word = f"--trace={rest.pop(0) if given else AUTO}"
        found.append(word)
    return found


def steps_of(value: str) -> tuple[int, int] | None:
    """Return (first step, number of steps) of a value; None for ``auto``.

    Steps are counted from 1. Raises ArgumentError for anything else.
    """
    if value == AUTO:
        return None
    first, _, count = value.partition(":")
    if not _STEPS.fullmatch(value) or int(first) < 1 or int(count) < 1:
        raise ArgumentError(
            "--trace: expected FIRST:COUNT, the first step and how many, from 1 on",
            value,
            "for example --trace 101:20, or --trace alone",
        )
    return int(first), int(count)
