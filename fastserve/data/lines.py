"""Text files of records, CSV or JSON Lines: read in order, and by number.

Only the place of each record is kept, 8 bytes for one, so a file may be larger than the
memory. Whatever a file holds, a line of it takes at most ``LONGEST`` bytes.
"""

from __future__ import annotations

import csv
import io
import json
import os
import weakref
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from fastserve.errors import DataError

LONGEST = 1 << 24  # bytes of a line, and of a record
_DEEPEST = "nested too deeply"


class Record(NamedTuple):
    """One record: where it starts in the file, its line, and what it holds.

    ``fields`` is a list of texts for CSV, and a JSON object for JSON Lines.
    """

    start: int
    line: int
    fields: Any


class Lines:
    """The lines of a file, decoded, with the place where the next one starts."""

    def __init__(self, path: Path, encoding: str) -> None:
        self.path, self.encoding = path, encoding
        self.place = self.line = 0

    def __iter__(self) -> Iterator[str]:
        try:
            with self.path.open("rb") as file:
                while data := file.readline(LONGEST + 1):
                    self.line += 1
                    if len(data) > LONGEST:
                        raise fault(
                            self.path,
                            self.line,
                            f"a line of at most {LONGEST >> 20} MiB",
                            "a longer one",
                            "is it text with line ends?",
                        )
                    self.place += len(data)
                    yield self._decode(data)
        except OSError as error:
            raise DataError(
                "expected a file that can be read",
                f"{self.path}: {error.strerror or error}",
                "check its path and its permissions",
            ) from None

    def _decode(self, data: bytes) -> str:
        try:
            text = data.decode(self.encoding)
        except UnicodeDecodeError as error:
            raise wrong_encoding(self.path, self.line, error) from None
        return text.removeprefix("\ufeff") if self.line == 1 else text


def wrong_encoding(path: Path, line: int, error: UnicodeDecodeError) -> DataError:
    return fault(
        path,
        line,
        f"text in {error.encoding}",
        f"byte 0x{error.object[error.start]:02x}: {error.reason}",
        "convert the file (iconv), or say its encoding: data.encoding",
    )


def fault(path: Path, line: int, expected: str, received: str, todo: str) -> DataError:
    """Return the error of a line of a file."""
    return DataError(f"{path}, line {line}: expected {expected}", received, todo)


def read_csv(path: Path, encoding: str, delimiter: str) -> Iterator[Record]:
    """Yield the records of a CSV file, blank lines left out, the header first.

    A field in double quotes may hold delimiters and line ends. Raises DataError for
    what can't be read as CSV.
    """
    lines = Lines(path, encoding)
    reader = csv.reader(iter(lines), delimiter=delimiter, strict=True)
    while True:
        start, line = lines.place, lines.line + 1
        try:
            fields = next(reader, None)
        except csv.Error as error:
            raise fault(
                path,
                line,
                "fields of CSV, of at most 131,072 characters",
                str(error),
                "check the quotes, and data.delimiter",
            ) from None
        if fields is None:
            return
        if fields:
            yield Record(start, line, fields)


def csv_fields(text: str, delimiter: str) -> list[str]:
    """Return the fields of one record that ``read_csv`` has found.

    Lines end with LF alone there, so not at the other line ends of Unicode here.
    """
    lines = io.StringIO(text, newline="\n")
    return next(csv.reader(lines, delimiter=delimiter), [])


def read_jsonl(path: Path, encoding: str) -> Iterator[Record]:
    """Yield the objects of a JSON Lines file; blank lines are left out."""
    lines = Lines(path, encoding)
    start = 0
    for text in lines:
        if not text.isspace():
            yield Record(start, lines.line, parse_json(path, lines.line, text))
        start = lines.place


def parse_json(path: Path, line: int, text: str) -> dict[str, Any]:
    """Return the JSON object of a line."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        reason = _DEEPEST if isinstance(error, RecursionError) else str(error)
        raise fault(
            path, line, "a JSON object", reason, "write one object a line"
        ) from None
    if not isinstance(value, dict):
        raise fault(
            path, line, "a JSON object", type(value).__name__, "write {...} a line"
        )
    return value


class ByNumber:
    """Reads pieces of a file by their number; safe in several threads.

    Args:
        starts: where each piece starts. end: where the last one ends.
    """

    def __init__(self, path: Path, starts: array[int], end: int) -> None:
        self.path, self._starts, self._end = path, starts, end
        self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        weakref.finalize(self, os.close, self._file)

    def __len__(self) -> int:
        return len(self._starts)

    def read(self, number: int) -> bytes:
        start = self._starts[number]
        last = number + 1 == len(self._starts)
        end = self._end if last else self._starts[number + 1]
        data = os.pread(self._file, min(end - start, LONGEST), start)
        if len(data) < min(end - start, LONGEST):
            raise DataError(
                "expected a file that stays as it is during training",
                f"{self.path} has become shorter",
                "start again, and don't change the data meanwhile",
            )
        return data

    def line(self, number: int) -> int:
        """Return the line on which a piece starts, for errors: it reads up to there."""
        lines, place = 1, 0
        while place < self._starts[number]:
            size = min(1 << 20, self._starts[number] - place)
            data = os.pread(self._file, size, place)
            if not data:
                break
            lines += data.count(b"\n")
            place += len(data)
        return lines
