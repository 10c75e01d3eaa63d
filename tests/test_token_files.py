"""Files of tokens: nanoGPT's, llm.c's, NumPy's, and folders with a manifest."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastserve import config, trained, worker
from fastserve.assemble.data import make_data
from fastserve.data.sources import TokenSource
from fastserve.data.token_files import Shards, open_token_file
from fastserve.errors import ConfigError, DataError
from launch.preflight import _data_files

TOKENS = np.random.default_rng(0).integers(0, 97, 3000)


def llmc(
    path: Path, magic: int, version: int, tokens: np.ndarray, count: int | None = None
) -> Path:
    """Write a file as llm.c's ``write_datafile`` does."""
    header = np.zeros(256, np.int32)
    header[:3] = magic, version, len(tokens) if count is None else count
    path.write_bytes(header.tobytes() + tokens.tobytes())
    return path


def folder_of(
    folder: Path,
    dtype: str = "uint16",
    parts: dict[str, list[np.ndarray]] | None = None,
) -> dict[str, Any]:
    """Write a folder with a manifest, for characters of codes 32 to 128."""
    folder.mkdir(exist_ok=True)
    manifest: dict[str, Any] = {"format": "fastserve tokens", "version": 1}
    manifest |= {"dtype": dtype, "vocab_size": 97, "end": None}
    manifest["tokenizer"] = "tokenizer.json"
    ending = {"uint16": "u16", "uint32": "u32"}[dtype]
    split = {"train": [TOKENS[:1000], TOKENS[1000:2500]], "validation": [TOKENS[2500:]]}
    for part, arrays in (parts or split).items():
        shards = []
        for number, array in enumerate(arrays):
            data = array.astype(dtype).tobytes()
            name = f"{part}-{number:05}.{ending}.bin"
            (folder / name).write_bytes(data)
            digest = hashlib.sha256(data).hexdigest()
            shards.append({"file": name, "tokens": len(array), "sha256": digest})
        total = sum(map(len, arrays))
        manifest[part] = {"tokens": total, "bytes": 2 * total, "documents": 1}
        manifest[part]["shards"] = shards
    (folder / "manifest.json").write_text(json.dumps(manifest))
    characters = "".join(map(chr, range(32, 129)))
    kept = {"type": "char", "characters": characters}
    (folder / "tokenizer.json").write_text(json.dumps(kept))
    return manifest


def test_llmc(tmp_path: Path) -> None:
    path = llmc(tmp_path / "gpt2.bin", 20240520, 1, TOKENS.astype(np.uint16))
    found = open_token_file(path)
    assert found.vocab_size == 50257
    assert isinstance(found.tokens, np.memmap) and found.tokens.dtype == np.uint16
    np.testing.assert_array_equal(found.tokens, TOKENS)
    path = llmc(tmp_path / "llama.bin", 20240801, 7, (TOKENS + 70000).astype(np.uint32))
    found = open_token_file(path)
    assert found.vocab_size == 128256
    np.testing.assert_array_equal(found.tokens, TOKENS + 70000)
    with pytest.raises(DataError, match="from 0 to 69999"):
        open_token_file(path, 70000)
    assert open_token_file(path, 70000, check=False).vocab_size == 70000


def test_raw_files(tmp_path: Path) -> None:
    TOKENS.astype(np.uint16).tofile(tmp_path / "a.bin")
    np.testing.assert_array_equal(
        open_token_file(tmp_path / "a.bin", 97).tokens, TOKENS
    )
    (TOKENS + 70000).astype(np.uint32).tofile(tmp_path / "a.u32.bin")
    found = open_token_file(tmp_path / "a.u32.bin", 70097)
    np.testing.assert_array_equal(found.tokens, TOKENS + 70000)
    (tmp_path / "one.bin").write_bytes(b"\1\0")
    assert open_token_file(tmp_path / "one.bin", 97).tokens.tolist() == [1]


U16 = TOKENS.astype(np.uint16)


@pytest.mark.parametrize(
    ("make", "part"),
    [
        (lambda p: llmc(p, 20240520, 1, U16, 3001), "says 3001 tokens, it has 3000"),
        (lambda p: llmc(p, 20240520, 1, U16[:2000], 3000), "it has 2000"),
        (lambda p: llmc(p, 20240520, 1, U16, -1), "says -1 tokens"),
        (lambda p: llmc(p, 20240520, 2, U16), "version 2 of llm.c's format, not 1"),
        (lambda p: llmc(p, 20240801, 1, U16), "version 1 of llm.c's format, not 7"),
        (
            lambda p: llmc(p, 20240801, 7, U16[:2999]),
            "no multiple of 4: it is cut",
        ),
        (lambda p: llmc(p, 20240522, 1, U16), "questions"),
        (lambda p: p.write_bytes(U16.tobytes()[:-1]), "an odd number: it is cut short"),
        (
            lambda p: p.write_bytes(np.int32([20240520, 1, 0]).tobytes()),
            "llm.c's header has 1024 bytes, the file 12",
        ),
        (lambda p: p.write_bytes(U16.tobytes()), "data.vocab_size"),
        (lambda p: p.write_bytes(b""), "an empty file"),
        (lambda p: llmc(p, 20240520, 1, U16[:0]), "a header alone"),
    ],
)
def test_bad_files(make: Callable[[Path], object], part: str, tmp_path: Path) -> None:
    path = tmp_path / "tokens.bin"
    make(path)
    with pytest.raises(DataError) as caught:
        open_token_file(path)
    assert part in str(caught.value)
    assert str(path) in caught.value.received and caught.value.todo


@pytest.mark.parametrize("dtype", ["uint16", "uint32"])
def test_a_folder(dtype: str, tmp_path: Path) -> None:
    folder_of(tmp_path, dtype)
    for path in (tmp_path, tmp_path / "manifest.json"):
        found = open_token_file(path)
        assert (found.vocab_size, found.end, found.text_bytes) == (97, None, 5000)
        assert found.tokenizer is not None and found.tokenizer.vocab_size == 97
        np.testing.assert_array_equal(np.asarray(found.tokens), TOKENS[:2500])
        assert found.tokens.dtype == dtype
        held = open_token_file(path, part="validation").tokens
        np.testing.assert_array_equal(held, TOKENS[2500:])
    for wrong in (96, 98):
        with pytest.raises(DataError, match="to be 97"):
            open_token_file(tmp_path, wrong)
    (tmp_path / "tokenizer.json").write_text('{"type": "char", "characters": "ab"}')
    with pytest.raises(DataError, match=r"tokenizer\.json with 2"):
        open_token_file(tmp_path)


def test_shards_are_like_one_array() -> None:
    parts = [TOKENS[:1], TOKENS[1:700], TOKENS[700:701], TOKENS[701:]]
    shards = Shards(parts)
    assert (len(shards), shards.shape, shards.dtype) == (3000, (3000,), TOKENS.dtype)
    rng = np.random.default_rng(1)
    for start, stop in [
        (0, 3000),
        (5, 5),
        (699, 702),
        *rng.integers(-9, 3009, (50, 2)),
    ]:
        np.testing.assert_array_equal(shards[start:stop], TOKENS[start:stop])
    np.testing.assert_array_equal(shards[-7:], TOKENS[-7:])
    assert np.shares_memory(shards[10:20], TOKENS)
    with pytest.raises(ValueError, match="without a step"):
        shards[::2]
    one, many = (TokenSource(t, 16, seed=3) for t in (TOKENS, shards))
    rows, epochs = np.arange(many.samples), np.arange(many.samples) % 3
    for mine, theirs in zip(
        one.batch(rows, epochs), many.batch(rows, epochs), strict=True
    ):
        np.testing.assert_array_equal(mine, theirs)


def changed(name: str, data: dict[str, Any], folder: Path) -> Any:
    shard = data["train"]["shards"][1]
    path = folder / shard["file"]
    if name == "cut":
        path.write_bytes(path.read_bytes()[:-2])
    elif name == "gone":
        path.unlink()
    elif name == "away":
        shard["file"] = "../" + shard["file"]
    elif name == "sum":
        data["train"]["tokens"] += 1
    elif name == "bool":
        shard["tokens"] = True
    elif name == "none":
        data["train"]["shards"] = []
    elif name == "tokenizer":
        data["tokenizer"] = "/etc/passwd"
    elif name.startswith("no "):
        del data[name[3:]]
    else:
        key, value = name.split("=")
        data[key] = json.loads(value)
    return data


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ("cut", "expected 3000 bytes for the 1500 tokens"),
        ("gone", "train-00001.u16.bin"),
        ("away", "'../train"),
        ("sum", "2501 tokens, in its shards 2500"),
        ("bool", "of True tokens"),
        ("none", "no shards"),
        ("tokenizer", "/etc/passwd"),
        ("no train", "no 'train'"),
        ("no dtype", "no 'dtype'"),
        ('dtype="int8"', "dtype 'int8'"),
        ('format="other"', "'format' isn't"),
        ("version=2", "version 2, not 1"),
        ('vocab_size="9"', "vocab_size '9'"),
        ("end=-1", "end -1"),
        ("train=3", "manifest.json"),
    ],
)
def test_bad_manifests(change: str, part: str, tmp_path: Path) -> None:
    data = changed(change, folder_of(tmp_path), tmp_path)
    (tmp_path / "manifest.json").write_text(json.dumps(data))
    with pytest.raises(DataError) as caught:
        open_token_file(tmp_path)
    assert part in str(caught.value)
    assert str(tmp_path) in caught.value.received and caught.value.todo


def test_no_manifest_or_no_part(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="fastserve prepare"):
        open_token_file(tmp_path)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(DataError, match=r"manifest\.json"):
        open_token_file(tmp_path)
    folder_of(tmp_path, parts={"train": [TOKENS]})
    with pytest.raises(DataError, match="--validation-split"):
        open_token_file(tmp_path, part="validation")


JOB = """
name: tokens
model: {type: gpt, n_layer: 1, n_head: 2, n_embd: 16, block_size: 16}
data: {type: tokens, train: data, validation: data}
train: {global_batch: 6, steps: 4, sample_tokens: 5}
"""


def test_a_run_on_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FASTSERVE_NO_SIGNALS", "1")
    folder_of(tmp_path / "data")
    (tmp_path / "job.yaml").write_text(JOB)
    assert worker.main(["job.yaml"]) == 0
    out = capsys.readouterr().out
    assert "data, 2,500 tokens, 500 to validate, vocabulary of 97" in out
    assert "a 2-gram model's" in out and "sample" in out
    assert len(trained.generate("runs/tokens", "a", 3)) == 4
    assert trained.evaluate("runs/tokens")["loss"] > 0
    assert make_data(config.load_job("job.yaml")).bytes_per_token == 2


def test_files_that_hosts_are_compared_by(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    head = (
        "name: a\nmodel: {type: sequential, layers: [{Dense: {units: 1}}], loss: mse}\n"
    )
    head += "train: {global_batch: 4, steps: 1}\n"
    for folder in ("pics/a/deep", "pics/b", "test"):
        Path(folder).mkdir(parents=True)
    for name in ("pics/a/deep/1.pgm", "pics/b/2.pgm", "test/3.pgm", "t.csv"):
        Path(name).touch()
    found = []
    for data in (
        "{type: images, folder: pics, test: test, size: [4, 4]}",
        "{type: csv, file: penguins, target: species, task: classification}",
        "{type: csv, file: t.csv, target: species, task: classification}",
    ):
        Path("job.yaml").write_text(f"{head}data: {data}\n")
        found.append(_data_files(config.load_job("job.yaml")))
    assert found == [["pics/a/deep/1.pgm", "pics/b/2.pgm", "test/3.pgm"], [], ["t.csv"]]


def test_faults_of_the_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "job.yaml").write_text(JOB)
    with pytest.raises(ConfigError, match=r"data\.train.*data/manifest\.json|data'"):
        config.load_job("job.yaml")
    folder_of(tmp_path / "data")
    (tmp_path / "data/train-00000.u16.bin").write_bytes(b"")
    job = config.load_job("job.yaml")
    compared = _data_files(job)  # on all hosts, before a job
    assert compared == sorted(f"data/{path.name}" for path in Path("data").iterdir())
    with pytest.raises(DataError, match="train-00000"):
        make_data(job)
    assert worker.main(["job.yaml"]) == 2
    assert not (tmp_path / "runs").exists()
