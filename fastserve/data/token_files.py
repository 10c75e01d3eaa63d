"""Files of tokens, mapped into memory: nanoGPT's, llm.c's, NumPy's and our own.

Our own are a folder with ``manifest.json``, ``tokenizer.json`` and shards of raw
little-endian integers, ``train-00000.u16.bin`` and so on. The manifest holds::

    {"format": "fastserve tokens", "version": 1, "dtype": "uint16",
     "vocab_size": 8192, "end": 0, "tokenizer": "tokenizer.json",
     "train": {"tokens": 9, "bytes": 30, "documents": 1, "shards": [
         {"file": "train-00000.u16.bin", "tokens": 9, "sha256": "..."}]},
     "validation": {...}}

``end`` is the token behind each document (null: there is none), ``bytes`` the length of
the text in UTF-8. What wrote the manifest has checked that each token is below
``vocab_size``, so opening reads no shard; it compares the files' lengths.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fastserve.core import Array
from fastserve.data.npy import load_npy
from fastserve.errors import DataError

from .tokenizers import Tokenizer, load_tokenizer

MANIFEST = "manifest.json"
TOKENIZER = "tokenizer.json"
FORMAT, VERSION = "fastserve tokens", 1
PARTS = ("train", "validation")
DTYPES = {"uint16": "<u2", "uint32": "<u4"}
_CHECKED = 1 << 20  # tokens that are looked at together

# llm.c's header: 256 int32, the first three are magic, version, number of tokens
# (https://github.com/karpathy/llm.c, dev/data/data_common.py)
_HEADER = 256 * 4
_LLMC = {  # magic: (version, type, vocabulary)
    20240520: (1, "<u2", 50257),  # GPT-2
    20240801: (7, "<u4", 128256),  # Llama 3
}
_LLMC_EVALUATION = 20240522


class Shards:
    """Arrays (n,) one behind the other, read like one array: its length and slices."""

    ndim = 1

    def __init__(self, arrays: list[Array]) -> None:
        self._arrays = arrays
        self.dtype = arrays[0].dtype
        self._ends = np.cumsum([len(array) for array in arrays])

    def __len__(self) -> int:
        return int(self._ends[-1])

    @property
    def shape(self) -> tuple[int]:
        return (len(self),)

    def __getitem__(self, place: slice) -> Array:
        start, stop, step = place.indices(len(self))
        if step != 1:
            raise ValueError(f"expected a slice without a step, not {place}")
        first = int(np.searchsorted(self._ends, start, "right"))
        found = []
        while start < stop:
            array, end = self._arrays[first], int(self._ends[first])
            at = start - (end - len(array))
            found.append(array[at : at + min(stop, end) - start])
            start, first = end, first + 1
        if len(found) == 1:
            return found[0]
        return np.concatenate(found) if found else np.empty(0, self.dtype)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        whole = self[:]
        return whole if dtype is None else whole.astype(dtype, copy=False)


@dataclass
class TokenFile:
    """An open file of tokens, or one part of a folder of them.

    Attributes:
        tokens: (n,) integers, memory-mapped.
        text_bytes: length in UTF-8 of the text that they stand for; None: not known.
        end: the token at the end of each document; None: not known, or there is none.
    """

    tokens: Array | Shards
    vocab_size: int
    tokenizer: Tokenizer | None = None
    end: int | None = None
    text_bytes: int | None = None


def open_token_file(
    path: str | Path,
    vocab_size: int | None = None,
    part: str = "train",
    check: bool = True,
) -> TokenFile:
    """Map a file of tokens, without reading it into memory.

    Args:
        path: ``.npy``; ``.bin`` of llm.c with its header, or raw uint16 as nanoGPT
            writes it, or raw uint32 if the name ends in ``.u32.bin``; ``manifest.json``
            or its folder.
        vocab_size: only needed where the file doesn't tell it.
        part: of a manifest: ``train`` or ``validation``.
        check: look for tokens that aren't below the vocabulary's size, in pieces of
            2**20. Of a manifest that isn't needed.

    Raises DataError if it isn't there, is cut short, or holds a token that isn't below
    the vocabulary's size.
    """
    path = Path(path)
    if path.is_dir() or path.suffix == ".json":
        return _open_part(path, vocab_size, part)
    if not path.is_file():
        raise DataError("expected a file of tokens", f"{path}", "check data.train")
    try:
        tokens, known = _npy(path) if path.suffix == ".npy" else _bin(path)
    except (ValueError, OSError, EOFError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            "expected tokens as .npy, as raw uint16, or with llm.c's header",
            f"{path}: {error}",
            "write the file again",
        ) from None
    size = vocab_size or known
    if size is None:
        raise DataError(
            "expected data.vocab_size, as the file doesn't tell it",
            f"{path}",
            "set data.vocab_size to the number of the tokenizer's different tokens",
        )
    if check:
        check_tokens(tokens, size, str(path))
    return TokenFile(tokens, size)


def check_tokens(tokens: Array, vocab_size: int, name: str) -> None:
    """Raise DataError, with the place, at a token that isn't below ``vocab_size``."""
    for start in range(0, len(tokens), _CHECKED):
        piece = tokens[start : start + _CHECKED]
        if piece.max() >= vocab_size or piece.min() < 0:
            where = int(np.argmax((piece >= vocab_size) | (piece < 0)))
            raise DataError(
                f"expected tokens from 0 to {vocab_size - 1}",
                f"{name}: {piece[where]} at place {start + where}",
                "raise data.vocab_size, or use the tokenizer the file was made with"
                if piece[where] >= 0
                else "write the file again, with token numbers alone",
            )


def _npy(path: Path) -> tuple[Array, int | None]:
    tokens: Array = load_npy(path, mmap_mode="r")
    if tokens.ndim != 1 or tokens.dtype.kind not in "iu":
        raise DataError(
            "expected one axis of integer tokens",
            f"{path}: shape {tokens.shape}, type {tokens.dtype}",
            "write the file again",
        )
    return tokens, None


def _bin(path: Path) -> tuple[Array, int | None]:
    size = path.stat().st_size
    with path.open("rb") as file:
        header = np.frombuffer(file.read(_HEADER // 4 * 4), np.uint8)
    whole = len(header) // 4 * 4
    magic, version, count = ([*header[:whole].view("<i4").tolist(), 0, 0, 0])[:3]
    if magic == _LLMC_EVALUATION:
        raise ValueError("llm.c's questions to evaluate a model, no stream of tokens")
    if magic not in _LLMC:
        kind = DTYPES["uint32" if path.name.endswith(".u32.bin") else "uint16"]
        return _map(path, kind, 0, size), None
    known, kind, vocabulary = _LLMC[magic]
    if size < _HEADER:
        raise ValueError(f"llm.c's header has {_HEADER} bytes, the file {size}")
    if version != known:
        raise ValueError(f"version {version} of llm.c's format, not {known}")
    tokens = _map(path, kind, _HEADER, size)
    if len(tokens) != count:
        raise ValueError(f"its header says {count} tokens, it has {len(tokens)}")
    return tokens, vocabulary


def _map(path: Path, kind: str, start: int, size: int) -> Array:
    width = np.dtype(kind).itemsize
    if size == start:
        raise ValueError("an empty file, or one with a header alone")
    if (size - start) % width:
        odd = "an odd number" if width == 2 else f"no multiple of {width}"
        raise ValueError(f"{size} bytes, {odd}: it is cut short")
    return np.memmap(path, kind, "r", start)


# -- our own format -------------------------------------------------------------------


def read_manifest(path: Path) -> dict[str, Any]:
    """Return a manifest; raise DataError if it isn't one, or not like the shards."""
    file = path / MANIFEST if path.is_dir() else path
    try:
        data = json.loads(file.read_text("utf-8"))
        _check_manifest(data)
    except FileNotFoundError:
        raise DataError(
            f"expected a folder with a {MANIFEST}",
            f"{path}",
            "make one with: fastserve prepare TEXT --to FOLDER",
        ) from None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        what = f"no {error}" if isinstance(error, KeyError) else error
        raise DataError(
            f"expected a {MANIFEST} as fastserve prepare writes it",
            f"{file}: {what}",
            "prepare the data again",
        ) from None
    for part in PARTS:
        for shard in data.get(part, {}).get("shards", ()):
            _check_shard(file.parent / shard["file"], shard, data["dtype"])
    return dict(data)


def _check_manifest(data: Any) -> None:
    if not isinstance(data, Mapping) or data.get("format") != FORMAT:
        raise ValueError(f"its 'format' isn't {FORMAT!r}")
    if data["version"] != VERSION:
        raise ValueError(f"version {data['version']!r}, not {VERSION}")
    if data["dtype"] not in DTYPES:
        raise ValueError(f"dtype {data['dtype']!r}, not uint16 or uint32")
    if not _is_count(data["vocab_size"]) or data["vocab_size"] < 1:
        raise ValueError(f"vocab_size {data['vocab_size']!r}")
    if data["end"] is not None and not _is_count(data["end"]):
        raise ValueError(f"end {data['end']!r}")
    if data["tokenizer"] not in (None, TOKENIZER):
        raise ValueError(f"tokenizer {data['tokenizer']!r}, not {TOKENIZER}")
    if "train" not in data:
        raise KeyError("train")
    for part in PARTS:
        if part in data:
            _check_part(data[part], part)


def _check_part(data: Any, part: str) -> None:
    shards = data["shards"]
    if not _is_count(data["tokens"]) or not _is_count(data["bytes"]):
        raise ValueError(f"{part}: tokens {data['tokens']!r}, bytes {data['bytes']!r}")
    if not isinstance(shards, list) or not shards:
        raise ValueError(f"{part}: no shards")
    for shard in shards:
        name, count = shard["file"], shard["tokens"]
        if not isinstance(name, str) or Path(name).name != name or not _is_count(count):
            raise ValueError(f"{part}: a shard {name!r} of {count!r} tokens")
    total = sum(shard["tokens"] for shard in shards)
    if total != data["tokens"]:
        raise ValueError(f"{part}: {data['tokens']} tokens, in its shards {total}")


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _check_shard(path: Path, shard: Mapping[str, Any], dtype: str) -> None:
    wanted = shard["tokens"] * np.dtype(DTYPES[dtype]).itemsize
    try:
        size = path.stat().st_size
    except OSError as error:
        raise DataError(
            f"expected the shard {path.name} that the {MANIFEST} names",
            f"{path}: {error.strerror}",
            "copy the whole folder, or prepare the data again",
        ) from None
    if size != wanted:
        raise DataError(
            f"expected {wanted} bytes for the {shard['tokens']} tokens of the "
            f"{MANIFEST}",
            f"{path}: {size} bytes",
            "copy the whole folder again, or prepare the data again",
        )


def _open_part(path: Path, vocab_size: int | None, part: str) -> TokenFile:
    data = read_manifest(path)
    folder = path if path.is_dir() else path.parent
    known = data["vocab_size"]
    if vocab_size is not None and vocab_size != known:
        raise DataError(
            f"expected data.vocab_size to be {known}, as {folder / MANIFEST} says",
            str(vocab_size),
            "leave data.vocab_size out",
        )
    if part not in data:
        raise DataError(
            f"expected a part {part!r} in the {MANIFEST}",
            f"{folder} without one",
            "prepare it with --validation-split 0.1, or give another folder or file",
        )
    maps: list[Array] = [
        np.memmap(folder / shard["file"], DTYPES[data["dtype"]], "r")
        for shard in data[part]["shards"]
        if shard["tokens"]
    ]
    if not maps:
        raise DataError(
            f"expected at least one token in {part!r}", f"{folder}", "use more text"
        )
    tokenizer = load_tokenizer(folder / TOKENIZER) if data["tokenizer"] else None
    if tokenizer is not None and tokenizer.vocab_size != known:
        raise DataError(
            f"expected the tokenizer of the {known} tokens of {MANIFEST}",
            f"{folder / TOKENIZER} with {tokenizer.vocab_size}",
            "copy the whole folder, or prepare the data again",
        )
    return TokenFile(
        maps[0] if len(maps) == 1 else Shards(maps),
        known,
        tokenizer,
        data["end"],
        data[part]["bytes"],
    )
