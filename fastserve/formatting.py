"""Numbers, times, tables and curves as text for a terminal."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from itertools import pairwise

_BARS = "▁▂▃▄▅▆▇█"


def number(value: float | None) -> str:
    """Return a value as people read it: four digits; ``-`` for none."""
    if value is None:
        return "-"
    if value != 0 and (abs(value) < 1e-3 or abs(value) >= 1e5):
        return f"{value:.2e}"
    return f"{value:.4f}" if abs(value) < 100 else f"{value:.1f}"


def count(value: float | None) -> str:
    """Return 1234567 as 1.23M."""
    if value is None:
        return "-"
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= limit:
            return f"{value / limit:.3g}{unit}"
    return f"{value:.3g}"


def duration(seconds: float | None) -> str:
    """Return 75 as 1:15, and from an hour on 1:00:15; above two days 2d 03h."""
    if seconds is None:
        return "-"
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    if hours >= 48:
        return f"{hours // 24}d {hours % 24:02}h"
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def short_time(seconds: float | None) -> str:
    """Return the time of a step in two or three digits: 0.0123 as 12 ms."""
    if seconds is None:
        return "-"
    value, unit = (seconds, "s") if seconds >= 0.9995 else (seconds * 1e3, "ms")
    return f"{value:.1f} {unit}" if 0.05 <= value < 9.95 else f"{value:.0f} {unit}"


def precise_time(seconds: float) -> str:
    """Return a time with the digits of a measurement: 0.01234 as 12.3 ms."""
    if seconds >= 1:
        return f"{seconds:.2f} s"
    return f"{seconds * 1e3:.3g} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.3g} us"


def memory(megabytes: float | None) -> str:
    if megabytes is None:
        return "-"
    if megabytes >= 1e3:
        return f"{megabytes / 1e3:.3g} GB"
    return f"{megabytes:.0f} MB"


def when(at: float | None, now: float | None = None) -> str:
    """Return a unix time as how long ago it was; of older days the date."""
    if at is None:
        return "-"
    ago = (time.time() if now is None else now) - at
    for limit, size, unit in ((90, 1, "s"), (5400, 60, "min"), (36 * 3600, 3600, "h")):
        if ago < limit:
            return f"{max(0, round(ago / size))} {unit} ago"
    return date(at, "%Y-%m-%d")


def date(at: float, form: str = "%Y-%m-%d %H:%M") -> str:
    """Return a unix time as a date; ``-`` for one that no calendar has."""
    try:
        return time.strftime(form, time.localtime(at))
    except (OverflowError, ValueError, OSError):
        return "-"


def bar(share: float, width: int) -> str:
    filled = round(width * min(max(share, 0.0), 1.0))
    return "━" * filled + "╺" * (width - filled)


def sparkline(values: Sequence[float], width: int) -> str:
    """Return the values as a row of at most ``width`` bars, each a mean of its part."""
    finite = [value for value in values if math.isfinite(value)]
    width = min(width, len(finite))
    if width < 1:
        return ""
    edges = [round(i * len(finite) / width) for i in range(width + 1)]
    means = [sum(finite[a:b]) / (b - a) for a, b in pairwise(edges)]
    low, high = min(means), max(means)
    span, top = (high - low) or 1.0, len(_BARS) - 1
    return "".join(_BARS[round((mean - low) / span * top)] for mean in means)


def table(head: Sequence[str], rows: Sequence[Sequence[str]], right: str = "") -> str:
    """Return aligned columns; those whose heads are in ``right`` at their right."""
    cells = [list(head), *(list(row) for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    sides = [">" if name in right.split(",") else "<" for name in head]
    return "\n".join(
        "  ".join(
            f"{cell:{side}{width}}"
            for cell, side, width in zip(row, sides, widths, strict=True)
        ).rstrip()
        for row in cells
    )
