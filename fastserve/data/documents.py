"""Documents to prepare: which files there are, how they are cut, and their text."""

from __future__ import annotations

import codecs
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import IO, Any

import numpy as np

from fastserve.errors import DataError

from .text import BUILT_IN, load_text
from .tokenizers import CUT, cut_pieces

ENDINGS = (".txt", ".jsonl")  # of files that are taken from a folder
LEAST_PART, MOST_PARTS = 4 << 20, 1024  # bytes of a shard's text; shards
_BLOCK = 1 << 20  # bytes that are read at a time


@dataclass(frozen=True)
class Input:
    """A file to prepare."""

    path: Path
    size: int
    jsonl: bool
    key: tuple[str, int, int]  # by which a restart knows it again


@dataclass(frozen=True)
class Part:
    """What becomes one shard: ranges of bytes (number of the input, start, stop)."""

    split: str
    number: int
    ranges: tuple[tuple[int, int, int], ...]

    @property
    def bytes(self) -> int:
        return sum(stop - start for _, start, stop in self.ranges)


def find_inputs(names: Sequence[str], work: Path) -> list[Input]:
    """Return the files of all inputs, those of a folder sorted by their path.

    A built-in text is written to ``work`` first. Raises DataError if one isn't there.
    """
    found = []
    for name in names:
        path = Path(name)
        if path.is_dir():
            files = sorted(p for p in path.rglob("*") if p.suffix in ENDINGS)
            found += [_input(file) for file in files if file.is_file()]
            if not files:
                raise DataError(
                    f"expected files that end in {' or '.join(ENDINGS)} in a folder",
                    f"{name} without any",
                    "give the files themselves, or another folder",
                )
        elif name in BUILT_IN and not path.exists():
            found.append(_built_in(name, work))
        else:
            found.append(_input(path))
    return [one for one in found if one.size]


def _input(path: Path) -> Input:
    try:
        known = path.stat()
        with path.open("rb"):
            pass
    except OSError as error:
        raise DataError(
            "expected a text file, a .jsonl file, a folder of them, or one of "
            f"{', '.join(BUILT_IN)}",
            f"{path}: {error.strerror}",
            "check the path",
        ) from None
    path = path.absolute()
    key = (str(path), known.st_size, known.st_mtime_ns)
    return Input(path, known.st_size, path.suffix == ".jsonl", key)


def _built_in(name: str, work: Path) -> Input:
    data = load_text(name).encode()
    path = work / f"source-{name}.txt"
    key = (hashlib.sha256(data).hexdigest(), len(data), 0)
    if not path.is_file() or path.read_bytes() != data:
        with writing(path) as file:
            file.write(data)
    return Input(path, len(data), False, key)


def make_parts(inputs: Sequence[Input], split: float, whole: bool) -> list[Part]:
    """Cut the inputs into parts, the last ``split`` of their bytes for validation.

    With ``whole`` only between documents (of JSONL they are lines).
    """
    starts = np.cumsum([0, *(one.size for one in inputs)]).tolist()
    total = starts[-1]

    def snap(place: int) -> int:
        number = int(np.searchsorted(starts, place, "right")) - 1
        if number == len(inputs):
            return total
        one, offset = inputs[number], place - starts[number]
        return int(starts[number]) + next_cut(one, offset, whole)

    held = snap(int(total * (1 - split)))
    size = max(LEAST_PART, -(-total // MOST_PARTS))
    parts = []
    for name, first, last in (("train", 0, held), ("validation", held, total)):
        nominal = {snap(place) for place in range(first, last, size)}
        cuts = sorted({first, last, *(c for c in nominal if first < c < last)})
        for number, (start, stop) in enumerate(pairwise(cuts)):
            ranges = tuple(
                (i, max(start, low) - low, min(stop, high) - low)
                for i, (low, high) in enumerate(pairwise(starts))
                if low < stop and high > start
            )
            parts.append(Part(name, number, ranges))
    return parts


def next_cut(one: Input, offset: int, whole: bool) -> int:
    """Return the first place from ``offset`` on where a file may be cut.

    It is behind a line of JSONL; in a text, where the tokens don't depend on it, or if
    there is no such place for 1 MiB, between two characters.
    """
    if offset <= 0 or offset >= one.size:
        return min(max(0, offset), one.size)
    with one.path.open("rb") as file:
        if one.jsonl:
            file.seek(offset - 1)
            while (block := file.read(_BLOCK)) and b"\n" not in block:
                offset += len(block)
            return offset + block.index(b"\n") if block else one.size
        if whole:
            return one.size
        start = max(0, offset - 8)  # at least two characters before the place
        file.seek(start)
        data = file.read(_BLOCK)
    inside = next(i for i in range(len(data)) if i == 4 or data[i] & 0xC0 != 0x80)
    text = data[inside:].decode(errors="surrogateescape")
    found = CUT.search(text, 2)
    while found:
        before = text[: found.start()].encode(errors="surrogateescape")
        if start + inside + len(before) >= offset:
            return start + inside + len(before)
        found = CUT.search(text, found.end() + 1)
    behind = data[offset - start :]
    return offset + next((i for i, b in enumerate(behind) if b & 0xC0 != 0x80), 0)


@dataclass(frozen=True)
class Reader:
    """Reads the texts of parts, piece by piece.

    Args:
        key: the name of the text in a line of JSONL.
        errors: ``strict`` or ``replace`` (by U+FFFD) what isn't UTF-8.
        whole: a text file comes in one piece, as the tokenizer needs it so.
    """

    inputs: Sequence[Input]
    key: str
    errors: str
    whole: bool = False

    def pieces(self, part: Part) -> Iterator[tuple[str, bool]]:
        """Yield (piece of text, whether a document ends behind it).

        Raises DataError with file and byte for what can't be read.
        """
        for number, start, stop in part.ranges:
            one = self.inputs[number]
            try:
                with one.path.open("rb") as file:
                    file.seek(start)
                    if one.jsonl:
                        yield from self._lines(file, one, start, stop)
                    else:
                        blocks = self._blocks(file, one, start, stop)
                        made = iter(["".join(blocks)]) if self.whole else None
                        yield from ((p, False) for p in made or cut_pieces(blocks))
                        yield "", stop == one.size
            except OSError as error:
                raise DataError(
                    "expected to be able to read the text",
                    f"{one.path}: {error.strerror}",
                    "check the file",
                ) from None

    def _blocks(
        self, file: IO[bytes], one: Input, start: int, stop: int
    ) -> Iterator[str]:
        decoder = codecs.getincrementaldecoder("utf-8")(self.errors)
        place = start
        while place < stop:
            data = file.read(min(_BLOCK, stop - place))
            if not data:
                raise DataError(
                    f"expected {one.size} bytes, as at the start",
                    f"{one.path}: it ends at byte {place}",
                    "leave the file alone while it is prepared",
                )
            held = len(decoder.getstate()[0])
            try:
                text = decoder.decode(data, place + len(data) >= stop)
            except UnicodeDecodeError as error:
                raise _no_utf8(one, place - held + error.start, error) from None
            yield text.removeprefix("\ufeff") if place == 0 else text
            place += len(data)

    def _lines(
        self, file: IO[bytes], one: Input, start: int, stop: int
    ) -> Iterator[tuple[str, bool]]:
        place = start
        while place < stop and (line := file.readline()):
            if not line.isspace():
                text = self._document(line, one, place)
                if self.whole:
                    yield text, True
                else:
                    yield from ((piece, False) for piece in cut_pieces([text]))
                    yield "", True
            place += len(line)

    def _document(self, line: bytes, one: Input, place: int) -> str:
        try:
            text = json.loads(line.decode(errors=self.errors))[self.key]
            if not isinstance(text, str):
                raise TypeError(f"{type(text).__name__} as {self.key!r}")
            text.encode()
        except UnicodeDecodeError as error:
            raise _no_utf8(one, place + error.start, error) from None
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            what = f"no key {error}" if isinstance(error, KeyError) else str(error)
            raise DataError(
                f"expected a JSON object with a text as {self.key!r} on each line",
                f"{one.path}: line at byte {place}: {what}",
                "correct it, or name the key of the text with --jsonl-key",
            ) from None
        return text


def _no_utf8(one: Input, place: int, error: UnicodeDecodeError) -> DataError:
    return DataError(
        "expected text in UTF-8",
        f"{one.path}: byte 0x{error.object[error.start]:02x} at byte {place}: "
        f"{error.reason}",
        "convert it, for example with: iconv -f latin1 -t utf-8; or replace such bytes "
        "with --errors replace",
    )


@contextmanager
def writing(path: Path) -> Iterator[IO[bytes]]:
    """Write a file that is there once it is complete, and synced to the disk."""
    temporary = path.with_name(f".{path.name}.tmp")
    make_folder(path.parent)
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise _cannot_write(path, error) from None
    finally:
        temporary.unlink(missing_ok=True)


def make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _cannot_write(path, error) from None


def _cannot_write(path: Path, error: OSError) -> DataError:
    return DataError(
        f"expected to be able to write {path}",
        f"{error.strerror or error}",
        "make room or correct the permissions, and start it again: complete parts "
        "are kept",
    )


def write_json(path: Path, data: Any) -> None:
    with writing(path) as file:
        file.write(json.dumps(data).encode())
