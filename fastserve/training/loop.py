"""The loop of ``fit``: steps, epochs, validation, callbacks."""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from fastserve.data.prefetch import THREAD as PREFETCH
from fastserve.data.prefetch import Pace, Share, load, shares
from fastserve.data.sampler import Sampler
from fastserve.data.sources import ArraySource, Batch, Source
from fastserve.data.streams import OPEN, Stream, agreed, check_arrays
from fastserve.errors import NonFiniteError, StateError
from fastserve.optimizers import Optimizer
from fastserve.training.callbacks import Callback, CallbackList, History, TerminateOnNaN
from fastserve.training.callbacks.saving import BackupAndRestore
from fastserve.training.flops import flops_per_sample
from fastserve.training.perplexity import language_measures
from fastserve.training.step import StepResult, Trainer
from fastserve.training.timing import Timing

log = logging.getLogger("fastserve")


class Trainable(Protocol):
    """What callbacks may use of a model."""

    stop_training: bool
    optimizer: Optimizer | None
    trainer: Trainer | None
    last_step: StepResult | None

    def save(self, path: str | Path) -> None: ...

    def save_weights(self, path: str | Path) -> None: ...


@dataclass
class Schedule:
    """Which steps are made, and when an epoch ends.

    Attributes:
        steps_per_epoch: steps between two ends of an epoch; validation runs there.
            0: until the data end, in each of ``whole_epochs``.
        total_steps: the last epoch is cut short at this step.
        first_step: where a resumed run goes on.
        validation_freq: epochs between validations, or the numbers of the epochs,
            from 1, that have one.
        validation_batches: batches of a validation, always the first ones; None: all.
        whole_epochs: numbers of the epochs whose steps aren't known.
    """

    steps_per_epoch: int
    total_steps: int
    first_step: int = 0
    validation_freq: int | Collection[int] = 1
    validation_batches: int | None = None
    whole_epochs: range = range(0)

    @property
    def epochs(self) -> int:
        if not self.steps_per_epoch:
            return self.whole_epochs.stop
        return -(-self.total_steps // self.steps_per_epoch)

    def start(self) -> tuple[int, int]:
        """Return the first epoch and its first batch."""
        if not self.steps_per_epoch:
            return self.whole_epochs.start, 0
        return divmod(self.first_step, self.steps_per_epoch)

    def end(self, epoch: int) -> int:
        """Return the step before which the epoch ends."""
        if not self.steps_per_epoch:
            return OPEN.stop
        return min(self.total_steps, (epoch + 1) * self.steps_per_epoch)

    def validates(self, epoch: int) -> bool:
        if isinstance(self.validation_freq, int):
            return (epoch + 1) % self.validation_freq == 0
        return epoch + 1 in self.validation_freq


def run(
    model: Trainable,
    trainer: Trainer,
    source: Source,
    sampler: Sampler | None,
    schedule: Schedule,
    validation: Source | None = None,
    validation_batch: int | None = None,
    callbacks: Sequence[Callback] = (),
    verbose: int = 0,
    bytes_per_token: float | None = None,
) -> History:
    """Train until ``schedule`` ends or ``model.stop_training``; return the history.

    A stream needs no ``sampler``. If a callback stops the training within an epoch,
    that ends there: with its validation, as in Keras. If the job is asked to stop
    (``Trainer.stop_requested``), the epoch has no end, and can be gone on with.

    Validation of tokens also gives ``val_perplexity`` and, with ``bytes_per_token``,
    ``val_bits_per_byte``.
    """
    history = History()
    trainer.share_weights()  # rank 0 may have loaded others
    if isinstance(source, ArraySource) and trainer.comm.size > 1:
        arrays = Batch(source.x, source.y, source.weights)
        check_arrays(arrays, trainer.comm, trainer.exact is not None)
    if isinstance(source, Stream):
        source.begin(schedule.first_step)
    # backups last: they save what the others have come to
    callbacks = sorted(callbacks, key=lambda c: isinstance(c, BackupAndRestore))
    plan = {"steps": schedule.steps_per_epoch or None, "samples": source.samples}
    for callback in callbacks:
        if isinstance(callback, BackupAndRestore):
            found = callback.restore(trainer, callbacks, plan)
            schedule.first_step = schedule.first_step if found is None else found
    params = _params(trainer, source, schedule)
    params |= {"do_validation": validation is not None, "verbose": verbose}
    call = CallbackList([*callbacks, history], model, params)
    forgives = any(isinstance(c, TerminateOnNaN) and c.forgives for c in callbacks)
    # what a batch's callback of the user's own decides need not be alike on all ranks
    watched = call.hears("train_batch_begin", "train_batch_end", foreign=True)
    watched = watched or call.hears("batch_begin", "batch_end", foreign=True)
    heard = call.hears("train_batch_end", "batch_end", foreign=True)
    model.stop_training = interrupted = False
    call("train_begin", {})
    _agree(model, trainer)
    logs: dict[str, float] = {}
    so_far: Mapping[str, float] = logs
    timing = trainer.timing
    comparing = partial(timing.within, "sums", "comparison of batches")
    pace, validation_pace = Pace(), Pace()
    step = schedule.first_step
    epoch, batch = schedule.start()
    while epoch < schedule.epochs and not (model.stop_training or interrupted):
        if batch == 0:
            trainer.reset_totals()  # else a resumed epoch goes on with what it had
        call("epoch_begin", epoch, {})
        _agree(model, trainer)
        steps = range(step, schedule.end(epoch))
        ended, made = False, step
        with closing(load(_parts(trainer, source, sampler, steps), pace, source)) as it:
            parts = _compared(it, source, trainer, comparing)
            while step < steps.stop and not model.stop_training:
                start = timing.to_data()
                part = next(parts, None)
                loading = timing.to("other", "callbacks") - start
                if part is None:
                    ended = True
                    break
                call("train_batch_begin", batch, {})
                try:
                    model.last_step = trainer.train_share(part, step, loading)
                    # metrics may take longer than a step: only for those who look
                    so_far = trainer.results() if heard else Later(trainer)
                    interrupted = model.last_step.stop
                except NonFiniteError:
                    if not forgives:
                        raise
                    so_far = trainer.results() | {"loss": math.nan}
                step += 1
                call("train_batch_end", batch, so_far)
                batch += 1
                if interrupted:
                    break
                if watched:
                    _agree(model, trainer)
            if step == steps.stop:
                next(parts, None)  # so a dataset hears of the end of its pass
        if step > made:
            logs = dict(so_far)
        if interrupted and step < steps.stop:
            break  # the epoch has no end
        if ended and (step == made or schedule.steps_per_epoch > 0):
            log.warning("the data have ended in epoch %d, so training does", epoch + 1)
            model.stop_training = True
        if step == made:
            break
        if validation is not None and schedule.validates(epoch):
            results = evaluate(
                trainer,
                validation,
                validation_batch or (sampler.batch if sampler else 1),
                schedule.validation_batches,
                call,
                validation_pace,
            )
            results |= language_measures(
                results["loss"], trainer.loss, validation, bytes_per_token
            )
            logs |= {f"val_{name}": value for name, value in results.items()}
        call("epoch_end", epoch, logs)
        _agree(model, trainer)
        epoch, batch = epoch + 1, 0
    if not interrupted:
        trainer.finish()
    call("train_end", logs)
    return history


def _params(trainer: Trainer, source: Source, schedule: Schedule) -> dict[str, Any]:
    """Return what callbacks are told of the training."""
    return {
        "epochs": schedule.epochs,
        "steps": schedule.steps_per_epoch or None,
        "samples": source.samples,
        "first_step": schedule.first_step,
        "total_steps": schedule.total_steps,
        "tokens_per_sample": source.tokens_per_sample,
        "flops_per_sample": flops_per_sample(trainer.root, source.time),
    }


class Later(Mapping[str, float]):
    """Logs of a step that are computed when something besides the loss is asked for,
    before the next step."""

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self._known: dict[str, float] | None = None

    def _all(self) -> dict[str, float]:
        if self._known is None:
            self._known = self._trainer.results()
        return self._known

    def __getitem__(self, name: str) -> float:
        return self._trainer.mean_loss() if name == "loss" else self._all()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._all())

    def __len__(self) -> int:
        return len(self._all())

    def __bool__(self) -> bool:
        return True  # there is always a loss


def evaluate(
    trainer: Trainer,
    source: Source,
    batch_size: int,
    batches: int | None = None,
    call: CallbackList | None = None,
    pace: Pace | None = None,
) -> dict[str, float]:
    """Return loss and metrics over ``source``, or its first ``batches``; tell the
    callbacks."""
    say: Callable[..., None] = (lambda *_: None) if call is None else call
    sampler: Sampler | None = None
    if isinstance(source, Stream):
        steps = range(batches or source.batches or OPEN.stop)
        steps = source.following(len(steps))
    else:
        sampler = Sampler(source.samples, batch_size, 0, shuffle=False, wrap=False)
        made = sampler.steps_per_epoch
        steps = range(min(made, batches or made))
    with trainer.timing.within("validation"):
        say("test_begin", {})
        parts = _parts(trainer, source, sampler, steps)
        with closing(load(parts, pace or Pace(), source)) as loaded:
            parts = _compared(loaded, source, trainer)
            results = trainer.evaluate_shares(parts, call)
        say("test_end", dict(results))
    return results


def _parts(
    trainer: Trainer, source: Source, sampler: Sampler | None, steps: range
) -> Iterator[Share]:
    if isinstance(source, Stream):
        return _timed(source.shares(steps, trainer.rows_of), trainer.timing)
    assert sampler is not None
    made = shares(source, sampler, steps, trainer.rows_of)
    return _timed(made, trainer.timing)


def _timed(parts: Iterator[Share], timing: Timing) -> Iterator[Share]:
    """Note when a thread of its own makes them."""
    while True:
        thread = threading.current_thread()
        if thread.name != PREFETCH:
            part = next(parts, None)
        else:
            with timing.on_thread(PREFETCH, "make batch"):
                part = next(parts, None)
        if part is None:
            return
        yield part


def _compared(
    parts: Iterator[Share],
    source: Source,
    trainer: Trainer,
    within: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> Iterator[Share]:
    several = isinstance(source, Stream) and trainer.comm.size > 1
    return agreed(parts, trainer.comm, within) if several else parts


def _agree(model: Trainable, trainer: Trainer) -> None:
    """Let all ranks stop if one wants to.

    Raises StateError, alike on all ranks, if their learning rates differ.
    """
    comm = trainer.comm
    if comm.size == 1:
        return
    table = np.zeros((comm.size, 2))
    table[comm.rank] = model.stop_training, trainer.optimizer.current_lr()
    comm.allreduce(table)
    rates = table[:, 1]
    differ = np.flatnonzero(rates != rates[0])
    if len(differ):
        rank = int(differ[0])
        raise StateError(
            "expected the same learning rate on all ranks",
            f"{rates[0]:g} on rank 0, {rates[rank]:g} on rank {rank} "
            f"({comm.hosts[rank]})",
            "let callbacks decide by the logs, which are the same on all ranks, or by "
            "what one rank knows: fs.world().broadcast_obj(rate)",
        )
    model.stop_training = bool(table[:, 0].any())
