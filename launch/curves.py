"""The curves of runs: what ``fastserve plot`` and ``fastserve report`` draw."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeGuard

from fastserve.config.run_folders import saved_states
from fastserve.errors import ArgumentError, CheckpointError, UnknownNameError
from fastserve.json_object import read_object

from .runs import ENDED, Line, Run, is_number

Axis = Literal["step", "epoch", "time"]
RATES = ("tokens_per_s", "samples_per_s", "gflops")
_OF_STEPS = ("grad_norm", "learning_rate", *RATES, "skipped_steps")
_HIGHER = (
    *("acc", "auc", "precision", "recall", "sensitivity", "specificity", "f1_score"),
    *("fbeta", "r2", "io_u", "correlation", "exact"),
)
_LOWER = ("loss", "perplexity", "bits_per", "error", "entropy", "logcosh", "divergence")
_LABELS = {
    "bits_per_byte": "bits per byte",
    "grad_norm": "gradient norm",
    "tokens_per_s": "tokens per second",
    "samples_per_s": "samples per second",
    "gflops": "GFLOP/s",
    "io_u": "IoU",
    "auc": "AUC",
}
_SPANS = ((2 * 86400, 86400.0, "days"), (2 * 3600, 3600.0, "h"), (120, 60.0, "min"))
_SMOOTHED = 25  # a run's lines in one mean


@dataclass(frozen=True)
class Curve:
    """A value of one run.

    Attributes:
        label: of its run. run: its number among those that are drawn.
        name: as in the metrics, 'val_loss'.
        steps, x, y: of equal length; x is in the units of the axis, y None where the
            value wasn't finite.
        smoothed: as y, means of the lines around; empty if nothing is smoothed.
        best: place of the best value; None if it isn't known which one is better.
    """

    label: str
    run: int
    name: str
    steps: Sequence[int]
    x: Sequence[float]
    y: Sequence[float | None]
    smoothed: Sequence[float | None] = ()
    best: int | None = None

    @property
    def validates(self) -> bool:
        return self.name.startswith("val_")


@dataclass(frozen=True)
class Panel:
    """The curves of one measure, of the training and of the validation."""

    name: str
    title: str
    label: str  # of the y axis, with the unit
    curves: Sequence[Curve]

    @property
    def group(self) -> Literal["loss", "rate", "metrics"]:
        if self.name == "loss":
            return "loss"
        return "rate" if self.name in RATES else "metrics"

    @property
    def positive(self) -> bool:
        """Whether all values are above 0, as a logarithmic axis needs it."""
        return all(v > 0 for c in self.curves for v in c.y if v is not None)


def labels(runs: Sequence[Run]) -> list[str]:
    """Return short names that tell the runs apart: the folders', or their paths."""
    names = [run.folder.resolve().name for run in runs]
    return [
        name if names.count(name) == 1 else str(run.folder)
        for name, run in zip(names, runs, strict=True)
    ]


def panels(
    runs: Sequence[Run],
    axis: Axis = "step",
    smooth: int | None = None,
    only: Sequence[str] = (),
) -> tuple[list[Panel], str]:
    """Return what to draw of runs, and the label of the x axis.

    Args:
        smooth: number of lines of a mean; 0: nothing is smoothed; None: a 25th.
        only: names of measures, 'loss' or 'val_loss'; all that there are without.

    Raises CheckpointError if the runs have no metrics, ArgumentError if the axis can't
    be made of what they have left, UnknownNameError for a name that none has.
    """
    if not any(run.metrics for run in runs):
        empty = ", ".join(str(run.folder / "metrics.jsonl") for run in runs)
        raise CheckpointError(
            "expected a run with metrics",
            f"no line in {empty}",
            "train it first: a line is written every train.log_every steps",
        )
    names = _names(runs)
    if only:
        wanted = [name.removeprefix("val_") for name in only]
        for given, name in zip(only, wanted, strict=True):
            if name not in names:
                raise UnknownNameError("measure of these runs", given, names)
        names = list(dict.fromkeys(wanted))
    scales, unit = _scales(runs, axis)
    made = []
    for name in names:
        curves = [
            curve
            for i, (run, label) in enumerate(zip(runs, labels(runs), strict=True))
            for curve in _curves(run, name, label, i, axis, scales[i], smooth)
        ]
        if any(value is not None for curve in curves for value in curve.y):
            made.append(Panel(name, title(name), _label(name, runs), curves))
    return made, unit


def _names(runs: Sequence[Run]) -> list[str]:
    """Return the measures' names without ``val_``: loss first, then the job's own."""
    found = {
        key.removeprefix("val_"): None
        for run in runs
        for line in run.metrics
        for key in line
        if key not in ("step", "time")
    }
    own = [name for name in found if name != "loss" and name not in _OF_STEPS]
    return [name for name in ("loss", *own, *_OF_STEPS) if name in found]


def title(name: str) -> str:
    """Return a measure's name in words."""
    return _LABELS.get(name, name.replace("_", " "))


def _label(name: str, runs: Sequence[Run]) -> str:
    if name != "loss":
        return title(name)
    kinds = {_kind_of_loss(run) for run in runs}
    kind = kinds.pop()
    return f"loss ({kind})" if kind and not kinds else "loss"


def _kind_of_loss(run: Run) -> str:
    if run.value("model", "type") == "gpt":
        return "nats per token"
    loss = run.value("model", "loss")
    return title(loss) if isinstance(loss, str) else ""


def _curves(
    run: Run,
    name: str,
    label: str,
    number: int,
    axis: Axis,
    scale: float,
    smooth: int | None,
) -> list[Curve]:
    made = []
    for key in (name, f"val_{name}"):
        lines = [line for line in run.metrics if key in line]
        if axis == "time":
            lines = [line for line in lines if is_number(line.get("time"))]
        if not lines:
            continue
        start, place = (_start(run), "time") if axis == "time" else (0.0, "step")
        x = [(line[place] - start) / scale for line in lines]
        y = [_finite(line[key]) for line in lines]
        curve = Curve(label, number, key, [line["step"] for line in lines], x, y)
        if key == name and name not in ("learning_rate", "skipped_steps"):
            window = max(1, len(y) // _SMOOTHED) if smooth is None else smooth
            curve = replace(curve, smoothed=means(y, window) if window > 1 else ())
        made.append(replace(curve, best=best(name, y) if key != name else None))
    return made


def _finite(value: object) -> float | None:
    return float(value) if is_number(value) else None


def better(name: str) -> Literal["min", "max"] | None:
    """Return whether less or more of a measure is better; None: not known."""
    if any(part in name for part in _HIGHER):
        return "max"
    return "min" if any(part in name for part in _LOWER) else None


def best(name: str, y: Sequence[float | None]) -> int | None:
    """Return the place of the best value, the first of equal ones."""
    mode = better(name)
    sign = -1 if mode == "max" else 1
    known = [(sign * value, i) for i, value in enumerate(y) if value is not None]
    return min(known)[1] if mode and known else None


def means(y: Sequence[float | None], window: int) -> list[float | None]:
    """Return the mean of the ``window`` values around each; fewer at both ends, as many
    before as after, so that the curve isn't shifted."""
    half, out = max(0, window // 2), list[float | None]()
    sums, counts = [0.0], [0]
    for value in y:
        sums.append(sums[-1] + (value or 0.0))
        counts.append(counts[-1] + (value is not None))
    for i, value in enumerate(y):
        reach = min(half, i, len(y) - 1 - i)
        first, last = i - reach, i + reach + 1
        count = counts[last] - counts[first]
        known = value is not None and count
        out.append((sums[last] - sums[first]) / count if known else None)
    return out


# -- the x axis -----------------------------------------------------------------------


def _scales(runs: Sequence[Run], axis: Axis) -> tuple[list[float], str]:
    """Return what each run's steps or seconds are divided by, and the axis' label."""
    if axis == "epoch":
        return [steps_per_epoch(run) for run in runs], "epoch"
    if axis == "step":
        return [1.0] * len(runs), "step"
    longest = max(line["time"] - _start(run) for run in runs for line in _timed(run))
    for least, seconds, unit in _SPANS:
        if longest >= least:
            return [seconds] * len(runs), f"time ({unit})"
    return [1.0] * len(runs), "time (s)"


def _timed(run: Run) -> list[Line]:
    found = [line for line in run.metrics if is_number(line.get("time"))]
    if not found:
        raise ArgumentError(
            "--x time: expected metrics with the time of each line",
            f"{run.folder / 'metrics.jsonl'} without any",
            "take --x step",
        )
    return found


def _start(run: Run) -> float:
    return float(_timed(run)[0]["time"])


def _is_count(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and is_number(value) and value > 0


def steps_per_epoch(run: Run) -> float:
    """Return the steps of a pass over the run's training data.

    A job with train.steps fills every batch, the last one of a pass from the next; one
    of epochs has a short one there, as `fit` has.

    Raises ArgumentError if neither a checkpoint nor the job tells.
    """
    for path in reversed(saved_states(run.folder)):
        state = read_object(path).get("state")
        state = state if isinstance(state, dict) else {}
        samples, batch = state.get("samples"), state.get("global_batch")
        if _is_count(samples) and _is_count(batch):
            full = run.value("train", "steps") is not None
            return samples / batch if full else float(-(-samples // batch))
    steps, epochs = run.end.get("steps"), run.value("train", "epochs")
    whole = run.state == ENDED and "stopped" not in run.end
    if whole and _is_count(steps) and _is_count(epochs):
        return steps / epochs
    raise ArgumentError(
        "--x epoch: expected a run with a checkpoint, which tells the size of its data",
        f"{run.folder} without one",
        "take --x step, or --x time",
    )


# -- drawing --------------------------------------------------------------------------


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Return round numbers from ``low`` to ``high``: 1, 2 or 5 times a power of 10."""
    if not high > low:
        return [low]
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(n * power for n in (1, 2, 5, 10) if n * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Return powers of 10 between two numbers above 0, and if that are few also 2 and 5
    times them."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1,), (1, 3), (1, 2, 5)):
        found = [f * 10.0**p for p in powers for f in factors]
        found = [v for v in found if low * 0.999 <= v <= high * 1.001]
        if len(found) >= 3:
            return found[:: math.ceil(len(found) / 8)]
    return found if len(found) > 1 else ticks(low, high)


def brief(value: float) -> str:
    """Return a number with four digits that tell something: 0.05154, 12,345."""
    if abs(value) >= 10_000:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def label_of(value: float) -> str:
    """Return a tick's number: 20k, 1.5M."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= 10 * 1e3 and abs(value) >= size:
            return f"{value / size:.4g}{letter}"
    return f"{value:.4g}"


def thin(y: Sequence[float | None], most: int) -> list[int]:
    """Return places of about ``most`` values that draw the same curve: of each part the
    first, the least, the greatest and the last, and where a value is missing."""
    if len(y) <= most:
        return list(range(len(y)))
    parts, kept = max(1, most // 4), set[int]()
    for part in range(parts):
        first, last = part * len(y) // parts, (part + 1) * len(y) // parts
        places = range(first, last)
        known = [i for i in places if y[i] is not None]
        kept |= {first, last - 1}
        if known:
            kept |= {min(known, key=lambda i: y[i] or 0.0)}
            kept |= {max(known, key=lambda i: y[i] or 0.0)}
        if len(known) < len(places):
            kept.add(next(i for i in places if y[i] is None))
    return sorted(kept)


def output_folder(run: Run) -> Path:
    return run.folder / "plots"
