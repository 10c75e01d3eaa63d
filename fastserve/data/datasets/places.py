"""Where the data sets lie: in a data folder, or where their package puts them.

Files of packages are read, their code is never imported. An archive that a package
manager's ``download`` or ``pack`` left in the data folder is read as it is.
"""

from __future__ import annotations

import fnmatch
import importlib.util
import os
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fastserve import environment
from fastserve.errors import DataError

FOLDER = "data"  # where data are looked for if FASTSERVE_DATA_DIR isn't set
LARGEST = 1 << 28  # bytes of one file of a data set
_BROKEN = (OSError, EOFError, zlib.error, zipfile.BadZipFile, tarfile.TarError)


@dataclass(frozen=True)
class Known:
    """A data set that fastserve can read.

    Attributes:
        name: as in ``data: {type: dataset, name: ...}``.
        about: one line of what is in it.
        inner: its file or folder inside of the package.
        get: the command that gets it into the folder FOLDER of the working folder.
        package: Python package that holds it when pip has installed it.
        archives: patterns of the package's archive in the data folder.
        prefix: what stands before ``inner`` in such an archive.
        own: what is looked for in the data folder, besides ``package/inner``.
        system: where a package of the operating system puts it.
    """

    name: str
    about: str
    inner: str
    get: str
    package: str = ""
    archives: tuple[str, ...] = ()
    prefix: str = ""
    own: tuple[str, ...] = ()
    system: str = ""


def folder() -> Path:
    """Return the data folder: FASTSERVE_DATA_DIR, or ``data`` in the working folder."""
    given = environment.setting("DATA_DIR") or FOLDER
    return Path(os.path.expanduser(given))  # stays as it is for a user without a home


def places(known: Known) -> list[Path]:
    """Return where the data set's file or folder may lie, the first choice first."""
    base = folder()
    found = [base / name for name in known.own]
    if known.package:
        found.append(base / known.package / known.inner)
        spec = importlib.util.find_spec(known.package)
        for location in (spec and spec.submodule_search_locations) or []:
            found.append(Path(location, known.inner))
    if known.system:
        found += [base / known.system.lstrip("/"), Path(known.system)]
    return found


def archive(known: Known) -> Path | None:
    """Return the package's archive in the data folder, the last one by name."""
    found = [p for pattern in known.archives for p in folder().glob(pattern)]
    return max(found, default=None)


def find(known: Known) -> Path:
    """Return the path of the data set ``known``, or of an archive that holds it.

    Raises DataError that says how to get it if it is nowhere.
    """
    looked = places(known)
    for path in looked:
        if path.exists():
            return path
    packed = archive(known)
    if packed is not None:
        return packed
    where = [*map(str, looked), *(str(folder() / name) for name in known.archives)]
    raise DataError(
        f"expected the data set {known.name}: {Path(known.inner).name}",
        f"no such file; looked for: {', '.join(where)}",
        f"get it: {known.get}  (FASTSERVE_DATA_DIR names another folder than "
        f"{FOLDER!r})",
    )


@contextmanager
def damaged(known: Known, path: Path, expected: str) -> Iterator[None]:
    """Turn what reading a broken file raises into a DataError."""
    try:
        yield
    except (*_BROKEN, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise wrong(known, path, expected, str(error)) from None


def wrong(known: Known, path: Path, expected: str, reason: str) -> DataError:
    """Return the error of a data set that isn't as it should be."""
    return DataError(
        f"{known.name}: expected {expected}",
        f"{path}: {reason}",
        f"get it again: {known.get}",
    )


def read_file(known: Known) -> tuple[Path, bytes]:
    """Return (where it was, its bytes) of a data set that is one file."""
    path = find(known)
    with damaged(known, path, Path(known.inner).name):
        if path.suffix in (".whl", ".zip", ".tgz"):
            wanted = known.prefix + known.inner
            for name, data in _packed(path, wanted):
                if name == wanted:
                    return path, data
            raise wrong(known, path, wanted, "no such file in the archive")
        return path, _of_disk(path)


def read_files(known: Known, pattern: str) -> Iterator[tuple[str, bytes]]:
    """Yield (name within the set, bytes) of the files that fit a pattern, by name."""
    path = find(known)
    with damaged(known, path, f"files {pattern}"):
        if path.is_dir():
            for file in sorted(path.glob(pattern)):
                name = file.relative_to(path).as_posix()
                yield name, _of_disk(file)
            return
        start = known.prefix + known.inner
        start = f"{start}/" if known.inner else start
        yield from sorted(
            (name.removeprefix(start), data)
            for name, data in _packed(path, start + pattern)
        )


def _packed(path: Path, pattern: str) -> Iterator[tuple[str, bytes]]:
    """Yield the files of an archive whose whole names fit a pattern."""
    if path.suffix in (".whl", ".zip"):
        with zipfile.ZipFile(path) as file:
            for info in file.infolist():
                if fnmatch.fnmatchcase(info.filename, pattern):
                    with file.open(info) as member:
                        yield info.filename, _at_most(member.read, info.filename)
        return
    with tarfile.open(path, "r:gz") as packed:
        for item in packed:
            if item.isfile() and fnmatch.fnmatchcase(item.name, pattern):
                content = packed.extractfile(item)
                assert content is not None  # it is a file
                yield item.name, _at_most(content.read, item.name)


def _of_disk(path: Path) -> bytes:
    with path.open("rb") as file:
        return _at_most(file.read, str(path))


def _at_most(read: Callable[[int], bytes], name: str) -> bytes:
    data = read(LARGEST + 1)
    if len(data) > LARGEST:
        raise ValueError(f"{name} has more than {LARGEST:,} bytes")
    return data
