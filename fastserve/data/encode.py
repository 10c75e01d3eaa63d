"""A job's text as tokens: read and encoded on rank 0, then sent to the others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from fastserve.comm import Communicator
from fastserve.core import Array
from fastserve.errors import DataError

from .text import load_text, split
from .tokenizers import (
    BPETokenizer,
    ByteTokenizer,
    CharTokenizer,
    Tokenizer,
    load_tokenizer,
    tokenizer_from_json,
)


@dataclass
class EncodedText:
    """A text's tokens.

    Attributes:
        train, validation: (n,) integers; no validation: an empty array.
        validation_bytes: length of the validation text in UTF-8.
    """

    tokenizer: Tokenizer
    train: Array
    validation: Array
    validation_bytes: int

    @property
    def bytes_per_token(self) -> float | None:
        """Mean bytes of text that a validation token stands for; None without any."""
        tokens = len(self.validation)
        return self.validation_bytes / tokens if tokens else None


def encode_text(
    source: str,
    tokenizer: str,
    vocab_size: int | None,
    validation_split: float,
    kept: Tokenizer | None = None,
) -> EncodedText:
    """Read a text and return its tokens.

    Args:
        source: as for ``load_text``.
        tokenizer: ``char``, ``byte``, ``bpe`` (trained from the whole text), or a path
            for ``load_tokenizer``.
        vocab_size: the most tokens that ``bpe`` may have.
        kept: a tokenizer that was trained before, instead of training it again.

    Raises DataError if that can't be done.
    """
    text = load_text(source)
    made: Tokenizer
    if tokenizer == "byte":
        # cut between any two bytes
        return _cut_tokens(ByteTokenizer(), text, validation_split)
    if kept is not None:
        made = kept
    elif tokenizer == "char":
        made = CharTokenizer.train(text)
    elif tokenizer == "bpe":
        assert vocab_size is not None  # config asks for it
        made = BPETokenizer.train([text], vocab_size)
    else:
        made = load_tokenizer(tokenizer)
        if isinstance(made, ByteTokenizer):
            return _cut_tokens(made, text, validation_split)
    cut = int(len(text) * (1 - validation_split))
    train, validation = made.encode(text[:cut]), made.encode(text[cut:])
    if not len(train) or (validation_split > 0 and not len(validation)):
        raise DataError(
            "expected at least one token for training and one for validation",
            f"{len(train)} and {len(validation)}, validation_split {validation_split}",
            "use a longer text, or change data.validation_split",
        )
    return EncodedText(made, train, validation, len(text[cut:].encode()))


def _cut_tokens(made: ByteTokenizer, text: str, part: float) -> EncodedText:
    train, validation = split(made.encode(text), part)
    return EncodedText(made, train, validation, len(validation))


def share_text(found: EncodedText | None, comm: Communicator) -> EncodedText:
    """Return rank 0's tokens on all ranks; ``found`` is None on the others.

    So training a tokenizer and encoding happen once, and all ranks have the same.
    """
    about: Any = None
    if found is not None:
        about = found.tokenizer.to_json() if comm.size > 1 else None
        shapes = [(len(a), a.dtype.str) for a in (found.train, found.validation)]
        about = (about, shapes, found.validation_bytes)
    described, shapes, nbytes = comm.broadcast_obj(about)
    if found is None:
        train, validation = (np.empty(n, dtype) for n, dtype in shapes)
        made = tokenizer_from_json(described)
        found = EncodedText(made, train, validation, nbytes)
    if comm.size > 1:
        for array in (found.train, found.validation):
            if len(array):
                comm.broadcast(array)
    return found
