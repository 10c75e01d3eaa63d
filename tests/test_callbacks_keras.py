"""Callbacks beside what Keras' did with the same values (references/callbacks.json)."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastserve as fs
from fastserve.comm import Communicator, run_threads
from fastserve.errors import ArgumentError, CommError, NonFiniteError, StateError
from fastserve.training.callbacks import (
    Callback,
    CSVLogger,
    EarlyStopping,
    LambdaCallback,
    LearningRateScheduler,
    ReduceLROnPlateau,
    TensorBoard,
    TerminateOnNaN,
)

KERAS = json.loads((Path(__file__).parent / "references/callbacks.json").read_text())
X, Y = np.zeros((6, 3), np.float32), np.zeros((6, 1), np.float32)


class Values(Callback):
    def __init__(self, values: list[float]) -> None:
        self.values = values

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        logs["val_loss"] = self.values[epoch]


class Moments(Callback):
    def __init__(self, stop_at: int | None = None) -> None:
        self.seen: list[str] = []
        self.stop_at = stop_at

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.seen.append(f"train_batch_end {batch}")
        if self.stop_at is not None and len(self.seen) >= self.stop_at:
            self.model.stop_training = True


def _add_moments() -> None:
    def hears(name: str) -> Any:
        def method(self: Moments, *arguments: Any) -> None:
            number = [str(a) for a in arguments if isinstance(a, int)]
            self.seen.append(" ".join([name, *number]))

        return method

    for name in vars(Callback):
        if name.startswith("on_") and name not in (
            "on_batch_begin",
            "on_batch_end",
            "on_train_batch_end",
        ):
            setattr(Moments, name, hears(name[3:]))


_add_moments()


def regression() -> fs.models.Sequential:
    model = fs.models.Sequential([fs.layers.Dense(1, input_shape=(3,))], seed=1)
    model.compile(fs.optimizers.SGD(0.05), "mse", metrics=["mae"])
    return model


def fit(values: list[float], *callbacks: Callback) -> dict[str, list[float]]:
    history = regression().fit(
        X, Y, epochs=len(values), verbose=0, callbacks=[Values(values), *callbacks],
        validation_data=(X, Y),
    )  # fmt: skip
    return history.history


@pytest.mark.parametrize("case", KERAS["plateau"], ids=lambda c: str(c["options"]))
def test_the_learning_rate_on_plateaus(case: dict[str, Any]) -> None:
    callback = ReduceLROnPlateau(**{"mode": "min", **case["options"]})
    found = fit(case["values"], callback)["learning_rate"]
    np.testing.assert_allclose(found, case["rates"], rtol=1e-6)


@pytest.mark.parametrize("case", KERAS["stopping"], ids=lambda c: str(c["options"]))
def test_when_training_stops(case: dict[str, Any]) -> None:
    callback = EarlyStopping(**{"mode": "min", **case["options"]})
    assert len(fit(case["values"], callback)["loss"]) == case["epochs"]


def test_the_learning_rate_of_a_function() -> None:
    schedule = LearningRateScheduler(lambda e, r: r * (0.5 if e % 3 == 2 else 1.0))
    found = fit([0.0] * 12, schedule)["learning_rate"]
    np.testing.assert_allclose(found, KERAS["scheduler"], rtol=1e-6)
    assert fit([0.0], LearningRateScheduler(lambda e: 0.5))["learning_rate"] == [0.5]


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("moments", {}),
        ("moments_freq_2", {"validation_freq": 2}),
        ("moments_freq_list", {"validation_freq": [1, 3]}),
        ("moments_stop", {"stop_at": 12}),
    ],
)
def test_the_moments_come_as_in_keras(
    name: str, keys: dict[str, Any], ranks: int
) -> None:
    def program(comm: Communicator) -> None:
        options = dict(keys)
        events = Moments(options.pop("stop_at", None))
        model = fs.models.Sequential([fs.layers.Dense(1, input_shape=(3,))])
        model.compile(fs.optimizers.SGD(0.05), "mse")
        history = model.fit(
            X, Y, 2, epochs=3, verbose=0, callbacks=events, shuffle=False,
            validation_data=(X[:3], Y[:3]), **options,
        )  # fmt: skip
        assert events.seen == KERAS[name]["fit"]
        events.seen = []
        model.evaluate(X, Y, 4, verbose=0, callbacks=[events])
        model.predict(X, 4, verbose=0, callbacks=[events])
        assert events.seen == KERAS[name]["after"]
        assert history.epoch == KERAS[name]["epochs"]
        lengths = {k: len(v) for k, v in history.history.items()}
        assert lengths == KERAS[name]["lengths"]

    run_threads(ranks, program)


@pytest.mark.parametrize(("name", "append"), [("csv", False), ("csv_append", True)])
def test_csv_files_are_those_of_keras(tmp_path: Path, name: str, append: bool) -> None:
    def program(comm: Communicator) -> None:
        keys = {"validation_data": (X, Y)} if append else {}
        for _ in range(2):
            logger = CSVLogger(path, ";", append)
            regression().fit(X, Y, epochs=2, verbose=0, callbacks=logger, **keys)

    path = tmp_path / "logs" / "log.csv"
    run_threads(2, program)  # rank 0 alone writes
    assert path.read_bytes().decode() == KERAS[name]


def test_a_line_that_was_cut_off_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_bytes(b"epoch,loss,mae,val_loss,val_mae\r\n0,1.5,1,NA,NA\r\n1,0.")
    regression().fit(X, Y, epochs=1, verbose=0, callbacks=CSVLogger(path, append=True))
    assert path.read_text().splitlines()[1:] == ["0,1.5,1,NA,NA", "0,0.0,0.0,NA,NA"]


class Poison(Callback):
    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        if batch == 1:
            trainer = self.model.trainer
            assert trainer is not None
            trainer.store.values[0] = np.nan


def test_terminate_on_nan(capsys: pytest.CaptureFixture[str]) -> None:
    model = regression()
    early = [Poison(), TerminateOnNaN()]
    history = model.fit(X, Y, 2, 5, 0, early)
    assert history.epoch == [0]
    assert np.isnan(history.history["loss"][0])
    assert capsys.readouterr().out == "batch 1: invalid loss, training ends\n"
    for callbacks in ([Poison()], [Poison(), TerminateOnNaN(raise_error=True)]):
        with pytest.raises(NonFiniteError, match="output of layer 0"):
            regression().fit(X, Y, 2, 5, 0, callbacks)


def test_lambda_callback() -> None:
    seen: list[Any] = []
    callback = LambdaCallback(
        on_epoch_end=lambda epoch, logs: seen.append((epoch, sorted(logs))),
        on_train_end=lambda logs: seen.append("end"),
        on_test_begin=lambda logs: seen.append("test"),
    )
    regression().fit(X, Y, 6, 2, 0, callback)
    assert seen == [(0, ["loss", "mae"]), (1, ["loss", "mae"]), "end"]
    with pytest.raises(ArgumentError, match="on_epoch_ends"):
        LambdaCallback(on_epoch_ends=print)


def test_what_is_refused() -> None:
    model = regression()
    model.compile(fs.optimizers.SGD(fs.schedules.CosineDecay(0.1, 10)), "mse")
    for callback in (ReduceLROnPlateau("loss"), LearningRateScheduler(lambda e: 1.0)):
        with pytest.raises(StateError, match="a number as learning rate"):
            model.fit(X, Y, epochs=1, verbose=0, callbacks=callback)
    wrong = LearningRateScheduler(lambda e: -1.0)
    with pytest.raises(ArgumentError, match=r"-1\.0 for epoch 0"):
        regression().fit(X, Y, epochs=1, verbose=0, callbacks=wrong)
    with pytest.raises(ArgumentError, match="factor between 0 and 1"):
        ReduceLROnPlateau(factor=1.5)
    with pytest.raises(ArgumentError, match="Callback's subclasses"):
        regression().fit(X, Y, verbose=0, callbacks=[print])  # type: ignore[list-item]
    with pytest.raises(ArgumentError, match="1 letter"):
        CSVLogger("x", separator="")


# -- ranks -----------------------------------------------------------------------------


@pytest.mark.parametrize("moment", ["train_batch_end", "batch_end", "epoch_end"])
@pytest.mark.parametrize("decides", [0, 1, 2])
def test_one_rank_stops_all_before_the_same_step(moment: str, decides: int) -> None:
    def program(comm: Communicator) -> tuple[int, list[int], bytes]:
        model = regression()

        def stop(number: int, logs: Any) -> None:
            if comm.rank == decides and number == 1:  # as by a clock or a file
                model.stop_training = True

        callback = LambdaCallback(**{f"on_{moment}": stop})
        if moment == "batch_end":  # the other name, by a subclass

            class Stop(Callback):
                def on_batch_end(self, batch: int, logs: Any = None) -> None:
                    stop(batch, logs)

            callback = Stop()  # type: ignore[assignment]
        history = model.fit(X, Y, 2, 5, 0, callback)
        assert model.optimizer is not None
        return model.optimizer.step, history.epoch, model.store.values.tobytes()

    results = run_threads(3, program)
    wanted = (6, [0, 1]) if moment == "epoch_end" else (2, [0])
    assert [r[:2] for r in results] == [wanted] * 3
    assert len({r[2] for r in results}) == 1


def test_another_learning_rate_on_a_rank_is_named() -> None:
    def program(comm: Communicator) -> str:
        model = regression()
        schedule = LearningRateScheduler(lambda e, r: r / (1 + e * comm.rank))
        with pytest.raises(StateError) as error:
            model.fit(X, Y, 2, 5, 0, schedule)
        return str(error.value)

    messages = set(run_threads(2, program))
    assert len(messages) == 1
    assert re.search(r"0\.05 on rank 0, 0\.025 on rank 1", messages.pop())


def test_an_exception_on_one_rank_ends_all() -> None:
    def program(comm: Communicator) -> None:
        def fail(epoch: int, logs: Any) -> None:
            if comm.rank == 1:
                raise RuntimeError("only here")

        regression().fit(X, Y, 2, 5, 0, LambdaCallback(on_epoch_end=fail))

    with pytest.raises((RuntimeError, CommError), match="only here"):
        run_threads(2, program)


# -- TensorBoard -----------------------------------------------------------------------


def read_events(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Return tag -> (step, value); of a histogram the number of its values."""
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.record_writer import masked_crc32c

    found: dict[str, list[tuple[int, float]]] = {}
    for path in sorted(folder.glob("events.*")):
        data = path.read_bytes()
        place = 0
        while place < len(data):
            head = data[place : place + 8]
            size = int.from_bytes(head, "little")
            assert data[place + 8 : place + 12] == masked_crc32c(head).to_bytes(
                4, "little"
            )
            event = Event.FromString(data[place + 12 : place + 12 + size])
            place += 12 + size + 4
            for value in event.summary.value:
                is_histogram = value.HasField("histo")
                number = value.histo.num if is_histogram else value.simple_value
                found.setdefault(value.tag, []).append((event.step, number))
    return found


def test_tensorboard_files(tmp_path: Path) -> None:
    def program(comm: Communicator) -> Any:
        model = regression()
        board = TensorBoard(tmp_path, histogram_freq=1, update_freq=2)
        history = model.fit(
            X, Y + 1, 2, 2, 0, board, validation_data=(X, Y), shuffle=False
        )
        return history.history

    history = run_threads(2, program)[0]
    train, valid = read_events(tmp_path / "train"), read_events(tmp_path / "validation")
    assert [step for step, _ in train["batch_loss"]] == [0, 2, 4]
    np.testing.assert_allclose([v for _, v in train["epoch_loss"]], history["loss"])
    rates = train["epoch_learning_rate"]
    assert [s for s, _ in rates] == [0, 1]
    np.testing.assert_allclose([rate for _, rate in rates], 0.05)
    np.testing.assert_allclose(
        [v for _, v in valid["epoch_mae"]], history["val_mae"], rtol=1e-6
    )
    assert [s for s, _ in valid["evaluation_loss_vs_iterations"]] == [3, 6]
    assert train["0/kernel/histogram"] == [(0, 3), (1, 3)]
    assert len(list((tmp_path / "train").iterdir())) == 1  # rank 0 alone


def test_tensorboard_without_its_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "tensorboardX", None)
    with pytest.raises(StateError, match=r"fastserve-train\[tensorboard\]"):
        TensorBoard()
