"""Byte pair encoding: trained, read from others' files, kept in a run."""

from __future__ import annotations

import json
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastserve.data.text import load_text
from fastserve.data.tokenizers import (
    _LONGEST_PIECE,
    _PIECE,
    END,
    BPETokenizer,
    load_tokenizer,
    pieces_of,
    tokenizer_from_json,
)
from fastserve.errors import DataError

TEXT = load_text("pydoc-topics")


@pytest.fixture(scope="module")
def trained() -> BPETokenizer:
    return BPETokenizer.train([TEXT], 600)


def gpt2_files(
    folder: Path, tokenizer: BPETokenizer, names: tuple[str, str]
) -> dict[str, int]:
    """Write a tokenizer as GPT-2's two files, its end token last as there."""
    model = tokenizer.description()["model"]
    vocabulary = {n: i - 1 for n, i in model["vocab"].items() if n != END}
    vocabulary[END] = len(vocabulary)
    (folder / names[0]).write_text(json.dumps(vocabulary))
    merges = "\n".join(" ".join(pair) for pair in model["merges"])
    (folder / names[1]).write_text(f"#version: 0.2\n{merges}\n")
    return vocabulary


def test_training(trained: BPETokenizer) -> None:
    assert trained.vocab_size == 600
    assert trained.end == 0
    tokens = trained.encode(TEXT)
    assert tokens.dtype == np.uint16
    assert tokens.max() < 600
    assert len(tokens) < 0.55 * len(TEXT)
    assert trained.decode(tokens) == TEXT
    assert BPETokenizer.train([TEXT], 600).to_json() == trained.to_json()


def test_a_text_too_small_for_the_vocabulary() -> None:
    tokenizer = BPETokenizer.train(["abab"], 1000)
    assert tokenizer.vocab_size == 259  # bytes, the end, "ab" and "abab"
    assert BPETokenizer.train([], 1000).vocab_size == 257
    with pytest.raises(DataError, match="at least 257"):
        BPETokenizer.train(["abab"], 256)


@cache
def small() -> BPETokenizer:
    return BPETokenizer.train([TEXT[:20_000]], 300)


@settings(max_examples=60, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_every_text_comes_back(text: str) -> None:
    tokenizer = small()
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_the_end_token(trained: BPETokenizer) -> None:
    tokens = trained.encode(f"one{END}two")
    assert (tokens == trained.end).sum() == 1
    assert trained.decode(tokens) == f"one{END}two"


def test_pieces_give_the_tokens_of_the_whole(trained: BPETokenizer) -> None:
    text = (TEXT + "\n\n\n one  two\n\t three!\n'quoted' 12 345 ") * 2
    pieces = list(pieces_of(text))
    assert "".join(pieces) == text
    assert len(pieces) > 8
    assert max(map(len, pieces)) < 1.1 * _PIECE
    whole = trained._library.encode(text, add_special_tokens=False).ids
    np.testing.assert_array_equal(trained.encode(text), whole)


def test_pieces_of_a_text_without_white_space() -> None:
    text = "\u4e2d" * (2 * _LONGEST_PIECE + 5)
    assert [len(p) for p in pieces_of(text)] == [_LONGEST_PIECE, _LONGEST_PIECE, 5]
    assert list(pieces_of("")) == [""]


def test_json(trained: BPETokenizer, tmp_path: Path) -> None:
    kept = json.loads(json.dumps(trained.to_json()))
    again = tokenizer_from_json(kept)
    assert isinstance(again, BPETokenizer)
    assert again.to_json() == trained.to_json()
    assert again.end == trained.end
    np.testing.assert_array_equal(again.encode(TEXT), trained.encode(TEXT))
    (tmp_path / "tokenizer.json").write_text(json.dumps(kept))
    assert load_tokenizer(tmp_path).to_json() == trained.to_json()
    assert load_tokenizer(tmp_path / "tokenizer.json").to_json() == trained.to_json()


def test_a_tokenizer_of_another_kind_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "t.json").write_text('{"type": "char", "characters": "ab"}')
    assert load_tokenizer(tmp_path / "t.json").vocab_size == 2
    (tmp_path / "t.json").write_text('{"type": "char", "characters": "ba"}')
    with pytest.raises(DataError, match=r"t\.json"):
        load_tokenizer(tmp_path / "t.json")


@pytest.mark.parametrize(
    "names", [("encoder.json", "vocab.bpe"), ("vocab.json", "merges.txt")]
)
def test_files_of_gpt2(
    names: tuple[str, str], trained: BPETokenizer, tmp_path: Path
) -> None:
    vocabulary = gpt2_files(tmp_path, trained, names)
    tokenizer = BPETokenizer.load(tmp_path)
    assert tokenizer.vocab_size == 600
    assert tokenizer.end == vocabulary[END] == 599
    np.testing.assert_array_equal(
        tokenizer.encode(TEXT), trained.encode(TEXT).astype(int) - 1
    )
    assert tokenizer.decode(tokenizer.encode(TEXT + END)) == TEXT + END


def test_settings_of_other_tools_have_no_part(
    trained: BPETokenizer, tmp_path: Path
) -> None:
    """Cutting off, padding, chance and start tokens are for others' pipelines."""
    data = trained.description()
    data["truncation"] = {
        "direction": "Right",
        "max_length": 4,
        "strategy": "LongestFirst",
        "stride": 0,
    }
    data["model"]["dropout"] = 0.9
    data["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [
            {"SpecialToken": {"id": END, "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}},
        ],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}],
        "special_tokens": {END: {"id": END, "ids": [0], "tokens": [END]}},
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(data))
    tokenizer = BPETokenizer.load(tmp_path)
    np.testing.assert_array_equal(tokenizer.encode(TEXT), trained.encode(TEXT))


def test_the_end_token_of_a_folder(trained: BPETokenizer, tmp_path: Path) -> None:
    data = trained.description()
    data["added_tokens"].append(
        {**data["added_tokens"][0], "id": 600, "content": "<|stop|>"}
    )
    (tmp_path / "tokenizer.json").write_text(json.dumps(data))
    assert BPETokenizer.load(tmp_path).end == 0
    config = tmp_path / "tokenizer_config.json"
    config.write_text('{"eos_token": "<|stop|>"}')
    assert BPETokenizer.load(tmp_path).end == 600
    config.write_text('{"eos_token": {"content": "<|stop|>"}}')
    assert BPETokenizer.load(tmp_path).vocab_size == 601
    config.write_text('{"eos_token": "<|none|>"}')
    with pytest.raises(DataError, match=r"end token '<\|none\|>'"):
        BPETokenizer.load(tmp_path)


def bad(change: str, data: dict) -> object:
    model = data["model"]
    if change == "unigram":
        model["type"] = "Unigram"
    elif change == "byte":
        del model["vocab"]["a"]
        model["merges"] = []
    elif change == "level":
        data["pre_tokenizer"] = None
    elif change == "number":
        model["vocab"]["a"] = "7"
    elif change == "merge":
        model["merges"].append(["qqq", "zzz"])
    elif change == "vocab":
        model["vocab"] = {}
    elif change == "model":
        del data["model"]
    elif change == "list":
        return [1]
    elif change == "key":
        del data["decoder"]
        data["added_tokens"] = 7
    return data


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ("unigram", "Unigram"),
        ("byte", "1 of the 256 bytes"),
        ("level", "neither byte-level"),
        ("number", "'7' as the number of 'a'"),
        ("merge", "qqq"),
        ("vocab", "without a vocabulary"),
        ("model", "no 'model'"),
        ("list", "list"),
        ("key", "tokenizer.json"),
    ],
)
def test_bad_descriptions(
    change: str, part: str, trained: BPETokenizer, tmp_path: Path
) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(bad(change, trained.description())))
    with pytest.raises(DataError) as caught:
        BPETokenizer.load(path)
    assert part in str(caught.value)
    assert str(path) in caught.value.received
    assert caught.value.todo


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[" * 100_000])
def test_files_that_are_no_json(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content)
    for load in (BPETokenizer.load, load_tokenizer):
        with pytest.raises(DataError) as caught:
            load(path)
        assert str(path) in caught.value.received


def test_no_tokenizer(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(DataError) as caught:
            load_tokenizer(path)
        assert str(path) in caught.value.received
        assert "vocab.bpe" in caught.value.expected


def test_wrong_json_of_a_run(trained: BPETokenizer) -> None:
    kept = trained.to_json()
    for wrong in ({**kept, "end": 3}, {**kept, "more": 1}, {"type": "bpe"}):
        with pytest.raises(DataError, match="keys type, end, tokenizer"):
            tokenizer_from_json(wrong)
    with pytest.raises(DataError, match="end token '<>'"):
        tokenizer_from_json({**kept, "end": "<>"})


def test_tokens_beyond_the_vocabulary(trained: BPETokenizer) -> None:
    with pytest.raises(DataError, match="from 0 to 599"):
        trained.decode([5, 600])
    assert trained.decode([]) == ""


def test_half_of_a_surrogate_pair(trained: BPETokenizer) -> None:
    with pytest.raises(DataError, match="surrogate"):
        trained.encode("ab\ud800")
    with pytest.raises(DataError, match="surrogate"):
        BPETokenizer.train(["ab\ud800"], 300)


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(DataError, match=r"fastserve-train\[text\]"):
        BPETokenizer.train(["text"], 300)
    with pytest.raises(DataError, match=r"fastserve-train\[text\]"):
        tokenizer_from_json({"type": "bpe", "end": None, "tokenizer": {}})


LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@pytest.mark.parametrize("rule", ["gpt2", "llama3"])
def test_any_cut_leaves_the_tokens(
    rule: str, trained: BPETokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Random texts in pieces of 5 characters, by the rules of GPT-2 and of Llama 3."""
    data = trained.description()
    if rule == "llama3":
        split = {"type": "Split", "behavior": "Isolated", "invert": False}
        split["pattern"] = {"Regex": LLAMA3}
        level = {**data["pre_tokenizer"], "use_regex": False}
        both = {"type": "Sequence", "pretokenizers": [split, level]}
        data["pre_tokenizer"] = both
    tokenizer = BPETokenizer(data, END)
    assert tokenizer.may_be_cut
    monkeypatch.setattr("fastserve.data.tokenizers._PIECE", 5)
    rng = np.random.default_rng(7)
    signs = [*"aabeth  \n\n\r\t'.,!?19é中\u00a0\u3000\u2028", "'s", " the", "ing"]
    cut = 0
    for _ in range(300):
        text = "".join(rng.choice(signs, 80))
        whole = tokenizer._library.encode(text, add_special_tokens=False).ids
        assert tokenizer.encode(text).tolist() == whole, repr(text)
        cut += len(list(pieces_of(text)))
    assert cut > 1000
