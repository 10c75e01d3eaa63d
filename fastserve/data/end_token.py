"""A token that ends a document or an answer, for tokenizers that have none."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from fastserve.core import Array
from fastserve.data.tokenizers import Tokenizer, tokenizer_from_json
from fastserve.errors import DataError


class WithEnd:
    """Another tokenizer with an end token.

    Args:
        text: what the tokenizer has one token for, which becomes the end token; None:
            a new one behind the tokenizer's last, which no text contains.

    Raises DataError if the tokenizer makes more than one token of ``text``, or none.
    """

    def __init__(self, tokenizer: Tokenizer, text: str | None = None) -> None:
        self.tokenizer, self.text = tokenizer, text
        self.end: int = tokenizer.vocab_size
        self.vocab_size: int = self.end + 1
        if text is not None:
            tokens = tokenizer.encode(text)
            if len(tokens) != 1:
                raise DataError(
                    "expected an end that is one token",
                    f"{text!r}, which is {len(tokens)} tokens",
                    "give a text of one token, such as a line end, as data.end",
                )
            self.end, self.vocab_size = int(tokens[0]), tokenizer.vocab_size

    def encode(self, text: str) -> Array:
        """Return the tokens (n,) of a text."""
        return self.tokenizer.encode(text)

    def decode(self, ids: ArrayLike) -> str:
        """Return the text of tokens (n,); a new end token is left out."""
        if self.text is not None:
            return self.tokenizer.decode(ids)
        tokens = np.asarray(ids)
        return self.tokenizer.decode(tokens[tokens != self.end])

    def to_json(self) -> dict[str, Any]:
        inner = self.tokenizer.to_json()
        return {"type": "with_end", "tokenizer": inner, "text": self.text}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> WithEnd:
        """Return what ``to_json`` described; raise DataError if it isn't like that."""
        inner = data.get("tokenizer")
        text = data.get("text")
        if (
            set(data) != {"type", "tokenizer", "text"}
            or not isinstance(inner, dict)
            or inner.get("type") == "with_end"
            or not isinstance(text, str | None)
        ):
            raise DataError(
                "expected a tokenizer of type 'with_end' with the keys type, tokenizer "
                "and text",
                repr(data)[:80],
                "use what to_json returned",
            )
        return cls(tokenizer_from_json(inner), text)
