"""``SpikeGuard``: which steps shall not change the weights."""

from __future__ import annotations

import logging
import math
import statistics
from collections import deque
from collections.abc import Mapping
from typing import Any

from fastserve.errors import LossSpikeError
from fastserve.formatting import number

WINDOW = 50  # steps whose median loss is the measure
LEAST = 10  # of them are needed to judge
LIMIT = 5  # skipped steps in a row end the training
log = logging.getLogger("fastserve")


class SpikeGuard:
    """Finds steps whose loss is far above those before, or isn't finite.

    A batch with faulty data can undo hours of training in one step, and after it Adam
    needs long to come back (Chowdhery et al., "PaLM", 2022, section 5.1, skip such
    batches for that reason). What it says follows from values that are the same on all
    ranks.

    Args:
        factor: a loss above ``factor`` x the median of the last 50 losses is a spike.

    Attributes:
        skipped: number of steps that were refused, also before a resume.
    """

    def __init__(self, factor: float) -> None:
        self.factor = factor
        self.skipped = self.in_a_row = 0
        self._recent: deque[float] = deque(maxlen=WINDOW)  # of steps that were made

    def refuses(self, step: int, loss: float, norm: float, speaks: bool) -> bool:
        """Return whether step number ``step`` shall leave the weights as they are.

        ``speaks``: log it; True on one rank. Raises LossSpikeError at the fifth spike
        in a row.
        """
        usual = statistics.median(self._recent) if self._recent else math.nan
        finite = math.isfinite(loss) and math.isfinite(norm)
        known = len(self._recent) >= LEAST and usual > 0
        if finite and not (known and loss > self.factor * usual):
            self._recent.append(loss)
            self.in_a_row = 0
            return False
        self.skipped += 1
        self.in_a_row += 1
        if finite and self.in_a_row >= LIMIT:
            raise LossSpikeError(
                f"step {step + 1}: expected a loss of at most {self.factor:g} x "
                f"{number(usual)}, the median of the {len(self._recent)} steps before",
                f"{number(loss)}, in the {LIMIT}th step in a row; the weights are "
                "those before them",
                "look at the data of these steps, lower the learning rate, or raise "
                "train.spike_factor if the loss is meant to change so",
            )
        if speaks:
            reason = (
                f"loss {number(loss)} is more than {self.factor:g} x {number(usual)}, "
                f"the median of the {len(self._recent)} steps before"
                if finite
                else f"loss {number(loss)} and gradient norm {number(norm)} aren't "
                "both finite"
            )
            log.warning(
                f"step {step + 1} is skipped, the weights stay: {reason}; "
                f"{self.skipped} skipped so far, {self.in_a_row} in a row"
            )
        return True

    def get_state(self) -> dict[str, Any]:
        """Return what a checkpoint needs to go on, as JSON types."""
        return {
            "recent": list(self._recent),
            "skipped": self.skipped,
            "in_a_row": self.in_a_row,
        }

    def set_state(self, state: Mapping[str, Any]) -> None:
        self._recent = deque(state["recent"], WINDOW)
        self.skipped, self.in_a_row = state["skipped"], state["in_a_row"]
