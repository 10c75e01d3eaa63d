"""Reads what the ranks of a job leave in the run folder: errors and completion."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from fastserve.json_object import read_object

_CRASH = re.compile(rb"^Fatal Python error: (.*)$", re.MULTILINE)
_TAIL = 1 << 16  # bytes at the end of a log


LogMark = tuple[int, int, int]  # inode, bytes, time of the last change in ns


@dataclass(frozen=True)
class ErrorRecord:
    """What a rank wrote about the exception that ended it; ``step``: the steps made."""

    rank: int
    host: str
    time: float
    type: str
    message: str
    traceback: str
    status: int
    job: str | None = None
    step: int | None = None


def error_records(
    run_dir: Path,
    since: float,
    skews: Mapping[str, float] | None = None,
    job: str | None = None,
) -> list[ErrorRecord]:
    """Return the records that ranks wrote at ``since`` (unix time) or later, in order.

    ``skews`` are the seconds that the clocks of other hosts are ahead of this one's, by
    which the records' times are corrected. A record that was cut short by
    the end of its rank can't be read and is left out.

    ``job`` is the token of those that are wanted, whatever a clock that was set says of
    them; records without one are judged by their time.
    """
    skews = skews or {}
    read = (_error_record(path) for path in run_dir.glob("errors/rank-*.json"))
    records = [replace(r, time=r.time - skews.get(r.host, 0.0)) for r in read if r]
    # Clocks are compared over a network, which takes its time.
    slack = 1.0 if skews else 0.0
    found = [
        record
        for record in records
        if (record.job == job if job and record.job else record.time >= since - slack)
    ]
    return sorted(found, key=lambda record: (record.time, record.rank))


def completed(run_dir: Path, token: str, ranks: int) -> bool:
    """Return whether the job of this token has recorded its completion."""
    return _recorded(run_dir / "done.json", token, ranks)


def stopped(run_dir: Path, token: str, ranks: int) -> bool:
    """Return whether the job of this token has recorded that it stopped and saved."""
    return _recorded(run_dir / "stopped.json", token, ranks)


def _recorded(path: Path, token: str, ranks: int) -> bool:
    record = read_object(path)
    return record.get("job") == token and record.get("ranks") == ranks


def logs(run_dir: Path) -> dict[Path, LogMark]:
    """Return the ranks' logs, each with what changes when it is written to."""
    found = {}
    for path in run_dir.glob("logs/rank-*.log"):
        with suppress(OSError):
            seen = path.stat()
            found[path] = seen.st_ino, seen.st_size, seen.st_mtime_ns
    return found


def crashes(paths: Iterable[Path]) -> dict[int, str]:
    """Return how ranks crashed that left a stack in their log, by rank."""
    found = {}
    for path in paths:
        try:
            with path.open("rb") as file:
                file.seek(max(0, path.stat().st_size - _TAIL))
                told = _CRASH.findall(file.read())
        except OSError:
            continue
        if told:
            how = told[-1].decode(errors="replace")
            found[int(path.stem.removeprefix("rank-"))] = f"{how}, see {path}"
    return found


def describe_errors(records: list[ErrorRecord], ranks: int, run_dir: Path) -> str:
    """Return the earliest error in full, and one line for all other ranks."""
    first = records[0]
    lines = [first.traceback.rstrip()] if first.traceback else []
    # A traceback ends with type and message; without one they are said here.
    cause = first.type if first.traceback else first.message
    lines.append(f"rank {first.rank} on {first.host} failed: {cause}")
    if ranks > 1:
        others = "1 other rank" if ranks == 2 else f"{ranks - 1} other ranks"
        lines.append(f"{others} stopped because of it; records: {run_dir / 'errors'}")
    if "to do:" not in first.traceback + first.message:
        cure = "look at the error above and mend what it tells"
        if any(run_dir.glob("checkpoints/step-*")):
            cure += "; then --resume auto goes on from the newest checkpoint"
        lines.append(f"  to do: {cure}")
    return "\n".join(lines)


def _error_record(path: Path) -> ErrorRecord | None:
    record = read_object(path)
    try:
        return ErrorRecord(
            rank=int(record["rank"]),
            host=str(record["host"]),
            time=float(record["time"]),
            type=str(record["type"]),
            message=str(record["message"]),
            traceback=str(record.get("traceback") or ""),
            status=int(record["status"]),
            job=str(record["job"]) if record.get("job") else None,
            step=None if record.get("step") is None else int(record["step"]),
        )
    except (KeyError, TypeError, ValueError, OverflowError):
        return None
