"""Tables: CSV files with headers, or JSON Lines, as samples of numbers.

A file is read twice in order, first for the places of its records, the kinds of its
columns and its targets, then for the statistics of the training part alone. After that
records are read by number. Kept are 24 bytes for each record.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fastserve.core import Array
from fastserve.data.columns import (
    CATEGORIES,
    BadValue,
    Column,
    Columns,
    Statistics,
    number,
    text,
)
from fastserve.data.examples import Examples
from fastserve.data.lines import (
    ByNumber,
    Record,
    csv_fields,
    fault,
    parse_json,
    read_csv,
    read_jsonl,
    wrong_encoding,
)
from fastserve.data.preprocessing import Preprocessing
from fastserve.data.sources import Batch
from fastserve.data.splits import digest
from fastserve.data.targets import Classes, Values
from fastserve.errors import DataError, nearest

MOSTLY = 0.9  # numbers in a column whose other values are taken for mistakes


@dataclass(frozen=True)
class Options:
    """How a table is read; the names are those of the job's keys.

    Attributes:
        target: the column to predict. task: 'classification' or 'regression'.
        features: input columns; None: all others.
        categorical: columns that hold categories though they look like numbers.
        missing: 'refuse', 'drop' the record, or 'fill' with mean or no category.
    """

    target: str
    task: str
    features: Sequence[str] | None = None
    categorical: Sequence[str] = ()
    categories: str = "one_hot"
    missing: str = "refuse"
    missing_values: Sequence[str] = ("", "NA", "NaN", "nan", "null")
    standardize: bool = True
    delimiter: str = ","
    encoding: str = "utf-8"


class Reader:
    """Reads a table's records in order: (place, line, fields of the wanted columns)."""

    def __init__(self, path: Path, options: Options, target: bool = True) -> None:
        self.path, self.options = path, options
        self.json = path.suffix == ".jsonl"
        self.target = target  # whether records have one
        self.names: list[str] = []  # of all columns of a CSV file

    def __iter__(self) -> Iterator[Record]:
        o = self.options
        if self.json:
            yield from read_jsonl(self.path, o.encoding)
            return
        records = read_csv(self.path, o.encoding, o.delimiter)
        header = next(records, None)
        if header is None:
            raise _empty(self.path)
        self.names = [name.strip() for name in header.fields]
        self._check_header(header.line)
        for record in records:
            yield record._replace(fields=self._named(record.line, record.fields))

    def _check_header(self, line: int) -> None:
        twice = {name for name in self.names if self.names.count(name) > 1}
        if twice or "" in self.names:
            raise fault(
                self.path,
                line,
                "a header of column names, each once",
                f"{sorted(twice)[0]!r} twice" if twice else "a column without a name",
                "write the names of the columns on the first line",
            )
        o = self.options
        wanted = [*(o.features or ()), *o.categorical]
        for name in [*([o.target] if self.target else []), *wanted]:
            if name not in self.names:
                raise no_column(self.path, name, self.names)

    def _named(self, line: int, fields: list[str]) -> dict[str, str]:
        if len(fields) != len(self.names):
            raise fault(
                self.path,
                line,
                f"{len(self.names)} fields, as in the header",
                f"{len(fields)}",
                "put quotes around fields with a delimiter, or set data.delimiter",
            )
        return dict(zip(self.names, fields, strict=True))

    def parse(self, data: bytes, line: int) -> dict[str, Any]:
        """Return the fields of one record that was read by its number."""
        try:
            content = data.decode(self.options.encoding)
        except UnicodeDecodeError as error:
            raise wrong_encoding(self.path, line, error) from None
        if self.json:
            return parse_json(self.path, line, content)
        return self._named(line, csv_fields(content, self.options.delimiter))


def no_column(path: Path, name: str, known: Sequence[str]) -> DataError:
    near = nearest(name, known)
    return DataError(
        f"{path}: expected a column {name!r}",
        f"{', '.join(known)}",
        f"did you mean {near!r}?"
        if near
        else "change the job's data section, or the header of the file",
    )


def _empty(path: Path) -> DataError:
    return DataError(
        f"{path}: expected a table of two or more records",
        "none",
        "check that it is the right file",
    )


@dataclass
class _Seen:
    """What the first pass finds of a column."""

    size: int = 1
    numbers: int = 0
    others: int = 0
    first_other: tuple[int, Any] = (0, None)  # line, value
    nested: tuple[int, Any] = (0, None)  # of what is neither
    categories: set[str] = field(default_factory=set)

    def add(self, value: Any, line: int) -> None:
        items = value if isinstance(value, list) else [value]
        if all(number(item) is not None for item in items) and items:
            self.numbers += 1
            self.size = max(self.size, len(items))
        else:
            self.others += 1
            if self.others == 1:
                self.first_other = line, value
        if isinstance(value, list | dict):
            if self.others and not self.nested[0]:
                self.nested = line, value
        elif len(self.categories) <= CATEGORIES:
            self.categories.add(text(value))


class Table(Examples):
    """The records of a CSV or JSON Lines file.

    Args:
        kept: of a run that goes on; else ``fit`` finds columns and target.

    Attributes:
        dropped: records that were left out because a value is missing.
    """

    def __init__(
        self, path: Path, options: Options, kept: Preprocessing | None = None
    ) -> None:
        self.path, self.options = path, options
        self.reader = Reader(path, options)
        self.seen: dict[str, _Seen] = {}
        self.dropped = 0
        self._starts: array[int] = array("q")
        self._digests = bytearray()
        columns = kept.input if kept and isinstance(kept.input, Columns) else None
        labels = self._scan(columns)
        if not self._starts:
            raise _empty(path)
        self._records = ByNumber(path, self._starts, path.stat().st_size)
        self.samples = len(self._starts)
        target = kept.target if kept else None
        if options.task == "regression":
            self.targets: Array = np.array(labels, np.float64)
            target = target or Values(options.target)
        else:
            target = target or Classes.of(labels, path)
            assert isinstance(target, Classes)  # the task is the run's
            self.targets = self._numbers(target, labels)
        self.preprocessing = Preprocessing(columns or self._columns(), target)

    @property
    def notes(self) -> list[str]:
        text = f"{self.dropped:,} records left out, as a value is missing"
        return [text] if self.dropped else []

    # -- first pass: places, kinds, targets ------------------------------------------

    def _scan(self, columns: Columns | None) -> list[Any]:
        o, labels = self.options, []
        known: dict[Any, Any] = {}  # one object for equal labels
        wanted = [c.name for c in columns.columns] if columns else None
        missing = frozenset(o.missing_values)
        for record in self.reader:
            fields = record.fields
            if o.target not in fields:
                raise no_column(self._at(record), o.target, list(fields))
            names = wanted or o.features or [n for n in fields if n != o.target]
            values = [fields.get(name) for name in names]
            empty = [
                n for n, v in zip(names, values, strict=True) if _absent(v, missing)
            ]
            if _absent(fields[o.target], missing):
                empty.append(o.target)
            if empty and (o.missing == "drop" or empty[-1] == o.target):
                if o.missing != "drop":
                    raise self._missing(record, o.target, fields[o.target])
                self.dropped += 1
                continue
            if empty and o.missing == "refuse":
                raise self._missing(record, empty[0], fields.get(empty[0]))
            for name, value in zip(names, values, strict=True):
                if not _absent(value, missing):
                    self.seen.setdefault(name, _Seen()).add(value, record.line)
            self._starts.append(record.start)
            self._digests += digest(repr(values).encode(errors="replace"))
            label = self._target(record)
            labels.append(known.setdefault(label, label))
        return labels

    def _target(self, record: Record) -> Any:
        value = record.fields[self.options.target]
        if self.options.task == "classification":
            if isinstance(value, list | dict):
                raise self._no_target(record, "a text or a number", value)
            return text(value)
        found = number(value)
        if found is None:
            raise self._no_target(record, "a finite number", value)
        return found

    def _no_target(self, record: Record, what: str, value: Any) -> DataError:
        return fault(
            self.path,
            record.line,
            f"{what} in the target {self.options.target!r}",
            f"{value!r:.60}",
            "correct it, or change data.target or data.task",
        )

    def _missing(self, record: Record, name: str, value: Any) -> DataError:
        return fault(
            self.path,
            record.line,
            f"a value in column {name!r}",
            f"{value!r}, which stands for a missing one",
            "set data.missing to drop such records, or to fill (mean, or no category); "
            "data.missing_values says what is missing",
        )

    def _at(self, record: Record) -> Path:
        return Path(f"{self.path}, line {record.line}")

    def _numbers(self, classes: Classes, labels: list[str]) -> Array:
        found = np.empty(len(labels), np.int64)
        for i, label in enumerate(labels):
            place = classes.number(label)
            if place is None:
                raise classes.unknown(
                    label, f"{self.path}, line {self._records.line(i)}"
                )
            found[i] = place
        return found

    def _columns(self) -> Columns:
        """Return the columns by their kinds, without categories and statistics yet."""
        o = self.options
        names = list(o.features or self.seen)
        if not self.reader.json and not o.features:
            names = [n for n in self.reader.names if n != o.target]
        return Columns(
            [self._column(name) for name in names],
            tuple(o.missing_values),
            o.missing == "fill",
        )

    def _column(self, name: str) -> Column:
        seen, o = self.seen.get(name), self.options
        if seen is None:
            raise DataError(
                f"{self.path}: expected values in column {name!r}",
                "none: all are missing",
                "leave it out with data.features",
            )
        if name not in o.categorical and not seen.others:
            return Column(name, seen.size)
        if seen.nested[0] or seen.size > 1:
            line, value = seen.nested
            raise fault(
                self.path,
                line,
                f"numbers, texts, or lists of numbers alone in column {name!r}",
                f"{value!r:.60}",
                "leave it out with data.features",
            )
        line, value = seen.first_other
        if name not in o.categorical and seen.numbers > MOSTLY * (
            seen.numbers + seen.others
        ):
            raise fault(
                self.path,
                line,
                f"a number in column {name!r}, as in {seen.numbers:,} others",
                f"{value!r:.60}",
                "correct it, add it to data.missing_values, or add the column to "
                "data.categorical",
            )
        if len(seen.categories) > CATEGORIES:
            raise DataError(
                f"{self.path}: expected numbers, or at most {CATEGORIES:,} categories, "
                f"in column {name!r}",
                f"more different texts, such as {value!r:.60}",
                "leave it out with data.features",
            )
        return Column(name, values=["?"], encoding=o.categories)

    # -- second pass: the training part's categories and statistics -------------------

    def fit(self, rows: Array) -> None:
        """Find categories, means and deviations from the training part's records."""
        o, inputs = self.options, self._inputs
        columns = inputs.columns
        chosen = np.zeros(self.samples, bool)
        chosen[rows] = True
        found: list[set[str] | Statistics] = [
            set() if column.values else Statistics(column.size) for column in columns
        ]
        place = 0
        for record in self.reader:
            if place == self.samples or record.start != self._starts[place]:
                continue  # one that was dropped
            place += 1
            if not chosen[place - 1]:
                continue
            for column, kept in zip(columns, found, strict=True):
                value = record.fields.get(column.name)
                if inputs.is_missing(value):
                    continue
                if isinstance(kept, set):
                    kept.add(text(value))
                else:
                    kept.add(self._checked(column, value, record.line))
        for i, kept in enumerate(found):
            old = columns[i]
            if isinstance(kept, set):
                values = list(Classes.of(kept).names) if len(kept) > 1 else list(kept)
                columns[i] = Column(old.name, values=values, encoding=old.encoding)
            elif o.standardize:
                columns[i] = Column(old.name, old.size, mean=kept.mean, std=kept.std)
            else:
                columns[i] = Column(
                    old.name, old.size, mean=[0.0] * old.size, std=[1.0] * old.size
                )
        if o.task == "regression":
            part = self.targets[rows]
            target = Values(o.target, float(part.mean()), float(part.std()) or 1.0)
            self.preprocessing = Preprocessing(inputs, target)

    @property
    def _inputs(self) -> Columns:
        assert isinstance(self.preprocessing.input, Columns)
        return self.preprocessing.input

    def _checked(self, column: Column, value: Any, line: int) -> list[float]:
        try:
            return column.numbers(value)
        except BadValue as error:
            raise fault(
                self.path,
                line,
                f"in column {column.name!r} {error}",
                f"{value!r:.60}",
                "correct it",
            ) from None

    # -- records by number ----------------------------------------------------------

    def encode(self, rows: Array) -> Batch:
        x = np.empty((len(rows), *self.input_shape), np.float32)
        for out, row in zip(x, rows.tolist(), strict=True):
            data = self._records.read(row)
            try:
                fields = self.reader.parse(data, 0)
            except DataError:  # it has changed; to say so with its line takes long
                fields = self.reader.parse(data, self._records.line(row))
            values = [fields.get(column.name) for column in self._inputs.columns]
            try:
                self._inputs.put(values, out)
            except BadValue as error:
                raise fault(
                    self.path, self._records.line(row), str(error), "", "correct it"
                ) from None
        y, target = self.targets[rows], self.preprocessing.target
        if isinstance(target, Values):
            y = target.encode(y)[:, None]
        return Batch(x, y, None)

    def digests(self) -> bytearray:
        return self._digests


def _absent(value: Any, missing: frozenset[str]) -> bool:
    return value is None or (isinstance(value, str) and value.strip() in missing)
