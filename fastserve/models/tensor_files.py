"""Tensors in ``.safetensors`` files: read and written in pieces, also 16-bit ones.

The format (https://huggingface.co/docs/safetensors): eight bytes with the length of the
header, little-endian; the header, a JSON object that has of each tensor its type, shape
and place; the tensors' bytes, one behind the other. The library ``safetensors`` gives
NumPy no bfloat16, and only whole tensors; here a piece of a few MiB is read, converted
and handed on, so that loading a model takes hardly more memory than the model.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fastserve.core import Array
from fastserve.errors import CheckpointError

MAX_HEADER = 100_000_000  # bytes; the format's own limit
_PIECE = 1 << 20  # numbers that are converted at a time
_BYTES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2"), 1),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 8),
}
_FLOATS = {"F16": "<f2", "BF16": "<u2", "F32": "<f4", "F64": "<f8"}
_DTYPES = {"float16": "F16", "bfloat16": "BF16", "float32": "F32"}
_LARGEST = {
    "F16": np.float32(65504.0),
    "BF16": np.array(0x7F7F0000, np.uint32).view(np.float32)[()],
}
_KEYS = {"dtype", "shape", "data_offsets"}


@dataclass(frozen=True)
class Entry:
    """What a header says of a tensor; ``start`` and ``end`` count from the data on."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


class TensorFile:
    """A ``.safetensors`` file that is open for reading; its header has been checked.

    Raises:
        CheckpointError: there is no such file, or its header isn't sound: not JSON,
            longer than the file, a name twice, a tensor whose size doesn't fit its
            type and shape, tensors that overlap or leave gaps, or missing bytes.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.is_file():  # opening a pipe would wait for a writer
            raise self.fault("there is no such file")
        try:
            self._file = path.open("rb", buffering=0)
        except OSError as error:
            raise self.fault(str(error)) from error
        try:
            self.entries, self._data = self._read_header()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> TensorFile:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        self._file.close()

    def fault(self, reason: str) -> CheckpointError:
        return CheckpointError(
            f"expected a sound .safetensors file: {self.path}",
            reason,
            "fetch or write the file again",
        )

    def pieces(self, name: str) -> Iterator[tuple[int, Array]]:
        """Yield (first row, rows) of a tensor of any floating type.

        Rows are those of the first axis, in float32 (float64 for F64), and read-only
        for whoever wants to keep them: the next piece may use the same memory.
        """
        entry = self.entries[name]
        if entry.dtype not in _FLOATS:
            raise CheckpointError(
                f"{self.path}: expected {name} of type F32, F16, BF16 or F64",
                entry.dtype,
                "quantized models can't be loaded: take, or save, it in 16 or 32 bits",
            )
        width = math.prod(entry.shape[1:])
        rows = entry.shape[0] if entry.shape else 1
        step = max(1, _PIECE // max(1, width))
        stored = np.dtype(_FLOATS[entry.dtype])
        for first in range(0, rows if width else 0, step):
            count = min(step, rows - first)
            bits = np.empty(count * width, stored)
            place = self._data + entry.start + first * width * stored.itemsize
            self._read(bits.view(np.uint8).data, place)
            yield first, _numbers(bits, entry.dtype).reshape(count, *entry.shape[1:])

    def _read(self, into: memoryview, place: int) -> None:
        self._file.seek(place)
        while into:
            try:
                count = self._file.readinto(into)
            except OSError as error:
                raise self.fault(str(error)) from error
            if not count:
                raise self.fault("the file became shorter while it was read")
            into = into[count:]

    def _read_header(self) -> tuple[dict[str, Entry], int]:
        """Return the entries, and where the data begin."""
        size = os.fstat(self._file.fileno()).st_size
        if size < 8:
            raise self.fault(f"{size} bytes: no header")
        start = bytearray(8)
        self._read(memoryview(start), 0)
        length = int.from_bytes(start, "little")
        if length > min(MAX_HEADER, size - 8):
            limit = "the format's limit" if length <= size - 8 else "the file"
            raise self.fault(f"a header of {length:,} bytes, more than {limit}")
        text = bytearray(length)
        self._read(memoryview(text), 8)
        entries = self._entries(bytes(text))
        end = self._check_places(entries)
        found = size - 8 - length
        if found != end:
            what = "it was cut short" if found < end else "something was appended"
            raise self.fault(f"{found:,} bytes of tensors instead of {end:,}: {what}")
        return entries, 8 + length

    def _entries(self, text: bytes) -> dict[str, Entry]:
        def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
            found = dict(pairs)
            if len(found) < len(pairs):
                names = [name for name, _ in pairs]
                twice = next(n for n in names if names.count(n) > 1)
                raise self.fault(f"a header with {twice!r} twice")
            return found

        try:
            header = json.loads(text.decode(), object_pairs_hook=once)
        except (ValueError, RecursionError) as error:
            raise self.fault(f"a header that isn't JSON: {error}") from None
        if not isinstance(header, dict):
            raise self.fault(f"a header of type {type(header).__name__}")
        header.pop("__metadata__", None)
        return {name: self._entry(name, value) for name, value in header.items()}

    def _entry(self, name: str, value: Any) -> Entry:
        if not isinstance(value, dict) or set(value) != _KEYS:
            raise self.fault(f"a header with {name!r}: {str(value)[:80]}")
        dtype, shape, offsets = (value[k] for k in ("dtype", "shape", "data_offsets"))
        if not isinstance(dtype, str) or dtype not in _BYTES:
            raise self.fault(f"{name!r} of type {str(dtype)[:40]!r}, which isn't known")
        if not (_naturals(shape) and _naturals(offsets) and len(offsets) == 2):
            raise self.fault(
                f"{name!r} with shape {str(shape)[:80]}, offsets {str(offsets)[:80]}"
            )
        entry = Entry(dtype, tuple(shape), *offsets)
        size = math.prod(shape) * _BYTES[dtype]
        if entry.end - entry.start != size:
            raise self.fault(
                f"{entry.end - entry.start:,} bytes for {name!r}, where {dtype} of "
                f"shape {entry.shape} takes {size:,}"
            )
        return entry

    def _check_places(self, entries: Mapping[str, Entry]) -> int:
        """Return the end of the last tensor; each must begin where another ends."""
        end, before = 0, "the header"
        for name, entry in sorted(
            entries.items(), key=lambda item: (item[1].start, item[1].end)
        ):
            if entry.start != end:
                what = "overlaps" if entry.start < end else "leaves a gap behind"
                raise self.fault(f"{name!r}, at {entry.start:,}, {what} {before}")
            end, before = entry.end, repr(name)
        return end


def _naturals(value: Any) -> bool:
    return isinstance(value, list) and all(type(n) is int and n >= 0 for n in value)


def _numbers(bits: Array, dtype: str) -> Array:
    if dtype == "BF16":  # the upper half of a float32
        return np.left_shift(bits, 16, dtype=np.uint32).view(np.float32)
    if dtype == "F64":
        return bits
    return bits.astype(np.float32, copy=False)


def write_tensors(
    path: Path,
    tensors: Mapping[str, Array],
    dtype: str = "float32",
    done: Callable[[int], None] = lambda count: None,
) -> None:
    """Write float arrays as ``dtype`` to a file, in pieces, and sync it to the disk.

    Args:
        dtype: float32, float16 or bfloat16; rounded to the nearest, ties to even.
        done: is told the number of bytes after each tensor.

    Raises:
        CheckpointError: a number is NaN or infinite, or becomes so in this type.
        OSError: the file can't be written.
    """
    code = _DTYPES[dtype]
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    place = 0
    for name, array in tensors.items():
        end = place + array.size * _BYTES[code]
        header[name] = {
            "dtype": code,
            "shape": list(array.shape),
            "data_offsets": [place, end],
        }
        place = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, array in tensors.items():
            step = max(1, _PIECE // max(1, math.prod(array.shape[1:])))
            for first in range(0, len(array), step):
                file.write(_bits(name, array[first : first + step], code).data)
            done(array.size * _BYTES[code])
        file.flush()
        os.fsync(file.fileno())


def _bits(name: str, array: Array, code: str) -> Array:
    values = np.ascontiguousarray(array, "<f4")
    largest = np.abs(values).max(initial=0)
    limit = _LARGEST.get(code, np.finfo(np.float32).max)
    if not largest <= limit:  # also true for NaN
        raise CheckpointError(
            f"expected finite numbers in {name}, of at most {limit:.4g} in {code}",
            f"{largest:.4g}",
            "the model is damaged: use an earlier checkpoint"
            if not np.isfinite(largest)
            else "write it as float32 or bfloat16",
        )
    if code == "BF16":
        bits = values.view(np.uint32)
        odd = np.bitwise_and(np.right_shift(bits, 16), 1)
        return np.right_shift(bits + odd + np.uint32(0x7FFF), 16).astype("<u2")
    return values.astype("<f2") if code == "F16" else values
