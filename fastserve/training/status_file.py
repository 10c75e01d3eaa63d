"""How ``status.json`` of a run is written. Needs nothing but the standard library."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from fastserve.json_object import read_object

NAME = "status.json"


def put(path: Path, record: dict[str, Any]) -> None:
    """Replace a JSON file at once. It may be lost if the machine fails, and isn't worth
    waiting for the disk. Raises OSError."""
    made = path.with_name(f".{path.name}.new")
    made.write_text(json.dumps(record), "utf-8")
    made.replace(path)


def trained_seconds(run_dir: Path) -> float:
    """Return how long a run has trained in all of its starts; 0 if no file tells."""
    told = read_object(run_dir / NAME).get("trained_seconds")
    try:
        return float(told) if isinstance(told, (int, float)) else 0.0
    except OverflowError:  # a number of hundreds of digits
        return 0.0


def mark_failed(run_dir: Path, job: str | None, step: int | None = None) -> None:
    """Note that the training of a run has failed, if it is this job's and isn't over.

    ``step``: the steps made, if they are known; the file may be some seconds old.

    Raises OSError if it can't be written.
    """
    path = run_dir / NAME
    record = read_object(path)
    if record.get("job") == job and record.get("state") == "training":
        known = {} if step is None else {"step": step}
        put(path, {**record, **known, "state": "failed", "time": time.time()})
