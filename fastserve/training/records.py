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
from pathlib import Path
from typing import Any

from fastserve import environment
from fastserve.comm import Communicator
from fastserve.errors import FastserveError
from fastserve.training import files, shards
from fastserve.training.callbacks import Callback, Logs

log = logging.getLogger("fastserve")


class MetricsFile(Callback):
    """Appends a JSON object a line: training every ``every`` steps, and validation.

    ``loss`` is the mean since the line before; ``step`` counts the steps made.
    """

    def __init__(self, path: Path, every: int) -> None:
        self.path, self.every = path, every

    def on_train_begin(self, logs: Logs | None = None) -> None:
        self.step = self.params["first_step"]
        self._loss = self._rows = 0.0
        self._since = time.perf_counter()
        if self.rank == 0:
            self._forget_later_lines()

    def _forget_later_lines(self) -> None:
        """Drop the lines of steps that are about to be made again."""
        if not self.path.exists():
            return
        kept = []
        for line in self.path.read_text("utf-8").splitlines():
            try:
                if json.loads(line)["step"] <= self.step:
                    kept.append(line)
            except (ValueError, KeyError, TypeError):
                continue  # the last line of a run that was killed while writing it
        files.write_atomically(self.path, "".join(f"{line}\n" for line in kept))

    def on_train_batch_end(self, batch: int, logs: Logs | None = None) -> None:
        self.step += 1
        last = self.model.last_step
        if last is None:
            return
        self._loss += last.loss * last.rows
        self._rows += last.rows
        if self.step % self.every and self.step != self.params["total_steps"]:
            return
        now = time.perf_counter()
        rate = self._rows / max(now - self._since, 1e-9)
        tokens = self.params["tokens_per_sample"]
        self._write(
            {
                "loss": self._loss / self._rows,
                "grad_norm": last.grad_norm,
                "learning_rate": last.learning_rate,
                "tokens_per_s" if tokens else "samples_per_s": rate * (tokens or 1),
            }
        )
        self._loss = self._rows = 0.0
        self._since = now

    def on_epoch_end(self, epoch: int, logs: Logs | None = None) -> None:
        validation = {k: v for k, v in (logs or {}).items() if k.startswith("val_")}
        if validation:
            self._write(validation)
        self._since = time.perf_counter()

    def _write(self, values: dict[str, float]) -> None:
        if self.rank == 0:
            finite = {k: v if math.isfinite(v) else None for k, v in values.items()}
            line = {"step": self.step, **finite, "time": time.time()}
            with (
                files.writing(self.path),
                self.path.open("a", encoding="utf-8") as file,
            ):
                file.write(json.dumps(line) + "\n")


class Checkpoints(Callback):
    """Saves every ``every`` steps, and at the end or when the training is stopped.

    ``plan`` holds what the number of a step depends on; it is stored and compared.
    """

    def __init__(
        self,
        folder: Path,
        every: int | None,
        keep: int,
        at_end: bool,
        plan: dict[str, int],
    ) -> None:
        self.folder, self.every, self.keep = folder, every, keep
        self.at_end, self.plan = at_end, plan
        self.saved: int | None = None

    def on_train_begin(self, logs: Logs | None = None) -> None:
        self.step = self.params["first_step"]

    def on_train_batch_end(self, batch: int, logs: Logs | None = None) -> None:
        self.step += 1
        if self.every and self.step % self.every == 0:
            self._save()

    def on_train_end(self, logs: Logs | None = None) -> None:
        ended = self.step >= self.params["total_steps"]
        if self.saved != self.step and (self.at_end or not ended):
            self._save()

    def _save(self) -> None:
        self.saved = self.step
        trainer = self.model.trainer
        if trainer is not None:
            # as text, because JSON has no NaN and no infinity
            state = {"totals": [repr(v) for v in trainer.totals.tolist()], **self.plan}
            shards.save(
                self.folder,
                self.step,
                trainer.store,
                trainer.optimizer,
                state,
                self.keep,
                trainer.comm,
            )


def start_logs(folder: Path, comm: Communicator) -> None:
    """Send the library's messages to the rank's own file and to standard error.

    Rank 0 shows everything, the others warnings alone, unless FASTSERVE_LOG_RANKS is
    ``all``; each line names its rank. A crash of the interpreter, such as SIGSEGV,
    leaves Python's stack in the file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    log.setLevel(logging.INFO)
    log.propagate = False
    file = logging.FileHandler(folder / f"rank-{comm.rank:05d}.log", encoding="utf-8")
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    screen = logging.StreamHandler(sys.stderr)
    prefix = f"[rank {comm.rank} {comm.host}] " if comm.size > 1 else ""
    screen.setFormatter(logging.Formatter(prefix + "%(message)s"))
    everyone = environment.setting("LOG_RANKS") == "all"
    screen.setLevel(logging.INFO if everyone else logging.WARNING)
    for handler in list(log.handlers):
        log.removeHandler(handler)
        handler.close()
    log.addHandler(file)
    log.addHandler(screen)
    if file.stream is not None:
        faulthandler.enable(file.stream)


def write_error(run_dir: Path, comm: Communicator, error: BaseException) -> int:
    """Write this rank's error record; return the exit status that it stands for."""
    status = exit_status(error)
    record = {
        "rank": comm.rank,
        "host": comm.host,
        "time": time.time(),
        "type": type(error).__name__,
        "message": str(error),
        "traceback": describe_error(error),
        "status": status,
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
