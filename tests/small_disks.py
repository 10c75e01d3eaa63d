"""Small disks of a test's own, which fill up or turn read-only as real ones do."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """Mount a file system in memory on a folder, which is made; give the folder.

    Skips the test where that isn't allowed, but fails in CI.
    """
    folder.mkdir()
    _mount("-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder))
    try:
        yield folder
    finally:
        _unmount(folder)


@contextmanager
def failing_disk(folder: Path, image: Path) -> Iterator[Path]:
    """Like ``small_disk``, with a file system that ``turn_read_only`` knows."""
    folder.mkdir()
    with image.open("wb") as file:
        file.truncate(16 << 20)
    if shutil.which("mkfs.ext4") is None:
        _missing("there is no mkfs.ext4")
    subprocess.run(["mkfs.ext4", "-q", str(image)], check=True, timeout=60)
    _mount("-o", "loop", str(image), str(folder))
    try:
        yield folder
    finally:
        _unmount(folder)


def turn_read_only(folder: Path) -> None:
    """Let the file system do what it does when the disk below fails."""
    command = ["mount", "-o", "remount,abort", str(folder)]
    subprocess.run(command, check=True, timeout=60)


def mend(folder: Path, image: Path) -> None:
    """Let it be written again, as after the disk was replaced by a copy."""
    _unmount(folder)
    _mount("-o", "loop", str(image), str(folder))


def fill(folder: Path) -> Path:
    """Leave no byte free; return the file that takes the room."""
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file:
        for size in (1 << 16, 1 << 10, 1):
            try:
                while file.write(b"x" * size):
                    pass
            except OSError:  # no room for as much
                continue
    return filler


def _mount(*words: str) -> None:
    try:
        done = subprocess.run(["mount", *words], capture_output=True, text=True)
    except FileNotFoundError:
        _missing("there is no mount command")
    if done.returncode:
        _missing(f"to mount a disk needs root: {done.stderr.strip()}")


def _unmount(folder: Path) -> None:
    """Unmount, as soon as the last process that is ending has closed its files."""
    limit = time.monotonic() + 20
    command = ["umount", str(folder)]
    while (done := subprocess.run(command, capture_output=True)).returncode:
        assert time.monotonic() < limit, done.stderr
        time.sleep(0.1)


def _missing(reason: str) -> None:
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)
