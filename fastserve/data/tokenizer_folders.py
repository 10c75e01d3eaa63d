"""Tokenizers in Hugging Face's folders: ``tokenizer.json``, read and written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastserve.data.end_token import WithEnd
from fastserve.data.tokenizers import (
    END,
    BPETokenizer,
    ByteTokenizer,
    Tokenizer,
    load_tokenizer,
)

NAME = "tokenizer.json"
_PAIRS = (("encoder.json", "vocab.bpe"), ("vocab.json", "merges.txt"))


def read_tokenizer(folder: Path) -> Tokenizer | None:
    """Return the tokenizer of a folder; None if there are no files of one.

    Raises DataError if its files are damaged, or describe another kind than BPE.
    """
    path = folder / NAME
    if path.is_file():
        return load_tokenizer(path)
    if any(all((folder / name).is_file() for name in pair) for pair in _PAIRS):
        return BPETokenizer.load(folder)
    return None


def tokenizer_files(tokenizer: Tokenizer | WithEnd, block_size: int) -> dict[str, Any]:
    """Return the JSON files, by name, from which ``AutoTokenizer`` makes the same."""
    if isinstance(tokenizer, WithEnd):
        made = tokenizer_files(tokenizer.tokenizer, block_size)
        if tokenizer.text is None:
            flags = ("single_word", "lstrip", "rstrip", "normalized")
            token = {"id": tokenizer.end, "content": END, "special": True}
            made[NAME]["added_tokens"].append(token | dict.fromkeys(flags, False))
            made["tokenizer_config.json"]["eos_token"] = END
        return made
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": block_size,
        "clean_up_tokenization_spaces": False,
    }
    if isinstance(tokenizer, BPETokenizer):
        description = tokenizer.description()
        config["eos_token"] = tokenizer.to_json()["end"]
    elif isinstance(tokenizer, ByteTokenizer):
        level = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
        level["trim_offsets"] = False
        description = _description(_byte_names(), level, level)
    else:
        tokens = {c: i for i, c in enumerate(tokenizer.characters)}
        description = _description(tokens, None, {"type": "Fuse"})
    return {NAME: description, "tokenizer_config.json": config}


def _description(tokens: dict[str, int], pre: Any, decoder: Any) -> dict[str, Any]:
    """Return a tokenizer.json of tokens that are never joined: BPE without merges."""
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": pre,
        "post_processor": None,
        "decoder": decoder,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": tokens,
            "merges": [],
        },
    }


def _byte_names() -> dict[str, int]:
    """Return the token of each byte under GPT-2's name for it.

    A byte that can be printed in Latin-1 is its own name; the others are numbered from
    U+0100 on (bytes_to_unicode in GPT-2's encoder.py).
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    names = {chr(byte): byte for byte in printable}
    return names | {chr(0x100 + i): byte for i, byte in enumerate(others)}
