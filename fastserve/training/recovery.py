"""How long a job that goes on after a loss took until its next step, and what for."""

from __future__ import annotations

import time
from collections.abc import Callable

from fastserve import environment
from fastserve.formatting import precise_time

from .callbacks import Callback, Logs


class Recovery(Callback):
    """Tells it once, after the first step of rank 0.

    The launcher says in FASTSERVE_LOSS when it saw the loss and when all that was left
    of the job had ended, as unix times. On another host than the launcher's the time
    until Python starts has the difference of the two clocks in it.

    Attributes:
        parts: seconds of each part, in the order of time; none without a loss before.
    """

    def __init__(self) -> None:
        times = (environment.setting("LOSS") or "").split()
        self.parts: dict[str, float] = {}
        self._last = 0.0
        if len(times) == 2:
            self._last = float(times[0])
            self._end("ending the rest", float(times[1]))
            started = environment.process_start()
            if started is not None:
                self._end("hosts and launcher", started)

    def done(self, part: str) -> None:
        """Note that ``part``, which began with the end of the one before, is done."""
        if self.parts:
            self._end(part, time.time())

    def _end(self, part: str, at: float) -> None:
        self.parts[part] = max(0.0, at - self._last)
        self._last = at

    def tell(self, say: Callable[[str], None]) -> Callback:
        """Return this, which tells by ``say`` what was noted."""
        self._say = say
        return self

    def on_train_batch_end(self, batch: int, logs: Logs | None = None) -> None:
        if not self.parts:
            return
        self.done("first step")
        parts = ", ".join(f"{name} {precise_time(s)}" for name, s in self.parts.items())
        total = precise_time(sum(self.parts.values()))
        self.parts.clear()
        self._say(f"{total} from the loss to the first step again: {parts}")
