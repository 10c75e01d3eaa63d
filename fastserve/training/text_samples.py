"""``Samples``: text that the model makes while it is trained."""

from __future__ import annotations

from collections.abc import Callable

from fastserve.training.callbacks import Callback, Logs


class Samples(Callback):
    """Shows a sample every ``every`` steps, but not after the last one.

    Rank 0 makes it, and the others wait for it as long as it takes.

    Args:
        make: returns the text; it must leave weights, gradients and the random numbers
            of the training alone.
        say: shows text.
    """

    def __init__(
        self, every: int, make: Callable[[], str], say: Callable[[str], None]
    ) -> None:
        self.every, self.make, self.say = every, make, say

    def on_train_begin(self, logs: Logs | None = None) -> None:
        self.step = self.params["first_step"]

    def on_train_batch_end(self, batch: int, logs: Logs | None = None) -> None:
        self.step += 1
        trainer, total = self.model.trainer, self.params["total_steps"]
        if self.step % self.every or self.step == total or trainer is None:
            return
        comm = trainer.comm
        limit, comm.timeout = comm.timeout, None
        if self.rank == 0:
            lines = [f"  {line}" for line in self.make().splitlines()]
            self.say("\n".join([f"step {self.step}: sample", *lines]))
        comm.barrier()
        comm.timeout = limit
