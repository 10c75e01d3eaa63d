"""IDX files, the format of MNIST: a header of big-endian sizes, then the numbers.

Format: http://yann.lecun.com/exdb/mnist/ - two zero bytes, a type, the number of
axes, one uint32 an axis, then the values in C order, big-endian.
"""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np

from fastserve.core import Array
from fastserve.errors import DataError

_TYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_LARGEST = 1 << 33  # bytes
_PIECE = 1 << 22


def read_idx(path: Path | str) -> Array:
    """Return the array of an IDX file, gzipped or not, in this machine's byte order.

    Memory only grows with what the file really holds, whatever its header says.

    Raises DataError if the file can't be read, or its header and length don't fit.
    """
    path = Path(path)
    try:
        with path.open("rb") as raw:
            packed = raw.read(2) == b"\x1f\x8b"
        with gzip.open(path) if packed else path.open("rb") as file:
            return _read(file, path)  # type: ignore[arg-type]
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise _fault(path, reason) from None


def _read(file: BinaryIO, path: Path) -> Array:
    start = file.read(4)
    if len(start) < 4 or start[:2] != b"\0\0" or start[2] not in _TYPES:
        raise _fault(path, f"it starts with {start!r}")
    axes = start[3]
    header = file.read(4 * axes)
    if not 1 <= axes <= 4 or len(header) < 4 * axes:
        raise _fault(path, f"a header of {axes} axes")
    shape = tuple(np.frombuffer(header, ">u4").tolist())
    kind = np.dtype(_TYPES[start[2]])
    wanted = math.prod(shape) * kind.itemsize
    if not 0 < wanted <= _LARGEST:
        raise _fault(path, f"a header of shape {shape}")
    data = bytearray()
    while len(data) <= wanted:
        piece = file.read(min(_PIECE, wanted + 1 - len(data)))
        if not piece:
            break
        data += piece
    if len(data) != wanted:
        held = f"more than {wanted:,}" if len(data) > wanted else f"{len(data):,}"
        raise _fault(path, f"{held} bytes for a header of shape {shape}")
    array = np.frombuffer(data, kind).reshape(shape)
    return array.astype(kind.newbyteorder("="), copy=False)


def _fault(path: Path, reason: str) -> DataError:
    return DataError(
        "expected an IDX file: a header, and as many values as it says",
        f"{path}: {reason}",
        "copy the file again; images and labels of MNIST are in this format",
    )
