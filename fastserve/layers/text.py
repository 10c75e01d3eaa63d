"""TextVectorization: texts as indices of words, or as counts of them."""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from fastserve.core import Array, Shape, Training
from fastserve.errors import ArgumentError, DataError, ShapeError, UnknownNameError
from fastserve.layers.lookup import StringLookup

Standardize = str | Callable[[Array], Any] | None
Split = str | Callable[[list[str]], Iterable[Sequence[str]]] | None

_LOWER = {ord(c): c.lower() for c in string.ascii_uppercase}
_STRIP = dict.fromkeys(map(ord, string.punctuation))
STANDARDIZE: dict[str, dict[int, str | None]] = {
    "lower": {**_LOWER},
    "strip_punctuation": {**_STRIP},
    "lower_and_strip_punctuation": {**_LOWER, **_STRIP},
}
SPLIT = ("whitespace", "character")
MODES = ("int", "multi_hot", "count", "tf_idf")
_WORDS = re.compile("[^ \t\n\r\f\v]+")


class TextVectorization(StringLookup):
    """Texts (batch,) or (batch, 1) -> int64 (batch, time), or (batch, vocabulary).

    Each text is standardized, split into tokens, which may be joined to n-grams, and
    the tokens are looked up: 0 is for places behind the end, 1 for tokens that the
    vocabulary doesn't have. The vocabulary is learned by ``adapt``, or given. Other
    outputs than 'int' have one place for each of its tokens, 0 being that of unknown
    ones. Called on a list or array of texts it returns an array; it may be the first
    layer of a model, whose input are then texts.

    Args:
        max_tokens: the vocabulary's largest size, with the special tokens.
        standardize: 'lower_and_strip_punctuation', 'lower', 'strip_punctuation' (all
            of ASCII alone, as in Keras), None, or a function of an array of texts.
        split: 'whitespace', 'character', None, or a function of a list of texts.
        ngrams: also, or only, join so many neighbours: 2 is 1 and 2, (2,) is 2.
        output_mode: 'int', 'multi_hot' (1 for what occurs), 'count', or 'tf_idf': the
            count times log(1 + texts / (1 + texts with the token)).
        output_sequence_length: texts are cut, or filled with 0, to this length; by
            default they are filled to the longest of the batch.
        pad_to_max_tokens: vectors have the length ``max_tokens``.
        vocabulary, idf_weights: see ``set_vocabulary``.
        encoding: of texts that come as bytes.
    """

    def __init__(
        self,
        max_tokens: int | None = None,
        standardize: Standardize = "lower_and_strip_punctuation",
        split: Split = "whitespace",
        ngrams: int | Sequence[int] | None = None,
        output_mode: str = "int",
        output_sequence_length: int | None = None,
        pad_to_max_tokens: bool = False,
        vocabulary: Any = None,
        idf_weights: Any = None,
        encoding: str = "utf-8",
        input_shape: Shape | None = None,
        name: str | None = None,
    ) -> None:
        for argument, value, known in (
            ("standardize", standardize, tuple(STANDARDIZE)),
            ("split", split, SPLIT),
            ("output_mode", output_mode, MODES),
        ):
            named = value is None or callable(value) or value in known
            if not named or (argument == "output_mode" and value not in known):
                raise UnknownNameError(argument, value, known)
        self.standardize, self.split = standardize, split
        self.ngrams = _widths(ngrams)
        if output_sequence_length is not None:
            if output_mode != "int":
                raise ArgumentError(
                    "TextVectorization: expected output_sequence_length with "
                    "output_mode 'int' alone",
                    f"output_mode={output_mode!r}",
                )
            self.positive("output_sequence_length", output_sequence_length)
        self.output_sequence_length = output_sequence_length
        super().__init__(
            max_tokens,
            1,
            "",
            "[UNK]",
            vocabulary,
            idf_weights,
            False,
            output_mode,
            pad_to_max_tokens,
            encoding,
            input_shape,
            name,
        )

    def build(self, input_shape: Shape) -> Shape:
        if input_shape not in ((), (1,)):
            raise ShapeError(
                "TextVectorization: expected one text a sample: (batch,) or (batch, 1)",
                f"samples of shape {input_shape}",
                "give one text a sample",
            )
        if self.output_mode == "int":
            self._check_known()
            return (self.output_sequence_length,)
        return (self.depth,)

    def forward(self, x: Array, training: Training = False) -> Array:
        rows = [self._lookup(tokens) for tokens in self._documents(x)]
        if self.output_mode != "int":
            return self.encode(rows)
        length = self.output_sequence_length
        if length is None:
            length = max(map(len, rows), default=0)
        out = np.zeros((len(rows), length), np.int64)
        for place, row in zip(out, rows, strict=True):
            place[: len(row)] = row[:length]
        return out

    def _documents(self, data: Any) -> list[list[str]]:
        """Return the tokens of each text."""
        texts = self._array(data)
        if texts.ndim > 1 and texts.shape[1:] != (1,):
            raise DataError(
                "TextVectorization: expected one text a sample: (batch,) or (batch, 1)",
                f"shape {texts.shape}",
                "join the texts of a sample",
            )
        flat = [self._term(text) for text in texts.reshape(-1).tolist()]
        if isinstance(self.standardize, str):
            table = STANDARDIZE[self.standardize]
            flat = [text.translate(table) for text in flat]
        elif self.standardize is not None:
            flat = list(map(str, np.asarray(self.standardize(np.array(flat))).tolist()))
        if self.split == "whitespace":
            split = [_WORDS.findall(text) for text in flat]
        elif self.split == "character":
            split = [list(text) for text in flat]
        elif self.split is None:
            split = [[text] for text in flat]
        else:
            split = [list(map(str, tokens)) for tokens in self.split(flat)]  # type: ignore[operator]
        if self.ngrams is None:
            return split
        return [_join(tokens, self.ngrams) for tokens in split]


def _widths(ngrams: int | Sequence[int] | None) -> tuple[int, ...] | None:
    if ngrams is None:
        return None
    widths: Sequence[int] | None = ngrams if isinstance(ngrams, (tuple, list)) else None
    if isinstance(ngrams, int) and ngrams >= 1:
        widths = range(1, ngrams + 1)
    if not widths or any(not isinstance(n, int) or n < 1 for n in widths):
        raise ArgumentError(
            "TextVectorization: expected ngrams as a number of 1 or more, or several",
            repr(ngrams),
            "for example 2 for single words and pairs",
        )
    return tuple(widths)


def _join(tokens: Sequence[str], widths: Sequence[int]) -> list[str]:
    return [
        " ".join(tokens[i : i + width])
        for width in widths
        for i in range(len(tokens) - width + 1)
    ]
