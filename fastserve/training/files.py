"""Files and folders that are complete or not there, whenever the process is killed.

What is written goes to ``.NAME.tmp-<pid>/`` beside its place, is synced to the disk and
renamed. What a dead process left is removed by the next one that writes the same name.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import re
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from fastserve import environment
from fastserve.errors import CheckpointError

log = logging.getLogger("fastserve")

_LOCK = ".lock"
_SAME_TIME = 1.0  # s; the clocks of processes and of file systems tick coarsely
_TRIES, _BETWEEN = 3, 0.05  # to take a lock; seconds from one to the next


def write_atomically(path: Path, text: str) -> None:
    """Write a text file in UTF-8; until it is complete, what was there stays.

    Raises CheckpointError if it can't be written.
    """
    path = Path(path)
    with writing(path):
        clean(path.parent, re.escape(path.name))
        replace(path, lambda place: write(place, text))


@contextmanager
def writing(target: Path) -> Iterator[None]:
    """Turn errors of the system into a CheckpointError that names ``target``."""
    try:
        yield
    except OSError as error:
        if isinstance(error, FileNotFoundError):  # the folders were there, or made
            raise _vanished(target) from error
        raise CheckpointError(
            f"expected to be able to write {target}",
            str(error),
            "make room, correct the permissions, or take another folder; what was "
            "saved before is intact",
        ) from error


def check_there(folder: Path, lock: IO[str] | None = None) -> None:
    """Raise CheckpointError unless the folder is there, with what ``hold`` returned.

    A write that met the moment of the removal has made it again, without the lock.
    """
    try:
        there = folder.is_dir() and (
            lock is None
            or os.path.samestat((folder / _LOCK).stat(), os.fstat(lock.fileno()))
        )
    except FileNotFoundError:
        there = False
    if not there:
        raise _vanished(folder)


def _vanished(path: Path) -> CheckpointError:
    return CheckpointError(
        f"expected the folder of {path}, which was there before",
        "somebody has removed or renamed it, or its file system isn't mounted",
        "put it back and go on with --resume auto; what was only in it is lost",
    )


@contextmanager
def temporary(target: Path) -> Iterator[Path]:
    """Make a folder beside ``target``; it is gone at the end, renamed or removed."""
    path = _temporary_name(target)
    path.mkdir()
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def _temporary_name(target: Path) -> Path:
    return target.with_name(f".{target.name}.tmp-{os.getpid()}")


def clean(folder: Path, names: str) -> None:
    """Make ``folder``; remove what dead processes left of ``names``, a pattern.

    Whether a process lives is only known of this host, so two hosts must not write
    the same name at a time.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pattern = re.compile(rf"\.(?:{names})\.tmp-(?P<pid>\d{{1,9}})")
    for path in folder.iterdir():
        match = pattern.fullmatch(path.name)
        if match and not _lives(int(match["pid"]), path):
            remove(path)


def _lives(pid: int, folder: Path) -> bool:
    """Return whether another process of this host has the number ``pid``.

    A zombie doesn't live, though in a container nobody may ever ask for its status. One
    that was started after the folder was made is another one with its number. Both are
    only seen where there is /proc.
    """
    if pid == os.getpid():
        return False
    hidden = not Path("/proc/self/stat").exists()
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's, which /proc may not show
        hidden = True
    started = environment.process_start(pid)
    if started is None:
        return hidden
    try:
        return started <= folder.stat().st_ctime + _SAME_TIME
    except FileNotFoundError:  # it was renamed meanwhile, so it does
        return True


def replace(path: Path, make: Callable[[Path], object]) -> None:
    """Let ``make`` write a file elsewhere, then put it in the place of ``path``."""
    with temporary(path) as folder:
        made = folder / path.name
        make(made)
        made.replace(path)
        sync(path.parent)


def put_folder(made: Path, target: Path) -> None:
    """Rename a folder to ``target``. One that is there becomes ``target``.old.

    So at each moment a complete folder can be found under one of the two names.
    """
    if os.path.lexists(target):
        old = target.with_name(f"{target.name}.old")
        discard(old)
        target.rename(old)
    made.rename(target)
    sync(target.parent)


def discard(path: Path) -> None:
    """Remove what ``remove`` does, if it is there; it is never half there under its
    name."""
    if os.path.lexists(path):
        remove(path.rename(_temporary_name(path)))


def remove(path: Path) -> None:
    """Remove a file, a folder with all in it, or a link, but not what it leads to."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def clear(path: Path) -> None:
    """Remove a folder with all in it, or a file. What leads to another disk, a link or
    a mount, stays, and only what is in there goes."""
    if path.is_dir():
        for inside in path.iterdir():
            remove(inside)
        if not path.is_symlink():
            with suppress(OSError):  # a mount is busy
                path.rmdir()
    elif not path.is_symlink():
        remove(path)


def hold(folder: Path) -> IO[str]:
    """Take a folder for this process until the file that is returned is closed, or the
    process ends, however it does.

    Raises CheckpointError if another process has it, on this host or, where the file
    system can tell, another one; or if it can't be written.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / _LOCK).open("a+", encoding="utf-8")
    try:
        _lock(file)
    except BlockingIOError:
        file.seek(0)
        holder = file.read(200).strip() or "another job"
        file.close()
        raise CheckpointError(
            "expected a run folder that no other job uses",
            f"{folder}: in use by {holder}",
            "wait for its end or stop it, or take another name with --set name=NAME",
        ) from None
    except OSError as error:  # a file system without locks
        log.warning("can't see whether another job uses %s: %s", folder, error)
        return file
    with writing(folder):
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
    return file


def _lock(file: IO[str]) -> None:
    """Take the lock; who only looks whether it is taken has it for a moment."""
    for _ in range(_TRIES - 1):
        with suppress(BlockingIOError):
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        time.sleep(_BETWEEN)
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def write(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def sync(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on the disk."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    except OSError as error:
        # some network file systems can't do it for folders
        if error.errno != errno.EINVAL or not path.is_dir():
            raise
    finally:
        os.close(number)


def forget(path: Path) -> None:
    """Drop a synced file from the system's memory, so that it is read from the disk.

    Where the system can't, or the file system is in memory, it stays there.
    """
    if not hasattr(os, "posix_fadvise"):
        return
    number = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(number, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(number)
