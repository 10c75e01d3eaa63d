"""What a run leaves beside its checkpoints: metrics, logs, errors, completion."""

from __future__ import annotations

import faulthandler
import json
import logging
import math
import os
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from fastserve import environment
from fastserve.comm import Communicator
from fastserve.errors import CheckpointError, FastserveError
from fastserve.training import checkpoint, files
from fastserve.training.callbacks import Callback, Logs, Monitor
from fastserve.training.metrics_outputs import Line, Output
from fastserve.training.saver import Saver
from fastserve.training.step import Trainer

log = logging.getLogger("fastserve")


class MetricsFile(Callback):
    """Appends a JSON object a line: training every ``every`` steps, and validation.

    ``loss`` is the mean since the line before; ``step`` counts the steps made, and
    ``skipped_steps`` those of them that the guard against spikes has skipped.

    Args:
        outputs: take the lines as well.
    """

    def __init__(self, path: Path, every: int, outputs: Sequence[Output] = ()) -> None:
        self.path, self.every, self.outputs = path, every, outputs
        self._resumed: dict[str, Any] = {}

    def on_train_begin(self, logs: Logs | None = None) -> None:
        self.step = self.params["first_step"]
        self._begin_line()
        for name, value in self._resumed.items():
            setattr(self, name, float(value))
        self._resumed = {}
        if self.rank == 0:
            kept = self._forget_later_lines()
            for output in self.outputs:
                output.begin(kept)

    def _begin_line(self) -> None:
        self._loss = self._rows = self._learnt = self._seconds = 0.0

    def get_state(self) -> dict[str, Any]:
        """Return what a checkpoint within a line needs, as text: JSON has no NaN."""
        names = ("_loss", "_rows", "_learnt", "_seconds")
        return {name: repr(float(getattr(self, name))) for name in names}

    def set_state(self, state: dict[str, Any]) -> None:
        """Let the next training go on within a line."""
        self._resumed = dict(state)

    def _forget_later_lines(self) -> list[Line]:
        """Drop the lines of steps that will be made again; return the others."""
        if not self.path.exists():
            return []
        kept, read = [], []
        # damaged bytes must not keep a run from going on; their line is dropped
        text = self.path.read_text("utf-8", errors="replace")
        for line in text.split("\n"):
            try:
                found = json.loads(line)
                if found["step"] <= self.step:
                    kept.append(line)
                    read.append(found)
            except (ValueError, KeyError, TypeError, RecursionError):
                continue  # the last line of a run that was killed while writing it
        files.write_atomically(self.path, "".join(f"{line}\n" for line in kept))
        return read

    def on_train_batch_begin(self, batch: int, logs: Logs | None = None) -> None:
        self._start = time.perf_counter()

    def on_train_batch_end(self, batch: int, logs: Logs | None = None) -> None:
        self.step += 1
        last = self.model.last_step
        if last is None:
            return
        loading = self.model.trainer.loading if self.model.trainer else 0
        self._seconds += time.perf_counter() - self._start + loading
        self._rows += last.rows
        if not last.skipped:
            self._loss += last.loss * last.rows
            self._learnt += last.rows
        if self.step % self.every and self.step != self.params["total_steps"]:
            return
        rate = self._rows / max(self._seconds, 1e-9)
        tokens = self.params["tokens_per_sample"]
        guard = self.model.trainer.guard if self.model.trainer else None
        self._write(
            {
                "loss": self._loss / self._learnt if self._learnt else math.nan,
                "grad_norm": last.grad_norm,
                "learning_rate": last.learning_rate,
                "tokens_per_s" if tokens else "samples_per_s": rate * (tokens or 1),
                "gflops": rate * self.params["flops_per_sample"] / 1e9,
                **({"skipped_steps": guard.skipped} if guard else {}),
            }
        )
        self._begin_line()

    def on_epoch_end(self, epoch: int, logs: Logs | None = None) -> None:
        validation = {k: v for k, v in (logs or {}).items() if k.startswith("val_")}
        if validation:
            self._write(validation)

    def _write(self, values: dict[str, float]) -> None:
        if self.rank == 0:
            finite = {k: v if math.isfinite(v) else None for k, v in values.items()}
            line = {"step": self.step, **finite, "time": time.time()}
            with (
                files.writing(self.path),
                self.path.open("a", encoding="utf-8") as file,
            ):
                file.write(json.dumps(line) + "\n")
            for output in self.outputs:
                output.write(line)

    def on_train_end(self, logs: Logs | None = None) -> None:
        if self.rank == 0:
            for output in self.outputs:
                output.close()


class StopAfter(Callback):
    """Ends the training after the step of this number, as a signal would."""

    def __init__(self, trainer: Trainer, step: int) -> None:
        self._trainer, self._last = trainer, step

    def on_train_begin(self, logs: Logs | None = None) -> None:
        self.step = self.params["first_step"]

    def on_train_batch_begin(self, batch: int, logs: Logs | None = None) -> None:
        self.step += 1
        if self.step >= self._last:
            self._trainer.stop_requested = True


class Checkpoints(Callback):
    """Saves every ``every`` steps, and at the end or when the training is stopped.

    Where a validation comes after a step it is part of what is saved, so that a
    resumed run needn't make it again.

    Args:
        state: returns what to save besides weights and optimizer, as JSON types.
    """

    def __init__(
        self,
        saver: Saver,
        every: int | None,
        keep: int,
        at_end: bool,
        state: Callable[[], dict[str, Any]],
    ) -> None:
        self._saver, self.every, self.keep = saver, every, keep
        self.at_end, self.state = at_end, state
        self.saved: int | None = None

    def on_train_begin(self, logs: Logs | None = None) -> None:
        self.step = self.params["first_step"]

    def on_train_batch_end(self, batch: int, logs: Logs | None = None) -> None:
        self.step += 1
        self._saver.check()
        ends = self.step == self.params["total_steps"]
        if not ends and self.step % self.params["steps"]:
            self._save_if_due()

    def on_epoch_end(self, epoch: int, logs: Logs | None = None) -> None:
        self._save_if_due()

    def _save_if_due(self) -> None:
        if self.every and self.step % self.every == 0:
            self._save()

    def on_train_end(self, logs: Logs | None = None) -> None:
        ended = self.step >= self.params["total_steps"]
        if self.saved != self.step and (self.at_end or not ended):
            self._save()
        self._saver.finish()

    def _save(self) -> None:
        self.saved = self.step
        self._saver.save(self.step, self.state(), self.keep)


class BestCheckpoint(Monitor):
    """Keeps the checkpoint with the lowest validation loss, apart from the others.

    The loss to beat is the one of the checkpoint that is there, so a resumed run goes
    on with it.
    """

    def __init__(self, saver: Saver, state: Callable[[], dict[str, Any]]) -> None:
        super().__init__("val_loss")
        self._saver, self.state = saver, state
        self.best: float | None = None
        self.step: int | None = None  # where it is from

    def on_train_begin(self, logs: Logs | None = None) -> None:
        super().on_train_begin(logs)
        trainer = self.model.trainer
        if trainer is None:
            return
        found = None
        if self.rank == 0:
            with suppress(CheckpointError):
                found = checkpoint.read_state(
                    checkpoint.find(self._saver.folder, "best")
                )
        self.best, self.step = trainer.comm.broadcast_obj(
            (found.get("val_loss"), found["step"]) if found else (None, None)
        )

    def on_epoch_end(self, epoch: int, logs: Logs | None = None) -> None:
        value, trainer = self.current(logs), self.model.trainer
        if value is None or trainer is None or not self.improves(value, self.best):
            return
        total = self.params["total_steps"]
        step = min((epoch + 1) * self.params["steps"], total)
        self.best, self.step = value, step
        self._saver.save(step, {**self.state(), "val_loss": value}, None)


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

    Rank 0 shows everything, the others warnings alone, unless FASTSERVE_LOG_RANKS is
    ``all``; each line names its rank. A crash of the interpreter, such as SIGSEGV,
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


def write_error(run_dir: Path, comm: Communicator, error: BaseException) -> int:
    """Write this rank's error record; return the exit status that it stands for."""
    status = exit_status(error)
    record = {
        "rank": comm.rank,
        "host": comm.host,
        "time": time.time(),
        "type": _kind(error),
        "message": str(error),
        "traceback": describe_error(error),
        "status": status,
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
