"""Progress on the screen: one line redrawn on a terminal, plain lines elsewhere."""

from __future__ import annotations

import re
import time
from collections.abc import Callable

from fastserve import formatting
from fastserve.environment import (
    STATUS_LINE,
    setting,
    terminal_width,
    wants_colour,
)
from fastserve.training.callbacks import Callback, Logs

REDRAWS = 8  # a second


def draw(line: str) -> None:
    """Show a line in the place of the one that was drawn before."""
    end = "\n" if setting("TERMINAL") else ""
    print(f"{STATUS_LINE}{line}", end=end, flush=True)


def describe(logs: Logs) -> str:
    return "  ".join(_values(logs))


def _values(logs: Logs) -> list[str]:
    return [f"{name} {formatting.number(value)}" for name, value in logs.items()]


class Progress(Callback):
    """Shows steps, loss, metrics, rate and time left; on rank 0 alone.

    Args:
        every: steps between two plain lines where there is no terminal; None: one
            line an epoch.
        whole: one bar for the whole training, not one an epoch.
        say: shows a line or several; None prints them.
        means: returns loss and metrics since the plain line before, for the next one;
            None: it has what the callbacks are told.
    """

    def __init__(
        self,
        verbose: int,
        every: int | None = None,
        whole: bool = False,
        say: Callable[[str], None] | None = None,
        means: Callable[[], Logs] | None = None,
    ) -> None:
        self.verbose, self.every, self.whole = verbose, every, whole
        self._say, self._means, self._drawn_line = say, means, False

    def on_train_begin(self, logs: Logs | None = None) -> None:
        self.width = terminal_width() if self.verbose == 1 else None
        self.shown = self.rank == 0 and self.verbose > 0
        self.step = self.params["first_step"]
        self._start = self._drawn = time.perf_counter()
        self._rows = 0
        self.seconds = 0.0  # of steps alone, without validation, samples and saving

    def on_epoch_begin(self, epoch: int, logs: Logs | None = None) -> None:
        if not self.whole:
            self._start, self._rows, self.seconds = time.perf_counter(), 0, 0.0
        self._epoch, self._begun = epoch, self.step

    def on_train_batch_begin(self, batch: int, logs: Logs | None = None) -> None:
        self._step_start = time.perf_counter()

    def on_train_batch_end(self, batch: int, logs: Logs | None = None) -> None:
        self.step += 1
        last = self.model.last_step
        self._rows += last.rows if last else 0
        now = time.perf_counter()
        trainer = self.model.trainer
        self.seconds += now - self._step_start + (trainer.loading if trainer else 0)
        if not self.shown:
            return
        if self.width and now - self._drawn > 1 / REDRAWS:
            self._drawn = now
            self._draw(self._line(now, self._now(logs)))
        elif not self.width and self.every and self.step % self.every == 0:
            shown = self._means() if self._means else logs or {}
            self.say(self._line(now, shown))

    def on_epoch_end(self, epoch: int, logs: Logs | None = None) -> None:
        if self.shown and not (self.whole and not self.width and self.every):
            self.say(self._line(time.perf_counter(), logs or {}, ended=True))
        elif self.shown:
            validation = {k: v for k, v in (logs or {}).items() if k[:4] == "val_"}
            if validation:
                self.say(f"step {self.step}: {describe(validation)}")

    def on_train_end(self, logs: Logs | None = None) -> None:
        self.clear()

    def rates(self) -> list[str]:
        """Return tokens or samples a second and GFLOP/s, of all ranks together."""
        rate = self._rows / max(self.seconds, 1e-9)
        tokens = self.params["tokens_per_sample"]
        unit = "tokens/s" if tokens else "samples/s"
        shown = f"{formatting.count(rate * (tokens or 1))} {unit}"
        flops = self.params["flops_per_sample"]
        return [shown, *([f"{rate * flops / 1e9:.3g} GFLOP/s"] if flops else [])]

    def say(self, text: str) -> None:
        """Print a line; a bar that is shown moves below it."""
        self.clear()
        if self._say:
            self._say(text)
        else:
            print(text, flush=True)

    def clear(self) -> None:
        if self._drawn_line:
            draw("")
            self._drawn_line = False

    def _now(self, logs: Logs | None) -> Logs:
        """For a whole training the loss of this step, for an epoch its means."""
        last = self.model.last_step
        if self.whole and last:
            return {**(logs or {}), "loss": last.loss}
        return logs or {}

    def _line(self, now: float, logs: Logs, ended: bool = False) -> str:
        steps, total = self.params["steps"], self.params["total_steps"]
        if steps is None:  # until the data end
            done, of = self.step - self._begun, None
        elif self.whole:
            done, of = self.step, total
        else:
            done = self.step - self._epoch * steps
            of = min(steps, total - self._epoch * steps)
        width = len(str(of or ""))
        head = "" if self.whole else f"epoch {self._epoch + 1}/{self.params['epochs']} "
        name = f"{head}step {done:{width}}/{of}" if of else f"{head}step {done}"
        spent = now - self._start
        made = done - (self.params["first_step"] if self.whole else 0)
        if ended and not self.whole:
            left = f"took {formatting.duration(spent)}"
        elif not made or of is None:
            left = f"{formatting.duration(spent)} so far"
        else:
            left = f"{formatting.duration(spent * (of - done) / made)} left"
        if self.width and not ended:
            share = done / of if of else None
            return fit(self.width, name, share, describe(logs), self.rates(), left)
        return in_rows(self.width, name, _values(logs), self.rates(), left)

    def _draw(self, line: str) -> None:
        self._drawn_line = True
        if wants_colour():
            line = re.sub(r"\bloss \S+", "\x1b[1m\\g<0>\x1b[0m", line, count=1)
        draw(line)


def fit(
    width: int, name: str, share: float | None, values: str, rates: list[str], left: str
) -> str:
    """Return a line of less than ``width`` columns: the bar gets shorter, then rates
    and the end of the values are left out, never the time that is left."""
    for bar, number in ((20, 2), (10, 2), (10, 1), (0, 1), (0, 0)):
        drawn = [formatting.bar(share, bar)] if bar and share is not None else []
        line = "  ".join([name, *drawn, values, *rates[:number], left])
        if len(line) < width:
            return line
    room = width - 1 - len(f"{name}    {left}")
    return f"{name}  {values[: max(0, room)]}  {left}"[: width - 1]


def in_rows(
    width: int | None, name: str, values: list[str], rates: list[str], left: str
) -> str:
    """Return a line that stays, in rows of less than ``width`` columns; None: whole.

    Rates are left out where that makes one row of it, as the line that is redrawn has
    them; what is still too long goes on below, indented.
    """
    if width is None:
        return "  ".join([name, *values, *rates, left])
    for number in (2, 1, 0):
        line = "  ".join([name, *values, *rates[:number], left])
        if len(line) < width:
            return line
    rows = [name]
    for part in [*values, left]:
        longer = f"{rows[-1]}  {part}"
        if len(longer) < width:
            rows[-1] = longer
        else:
            rows.append(f"  {part}")
    return "\n".join(rows)


class BatchProgress(Callback):
    """Shows the batches of ``evaluate`` and ``predict``: a bar on a terminal, and of
    predictions a line at the end."""

    def __init__(self, verb: str) -> None:
        self.verb = verb

    def _begin(self, logs: Logs | None = None) -> None:
        bar = self.rank == 0 and self.params["verbose"] == 1
        self.width = terminal_width() if bar else None
        self._start = self._drawn = time.perf_counter()
        self._made = 0

    def _batch(self, batch: int, logs: Logs | None = None) -> None:
        self._made, now = batch + 1, time.perf_counter()
        if self.width and now - self._drawn > 1 / REDRAWS:
            self._drawn = now
            of = self.params["steps"]
            bar = f"/{of}  {formatting.bar(self._made / of, 20)}" if of else ""
            draw(f"{self.verb}: batch {self._made}{bar}"[: self.width - 1])

    def _end(self, logs: Logs | None = None) -> None:
        if self.width:
            draw("")

    def on_predict_end(self, logs: Logs | None = None) -> None:
        self._end()
        if self.rank == 0:
            spent = formatting.duration(time.perf_counter() - self._start)
            print(f"{self.verb}: {self._made} batches  {spent}", flush=True)

    on_test_begin = on_predict_begin = _begin
    on_test_batch_begin = on_predict_batch_begin = _batch
    on_test_end = _end
