"""Safetensors files: every type, pieces, and files that are damaged or forged."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from fastserve.errors import CheckpointError
from fastserve.models import tensor_files
from fastserve.models.tensor_files import TensorFile, write_tensors

VALUES = np.random.default_rng(0).normal(0, 2, (7, 5)).astype(np.float32)


def read(path: Path) -> dict[str, np.ndarray]:
    with TensorFile(path) as file:
        return {
            name: np.concatenate([rows.copy() for _, rows in file.pieces(name)])
            for name in file.entries
        }


@pytest.fixture(params=[1 << 20, 12])
def pieces(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(tensor_files, "_PIECE", request.param)
    return int(request.param)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_reads_what_the_library_wrote(tmp_path: Path, pieces: int, dtype: str) -> None:
    tensors = {"a": VALUES.astype(dtype), "b": VALUES[0].astype(dtype)}
    save_file(tensors, tmp_path / "x.safetensors")
    for name, array in read(tmp_path / "x.safetensors").items():
        np.testing.assert_array_equal(array, tensors[name])
        assert array.dtype == ("float64" if dtype == "float64" else "float32")


def test_the_library_reads_what_we_wrote(tmp_path: Path, pieces: int) -> None:
    tensors = {"a": VALUES, "b": VALUES.T, "c": VALUES[2]}
    write_tensors(tmp_path / "x.safetensors", tensors)
    found = load_file(tmp_path / "x.safetensors")
    assert set(found) == set(tensors)
    for name, array in found.items():
        np.testing.assert_array_equal(array, tensors[name])


def test_bfloat16_is_rounded_to_the_nearest_even(tmp_path: Path) -> None:
    # 8 bits of a significand; what lies in the middle goes to the even neighbour
    given = np.array([1.0, -2.5, 1 + 2**-8, 1 + 3 * 2**-8, 3.0e38, 1e-40], np.float32)
    wanted = np.array([1.0, -2.5, 1.0, 1 + 2**-6, 0, 0], np.float32)
    write_tensors(tmp_path / "x", {"a": given}, "bfloat16")
    found = read(tmp_path / "x")["a"]
    np.testing.assert_array_equal(found[:4], wanted[:4])
    np.testing.assert_allclose(found, given, rtol=2**-8, atol=2**-133)


def test_float16_is_rounded(tmp_path: Path) -> None:
    write_tensors(tmp_path / "x", {"a": VALUES}, "float16")
    np.testing.assert_array_equal(read(tmp_path / "x")["a"], VALUES.astype(np.float16))


@pytest.mark.parametrize(
    ("value", "dtype"),
    [(np.nan, "float32"), (np.inf, "bfloat16"), (7e4, "float16"), (3.4e38, "bfloat16")],
)
def test_numbers_that_a_type_cannot_hold(
    tmp_path: Path, value: float, dtype: str
) -> None:
    with pytest.raises(CheckpointError) as error:
        write_tensors(tmp_path / "x", {"a": np.array([1, value], np.float32)}, dtype)
    assert "finite numbers in a" in str(error.value)


# -- damaged and forged files ----------------------------------------------------------

TWO = {
    "a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
    "b": {"dtype": "F32", "shape": [1, 3], "data_offsets": [8, 20]},
}
Changes = dict[str, dict[str, Any]]


def forged(header: Any, data: int = 20, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    length = len(text) if length is None else length
    return struct.pack("<Q", length) + text + bytes(data)


def changed(**changes: Any) -> dict[str, Any]:
    """Return the header with other keys of the tensor a."""
    return TWO | {"a": TWO["a"] | changes}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "0 bytes"),
        (b"\x08\0\0", "3 bytes"),
        (forged(TWO)[:-1], "cut short"),
        (forged(TWO)[:40], "more than the file"),
        (forged(TWO) + b"x", "appended"),
        (forged(TWO, length=10**6), "more than the file"),
        (forged(TWO, length=2**64 - 1), "more than the file"),
        (forged(TWO, length=0), "isn't JSON"),
        (forged(b"{" * 9), "isn't JSON"),
        (forged(b"[" * 100_000), "isn't JSON"),
        (forged(b"\xff\xfe"), "isn't JSON"),
        (forged([1, 2]), "type list"),
        (forged({"a": 3}), "'a': 3"),
        (forged({"a": {"dtype": "F32", "shape": [2]}}), "'a'"),
        (forged(json.dumps(TWO).replace('"b"', '"a"').encode()), "'a' twice"),
        (forged(b'{"a":{"dtype":"F32","dtype":"F16"}}'), "'dtype' twice"),
        (forged(changed(dtype="Q4")), "Q4"),
        (forged(changed(dtype=["F32"])), "isn't known"),
        (forged(changed(dtype="F16")), "8 bytes for 'a'"),
        (forged(changed(shape=[3])), "8 bytes for 'a'"),
        (forged(changed(shape=[-2])), "shape [-2]"),
        (forged(changed(shape=[2.0])), "shape [2.0]"),
        (forged(changed(shape=[True, 2])), "shape [True, 2]"),
        (forged(changed(shape="2")), "shape 2"),
        (forged(changed(shape=[2**40, 2**40])), "8 bytes for 'a'"),
        (forged(changed(data_offsets=[-8, 0])), "offsets [-8, 0]"),
        (forged(changed(data_offsets=[8, 0])), "-8 bytes for 'a'"),
        (forged(changed(data_offsets=[0, 4, 8])), "offsets"),
        (forged(changed(data_offsets=[4, 12])), "gap"),
        (forged(changed(shape=[3], data_offsets=[0, 12])), "overlaps"),
        (forged(TWO | {"c": TWO["a"]}), "overlaps"),
        (forged(changed(data_offsets=[20, 28]), 28), "gap"),
        (forged(changed(data_offsets=[10**15, 10**15 + 8])), "gap"),
    ],
)
def test_a_file_that_is_not_sound(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as error:
        TensorFile(path)
    assert str(path) in error.value.expected
    assert reason in error.value.received.replace('"', "'")
    assert error.value.todo


def test_a_header_beyond_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensor_files, "MAX_HEADER", 50)
    path = tmp_path / "x.safetensors"
    path.write_bytes(forged(TWO))
    with pytest.raises(CheckpointError, match="more than the format's limit"):
        TensorFile(path)


def test_a_file_that_becomes_shorter(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(forged(TWO))
    with TensorFile(path) as file:
        path.write_bytes(forged(TWO)[:-4])
        with pytest.raises(CheckpointError, match="became shorter"):
            list(file.pieces("b"))


def test_no_file_and_no_numbers(tmp_path: Path) -> None:
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(CheckpointError, match="no such file"):
            TensorFile(path)
    path = tmp_path / "x.safetensors"
    path.write_bytes(forged(changed(dtype="I32")))
    with (
        TensorFile(path) as file,
        pytest.raises(CheckpointError, match="quantized"),
    ):
        list(file.pieces("a"))


def test_empty_tensors_are_sound(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    empty = {"dtype": "F32", "shape": [0, 5], "data_offsets": [8, 8]}
    path.write_bytes(forged(TWO | {"e": empty, "__metadata__": {"format": "pt"}}))
    with TensorFile(path) as file:
        assert list(file.pieces("e")) == []
        assert [rows.shape for _, rows in file.pieces("b")] == [(1, 3)]
