"""NumPy's files, of which nothing is unpickled."""

from __future__ import annotations

import tokenize
import zipfile
import zlib
from pathlib import Path
from typing import Any, Literal

import numpy as np

# what NumPy raises for damaged files besides OSError and ValueError
_FAULTS = (
    EOFError,
    KeyError,
    MemoryError,
    NotImplementedError,
    OverflowError,
    RuntimeError,  # encrypted
    SyntaxError,
    TypeError,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
)


def load_npy(path: str | Path, mmap_mode: Literal["r"] | None = None) -> Any:
    """Return the array of a .npy file.

    Raises OSError if it can't be read, and ValueError for what isn't such a file.
    """
    try:
        found = np.load(path, mmap_mode=mmap_mode, allow_pickle=False)
    except _FAULTS as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error
    if not isinstance(found, np.ndarray):
        found.close()
        raise ValueError("several arrays, a .npz file")
    return found


def load_npz(path: str | Path) -> dict[str, Any]:
    """Return the arrays of a .npz file by their names.

    Raises OSError if it can't be read, and ValueError for what isn't such a file.
    """
    try:
        with Path(path).open("rb") as file:  # which NumPy leaves open at a fault
            arrays = np.load(file, allow_pickle=False)
            if isinstance(arrays, np.ndarray):
                raise ValueError("a single array, a .npy file")
            with arrays:
                return {name: arrays[name] for name in arrays.files}
    except _FAULTS as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error
