"""Prompts and their completions: a model learns to answer, not to ask.

The file is JSON Lines: an object with the strings ``prompt`` and ``completion`` on each
line; other keys are left alone. An example is the tokens of the prompt, those of the
completion, and an end token. Only completion and end token have a loss; prompts and
padding have the weight 0, and a step's loss is divided by the number of losses that
count in its whole global batch. So neither padding nor the split over micro-batches and
ranks changes a gradient.

A row of the training data is ``block_size`` tokens and the one after them. Packed rows
hold several examples; the model must then keep them apart at their end tokens
(``layers/documents.py``).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fastserve.core import Array
from fastserve.data.sources import Batch, Source
from fastserve.errors import DataError

_OPEN_ROWS = 64  # rows that are still looked at for room


@dataclass
class Pair:
    """A line of the file: its number, from 1 on, and its two texts."""

    line: int
    prompt: str
    completion: str


@dataclass
class Example:
    """Tokens of prompt, completion and end; the first ``prompt`` are the prompt's."""

    tokens: Array
    prompt: int


@dataclass
class Encoded:
    """Examples, how many of them were ``cut``, and how many pairs are ``left_out``
    because their prompt leaves no room for a token of the completion."""

    examples: list[Example]
    cut: int = 0
    left_out: int = 0


def read_pairs(path: str | Path) -> list[Pair]:
    """Read a JSON Lines file of prompts and completions; blank lines are skipped.

    Raises DataError, with the number of the line, for what isn't UTF-8, JSON, or an
    object with both strings, and for an empty one; and for a file without any pair.
    """
    try:
        data = Path(path).read_bytes()
    except (OSError, ValueError) as error:
        raise DataError(
            "expected a JSON Lines file of prompts and completions",
            f"{path}: {getattr(error, 'strerror', None) or error}",
            "check data.file and data.validation",
        ) from None
    lines = enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1)
    pairs = [_pair(path, number, line) for number, line in lines if line.strip()]
    if not pairs:
        raise DataError(
            "expected at least one line with a prompt and a completion",
            f"{path}: none",
            'write lines like {"prompt": "2+2=", "completion": "4"}',
        )
    return pairs


def _pair(path: str | Path, number: int, line: bytes) -> Pair:
    try:
        found = json.loads(line.decode())
    except UnicodeDecodeError as error:
        raise DataError(
            "expected text in UTF-8",
            f"{path}, line {number}: byte 0x{line[error.start]:02x}: {error.reason}",
            "convert it, for example with: iconv -f latin1 -t utf-8",
        ) from None
    except (ValueError, RecursionError) as error:
        raise _wrong(path, number, f"no JSON: {error}") from None
    if not isinstance(found, dict):
        raise _wrong(path, number, f"JSON that is no object: {str(found)[:40]}")
    texts = []
    for key in ("prompt", "completion"):
        text = found.get(key)
        if not isinstance(text, str):
            what = f"{key}: {json.dumps(text)[:40]}" if key in found else f"no {key}"
            raise _wrong(path, number, what)
        if not text:
            raise _wrong(path, number, f"an empty {key}")
        try:
            text.encode()
        except UnicodeEncodeError:
            raise _wrong(path, number, f"half a surrogate pair in {key}") from None
        texts.append(text)
    return Pair(number, *texts)


def _wrong(path: str | Path, number: int, received: str) -> DataError:
    return DataError(
        "expected an object with the keys prompt and completion, both texts that "
        "aren't empty",
        f"{path}, line {number}: {received}",
        'write it like {"prompt": "2+2=", "completion": "4"}, or remove the line',
    )


def encode_pairs(
    path: str | Path, pairs: Sequence[Pair], tokenizer: Any, block: int, cut: bool
) -> Encoded:
    """Return the pairs of ``path`` as tokens, at most ``block`` + 1 an example.

    Args:
        tokenizer: has ``encode`` and an ``end`` token. Prompt and completion are
            encoded apart, so that a prompt has the same tokens when it is generated
            from.
        cut: longer examples lose the end of their completion, and those are left out
            whose prompt alone is too long; else they are refused.

    Raises DataError, with the number of the line, for text that the tokenizer doesn't
    know, text with the end token in it, and, unless ``cut``, for a long example.
    """
    made = Encoded([])
    for pair in pairs:
        prompt, completion = (
            _encode(path, pair.line, text, tokenizer)
            for text in (pair.prompt, pair.completion)
        )
        length = len(prompt) + len(completion) + 1
        if length > block + 1 and not cut:
            raise DataError(
                f"expected examples of at most {block + 1} tokens, end token included: "
                "the model's block_size and one more",
                f"{path}, line {pair.line}: {length} tokens",
                "raise model.block_size, or cut long examples with data.too_long: cut",
            )
        if len(prompt) > block:
            made.left_out += 1
            continue
        tokens = np.concatenate([prompt, completion, [tokenizer.end]])
        made.cut += length > block + 1
        made.examples.append(Example(tokens[: block + 1].astype(np.int32), len(prompt)))
    if not made.examples:
        raise DataError(
            f"expected an example whose prompt is at most {block} tokens",
            f"{path}: {made.left_out} longer ones",
            "raise model.block_size",
        )
    return made


def _encode(path: str | Path, line: int, text: str, tokenizer: Any) -> Array:
    try:
        tokens: Array = tokenizer.encode(text)
    except DataError as error:
        raise DataError(
            error.expected, f"{path}, line {line}: {error.received}", error.todo
        ) from None
    if not len(tokens) or (tokens == tokenizer.end).any():
        what = "the end token in it" if len(tokens) else "no tokens"
        raise DataError(
            "expected texts of at least one token, none of them the end token",
            f"{path}, line {line}: {text[:40]!r} with {what}",
            "remove the line, or take another end token with data.end",
        )
    return tokens


def pack(lengths: Sequence[int], room: int) -> list[list[int]]:
    """Return rows of places in ``lengths``, each of at most ``room`` altogether.

    First fit: each goes, in order, into the first of the last rows that has room.
    """
    rows: list[list[int]] = []
    free: list[int] = []
    for place, length in enumerate(lengths):
        first = max(0, len(rows) - _OPEN_ROWS)
        fits = (r for r in range(first, len(rows)) if free[r] >= length)
        row = next(fits, len(rows))
        if row == len(rows):
            rows.append([])
            free.append(room)
        rows[row].append(place)
        free[row] -= length
    return rows


class CompletionSource(Source):
    """Rows of examples for the next-token loss, with masks.

    Args:
        examples: each of at most ``block_size`` + 1 tokens, with an end token if it is
            shorter.
        end: the end token, which also pads.
        packing: several examples in a row, as many as go in; else one.

    Attributes:
        filled: share of the tokens that aren't padding.
        counted: losses of all samples together.
        examples: number of examples.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        block_size: int,
        end: int,
        packing: bool = True,
    ) -> None:
        room = block_size + 1
        lengths = [len(example.tokens) for example in examples]
        places = pack(lengths, room) if packing else [[i] for i in range(len(lengths))]
        self.samples, self.block_size = len(places), block_size
        self.tokens_per_sample = block_size
        self._tokens = np.full((self.samples, room), end, np.int32)
        self._counts = np.zeros((self.samples, room), np.bool_)  # token has a loss
        self.examples = len(examples)
        self._example = np.zeros((self.samples, room), np.int32)  # whose token it is
        for row, inside in enumerate(places):
            start = 0
            for i in inside:
                example = examples[i]
                stop = start + len(example.tokens)
                self._example[row, start:stop] = i
                self._tokens[row, start:stop] = example.tokens
                self._counts[row, start + example.prompt : stop] = True
                start = stop
        self._losses = self._counts.sum(axis=1)
        self.counted = int(self._losses.sum())
        self.filled = sum(lengths) / self._tokens.size
        self._x = self._y = np.empty((0, block_size), np.int64)
        self._weights = np.empty((0, block_size), np.float32)

    @property
    def input_shape(self) -> tuple[int, ...]:
        return (self.block_size,)

    def losses(self, rows: Array) -> int:
        return int(self._losses[rows].sum())

    def exact(self, forward: Callable[[Array], Array], rows: int = 16) -> float:
        """Return the share of examples whose completion a model gives exactly.

        That is, all of its tokens and the end token, each the likeliest after those
        before: so it is also what generation at temperature 0 gives.

        Args:
            forward: logits (batch, time, vocabulary) of tokens (batch, time).
            rows: computed at a time.
        """
        wrong: set[int] = set()
        for first in range(0, self.samples, rows):
            chosen = np.arange(first, min(self.samples, first + rows))
            x, y, weights = self.batch(chosen, chosen)[:3]
            missed = (forward(x).argmax(axis=-1) != y) & (weights != 0)
            wrong.update(self._example[chosen, 1:][missed].tolist())
        return 1 - len(wrong) / self.examples

    def batch(self, rows: Array, epochs: Array) -> Batch:
        n = len(rows)
        if len(self._x) < n:
            self._x = np.empty((n, self.block_size), np.int64)
            self._y = np.empty_like(self._x)
            self._weights = np.empty(self._x.shape, np.float32)
        for i, row in enumerate(rows.tolist()):
            self._x[i], self._y[i] = self._tokens[row, :-1], self._tokens[row, 1:]
            self._weights[i] = self._counts[row, 1:]
        return Batch(self._x[:n], self._y[:n], self._weights[:n], masked=True)
