"""Images in a folder for each class, decoded when their batch is wanted."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from fastserve.core import Array
from fastserve.data.examples import EncodedSource, Examples
from fastserve.data.preprocessing import Preprocessing
from fastserve.data.sources import Batch, Source
from fastserve.data.splits import digest
from fastserve.data.targets import Classes
from fastserve.errors import DataError

ENDINGS = (".png", ".jpg", ".jpeg", ".pgm", ".ppm")
PIXELS = 1 << 25  # of one image: more are refused before they are decoded
KEPT = 1 << 29  # bytes of decoded images that are kept
_LARGEST = 1 << 28  # bytes of a file
_PNM = re.compile(rb"P([56])(?:\s+(?:#[^\n]*\n\s*)*)(\d+)\s+(\d+)\s+(\d+)\s")


@dataclass(frozen=True)
class Pixels:
    """How an image becomes (height, width, channels), from 0 to 1."""

    height: int
    width: int
    channels: int

    kind = "image"

    @property
    def input_shape(self) -> tuple[int, ...]:
        return (self.height, self.width, self.channels)

    def read(self, path: Path) -> Array:
        """Return the image of a file, resized, as bytes (height, width, channels).

        Raises DataError for what isn't an image, or has too many pixels.
        """
        try:
            with path.open("rb") as file:
                found = self._plain(path, file)
                if found is None:
                    found = self._by_pillow(path, file)
        except OSError as error:
            raise unreadable(path, error.strerror or str(error)) from None
        return found

    def _plain(self, path: Path, file: BinaryIO) -> Array | None:
        """Return a binary PGM or PPM of just the wanted kind, else None."""
        start = file.read(512)
        header = _PNM.match(start)
        if header is None:
            file.seek(0)
            return None
        kind, width, height, most = map(int, header.groups())
        check_size(path, width, height)
        channels = 1 if kind == 5 else 3
        file.seek(header.end())
        if (height, width, channels) != self.input_shape or most != 255:
            file.seek(0)
            return None
        data = file.read(height * width * channels)
        if len(data) < height * width * channels:
            raise unreadable(path, f"{len(data)} bytes of pixels")
        return np.frombuffer(data, np.uint8).reshape(self.input_shape)

    def _by_pillow(self, path: Path, file: BinaryIO) -> Array:
        with opened(path, file) as image:
            made = image.convert("L" if self.channels == 1 else "RGB")
            if made.size != (self.width, self.height):
                from PIL import Image

                # over all pixels that it shrinks: no aliasing
                size = (self.width, self.height)
                made = made.resize(size, Image.Resampling.BILINEAR)
            return np.asarray(made, np.uint8).reshape(self.input_shape)

    def to_json(self) -> dict[str, Any]:
        shape = {"height": self.height, "width": self.width}
        return {"kind": self.kind, **shape, "channels": self.channels}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Pixels:
        return cls(*(int(data[key]) for key in ("height", "width", "channels")))


@contextmanager
def opened(path: Path, file: BinaryIO) -> Iterator[Any]:
    """Open an image with Pillow; errors of all kinds become DataError.

    Only the formats of ``ENDINGS`` are tried, whatever the file's name is.
    """
    if importlib.util.find_spec("PIL") is None:
        raise DataError(
            "expected Pillow, which reads images and resizes them",
            f"none, to read {path}",
            "pip install 'fastserve-train[image]'; PGM and PPM files of just "
            "data.size, and arrays, need none",
        )
    from PIL import Image

    try:
        image = Image.open(file, formats=("PNG", "JPEG", "PPM"))
        check_size(path, *image.size)
        yield image
    except DataError:
        raise
    except _faults() as error:
        raise unreadable(path, str(error)) from None


def _faults() -> tuple[type[BaseException], ...]:
    """What Pillow raises for broken files."""
    from PIL import Image

    faults = (OSError, SyntaxError, ValueError, EOFError, OverflowError, TypeError)
    bombs = Image.DecompressionBombError, Image.DecompressionBombWarning
    return (*faults, MemoryError, *bombs)  # its decoders' word for some damage


def unreadable(path: Path, reason: str) -> DataError:
    return DataError(
        "expected a PNG, JPEG, PGM or PPM image",
        f"{path}: {reason}",
        "convert it, or leave it out",
    )


def check_size(path: Path, width: int, height: int) -> None:
    if not 0 < width * height <= PIXELS:
        raise DataError(
            f"expected an image of at most {PIXELS:,} pixels",
            f"{path}: {width:,} x {height:,}",
            "make it smaller first, or remove it",
        )


def list_classes(folder: Path, endings: Sequence[str]) -> list[tuple[Path, str]]:
    """Return (file, name of its class) of a folder with a folder for each class.

    They come in the order of their names; what has another ending is left out.

    Raises DataError if there is no such folder, or nothing in one of a class.
    """
    try:
        kinds = sorted(p for p in folder.iterdir() if p.is_dir() and p.name[0] != ".")
        found = [
            (file, kind.name)
            for kind in kinds
            for file in _inside(kind)
            if file.suffix.lower() in endings
        ]
    except OSError as error:
        raise DataError(
            "expected a folder with a folder for each class",
            f"{folder}: {error.strerror or error}",
            "check the path",
        ) from None
    empty = {kind.name for kind in kinds} - {kind for _, kind in found}
    if empty or not found:
        raise DataError(
            f"{folder}: expected files {', '.join(endings)} in a folder for each class",
            f"none in {', '.join(sorted(empty)[:5])}"
            if empty
            else f"no folders in {folder}",
            "put them there, or remove the folder",
        )
    return found


def _inside(folder: Path) -> Iterator[Path]:
    return iter(sorted(p for p in folder.rglob("*") if p.is_file()))


class ImageFolder(Examples):
    """The images of a folder with a folder for each class.

    Decoded images are kept as bytes as long as all of them take at most ``KEPT``.

    Args:
        check: look at the header of each file now.
        kept: of a run that goes on, or of the training part.
    """

    def __init__(
        self,
        folder: Path,
        pixels: Pixels,
        check: bool = True,
        kept: Preprocessing | None = None,
    ) -> None:
        files = list_classes(folder, ENDINGS)
        self.files = [path for path, _ in files]
        self.samples = len(files)
        classes = (
            kept.target if kept else Classes.of((kind for _, kind in files), folder)
        )
        assert isinstance(classes, Classes)
        self.preprocessing = Preprocessing(pixels, classes)
        self.targets: Array = np.empty(self.samples, np.int64)
        for i, (path, kind) in enumerate(files):
            place = classes.number(kind)
            if place is None:
                raise classes.unknown(kind, str(path.parent))
            self.targets[i] = place
        self.pixels = pixels
        if check:
            self._check()
        size = self.samples * int(np.prod(pixels.input_shape))
        self._kept = None
        if size <= KEPT:
            self._kept = np.empty((self.samples, *pixels.input_shape), np.uint8)
            self._is_kept = np.zeros(self.samples, bool)

    def _check(self) -> None:
        for path in self.files:
            if path.suffix.lower() in (".pgm", ".ppm"):
                self.pixels.read(path)
                continue
            try:
                with path.open("rb") as file, opened(path, file):
                    pass
            except OSError as error:
                raise unreadable(path, error.strerror or str(error)) from None

    def encode(self, rows: Array) -> Batch:
        x = np.empty((len(rows), *self.input_shape), np.float32)
        for out, row in zip(x, rows.tolist(), strict=True):
            np.multiply(self._image(row), np.float32(1 / 255), out=out)
        return Batch(x, self.targets[rows], None)

    def _image(self, row: int) -> Array:
        if self._kept is None:
            return self.pixels.read(self.files[row])
        if not self._is_kept[row]:
            self._kept[row] = self.pixels.read(self.files[row])
            self._is_kept[row] = True
        found: Array = self._kept[row]
        return found

    def source(self, rows: Array) -> Source:
        return EncodedSource(self, rows)

    def digests(self) -> bytes:
        return b"".join(digest(_bytes_of(path)) for path in self.files)


def _bytes_of(path: Path) -> bytes:
    try:
        if path.stat().st_size > _LARGEST:
            raise unreadable(path, f"{path.stat().st_size:,} bytes")
        return path.read_bytes()
    except OSError as error:
        raise unreadable(path, error.strerror or str(error)) from None
