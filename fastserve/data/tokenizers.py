"""Tokenizers: text to integers and back.

A tokenizer has ``vocab_size``, ``encode(text) -> uint16 or int32 (n,)`` and
``decode(ids) -> text``, and goes through ``to_json`` and ``tokenizer_from_json`` to be
kept beside the weights that were trained with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from fastserve.core import Array
from fastserve.errors import DataError, UnknownNameError

_CODES = "utf-32-le"  # four bytes a character: an array of its numbers in Unicode


class CharTokenizer:
    """One token a character; ``characters`` are all that it knows, sorted."""

    def __init__(self, characters: str) -> None:
        codes = _codes(characters)
        if not len(codes) or (codes[1:] <= codes[:-1]).any():
            raise DataError(
                "expected different characters, sorted by their number in Unicode",
                repr(characters[:40]),
                "use CharTokenizer.train(text)",
            )
        self.characters = characters
        self._character = codes
        # the last place stands for all characters above
        self._token = np.full(int(codes[-1]) + 2, -1, np.int32)
        self._token[codes] = np.arange(len(codes))

    @classmethod
    def train(cls, text: str) -> CharTokenizer:
        """Return the tokenizer for the characters of ``text``."""
        present = np.bincount(_codes(text), minlength=1)
        return cls(_text(np.flatnonzero(present).astype("<u4")))

    @property
    def vocab_size(self) -> int:
        return len(self._character)

    def encode(self, text: str) -> Array:
        """Return the tokens (n,); raise DataError at the first unknown character."""
        codes = _codes(text)
        tokens: Array = self._token[np.minimum(codes, len(self._token) - 1)]
        if len(tokens) and tokens.min() < 0:
            place = int(np.argmax(tokens < 0))
            line = text.count("\n", 0, place) + 1
            raise DataError(
                f"expected only the {self.vocab_size} characters that the tokenizer "
                "was made from",
                f"{text[place]!r} (U+{ord(text[place]):04X}) at character {place}, "
                f"line {line}",
                "replace it, or make the tokenizer from a text that has it",
            )
        return tokens.astype(np.uint16) if self.vocab_size <= 1 << 16 else tokens

    def decode(self, ids: ArrayLike) -> str:
        """Return the text of tokens (n,); raise DataError if one is out of range."""
        return _text(self._character[_checked(ids, self.vocab_size)])

    def to_json(self) -> dict[str, Any]:
        return {"type": "char", "characters": self.characters}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> CharTokenizer:
        """Return what ``to_json`` described; raise DataError if it isn't like that."""
        _check_keys(data, {"type": "char", "characters": ""})
        return cls(data["characters"])


class ByteTokenizer:
    """One token a byte of the text in UTF-8, so it knows every text."""

    vocab_size = 256

    def encode(self, text: str) -> Array:
        """Return the bytes (n,); raise DataError where the text has no UTF-8."""
        try:
            data = text.encode()
        except UnicodeEncodeError as error:
            raise DataError(
                "expected text that can be written as UTF-8",
                f"{text[error.start]!r} at character {error.start}",
                "remove it: half of a surrogate pair is no character",
            ) from None
        return np.frombuffer(data, np.uint8).astype(np.uint16)

    def decode(self, ids: ArrayLike) -> str:
        """Return the text of bytes (n,); what isn't UTF-8 becomes U+FFFD."""
        data = _checked(ids, self.vocab_size).astype(np.uint8).tobytes()
        return data.decode(errors="replace")

    def to_json(self) -> dict[str, Any]:
        return {"type": "byte"}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ByteTokenizer:
        """Return what ``to_json`` described; raise DataError if it isn't like that."""
        _check_keys(data, {"type": "byte"})
        return cls()


Tokenizer = CharTokenizer | ByteTokenizer
_TYPES: dict[str, type[Tokenizer]] = {"char": CharTokenizer, "byte": ByteTokenizer}


def tokenizer_from_json(data: Mapping[str, Any]) -> Any:
    """Return the tokenizer that ``to_json`` described.

    Raises UnknownNameError for another type, DataError for other keys or values.
    """
    kind = data.get("type") if isinstance(data, Mapping) else None
    if not isinstance(kind, str):
        raise DataError(
            "expected a tokenizer's description with a 'type'",
            repr(data)[:80],
            "use what to_json returned",
        )
    if kind == "with_end":
        from fastserve.data.end_token import WithEnd  # it is made of tokenizers

        return WithEnd.from_json(data)
    if kind not in _TYPES:
        raise UnknownNameError("tokenizer", kind, _TYPES)
    return _TYPES[kind].from_json(data)


def _codes(text: str) -> Array:
    return np.frombuffer(text.encode(_CODES, "surrogatepass"), "<u4")


def _text(codes: Array) -> str:
    return codes.tobytes().decode(_CODES, "surrogatepass")


def _checked(ids: ArrayLike, vocab_size: int) -> Array:
    tokens = np.asarray(ids)
    if tokens.size == 0 and tokens.ndim == 1:
        return np.empty(0, np.int64)
    if tokens.ndim != 1 or tokens.dtype.kind not in "iu":
        raise DataError(
            "expected one axis of integer tokens",
            f"shape {tokens.shape}, type {tokens.dtype}",
            "decode one text at a time",
        )
    wrong = (tokens < 0) | (tokens >= vocab_size)
    if wrong.any():
        place = int(np.argmax(wrong))
        raise DataError(
            f"expected tokens from 0 to {vocab_size - 1}",
            f"{tokens[place]} at place {place}",
            "decode with the tokenizer that the model was trained with",
        )
    return tokens


def _check_keys(data: Mapping[str, Any], example: Mapping[str, str]) -> None:
    """Raise DataError unless ``data`` has the keys of ``example``, all with strings."""
    strings = isinstance(data, Mapping) and all(
        isinstance(value, str) for value in data.values()
    )
    if not strings or set(data) != set(example) or data["type"] != example["type"]:
        raise DataError(
            f"expected a tokenizer of type {example['type']!r} with the keys "
            f"{', '.join(example)}, all strings",
            repr(data)[:80],
            "use what to_json returned",
        )
