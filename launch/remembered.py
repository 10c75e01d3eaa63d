"""What was measured on this machine, for later jobs: JSON files in the cache folder."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from typing import Any

from fastserve import environment
from fastserve.json_object import read_object


def read(name: str) -> dict[str, Any]:
    """Return the entries of a file; none if it is missing or damaged."""
    return read_object(environment.cache_dir() / name)


def add(name: str, entries: Mapping[str, Any]) -> None:
    """Add entries to a file.

    It is replaced as a whole, so a reader never sees half of it. Of two writers at the
    same time the last one wins; what the other wrote is measured again.

    Raises OSError if it can't be written.
    """
    path = environment.cache_dir() / name
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({**read(name), **entries}, indent=1)
    with tempfile.NamedTemporaryFile(
        "w", encoding="utf-8", dir=path.parent, prefix=f".{path.stem}-", delete=False
    ) as file:
        file.write(text)
    os.replace(file.name, path)
