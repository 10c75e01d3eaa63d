"""Callbacks that write what happens: tables, and TensorBoard's files."""

from __future__ import annotations

import csv
import io
import time
from pathlib import Path
from typing import Any

from fastserve.errors import ArgumentError, StateError
from fastserve.training import files
from fastserve.training.callbacks.base import Callback, Logs


class CSVLogger(Callback):
    """Writes a line with the logs of each epoch; as Keras'. Rank 0 writes.

    The columns are ``epoch``, from 0, and the names of the first epoch's logs; what an
    epoch doesn't have is ``NA``. A line is there as a whole or not at all: the rest of
    one that a killed process has left is cut off.

    Args:
        filename: the file.
        separator: what stands between two columns, one letter.
        append: go on with a file that is there.

    Raises CheckpointError if it can't be written.
    """

    def __init__(
        self, filename: str | Path, separator: str = ",", append: bool = False
    ) -> None:
        if len(separator) != 1:
            raise ArgumentError(
                "CSVLogger: expected a separator of 1 letter", repr(separator)
            )
        self.path, self.separator, self.append = Path(filename), separator, append
        self._columns: list[str] = []
        self._resumed: int | None = None  # bytes that belong to what is gone on with

    def on_train_begin(self, logs: Logs | None = None) -> None:
        self._columns = []
        if self.rank != 0:
            return
        goes_on = self.append or self._resumed is not None
        with files.writing(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            there = goes_on and self.path.exists()
            old = self.path.read_bytes()[: self._resumed] if there else b""
            whole = old[: old.rfind(b"\n") + 1]
            self.path.write_bytes(whole)
        if self._resumed and whole:
            first = whole.decode().splitlines()[:1]
            self._columns = next(csv.reader(first, delimiter=self.separator))[1:]
        self._resumed = None

    def get_state(self) -> int:
        """Return the length of the file: what is written later is made again."""
        return self.path.stat().st_size if self.path.exists() else 0

    def set_state(self, state: int) -> None:
        """Let the next training go on with the file, as it was."""
        self._resumed = state

    def on_epoch_end(self, epoch: int, logs: Logs | None = None) -> None:
        if self.rank != 0:
            return
        logs = logs or {}
        text = io.StringIO()
        writer = csv.writer(text, delimiter=self.separator)
        with files.writing(self.path):
            if not self._columns:
                self._columns = _columns(logs)
                if not self.path.exists() or not self.path.stat().st_size:
                    writer.writerow(["epoch", *self._columns])
            writer.writerow([epoch, *(logs.get(name, "NA") for name in self._columns)])
            with self.path.open("a", encoding="utf-8", newline="") as file:
                file.write(text.getvalue())


def _columns(logs: Logs) -> list[str]:
    names = sorted(logs)
    if not any(name.startswith("val_") for name in names):
        names += [f"val_{name}" for name in names]  # a later epoch may have them
    return names


class TensorBoard(Callback):
    """Writes files for TensorBoard, with Keras' names. Rank 0 writes.

    ``train`` and ``validation`` below ``log_dir`` hold ``epoch_loss`` and so on, by
    epochs, and ``epoch_learning_rate``; with ``update_freq`` ``train`` also holds
    ``batch_loss`` and so on, by steps, and ``validation`` holds
    ``evaluation_loss_vs_iterations``.

    Args:
        histogram_freq: epochs between histograms of all weights; 0: none.
        write_steps_per_second: also ``epoch_steps_per_second``.
        update_freq: 'epoch', 'batch', or batches between two values.

    Raises StateError without tensorboardX.
    """

    def __init__(
        self,
        log_dir: str | Path = "logs",
        histogram_freq: int = 0,
        write_steps_per_second: bool = False,
        update_freq: str | int = "epoch",
    ) -> None:
        every = 1 if update_freq == "batch" else update_freq
        if every != "epoch" and not (isinstance(every, int) and every > 0):
            raise ArgumentError(
                "TensorBoard: expected update_freq 'epoch', 'batch' or a number",
                repr(update_freq),
            )
        if histogram_freq < 0:
            raise ArgumentError(
                "TensorBoard: expected a histogram_freq of 0 or more",
                f"{histogram_freq}",
            )
        try:
            import tensorboardX  # noqa: F401  found now, not after an epoch
        except ImportError as error:
            raise StateError(
                "TensorBoard: expected the library tensorboardX",
                str(error),
                "pip install 'fastserve-train[tensorboard]'",
            ) from None
        self.log_dir, self.histogram_freq = Path(log_dir), histogram_freq
        self.every = None if every == "epoch" else int(every)
        self.write_steps_per_second = write_steps_per_second
        self._writers: dict[str, Any] = {}

    def on_train_begin(self, logs: Logs | None = None) -> None:
        self._step = self.params["first_step"]

    def on_epoch_begin(self, epoch: int, logs: Logs | None = None) -> None:
        self._start, self._first = time.perf_counter(), self._step

    def on_train_batch_end(self, batch: int, logs: Logs | None = None) -> None:
        if self.every and self._step % self.every == 0:
            values = dict(logs or {})
            if self.model.last_step is not None:
                values["learning_rate"] = self.model.last_step.learning_rate
            for name, value in values.items():
                self._scalar("train", f"batch_{name}", value, self._step)
        self._step += 1

    def on_test_end(self, logs: Logs | None = None) -> None:
        if self.every:
            for name, value in (logs or {}).items():
                tag = f"evaluation_{name}_vs_iterations"
                self._scalar("validation", tag, value, self._step)

    def on_epoch_end(self, epoch: int, logs: Logs | None = None) -> None:
        values = dict(logs or {})
        if self.model.last_step is not None:
            values.setdefault("learning_rate", self.model.last_step.learning_rate)
        if self.write_steps_per_second:
            seconds = time.perf_counter() - self._start
            values["steps_per_second"] = (self._step - self._first) / seconds
        for name, value in values.items():
            part = "validation" if name.startswith("val_") else "train"
            tag = f"epoch_{name.removeprefix('val_')}"
            self._scalar(part, tag, value, epoch)
        if self.histogram_freq and epoch % self.histogram_freq == 0:
            self._histograms(epoch)
        for writer in self._writers.values():
            writer.flush()

    def _histograms(self, epoch: int) -> None:
        trainer = self.model.trainer
        if trainer is None or self.rank != 0:
            return
        for p in trainer.store.parameters + trainer.store.frozen_parameters:
            tag = f"{p.path.replace('.', '/')}/histogram"
            self._writer("train").add_histogram(tag, p.value.reshape(-1), epoch)

    def _scalar(self, part: str, tag: str, value: float, step: int) -> None:
        if self.rank == 0:
            self._writer(part).add_scalar(tag, value, step)

    def _writer(self, part: str) -> Any:
        if part not in self._writers:
            from tensorboardX import SummaryWriter

            self._writers[part] = SummaryWriter(str(self.log_dir / part))
        return self._writers[part]

    def on_train_end(self, logs: Logs | None = None) -> None:
        for writer in self._writers.values():
            writer.close()
        self._writers = {}
