"""Puts a report together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from .. import curves
from ..curves import Axis
from ..runs import Run
from . import comparison, parts
from .evaluation import Wish, look
from .page import page, write
from .redact import Redactor

FILE, COMPARISON = "report.html", Path("comparison.html")


def report(
    runs: Sequence[Run],
    output: Path | None = None,
    axis: Axis = "step",
    smooth: int | None = None,
    wish: Wish | None = None,
    say: Callable[[str], None] = print,
) -> Path:
    """Write the report of a run, or the comparison of several; return its path.

    Without ``output`` it is report.html in the run's folder, or comparison.html in the
    working directory.

    Raises CheckpointError if it can't be written, ArgumentError for an axis that the
    runs can't be drawn over, and what an evaluation raises that was asked for.
    """
    redactor = Redactor([run.config for run in runs])
    if len(runs) == 1:
        run = runs[0]
        sections = [
            parts.results(run),
            parts.curves_of(runs, axis, smooth),
            look(run, wish or Wish(), say),
            parts.timing(run),
            parts.checkpoints(run),
            parts.messages(run, redactor),
            parts.environment(run, redactor),
            parts.config(run, redactor),
        ]
        heading = parts.heading(run)
    else:
        sections = [
            comparison.results(runs),
            parts.curves_of(runs, axis, smooth),
            comparison.differences(runs, redactor),
            comparison.environments(runs, redactor),
        ]
        heading = comparison.heading(runs)
    title = ", ".join(curves.labels(runs))
    text = page(title, heading, [part for part in sections if part is not None])
    path = output or (runs[0].folder / FILE if len(runs) == 1 else COMPARISON)
    write(path, text)
    return path
