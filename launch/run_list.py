"""``fastserve runs``: the runs of a folder with their results."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from fastserve import formatting
from fastserve.config.run_folders import is_run

from .runs import Run, find_runs, read_run, values

_HEAD = ("name", "state", "step", "best", "at step", "time", "when", "last values")


def list_runs(folder: Path, sort: str = "when") -> list[tuple[str, Run]]:
    """Return the runs in a folder, or the one that it is, with their names.

    Args:
        sort: 'when' (running ones first, then the newest), 'name', or 'best' (the
            lowest validation loss first).
    """
    if is_run(folder):
        found = [(folder.name or str(folder), read_run(folder))]
    else:
        found = [
            (str(run.folder.relative_to(folder)), run) for run in find_runs(folder)
        ]
    keys = {
        "when": lambda item: (item[1].state != "running", -(item[1].last_time or 0.0)),
        "name": lambda item: item[0],
        "best": lambda item: (item[1].best() or (math.inf, 0))[0],
    }
    return sorted(found, key=keys[sort])


def listing(
    runs: list[tuple[str, Run]], width: int | None = None, now: float | None = None
) -> str:
    """Return the table that people read, its lines cut to ``width`` if it is given."""
    rows = [_row(name, run, now) for name, run in runs]
    lines = formatting.table(_HEAD, rows, right="step,best,at step,time").split("\n")
    return "\n".join(line[:width].rstrip() for line in lines)


def _row(name: str, run: Run, now: float | None) -> tuple[str, ...]:
    best = run.best()
    steps = "-" if run.step is None else str(run.step)
    if run.step is not None and run.total_steps not in (None, run.step):
        steps += f"/{run.total_steps}"
    return (
        name,
        run.state,
        steps,
        formatting.number(best[0]) if best else "-",
        str(best[1]) if best else "-",
        formatting.duration(run.seconds),
        formatting.when(run.last_time, now),
        _last(run),
    )


def _last(run: Run) -> str:
    """Return the last validation's values, the loss first; else the training loss."""
    shown = dict(sorted(run.results.items(), key=lambda item: item[0] != "val_loss"))
    if not shown:
        loss = run.last("loss")
        return "-" if loss is None else f"loss {formatting.number(loss)}"
    return "  ".join(
        f"{name} {formatting.number(value)}" for name, value in shown.items()
    )


def as_json(name: str, run: Run) -> dict[str, Any]:
    """Return what a program may want to know of a run."""
    best = run.best()
    last: dict[str, float] = {}
    for line in run.metrics:
        last |= values(line)
    return {
        "name": name,
        "folder": str(run.folder),
        "state": run.state,
        "step": run.step,
        "total_steps": run.total_steps,
        "ranks": run.ranks,
        "best_val_loss": best[0] if best else None,
        "best_step": best[1] if best else None,
        "last": last,
        "seconds": run.seconds,
        "time": run.last_time,
        "error": run.errors[0].message if run.errors else None,
    }
