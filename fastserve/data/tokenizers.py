"""Tokenizers: text to integers and back.

A tokenizer has ``vocab_size``, ``encode(text) -> uint16 or int32 (n,)``,
``decode(ids) -> text`` and ``end``, the token that ends a document or None, and goes
through ``to_json`` and ``tokenizer_from_json`` to be kept beside the weights that were
trained with it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from fastserve.core import Array
from fastserve.errors import DataError, UnknownNameError

if TYPE_CHECKING:
    import tokenizers

END = "<|endoftext|>"  # GPT-2's token at the end of each document
# the same in other tokenizers, where no tokenizer_config.json names it
_ENDS = (END, "<|end_of_text|>", "</s>", "<eos>", "<|im_end|>")
_FORMS = ("NFC", "NFD", "NFKC", "NFKD")
_PIECE = 1 << 16  # characters that are encoded at a time
_LONGEST_PIECE = 1 << 20
# Byte-level BPE never joins what stands on the two sides of such a place: behind the
# only line end, or before the only space, between what isn't white space.
CUT = re.compile(r"(?<=\S\n)(?=\S)|(?<=\S)(?= \S)")
_CODES = "utf-32-le"  # four bytes a character: an array of its numbers in Unicode


class CharTokenizer:
    """One token a character; ``characters`` are all that it knows, sorted."""

    end = None
    may_be_cut = True

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
    end = None
    may_be_cut = True

    def encode(self, text: str) -> Array:
        """Return the bytes (n,); raise DataError where the text has no UTF-8."""
        try:
            data = text.encode()
        except UnicodeEncodeError as error:
            raise _no_utf8(error) from None
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


class BPETokenizer:
    """Byte pair encoding, of bytes or with bytes for what has no token of its own.

    (Sennrich et al., "Neural machine translation of rare words with subword units",
    2016; on bytes: Radford et al., "Language models are unsupervised multitask
    learners", 2019.) The library ``tokenizers`` does the work. The name of a special
    token in a text becomes that token, as with Hugging Face's own tools.

    Args:
        description: what a ``tokenizer.json`` holds.
        end: name of the token that ends a document; None: there is none.

    ``may_be_cut`` says whether ``pieces_of`` a text have the tokens of the whole.

    Raises:
        DataError: it isn't a BPE tokenizer that knows every byte.
    """

    def __init__(self, description: Mapping[str, Any], end: str | None) -> None:
        library = _library()
        _check_description(description)
        # neither chance nor a fixed length may have a part in it
        plain = {"truncation": None, "padding": None}
        model = {**description["model"], "dropout": None}
        text = json.dumps({**description, **plain, "model": model})
        try:
            self._library: tokenizers.Tokenizer = library.Tokenizer.from_str(text)
        except Exception as error:  # noqa: BLE001  the library has no class for it
            raise _no_tokenizer(str(error)) from None
        vocabulary = self._library.get_vocab(with_added_tokens=True)
        _check_bytes(description, vocabulary)
        self.vocab_size = max(vocabulary.values()) + 1
        self.end: int | None = None
        if end is not None:
            self.end = vocabulary.get(end)
            if self.end is None:
                raise _no_tokenizer(f"none of its tokens is the end token {end!r}")
        self.may_be_cut = _may_be_cut(description)

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> BPETokenizer:
        """Return the byte-level tokenizer for these texts, with GPT-2's rules.

        The same texts in the same order give the same tokenizer. Its vocabulary is
        smaller than ``vocab_size`` (at least 257: the bytes and the end token) where
        the texts have fewer different pairs.
        """
        library = _library()
        if vocab_size < 257:
            raise DataError(
                "expected a vocabulary of at least 257: all bytes and the end token",
                str(vocab_size),
                "raise the vocab_size",
            )
        made = library.Tokenizer(library.models.BPE())
        level = library.pre_tokenizers.ByteLevel
        made.pre_tokenizer = level(add_prefix_space=False)
        made.decoder = library.decoders.ByteLevel()
        trainer = library.trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=[END],
            initial_alphabet=sorted(level.alphabet()),
            show_progress=False,
        )
        pieces = (_utf8(piece) for text in texts for piece in pieces_of(text))
        made.train_from_iterator(pieces, trainer)
        return cls(json.loads(made.to_str()), END)

    @classmethod
    def load(cls, path: str | Path) -> BPETokenizer:
        """Read a ``tokenizer.json``, or a folder with one or with GPT-2's two files.

        Those are ``encoder.json`` and ``vocab.bpe``, or ``vocab.json`` and
        ``merges.txt``. A ``tokenizer_config.json`` beside it names the end token.

        Raises DataError if there is no such tokenizer.
        """
        path = Path(path)
        if path.is_file():
            return cls._of_file(path)
        if (path / "tokenizer.json").is_file():
            return cls._of_file(path / "tokenizer.json")
        for names in (("encoder.json", "vocab.bpe"), ("vocab.json", "merges.txt")):
            vocabulary, merges = (path / name for name in names)
            if vocabulary.is_file() and merges.is_file():
                return cls._of_gpt2(vocabulary, merges)
        raise DataError(
            "expected a tokenizer.json, or a folder with one, or with encoder.json and "
            "vocab.bpe, or with vocab.json and merges.txt",
            f"{path}, {'a folder without' if path.is_dir() else 'which is not there'}",
            "check the path",
        )

    @classmethod
    def _of_file(cls, path: Path) -> BPETokenizer:
        data = _read_json(path)
        if data.get("type") == "bpe":  # that of a run of ours
            return cls.from_json(data)
        config = path.with_name("tokenizer_config.json")
        named = _read_json(config).get("eos_token") if config.is_file() else None
        end = named.get("content") if isinstance(named, dict) else named
        with _naming(path):
            return cls(data, end if isinstance(end, str) else _end_of(data))

    @classmethod
    def _of_gpt2(cls, vocabulary: Path, merges: Path) -> BPETokenizer:
        tokens = _read_json(vocabulary)
        lines = _read_text(merges).split("\n")
        if lines[0].startswith("#version"):
            del lines[0]
        level = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
        level["trim_offsets"] = True
        special = {"single_word": False, "lstrip": False, "rstrip": False}
        special |= {"normalized": False, "special": True}
        ends = [name for name in (END,) if isinstance(tokens.get(name), int)]
        description = {
            "version": "1.0",
            "added_tokens": [{"id": tokens[e], "content": e, **special} for e in ends],
            "normalizer": None,
            "pre_tokenizer": level,
            "post_processor": None,
            "decoder": level,
            "model": {
                "type": "BPE",
                "vocab": tokens,
                "merges": [line.strip() for line in lines if line.strip()],
            },
        }
        with _naming(vocabulary):
            return cls(description, ends[0] if ends else None)

    def encode(self, text: str) -> Array:
        """Return the tokens (n,); raise DataError where the text has no UTF-8."""
        kind = np.uint16 if self.vocab_size <= 1 << 16 else np.int32
        pieces = pieces_of(text) if self.may_be_cut else iter((text,))
        made = [np.empty(0, kind)]
        for piece in pieces:
            found = self._library.encode(_utf8(piece), add_special_tokens=False)
            made.append(np.array(found.ids, kind))
        return np.concatenate(made)

    def decode(self, ids: ArrayLike) -> str:
        """Return the text of tokens (n,); what isn't UTF-8 becomes U+FFFD."""
        tokens = _checked(ids, self.vocab_size).tolist()
        return str(self._library.decode(tokens, skip_special_tokens=False))

    def description(self) -> dict[str, Any]:
        """Return what a ``tokenizer.json`` of Hugging Face's holds."""
        found: dict[str, Any] = json.loads(self._library.to_str())
        return found

    def to_json(self) -> dict[str, Any]:
        end = None if self.end is None else self._library.id_to_token(self.end)
        return {"type": "bpe", "end": end, "tokenizer": self.description()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> BPETokenizer:
        """Return what ``to_json`` described; raise DataError if it isn't like that."""
        right = isinstance(data, Mapping) and set(data) == {"type", "end", "tokenizer"}
        if (
            not right
            or data["type"] != "bpe"
            or not isinstance(data["end"], str | None)
        ):
            raise DataError(
                "expected a tokenizer of type 'bpe' with the keys type, end, tokenizer",
                repr(data)[:80],
                "use what to_json returned",
            )
        return cls(data["tokenizer"], data["end"])


def pieces_of(*texts: str) -> Iterator[str]:
    """Cut a text where byte-level BPE gives the same tokens as for the whole."""
    return cut_pieces(texts)


def cut_pieces(texts: Iterable[str]) -> Iterator[str]:
    """Cut one text, that comes in parts, as ``pieces_of`` does.

    The pieces don't depend on the parts. Where there is no place to cut for 1 Mi
    characters it is cut there nevertheless: some other tokens then stand for the same
    text.
    """
    rest = ""
    for text in texts:
        rest += text
        start = 0
        while len(rest) - start > _LONGEST_PIECE + 2:  # all that decides is there
            stop = _next_cut(rest, start)
            yield rest[start:stop]
            start = stop
        rest = rest[start:]
    start = 0
    while len(rest) - start > _PIECE:
        stop = _next_cut(rest, start)
        yield rest[start:stop]
        start = stop
    yield rest[start:]


def _next_cut(text: str, start: int) -> int:
    furthest = start + _LONGEST_PIECE
    # the place itself is seen with the two characters behind it
    found = CUT.search(text, start + _PIECE, furthest + 2)
    return found.start() if found else min(furthest, len(text))


def _library() -> Any:
    try:
        import tokenizers.decoders
        import tokenizers.models
        import tokenizers.pre_tokenizers
        import tokenizers.trainers
    except ImportError as error:
        raise DataError(
            "expected the library tokenizers, for BPE",
            str(error),
            "pip install 'fastserve-train[text]'",
        ) from None
    return tokenizers


def _no_tokenizer(reason: str) -> DataError:
    return DataError(
        "expected a tokenizer of byte pairs as tokenizer.json describes it",
        reason,
        "use a byte-level BPE tokenizer such as GPT-2's or Llama's",
    )


def _utf8(text: str) -> str:
    """Return the text; raise DataError if it can't be written as UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise _no_utf8(error) from None
    return text


def _no_utf8(error: UnicodeEncodeError) -> DataError:
    return DataError(
        "expected text that can be written as UTF-8",
        f"{error.object[error.start]!r} at character {error.start}",
        "remove it: half of a surrogate pair is no character",
    )


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Say in a DataError which file has the fault."""
    try:
        yield
    except DataError as error:
        received = f"{path}: {error.received}"
        raise DataError(error.expected, received, error.todo) from None


def _read_text(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, ValueError) as error:
        raise _no_tokenizer(f"{path}: {error}") from None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(_read_text(path))
    except (ValueError, RecursionError) as error:
        if isinstance(error, DataError):
            raise
        raise _no_tokenizer(f"{path}: no JSON: {error}") from None
    if not isinstance(data, dict):
        raise _no_tokenizer(f"{path}: {type(data).__name__}")
    return data


def _check_description(data: Any) -> None:
    """Raise DataError unless it is like a tokenizer.json with a model of type BPE."""
    model = data.get("model") if isinstance(data, Mapping) else None
    if not isinstance(model, Mapping):
        raise _no_tokenizer(f"no 'model' in {repr(data)[:60]}")
    kind = model.get("type", "BPE" if "merges" in model else None)
    if kind != "BPE":
        raise _no_tokenizer(f"a model of type {kind}")
    tokens = model.get("vocab")
    if not isinstance(tokens, Mapping) or not tokens:
        raise _no_tokenizer("a model without a vocabulary")
    for name, number in tokens.items():
        if type(number) is not int or not 0 <= number < 1 << 31:
            raise _no_tokenizer(f"{number!r} as the number of {name!r}")


def _parts(data: Any, kind: str) -> list[Mapping[str, Any]]:
    """Return the parts of a type in a description of nested parts."""
    if isinstance(data, Mapping):
        own = [data] if data.get("type") == kind else []
        return own + [p for value in data.values() for p in _parts(value, kind)]
    if isinstance(data, list):
        return [part for value in data for part in _parts(value, kind)]
    return []


def _check_bytes(data: Mapping[str, Any], vocabulary: Mapping[str, int]) -> None:
    """Raise DataError if some text would lose bytes."""
    if _parts(data.get("pre_tokenizer"), "ByteLevel"):
        wanted = _library().pre_tokenizers.ByteLevel.alphabet()
    elif data["model"].get("byte_fallback"):
        wanted = [f"<0x{byte:02X}>" for byte in range(256)]
    else:
        raise _no_tokenizer("neither byte-level nor with byte_fallback")
    missing = [symbol for symbol in wanted if symbol not in vocabulary]
    if missing:
        raise _no_tokenizer(f"no token for {len(missing)} of the 256 bytes")


def _may_be_cut(data: Mapping[str, Any]) -> bool:
    """Return whether tokens are the same if a text is cut as ``pieces_of`` does."""
    levels = _parts(data.get("pre_tokenizer"), "ByteLevel")
    form = (data.get("normalizer") or {}).get("type", _FORMS[0])
    return form in _FORMS and any(not p.get("add_prefix_space") for p in levels)


def _end_of(data: Mapping[str, Any]) -> str | None:
    added = data.get("added_tokens")
    listed = added if isinstance(added, list) else []
    names = [token.get("content") for token in listed if isinstance(token, Mapping)]
    return next((name for name in _ENDS if name in names), None)


Tokenizer = CharTokenizer | ByteTokenizer | BPETokenizer
_TYPES: dict[str, type[Tokenizer]] = {
    "char": CharTokenizer,
    "byte": ByteTokenizer,
    "bpe": BPETokenizer,
}


def load_tokenizer(path: str | Path) -> Tokenizer:
    """Read a run's tokenizer.json of any kind, or what ``BPETokenizer.load`` reads.

    Raises DataError if it isn't there, or isn't like that.
    """
    path = Path(path)
    if path.is_file():
        data = _read_json(path)
        if isinstance(data.get("type"), str):
            with _naming(path):
                return tokenizer_from_json(data)
        if characters := _characters_of(data):
            return CharTokenizer(characters)
    return BPETokenizer.load(path)


def _characters_of(data: Mapping[str, Any]) -> str:
    """Return the characters if a tokenizer.json has these alone, in our order.

    That is how ``tokenizer_folders`` describes a CharTokenizer: BPE without merges.
    """
    model, level = data.get("model"), data.get("pre_tokenizer")
    if not isinstance(model, Mapping) or level is not None or model.get("merges", 1):
        return ""
    tokens = model.get("vocab")
    if not isinstance(tokens, Mapping) or model.get("byte_fallback"):
        return ""
    characters = "".join(sorted(tokens))
    in_order = [tokens.get(c) for c in characters] == list(range(len(tokens)))
    return characters if in_order else ""


def tokenizer_from_json(data: Mapping[str, Any]) -> Tokenizer:
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
