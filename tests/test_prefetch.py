"""Batches that a thread makes ahead: the same ones, in order, and no thread is left."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

import fastserve as fs
from fastserve.comm import Communicator, run_threads
from fastserve.core import Array
from fastserve.data import ArraySource, Sampler, prefetch
from fastserve.data.prefetch import Pace, Prefetch, Share, load, share_of, shares
from fastserve.data.sources import Batch
from fastserve.errors import DataError

X = np.arange(40, dtype=np.float32).reshape(20, 2) / 40
Y = np.arange(20)


class Clock:
    """Stands still but for what a source takes: a step takes no time by it."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock by which it is decided whether a thread pays."""
    made = Clock()
    monkeypatch.setattr(prefetch, "perf_counter", made)
    return made


class Slow(ArraySource):
    """Takes so long for a batch that a thread pays, and says who asked."""

    def __init__(
        self,
        seconds: float = 0.002,
        fails_at: int | None = None,
        clock: Clock | None = None,
    ) -> None:
        super().__init__(X, X.sum(axis=1, keepdims=True))
        self.in_memory, self.clock = False, clock
        self.seconds, self.fails_at = seconds, fails_at
        self.calls: list[str] = []

    def batch(self, rows: Array, epochs: Array) -> Batch:
        self.calls.append(threading.current_thread().name)
        if len(self.calls) == self.fails_at:
            raise DataError("expected a file", "none", "add it")
        time.sleep(self.seconds)
        if self.clock is not None:
            self.clock.now += self.seconds
        return super().batch(rows, epochs)


def eager() -> Pace:
    pace = Pace()
    pace.ahead = True
    return pace


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    assert not [t for t in threading.enumerate() if t.name == "prefetch"]


def whole(total: int, full: int) -> slice:
    return slice(0, total)


def first_half(total: int, full: int) -> slice:
    return slice(0, total // 2)


def sampler(samples: int = 20, batch: int = 6) -> Sampler:
    return Sampler(samples, batch, 1, shuffle=True, wrap=False)


def test_the_same_batches_in_the_same_order() -> None:
    weights = np.linspace(0, 1, 20)
    steps, order = range(9), sampler()
    plain = [
        share_of(ArraySource(X, Y, weights), order, step, first_half) for step in steps
    ]
    source = ArraySource(X, Y, weights)
    source.in_memory = False
    with closing(
        load(shares(source, order, steps, first_half), eager(), source)
    ) as loaded:
        for want, got in zip(plain, loaded, strict=True):
            assert got[1:] == want[1:]
            assert got.batch is not None
            assert want.batch is not None
            for a, b in zip(got.batch[:3], want.batch[:3], strict=True):
                np.testing.assert_array_equal(a, b)


def test_a_batch_stays_until_the_next_is_asked_for() -> None:
    source, order = ArraySource(X, Y), sampler()
    with Prefetch(shares(source, order, range(50), whole), source) as loaded:
        places = set()
        for step, part in enumerate(loaded):
            time.sleep(0.001)  # the thread could have made several by now
            assert part.batch is not None
            rows, _ = order.step(step)
            np.testing.assert_array_equal(part.batch.y, Y[rows])
            places.add(part.batch.y.ctypes.data)
    assert len(places) == 2  # no memory but that of two batches


def test_several_inputs_and_batches_that_grow() -> None:
    def items() -> Iterator[Share]:
        for n in (2, 5, 3, 7):
            x = (np.full((n, 2), n), np.full((n, 1), -n, np.int32))
            yield Share(Batch(x, np.full(n, n), None), slice(0, n), n, 7)  # type: ignore[arg-type]
        yield Share(None, slice(0, 0), 1, 7)

    with Prefetch(items()) as loaded:
        found = [
            (part.total, None if part.batch is None else part.batch.x[1].tolist())
            for part in loaded
        ]
    assert found[:2] == [(2, [[-2]] * 2), (5, [[-5]] * 5)]
    assert found[-1] == (1, None)


def test_a_thread_is_used_where_it_pays_and_only_there(clock: Clock) -> None:
    def fit(source: ArraySource) -> list[Array]:
        model = fs.Sequential([fs.layers.Dense(1, input_shape=(2,))], seed=1)
        model.compile("sgd", "mse")
        model.fit(source, batch_size=2, epochs=2, verbose=0)
        return model.get_weights()

    slow, fast = Slow(clock=clock), Slow(0, clock=clock)
    results = fit(slow), fit(fast)
    assert slow.calls[-8:] == ["prefetch"] * 8
    assert "prefetch" not in fast.calls
    assert len(slow.calls) == len(fast.calls)  # none was read that nobody used
    for a, b in zip(*results, strict=True):
        np.testing.assert_array_equal(a, b)
    loads = Pace()
    for _ in range(99):
        loads.add(0.004, 0.1)
    assert not loads.ahead


def test_an_exception_comes_with_its_traceback(clock: Clock) -> None:
    source = Slow(fails_at=9, clock=clock)
    model = fs.Sequential([fs.layers.Dense(1, input_shape=(2,))])
    model.compile("sgd", "mse")
    with pytest.raises(DataError, match="expected a file") as error:
        model.fit(source, batch_size=2, epochs=2, verbose=0)
    frames = traceback.extract_tb(error.tb)
    assert frames[-1].line == 'raise DataError("expected a file", "none", "add it")'
    assert source.calls[-1] == "prefetch"


def test_an_exception_in_the_step_ends_the_thread(clock: Clock) -> None:
    class Interrupted(fs.callbacks.Callback):
        def on_train_batch_end(self, batch: int, logs: object = None) -> None:
            if batch == 7:
                raise KeyboardInterrupt

    model = fs.Sequential([fs.layers.Dense(1, input_shape=(2,))])
    model.compile("sgd", "mse")
    source = Slow(clock=clock)
    with pytest.raises(KeyboardInterrupt):
        model.fit(source, None, 2, 2, 0, Interrupted())
    assert "prefetch" in source.calls


def test_the_source_that_is_read_ahead_can_be_evaluated() -> None:
    source = Slow()

    class Evaluate(fs.callbacks.Callback):
        def __init__(self) -> None:
            self.found: list[float] = []

        def on_train_batch_end(self, batch: int, logs: object = None) -> None:
            self.found.append(model.evaluate(source, batch_size=3, verbose=0))

    model = fs.Sequential([fs.layers.Dense(1, input_shape=(2,))])
    model.compile(fs.optimizers.SGD(1e-9), "mse")
    want = model.evaluate(source, verbose=0)
    evaluate = Evaluate()
    model.fit(source, None, 2, 3, 0, evaluate)
    np.testing.assert_allclose(evaluate.found, [want] * 30, rtol=1e-4)


def test_ranks() -> None:
    def program(comm: Communicator) -> list[Array]:
        model = fs.Sequential([fs.layers.Dense(1, input_shape=(2,))], seed=1)
        model.compile("sgd", "mse")
        source = Slow(0.002 * comm.rank)  # each rank decides for itself
        model.fit(source, batch_size=2, epochs=3, verbose=0, validation_data=source)
        return model.get_weights()

    alone, (one, two) = run_threads(1, program)[0], run_threads(2, program)
    for a, b, c in zip(alone, one, two, strict=True):
        np.testing.assert_array_equal(b, c)
        np.testing.assert_allclose(a, b, rtol=1e-5)


FORKLESS = """
import os, time
import numpy as np
import fastserve as fs

os.fork = os.forkpty = None
os.register_at_fork(before=lambda: print("forked", flush=True))

class Slow(fs.utils.PyDataset):
    def __len__(self):
        return 30
    def __getitem__(self, i):
        time.sleep(0.003)
        return np.ones((8, 4)), np.ones((8, 1))

model = fs.Sequential([fs.layers.Dense(1)])
model.compile("sgd", "mse")
model.fit(Slow(workers=4), validation_data=Slow(), epochs=2, verbose=0)
model.predict(Slow(), verbose=0)
import multiprocessing
print("children", len(multiprocessing.active_children()))
"""


def test_nothing_is_forked() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", FORKLESS], capture_output=True, text=True, timeout=120
    )
    assert (ended.stdout, ended.stderr) == ("children 0\n", "")
    # nor by code that no test runs
    library = Path(fs.__file__).parent
    for path in library.rglob("*.py"):
        text = path.read_text("utf-8")
        assert "multiprocessing" not in text.replace("use_multiprocessing", ""), path
        assert "os.fork" not in text, path
