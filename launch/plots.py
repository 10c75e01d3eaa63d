"""``fastserve plot``: curves of one or several runs as pictures, with matplotlib."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastserve.errors import ArgumentError, LaunchError

from . import curves
from .curves import Axis, Curve, Panel
from .output_file import replacing
from .runs import Run

ENDINGS = (".png", ".svg", ".pdf")
COMPARISON = Path("comparison.png")
# Okabe and Ito's colours, which people who see fewer colours can tell apart, too
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#555555")
_FEW = 40  # points of a validation that are marked each
_STYLE = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "figure.dpi": 120,
    "svg.hashsalt": "fastserve",  # the same curves make the same file
}


def plot(
    runs: Sequence[Run],
    output: Path | None = None,
    only: Sequence[str] = (),
    axis: Axis = "step",
    log: bool = False,
    smooth: int | None = None,
) -> list[Path]:
    """Draw the curves of runs; return the files that were written.

    One run without ``output`` and ``only`` makes plots/loss.png, metrics.png and
    rate.png in its folder, those that it has values for; with ``only`` one file there.
    Several runs make one file.

    Args:
        log: logarithmic y axes, where all values are above 0.

    Raises:
        LaunchError: matplotlib isn't installed.
        ArgumentError: an output of another ending than .png, .svg, .pdf.
        CheckpointError: no metrics, or a file that can't be written.
    """
    if output is not None and output.suffix.lower() not in ENDINGS:
        raise ArgumentError(
            f"--output: expected a file that ends in {', '.join(ENDINGS)}",
            str(output),
            "change its name",
        )
    panels, label = curves.panels(runs, axis, smooth, only)
    pictures: dict[Path, list[Panel]] = {}
    if output is not None or len(runs) > 1:
        pictures[output or COMPARISON] = panels
    elif only:
        pictures[curves.output_folder(runs[0]) / f"{'-'.join(only)}.png"] = panels
    else:
        for panel in panels:
            path = curves.output_folder(runs[0]) / f"{panel.group}.png"
            pictures.setdefault(path, []).append(panel)
    pyplot = _matplotlib()
    for path, shown in pictures.items():
        _draw(pyplot, path, shown, runs, label, log)
    return list(pictures)


def _matplotlib() -> Any:
    try:
        import matplotlib
    except ImportError:
        raise LaunchError(
            "fastserve plot: expected matplotlib, which draws the curves",
            "an environment without it",
            "pip install 'fastserve-train[plot]'; fastserve report needs nothing more",
        ) from None
    matplotlib.use("Agg")  # it needs no display
    from matplotlib import pyplot

    return pyplot


def _draw(
    pyplot: Any,
    path: Path,
    panels: Sequence[Panel],
    runs: Sequence[Run],
    label: str,
    log: bool,
) -> None:
    columns = 1 if len(panels) == 1 else 2
    rows = math.ceil(len(panels) / columns)
    size = (8.0, 4.5) if columns == 1 else (11.0, 3.4 * rows + 0.5)
    with pyplot.rc_context(_STYLE):
        figure, all_axes = pyplot.subplots(
            rows, columns, figsize=size, squeeze=False, layout="constrained"
        )
        for axes, panel in zip(all_axes.flat, panels, strict=False):
            _panel(axes, panel, len(runs), log)
            axes.set_xlabel(label)
        for axes in all_axes.flat[len(panels) :]:
            axes.set_visible(False)
        names = curves.labels(runs)
        if len(runs) == 1:
            figure.suptitle(_plain(names[0]), fontweight="bold")
        else:
            _legend_of_runs(figure, names)
        try:
            _save(figure, path)
        finally:
            pyplot.close(figure)


def _panel(axes: Any, panel: Panel, runs: int, log: bool) -> None:
    for curve in panel.curves:
        colour = COLOURS[(curve.run if runs > 1 else curve.validates) % len(COLOURS)]
        _curve(axes, curve, colour, runs > 1)
    axes.set_ylabel(_plain(panel.label))
    axes.margins(x=0.02)
    if log and panel.positive:
        axes.set_yscale("log")
        axes.minorticks_off()
        axes.set_yticks(curves.log_ticks(*axes.get_ylim()))
    elif panel.name in curves.RATES:
        axes.set_ylim(bottom=0)
    for one in (axes.xaxis, axes.yaxis):  # 20k rather than 2 with 1e4 at the end
        one.set_major_formatter(lambda value, _: curves.label_of(value))
    if runs == 1 and (len(panel.curves) > 1 or panel.curves[0].validates):
        axes.legend()


def _curve(axes: Any, curve: Curve, colour: str, several: bool) -> None:
    y = [math.nan if v is None else v for v in curve.y]
    if not curve.validates:
        name = "training"
        if curve.smoothed:
            axes.plot(curve.x, y, color=colour, linewidth=0.8, alpha=0.35)
            y = [math.nan if v is None else v for v in curve.smoothed]
            name = "training, smoothed"
        lonely = {"marker": "o", "markersize": 3} if len(y) == 1 else {}
        axes.plot(curve.x, y, color=colour, linewidth=1.6, label=name, **lonely)
        return
    # of several runs the curves shall differ in nothing that the legend doesn't tell
    few = len(y) <= (1 if several else _FEW)
    axes.plot(
        curve.x,
        y,
        color=colour,
        linewidth=1.4,
        linestyle="--" if several else "-",
        marker="o" if few else None,
        markersize=4,
        label="validation",
    )
    if curve.best is not None:
        value = curve.y[curve.best]
        assert value is not None
        axes.plot(
            *([curve.x[curve.best]], [value]),
            color=colour,
            marker="*",
            markersize=13,
            markeredgecolor="black",
            markeredgewidth=0.7,
            linestyle="none",
            zorder=5,
            label=f"best {curves.brief(value)} at step {curve.steps[curve.best]:,}",
        )


def _legend_of_runs(figure: Any, names: Sequence[str]) -> None:
    """Below the panels: a line for each run, and what solid, dashed and stars are."""
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color=COLOURS[i % len(COLOURS)], linewidth=2, label=_plain(name))
        for i, name in enumerate(names)
    ]
    grey: dict[str, Any] = {"color": "#777777"}
    handles += [
        Line2D([], [], label="training", **grey),
        Line2D([], [], label="validation", linestyle="--", **grey),
        Line2D([], [], label="best", marker="*", linestyle="none", **grey),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=4)


def _plain(text: str) -> str:
    """Return a text that matplotlib shows as it is: $ begins a formula for it, and a
    legend leaves out what begins with _."""
    shown = text.replace("$", r"\$")
    return f" {shown}" if shown.startswith("_") else shown


def _save(figure: Any, path: Path) -> None:
    with replacing(path, "picture") as part:
        figure.savefig(part)
