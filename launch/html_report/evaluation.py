"""What the model of a run does: a confusion matrix, or texts that it makes."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastserve.errors import ArgumentError, FastserveError
from fastserve.json_object import read_object

from .. import curves
from ..runs import RUNNING, Run, is_number, series
from .markup import Html, Section, element, section, table

_METRIC = "confusion_matrix"
_SECONDS = 20.0  # that an evaluation may take which nobody has asked for
_BYTES = 200e6  # of the weights of a language model that makes texts unasked
_CLASSES = 1000  # most: the matrix has its square
_SHOWN = 25  # classes of a matrix that is shown whole
_PAIRS = 15  # confusions that are listed
_TOKENS = 300
_TEMPERATURE = 0.8


@dataclass(frozen=True)
class Wish:
    """What the command line says of the evaluation.

    Attributes:
        evaluate: None: where it doesn't take long.
        split: which part of the data. which: checkpoint; None: the best if it was kept.
        prompts: of a language model's texts; none: one that its tokenizer knows.
    """

    evaluate: bool | None = None
    split: str = "validation"
    which: str | None = None
    prompts: Sequence[str] = ()


def look(run: Run, wish: Wish, say: Callable[[str], None]) -> Section | None:
    """Return what the run's model does; None if nothing is wanted or can be shown.

    What fails is an error if it was asked for, else the section says why.
    """
    makes_texts = run.value("model", "type") == "gpt"
    make = texts if makes_texts else matrix
    if wish.evaluate is False or not (makes_texts or class_names(run)):
        if wish.evaluate:
            raise ArgumentError(
                "--evaluate: expected the run of a classifier or of a language model",
                f"{run.folder}, which is neither, or has no preprocessing.json",
                "leave it out; fastserve evaluate shows its metrics",
            )
        return None
    title = "Samples" if makes_texts else "Confusion matrix"
    if not wish.evaluate:
        folder = checkpoint(run)
        if folder is None:
            return section(title, note="Not made, as there is no checkpoint.")
        why = _too_much(run, folder, makes_texts)
        if why:
            cure = f"fastserve report {run.folder} --evaluate makes them."
            return section(title, note=f"Not made, as {why}; {cure}")
    say(f"using the model of {run.folder} (--no-evaluate leaves it out)")
    try:
        return make(run, wish)
    except (FastserveError, OSError) as error:
        if wish.evaluate:
            raise
        say(f"{title} left out: {error}")
        return section(title, element("pre", str(error), class_="wrap"), note="None.")


def _too_much(run: Run, folder: Path, makes_texts: bool) -> str:
    """Return why the model isn't used unasked; nothing if it may be."""
    if run.state == RUNNING:
        return "the run is training"
    if makes_texts:
        size = (folder / "model.safetensors").stat().st_size
        return f"the model has {size / 1e6:,.0f} MB" if size > _BYTES else ""
    seconds = _estimate(run, folder)
    if seconds is None:
        return "it isn't known how long that takes"
    return f"it takes about {seconds:.0f} s" if seconds > _SECONDS else ""


def checkpoint(run: Run) -> Path | None:
    """Return the folder of a checkpoint: the best one if it was kept, else the last."""
    folder = run.folder / "checkpoints"
    found = [*sorted(folder.glob("step-*")), folder / "best"]
    return next((p for p in found[::-1] if (p / "state.json").is_file()), None)


def _estimate(run: Run, folder: Path) -> float | None:
    """Return the seconds of an evaluation: forward alone, in one process."""
    kept = read_object(folder / "state.json").get("state")
    samples = kept.get("samples") if isinstance(kept, dict) else None
    rates = series(run.metrics, "samples_per_s")[1]
    if not is_number(samples) or not rates or not rates[-1] > 0:
        return None
    held, tested = (run.value("data", f"{n}_split") for n in ("validation", "test"))
    if is_number(held) and held > 0:
        left = 1 - held - (tested if is_number(tested) else 0)
        samples *= held / max(left, 0.05)
    return samples / rates[-1] * (run.ranks or 1) / 3


def class_names(run: Run) -> list[str]:
    """Return the classes that the model tells; none if it tells something else."""
    target = read_object(run.folder / "preprocessing.json").get("target")
    target = target if isinstance(target, dict) else {}
    names = target.get("names") if target.get("kind") == "classes" else None
    return list(map(str, names)) if isinstance(names, list) else []


# -- classes --------------------------------------------------------------------------


def matrix(run: Run, wish: Wish) -> Section:
    """Evaluate a classifier; return its confusion matrix and what follows from it."""
    names, kind = class_names(run), run.value("model", "type")
    if len(names) > _CLASSES or kind not in ("sequential", "json"):
        what = f"{len(names):,} classes, a model of type {kind}"
        raise ArgumentError(
            f"a confusion matrix: expected at most {_CLASSES} classes, and a model of "
            "type sequential or json",
            what,
            "use fastserve predict, which tells the class of each sample",
        )
    from fastserve import trained

    asked = _with_matrix(run)
    overrides = [f"model.metrics={json.dumps(asked)}"]
    used: list[str] = []
    found = trained.evaluate(
        str(run.folder), wish.which, overrides, wish.split, used.append
    )
    counts = found.pop(_METRIC).tolist()
    names = [*names, *map(str, range(len(names), len(counts)))]
    plain = {k: v for k, v in found.items() if isinstance(v, float)}
    values = ", ".join(f"{curves.title(k)} {curves.brief(v)}" for k, v in plain.items())
    note = f"{used[-1].capitalize()}: {values}; {sum(map(sum, counts)):,.0f} targets."
    return section("Confusion matrix", show_matrix(counts, names), note=note)


def _with_matrix(run: Run) -> Any:
    """Return the job's metrics with a confusion matrix, of counts."""
    given = run.value("model", "metrics") or []
    if not isinstance(given, list):
        raise ArgumentError(
            "a confusion matrix: expected a model with one output",
            f"metrics of several: {', '.join(given)}",
            "use fastserve evaluate",
        )
    own = [
        metric for metric in given if _name(metric) not in (_METRIC, "ConfusionMatrix")
    ]
    loss = run.value("model", "loss")
    arguments = next(iter(loss.values())) if isinstance(loss, dict) and loss else {}
    if isinstance(arguments, dict) and arguments.get("from_logits"):
        return [*own, {"ConfusionMatrix": {"threshold": 0.0}}]
    return [*own, _METRIC]


def _name(metric: Any) -> str:
    return str(next(iter(metric), "")) if isinstance(metric, dict) else str(metric)


def show_matrix(counts: Sequence[Sequence[float]], names: Sequence[str]) -> Html:
    """Return the matrix, the classes' measures in its order, and frequent confusions.

    Args:
        counts: (classes, classes): rows are targets, columns predictions.
    """
    totals = [sum(row) for row in counts]
    shown, labels = _gathered(counts, names)
    return element(
        "div",
        _grid(shown, labels),
        _classes(counts, names, totals),
        _confusions(counts, names, totals),
        class_="sides",
    )


def _gathered(
    counts: Sequence[Sequence[float]], names: Sequence[str]
) -> tuple[list[list[float]], list[str]]:
    """Return a matrix that can be read: of many classes the most frequent, and one row
    and column of all others."""
    n = len(counts)
    if n <= _SHOWN:
        return [list(row) for row in counts], list(names)
    often = _most_frequent(counts)
    groups = [[i] for i in often] + [[i for i in range(n) if i not in often]]
    made = [
        [sum(counts[i][j] for i in rows for j in columns) for columns in groups]
        for rows in groups
    ]
    others = len(groups[-1])
    return made, [*(names[g[0]] for g in groups[:-1]), f"{others} others"]


def _most_frequent(counts: Sequence[Sequence[float]]) -> list[int]:
    """Return the classes that have rows of their own in a matrix of many classes."""
    often = sorted(range(len(counts)), key=lambda i: -sum(counts[i]))
    return sorted(often[: _SHOWN - 1])


def _grid(counts: Sequence[Sequence[float]], names: Sequence[str]) -> Html:
    head = element(
        "tr",
        element("th", "target \\ predicted", scope="col"),
        *(element("th", name, scope="col", title=name) for name in names),
    )
    rows = []
    for i, (name, row) in enumerate(zip(names, counts, strict=True)):
        whole = sum(row)
        cells = [_cell(v, v / whole if whole else 0, i == j) for j, v in enumerate(row)]
        rows.append(element("tr", element("th", name, scope="row", title=name), *cells))
    whole_table = element(
        "table", element("thead", head), element("tbody", *rows), class_="matrix"
    )
    return element("div", whole_table, class_="wide", tabindex="0")


def _cell(value: float, share: float, right: bool) -> Html:
    """Return a count, with its share of the row's as the depth of the colour."""
    shade = 0.62 * (share if right else share**0.5)  # so that rare errors are seen
    return element(
        "td",
        f"{value:,.0f}" if value else "",
        class_="right" if right else None,
        style=f"--share:{shade:.3f}" if value else None,
        title=f"{share:.2%} of the row" if value else None,
    )


def _classes(
    counts: Sequence[Sequence[float]], names: Sequence[str], totals: Sequence[float]
) -> Html:
    taken = [sum(row[i] for row in counts) for i in range(len(counts))]
    rows = []
    for i in range(len(names)):
        hits = counts[i][i]
        precision = hits / taken[i] if taken[i] else None
        recall = hits / totals[i] if totals[i] else None
        f1 = 2 * hits / (taken[i] + totals[i]) if taken[i] + totals[i] else None
        shares = ["–" if v is None else f"{v:.3f}" for v in (precision, recall, f1)]
        rows.append([names[i], *shares, f"{totals[i]:,.0f}"])
    head = ["class", "precision", "recall", "F1", "targets"]
    if len(rows) <= _SHOWN:
        return table(head, rows, range(1, 5))
    rest = element(
        "details",
        element("summary", f"All {len(rows)} classes"),
        table(head, rows, range(1, 5)),
    )
    shown = [rows[i] for i in _most_frequent(counts)]
    return element("div", table(head, shown, range(1, 5)), rest)


def _confusions(
    counts: Sequence[Sequence[float]], names: Sequence[str], totals: Sequence[float]
) -> Html | None:
    pairs = [
        (value, i, j)
        for i, row in enumerate(counts)
        for j, value in enumerate(row)
        if i != j and value
    ]
    pairs.sort(key=lambda pair: (-pair[0], pair[1:]))
    rows = [
        [names[i], names[j], f"{value:,.0f}", f"{value / totals[i]:.1%}"]
        for value, i, j in pairs[:_PAIRS]
    ]
    if not rows:
        return None
    head = ["target", "taken for", "times", "of the target's"]
    title = element("h3", "Most frequent confusions")
    return element("div", title, table(head, rows, (2, 3)))


# -- texts ----------------------------------------------------------------------------


def texts(run: Run, wish: Wish) -> Section:
    """Return texts that a language model makes."""
    from fastserve import trained

    used: list[str] = []
    prompts = list(wish.prompts) or [_known_prompt(run)]
    boxes = []
    for i, prompt in enumerate(prompts):
        made = trained.generate(
            str(run.folder),
            prompt,
            _TOKENS,
            _TEMPERATURE,
            seed=i,
            which=wish.which,
            note=used.append,
        )
        given, rest = made[: len(prompt)], made[len(prompt) :]
        text = element("pre", element("b", given), rest, class_="wrap")
        boxes.append(element("div", text, class_="box"))
    note = (
        f"{used[-1].capitalize()}, which goes on with up to {_TOKENS} tokens, at "
        f"temperature {_TEMPERATURE:g}."
    )
    return section("Samples", *boxes, note=note)


def _known_prompt(run: Run) -> str:
    """Return a prompt that the tokenizer knows, if it is one that the report tries."""
    from fastserve import trained
    from fastserve.errors import DataError

    tokenizer = trained.open_tokenizer(run.folder)
    for prompt in ("The ", "\n"):
        try:
            if tokenizer is not None:
                tokenizer.encode(prompt)
                return prompt
        except DataError:
            continue
    return ""
