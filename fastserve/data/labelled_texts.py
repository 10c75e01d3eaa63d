"""Texts with a class each: of a folder, a table, or in memory."""

from __future__ import annotations

import os
from array import array
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fastserve.core import Array
from fastserve.data.columns import text as as_text
from fastserve.data.examples import Examples
from fastserve.data.images import list_classes
from fastserve.data.lines import (
    LONGEST,
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
from fastserve.data.targets import Classes
from fastserve.errors import DataError, nearest
from fastserve.layers import TextVectorization

ENDINGS = (".txt", ".text", ".md", ".html")
_BATCH = 256  # texts that are counted at once
_KEYS = {
    "max_tokens",
    "standardize",
    "split",
    "ngrams",
    "output_mode",
    "output_sequence_length",
    "vocabulary",
    "idf_weights",
}


class TextEncoder:
    """Turns texts into numbers: a TextVectorization and what it has learned.

    Args:
        arguments: those of ``TextVectorization``.
        sublinear: n occurrences of a token count as 1 + log n.
    """

    kind = "text"

    def __init__(self, arguments: dict[str, Any], sublinear: bool = False) -> None:
        self.sublinear = sublinear
        self.layer = TextVectorization(**arguments)

    @property
    def input_shape(self) -> tuple[int, ...]:
        if self.layer.output_mode == "int":
            assert self.layer.output_sequence_length is not None  # the job is checked
            return (self.layer.output_sequence_length,)
        return (self.layer.depth,)

    @property
    def vocab_size(self) -> int | None:
        """Number of different tokens, if they are what the model gets."""
        if self.layer.output_mode != "int":
            return None
        return self.layer.vocabulary_size()

    def encode(self, texts: Sequence[str]) -> Array:
        """Return (texts, time) int64, or (texts, vocabulary) float32."""
        found: Array = self.layer(list(texts))
        if self.sublinear:
            rows, tokens = np.nonzero(found)
            once = self.layer.idf_weights
            each = np.float32(1) if once is None else once[tokens]
            found[rows, tokens] = each * (1 + np.log(found[rows, tokens] / each))
        return found

    def fit(self, texts: Iterator[list[str]]) -> None:
        self.layer.adapt(texts)

    def to_json(self) -> dict[str, Any]:
        arguments = self.layer.get_config()
        return {"kind": self.kind, "sublinear": self.sublinear, **arguments}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> TextEncoder:
        given = {k: v for k, v in data.items() if k not in ("kind", "sublinear")}
        if unknown := given.keys() - _KEYS:
            raise ValueError(f"unknown keys {sorted(unknown)}")
        if not isinstance(given["vocabulary"], list):
            raise ValueError("a vocabulary that isn't a list")
        made = cls(given, bool(data["sublinear"]))
        if made.layer.output_mode == "int" and not made.layer.output_sequence_length:
            raise ValueError("tokens without an output_sequence_length")
        return made


class Texts(Examples):
    """Texts by number, each with a class.

    Args:
        read: returns the text of a number. labels: (texts,) names of classes.
        where: names the place of a text, for errors.
        encoder: not fitted yet, unless ``kept`` has one.
    """

    def __init__(
        self,
        read: Callable[[int], str],
        labels: Sequence[str],
        where: Callable[[int], str],
        encoder: TextEncoder,
        kept: Preprocessing | None = None,
    ) -> None:
        self.read, self.samples = read, len(labels)
        classes = kept.target if kept else Classes.of(labels, where(0))
        assert isinstance(classes, Classes)
        if kept is not None:
            assert isinstance(kept.input, TextEncoder)
            encoder = kept.input
        self.encoder = encoder
        self.targets: Array = np.empty(self.samples, np.int64)
        for i, label in enumerate(labels):
            place = classes.number(label)
            if place is None:
                raise classes.unknown(label, where(i))
            self.targets[i] = place
        self.preprocessing = Preprocessing(encoder, classes)

    def fit(self, rows: Array) -> None:
        numbers = rows.tolist()
        self.encoder.fit(
            [self.read(row) for row in numbers[start : start + _BATCH]]
            for start in range(0, len(numbers), _BATCH)
        )

    def encode(self, rows: Array) -> Batch:
        x = self.encoder.encode([self.read(row) for row in rows.tolist()])
        return Batch(x, self.targets[rows], None)

    def digests(self) -> bytes:
        return b"".join(
            digest(self.read(row).encode("utf-8", "replace"))
            for row in range(self.samples)
        )


def texts_of(
    texts: Sequence[str],
    labels: Array,
    names: Sequence[str],
    encoder: TextEncoder,
    kept: Preprocessing | None,
) -> Texts:
    """Return texts in memory. labels: (texts,) numbers of the classes ``names``."""
    made = Texts(
        texts.__getitem__,
        [names[label] for label in labels.tolist()],
        lambda row: f"text {row}",
        encoder,
        kept or Preprocessing(encoder, Classes(tuple(names))),
    )
    return made


def texts_in(
    source: Path,
    columns: tuple[str, str],
    encoding: str,
    encoder: TextEncoder,
    kept: Preprocessing | None,
) -> Texts:
    """Return the texts of a folder with a folder for each class, or of a table.

    Args:
        source: the folder, or a .csv or .jsonl file.
        columns: names of the text and of the label in a table.
    """
    if source.suffix not in (".csv", ".jsonl") or source.is_dir():
        files = list_classes(source, ENDINGS)
        return Texts(
            lambda row: read_text(files[row][0], encoding),
            [kind for _, kind in files],
            lambda row: str(files[row][0].parent),
            encoder,
            kept,
        )
    records, labels = _scan(source, columns, encoding)
    names = _header(source, encoding)

    def read(row: int) -> str:
        return _field(source, records, row, names, columns[0], encoding)

    def where(row: int) -> str:
        return f"{source}, line {records.line(row)}"

    return Texts(read, labels, where, encoder, kept)


def read_text(path: Path, encoding: str) -> str:
    """Return the text of a file. Raises DataError if it can't be read."""
    try:
        with path.open("rb") as file:
            # not by read(LONGEST + 1), which takes as much memory for any file
            too_long = os.fstat(file.fileno()).st_size > LONGEST
            data = b"" if too_long else file.read()
    except OSError as error:
        raise DataError(
            "expected a text file", f"{path}: {error.strerror or error}", "remove it"
        ) from None
    if too_long:
        raise DataError(
            f"expected a text of at most {LONGEST >> 20} MiB",
            f"{path}: a longer one",
            "cut it, or remove it",
        )
    try:
        return data.decode(encoding).removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise wrong_encoding(path, line, error) from None


def _header(path: Path, encoding: str) -> list[str]:
    if path.suffix == ".jsonl":
        return []
    return _names(next(read_csv(path, encoding, ","), None))


def _names(header: Record | None) -> list[str]:
    return [name.strip() for name in header.fields] if header else []


def read_records(path: Path, encoding: str) -> Iterator[Record]:
    """Yield the records of a CSV or JSON Lines file, their fields by name."""
    if path.suffix == ".jsonl":
        yield from read_jsonl(path, encoding)
        return
    records = read_csv(path, encoding, ",")
    names = _names(next(records, None))
    for record in records:
        if len(record.fields) != len(names):
            raise fault(
                path,
                record.line,
                f"{len(names)} fields, as in the header",
                f"{len(record.fields)}",
                "put quotes around texts with a comma",
            )
        yield record._replace(fields=dict(zip(names, record.fields, strict=True)))


def _scan(
    path: Path, columns: tuple[str, str], encoding: str
) -> tuple[ByNumber, list[str]]:
    """Return the places of a table's records, and their labels."""
    starts: array[int] = array("q")
    labels: list[str] = []
    known: dict[str, str] = {}  # one object for equal labels
    for record in read_records(path, encoding):
        fields = record.fields
        for column in columns:
            if column not in fields:
                near = nearest(column, list(fields))
                raise fault(
                    path,
                    record.line,
                    f"a field {column!r}",
                    ", ".join(fields)[:200] or "none",
                    f"did you mean {near!r}? data.text and data.label name them",
                )
        body, label = (fields[column] for column in columns)
        if not isinstance(body, str):
            raise fault(
                path,
                record.line,
                f"a text in {columns[0]!r}",
                type(body).__name__,
                "correct it",
            )
        if label is None or isinstance(label, list | dict) or as_text(label) == "":
            raise fault(
                path,
                record.line,
                f"a label in {columns[1]!r}",
                repr(label)[:60],
                "correct it, or remove the record",
            )
        starts.append(record.start)
        name = as_text(label)
        labels.append(known.setdefault(name, name))
    if not starts:
        raise DataError(f"{path}: expected texts with labels", "none", "check the file")
    return ByNumber(path, starts, path.stat().st_size), labels


def _field(
    path: Path,
    records: ByNumber,
    row: int,
    names: list[str],
    column: str,
    encoding: str,
) -> str:
    data = records.read(row).decode(encoding, "replace")  # it was read before
    if not names:
        return str(parse_json(path, 0, data)[column])
    return csv_fields(data, ",")[names.index(column)]
