"""``MetricsFile``: the lines of metrics.jsonl, also those of a run that goes on."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fastserve.training import files
from fastserve.training.callbacks import Callback, Logs
from fastserve.training.metrics_outputs import Line, MetricsOutput


class MetricsFile(Callback):
    """Appends a JSON object a line: training every ``every`` steps, and validation.

    ``loss`` and the metrics are over the steps since the line before; ``step`` counts
    the steps made, and ``skipped_steps`` those of them that the guard against spikes
    has skipped.

    Args:
        outputs: take the lines as well.

    Attributes:
        means: loss and metrics of the last line of training.
    """

    def __init__(
        self, path: Path, every: int, outputs: Sequence[MetricsOutput] = ()
    ) -> None:
        self.path, self.every, self.outputs = path, every, outputs
        self._resumed: dict[str, Any] = {}
        self.means: dict[str, float] = {}

    def on_train_begin(self, logs: Logs | None = None) -> None:
        self.step = self.params["first_step"]
        trainer = self.model.trainer
        self._totals = np.zeros_like(trainer.totals) if trainer else np.zeros(0)
        self._begin_line()
        totals = self._resumed.pop("totals", ())  # an older version saved none
        if len(totals) == len(self._totals):
            self._totals[...] = [float(total) for total in totals]
        for name, value in self._resumed.items():
            setattr(self, name, float(value))
        self._resumed = {}
        if self.rank == 0:
            kept = self._forget_later_lines()
            for output in self.outputs:
                output.begin(kept)

    def _begin_line(self) -> None:
        self._loss = self._rows = self._learnt = self._seconds = 0.0
        self._totals.fill(0)

    def get_state(self) -> dict[str, Any]:
        """Return what a checkpoint within a line needs, as text: JSON has no NaN."""
        names = ("_loss", "_rows", "_learnt", "_seconds")
        totals = [repr(total) for total in self._totals.tolist()]
        return {
            "totals": totals,
            **{name: repr(float(getattr(self, name))) for name in names},
        }

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
            if self.model.trainer:
                self._totals += self.model.trainer.step_totals
        if self.step % self.every and self.step != self.params["total_steps"]:
            return
        rate = self._rows / max(self._seconds, 1e-9)
        tokens = self.params["tokens_per_sample"]
        guard = self.model.trainer.guard if self.model.trainer else None
        loss = self._loss / self._learnt if self._learnt else math.nan
        self.means = {**self._metrics(), "loss": loss}
        self._write(
            {
                **self.means,
                "grad_norm": last.grad_norm,
                "learning_rate": last.learning_rate,
                "tokens_per_s" if tokens else "samples_per_s": rate * (tokens or 1),
                "gflops": rate * self.params["flops_per_sample"] / 1e9,
                **({"skipped_steps": guard.skipped} if guard else {}),
            }
        )
        self._begin_line()

    def _metrics(self) -> dict[str, float]:
        """Return the loss and the metrics of the line's steps."""
        trainer = self.model.trainer
        if trainer is None or not trainer.metrics:
            return {}
        return trainer.results(self._totals)

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
