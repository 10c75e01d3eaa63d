"""Images of digits and clothes, as whole arrays."""

from __future__ import annotations

import gzip
import io

import numpy as np

from fastserve.core import Array
from fastserve.data.idx import read_idx

from .known import DIGITS, FASHION, MNIST
from .places import Known, damaged, find, read_file, wrong

Part = tuple[Array, Array]
CLOTHES = (
    "t-shirt",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)


def fashion_mnist() -> tuple[Part, Part]:
    """Return ((x_train, y_train), (x_test, y_test)) of Fashion-MNIST, all uint8.

    x: (60000, 28, 28) and (10000, 28, 28), 0..255. y: (samples,), classes 0..9, whose
    names are in ``CLOTHES``. Source: Xiao, Rasul, Vollgraf 2017, MIT licence.

    Raises:
        DataError: it isn't there (says how to get it), or is damaged.
    """
    folder, parts = find(FASHION), []
    for part, samples in (("train", 60000), ("t10k", 10000)):
        arrays = []
        for kind, shape in (
            ("images-idx3", (samples, 28, 28)),
            ("labels-idx1", (samples,)),
        ):
            path = folder / f"{part}-{kind}-ubyte.gz"
            with damaged(FASHION, path, "an IDX file"):
                array = read_idx(path)
            if array.shape != shape or array.dtype != np.uint8:
                found = f"shape {array.shape}, type {array.dtype}"
                raise wrong(FASHION, path, f"bytes of shape {shape}", found)
            arrays.append(array)
        if arrays[1].max() > 9:
            raise wrong(FASHION, folder, "labels 0..9", f"{arrays[1].max()}")
        parts.append((arrays[0], arrays[1]))
    return parts[0], parts[1]


def digits() -> Part:
    """Return 1797 handwritten digits: x (1797, 8, 8), values 0..16, y (1797,); uint8.

    Source: scikit-learn's file, from the UCI repository (Alpaydin, Kaynak 1998).

    Raises:
        DataError: it isn't there (says how to get it), or is damaged.
    """
    table = _table(DIGITS, 1797, 65)
    return _square(table, 8)


def mnist_sample() -> Part:
    """Return 5000 handwritten digits: x (5000, 28, 28) and y (5000,), both uint8.

    They are sorted by digit, 500 of each: shuffle them before you split them.

    Raises:
        DataError: it isn't there (says what to install), or is damaged.
    """
    return _square(_table(MNIST, 5000, 785), 28)


def _square(table: Array, side: int) -> Part:
    x: Array = table[:, :-1].reshape(-1, side, side)
    return np.ascontiguousarray(x), table[:, -1].copy()


def _table(known: Known, rows: int, columns: int) -> Array:
    """Return a gzipped table of bytes whose last column is a digit."""
    path, data = read_file(known)
    expected = f"{rows} lines of {columns - 1} pixels and a digit, as gzipped CSV"
    with damaged(known, path, expected):
        with gzip.open(io.BytesIO(data)) as packed:
            text = packed.read(rows * columns * 5).decode("ascii")
        lines = [line for line in text.splitlines() if line.strip()]
        table = np.loadtxt(lines, np.uint8, delimiter=",") if lines else np.empty(0)
    if table.shape != (rows, columns):
        raise wrong(known, path, expected, f"shape {table.shape}")
    if table[:, -1].max() > 9:
        raise wrong(known, path, expected, f"a label of {table[:, -1].max()}")
    return table
