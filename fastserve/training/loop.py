"""The loop of ``fit``: steps, epochs, validation, callbacks."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Protocol

from fastserve.data.prefetch import Pace, load, shares
from fastserve.data.sampler import Sampler
from fastserve.data.sources import Source
from fastserve.training.callbacks import Callback, CallbackList, History
from fastserve.training.flops import flops_per_sample
from fastserve.training.language import language_measures
from fastserve.training.step import StepResult, Trainer


class Trainable(Protocol):
    """What callbacks may use of a model."""

    stop_training: bool
    trainer: Trainer | None
    last_step: StepResult | None

    def save(self, path: str | Path) -> None: ...

    def save_weights(self, path: str | Path) -> None: ...


@dataclass
class Schedule:
    """Which steps are made, and when an epoch ends.

    Attributes:
        steps_per_epoch: steps between two ends of an epoch; validation runs there.
        total_steps: the last epoch is cut short at this step.
        first_step: where a resumed run goes on.
        validation_batches: batches of a validation, always the first ones; None: all.
    """

    steps_per_epoch: int
    total_steps: int
    first_step: int = 0
    validation_freq: int = 1
    validation_batches: int | None = None

    @property
    def epochs(self) -> int:
        return -(-self.total_steps // self.steps_per_epoch)


def run(
    model: Trainable,
    trainer: Trainer,
    source: Source,
    sampler: Sampler,
    schedule: Schedule,
    validation: Source | None = None,
    validation_batch: int | None = None,
    callbacks: Sequence[Callback] = (),
    verbose: int = 0,
    bytes_per_token: float | None = None,
) -> History:
    """Train until ``schedule`` ends or ``model.stop_training``; return the history.

    Validation of tokens also gives ``val_perplexity`` and, with ``bytes_per_token``,
    ``val_bits_per_byte``.
    """
    history = History()
    params = {
        "epochs": schedule.epochs,
        "steps": schedule.steps_per_epoch,
        "samples": source.samples,
        "first_step": schedule.first_step,
        "total_steps": schedule.total_steps,
        "tokens_per_sample": source.tokens_per_sample,
        "flops_per_sample": flops_per_sample(trainer.root, source.time),
        "do_validation": validation is not None,
        "verbose": verbose,
    }
    call = CallbackList([history, *callbacks], model, params)
    model.stop_training = False
    trainer.share_weights()  # rank 0 may have loaded others
    call("train_begin", {})
    logs: dict[str, float] = {}
    step, pace = schedule.first_step, Pace()
    while step < schedule.total_steps and not model.stop_training:
        epoch = step // schedule.steps_per_epoch
        end = min(schedule.total_steps, (epoch + 1) * schedule.steps_per_epoch)
        if step == epoch * schedule.steps_per_epoch:
            trainer.reset_totals()  # else a resumed epoch goes on with what it had
        call("epoch_begin", epoch, {})
        parts = shares(source, sampler, range(step, end), trainer.rows_of)
        with closing(load(parts, pace, source)) as loaded:
            while step < end and not model.stop_training:
                batch = step - epoch * schedule.steps_per_epoch
                call("train_batch_begin", batch, {})
                start = perf_counter()
                part = next(loaded)
                loading = perf_counter() - start
                model.last_step = trainer.train_share(part, step, loading)
                step += 1
                logs = trainer.results()
                call("train_batch_end", batch, logs)
                if model.last_step.stop:
                    model.stop_training = True
        if step < end:
            break  # stopped within the epoch: it has no end
        if validation is not None and (epoch + 1) % schedule.validation_freq == 0:
            results = trainer.evaluate(
                validation,
                validation_batch or sampler.batch,
                schedule.validation_batches,
            )
            results |= language_measures(
                results["loss"], trainer.loss, validation, bytes_per_token
            )
            logs |= {f"val_{name}": value for name, value in results.items()}
        call("epoch_end", epoch, logs)
    if model.last_step is None or not model.last_step.stop:
        trainer.finish()
    call("train_end", logs)
    return history
