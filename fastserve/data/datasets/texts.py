"""Long texts for language models."""

from __future__ import annotations

import gzip
import re
import zlib
from pathlib import Path

from fastserve.errors import DataError

from .known import GCIDE, SHAKESPEARE
from .places import find

_WORKS = 42
_SURROGATE = re.compile("[\ud800-\udfff]")  # a byte that isn't UTF-8


def shakespeare() -> str:
    """Return Shakespeare's works: 42 files of Project Gutenberg's, 5.1 MB of ASCII.

    They come in the order of their names, a blank line between them. Their folder
    ``texts`` is looked for in the data folder, then in the installed package
    shakespeare.

    Raises:
        DataError: it isn't there (says what to install), or isn't whole.
    """
    folder = find(SHAKESPEARE)
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
    ``gcide.dict.dz`` in the data folder. Its three bytes that aren't UTF-8
    are read as Windows-1252.

    Raises:
        DataError: it isn't there (says what to install), or is damaged.
    """
    path = find(GCIDE)
    try:
        with gzip.open(path) as file:
            text = file.read().decode(errors="surrogateescape")
        return _SURROGATE.sub(_of_windows, text)
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise DataError(
            "expected the text of dict-gcide, compressed with gzip",
            f"{path}: {error}",
            f"get it again: {GCIDE.get}",
        ) from None


def _of_windows(found: re.Match[str]) -> str:
    return found[0].encode(errors="surrogateescape").decode("cp1252")


def _no_shakespeare(folder: Path, reason: str) -> DataError:
    return DataError(
        f"expected {_WORKS} files *_gut.txt of ASCII text",
        f"{folder}: {reason}",
        f"get them again: {SHAKESPEARE.get}",
    )
