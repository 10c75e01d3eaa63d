"""Real data sets for the tests: skipped where they aren't, but never in CI."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fastserve.data.datasets import ALL, find
from fastserve.errors import DataError

FOLDER = Path(__file__).parents[1] / "data"  # where `make data` puts them


def real(name: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return where a data set lies; without it skip the test, but fail in CI."""
    if "FASTSERVE_DATA_DIR" not in os.environ:
        monkeypatch.setenv("FASTSERVE_DATA_DIR", str(FOLDER))
    known = next(one for one in ALL if one.name == name)
    try:
        return find(known)
    except DataError as error:
        if os.environ.get("CI") == "true":
            pytest.fail(f"{error}\nmake data gets them all")
        pytest.skip(f"needs {name}: make data, or {known.get}")
