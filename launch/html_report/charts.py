"""Curves as SVG, and what the page's program needs to show values at the pointer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from .. import curves
from ..curves import Curve, Panel
from .markup import Html, data, element, join

WIDTH, HEIGHT = 460, 270
LEFT, RIGHT, TOP, BOTTOM = 50, 12, 10, 38
POINTS = 600  # of a curve, at most about so many are drawn
COLOURS = 7  # classes c0 to c6 of the style sheet
_FEW = 40  # points of a validation that are marked each
_LOG_RATIO = 5  # from the least to the greatest: a logarithmic axis shows more


class _Scale:
    """From values to places in the picture."""

    def __init__(self, x: tuple[float, float], y: tuple[float, float], log: bool):
        self.x_range, self.y_range, self.log = x, y, log

    def x(self, value: float) -> float:
        low, high = self.x_range
        return LEFT + (WIDTH - LEFT - RIGHT) * (value - low) / (high - low)

    def y(self, value: float) -> float:
        low, high = self.y_range
        if self.log:
            value, low, high = math.log(value), math.log(low), math.log(high)
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (value - low) / (high - low)


def figure(panel: Panel, unit: str, several: bool) -> Html:
    """Return a panel as a figure: caption, picture, legend, values for the program.

    Args:
        unit: label of the x axis. several: the curves are of several runs.
    """
    values = [v for c in panel.curves for v in c.y if v is not None]
    places = [x for c in panel.curves for x in c.x]
    first, last = min(places), max(places)
    x = _widened(0.0 if 0 <= first < 0.2 * last else first, last, 0.0)
    least, most = min(values), max(values)
    low = 0.0 if panel.name in curves.RATES else None
    scales = [_Scale(x, _linear(least, most, low), False)]
    if panel.positive and most > _LOG_RATIO * least:
        scales.append(_Scale(x, (least / 1.1, most * 1.1), True))
    drawn = [_picture(panel, scale, unit, several) for scale in scales]
    shown = [_series(curve, several) for curve in panel.curves]
    told = {
        "left": LEFT,
        "right": WIDTH - RIGHT,
        "top": TOP,
        "bottom": HEIGHT - BOTTOM,
        "x": list(x),
        "unit": unit,
        "views": [{"y": list(s.y_range), "log": s.log} for s in scales],
        "series": shown,
    }
    switch = element("button", "log", type="button", class_="log", aria_pressed="false")
    caption = element(
        "figcaption",
        element("span", panel.label),
        switch if len(scales) > 1 else None,
    )
    key = None if several else _legend(panel)
    box = element("div", *drawn, class_="plot")
    return element("figure", caption, box, key, data(told, "values"), class_="chart")


def _linear(least: float, most: float, low: float | None) -> tuple[float, float]:
    first, last = _widened(least, most, 0.05)
    if low is not None:
        return low, max(last, low + 1e-12)
    return (0.0 if least >= 0 > first else first), last


def _widened(low: float, high: float, share: float) -> tuple[float, float]:
    if high > low:
        return low - share * (high - low), high + share * (high - low)
    around = abs(low) * 0.1 or 1.0
    return low - around, high + around


def _picture(panel: Panel, scale: _Scale, unit: str, several: bool) -> Html:
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
    parts: list[Html] = []
    make = curves.log_ticks if scale.log else curves.ticks
    for value in make(*scale.y_range):
        y = scale.y(value)
        parts += [
            element("line", class_="grid", x1=LEFT, x2=right, y1=_n(y), y2=_n(y)),
            _text(curves.label_of(value), LEFT - 6, y, "end", dy="0.35em"),
        ]
    for value in curves.ticks(*scale.x_range, 6):
        x = scale.x(value)
        parts.append(_text(curves.label_of(value), x, bottom + 15, "middle"))
        parts.append(
            element("line", class_="axis", x1=_n(x), x2=_n(x), y1=bottom, y2=bottom + 4)
        )
    parts.append(
        element("line", class_="axis", x1=LEFT, x2=right, y1=bottom, y2=bottom)
    )
    parts.append(_text(unit, (LEFT + right) / 2, HEIGHT - 5, "middle"))
    parts += [_curve(curve, scale, several) for curve in panel.curves]
    parts += [_best(curve, scale, several) for curve in panel.curves]
    parts.append(element("line", class_="cursor", y1=TOP, y2=bottom, x1=0, x2=0))
    count = len(panel.curves)
    parts += [element("circle", class_="dot", r=4) for _ in range(count)]
    name = f"{panel.title} over {unit}" + (", logarithmic" if scale.log else "")
    return element(
        "svg",
        *parts,
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        role="img",
        aria_label=name,
        tabindex="0",
        class_="away" if scale.log else None,
    )


def _colour(curve: Curve, several: bool) -> str:
    return f"c{(curve.run if several else int(curve.validates)) % COLOURS}"


def _curve(curve: Curve, scale: _Scale, several: bool) -> Html:
    colour = _colour(curve, several)
    parts = []
    if curve.smoothed:
        parts.append(_path(curve, curve.y, scale, f"raw {colour}"))
    kind = "line dashed" if several and curve.validates else "line"
    parts.append(_path(curve, curve.smoothed or curve.y, scale, f"{kind} {colour}"))
    known = [(x, y) for x, y in zip(curve.x, curve.y, strict=True) if y is not None]
    # of several runs the curves shall differ in nothing that the legend doesn't tell
    few = len(known) <= (1 if several else _FEW)
    if len(known) == 1 or (curve.validates and few):
        for x, y in known:
            place = {"cx": _n(scale.x(x)), "cy": _n(scale.y(y))}
            parts.append(element("circle", class_=f"mark {colour}", r=2.5, **place))
    return join(parts)


def _path(curve: Curve, y: Sequence[float | None], scale: _Scale, class_: str) -> Html:
    words, begun = [], False
    for i in curves.thin(y, POINTS):
        value = y[i]
        if value is None:
            begun = False
            continue
        place = f"{_n(scale.x(curve.x[i]))},{_n(scale.y(value))}"
        words.append(f"{'L' if begun else 'M'}{place}")
        begun = True
    return element("path", class_=class_, d="".join(words))


def _best(curve: Curve, scale: _Scale, several: bool) -> Html:
    value = None if curve.best is None else curve.y[curve.best]
    if curve.best is None or value is None:
        return Html("")
    x, y = scale.x(curve.x[curve.best]), scale.y(value)
    star = "M0-7 1.7-2.3 6.7-2.2 2.7.9 4.1 5.7 0 2.9-4.1 5.7-2.7.9-6.7-2.2-1.7-2.3z"
    return element(
        "path",
        class_=f"best {_colour(curve, several)}",
        d=star,
        transform=f"translate({_n(x)} {_n(y)})",
    )


def _series(curve: Curve, several: bool) -> dict[str, Any]:
    """Return the points of a curve under their names."""
    places = [i for i in curves.thin(curve.y, POINTS) if curve.y[i] is not None]
    kind = "validation" if curve.validates else "training"
    return {
        "name": f"{curve.label}, {kind}" if several else kind,
        "colour": _colour(curve, several),
        "x": [_short(curve.x[i]) for i in places],
        "y": [_short(curve.y[i]) for i in places],
    }


def _short(value: float | None) -> float:
    return float(f"{value:.6g}")


def _legend(panel: Panel) -> Html:
    """Return what the curves of one run are."""
    parts = []
    for curve in panel.curves:
        kind = "validation" if curve.validates else "training"
        more = ", smoothed" if curve.smoothed else ""
        parts.append(swatch(_colour(curve, False), kind + more))
        if curve.best is not None and (value := curve.y[curve.best]) is not None:
            step = curve.steps[curve.best]
            text = f"★ best {curves.brief(value)} at step {step:,}"
            parts.append(element("span", text))
    return element("div", *parts, class_="legend")


def swatch(colour: str, text: str, kind: str = "") -> Html:
    """Return a line of a colour and what it stands for."""
    return element("span", element("i", class_=f"swatch {colour} {kind}"), text)


def legend_of_runs(names: Sequence[str]) -> Html:
    runs = [swatch(f"c{i % COLOURS}", name) for i, name in enumerate(names)]
    kinds = [
        swatch("grey", "training"),
        swatch("grey", "validation", "dashed"),
        element("span", "★ best"),
    ]
    return element("div", *runs, *kinds, class_="legend runs")


def _text(text: str, x: float, y: float, anchor: str, **more: Any) -> Html:
    return element("text", text, x=_n(x), y=_n(y), text_anchor=anchor, **more)


def _n(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")
