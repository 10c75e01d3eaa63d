"""Reads JSON objects that may be missing, cut short, or not the program's own.

Needs nothing but the standard library, as the launcher reads run folders by it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_LARGEST = 64 << 20  # bytes of a file


def read_object(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file; an empty one if there is none to read.

    One of more than 64 MiB, or nested too deeply, isn't read.
    """
    try:
        if not path.is_file():  # a pipe or a device would have no end
            return {}
        with path.open("rb") as file:
            content = file.read(_LARGEST + 1)
    except OSError:
        return {}
    return parse_object(content) if len(content) <= _LARGEST else {}


def parse_object(text: str | bytes) -> dict[str, Any]:
    """Return the JSON object that a text is; an empty one if it's none."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
