"""How a job speaks on standard output: in words, with --quiet, or as JSON lines."""

from __future__ import annotations

import json
import math
import re
import sys
import textwrap
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastserve import config
from fastserve.assemble.data import Data
from fastserve.comm import Communicator
from fastserve.environment import terminal_width
from fastserve.errors import ConfigError, FastserveError
from fastserve.formatting import duration, number
from fastserve.models import Model
from fastserve.summary import short
from fastserve.training.records import describe_error, exit_status

WORDS, QUIET, JSON = "words", "quiet", "json"
_INDENT = 9  # columns of a block's names


class Printer:
    """Shows what happens in a job; rank 0 has one, and the others for their errors.

    With JSON everything that is printed otherwise, by whomever, goes to standard
    error: there is one object a line on standard output, and nothing else.
    """

    def __init__(self, mode: str = WORDS) -> None:
        self.mode = mode
        self._out = sys.stdout
        if mode == JSON:
            sys.stdout = sys.stderr

    def close(self) -> None:
        """Give standard output back."""
        sys.stdout = self._out

    def event(self, event: str, values: Mapping[str, Any]) -> None:
        """Print a JSON object, if it is JSON that is wanted."""
        if self.mode == JSON:
            line = {"event": event, **_finite(values)}
            line.setdefault("time", time.time())
            print(json.dumps(line), file=self._out, flush=True)

    def block(self, text: str) -> None:
        """Print lines that begin with a name and a value; long ones go on below it."""
        if self.mode == WORDS:
            print(wrapped(text, terminal_width()), flush=True)

    def say(self, text: str) -> None:
        """Print what somebody may like to read on the way."""
        if self.mode == WORDS:
            print(text, flush=True)
        self.event("message", {"text": text})

    def result(self, text: str) -> None:
        """Print the one line that is left with --quiet."""
        if self.mode != JSON:
            print(text, flush=True)

    def error(self, error: BaseException, comm: Communicator, status: int) -> None:
        """Print why this rank ends, and with which status the job does."""
        known = {"rank": comm.rank, "host": comm.host, **error_values(error)}
        self.event("error", {**known, "status": status})
        if self.mode == JSON:
            return
        prefix = f"[rank {comm.rank} {comm.host}] " if comm.size > 1 else ""
        for line in describe_error(error).splitlines():
            print(f"{prefix}{line}", file=sys.stderr, flush=True)


def error_values(error: BaseException) -> dict[str, Any]:
    """Return an error as the values of an event; one of ours has three parts."""
    values = {
        "type": type(error).__name__,
        "message": describe_error(error),
        "status": exit_status(error) or 1,
    }
    if isinstance(error, FastserveError):
        names = {"expected": "expected", "received": "received", "to_do": "todo"}
        found = {name: getattr(error, own, "") for name, own in names.items()}
        values |= {name: text for name, text in found.items() if text}
    if isinstance(error, ConfigError):
        values["faults"] = list(error.faults)
    return values


def start_values(
    job: config.Job,
    data: Data,
    model: Model,
    steps: int,
    first: int,
    run_dir: Path,
    surroundings: Mapping[str, Any],
) -> dict[str, Any]:
    """Return what the start block tells, as the values of an event."""
    return {
        "name": job.name,
        "run": str(run_dir),
        "model": job.model.type,
        "weights": model.count_params(),
        "trained_weights": model.store.count,
        "data": data.summary,
        "samples": data.train.samples,
        "global_batch": job.train.global_batch,
        "micro_batch": job.train.micro_batch,
        "steps": steps,
        "first_step": first,
        "environment": dict(surroundings),
    }


def results_of(history: Mapping[str, list[float]]) -> dict[str, float]:
    """Return the last value of each name, first those of the validation."""
    last = {name: values[-1] for name, values in history.items() if values}
    return dict(sorted(last.items(), key=lambda item: not item[0].startswith("val_")))


def result_line(
    run_dir: Path, steps: int, results: Mapping[str, float], seconds: float
) -> str:
    """Return the whole result in a line."""
    shown = {k: v for k, v in results.items() if k.startswith("val_")} or results
    values = "".join(f"  {name} {number(value)}" for name, value in shown.items())
    plural = "s" if steps != 1 else ""
    return f"{short(run_dir)}: {steps} step{plural}{values}  {duration(seconds)}"


def wrapped(text: str, width: int | None) -> str:
    """Return a block whose lines are at most ``width`` columns; None: as they are.

    Lines of a sample, which begin with two spaces, stay as the model made them.
    """
    if width is None:
        return text
    return "\n".join(
        textwrap.fill(
            line,
            max(width - 1, 40),
            subsequent_indent=" " * _INDENT,
            break_on_hyphens=False,
            break_long_words=False,  # a path or a command can be copied
        )
        if len(line) >= width and not re.match(r"  \S", line)
        else line
        for line in text.split("\n")
    )


def _finite(values: Mapping[str, Any]) -> dict[str, Any]:
    """JSON has no NaN and no infinity."""

    def plain(value: Any) -> Any:
        if isinstance(value, float) and not math.isfinite(value):
            return None
        return _finite(value) if isinstance(value, Mapping) else value

    return {name: plain(value) for name, value in values.items()}
