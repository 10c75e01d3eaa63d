"""Sentences of words that have a tag each, as numbers.

A word that is rare, or wasn't seen, is told by its look alone: whether it has digits or
a capital, and its last letters.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fastserve.core import Array
from fastserve.data.examples import EncodedSource, Examples
from fastserve.data.lines import ByNumber, Lines, fault
from fastserve.data.preprocessing import Preprocessing
from fastserve.data.sources import Batch, Source
from fastserve.data.splits import digest
from fastserve.data.targets import Classes
from fastserve.errors import DataError

Sentence = Sequence[tuple[str, str]]
PADDING, UNKNOWN = "", "<?>"
_LOOKS = 5  # rare words that must share a look
_COUNTED = 2_000_000  # different words that are counted at once
_LONGEST = 100_000  # words of a sentence


def looks(word: str) -> list[str]:
    """Return a word's looks, the most exact one first.

    They are texts like ``<A-ing>``: a capital, a digit or none, and an ending.
    """
    if any(c.isdigit() for c in word):
        kind = "0"
    else:
        kind = "A" if word[:1].isupper() else "a"
    kind += "-" if "-" in word[1:-1] else ""
    ending = word.lower()
    return [f"<{kind} {ending[-n:]}>" for n in (4, 3, 2) if len(word) > n] + [
        f"<{kind}>"
    ]


class WordEncoder:
    """Turns words into numbers: 0 is no word, 1 a word of an unknown look.

    Args:
        words: what the numbers stand for, ``PADDING`` and ``UNKNOWN`` first.
        length: words of a row.
    """

    kind = "words"

    def __init__(self, words: Sequence[str], length: int) -> None:
        self.length = length
        self._take(words)

    def _take(self, words: Sequence[str]) -> None:
        self.words = list(words)
        self._numbers = {word: i for i, word in enumerate(self.words)}

    @property
    def vocab_size(self) -> int:
        return len(self.words)

    @property
    def input_shape(self) -> tuple[int, ...]:
        return (self.length,)

    def number(self, word: str) -> int:
        """Return the number of a word, of it in small letters, or of its look."""
        found = self._numbers.get(word)
        if found is None:
            found = self._numbers.get(word.lower())
        if found is not None and word:
            return found
        for look in looks(word):
            if look in self._numbers:
                return self._numbers[look]
        return 1

    def fit(self, sentences: Iterable[Sentence], most: int, least: int) -> None:
        """Learn the ``most`` frequent words that come ``least`` times, and looks."""
        counts: Counter[str] = Counter()
        for sentence in sentences:
            counts.update(word for word, _ in sentence)
            if len(counts) > _COUNTED:  # keeps memory bounded
                counts = Counter({w: n for w, n in counts.items() if n > 1})
        order = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
        known = [w for w, n in order if n >= least][:most]
        chosen = set(known)
        rare: Counter[str] = Counter()
        for word, count in order:
            if word not in chosen and word.lower() not in chosen:
                for look in looks(word):
                    rare[look] += count
        seen = sorted(look for look, n in rare.items() if n >= _LOOKS)
        self._take([PADDING, UNKNOWN, *seen, *known])

    def encode(self, words: Sequence[str]) -> Array:
        """Return (pieces, length) of a sentence, of which a long one has several."""
        pieces = max(1, -(-len(words) // self.length))
        out = np.zeros(pieces * self.length, np.int64)
        out[: len(words)] = [self.number(word) for word in words]
        return out.reshape(pieces, self.length)

    def to_json(self) -> dict[str, Any]:
        return {"kind": self.kind, "words": self.words, "length": self.length}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> WordEncoder:
        words, length = data["words"], int(data["length"])
        if not all(isinstance(word, str) for word in words) or length < 1:
            raise ValueError("words that aren't texts")
        return cls(words, length)


class Tagged(Examples):
    """Sentences by number; each is one sample, or several if it is long.

    Args:
        read: returns the sentence of a number. lengths: (sentences,) words.
        tags: how often each tag comes. where: names a sentence's place, for errors.
        encoder: not fitted yet, unless ``kept`` has one.
        most, least: as in ``WordEncoder.fit``.
    """

    targets = None

    def __init__(
        self,
        read: Callable[[int], Sentence],
        lengths: Sequence[int],
        tags: Counter[str],
        where: Callable[[], str],
        encoder: WordEncoder,
        kept: Preprocessing | None,
        most: int = 30_000,
        least: int = 2,
    ) -> None:
        self.read, self.samples = read, len(lengths)
        self._lengths = np.asarray(lengths, np.int64)
        self._tags, self._wanted = tags, (most, least)
        classes = kept.target if kept else Classes.of(tags, where())
        assert isinstance(classes, Classes)
        for tag in tags:
            if classes.number(tag) is None:
                raise classes.unknown(tag, where())
        if kept is not None:
            assert isinstance(kept.input, WordEncoder)
            encoder = kept.input
        self.encoder, self.classes = encoder, classes
        self.preprocessing = Preprocessing(encoder, classes)

    @property
    def notes(self) -> list[str]:
        counts = np.array([self._tags[name] for name in self.classes.names])
        order = np.argsort(-counts, kind="stable")[:10].tolist()
        shown = ", ".join(f"{self.classes.names[i]} {counts[i]:,}" for i in order)
        more = len(counts) - len(order)
        words = f"{int(counts.sum()):,} words, tags: {shown}"
        return [words + (f", and {more} more" if more else "")]

    def fit(self, rows: Array) -> None:
        self.encoder.fit((self.read(row) for row in rows.tolist()), *self._wanted)

    def source(self, rows: Array) -> Source:
        """Return the pieces of these sentences."""
        return TaggedSource(self, rows)

    def encode(self, rows: Array) -> Batch:
        source = self.source(rows)
        every = np.arange(source.samples)
        return source.batch(every, every)

    def digests(self) -> bytes:
        return b"".join(
            digest("\n".join(word for word, _ in self.read(row)).encode())
            for row in range(self.samples)
        )


class TaggedSource(EncodedSource):
    """Sentences in rows of one length; only words count.

    x: (rows, length) of words, y: (rows, length) of tags, weights of 0 and 1.
    """

    def __init__(self, examples: Tagged, rows: Array) -> None:
        super().__init__(examples, rows)
        self._tagged, length = examples, examples.encoder.length
        words = examples._lengths[rows]
        pieces = np.maximum(1, -(-words // length))
        self._sentence = np.repeat(rows, pieces)
        first = np.cumsum(pieces) - pieces
        self._start = (np.arange(pieces.sum()) - np.repeat(first, pieces)) * length
        left = np.repeat(words, pieces) - self._start
        self._words = np.minimum(left, length)
        self.samples = len(self._sentence)
        self.tokens_per_sample = 0

    def losses(self, rows: Array) -> int | None:
        return int(self._words[rows].sum())

    def batch(self, rows: Array, epochs: Array) -> Batch:
        encoder, classes = self._tagged.encoder, self._tagged.classes
        shape = len(rows), encoder.length
        x, y = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        weights = np.zeros(shape, np.float32)
        for i, row in enumerate(rows.tolist()):
            start, count = int(self._start[row]), int(self._words[row])
            sentence = self._tagged.read(int(self._sentence[row]))
            part = sentence[start : start + count]
            x[i, :count] = [encoder.number(word) for word, _ in part]
            y[i, :count] = [classes.number(tag) or 0 for _, tag in part]
            weights[i, :count] = 1
        return Batch(x, y, weights, masked=True)


def tagged_of(
    sentences: Sequence[Sentence],
    encoder: WordEncoder,
    kept: Preprocessing | None,
    most: int,
    least: int,
) -> Tagged:
    """Return sentences in memory."""
    tags = Counter(tag for sentence in sentences for _, tag in sentence)
    lengths = [len(sentence) for sentence in sentences]
    return Tagged(
        sentences.__getitem__,
        lengths,
        tags,
        lambda: "the data set",
        encoder,
        kept,
        most,
        least,
    )


def tagged_in(
    path: Path,
    style: str,
    encoding: str,
    encoder: WordEncoder,
    kept: Preprocessing | None,
    most: int,
    least: int,
) -> Tagged:
    """Return the sentences of a file; ``style`` is 'columns' or 'slashes'."""
    starts: array[int] = array("q")
    lengths: array[int] = array("i")
    tags: Counter[str] = Counter()
    lines = Lines(path, encoding)
    start, words = 0, 0
    for line in lines:
        pairs = _pairs(path, lines.line, line, style)
        tags.update(tag for _, tag in pairs)
        words += len(pairs)
        if words > _LONGEST:
            raise fault(
                path,
                lines.line,
                f"sentences of at most {_LONGEST:,} words",
                "a longer one",
                "put a blank line after each sentence, or set data.format",
            )
        if words and (style == "slashes" or not pairs):
            starts.append(start)
            lengths.append(words)
            words = 0
        if not words:
            start = lines.place
    if words:
        starts.append(start)
        lengths.append(words)
    if not starts:
        raise DataError(f"{path}: expected sentences", "none", "check the file")
    records = ByNumber(path, starts, path.stat().st_size)

    def read(row: int) -> Sentence:
        text = records.read(row).decode(encoding, "replace")
        text = text.removeprefix("\ufeff") if row == 0 else text
        found: list[tuple[str, str]] = []
        for line in text.split("\n"):  # splitlines ends lines at \v and others too
            if found and (style == "slashes" or not line.strip()):
                break
            found += _pairs(path, 0, line, style)
        return found

    return Tagged(read, lengths, tags, lambda: str(path), encoder, kept, most, least)


def _pairs(path: Path, number: int, line: str, style: str) -> list[tuple[str, str]]:
    """Return the (word, tag) of a line."""
    fields = line.split()
    if style == "columns":
        if not fields or fields[0] == "-DOCSTART-":
            return []
        if len(fields) < 2:
            raise _no_tag(path, number, fields[0], "a word and its tag, with a blank")
        return [(fields[0], fields[-1])]
    found = []
    for field in fields:
        word, _, tag = field.rpartition("/")
        if not word or not tag:
            raise _no_tag(path, number, field, "word/tag")
        found.append((word, tag))
    return found


def _no_tag(path: Path, number: int, received: str, wanted: str) -> DataError:
    return fault(
        path, number, wanted, repr(received)[:60], "correct it, or change data.format"
    )
