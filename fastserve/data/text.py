"""Text: where it comes from, how it is split, and what a 2-gram model makes of it."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fastserve.core import Array
from fastserve.errors import ArgumentError, DataError, nearest

from . import datasets

MINIMUM = 32  # characters; less can't be split into something to learn and to check
_HELD_OUT = 0.1  # share of the training part that decides on the smoothing
_STRENGTHS = np.geomspace(0.01, 1000, 26)


def load_text(source: str) -> str:
    """Return the text of a file in UTF-8, or a built-in one, one of ``BUILT_IN``.

    A byte order mark at the start is left out; ends of lines are as in the file.

    Raises:
        DataError: there is no such text, it isn't UTF-8 or shorter than 32 characters.
    """
    if source in BUILT_IN:
        return BUILT_IN[source]()
    try:
        data = Path(source).read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        near = nearest(source, BUILT_IN)
        raise DataError(
            f"expected a text file, or a built-in text: {', '.join(BUILT_IN)}",
            f"{source}: {getattr(error, 'strerror', None) or error}",
            f"did you mean {near!r}?" if near else "check data.source",
        ) from None
    text = _decode(source, data).removeprefix("\ufeff")
    if len(text) < MINIMUM or text.isspace():
        raise DataError(
            f"expected a text of {MINIMUM} characters or more",
            f"{source}: {len(text)} characters{', all blank' * text.isspace()}",
            "use a longer text",
        )
    return text


def _decode(source: str, data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        start = error.start
        line = data.count(b"\n", 0, start) + 1
        raise DataError(
            "expected text in UTF-8",
            f"{source}: byte 0x{data[start]:02x} at byte {start}, line {line}: "
            f"{error.reason}",
            "convert it, for example with: iconv -f latin1 -t utf-8",
        ) from None


def _pydoc_topics() -> str:
    """Return the topics of Python's own help, sorted by name, each with its name."""
    try:
        topics = importlib.import_module("pydoc_data.topics").topics
    except ImportError as error:
        raise DataError(
            "expected the standard library's pydoc_data for the text pydoc-topics",
            str(error),
            "install all of Python's standard library, or use a text file",
        ) from None
    return "\n\n".join(f"{name}\n\n{topics[name].strip()}\n" for name in sorted(topics))


BUILT_IN: dict[str, Callable[[], str]] = {
    "pydoc-topics": _pydoc_topics,
    "shakespeare": datasets.shakespeare,
    "gcide": datasets.gcide,
}


def split(tokens: Array, validation_split: float) -> tuple[Array, Array]:
    """Return (training, validation) tokens; the last part is for validation.

    With a split of 0 the validation part is empty. Both are views.
    """
    if not 0 <= validation_split < 1:
        raise ArgumentError(
            "expected a validation_split from 0 to below 1",
            str(validation_split),
            "change data.validation_split",
        )
    cut = int(len(tokens) * (1 - validation_split))
    if cut == 0 or (validation_split > 0 and cut == len(tokens)):
        raise DataError(
            "expected at least one token for training and one for validation",
            f"{len(tokens)} tokens, validation_split {validation_split}",
            "use a longer text, or change data.validation_split",
        )
    return tokens[:cut], tokens[cut:]


def bigram_loss(train: Array, validation: Array, vocab_size: int) -> float:
    """Return a 2-gram model's mean loss on ``validation``, in nats a token.

    The model is P(b|a) = (n(ab) + s P(b)) / (n(a) + s) with the counts n of the
    training tokens (Dirichlet smoothing; MacKay and Peto, "A hierarchical Dirichlet
    language model", 1995), and P(b) is smoothed in the same way from 1/vocab_size.
    Both strengths s are those that are best on the end of the training part for
    counts of the rest; validation decides on nothing. The first token of each part
    has none before it and is only counted.

    Args:
        train, validation: (n,) integers below vocab_size; at least 2 in validation.
            The memory needed is a few times that of ``train`` as int64, whatever
            the vocabulary's size, and a few numbers per word of it.

    Raises:
        DataError: the tokens are too few, or out of range.
    """
    for name, tokens, least in (("train", train, 20), ("validation", validation, 2)):
        if len(tokens) < least or tokens.min() < 0 or tokens.max() >= vocab_size:
            found = f", from {tokens.min()} to {tokens.max()}" if len(tokens) else ""
            raise DataError(
                f"bigram_loss: expected {least} or more tokens of {name}, from 0 to "
                f"{vocab_size - 1}",
                f"{len(tokens)} tokens{found}",
                "use a longer text, or the right vocab_size",
            )
    rest, end = split(train, _HELD_OUT)
    model = _Bigrams(rest, vocab_size)
    parts = _Pairs(end, vocab_size)
    single = min(_STRENGTHS, key=lambda s: model.single_loss(parts, s))
    double = min(_STRENGTHS, key=lambda s: model.loss(parts, single, s))
    model = _Bigrams(train, vocab_size)
    return model.loss(_Pairs(validation, vocab_size), single, double)


@dataclass(init=False)
class _Pairs:
    """The pairs of neighbours in ``tokens`` that there are, and how often each.

    ``keys`` holds first * vocab_size + second, sorted.
    """

    keys: Array
    counts: Array

    def __init__(self, tokens: Array, vocab_size: int) -> None:
        keys = tokens[:-1].astype(np.int64)
        keys *= vocab_size
        keys += tokens[1:]
        self.keys, self.counts = np.unique(keys, return_counts=True)

    def mean(self, values: Array) -> float:
        return float(values @ self.counts / self.counts.sum())


class _Bigrams:
    """A 2-gram model from the counts of ``tokens``."""

    def __init__(self, tokens: Array, vocab_size: int) -> None:
        self.vocab_size = vocab_size
        self.pairs = _Pairs(tokens, vocab_size)
        self.single = np.bincount(tokens.astype(np.int64), minlength=vocab_size)
        # how often a token has one behind it: not the last one
        self.first = self.single.copy()
        self.first[tokens[-1]] -= 1

    def _single(self, tokens: Array, strength: float) -> Array:
        total = self.single.sum() + strength
        return (self.single[tokens] + strength / self.vocab_size) / total

    def single_loss(self, pairs: _Pairs, strength: float) -> float:
        """Return the mean loss of the pairs' second tokens without their first."""
        return pairs.mean(-np.log(self._single(pairs.keys % self.vocab_size, strength)))

    def loss(self, pairs: _Pairs, single: float, double: float) -> float:
        """Return the mean loss of the pairs' second tokens after their first."""
        first, second = np.divmod(pairs.keys, self.vocab_size)
        place = np.searchsorted(self.pairs.keys, pairs.keys)
        place[place == len(self.pairs.keys)] = 0
        seen = self.pairs.keys[place] == pairs.keys
        both = np.where(seen, self.pairs.counts[place], 0)
        above = both + double * self._single(second, single)
        return pairs.mean(-np.log(above / (self.first[first] + double)))
