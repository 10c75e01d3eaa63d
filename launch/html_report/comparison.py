"""The sections that compare several runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .. import curves
from ..runs import Run, series
from . import parts
from .charts import COLOURS, swatch
from .markup import Html, Section, element, join, section, table
from .redact import Redactor

_MISSING = "–"


def heading(runs: Sequence[Run]) -> Html:
    names = curves.labels(runs)
    title = " and ".join(names) if len(names) == 2 else f"{len(names)} runs"
    return element("h1", title)


def results(runs: Sequence[Run]) -> Section:
    """Return a table of a row for each run, with the best value of each measure."""
    names = list(dict.fromkeys(name for run in runs for name in run.results))
    rows = []
    best = {name: _winner(runs, name) for name in names}
    for i, run in enumerate(runs):
        rate, loss = parts.rate(run), run.last("loss")
        rows.append(
            [
                _name(runs, i),
                parts.state(run),
                *(_value(run, name, best[name] == i) for name in names),
                curves.brief(loss) if loss is not None else _MISSING,
                f"{run.step:,}" if run.step is not None else _MISSING,
                _MISSING if run.seconds is None else parts.duration(run.seconds),
                f"{curves.brief(rate[0])} {rate[1]}" if rate else _MISSING,
                str(run.ranks or _MISSING),
            ]
        )
    shown = [f"validation {curves.title(name.removeprefix('val_'))}" for name in names]
    head = ["run", "state", *shown, "training loss", "steps", "time", "rate", "ranks"]
    note = (
        "Of each validation measure the best value, and its step; the best run's bold."
    )
    whole = table(head, rows, range(2, len(head)))
    return section("Results", whole, note=note if names else "")


def _name(runs: Sequence[Run], i: int) -> Html:
    return swatch(f"c{i % COLOURS}", curves.labels(runs)[i])


def _best(run: Run, name: str) -> tuple[float, int] | None:
    steps, found = series(run.metrics, name)
    place = curves.best(name.removeprefix("val_"), found)
    return None if place is None else (found[place], steps[place])


def _winner(runs: Sequence[Run], name: str) -> int | None:
    found = [_best(run, name) for run in runs]
    return curves.best(
        name.removeprefix("val_"), [pair[0] if pair else None for pair in found]
    )


def _value(run: Run, name: str, best: bool) -> str:
    found = _best(run, name)
    if found is None:
        last = run.results.get(name)
        return _MISSING if last is None else curves.brief(last)
    value = element("b" if best else "span", curves.brief(found[0]))
    return join((value, f" at {found[1]:,}"))


def differences(runs: Sequence[Run], redactor: Redactor) -> Section:
    """Return the keys of the jobs that aren't the same in all runs."""
    rows, same = _differing([redactor.tree(run.config) for run in runs])
    rows = [row for row in rows if row[0] != "name"]
    if not rows:
        return section("Config", note="The jobs are the same.")
    note = f"The keys that differ; {same} others are the same."
    return section("Config", table(["key", *curves.labels(runs)], rows), note=note)


def environments(runs: Sequence[Run], redactor: Redactor) -> Section | None:
    """Return what isn't the same in the runs' environments."""
    shown = [parts.shown_environment(run.environment, redactor) for run in runs]
    rows, _ = _differing(shown)
    if not rows:
        return None
    return section("Environment", table(["", *curves.labels(runs)], rows))


def _differing(trees: Sequence[Any]) -> tuple[list[list[str]], int]:
    """Return a row for each key whose values differ, and how many others there are."""
    flat = [parts.flatten(tree) if tree else {} for tree in trees]
    keys = list(dict.fromkeys(key for one in flat for key in one))
    rows = [
        [key, *(one.get(key, _MISSING) for one in flat)]
        for key in keys
        if len({one.get(key) for one in flat}) > 1
    ]
    return rows, len(keys) - len(rows)
