"""Reads what runs have left in their folders, whatever state they are in.

A run may be training at this moment, may have been killed while it wrote, may be of an
older version or copied without half of its files. So each reader here takes what it
finds: a line that is cut short, or a file that is missing, is nothing worse than that.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeGuard

from fastserve.config.run_folders import CONFIG, METRICS, find_run, is_run
from fastserve.json_object import parse_object, read_object

from .records import ErrorRecord, error_records

RUNNING, ENDED, STOPPED = "running", "ended", "stopped"
FAILED, UNKNOWN = "failed", "unknown"
FRESH = 30.0  # seconds after which a status.json is no sign of life any more
_LARGEST = 1e100  # of a number in a file
_RECORDS = ("step", "time")  # in each line of metrics, beside the values

Line = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """A run folder as it was at the moment of reading.

    Attributes:
        config: the job, as plain values; {} if it can't be read.
        metrics: the lines of metrics.jsonl, as ``read_metrics`` returns them.
        status: the object in status.json; {} without one.
        environment: the object in environment.json; {} without one.
        state: 'running', 'ended', 'stopped' (saved before its last step), 'failed'
            (also: killed), or 'unknown'.
        errors: what the ranks wrote about their failure, the earliest first.
        end: the object in done.json, or in stopped.json; {} without one.
    """

    folder: Path
    config: dict[str, Any]
    metrics: list[Line]
    status: dict[str, Any]
    environment: dict[str, Any]
    state: str
    errors: list[ErrorRecord] = field(default_factory=list)
    end: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.folder.name

    def value(self, *keys: str) -> Any:
        """Return the value of the job at ``keys``; None if it isn't there."""
        found: Any = self.config
        for key in keys:
            found = found.get(key) if isinstance(found, dict) else None
        return found

    @property
    def step(self) -> int | None:
        """Steps made, as far as any file tells."""
        told: list[Any] = [line["step"] for line in self.metrics[-1:]]
        told += [self.status.get("step"), self.end.get("steps")]
        told += [record.step for record in self.errors]  # its status may be older
        return max((int(step) for step in told if is_number(step)), default=None)

    @property
    def total_steps(self) -> int | None:
        """Steps that the job was to make; None if no file tells."""
        for told in (self.status.get("total_steps"), self.value("train", "steps")):
            if is_number(told):
                return int(told)
        return self.step if self.state == ENDED else None

    @property
    def ranks(self) -> int | None:
        """Number of ranks of the last attempt; None if no file tells."""
        listed = self.status.get("ranks")
        if isinstance(listed, list) and listed:
            return len(listed)
        told = self.end.get("ranks") or self.environment.get("ranks")
        return int(told) if is_number(told) else None

    @property
    def last_time(self) -> float | None:
        """When (unix time) the run wrote something for the last time."""
        told = [line.get("time") for line in self.metrics[-1:]]
        told += [self.status.get("time"), self.end.get("time")]
        told += [record.time for record in self.errors]
        return max((when for when in told if is_number(when)), default=None)

    @property
    def seconds(self) -> float | None:
        """How long the run has trained, in all of its starts; None if no file tells."""
        told = self.status.get("trained_seconds")
        return float(told) if is_number(told) else None

    @cached_property
    def results(self) -> dict[str, float]:
        """The last value of each measure of the validation, by its name (val_loss)."""
        found: dict[str, float] = {}
        for line in self.metrics:
            found |= {k: v for k, v in values(line).items() if k.startswith("val_")}
        return found

    def last(self, name: str) -> float | None:
        """Return the last value of ``name`` in the metrics; None without any."""
        found = series(self.metrics, name)[1]
        return found[-1] if found else None

    def best(self, name: str = "val_loss") -> tuple[float, int] | None:
        """Return the lowest value of ``name`` and its step; None without any."""
        steps, found = series(self.metrics, name)
        return min(zip(found, steps, strict=True)) if found else None


def read_run(folder: Path | str, metrics: list[Line] | None = None) -> Run:
    """Read a run folder; ``metrics`` if they have been read already.

    Raises CheckpointError if it isn't one.
    """
    folder = find_run(folder, (CONFIG, METRICS))
    done = read_object(folder / "done.json")
    end = done or read_object(folder / "stopped.json")
    errors = _errors(folder)
    status = read_object(folder / "status.json")
    return Run(
        folder,
        _config(folder),
        read_metrics(folder) if metrics is None else metrics,
        status,
        read_object(folder / "environment.json"),
        _state(folder, bool(done), end, errors, status),
        errors,
        end,
    )


def find_runs(folder: Path | str) -> Iterator[Run]:
    """Yield the runs in a folder, in the order of their names, and in its folders.

    A run in a folder that can't be opened is left out.
    """
    try:
        found = sorted(p for p in Path(folder).iterdir() if p.is_dir())
    except OSError:
        return
    for path in found:
        if path.name.startswith("."):
            continue
        if is_run(path):
            yield read_run(path)
        else:
            yield from (read_run(p) for p in sorted(path.glob("*/")) if is_run(p))


def read_metrics(folder: Path | str) -> list[Line]:
    """Return the whole lines of a run's metrics.jsonl, in order of their steps.

    Each has ``step`` (an int) and most have ``time`` (unix time); what else there is
    bears its own name. Lines of a validation have names with ``val_``. A number that
    wasn't finite is None.
    """
    try:
        text = (Path(folder) / "metrics.jsonl").read_text("utf-8", errors="replace")
    except OSError:
        return []
    return list(parse_metrics(text))


class MetricsReader:
    """Reads a run's metrics.jsonl again and again, each time what is new in it."""

    def __init__(self, folder: Path | str) -> None:
        self._path = Path(folder) / "metrics.jsonl"
        self._lines: list[Line] = []
        self._file: int | None = None  # its number: a resumed run makes another one
        self._read = 0  # bytes, up to the end of a line

    def read(self) -> list[Line]:
        """Return all whole lines, as ``read_metrics`` does."""
        try:
            with self._path.open("rb") as file:
                found = os.fstat(file.fileno())
                if found.st_ino != self._file or found.st_size < self._read:
                    self._lines, self._file, self._read = [], found.st_ino, 0
                file.seek(self._read)
                data = file.read()
        except OSError:
            return self._lines
        whole = data[: data.rfind(b"\n") + 1]
        self._read += len(whole)
        self._lines.extend(parse_metrics(whole.decode(errors="replace")))
        return self._lines


def parse_metrics(text: str) -> Iterator[Line]:
    """Yield the lines of a metrics.jsonl that are whole."""
    for line in text.split("\n"):
        # the last one may be cut short, others may be damaged
        found = parse_object(line)
        if type(found.get("step")) is int and is_number(found["step"]):
            yield found


def values(line: Line) -> dict[str, float]:
    """Return the finite numbers of a line of metrics, without its step and time."""
    return {k: v for k, v in line.items() if k not in _RECORDS and is_number(v)}


def series(metrics: list[Line], name: str) -> tuple[list[int], list[float]]:
    """Return the steps that have a value of ``name``, and the values."""
    found = [(line["step"], line[name]) for line in metrics if name in values(line)]
    return [step for step, _ in found], [value for _, value in found]


def is_number(value: Any) -> TypeGuard[float]:
    """Return whether a value from a file is a number that sums and ranges can hold."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and abs(value) <= _LARGEST  # false for NaN, too


def _config(folder: Path) -> dict[str, Any]:
    """Return the job as it is written; unlike load_job it takes one of any version."""
    from fastserve.config import strict_yaml

    try:
        with (folder / "config.yaml").open("rb") as file:
            text = file.read(strict_yaml.MAX_BYTES + 1)
    except OSError:
        return {}
    found, _, _ = strict_yaml.parse(text)  # what has a fault is None
    return found if isinstance(found, dict) else {}


def _errors(folder: Path) -> list[ErrorRecord]:
    """Return the records of the last attempt: config.yaml is written at each start."""
    try:
        since = (folder / "config.yaml").stat().st_mtime
    except OSError:
        since = 0.0
    return error_records(folder, since - 1.0)


def _state(
    folder: Path,
    done: bool,
    end: dict[str, Any],
    errors: list[ErrorRecord],
    status: dict[str, Any],
) -> str:
    held = is_held(folder)
    if held:
        return RUNNING
    if end:
        return ENDED if done else STOPPED
    if errors or status.get("state") == FAILED:
        return FAILED
    if held is None:
        at = status.get("time")
        fresh = is_number(at) and time.time() - at < FRESH
        return RUNNING if fresh and status.get("state") == "training" else UNKNOWN
    return FAILED  # it held the folder, and is gone without a word: killed


def is_held(folder: Path) -> bool | None:
    """Return whether a job has the folder at this moment; None if it can't be told.

    The lock is taken for a moment, shared, so a job that starts just then has to try
    again (``files.hold`` does).
    """
    try:
        number = os.open(folder / ".lock", os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(number, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # a file system without locks
        return None
    finally:
        os.close(number)
    return False
