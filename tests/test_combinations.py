"""Random combinations of what a training can have give the same on 1, 2 and 3 ranks.

Each case draws a model, a loss, weights, an optimizer and options; all that differ in
is the number of ranks. With the algorithm exact they must agree to the bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastserve as fs
from fastserve.comm import Communicator, run_threads
from fastserve.training.step import Options

L = fs.layers
ROWS, TIME, CLASSES = 23, 5, 4


class Case:
    """What a seed draws."""

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng(seed)

        def some(*choices: Any) -> Any:
            return choices[rng.integers(len(choices))]

        self.seed = seed
        self.kind = some("flat", "sequence", "two outputs", "sequences")
        self.exact = some(False, True)
        self.micro_batch = some(None, None, 2, 3)
        self.batch = some(2, 7, 9, 12)
        self.reduction = some("sum_over_batch_size", "sum_over_batch_size", "sum")
        self.ignored = some(None, 1)
        self.mask = some(False, True)
        self.norm = some(False, True) and (self.exact or not self.micro_batch)
        self.regularizer = some(None, "l2")
        self.constraint = some(None, "max_norm")
        self.class_weight = some(None, {0: 0.5, 2: 3.0})
        self.weights = some(None, "samples")
        self.generator = some(False, True)
        self.recompute = False
        self.sharded = some(False, True) and not self.exact
        self.overlap = some(None, True)
        self.clip = some(None, 0.3)
        self.optimizer = some("sgd", "adam", "rmsprop", "lamb", "ema")
        self.weighted_metrics = some(False, True)
        self.validates = some(False, True)
        if self.kind.startswith("two") or self.kind == "sequences":
            self.reduction, self.class_weight = "sum_over_batch_size", None

    def __repr__(self) -> str:
        return str(vars(self))

    def data(self) -> tuple[Any, Any, Any]:
        rng = np.random.default_rng(self.seed)
        flat = self.kind in ("flat", "two outputs")
        shape = (ROWS,) if flat else (ROWS, TIME)
        x: Any = rng.integers(0 if self.mask else 1, 6, (ROWS, TIME))
        y: Any = rng.integers(0, CLASSES, shape)
        weights: Any = rng.random(ROWS) if self.weights else None
        if self.several:
            y = [y, rng.standard_normal((*shape, 2))]
        return x, y, weights

    @property
    def several(self) -> bool:
        return self.kind in ("two outputs", "sequences")

    def model(self) -> Any:
        dtype = "float32" if self.exact else "float64"  # sums in another order
        start = fs.Input((TIME,))
        x = L.Embedding(6, 6, mask_zero=self.mask)(start)
        sequence = self.kind in ("sequence", "sequences")
        x = L.LSTM(5, return_sequences=sequence)(x)
        if self.norm:
            x = L.BatchNormalization(momentum=0.5, synchronized=not self.exact)(x)
        more = {
            "kernel_regularizer": self.regularizer,
            "kernel_constraint": self.constraint,
        }
        x = L.Dense(5, "tanh", **more)(x)
        x = L.Dropout(0.2)(x)
        outputs = [L.Dense(CLASSES, "softmax", name="c")(x)]
        if self.several:
            outputs.append(L.Dense(2, name="v")(x))
        model = fs.Model(
            start, outputs if self.several else outputs[0], seed=2, dtype=dtype
        )
        loss: Any = fs.losses.SparseCategoricalCrossentropy(
            ignore_class=self.ignored, reduction=self.reduction
        )
        metrics: Any = ["accuracy"]
        weights = None
        if self.several:
            loss, weights = [loss, "mse"], [1.0, 0.3]
            metrics = [["accuracy"], ["mae"]]
        model.compile(
            self.make_optimizer(),
            loss,
            metrics=None if self.weighted_metrics else metrics,
            weighted_metrics=metrics if self.weighted_metrics else None,
            loss_weights=weights,
        )
        model.clip_norm = self.clip
        model.options = Options(
            micro_batch=self.micro_batch,
            algorithm="exact" if self.exact else "ring",
            overlap=self.overlap,
            shard_optimizer=self.sharded,
            check_every=1,
        )
        return model

    def make_optimizer(self) -> Any:
        if self.optimizer == "ema":
            return fs.optimizers.SGD(
                0.05, 0.9, use_ema=True, ema_momentum=0.5, ema_overwrite_frequency=3
            )
        return {
            "sgd": lambda: fs.optimizers.SGD(0.02, clipvalue=0.5),
            "adam": lambda: fs.optimizers.AdamW(1e-2),
            "rmsprop": lambda: fs.optimizers.RMSprop(1e-3, global_clipnorm=0.2),
            "lamb": lambda: fs.optimizers.Lamb(1e-2),
        }[self.optimizer]()

    def batches(self) -> Iterator[Any]:
        x, y, weights = self.data()
        for start in range(0, ROWS, self.batch):
            rows = slice(start, start + self.batch)
            part = [v[rows] for v in y] if self.several else y[rows]
            some = (x[rows], part)
            yield some if weights is None else (*some, weights[rows])

    def train(self, comm: Communicator, *callbacks: Any) -> dict[str, Any]:
        model = self.model()
        x, y, weights = self.data()
        given: Any = {"x": x, "y": y, "sample_weight": weights}
        if self.generator:
            given = {"x": _Again(self.batches)}
        held = (x, y, weights) if weights is not None else (x, y)
        history = model.fit(
            **given,
            batch_size=self.batch,
            epochs=2,
            steps_per_epoch=-(-ROWS // self.batch),
            callbacks=callbacks,
            class_weight=self.class_weight,
            validation_data=held if self.validates else None,
            verbose=0,
        )
        results = model.evaluate(
            x, y, self.batch, 0, sample_weight=weights, return_dict=True
        )
        found = {f"epoch {k}": np.array(v) for k, v in history.history.items()}
        found |= {f"evaluate {k}": np.array(v) for k, v in results.items()}
        outputs = model.predict(x, self.batch, 0)
        outputs = outputs if isinstance(outputs, list) else [outputs]
        found |= {f"predict {i}": y for i, y in enumerate(outputs)}
        found["weights"] = model.store.values.copy()
        found["frozen"] = model.store.frozen.copy()
        return found


class _Killed(Exception):
    pass


class _Kill(fs.callbacks.Callback):
    """Ends the process after so many steps, as it seems."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.steps -= 1
        if not self.steps:
            raise _Killed


class _Again:
    """An iterable that starts anew."""

    def __init__(self, make: Callable[[], Iterator[Any]]) -> None:
        self.make = make

    def __iter__(self) -> Iterator[Any]:
        return self.make()


@pytest.mark.parametrize("seed", range(20))
def test_the_same_on_any_number_of_ranks(seed: int) -> None:
    case = Case(seed)
    tolerance = 1e-4 if case.exact else 1e-7
    alone = run_threads(1, case.train)[0]
    for ranks in (2, 3):
        for found in run_threads(ranks, case.train):
            for name, value in alone.items():
                if case.exact and not name.startswith("predict"):
                    np.testing.assert_array_equal(found[name], value, f"{name} {case}")
                else:
                    np.testing.assert_allclose(
                        found[name],
                        value,
                        tolerance,
                        tolerance,
                        err_msg=f"{name} {case}",
                    )


@pytest.mark.parametrize("seed", range(100, 108))
def test_the_same_bits_after_a_restart(seed: int, tmp_path: Path) -> None:
    case, steps = Case(seed), 2 + seed % 3
    ranks = 1 + seed % 2

    def backup() -> Any:
        return fs.callbacks.BackupAndRestore(str(tmp_path / "backup"), save_freq=1)

    def killed(comm: Communicator) -> None:
        case.train(comm, backup(), _Kill(steps))

    whole = run_threads(ranks, case.train)[0]
    with pytest.raises(_Killed):
        run_threads(ranks, killed)
    found = run_threads(ranks, lambda comm: case.train(comm, backup()))[0]
    for name, value in whole.items():
        last = slice(-len(found[name]) if name.startswith("epoch") else None, None)
        wanted = value[last] if value.ndim else value
        np.testing.assert_array_equal(found[name], wanted, f"{name} {case}")


def conv_over_time(loss: Any) -> Any:
    """Return a model whose outputs have fewer places than its inputs."""
    model = fs.models.Sequential(
        [fs.Input((None,)), L.Embedding(6, 4), L.Conv1D(4, 3, activation="softmax")],
        seed=2,
    )
    model.compile(fs.optimizers.SGD(1e-30), loss, metrics=["accuracy"])
    return model


def masked_lstm(loss: Any) -> Any:
    start = fs.Input((TIME,))
    x = L.Embedding(6, 4, mask_zero=True)(start)
    x = L.Dense(CLASSES, "softmax")(L.LSTM(4, return_sequences=True)(x))
    model = fs.Model(start, x, seed=2)
    model.compile(fs.optimizers.SGD(1e-30), loss, metrics=["accuracy"])
    return model


@pytest.mark.parametrize("make", [conv_over_time, masked_lstm])
@pytest.mark.parametrize("ignored", [None, 1])
@pytest.mark.parametrize("reduction", ["sum", "sum_over_batch_size"])
@pytest.mark.parametrize("micro_batch", [None, 2])
def test_training_and_evaluation_mean_the_same_by_a_loss(
    make: Callable[[Any], Any], ignored: Any, reduction: str, micro_batch: int | None
) -> None:
    rng = np.random.default_rng(3)
    x = rng.integers(0, 6, (ROWS, TIME))
    y = rng.integers(0, CLASSES, (ROWS, TIME if make is masked_lstm else TIME - 2))

    def program(comm: Communicator) -> list[Any]:
        loss = fs.losses.SparseCategoricalCrossentropy(
            ignore_class=ignored, reduction=reduction
        )
        model = make(loss)
        model.options = Options(micro_batch=micro_batch)
        seen = model.fit(x, y, 7, 1, 0, shuffle=False).history
        return [model.evaluate(x, y, 7, 0), [seen["loss"][0], seen["accuracy"][0]]]

    for ranks in (1, 3):
        for evaluated, trained in run_threads(ranks, program):
            np.testing.assert_allclose(trained, evaluated, 1e-5)


def test_gradients_of_outputs_shorter_than_the_inputs() -> None:
    """Their number isn't that of the inputs' places."""
    rng = np.random.default_rng(3)
    x, y = rng.integers(0, 6, (8, 7)), rng.integers(0, CLASSES, (8, 5))
    steps = {}
    for length in (None, 7):
        model = fs.models.Sequential(
            [fs.Input((length,)), L.Embedding(6, 4), L.Conv1D(4, 3)], seed=2
        )
        loss = fs.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(fs.optimizers.SGD(0.1), loss)
        model.train_on_batch(x, y)
        steps[length] = model.store.values.copy()
    np.testing.assert_array_equal(steps[None], steps[7])


def test_states_of_a_model_with_several_outputs_go_on_once_a_step() -> None:
    rng = np.random.default_rng(3)
    x, y = rng.integers(0, 6, (8, TIME)), rng.standard_normal((8, TIME, 1))
    trained = []
    for loss_weights in (None, [1.0]):  # these make it one of several outputs
        start = fs.Input((TIME,))
        h = L.Embedding(6, 4, mask_zero=True)(start)
        h = L.LSTM(4, return_sequences=True, stateful=True)(h)
        model = fs.Model(start, L.Dense(1)(h), seed=2)
        model.compile(fs.optimizers.SGD(0.1), "mse", loss_weights=loss_weights)
        model.fit(x, y, 4, 3, 0, shuffle=False)
        trained.append(model.store.values.copy())
    np.testing.assert_allclose(trained[0], trained[1], 1e-5, 1e-6)


@pytest.mark.parametrize("ranks", [1, 2])
def test_generators_of_texts(ranks: int) -> None:
    """Each rank makes its own strings: they are compared, not their addresses."""

    def batches() -> Iterator[Any]:
        for i in range(3):
            yield np.array([f"a b{i}", "b", "a"]), np.array([0, 1, 0])

    def program(comm: Communicator) -> tuple[Any, Any]:
        vectors = L.TextVectorization(vocabulary=["a", "b"], output_sequence_length=3)
        model = fs.models.Sequential(
            [vectors, L.Embedding(5, 3), L.Flatten(), L.Dense(2, "softmax")], seed=2
        )
        model.compile("sgd", "sparse_categorical_crossentropy")
        seen = model.fit(batches(), class_weight={1: 2.0}, verbose=0).history["loss"]
        return seen, model.predict(batches(), verbose=0)

    for seen, outputs in run_threads(ranks, program):
        assert np.isfinite(seen[0])
        assert outputs.shape == (9, 2)


def test_counts_below_one_are_refused() -> None:
    model = conv_over_time("sparse_categorical_crossentropy")
    x, y = np.ones((4, 5), int), np.ones((4, 3), int)
    for call in (
        lambda: model.predict(x, steps=0),
        lambda: model.predict(x, batch_size=0),
        lambda: model.evaluate(x, y, steps=0),
        lambda: model.fit(x, y, batch_size=0),
    ):
        with pytest.raises(fs.errors.ArgumentError, match="of 1 or more"):
            call()
