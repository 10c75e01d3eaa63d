"""The sections of one run's report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Any

from fastserve import formatting
from fastserve.config.run_folders import saved_states
from fastserve.errors import ArgumentError
from fastserve.json_object import read_object

from .. import curves
from ..curves import Axis
from ..records import describe_errors
from ..runs import FAILED, Run, is_number, series
from . import charts, logs
from .markup import Html, Section, element, join, section, table
from .redact import Redactor

# what a rank's seconds went to, and the colour of each
PHASES = {
    "compute": "c0",
    "communication": "c1",
    "waiting": "c4",
    "data": "c2",
    "validation": "c5",
    "saving": "c3",
}
_RANKS = 64  # that are shown
_LEAST = 1e-3  # s; less is what a rank has counted before its first step
_CHECKPOINTS = 50
_RATES = {"tokens_per_s": "tokens/s", "samples_per_s": "samples/s"}


def heading(run: Run) -> Html:
    name = element("h1", curves.labels([run])[0], " ", state(run))
    about = [run.value("model", "type"), run.value("data", "type")]
    words = [str(word) for word in about if word]
    details = f"{words[0]} on {words[1]}, " if len(words) == 2 else ""
    why = element("p", _why(run)) if _why(run) else None
    return join((name, element("p", f"{details}{run.folder}", class_="note"), why))


def state(run: Run) -> Html:
    return element("span", run.state, class_=f"state {run.state}")


# -- results --------------------------------------------------------------------------


def results(run: Run) -> Section:
    cards: list[Html | None] = [_measure(run, name) for name in run.results]
    last = run.last("loss")
    if last is not None:
        cards.append(_card("training loss", curves.brief(last), "the last line's mean"))
    cards += [_steps(run), _seconds(run), _rate(run), _ranks(run)]
    return section("Results", element("div", *cards, class_="cards"))


def _card(name: str, value: str, more: str = "") -> Html:
    return element(
        "div",
        element("span", name),
        element("b", value),
        element("span", more) if more else None,
        class_="card",
    )


def _why(run: Run) -> str:
    """Return why the run has ended before its last step; '' if nothing tells."""
    if run.state == FAILED and run.errors:
        first = run.errors[0]
        after = f", after step {first.step:,}" if first.step else ""
        return f"{first.type} on rank {first.rank}, {first.host}{after}"
    early = run.end.get("stopped")
    return f"stopped {early}" if early else ""


def _measure(run: Run, name: str) -> Html:
    steps, found = series(run.metrics, name)
    shown = name.removeprefix("val_")
    title = f"validation {curves.title(shown)}"
    place = curves.best(shown, found)
    if place is None:
        return _card(title, curves.brief(found[-1]), f"at step {steps[-1]:,}")
    last = "" if place == len(found) - 1 else f"; last {curves.brief(found[-1])}"
    return _card(
        title, curves.brief(found[place]), f"best, at step {steps[place]:,}{last}"
    )


def _steps(run: Run) -> Html | None:
    if run.step is None:
        return None
    total = run.total_steps
    more = []
    if total is not None and total != run.step:
        more.append(f"of {total:,}")
    with suppress(ArgumentError):
        more.append(f"{run.step / curves.steps_per_epoch(run):.4g} epochs")
    return _card("steps", f"{run.step:,}", ", ".join(more))


def began(run: Run) -> float | None:
    """Return when (unix time) the run began, as far as a file tells."""
    told = [run.status.get("started"), *(line.get("time") for line in run.metrics[:1])]
    return min((when for when in told if is_number(when)), default=None)


def _seconds(run: Run) -> Html | None:
    if run.seconds is None:
        return None
    start = began(run)
    more = f"began {formatting.date(start)}" if start is not None else ""
    return _card("time", duration(run.seconds), more)


def rate(run: Run) -> tuple[float, str] | None:
    """Return the median of the rates in the metrics, and its unit."""
    for name, unit in _RATES.items():
        found = series(run.metrics, name)[1]
        if found:
            return median(found), unit
    return None


def _rate(run: Run) -> Html | None:
    found = rate(run)
    if found is None:
        return None
    flops = series(run.metrics, "gflops")[1]
    more = f"median; {curves.brief(median(flops))} GFLOP/s" if flops else "median"
    return _card(found[1], curves.label_of(_three(found[0])), more)


def _three(value: float) -> float:
    return float(f"{value:.3g}")


def _ranks(run: Run) -> Html | None:
    if run.ranks is None:
        return None
    told = [rank.get("host") for rank in _status_ranks(run)]
    hosts = sorted({str(host) for host in told if host})
    shown = ", ".join(hosts[:3]) + (f" and {len(hosts) - 3} more" if hosts[3:] else "")
    return _card("ranks", str(run.ranks), f"on {shown}" if hosts else "")


def duration(seconds: float) -> str:
    short = round(seconds) < 60
    return f"{seconds:.3g} s" if short else formatting.duration(seconds)


# -- curves ---------------------------------------------------------------------------


def curves_of(runs: Sequence[Run], axis: Axis, smooth: int | None) -> Section:
    """Return the charts of all measures; of several runs over each other."""
    if not any(run.metrics for run in runs):
        what = "no line of metrics has been written: one comes every train.log_every"
        return section("Curves", note=f"None: {what} steps.")
    panels, unit = curves.panels(runs, axis, smooth)
    several = len(runs) > 1
    drawn = [charts.figure(panel, unit, several) for panel in panels]
    key = charts.legend_of_runs(curves.labels(runs)) if several else None
    return section("Curves", key, element("div", *drawn, class_="charts"))


# -- timing ---------------------------------------------------------------------------


def _status_ranks(run: Run) -> list[dict[str, Any]]:
    listed = run.status.get("ranks")
    found = listed if isinstance(listed, list) else []
    return [rank for rank in found if isinstance(rank, dict)]


def _phases(rank: dict[str, Any], key: str = "seconds") -> dict[str, float]:
    told = rank.get(key)
    told = told if isinstance(told, dict) else {}
    names = [*PHASES, *(name for name in told if name not in PHASES)]
    return {str(n): float(told[n]) for n in names if is_number(told.get(n))}


def timing(run: Run) -> Section | None:
    """Return bars of what each rank's seconds went to; None if no file tells."""
    ranks = [(rank, _phases(rank)) for rank in _status_ranks(run)]
    ranks = [(rank, phases) for rank, phases in ranks if sum(phases.values()) >= _LEAST]
    if not ranks:
        return None
    note = "Seconds of each rank since its process began."
    if len(ranks) > _RANKS:
        note += f" The {_RANKS} of {len(ranks)} ranks that computed longest."
        ranks.sort(key=lambda pair: -pair[1].get("compute", 0.0))
        ranks = ranks[:_RANKS]
    longest = max(sum(phases.values()) for _, phases in ranks)
    bars = [_bar(rank, phases, longest) for rank, phases in ranks]
    names = list(dict.fromkeys(name for _, phases in ranks for name in phases))
    key = [
        element("span", element("i", class_=f"swatch square {_colour(name)}"), name)
        for name in names
    ]
    return section(
        "Timing",
        element("div", *key, class_="legend"),
        element("div", *bars, class_="box bars"),
        element("details", element("summary", "Numbers"), _numbers(ranks, names)),
        note=note,
    )


def _colour(phase: str) -> str:
    return PHASES.get(phase, "c6")


def _bar(rank: dict[str, Any], phases: Mapping[str, float], longest: float) -> Html:
    whole = sum(phases.values())
    parts = [
        element(
            "i",
            class_=_colour(name),
            style=f"width:{100 * seconds / longest:.2f}%",
            title=f"{name} {seconds:.4g} s, {seconds / whole:.0%}",
        )
        for name, seconds in phases.items()
    ]
    return element(
        "div",
        element("span", _rank_name(rank)),
        element("span", *parts, class_="bar"),
        element("span", duration(whole)),
    )


def _rank_name(rank: dict[str, Any]) -> str:
    host = rank.get("host")
    return f"rank {rank.get('rank', '?')}" + (f" {host}" if host else "")


def _numbers(
    ranks: Sequence[tuple[dict[str, Any], dict[str, float]]], names: Sequence[str]
) -> Html:
    """Return the table behind the bars: seconds, and of a step milliseconds."""
    rows = []
    steps = [_phases(rank, "step_seconds") for rank, _ in ranks]
    of_steps = [name for name in names if any(name in step for step in steps)]
    for (rank, phases), step in zip(ranks, steps, strict=True):
        memory = rank.get("rss_mb")
        rows.append(
            [
                _rank_name(rank),
                *(f"{phases[n]:.2f}" if n in phases else "" for n in names),
                *(f"{1e3 * step[n]:.3g}" if n in step else "" for n in of_steps),
                f"{memory:,.0f}" if is_number(memory) else "",
            ]
        )
    head = [f"{name} (s)" for name in names]
    head += [f"{name} (ms a step)" for name in of_steps]
    return table(["rank", *head, "memory (MB)"], rows, range(1, len(head) + 2))


# -- checkpoints ----------------------------------------------------------------------


def checkpoints(run: Run) -> Section | None:
    folders = [p.parent for p in saved_states(run.folder)]
    folders = sorted(f for f in folders if not f.name.startswith("."))
    if not folders:
        return None
    validated = dict(zip(*series(run.metrics, "val_loss"), strict=True))
    rows = [_checkpoint(folder, validated) for folder in folders[-_CHECKPOINTS:]]
    head = ["checkpoint", "step", "validation loss", "written", "size (MB)"]
    note = ""
    if len(folders) > _CHECKPOINTS:
        note = f"The last {_CHECKPOINTS} of {len(folders)}."
    return section("Checkpoints", table(head, rows, (1, 2, 4)), note=note)


def _checkpoint(folder: Path, validated: dict[int, float]) -> list[str]:
    """Return a row; ``validated`` holds the validation's loss after some steps."""
    body = read_object(folder / "state.json")
    kept, step = body.get("state"), body.get("step")
    loss = kept.get("val_loss") if isinstance(kept, dict) else None
    if loss is None and is_number(step):
        loss = validated.get(int(step))
    files = body.get("files")
    size, whole = 0, isinstance(files, dict)
    for name, told in files.items() if isinstance(files, dict) else ():
        try:
            found = (folder / str(name)).stat().st_size
        except (OSError, ValueError):
            whole = False
            continue
        size += found
        whole &= isinstance(told, dict) and told.get("bytes") == found
    try:
        written = formatting.date((folder / "state.json").stat().st_mtime)
    except OSError:
        written = ""
    return [
        folder.name + ("" if whole else " (damaged)"),
        f"{step:,}" if is_number(step) else "",
        curves.brief(loss) if is_number(loss) else "",
        written,
        f"{size / 1e6:,.2f}",
    ]


# -- messages -------------------------------------------------------------------------


def messages(run: Run, redactor: Redactor) -> Section:
    """Return the error that ended the run, and what the ranks have logged."""
    parts = []
    if run.errors:
        ranks = run.ranks or len(run.errors)
        text = redactor.text(describe_errors(run.errors, ranks, run.folder))
        inner = element("pre", text, class_="wrap")
        parts.append(element("div", inner, class_="box"))
    found = logs.messages(run.folder)
    rows = [
        [
            message.time,
            element("span", message.level, class_=message.level),
            _who(message),
            redactor.text(message.text),
        ]
        for message in found[-logs.SHOWN :]
    ]
    if rows:
        parts.append(table(["time", "level", "ranks", "message"], rows))
    note = "" if parts else "None."
    if len(found) > logs.SHOWN:
        note = f"The last {logs.SHOWN} of {len(found)}."
    return section("Warnings and errors", *parts, note=note)


def _who(message: logs.Message) -> str:
    ranks = sorted(message.ranks)
    shown = ", ".join(map(str, ranks[:8])) + (", ..." if ranks[8:] else "")
    return shown + (f" ({message.times} times)" if message.times > 1 else "")


# -- environment and config -----------------------------------------------------------


def environment(run: Run, redactor: Redactor) -> Section | None:
    """Return versions and machine, of older runs those that a checkpoint names."""
    found = run.environment
    note = ""
    if not found:
        note = "There is no environment.json; this is what a checkpoint tells."
        for path in saved_states(run.folder):
            body = read_object(path)
            kept = body.get("state")
            numerics = kept.get("numerics") if isinstance(kept, dict) else None
            found = {"versions": body.get("versions"), "numerics": numerics}
            found = {key: value for key, value in found.items() if value}
    if not found:
        return None
    rows = list(flatten(shown_environment(found, redactor)).items())
    return section("Environment", table(["", ""], rows), note=note)


def shown_environment(found: dict[str, Any], redactor: Redactor) -> Any:
    """Return an environment.json as reports show it: no secrets, times as dates."""
    if is_number(found.get("started")):
        found = {**found, "started": formatting.date(found["started"])}
    return redactor.tree(found)


def flatten(value: Any, key: str = "") -> dict[str, str]:
    """Return a tree as dotted keys and texts; a list of plain values is one text, and
    so is a mapping in a list."""
    if isinstance(value, dict) and value:
        found: dict[str, str] = {}
        for name, inner in value.items():
            found |= flatten(inner, f"{key}.{name}" if key else str(name))
        return found
    if isinstance(value, list) and any(isinstance(v, dict | list) for v in value):
        found = {}
        for i, inner in enumerate(value):
            parts = flatten(inner, f"{key}[{i}]")
            if isinstance(inner, dict):
                head = f"{key}[{i}]."
                told = (f"{k.removeprefix(head)} {v}" for k, v in parts.items())
                parts = {f"{key}[{i}]": ", ".join(told)}
            found |= parts
        return found
    return {key: plain(value)}


def plain(value: Any) -> str:
    """Return a value as YAML writes it, but for quotes."""
    if isinstance(value, list):
        return " ".join(map(plain, value)) if value else "[]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value) if value != {} else "{}"


def config(run: Run, redactor: Redactor) -> Section:
    if not run.config:
        return section("Config", note="None: config.yaml can't be read.")
    from fastserve.config import dump_yaml

    text = dump_yaml(redactor.tree(run.config))
    box = element("div", element("pre", text, tabindex="0"), class_="box")
    return section("Config", box, note="The whole job, defaults included.")
