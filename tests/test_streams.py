"""Generators, iterables and PyDatasets in fit, evaluate, predict, also over ranks."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import fastserve as fs
from fastserve.comm import Communicator, run_threads
from fastserve.data import ArraySource, PyDataset
from fastserve.data.streams import as_stream
from fastserve.errors import ArgumentError, DataError, ShapeError

RNG = np.random.default_rng(0)
X = RNG.standard_normal((60, 6)).astype(np.float32)
LABELS = (X @ RNG.standard_normal((6, 3))).argmax(axis=1)
WEIGHTS = RNG.uniform(0.5, 2, 60)
SIZE = 16  # 60 rows: 4 batches, the last of 12


def classifier() -> fs.models.Sequential:
    model = fs.models.Sequential(
        [fs.layers.Dense(8, "relu"), fs.layers.Dense(3, "softmax")], seed=2
    )
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def batches(passes: int = 1, weighted: bool = False) -> Iterator[Any]:
    for _ in range(passes):
        for start in range(0, 60, SIZE):
            rows = slice(start, start + SIZE)
            item = X[rows], LABELS[rows]
            yield (*item, WEIGHTS[rows]) if weighted else item


class Iterable:
    """Can be started again, and has no length."""

    def __init__(self) -> None:
        self.starts = 0

    def __iter__(self) -> Iterator[Any]:
        self.starts += 1
        return batches()


class Batches(PyDataset):
    def __init__(self, seconds: float = 0.0) -> None:
        super().__init__(workers=2)
        self.asked: list[int] = []
        self.ends = 0
        self.seconds = seconds
        self.threads: set[str] = set()

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Any:
        time.sleep(self.seconds)
        self.asked.append(index)
        self.threads.add(threading.current_thread().name)
        rows = slice(index * SIZE, index * SIZE + SIZE)
        return X[rows], LABELS[rows]

    def on_epoch_end(self) -> None:
        self.ends += 1


def trained(x: Any, y: Any = None, epochs: int = 3, **keys: Any) -> Any:
    model = classifier()
    history = model.fit(x, y, SIZE, epochs, 0, shuffle=False, **keys)
    return history.history, model.store.values.tobytes()


KINDS: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "generator": (lambda: batches(3), {"steps_per_epoch": 4}),
    "endless": (lambda: batches(99), {"steps_per_epoch": 4}),
    "iterable": (Iterable, {}),
    "iterable with steps": (Iterable, {"steps_per_epoch": 4}),
    "dataset": (Batches, {}),
    "slow dataset": (lambda: Batches(0.004), {}),
    "source": (lambda: ArraySource(X, LABELS), {}),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ranks", [1, 3])
def test_the_same_training_as_with_arrays(kind: str, ranks: int) -> None:
    make, keys = KINDS[kind]
    wanted = run_threads(ranks, lambda comm: trained(X, LABELS))
    found = run_threads(ranks, lambda comm: trained(make(), **keys))
    assert found == wanted
    assert not [t for t in threading.enumerate() if t.name == "prefetch"]


@pytest.mark.parametrize("ranks", [1, 2])
def test_weights_and_classes(ranks: int) -> None:
    classes = {0: 1.0, 1: 2.0, 2: 0.5}

    def arrays(comm: Communicator) -> Any:
        return trained(X, LABELS, sample_weight=WEIGHTS, class_weight=classes)

    def generator(comm: Communicator) -> Any:
        data = batches(3, weighted=True)
        return trained(data, steps_per_epoch=4, class_weight=classes)

    assert run_threads(ranks, generator) == run_threads(ranks, arrays)


def test_validation_by_batches() -> None:
    wanted, _ = trained(X, LABELS, validation_data=(X, LABELS))
    found, _ = trained(X, LABELS, validation_data=Batches())
    assert found == wanted
    found, _ = trained(
        batches(3), steps_per_epoch=4, validation_data=batches(3), validation_steps=4
    )
    assert found == wanted
    some, _ = trained(X, LABELS, validation_data=(X, LABELS), validation_batch_size=7)
    np.testing.assert_allclose(some["val_loss"], wanted["val_loss"], rtol=1e-5)


def test_a_dataset_is_shuffled_by_the_seed() -> None:
    asked = []
    for _ in range(2):
        data = Batches()
        classifier().fit(data, epochs=3, verbose=0)
        asked.append(data.asked[1:])  # the first is looked at before
        assert data.ends == 3
    assert asked[0] == asked[1]
    for epoch in range(3):
        assert sorted(asked[0][4 * epoch : 4 * epoch + 4]) == [0, 1, 2, 3]
    assert asked[0][:4] != asked[0][4:8]


def test_steps_per_epoch_of_arrays_go_on_in_the_next_epoch() -> None:
    model, seen = classifier(), []

    class Rows(fs.callbacks.Callback):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            assert model.last_step is not None
            seen.append((batch, model.last_step.rows))

    model.fit(X, LABELS, SIZE, 3, 0, Rows(), steps_per_epoch=3)
    rows = [r for _, r in seen]
    assert rows == [16, 16, 16, 12, 16, 16, 16, 12, 16]
    assert [b for b, _ in seen] == [0, 1, 2] * 3


@pytest.mark.parametrize("steps", [None, 4])
def test_data_that_end_too_early_end_the_training(
    steps: int | None, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "fastserve"):
        logging.getLogger("fastserve").propagate = True
        history, _ = trained(batches(1), steps_per_epoch=steps)
    assert len(history["loss"]) == 1
    assert "the data have ended in epoch 2" in caplog.text


def test_without_steps_an_epoch_is_all_there_is(
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = Iterable()
    classifier().fit(data, epochs=2, verbose=2)
    assert data.starts == 2
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("epoch 1/2 step 4  loss ")
    model = classifier()
    history = model.fit(Iterable(), epochs=5, initial_epoch=3, verbose=0)
    assert history.epoch == [3, 4]


def test_a_first_epoch_skips_nothing_of_a_generator() -> None:
    drawn = []

    def data() -> Iterator[Any]:
        for i, item in enumerate(batches(9)):
            drawn.append(i)
            yield item

    model = classifier()
    history = model.fit(data(), epochs=3, initial_epoch=1, steps_per_epoch=4, verbose=0)
    assert history.epoch == [1, 2]
    assert drawn == list(range(8))
    again = classifier()
    again.fit(X, LABELS, SIZE, 2, 0, shuffle=False)
    assert model.store.values.tobytes() == again.store.values.tobytes()


@pytest.mark.parametrize("ranks", [1, 2, 5])
def test_evaluate_and_predict(ranks: int) -> None:
    def program(comm: Communicator) -> Any:
        model = classifier()
        return [
            (
                model.evaluate(data(), batch_size=SIZE, verbose=0, **keys),
                model.predict(data(), SIZE, **keys).tobytes(),
            )
            for keys in ({}, {"steps": 2})
            for data in (batches, Iterable, Batches, lambda: ArraySource(X, LABELS))
        ]

    found = run_threads(ranks, program)
    assert all(result == found[0] for result in found)
    whole, some = found[0][:4], found[0][4:]
    assert len(set(map(str, whole))) == len(set(map(str, some))) == 1
    assert whole[0] != some[0]


@pytest.mark.parametrize("ranks", [1, 2])
def test_several_inputs_and_outputs_by_name(ranks: int) -> None:
    y = X[:, :1]

    def make() -> Any:
        one, two = fs.Input((6,), name="one"), fs.Input((6,), name="two")
        both = fs.layers.Add()([fs.layers.Dense(4)(one), fs.layers.Dense(4)(two)])
        outputs = [
            fs.layers.Dense(1, name="a")(both),
            fs.layers.Dense(3, name="b")(both),
        ]
        model = fs.Model([one, two], outputs, seed=1)
        model.compile("adam", ["mse", None])
        return model

    def data() -> Iterator[Any]:
        for start in range(0, 60, SIZE):
            rows = slice(start, start + SIZE)
            yield {"two": X[rows] ** 2, "one": X[rows]}, {"a": y[rows]}

    def program(comm: Communicator) -> Any:
        found = []
        for arrays in (True, False):
            model = make()
            x, target = ([X, X**2], [y, None]) if arrays else (data(), None)
            history = model.fit(x, target, SIZE, 1, 0, shuffle=False)
            inputs = [X, X**2] if arrays else (item[0] for item in data())
            a, b = model.predict(inputs, SIZE)
            found.append((history.history, a.tobytes(), b.tobytes()))
        assert found[0] == found[1]
        return found[0]

    results = run_threads(ranks, program)
    assert all(result == results[0] for result in results)


# -- predict ---------------------------------------------------------------------------


@pytest.mark.parametrize("ranks", [2, 3, 7])
@pytest.mark.parametrize("batch", [None, 1, 16, 60, 100])
def test_all_ranks_get_all_predictions(ranks: int, batch: int | None) -> None:
    wanted = classifier().predict(X, batch)

    def program(comm: Communicator) -> Any:
        model = classifier()
        model.build((6,))
        rows = [0]
        inner = model.root.forward

        def counted(x: Any, training: Any = False) -> Any:
            rows[0] += len(x)
            return inner(x, training)

        model.root.forward = counted  # type: ignore[method-assign]
        return model.predict(X, batch), rows[0]

    results = run_threads(ranks, program)
    for found, _ in results:
        assert found.dtype == wanted.dtype
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-7)
        assert found.tobytes() == results[0][0].tobytes()
    assert sum(rows for _, rows in results) == 60  # none is computed twice


def test_predict_on_batch_and_lengths_that_differ() -> None:
    model = classifier()
    np.testing.assert_allclose(
        model.predict_on_batch(X[:7]), model.predict(X[:7]), rtol=1e-6
    )
    net = fs.models.Sequential([fs.layers.Dense(2, input_shape=(None, 3))])
    parts = (np.zeros((2, n, 3), np.float32) for n in (4, 4, 5))
    with pytest.raises(ShapeError, match="outputs of one shape"):
        net.predict(parts)


# -- faults ----------------------------------------------------------------------------


def test_ranks_with_other_batches_are_told_apart() -> None:
    def differ(comm: Communicator) -> Iterator[Any]:
        for i, (x, y) in enumerate(batches()):
            yield (x + 1 if comm.rank == 2 and i == 1 else x), y

    def fewer(comm: Communicator) -> Iterator[Any]:
        for i, item in enumerate(batches()):
            if comm.rank != 1 or i < 2:
                yield item

    def own_rows(comm: Communicator) -> Iterator[Any]:
        for x, y in batches():
            yield x[comm.rank :: comm.size], y[comm.rank :: comm.size]

    for data, message in (
        (differ, "another batch on rank 2"),
        (fewer, "none left on rank 1"),
        (own_rows, "another batch on rank 1"),
    ):

        def program(comm: Communicator, data: Any = data) -> str:
            with pytest.raises(DataError) as error:
                classifier().fit(data(comm), epochs=1, verbose=0)
            return str(error.value)

        messages = set(run_threads(3, program))
        assert len(messages) == 1
        assert message in messages.pop()


@pytest.mark.parametrize(
    ("items", "error", "message"),
    [
        ([], DataError, "yields batches"),
        ([X], DataError, "expected .x, y. or .x, y, sample_weight."),
        ([(X, LABELS), (X, LABELS[:3])], DataError, "batch 1: expected as many rows"),
        ([(X, LABELS), (X[:, :2], LABELS)], ShapeError, r"\(batch, 6\)"),
        ([(X, LABELS), (X, LABELS + 9)], DataError, "label"),
        (
            [(X, LABELS), (X * np.nan, LABELS)],
            DataError,
            "x of batch 1",
        ),
        ([(X, LABELS, WEIGHTS, 1)], DataError, "4 parts"),
    ],
)
def test_batches_that_cannot_be_used(
    items: list[Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        classifier().fit(iter(items), epochs=1, verbose=0)


def test_arguments_that_do_not_fit() -> None:
    with pytest.raises(ArgumentError, match="no sample_weight beside a generator"):
        classifier().fit(batches(), sample_weight=WEIGHTS, verbose=0)
    with pytest.raises(ArgumentError, match="validation_split with arrays"):
        classifier().fit(batches(), validation_split=0.5, verbose=0)
    with pytest.raises(ArgumentError, match="steps_per_epoch of 1 or more"):
        classifier().fit(X, LABELS, steps_per_epoch=0, verbose=0)
    with pytest.raises(ArgumentError, match="nothing is forked"):
        Batches.__bases__[0].__init__(Batches(), use_multiprocessing=True)  # type: ignore[misc]
    assert as_stream(X) is as_stream([1, 2]) is as_stream("text") is None


def test_an_error_in_a_generator_comes_out() -> None:
    def data() -> Iterator[Any]:
        yield from batches()
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        classifier().fit(data(), epochs=1, verbose=0)


def test_what_predict_shows(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = classifier()
    model.predict(X, SIZE)
    assert capsys.readouterr().out == ""
    model.predict(X, SIZE, verbose=2)
    assert capsys.readouterr().out == "predict: 4 batches  0:00\n"
    monkeypatch.setenv("FASTSERVE_TERMINAL", "80")
    monkeypatch.setattr("fastserve.training.progress.REDRAWS", 1e9)
    model.predict(X, SIZE)
    shown = capsys.readouterr().out
    assert f"predict: batch 2/4  {'━' * 10}{'╺' * 10}" in shown
    model.evaluate(batches(), verbose=1)
    assert "evaluate: batch 3\n" in capsys.readouterr().out
