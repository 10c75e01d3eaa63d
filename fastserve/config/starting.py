"""``model.init_from``: the options that a job takes over from a folder of weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from .faults import Faults, show
from .pretrained import read_options

_OWN_TOKENIZERS = ("char", "byte", "bpe")


def take_over(data: dict[str, Any], faults: Faults) -> None:
    """Fill the raw data of a job with the options of its ``model.init_from``.

    Keys that aren't given are the folder's, the tokenizer too. Those that are given
    must agree, but for dropout, which is the job's, and a shorter block_size.
    """
    model = data.get("model")
    if not isinstance(model, dict) or model.get("type") != "gpt":
        return
    folder = model.get("init_from")
    if not isinstance(folder, str) or not folder or "\0" in folder:
        return
    rate = model.get("dropout")
    known = isinstance(rate, (int, float)) and not isinstance(rate, bool)
    try:
        options = read_options(folder, rate if known else None)
    except CheckpointError as error:
        place, _, expected = error.expected.rpartition("expected ")
        where = f" in {place.rstrip(': ')}" if place else ""
        key = ("model", "init_from")
        faults.add(key, expected + where, error.received, error.todo)
        return
    for name, value in options.items():
        given = model.get(name)
        if given is None:
            model[name] = value
        elif name == "block_size" and isinstance(given, (int, float)):
            if given > value:
                expected = f"at most the {show(value)} of {folder}"
                faults.add(("model", name), expected, show(given))
        elif given != value and name != "dropout":
            expected = f"nothing, or {show(value)} as in {folder}"
            faults.add(("model", name), expected, show(given))
    _take_tokenizer(data.get("data"), Path(folder), faults)


def _take_tokenizer(data: Any, folder: Path, faults: Faults) -> None:
    path = folder / "tokenizer.json"
    if not path.is_file():
        path = folder  # GPT-2's two files
        if not (
            (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file()
        ):
            return
    texts = ("text", "completions")
    if not isinstance(data, dict) or data.get("type") not in texts:
        return
    given = data.get("tokenizer")
    if given is None:
        data["tokenizer"] = str(path)
    elif given in _OWN_TOKENIZERS:
        expected = f"nothing, or the tokenizer of the weights, {path}"
        faults.add(("data", "tokenizer"), expected, json.dumps(given))
