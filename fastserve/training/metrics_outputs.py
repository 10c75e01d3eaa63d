"""Where the lines of metrics.jsonl also go: a table, TensorBoard, who else watches.

metrics.jsonl is the truth. A run that goes on drops its lines of steps that will be
made again; then each output here is made anew from the lines that are left, so none of
them can hold a step twice, whatever a killed process has left.
"""

from __future__ import annotations

import csv
import io
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fastserve.errors import StateError
from fastserve.training import files

Line = dict[str, Any]  # step, then values (None: not finite), then time


class MetricsOutput:
    """Takes the lines of one run, on rank 0."""

    def begin(self, lines: Sequence[Line]) -> None:
        """Start, with the lines that the run has kept of its steps so far."""

    def write(self, line: Line) -> None:
        """Take one more line."""

    def close(self) -> None:
        """Be done; ``begin`` may follow."""


class CsvOutput(MetricsOutput):
    """metrics.csv: the columns step and time, and one for each name.

    A line has a cell for what it holds, ``nan`` for a number that isn't finite, and is
    empty elsewhere. A name that comes later (val_loss) gets the next column.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def begin(self, lines: Sequence[Line]) -> None:
        self._columns = _joined(["step", "time"], *lines)
        rows = [self._cells(line) for line in lines]
        files.write_atomically(self.path, _text([self._columns, *rows]))

    def write(self, line: Line) -> None:
        columns = _joined(self._columns, line)
        if len(columns) > len(self._columns):
            self._widen(columns)
        with files.writing(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(_text([self._cells(line)]))

    def _widen(self, columns: list[str]) -> None:
        """Put the new names into the header, and empty cells below them."""
        with files.writing(self.path), self.path.open(encoding="utf-8") as file:
            rows = list(csv.reader(file))[1:]
        empty = [""] * (len(columns) - len(self._columns))
        self._columns = columns
        text = _text([columns, *(row + empty for row in rows)])
        files.write_atomically(self.path, text)

    def _cells(self, line: Line) -> list[Any]:
        cells = [line.get(name, "") for name in self._columns]
        return ["nan" if cell is None else cell for cell in cells]


def _joined(columns: Sequence[str], *lines: Line) -> list[str]:
    """Return the columns and the names of the lines that are new, in their order."""
    return list(dict.fromkeys((*columns, *(name for line in lines for name in line))))


def _text(rows: Sequence[Sequence[Any]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


class TensorBoardOutput(MetricsOutput):
    """Event files of TensorBoard, in the folders train and validation of ``folder``.

    The tags are the names of metrics.jsonl, without ``val_``, so loss and val_loss are
    two curves of one picture; steps and times are those of the lines.

    Raises StateError without tensorboardX.
    """

    def __init__(self, folder: Path) -> None:
        try:
            import tensorboardX  # noqa: F401  found now, not after the first steps
        except ImportError as error:
            raise StateError(
                "train.tensorboard: expected the library tensorboardX",
                str(error),
                "pip install 'fastserve-train[tensorboard]'",
            ) from None
        self.folder = folder
        self._writers: dict[str, Any] = {}

    def begin(self, lines: Sequence[Line]) -> None:
        with files.writing(self.folder):
            files.clear(self.folder)
            for line in lines:
                self._add(line)
        self._flush()

    def write(self, line: Line) -> None:
        with files.writing(self.folder):
            self._add(line)
        self._flush()

    def _add(self, line: Line) -> None:
        for name, value in line.items():
            if name in ("step", "time") or isinstance(value, str):
                continue
            part = "validation" if name.startswith("val_") else "train"
            number = math.nan if value is None else float(value)
            self._writer(part).add_scalar(
                name.removeprefix("val_"),
                number,
                line["step"],
                walltime=line.get("time") or time.time(),
            )

    def _writer(self, part: str) -> Any:
        if part not in self._writers:
            from tensorboardX import SummaryWriter

            # A TensorBoard that is open still has what an earlier attempt wrote: from
            # the step of this mark on it forgets that.
            self._writers[part] = SummaryWriter(str(self.folder / part), purge_step=0)
        return self._writers[part]

    def _flush(self) -> None:
        for writer in self._writers.values():
            writer.flush()

    def close(self) -> None:
        for writer in self._writers.values():
            writer.close()
        self._writers = {}


class EventOutput(MetricsOutput):
    """Hands each line on as an event, 'step' or 'validation'."""

    def __init__(self, event: Callable[[str, Line], None]) -> None:
        self._event = event

    def write(self, line: Line) -> None:
        validation = any(name.startswith("val_") for name in line)
        self._event("validation" if validation else "step", line)
