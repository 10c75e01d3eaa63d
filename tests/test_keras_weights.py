"""Regularizers, constraints, and trainings with them, against Keras' numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras_cases as cases
import numpy as np
import pytest

import fastserve as fs
from fastserve.comm import Communicator, run_threads
from fastserve.core import constraints, regularizers
from fastserve.errors import FastserveError
from fastserve.models.serialization import layer_config, layer_from_config
from fastserve.training.step import Options

HERE = Path(__file__).parent / "references"
WEIGHTS = np.load(HERE / "numbers_weights.npz")
TRAININGS = np.load(HERE / "numbers_trainings.npz")


def made(module: Any, case: cases.Case) -> Any:
    kind, arguments = case
    return getattr(module, kind)(**arguments)


@pytest.mark.parametrize("case", cases.REGULARIZERS)
def test_regularizer_is_kerass(case: str) -> None:
    regularizer = made(regularizers, cases.REGULARIZERS[case])
    w = cases.weight()
    w.flags.writeable = False
    assert regularizer(w) == pytest.approx(float(WEIGHTS[f"{case}/penalty"]), rel=1e-5)
    grad = np.ones_like(w)
    regularizer.add_gradient(w, grad)
    np.testing.assert_allclose(grad - 1, WEIGHTS[f"{case}/gradient"], 1e-4, 1e-6)


@pytest.mark.parametrize("case", cases.CONSTRAINTS)
def test_constraint_is_kerass(case: str) -> None:
    constraint = made(constraints, cases.CONSTRAINTS[case])
    changed = constraint(cases.weight())
    np.testing.assert_allclose(changed, WEIGHTS[f"{case}/value"], 1e-5, 1e-6)


@pytest.mark.parametrize("ranks", [1, 3])
@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("case", cases.TRAININGS)
def test_training_is_kerass(case: str, ranks: int, sharded: bool) -> None:
    reduction, penalties, rules = cases.TRAININGS[case]
    x, y, sample_weight, kernel = cases.training_inputs()

    def program(comm: Communicator) -> tuple[Any, ...]:
        options = {
            f"{name}_regularizer": made(regularizers, c)
            for name, c in penalties.items()
        } | {f"{name}_constraint": made(constraints, c) for name, c in rules.items()}
        model = fs.Sequential([fs.layers.Dense(4, input_shape=(6,), **options)])
        model.options = Options(shard_optimizer=sharded)
        model.set_weights([kernel, np.zeros(4, np.float32)])
        model.compile(
            fs.optimizers.SGD(0.02),
            fs.losses.MeanSquaredError(reduction),
            metrics=["mae"],
            weighted_metrics=["mae"],
        )
        data = {"batch_size": 4, "sample_weight": sample_weight, "verbose": 0}
        history = model.fit(x, y, epochs=3, shuffle=False, **data).history
        measured = model.evaluate(x, y, return_dict=True, **data)
        return history, measured, *model.get_weights()

    history, measured, *weights = run_threads(ranks, program)[0]
    for name, values in history.items():
        expected = TRAININGS[f"{case}/history/{name}"]
        np.testing.assert_allclose(values, expected, 2e-5, err_msg=name)
    for name, value in measured.items():
        expected = TRAININGS[f"{case}/evaluate/{name}"]
        assert value == pytest.approx(float(expected), rel=2e-5), name
    for name, value in zip(("kernel", "bias"), weights, strict=True):
        np.testing.assert_allclose(value, TRAININGS[f"{case}/{name}"], 1e-5, 1e-5)


def test_names_arguments_and_json() -> None:
    assert regularizers.get({"L2": {"l2": 1e-4}}) == regularizers.L2(1e-4)
    assert regularizers.get("L1L2") == regularizers.L1L2()
    assert regularizers.get(regularizers.L1) == regularizers.L1()
    assert regularizers.L1(0.2).get_config() == {"l1": 0.2}
    assert constraints.get({"MaxNorm": {"max_value": 3}}) == constraints.MaxNorm(3)
    saved = {"class_name": "UnitNorm", "config": {"axis": 1}}
    assert constraints.get(saved) == constraints.UnitNorm(1)
    assert constraints.MaxNorm(3).get_config() == {"max_value": 3, "axis": 0}
    for layer in (
        fs.layers.Dense(3, kernel_regularizer={"L1": {"l1": 0.5}}),  # type: ignore[arg-type]
        fs.layers.Embedding(
            7,
            3,
            embeddings_initializer=fs.initializers.HeNormal(seed=2),
            embeddings_regularizer=regularizers.OrthogonalRegularizer(0.1),
            embeddings_constraint=constraints.MinMaxNorm(0.5, axis=1),
        ),
    ):
        again: Any = layer_from_config(layer_config(layer))
        for name, value in vars(layer).items():
            if name.endswith(("_regularizer", "_constraint", "_initializer")):
                assert getattr(again, name) == value


def test_embedding_is_regularized_and_constrained() -> None:
    x = np.array([[1, 2], [3, 3]])
    model = fs.Sequential(
        [
            fs.layers.Embedding(
                5, 4, embeddings_regularizer="l2", embeddings_constraint="unit_norm"
            ),
            fs.layers.Flatten(),
            fs.layers.Dense(1),
        ]
    )
    model.compile("sgd", "mse")
    model.build((2,))
    table = model.get_weights()[0]
    model.root.layers[-1].kernel.value[...] = 0
    loss = model.train_on_batch(x, np.zeros((2, 1)))
    assert loss == pytest.approx(0.01 * np.square(table).sum(), rel=1e-5)
    norms = np.linalg.norm(model.get_weights()[0], axis=0)
    np.testing.assert_allclose(norms, 1, atol=1e-5)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda: regularizers.get({"L2": {"l1": 1}}), "L2: expected arguments"),
        (lambda: regularizers.get({"L2": {}, "L1": {}}), "one regularizer"),
        (lambda: regularizers.OrthogonalRegularizer(mode="both"), "mode"),
        (lambda: regularizers.OrthogonalRegularizer(-1), "0 or more"),
        (lambda: constraints.MaxNorm(-1), "max_value of 0 or more"),
        (
            lambda: fs.Sequential(
                [
                    fs.layers.Dense(
                        2,
                        bias_regularizer="orthogonal_regularizer",
                        input_shape=(2,),
                    )
                ]
            ).build((2,)),
            "a matrix for bias",
        ),
        (
            lambda: fs.layers.Dense(
                2, bias_constraint=constraints.MaxNorm(axis=1)
            ).build_once((2,)),
            "axes that bias has",
        ),
    ],
)
def test_what_is_refused(wrong: Any, words: str) -> None:
    with pytest.raises(FastserveError, match=words) as error:
        wrong()
    assert len(str(error.value).splitlines()) == 3
