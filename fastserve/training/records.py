"""What the ranks of a job leave: logs, errors, completion."""

from __future__ import annotations

import faulthandler
import json
import logging
import os
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from fastserve import environment
from fastserve.comm import Communicator
from fastserve.errors import FastserveError
from fastserve.training import files

log = logging.getLogger("fastserve")


class _ScreenFormatter(logging.Formatter):
    """Shows warnings in yellow on a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        line = super().format(record)
        # under the launcher, which knows where standard error ends, it takes them out
        shown = environment.terminal_width() or environment.is_terminal(sys.stderr)
        coloured = shown and environment.wants_colour()
        if coloured and record.levelno >= logging.WARNING:
            return f"\x1b[33m{line}\x1b[0m"
        return line


class _LogFile(logging.FileHandler):
    """Says once that it can't be written, instead of a traceback for each line."""

    _said = False

    def handleError(self, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
        elif not self._said:
            self._said = True
            print(f"can't write {self.baseFilename}: {error}", file=sys.stderr)


def start_logs(folder: Path, comm: Communicator) -> None:
    """Send the library's messages to the rank's own file and to standard error.

    All ranks show warnings, and with FASTSERVE_LOG_RANKS ``all`` every message; each
    line names its rank. A crash of the interpreter, such as SIGSEGV,
    leaves Python's stack in the file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    log.setLevel(logging.INFO)
    log.propagate = False
    file = _LogFile(folder / f"rank-{comm.rank:05d}.log", encoding="utf-8")
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    screen = logging.StreamHandler(sys.stderr)
    prefix = f"[rank {comm.rank} {comm.host}] " if comm.size > 1 else ""
    screen.setFormatter(_ScreenFormatter(prefix + "%(message)s"))
    everyone = environment.setting("LOG_RANKS") == "all"
    screen.setLevel(logging.INFO if everyone else logging.WARNING)
    for handler in list(log.handlers):
        log.removeHandler(handler)
        handler.close()
    log.addHandler(file)
    log.addHandler(screen)
    if file.stream is not None:
        faulthandler.enable(file.stream)


def _kind(error: BaseException) -> str:
    """Return the name of an error's type; what an MPI raises when another rank is gone
    (MPICH does, in one of two cases) is known as the error that follows a loss."""
    kind = type(error)
    return "CommError" if kind.__module__.startswith("mpi4py") else kind.__name__


def write_error(
    run_dir: Path, comm: Communicator, error: BaseException, step: int | None = None
) -> int:
    """Write this rank's error record; return the exit status that it stands for.

    ``step``: the steps that had been made.
    """
    status = exit_status(error)
    record = {
        "rank": comm.rank,
        "host": comm.host,
        "time": time.time(),
        "type": _kind(error),
        "message": str(error),
        "traceback": describe_error(error),
        "status": status,
        "step": step,
        "job": environment.setting("JOB"),
    }
    folder = run_dir / "errors"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"rank-{comm.rank:05d}.json"
    files.write_atomically(path, json.dumps(record, indent=1))
    return status


def describe_error(error: BaseException) -> str:
    """Return the traceback; of an error that is a message to the user, the message."""
    if isinstance(error, FastserveError):
        return str(error)
    return "".join(traceback.format_exception(error)).rstrip()


def exit_status(error: BaseException) -> int:
    if isinstance(error, SystemExit):
        code = error.code
        return code if isinstance(code, int) else int(code is not None)
    return 130 if isinstance(error, KeyboardInterrupt) else 1


def write_end(path: Path, comm: Communicator, values: dict[str, Any]) -> None:
    """Record how all ranks have ended: the launcher asks for proof of it."""
    comm.barrier()
    if comm.rank == 0:
        record = {"job": environment.setting("JOB"), "ranks": comm.size, **values}
        text = json.dumps({**record, "time": time.time(), "pid": os.getpid()}, indent=1)
        files.write_atomically(path, text)
