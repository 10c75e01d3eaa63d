"""Tables, images, texts and tagged words: read, divided, encoded; and their faults."""

from __future__ import annotations

import gzip
import json
import struct
import tracemalloc
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastserve.core import Array
from fastserve.data import examples as examples_module
from fastserve.data import images as images_module
from fastserve.data import lines, preprocessing
from fastserve.data.columns import BadValue, Column, Columns, Statistics, number
from fastserve.data.examples import ArrayExamples, EncodedSource
from fastserve.data.idx import read_idx
from fastserve.data.images import ImageFolder, Pixels
from fastserve.data.labelled_texts import TextEncoder, texts_in, texts_of
from fastserve.data.lines import csv_fields, read_csv
from fastserve.data.parts import Shares, divide
from fastserve.data.prefetch import Prefetch, shares
from fastserve.data.preprocessing import ArrayInput, Preprocessing, loads
from fastserve.data.sampler import Sampler
from fastserve.data.sources import ArraySource, Source
from fastserve.data.splits import copies, digest, split
from fastserve.data.tables import Options, Table
from fastserve.data.tagged import Tagged, WordEncoder, looks, tagged_in, tagged_of
from fastserve.data.targets import Classes, Values
from fastserve.errors import CheckpointError, DataError

TABLE = """\
\ufeffsize,colour,price,kind
1.5,red,10,a
2.5,"deep
blue",20,b
3.5,red,30,a

4.5,green,40,b
"""


def write(path: Path, text: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


# -- splits and targets --------------------------------------------------------------


@pytest.mark.parametrize("shares", [(0.1, 0.2), (0.25, 0.0), (0.0, 0.5), (0.3, 0.3)])
def test_every_class_has_its_share_in_each_part(shares: tuple[float, float]) -> None:
    rng = np.random.default_rng(0)
    targets = rng.choice(4, 1000, p=[0.6, 0.3, 0.08, 0.02])
    rows = np.arange(1000)
    parts = split(rows, targets, *shares, seed=3)
    assert np.sort(np.concatenate(parts)).tolist() == rows.tolist()
    for part, share in ((parts.validation, shares[0]), (parts.test, shares[1])):
        assert abs(len(part) - share * 1000) <= 1
        for kind in range(4):
            wanted = share * (targets == kind).sum()
            assert abs((targets[part] == kind).sum() - wanted) < 2
    again = split(rows, targets, *shares, seed=3)
    assert all((a == b).all() for a, b in zip(parts, again, strict=True))
    other = split(rows, targets, *shares, seed=4)
    assert any(
        len(a) and (a[:5] != b[:5]).any() for a, b in zip(parts, other, strict=True)
    )


def test_the_test_part_stays_when_more_is_validated_on() -> None:
    rows, targets = np.arange(200), np.arange(200) % 3
    test = [split(rows, targets, share, 0.2, 0).test for share in (0.0, 0.1, 0.5)]
    assert (test[0] == test[1]).all() and (test[0] == test[2]).all()


def test_an_empty_part_is_refused() -> None:
    with pytest.raises(DataError, match="at least one row in the test part"):
        split(np.arange(3), None, 0.0, 0.01, 0)


def test_copies_are_found() -> None:
    found = copies(b"".join(map(digest, (b"a", b"b", b"a", b"c", b"b"))))
    assert found.tolist() == [0, 1, 0, 3, 1]


def test_classes_are_ordered_by_name_or_size() -> None:
    assert Classes.of(["b", "a", "b"]).names == ("a", "b")
    assert Classes.of(["10", "9", "-1.5"]).names == ("-1.5", "9", "10")
    assert Classes.of(["nan", "1", "2"]).names == ("1", "2", "nan")
    with pytest.raises(DataError, match="from 2 to"):
        Classes.of(["a"])
    error = Classes.of(["cat", "dog"]).unknown("dgo", "x.csv, line 3")
    assert "did you mean 'dog'" in error.todo and "line 3" in error.expected


def test_copies_and_balance_are_told() -> None:
    x = np.repeat(np.arange(20, dtype=np.float32), 2)[:, None]
    made = ArrayExamples(x, np.arange(40) // 2 % 2, Classes(("no", "yes")))
    parts = divide(made, Shares(test_split=0.25), {})
    assert parts.notes[0].startswith("to train: no 15, yes 15")
    assert "of 10 held out samples equal one to train on" in parts.notes[1]
    parts = divide(made, Shares(test_split=0.25, drop_duplicates=True), {})
    assert (parts.train.samples, parts.test and parts.test.samples) == (15, 5)
    assert parts.notes[1].startswith("warning: 20 of 40 samples left out, as their")
    x = np.arange(40, dtype=np.float32)[:, None]
    x[39] = x[0]
    made = ArrayExamples(x, np.arange(40) % 2, Classes(("no", "yes")))
    parts = divide(made, Shares(test_split=0.25, drop_duplicates=True), {})
    assert parts.notes[1] == "1 sample left out whose input equals an earlier one's"


# -- IDX -----------------------------------------------------------------------------


def idx(array: Array) -> bytes:
    kinds = {"uint8": 8, "int16": 11, "int32": 12, "float32": 13, "float64": 14}
    head = bytes([0, 0, kinds[array.dtype.name], array.ndim])
    head += struct.pack(f">{array.ndim}I", *array.shape)
    return head + array.astype(array.dtype.newbyteorder(">")).tobytes()


@pytest.mark.parametrize("kind", ["uint8", "int16", "int32", "float32", "float64"])
@pytest.mark.parametrize("packed", [False, True])
def test_idx_files(tmp_path: Path, kind: str, packed: bool) -> None:
    array = np.arange(24).reshape(2, 3, 4).astype(kind)
    data = idx(array)
    path = write(tmp_path / "a", gzip.compress(data) if packed else data)
    found = read_idx(path)
    assert found.dtype == array.dtype and (found == array).all()


@pytest.mark.parametrize(
    ("data", "named"),
    [
        (b"", "starts with"),
        (b"\0\0\x08", "starts with"),
        (b"\0\0\x07\x01" + b"\0\0\0\x01a", "starts with"),
        (b"\0\0\x08\x09" + bytes(36), "9 axes"),
        (b"\0\0\x08\x02\0\0\0\x01", "2 axes"),
        (b"\0\0\x08\x01\0\0\0\x05abcd", "4 bytes for a header of shape"),
        (b"\0\0\x08\x01\0\0\0\x03abcd", "more than 3 bytes"),
        (b"\0\0\x08\x04" + b"\xff" * 16, "a header of shape"),
        (b"\0\0\x08\x03" + b"\x00\x00\xff\xff" * 2 + b"\0\0\0\x01", "0 bytes for"),
        (gzip.compress(b"\0\0\x08\x01\0\0\0\x05abcde")[:-9], "end"),
    ],
)
def test_forged_idx_files(tmp_path: Path, data: bytes, named: str) -> None:
    path = write(tmp_path / "a", data)
    with pytest.raises(DataError, match=named) as caught:
        read_idx(path)
    assert str(path) in caught.value.received


# -- lines ---------------------------------------------------------------------------


def test_records_by_number_are_those_in_order(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", TABLE)
    table = Table(path, Options("kind", "classification"))
    assert table.samples == 4
    table.fit(np.arange(4))
    source = table.source(np.array([3, 1]))
    assert isinstance(source, ArraySource)  # it is small
    # colours: deep\nblue, green, red
    assert source.x[:, 1:4].tolist() == [[0, 1, 0], [1, 0, 0]]
    assert source.y.tolist() == [1, 1]


ENDS = "\v\f\x1c\x1d\x1e\x85\u2028\u2029"  # of lines, by str.splitlines


@pytest.mark.parametrize("end", ENDS)
def test_a_record_ends_where_it_was_found_to(end: str, tmp_path: Path) -> None:
    text = f"one{end}two"
    path = write(tmp_path / "t.csv", f"label,text\na,{text}\nb,three\nc{end}d,four\n")
    for row in range(3):
        fields = list(read_csv(path, "utf-8", ","))[row + 1].fields
        line = path.read_text("utf-8").split("\n")[row + 1] + "\n"
        assert csv_fields(line, ",") == fields
    made = texts_in(path, ("text", "label"), "utf-8", encoder(), None)
    made.fit(np.arange(3))
    words = made.encoder.layer.get_vocabulary()
    assert "two" in " ".join(words)
    table = write(tmp_path / "c.csv", f"a,kind\n1,x\n2,y{end}z\n3,x\n4,y{end}z\n")
    columns = Table(table, Options("a", "regression"))
    columns.fit(np.arange(4))
    assert columns.source(np.arange(4)).x.tolist() == [[1, 0], [0, 1]] * 2


@pytest.mark.parametrize(
    ("text", "line", "named"),
    [
        (b"a,kind\n1,x\n2,y,z\n", 3, "2 fields, as in the header"),
        (b"a,kind\n1,x\n\xff,y\n", 3, "text in utf-8"),
        (b"a,a\n1,x\n", 1, "each once"),
        (b"a,kind,\n1,x,\n", 1, "each once"),
        (b"a,kind\n1,x\n,y\n", 3, "a value in column 'a'"),
        (b"a,kind\n1,x\n1,\n", 3, "a value in column 'kind'"),
        (b'a,kind\n1,x\n"1,y\n', 3, "fields of CSV"),
        (b"a,kind\n" + b"1,x\n" * 20 + b"oops,y\n", 22, "a number in column 'a'"),
        (b"a,kind\n1,x\n2," + b"y" * 140_000 + b"\n", 3, "fields of CSV"),
    ],
)
def test_faults_of_tables_have_file_and_line(
    tmp_path: Path, text: bytes, line: int, named: str
) -> None:
    path = write(tmp_path / "t.csv", text)
    with pytest.raises(DataError) as caught:
        Table(path, Options("kind", "classification"))
    assert f"{path}, line {line}: expected" in str(caught.value)
    assert named in caught.value.expected and caught.value.todo


def test_a_line_that_is_too_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines, "LONGEST", 1000)
    path = write(tmp_path / "t.csv", b"a,kind\n" + b"1" * 2000)
    with pytest.raises(DataError, match="line 2: expected a line of at most"):
        Table(path, Options("kind", "classification"))


@pytest.mark.parametrize(
    ("text", "options", "named"),
    [
        ("", {}, "two or more records"),
        ("a,kind\n", {}, "two or more records"),
        ("a,kid\n1,x\n", {}, "did you mean 'kid'"),
        ("a,kind\n1,x\n2,x\n", {}, "from 2 to"),
        ("a,kind\n1,x\n2,y\n", {"features": ["b"]}, "expected a column 'b'"),
        ("a,kind\n1,x\n2,y\n", {"task": "regression"}, "a finite number in the target"),
        ("a,kind\nnan,x\nnan,y\n", {"missing": "fill"}, "all are missing"),
    ],
)
def test_tables_that_cannot_be_used(
    tmp_path: Path, text: str, options: dict[str, Any], named: str
) -> None:
    path = write(tmp_path / "t.csv", text)
    wanted = {"target": "kind", "task": "classification"} | options
    with pytest.raises(DataError) as caught:
        Table(path, Options(**wanted))
    assert named in str(caught.value) and str(path) in str(caught.value)


def test_a_column_of_too_many_texts(tmp_path: Path) -> None:
    rows = "".join(f"word{i},{i % 2}\n" for i in range(1200))
    path = write(tmp_path / "t.csv", "a,kind\n" + rows)
    with pytest.raises(DataError, match="at most 1,000 categories"):
        Table(path, Options("kind", "classification"))


@pytest.mark.parametrize(("missing", "samples"), [("drop", 2), ("fill", 4)])
def test_missing_values(tmp_path: Path, missing: str, samples: int) -> None:
    text = "a,b,kind\n1,x,p\nNA,y,q\n3,y,q\n5,,p\n"
    path = write(tmp_path / "t.csv", text)
    table = Table(path, Options("kind", "classification", missing=missing))
    assert table.samples == samples
    table.fit(np.arange(samples))
    x = table.encode(np.arange(samples)).x
    if missing == "drop":
        assert table.notes == ["2 records left out, as a value is missing"]
        assert x[:, 0].tolist() == [-1, 1]
    else:
        assert x[1, 0] == 0  # the mean
        assert x[3, 1:].tolist() == [0, 0]  # no category


def test_statistics_are_those_of_the_training_part(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    values = rng.normal(1e6, 3.0, (50, 2))
    rows = "".join(f"{a},{b},5\n" for a, b in values.tolist())
    path = write(tmp_path / "t.csv", "a,b,same\n" + rows)
    table = Table(path, Options("b", "regression"))
    train = np.arange(0, 50, 2)
    table.fit(train)
    batch = table.encode(train)
    assert abs(batch.x[:, 0].mean()) < 1e-6 and abs(batch.x[:, 0].std() - 1) < 1e-5
    assert (batch.x[:, 1] == 0).all()  # a constant
    assert abs(batch.y.mean()) < 1e-5 and abs(batch.y.std() - 1) < 1e-5
    target = table.preprocessing.target
    assert isinstance(target, Values)
    assert np.allclose(target.decode(batch.y[:, 0]), values[train, 1])


def test_welford_is_numpy() -> None:
    values = np.random.default_rng(0).normal(1e8, 1.0, (1000, 2))
    found = Statistics(2)
    for row in values.tolist():
        found.add(row)
    assert np.allclose(found.mean, values.mean(0)) and np.allclose(
        found.std, values.std(0)
    )


def test_json_lines(tmp_path: Path) -> None:
    rows = [
        {"v": [1, 2.5], "flag": True, "kind": 1},
        {"v": [3, 4], "flag": False, "kind": 0},
        {"v": [5, 6], "flag": None, "kind": 1},
    ]
    path = tmp_path / "t.jsonl"
    write(path, "\n\n".join(map(json.dumps, rows)))
    table = Table(path, Options("kind", "classification", missing="fill"))
    table.fit(np.arange(3))
    assert table.input_shape == (4,)
    batch = table.encode(np.array([2, 0]))
    assert batch.y.tolist() == [1, 1]
    assert batch.x[0, 2:].tolist() == [0, 0] and batch.x[1, 2:].tolist() == [0, 1]
    for bad, named in (
        ("[1]", "a JSON object"),
        ("{", "a JSON object"),
        ("[" * 100_000, "a JSON object"),
        ('{"v": [1], "flag": 1, "kind": 1e999}', "line 2"),
    ):
        write(path, json.dumps(rows[0]) + "\n" + bad)
        with pytest.raises(DataError, match=named):
            Table(path, Options("kind", "regression"))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("1.5", 1.5),
        (" -2e3 ", -2000),
        (".5", 0.5),
        ("1_0", None),
        ("\x1c1", None),  # white space for a pattern, not for float()
        ("inf", None),
        ("1e999", None),
        ("", None),
        ("0x10", None),
        (True, None),
        (10**400, None),
        ([1], None),
    ],
)
def test_what_is_a_number(value: Any, expected: float | None) -> None:
    assert number(value) == expected


def test_a_category_that_is_not_known_has_no_place() -> None:
    columns = Columns(
        [Column("a", values=["x", "y"]), Column("b", values=["p"], encoding="index")],
        ("",),
        False,
    )
    out = np.full(3, 7.0, np.float32)
    columns.put(["z", "p"], out)
    assert out.tolist() == [0, 0, 1]
    with pytest.raises(BadValue, match="column 'a'"):
        columns.put(["", "p"], out)


def test_a_large_table_is_read_by_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = "".join(f'{i},"{i % 3}",{i % 2}\n' for i in range(300))
    path = write(tmp_path / "t.csv", "a,b,kind\n" + rows)
    table = Table(path, Options("kind", "classification", categorical=["b"]))
    table.fit(np.arange(300))
    chosen = np.arange(0, 300, 7)
    whole = table.source(chosen)
    monkeypatch.setattr(examples_module, "IN_MEMORY", 10)
    streamed = table.source(chosen)
    assert isinstance(streamed, EncodedSource)
    wanted = np.array([5, 2, 5])
    for a, b in zip(
        whole.batch(wanted, wanted), streamed.batch(wanted, wanted), strict=True
    ):
        assert a is b or (np.asarray(a) == np.asarray(b)).all()
    write(path, "a,b,kind\n")
    with pytest.raises(DataError, match="stays as it is during training"):
        streamed.batch(wanted, wanted)


# -- images --------------------------------------------------------------------------


def pgm(image: Array) -> bytes:
    height, width = image.shape[:2]
    kind = 5 if image.ndim == 2 else 6
    return f"P{kind}\n# made here\n{width} {height}\n255\n".encode() + image.tobytes()


def image_folder(folder: Path) -> list[Array]:
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (4, 5), np.uint8) for _ in range(4)]
    for i, image in enumerate(images):
        write(folder / ("cat" if i < 2 else "dog") / f"{i}.pgm", pgm(image))
    return images


def test_plain_images_need_no_pillow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = image_folder(tmp_path)
    write(tmp_path / "cat" / "notes.txt", "left out")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    made = ImageFolder(tmp_path, Pixels(4, 5, 1))
    assert made.preprocessing.target == Classes(("cat", "dog"))
    batch = made.encode(np.array([3, 0]))
    assert batch.y.tolist() == [1, 0]
    assert np.allclose(batch.x[0, ..., 0], images[3] / 255)
    assert (made.encode(np.array([3])).x == batch.x[:1]).all()
    with pytest.raises(DataError, match="Pillow") as caught:
        ImageFolder(tmp_path, Pixels(2, 2, 1))
    assert "fastserve-train[image]" in caught.value.todo


def test_images_are_resized_and_coloured(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[:4] = [255, 0, 0]
    for kind in ("a", "b"):
        (tmp_path / kind).mkdir()
        image.fromarray(pixels).save(tmp_path / kind / "x.png")
        image.fromarray(pixels).save(tmp_path / kind / "y.JPG", "JPEG")
    made = ImageFolder(tmp_path, Pixels(4, 2, 3))
    x = made.encode(np.arange(4)).x
    assert x.shape == (4, 4, 2, 3)
    assert np.allclose(x[0, 0], [1, 0, 0]) and np.allclose(x[0, 3], 0)
    assert np.allclose(x[1], x[0], atol=0.1)
    grey = ImageFolder(tmp_path, Pixels(8, 8, 1)).encode(np.arange(1)).x
    assert np.allclose(grey[0, 0], 76 / 255)


def png_of(width: int, height: int) -> bytes:
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        whole = kind + data
        return (
            struct.pack(">I", len(data)) + whole + struct.pack(">I", zlib.crc32(whole))
        )

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(100)))
    return b"\x89PNG\r\n\x1a\n" + body + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("name", "data", "named"),
    [
        ("x.png", b"no image", "expected a PNG"),
        ("x.png", b"", "expected a PNG"),
        ("x.png", png_of(8000, 8000), "at most 33,554,432 pixels"),
        ("x.png", png_of(60_000, 60_000), "expected a"),
        ("x.pgm", b"P5\n99999 99999\n255\n", "at most 33,554,432 pixels"),
        ("x.pgm", b"P5\n4 4\n255\nabc", "3 bytes of pixels"),
        ("x.jpg", b"GIF89a" + bytes(50), "expected a PNG"),
    ],
)
def test_broken_images(tmp_path: Path, name: str, data: bytes, named: str) -> None:
    pytest.importorskip("PIL")
    image_folder(tmp_path)
    path = write(tmp_path / "dog" / name, data)
    with pytest.raises(DataError, match=named) as caught:
        ImageFolder(tmp_path, Pixels(4, 4, 1)).encode(np.arange(5))
    assert str(path) in str(caught.value)


def test_folders_without_classes(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="folder for each class"):
        ImageFolder(tmp_path / "none", Pixels(4, 4, 1))
    with pytest.raises(DataError, match="folder for each class"):
        ImageFolder(tmp_path, Pixels(4, 4, 1))
    image_folder(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="none in empty"):
        ImageFolder(tmp_path, Pixels(4, 4, 1))


# -- texts ---------------------------------------------------------------------------

TEXTS = [("good fine good", "yes"), ("bad poor", "no"), ("fine, GOOD", "yes")]


def encoder(**more: Any) -> TextEncoder:
    return TextEncoder({"output_mode": "count", **more})


def test_texts_of_a_folder_a_table_and_memory_are_the_same(tmp_path: Path) -> None:
    for i, (text, kind) in enumerate(TEXTS):
        write(tmp_path / "folder" / kind / f"{i}.txt", text)
    rows = [{"text": text, "label": kind} for text, kind in TEXTS]
    write(tmp_path / "t.jsonl", "\n".join(map(json.dumps, rows)))
    table = "label,text\n" + "".join(f'{kind},"{text}"\n' for text, kind in TEXTS)
    write(tmp_path / "t.csv", table)
    made = [
        texts_in(tmp_path / name, ("text", "label"), "utf-8", encoder(), None)
        for name in ("folder", "t.jsonl", "t.csv")
    ]
    labels = np.array([kind == "yes" for _, kind in TEXTS], np.int64)
    made.append(texts_of([t for t, _ in TEXTS], labels, ("no", "yes"), encoder(), None))
    order = [[1, 0, 2], [0, 1, 2], [0, 1, 2], [0, 1, 2]]  # of the folder: by class
    found = []
    for one, rows_ in zip(made, order, strict=True):
        one.fit(np.arange(3))
        back = np.argsort(rows_)
        batch = one.encode(back)
        found.append((batch.x, batch.y))
    for x, y in found[1:]:
        assert (y == found[3][1]).all()
        assert (x == found[3][0]).all()
    words = made[3].encoder.layer.get_vocabulary()
    assert words[0] == "[UNK]" and words[1] == "good"
    assert found[3][0][0, 1] == 2


@pytest.mark.parametrize("mode", ["count", "tf_idf"])
def test_many_occurrences_count_less(mode: str) -> None:
    texts = ["a a a b", "b c"]
    plain, made = (TextEncoder({"output_mode": mode}, s) for s in (False, True))
    for one in (plain, made):
        one.fit(iter([texts]))
    place = made.layer.get_vocabulary().index("a")
    ratio = made.encode(texts)[:, 1:] / np.maximum(plain.encode(texts)[:, 1:], 1e-9)
    wanted = (1 + np.log(3)) / 3
    assert abs(ratio[0, place - 1] - wanted) < 1e-6
    assert np.allclose(np.unique(ratio.round(5)), [0, round(wanted, 5), 1])


def test_what_an_int_encoder_needs(tmp_path: Path) -> None:
    made = texts_of(
        [t for t, _ in TEXTS],
        np.array([1, 0, 1]),
        ("no", "yes"),
        encoder(output_mode="int", output_sequence_length=4),
        None,
    )
    made.fit(np.arange(3))
    assert made.preprocessing.vocabulary == 6  # with [UNK] and the padding
    x = made.encode(np.arange(3)).x
    assert x.shape == (3, 4) and x[1, 2:].tolist() == [0, 0]


@pytest.mark.parametrize(
    ("name", "data", "line", "named"),
    [
        ("t.csv", b"text,lable\na,b\n", 2, "a field 'label'"),
        ("t.csv", b"text,label\na,\n", 2, "a label in 'label'"),
        ("t.csv", b"text,label\na,b,c\n", 2, "2 fields"),
        ("t.csv", b"text,label\n\xe9,b\n", 2, "text in utf-8"),
        ("t.jsonl", b'{"text": 1, "label": "a"}', 1, "a text in 'text'"),
        ("t.jsonl", b'{"text": "a", "label": null}', 1, "a label in 'label'"),
        ("t.jsonl", b'{"text": "a", "label": "x"}\n{}', 2, "a field 'text'"),
    ],
)
def test_faults_of_texts(
    tmp_path: Path, name: str, data: bytes, line: int, named: str
) -> None:
    path = write(tmp_path / name, data)
    with pytest.raises(DataError) as caught:
        texts_in(path, ("text", "label"), "utf-8", encoder(), None)
    assert f"{path}, line {line}: expected {named}" in str(caught.value)


def test_a_text_file_of_another_encoding(tmp_path: Path) -> None:
    write(tmp_path / "a" / "1.txt", b"caf\xe9")
    write(tmp_path / "b" / "1.txt", b"tea\nfor\xe9")
    made = texts_in(tmp_path, ("", ""), "utf-8", encoder(), None)
    with pytest.raises(DataError, match=r"b/1.txt, line 2: expected text in utf-8"):
        made.read(1)
    made = texts_in(tmp_path, ("", ""), "latin-1", encoder(), None)
    assert made.read(0) == "café"


# -- tagged words --------------------------------------------------------------------

SENTENCES = [
    [("The", "d"), ("dog", "n"), ("runs", "v")],
    [("the", "d"), ("dog", "n")],
    [("barking", "v"), ("walking", "v"), ("talking", "v")] * 2,
    [("the", "d"), ("dog", "n"), ("runs", "v")] * 5,
]


def tagged(**more: Any) -> Tagged:
    made = tagged_of(SENTENCES, WordEncoder((), 4), None, 100, 3)
    made.fit(np.arange(4))
    return made


def test_words_and_looks() -> None:
    made = tagged()
    words = made.encoder
    assert words.words[:2] == ["", "<?>"]
    assert {"the", "dog", "runs"} <= set(words.words)
    assert words.number("Runs") == words.number("runs")  # known in small letters
    assert words.number("thinking") == words.number("asking") > 1  # by its look
    assert words.words[words.number("thinking")] == "<a king>"
    assert words.number("42") == 1
    assert words.number("") > 0  # 0 is for places behind the end
    assert looks("Well-known")[0] == "<A- nown>"
    assert looks("7up")[-1] == "<0>"


def test_a_long_sentence_takes_several_rows_and_loses_nothing() -> None:
    made = tagged()
    source = made.source(np.array([3, 0]))
    assert source.samples == 5 and source.input_shape == (4,)
    every = np.arange(5)
    batch = source.batch(every, every)
    assert batch.masked and batch.weights is not None
    assert int(batch.weights.sum()) == 18 == source.losses(every)
    assert source.losses(np.array([3, 4])) == 6
    names = np.array(made.classes.names)
    tags = names[batch.y][batch.weights > 0]
    assert "".join(tags) == "dnv" * 6
    assert (batch.x[batch.weights == 0] == 0).all() and (
        batch.x[batch.weights > 0] > 0
    ).all()


@pytest.mark.parametrize("style", ["columns", "slashes"])
def test_tagged_files(tmp_path: Path, style: str) -> None:
    if style == "columns":
        blocks = ["\n".join(f"{w} _ {t}" for w, t in s) for s in SENTENCES]
        text = "-DOCSTART- -X- O\n\n" + "\n\n\n".join(blocks)
    else:
        text = "\n\n".join(" ".join(f"{w}/{t}" for w, t in s) for s in SENTENCES)
    path = write(tmp_path / "words.txt", text)
    made = tagged_in(path, style, "utf-8", WordEncoder((), 4), None, 100, 3)
    assert [list(made.read(i)) for i in range(4)] == SENTENCES
    made.fit(np.arange(4))
    assert made.encoder.words == tagged().encoder.words
    assert Counter(made.classes.names) == Counter("dnv")
    write(path, "ok/x\nword\n" if style == "slashes" else "ok x\nword\n")
    with pytest.raises(DataError, match=r"line 2: expected (a word|word/tag)"):
        tagged_in(path, style, "utf-8", WordEncoder((), 4), None, 100, 3)


# -- what a run remembers ------------------------------------------------------------


def every_preprocessing(tmp_path: Path) -> list[Preprocessing]:
    table = Table(write(tmp_path / "t.csv", TABLE), Options("price", "regression"))
    table.fit(np.arange(4))
    texts = texts_of(
        [t for t, _ in TEXTS],
        np.array([1, 0, 1]),
        ("no", "yes"),
        encoder(output_mode="tf_idf", ngrams=2, standardize=None),
        None,
    )
    texts.fit(np.arange(3))
    return [
        table.preprocessing,
        texts.preprocessing,
        tagged().preprocessing,
        Preprocessing(Pixels(3, 4, 1), Classes(("ä", "b"))),
        Preprocessing(ArrayInput((2, 2, 1), 1 / 255, True)),
    ]


def test_preprocessing_comes_back(tmp_path: Path) -> None:
    for made in every_preprocessing(tmp_path):
        text = made.dumps()
        again = loads(text, "here")
        assert again.dumps() == text
        assert again.target == made.target
        assert again.input.input_shape == made.input.input_shape


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"format": 2}',
        '{"format": 1, "input": {"kind": "module"}, "target": null}',
        '{"format": 1, "input": {"kind": "array"}, "target": null}',
        '{"format": 1, "input": {"kind": "text", "vocabulary": "/etc/passwd"}, '
        '"target": null}',
        '{"format": 1, "input": {"kind": "text", "vocabulary": ["a"], "name": 1}, '
        '"target": null}',
        '{"format": 1, "input": {"kind": "words", "words": [1], "length": 2}, '
        '"target": null}',
        '{"format": 1, "input": {"kind": "table", "columns": [{"nam": 1}], '
        '"missing": [], "fill": true}, "target": null}',
        "[" * 100_000,
    ],
)
def test_a_file_that_fastserve_did_not_write(tmp_path: Path, text: str) -> None:
    write(tmp_path / preprocessing.FILE, text)
    with pytest.raises(CheckpointError, match=r"preprocessing\.json that fastserve"):
        preprocessing.read(tmp_path)


# -- memory --------------------------------------------------------------------------


def a_table(folder: Path, count: int) -> Source:
    line = ",".join(f"{i}.125" for i in range(50))
    names = ",".join(f"c{i}" for i in range(50))
    rows = "".join(f"{line},{i % 2}\n" for i in range(count))
    table = Table(
        write(folder / "t.csv", f"{names},kind\n{rows}"),
        Options("kind", "classification"),
    )
    table.fit(np.arange(count))
    return table.source(np.arange(count))


def a_folder_of_images(folder: Path, count: int) -> Source:
    image = np.arange(64 * 64 * 3, dtype=np.uint8).reshape(64, 64, 3)
    for i in range(count):
        write(folder / "ab"[i % 2] / f"{i}.ppm", pgm(image))
    return ImageFolder(folder, Pixels(64, 64, 3)).source(np.arange(count))


def a_folder_of_texts(folder: Path, count: int) -> Source:
    for i in range(count):
        words = " ".join(f"word{(i * j) % 200}" for j in range(200))
        write(folder / "ab"[i % 2] / f"{i}.txt", words)
    return texts(folder, count)


def lines_of_json(folder: Path, count: int) -> Source:
    text = " ".join(f"word{i}" for i in range(200))
    rows = [json.dumps({"text": text, "label": i % 2}) for i in range(count)]
    return texts(write(folder / "t.jsonl", "\n".join(rows)), count)


def texts(place: Path, count: int) -> Source:
    encoder = TextEncoder({"output_mode": "int", "output_sequence_length": 2000})
    found = texts_in(place, ("text", "label"), "utf-8", encoder, None)
    found.fit(np.arange(count))
    return found.source(np.arange(count))


def memory_of_a_pass(source: Source) -> int:
    """Return the bytes that reading all of it takes at most."""
    order = Sampler(source.samples, 2, 0, shuffle=True, wrap=False)
    steps = range(order.steps_per_epoch)
    parts = shares(source, order, steps, lambda rows, _: slice(0, rows))
    seen = 0
    tracemalloc.start()
    try:
        with Prefetch(parts, source) as loaded:  # always: ``load`` decides by times
            for part in loaded:
                assert part.batch is not None
                seen += len(part.batch.x)
        assert seen == source.samples
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "make", [a_table, a_folder_of_images, a_folder_of_texts, lines_of_json]
)
def test_a_pass_over_more_data_takes_no_more_memory(
    make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(examples_module, "IN_MEMORY", 1000)
    monkeypatch.setattr(images_module, "KEPT", 1000)
    few, many = make(tmp_path / "few", 30), make(tmp_path / "many", 150)
    memory_of_a_pass(few)  # what Python keeps of its own
    used = memory_of_a_pass(few)
    assert used < 500_000
    assert memory_of_a_pass(many) < 1.2 * used + 20_000
