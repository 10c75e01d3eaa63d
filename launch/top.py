"""``fastserve top``: a view of a running job, over all of its ranks.

It only reads the run folder: status.json, which rank 0 writes every 2 seconds or so,
and metrics.jsonl. So it may run anywhere the folder is seen, and disturbs nothing.
"""

from __future__ import annotations

import os
import select
import shutil
import sys
import termios
import time
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from fastserve import formatting

from .runs import (
    ENDED,
    FAILED,
    RUNNING,
    STOPPED,
    MetricsReader,
    Run,
    is_number,
    read_run,
    series,
    values,
)

REFRESH = 1.0  # seconds
SILENT = 15.0  # seconds without a word from a running job that are worth one
_STEPS = 10  # of a job with long steps: so many steps without a word
_MARKED = 0.1  # of a step that the slowest rank takes longer than the median
_PARTS = ("compute", "communication", "waiting", "data")
_HEADS = ("compute", "comm.", "wait", "data")
# columns that a narrow window goes without, the least important first
_SPARED = ("memory", "comm.", "host", "compute", "step", "data")
_CODES = {"red": "31", "green": "32", "yellow": "33", "bold": "1", "dim": "2"}
_STATES = {RUNNING: "green", ENDED: "green", STOPPED: "yellow", FAILED: "red"}

Paint = Callable[[str, str], str]


@dataclass(frozen=True)
class _Rank:
    """A rank's line in status.json; what the file doesn't tell is None."""

    number: int
    host: str
    memory: float | None
    seconds: dict[str, float | None]

    @property
    def busy(self) -> float | None:
        """Seconds of a step in which the others may have to wait for this rank."""
        known = [self.seconds[part] for part in ("compute", "data")]
        return None if known[0] is None else sum(part or 0.0 for part in known)

    @property
    def step(self) -> float | None:
        known = [part for part in self.seconds.values() if part is not None]
        return sum(known) if known else None


def plain(words: str, style: str) -> str:
    return words


def coloured(words: str, style: str) -> str:
    return f"\x1b[{_CODES[style]}m{words}\x1b[0m"


def view(run: Run, width: int, height: int, now: float, paint: Paint = plain) -> str:
    """Return what is shown of a run: at most ``height`` lines of ``width`` columns."""
    head = [*_title(run, width, now, paint), *_progress(run, width, paint)]
    head += _curves(run, width)
    ranks = sorted(_ranks(run), key=lambda rank: rank.number)
    room = height - len(head) - 2
    lines = [
        *head,
        *(["", *_table(ranks, max(1, room), width, paint)] if ranks else []),
    ]
    return "\n".join(lines[:height])


def _title(run: Run, width: int, now: float, paint: Paint) -> Iterator[str]:
    ago = seen(run, now)
    told = "" if ago is None else f"last look {formatting.duration(ago)} ago"
    told = told if run.state == RUNNING else formatting.when(run.last_time, now)
    name = f"{run.name[: max(10, width - 45)]}  "
    state = run.state
    gap = " " * max(2, width - 1 - len(name) - len(state) - len(told))
    yield paint(name, "bold") + paint(state, _STATES.get(state, "dim")) + gap + told
    for remark, style in _remarks(run, ago):
        yield paint(remark[: width - 1], style)


def _remarks(run: Run, ago: float | None) -> Iterator[tuple[str, str]]:
    if run.state == RUNNING:
        if ago is not None and ago > patience(run):
            told = formatting.duration(ago)
            words = f"no word for {told}: it validates or saves, or hangs"
            yield words, "yellow"
        elif not run.status:
            yield "no status.json yet: it starts, or is of an older version", "dim"
    elif run.state == FAILED and run.errors:
        first = run.errors[0]
        line = (first.message.strip() or first.type).splitlines()[0]
        yield f"rank {first.rank} on {first.host}: {line}", "red"
    elif run.state == FAILED:
        yield "its processes are gone without a word: killed?", "red"


def seen(run: Run, now: float) -> float | None:
    """Return the seconds since the run told something; None if it never did."""
    return None if run.last_time is None else max(0.0, now - run.last_time)


def patience(run: Run) -> float:
    """Return after how many seconds without a word a running job may hang."""
    steps = [rank.step for rank in _ranks(run)]
    return max([SILENT, *(_STEPS * step for step in steps if step)])


def _progress(run: Run, width: int, paint: Paint) -> Iterator[str]:
    step, total = run.step, run.total_steps
    if step is None:
        yield "no steps yet"
        return
    loss = run.status.get("loss")
    loss = loss if is_number(loss) else run.last("loss")
    shown = "" if loss is None else f"loss {formatting.number(loss)}"
    left = run.status.get("seconds_left")
    left = left if run.state == RUNNING and is_number(left) else None
    name = f"step {step}/{total}" if total else f"step {step}"
    ends = "" if left is None else f"{formatting.duration(left)} left"
    for bar, rate in ((20, True), (10, True), (0, True), (0, False)):
        drawn = formatting.bar(step / total, bar) if total else ""
        share = f"{step / total:.0%}" if total else ""
        parts = [name, drawn, share, shown, "".join(_rate(run)) if rate else "", ends]
        line = "  ".join(filter(None, parts))
        if len(line) < width:
            break
    bold = paint(shown, "bold") if shown else ""
    yield line.replace(shown, bold) if len(line) < width else line[: width - 1]


def _rate(run: Run) -> list[str]:
    rate, unit = run.status.get("rate"), run.status.get("rate_unit")
    if is_number(rate):
        return [f"{formatting.count(rate)} {unit if isinstance(unit, str) else '/s'}"]
    for name, unit in (("tokens_per_s", "tokens/s"), ("samples_per_s", "samples/s")):
        found = run.last(name)
        if found is not None:
            return [f"{formatting.count(found)} {unit}"]
    return []


def _curves(run: Run, width: int) -> Iterator[str]:
    """Yield a line for the loss, and one for each of the first measures to validate."""
    names = [n for line in run.metrics for n in values(line) if n.startswith("val_")]
    names = list(dict.fromkeys(("loss", *names)))[:4]
    pad = max(len(name) for name in names)
    for name in names:
        steps, found = series(run.metrics, name)
        if not found:
            continue
        ends = f"{formatting.number(found[0])} to {formatting.number(found[-1])}"
        ends = ends if len(found) > 1 else formatting.number(found[0])
        if name == "val_loss":
            low = min(found)
            ends += f", best {formatting.number(low)} at {steps[found.index(low)]}"
        room = min(40, width - 1 - pad - 4 - len(ends))
        line = f"{name:{pad}}  {formatting.sparkline(found, max(room, 1))}  {ends}"
        yield line[: width - 1]


def _ranks(run: Run) -> list[_Rank]:
    listed = run.status.get("ranks")
    found = []
    for place, entry in enumerate(listed if isinstance(listed, list) else []):
        if not isinstance(entry, dict):
            continue
        times = entry.get("step_seconds")
        times = times if isinstance(times, dict) else {}
        number, memory = entry.get("rank"), entry.get("rss_mb")
        found.append(
            _Rank(
                number if isinstance(number, int) else place,
                str(entry.get("host") or "-"),
                memory if is_number(memory) else None,
                {part: _known(times.get(part)) for part in _PARTS},
            )
        )
    return found


def _known(value: Any) -> float | None:
    return value if is_number(value) else None


def _table(ranks: list[_Rank], room: int, width: int, paint: Paint) -> list[str]:
    """Return a line for each rank, where there is room for them; else for the slowest
    ones, and a last line for all."""
    slowest = _slowest(ranks)
    shown, rest = ranks, 0
    if len(ranks) > room:
        by_busy = sorted(ranks, key=lambda r: -(r.busy or 0.0))
        shown, rest = by_busy[: max(1, room - 1)], len(ranks) - max(1, room - 1)
    rows = [_row(rank, rank is slowest) for rank in shown]
    if rest:
        rows.append(_row_of_all(ranks, rest))
    lines = [line[: width - 1] for line in _fitting(rows, width - 1)]
    marked = [paint(line, "yellow") if "< s" in line else line for line in lines]
    return [paint(lines[0], "dim"), *marked[1:]]


def _fitting(rows: list[tuple[str, ...]], width: int) -> list[str]:
    """Return the table of ``rows`` without columns that ``width`` has no room for."""
    head = ("rank", "host", "memory", "step", *_HEADS, "")
    right = f"rank,memory,step,{','.join(_HEADS)}"
    for count in range(len(_SPARED) + 1):
        kept = [i for i, name in enumerate(head) if name not in _SPARED[:count]]
        names, *cells = [[row[i] for i in kept] for row in (head, *rows)]
        lines = formatting.table(names, cells, right).split("\n")
        if max(map(len, lines)) <= width:
            break
    return lines


def _column(seconds: float | None) -> str:
    """Columns that keep their widths don't jump from look to look."""
    return f"{formatting.short_time(seconds):>6}"


def _row(rank: _Rank, slowest: bool) -> tuple[str, ...]:
    return (
        str(rank.number),
        rank.host[:14],
        formatting.memory(rank.memory),
        _column(rank.step),
        *(_column(rank.seconds[part]) for part in _PARTS),
        "< slowest" if slowest else "",
    )


def _row_of_all(ranks: list[_Rank], rest: int) -> tuple[str, ...]:
    """Return the median of each column over all ranks."""

    def middle(found: list[float | None], show: Callable[[float | None], str]) -> str:
        known = [value for value in found if value is not None]
        return show(median(known) if known else None)

    parts = (
        middle([r.seconds[part] for r in ranks], formatting.short_time)
        for part in _PARTS
    )
    return (
        f"+{rest}",
        "",
        middle([r.memory for r in ranks], formatting.memory),
        middle([r.step for r in ranks], _column),
        *parts,
        "medians",
    )


def _slowest(ranks: list[_Rank]) -> _Rank | None:
    """Return the rank for which the others wait, if it costs a tenth of a step."""
    known = [rank for rank in ranks if rank.busy is not None]
    if len(known) < 2:
        return None
    last = max(known, key=lambda rank: rank.busy or 0.0)
    usual = median(rank.busy or 0.0 for rank in known if rank is not last)
    costs = (last.busy or 0.0) - usual
    return last if last.step and costs > _MARKED * last.step else None


# -- on the terminal -------------------------------------------------------------------


def watch(folder: Path, once: bool, colours: bool) -> None:
    """Show a run until it has ended, or ``q`` or Ctrl-C is pressed; or ``once``.

    What is shown last stays on the terminal. Raises CheckpointError for a folder that
    isn't a run's.
    """
    metrics, paint = MetricsReader(folder), coloured if colours else plain
    run = read_run(folder, metrics.read())
    if not once and sys.stdin.isatty():
        with _screen() as pressed:
            while run.state != ENDED:
                size = shutil.get_terminal_size()
                words = view(run, size.columns, size.lines - 1, time.time(), paint)
                _show(words, paint("q leaves", "dim"))
                if pressed(REFRESH):
                    break
                run = read_run(folder, metrics.read())
    size = shutil.get_terminal_size()
    height = 10**6 if once else size.lines
    _write(view(run, size.columns, height, time.time(), paint) + "\n")


def _show(words: str, foot: str) -> None:
    lines = "\x1b[K\n".join([*words.split("\n"), foot])
    _write(f"\x1b[H{lines}\x1b[K\x1b[J")


def _write(words: str) -> None:
    """Write, also letters that the terminal's encoding doesn't have."""
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.buffer.write(words.encode(encoding, errors="replace"))
    sys.stdout.buffer.flush()


@contextmanager
def _screen() -> Iterator[Callable[[float], bool]]:
    """Take the terminal, and give it back as it was, whatever happens.

    What is returned waits so many seconds; it says whether ``q`` or Ctrl-C came.
    """
    stdin = sys.stdin.fileno()
    before = termios.tcgetattr(stdin)

    def pressed(seconds: float) -> bool:
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            if select.select([stdin], [], [], left)[0]:
                keys = os.read(stdin, 64)
                if not keys or any(
                    key in keys for key in (b"q", b"Q", b"\x03", b"\x04")
                ):
                    return True
        return False

    try:
        tty.setcbreak(stdin)
        _write("\x1b[?1049h\x1b[?25l")  # the other screen, without a cursor
        yield pressed
    except KeyboardInterrupt:
        pass
    finally:
        _write("\x1b[?25h\x1b[?1049l")
        termios.tcsetattr(stdin, termios.TCSADRAIN, before)
