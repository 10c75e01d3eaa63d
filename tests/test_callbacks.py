"""EarlyStopping and ModelCheckpoint, on one rank and on several."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastserve as fs
from fastserve.comm import Communicator, run_threads
from fastserve.errors import ArgumentError, ReplicaError
from fastserve.models import load_model
from fastserve.training.callbacks import (
    BackupAndRestore,
    Callback,
    EarlyStopping,
    LambdaCallback,
    ModelCheckpoint,
)
from fastserve.training.step import Options


class Values(fs.callbacks.Callback):
    """Puts given values into the logs, in the place of those measured."""

    def __init__(self, name: str, values: list[float]) -> None:
        self.name, self.values = name, values

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        logs[self.name] = self.values[epoch]


def regression(lr: float = 0.05) -> tuple[Any, Any, fs.models.Sequential]:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((40, 3)).astype(np.float32)
    model = fs.models.Sequential([fs.layers.Dense(1, input_shape=(3,))], seed=1)
    model.compile(fs.optimizers.SGD(lr), "mse", metrics=["mae"])
    return x, x.sum(axis=1, keepdims=True), model


def epochs_made(values: list[float], name: str = "val_loss", **options: Any) -> int:
    x, y, model = regression()
    early = EarlyStopping(name, **options)
    history = model.fit(
        x, y, 20, len(values), 0, [Values(name, values), early], validation_data=(x, y)
    )
    assert (early.stopped_epoch > 0) == (len(history.epoch) < len(values))
    return len(history.epoch)


# what Keras 3 does, by the code of its EarlyStopping
RULES = [
    ({"patience": 0}, [3, 2, 2, 1, 1], 3),
    ({"patience": 1}, [3, 2, 2, 1, 1], 3),
    ({"patience": 2}, [3, 2, 2, 1, 1, 1, 1], 6),
    ({"patience": 2}, [3, 2, 1, 0.5], 4),
    ({"patience": 1}, [3, np.nan, 2], 2),
    ({"patience": 2}, [np.nan, np.nan, 2, 1], 2),
    ({"patience": 1, "min_delta": 0.5}, [3, 2.4, 2.0, 1.0], 3),
    ({"patience": 1, "mode": "max"}, [1, 2, 3, 2, 9], 4),
    ({"patience": 2, "baseline": 1.5}, [3, 2.9, 2.8, 3, 3], 4),
    ({"patience": 1, "start_from_epoch": 3}, [3, 4, 5, 6, 7, 8], 5),
]


@pytest.mark.parametrize(("options", "values", "expected"), RULES)
def test_when_it_stops(
    options: dict[str, Any], values: list[float], expected: int
) -> None:
    assert epochs_made(values, **options) == expected


def test_accuracy_is_better_if_it_is_greater() -> None:
    assert epochs_made([0.1, 0.5, 0.4, 0.9], "val_accuracy", patience=1) == 3
    assert EarlyStopping("val_loss").mode == "min"
    assert EarlyStopping("val_auc").mode == "max"


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_the_best_weights_are_set_on_all_ranks(ranks: int) -> None:
    def program(comm: Communicator) -> tuple[list[int], bytes, list[Any]]:
        x, y, model = regression()
        kept: list[Any] = []

        class Keep(fs.callbacks.Callback):
            def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
                kept.append(model.get_weights()[0].copy())

        early = EarlyStopping(patience=2, restore_best_weights=True)
        values = Values("val_loss", [3, 1, 2, 2, 2, 2])
        history = model.fit(
            x, y, 20, 6, 0, [values, Keep(), early], validation_data=(x, y)
        )
        np.testing.assert_array_equal(model.get_weights()[0], kept[1])
        assert early.best_epoch == 1
        return history.epoch, model.store.values.tobytes(), kept

    results = run_threads(ranks, program)
    assert all(result[0] == [0, 1, 2, 3] for result in results)
    assert len({result[1] for result in results}) == 1


def test_it_goes_on_from_a_saved_state() -> None:
    x, y, model = regression()
    early = EarlyStopping(patience=2)
    early.set_state({"best": 1.0, "best_epoch": 4, "wait": 1, "stopped_epoch": 0})
    values = Values("val_loss", [2.0] * 9)
    history = model.fit(
        x,
        y,
        20,
        9,
        0,
        [values, early],
        validation_data=(x, y),
    )
    assert len(history.epoch) == 2  # an epoch 0 never stops, as in Keras
    assert early.get_state()["wait"] == 3
    early.set_state(early.get_state())
    assert model.fit(x, y, 20, 9, 0, [values, early], 0.5).epoch == []
    assert len(model.fit(x, y, 20, 9, 0, [values, early], 0.5).epoch) == 3  # anew


def test_what_cannot_be_monitored() -> None:
    x, y, model = regression()
    for callback in (EarlyStopping(), ModelCheckpoint("x", save_best_only=True)):
        with pytest.raises(ArgumentError, match="expected validation data"):
            model.fit(x, y, 20, 2, 0, callback)
    with pytest.raises(ArgumentError, match="monitor one of loss, mae, val_loss"):
        model.fit(x, y, 20, 2, 0, EarlyStopping("val_acc"), 0.5)
    with pytest.raises(ArgumentError, match="'auto', 'min' or 'max'"):
        EarlyStopping(mode="best")
    with pytest.raises(ArgumentError, match="patience"):
        EarlyStopping(patience=-1)
    # epochs without validation are passed over
    early = EarlyStopping(patience=1)
    model.fit(x, y, 20, 4, 0, early, 0.5, validation_freq=2)


def test_checkpoints_of_the_best_epochs(tmp_path: Path) -> None:
    x, y, model = regression()
    path = tmp_path / "{epoch:02d}-{val_loss:.1f}.safetensors"
    callbacks = [
        Values("val_loss", [3, 4, 2, np.nan, 2]),
        ModelCheckpoint(path, save_best_only=True),
    ]
    model.fit(x, y, 20, 5, 0, callbacks, validation_data=(x, y))
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "01-3.0.safetensors",
        "03-2.0.safetensors",
    ]
    saved = load_model(tmp_path / "03-2.0.safetensors")
    assert saved.get_weights()[0].shape == (3, 1)
    wrong = ModelCheckpoint(tmp_path / "{nothing}")
    with pytest.raises(ArgumentError, match="known: epoch, loss, mae"):
        model.fit(x, y, 20, 1, 0, wrong)


def test_checkpoints_every_few_batches(tmp_path: Path) -> None:
    x, y, model = regression()
    path = tmp_path / "{epoch}-{batch}.safetensors"
    callback = ModelCheckpoint(path, save_freq=3, save_weights_only=True)
    model.fit(x, y, 10, 2, 0, callback)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "1-3.safetensors",
        "2-2.safetensors",
    ]
    model.load_weights(tmp_path / "2-2.safetensors")


def test_checkpoints_on_ranks_are_those_of_one(tmp_path: Path) -> None:
    def program(comm: Communicator) -> None:
        x, y, model = regression()
        path = tmp_path / f"{comm.size}.safetensors"
        callback = ModelCheckpoint(path, save_best_only=True)
        model.fit(x, y, 20, 3, 0, callback, validation_data=(x, y))

    run_threads(1, program)
    run_threads(3, program)
    one, three = (load_model(tmp_path / f"{n}.safetensors") for n in (1, 3))
    for a, b in zip(one.get_weights(), three.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)


def savers(folder: Path) -> dict[str, Callback]:
    return {
        "model": ModelCheckpoint(folder / "model" / "{epoch}.safetensors"),
        "weights": ModelCheckpoint(
            folder / "weights" / "{epoch}.safetensors", save_weights_only=True
        ),
        "backup": BackupAndRestore(folder / "backup", delete_checkpoint=False),
    }


@pytest.mark.parametrize("kind", ["model", "weights", "backup"])
def test_what_differs_between_ranks_is_not_saved(kind: str, tmp_path: Path) -> None:
    """A bit of a weight of rank 1 flips in the second epoch's last step."""

    def program(comm: Communicator, check_every: int) -> str:
        x, y, model = regression()
        model.options = Options(check_every=check_every)
        steps = iter(range(4))

        def flip(batch: int, logs: Any) -> None:
            if next(steps) == 3 and comm.rank == 1:
                model.store.values.view(np.uint32)[1] ^= 1

        callbacks = [
            LambdaCallback(on_train_batch_end=flip),
            savers(tmp_path / str(check_every))[kind],
        ]
        try:
            model.fit(x, y, 20, 2, 0, callbacks)
        except ReplicaError as error:
            return str(error)
        return ""

    def saved(check_every: int) -> set[str]:
        found = (tmp_path / str(check_every) / kind).iterdir()
        return {path.name for path in found} - {"latest"}

    said = run_threads(3, lambda comm: program(comm, 1000))
    assert said == [said[0]] * 3
    assert said[0].startswith("step 4: expected the same parameters on every rank")
    assert " differs on rank 1 (" in said[0]
    first, second = "1.safetensors", "2.safetensors"
    if kind == "backup":
        first, second = "step-00000002", "step-00000004"
    assert saved(1000) == {first}
    # 0 turns the comparison off; of backups the newest is kept
    assert run_threads(3, lambda comm: program(comm, 0)) == [""] * 3
    assert saved(0) == ({second} if kind == "backup" else {first, second})
