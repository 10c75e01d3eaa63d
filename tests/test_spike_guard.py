"""Steps with a loss that is far too high, or not finite, leave the weights alone."""

from __future__ import annotations

import json
import logging
from typing import Any

import numpy as np
import pytest

import fastserve as fs
from fastserve.comm import Communicator, run_threads
from fastserve.data.sources import ArraySource
from fastserve.errors import ArgumentError, LossSpikeError, NonFiniteError
from fastserve.training.spike_guard import SpikeGuard
from fastserve.training.step import Options

BATCH = 6


def model_and_data(bad: dict[int, float]) -> tuple[fs.models.Sequential, Any, Any]:
    """Return a model, and 30 batches of data; those in ``bad`` are this much larger."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((30 * BATCH, 3)).astype(np.float32)
    y = x.sum(axis=1, keepdims=True)
    for batch, factor in bad.items():
        y[batch * BATCH + 1] *= factor
    model = fs.models.Sequential([fs.layers.Dense(1, input_shape=(3,))], seed=1)
    model.compile(fs.optimizers.Adam(0.01), "mse")
    model.options = Options(spike_factor=4.0)
    return model, x, y


class Weights(fs.callbacks.Callback):
    """Keeps the weights after each step."""

    def __init__(self) -> None:
        self.seen: list[bytes] = []
        self.skipped: list[int] = []

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        trainer, last = self.model.trainer, self.model.last_step
        assert trainer is not None and last is not None
        self.seen.append(trainer.store.values.tobytes())
        if last.skipped:
            self.skipped.append(batch)


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_a_spike_changes_nothing_on_any_rank(ranks: int) -> None:
    def program(comm: Communicator) -> tuple[list[int], bytes, float]:
        model, x, y = model_and_data({14: 1e3, 20: 1e5})
        kept = Weights()
        history = model.fit(x, y, BATCH, 1, 0, kept, shuffle=False)
        for step in kept.skipped:
            assert kept.seen[step] == kept.seen[step - 1]
            assert kept.seen[step + 1] != kept.seen[step]
        assert model.optimizer is not None
        assert model.optimizer.step == 30
        return kept.skipped, kept.seen[-1], history.history["loss"][0]

    results = run_threads(ranks, program)
    assert all(result[0] == [14, 20] for result in results)
    assert len({result[1] for result in results}) == 1
    assert results[0][2] < 10  # the mean loss is that of the other steps


def test_it_says_step_and_values(caplog: pytest.LogCaptureFixture) -> None:
    model, x, y = model_and_data({14: 1e3})
    y[20 * BATCH] = 1e25  # its square isn't a float32
    source = ArraySource(x, y)
    with caplog.at_level(logging.WARNING, "fastserve"):
        run_threads(1, lambda comm: model.fit(source, None, BATCH, 1, 0, shuffle=False))
    first, second = (record.getMessage() for record in caplog.records)
    assert first.startswith("step 15 is skipped, the weights stay: loss ")
    assert "more than 4 x" in first
    assert "the median of the 14 steps before" in first
    assert second.startswith("step 21 is skipped")
    assert "aren't both finite" in second
    assert "2 skipped so far, 1 in a row" in second


@pytest.mark.parametrize("ranks", [1, 2])
def test_many_in_a_row_end_the_training(ranks: int) -> None:
    def program(comm: Communicator) -> str:
        model, x, y = model_and_data(dict.fromkeys(range(15, 20), 1000.0))
        kept = Weights()
        with pytest.raises(LossSpikeError) as error:
            model.fit(x, y, BATCH, 1, 0, kept, shuffle=False)
        assert kept.skipped == [15, 16, 17, 18]
        assert model.store.values.tobytes() == kept.seen[14]
        return str(error.value)

    messages = set(run_threads(ranks, program))
    assert len(messages) == 1
    message = messages.pop()
    assert message.startswith("step 20: expected a loss of at most 4 x")
    assert "received:" in message
    assert "raise train.spike_factor" in message


def test_many_that_are_not_finite_name_the_layer() -> None:
    def program(comm: Communicator) -> str:
        model, x, y = model_and_data({})

        class Poison(fs.callbacks.Callback):
            def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
                if batch == 3:
                    model.root.layers[0].kernel.value[0, 0] = np.nan  # type: ignore[attr-defined]

        with pytest.raises(NonFiniteError) as error:
            model.fit(x, y, BATCH, 1, 0, Poison(), shuffle=False)
        return str(error.value)

    messages = set(run_threads(2, program))
    assert len(messages) == 1
    message = messages.pop()
    assert message.startswith("step 8:")  # the fifth in a row
    assert "output of layer 0 (Dense) on rank 0" in message


def test_it_judges_by_the_median_of_the_last_50() -> None:
    guard = SpikeGuard(2.0)
    losses = [1.0] * 9 + [100.0] + [1.0] * 40
    assert not any(guard.refuses(i, x, 1.0, False) for i, x in enumerate(losses))
    assert guard.refuses(50, 2.01, 1.0, False)
    assert not guard.refuses(51, 1.99, 1.0, False)
    assert not any(guard.refuses(52 + i, 1.5, 1.0, False) for i in range(60))
    assert not guard.refuses(112, 2.99, 1.0, False)
    assert guard.refuses(113, 0.1, np.inf, False)
    assert (guard.skipped, guard.in_a_row) == (2, 1)


def test_it_goes_on_from_its_state() -> None:
    guard, other = SpikeGuard(2.0), SpikeGuard(2.0)
    for i in range(70):
        guard.refuses(i, 1.0 + 0.01 * i + 9.0 * (i == 66), 1.0, False)
    other.set_state(json.loads(json.dumps(guard.get_state())))
    assert other.skipped == 1
    for i, loss in enumerate([2.0, 9.0, 2.8, 2.7, 9.9, 9.9, 1.0]):
        args = (70 + i, loss, 1.0, False)
        assert guard.refuses(*args) == other.refuses(*args)
    assert guard.get_state() == other.get_state()


def test_a_factor_must_be_above_1() -> None:
    with pytest.raises(ArgumentError, match="spike_factor above 1"):
        Options(spike_factor=1.0)
