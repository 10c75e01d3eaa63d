"""Metrics against numbers that Keras gave, over two batches, and over ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras_cases as cases
import numpy as np
import pytest

import fastserve as fs
from fastserve import metrics
from fastserve.comm import Communicator, run_threads
from fastserve.errors import ArgumentError, FastserveError
from fastserve.training.loop import Later

REFERENCE = np.load(Path(__file__).parent / "references" / "numbers_metrics.npz")


def make(case: str) -> tuple[metrics.Metric, Any, Any, Any]:
    kind, arguments, data = cases.METRICS[case]
    y, x, w = cases.metric_inputs(data)
    for array in (y, x, w):
        array.flags.writeable = False
    return getattr(metrics, kind)(**arguments), y, x, w


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("case", cases.METRICS)
def test_metric_is_kerass(case: str, weighted: bool) -> None:
    metric, y, x, w = make(case)
    for part in cases.BATCHES:
        metric.update_state(y[part], x[part], w[part] if weighted else None)
    result = metric.result()
    expected = REFERENCE[f"{case}/{weighted}"]
    assert np.shape(result) == expected.shape
    np.testing.assert_allclose(result, expected, 1e-5, 1e-6)
    assert isinstance(result, float) or result.dtype == np.float64


@pytest.mark.parametrize("case", cases.METRICS)
def test_states_add_up(case: str) -> None:
    """Parts by three ranks in any order, and none at all, give the same."""
    whole, y, x, w = make(case)
    expected = whole(y, x, w)
    merged, *_ = make(case)
    merged.build(np.shape(y)[1:], np.shape(x)[1:] or (1,))
    for part in (slice(9, 17), slice(0, 4), slice(4, 9), slice(3, 3)):
        rank, *_ = make(case)
        rank.build(np.shape(y)[1:], np.shape(x)[1:] or (1,))
        rank.update(y[part], x[part], w[part])
        assert rank.state.dtype == np.float64
        merged.state += rank.state
    np.testing.assert_allclose(merged.result(), expected, 1e-6, 1e-9)
    merged.reset_state()
    assert not merged.state.any()
    assert not np.isnan(merged.result()).any()


def trained(ranks: int, **options: Any) -> tuple[Any, Any]:
    """Return history and evaluation of a model with metrics of all kinds."""

    def program(comm: Communicator) -> tuple[Any, Any]:
        rng = np.random.default_rng(0)
        x = rng.standard_normal((37, 6)).astype(np.float32)
        y = (x @ rng.standard_normal((6, 3))).argmax(axis=1)
        w = rng.random(37).astype(np.float32)
        model = fs.models.Sequential(
            [fs.layers.Dense(3, "softmax", input_shape=(6,))], seed=2
        )
        model.compile(
            fs.optimizers.SGD(0.1),
            "sparse_categorical_crossentropy",
            metrics=[
                "accuracy",
                metrics.F1Score("macro"),
                metrics.F1Score(name="each_f1"),
                metrics.ConfusionMatrix(),
                metrics.MeanIoU(3, sparse_y_pred=False),
            ],
            weighted_metrics=["accuracy", metrics.ConfusionMatrix(normalize="true")],
        )
        history = model.fit(x, y, 8, epochs=2, verbose=0, sample_weight=w)
        found = model.evaluate(x, y, 8, 0, sample_weight=w, return_dict=True)
        listed = model.evaluate(x, y, 8, 0, sample_weight=w)
        for one, other in zip(listed, found.values(), strict=True):
            np.testing.assert_array_equal(one, other)
        p = model.predict(x).argmax(axis=1)
        assert found["accuracy"] == pytest.approx((p == y).mean())
        hits = w * (p == y)
        assert found["weighted_accuracy"] == pytest.approx(hits.sum() / w.sum())
        counts = np.zeros((3, 3))
        np.add.at(counts, (y, p), 1)
        np.testing.assert_array_equal(found["confusion_matrix"], counts)
        return history.history, found

    results = run_threads(ranks, program)
    return results[0]


def test_training_counts_over_ranks_and_evaluate_returns_arrays() -> None:
    history, found = trained(1)
    assert list(found) == [
        "loss",
        "accuracy",
        "f1_score",
        "each_f1",
        "confusion_matrix",
        "mean_io_u",
        "weighted_accuracy",
        "weighted_confusion_matrix",
    ]
    assert list(history) == [k for k in found if k[:4] not in ("each", "conf")][:5]
    assert found["each_f1"].shape == (3,)
    assert found["f1_score"] == pytest.approx(found["each_f1"].mean())
    other_history, other = trained(3)
    for name, value in found.items():
        np.testing.assert_allclose(other[name], value, 1e-5, err_msg=name)
    for name, values in history.items():
        np.testing.assert_allclose(other_history[name], values, 1e-5, err_msg=name)


def test_names_that_are_known() -> None:
    binary = fs.losses.BinaryCrossentropy(from_logits=True)
    for name, cls in {
        "auc": metrics.AUC,
        "AUC": metrics.AUC,
        "precision": metrics.Precision,
        "Recall": metrics.Recall,
        "f1_score": metrics.F1Score,
        "rmse": metrics.RootMeanSquaredError,
        "RootMeanSquaredError": metrics.RootMeanSquaredError,
        "r2_score": metrics.R2Score,
        "cosine_similarity": metrics.CosineSimilarity,
        "confusion_matrix": metrics.ConfusionMatrix,
        "binary_io_u": metrics.BinaryIoU,
        "hinge": metrics.MeanLoss,
        "kld": metrics.MeanLoss,
    }.items():
        made = metrics.get(name, fs.losses.get("mse"), (1,), (1,))
        assert type(made) is cls and made.name == name
    y, z = np.array([0, 0, 1, 1]), np.array([[-1.0], [0.2], [0.3], [2.0]])
    precision = metrics.get("precision", binary, (), (1,))
    assert precision(y, z) == pytest.approx(2 / 3)
    assert metrics.get("auc", binary, (), (1,))(y, z) == 1.0
    plain = metrics.get(fs.losses.mean_absolute_error, binary, (), (1,))
    assert type(plain) is metrics.MeanLoss and plain.name == "mean_absolute_error"


def test_mean_and_sum_of_plain_values() -> None:
    mean, total = metrics.Mean(), metrics.Sum()
    mean.update_state([1, 3, 5, 7], sample_weight=[1, 1, 0, 0])
    assert mean.result() == 2.0
    mean.reset_state()
    assert mean([[1.0, 3.0], [5.0, 7.0]]) == 4.0
    assert total([1, 3, 5, 7], sample_weight=[1, 1, 0, 0]) == 4.0
    assert total(2.5) == 6.5
    with pytest.raises(ArgumentError, match="targets and predictions"):
        mean.update([1], [1])


@pytest.mark.parametrize("normalize", [None, "true", "pred", "all"])
def test_confusion_matrix(normalize: str | None) -> None:
    y, x = np.array([0, 0, 1, 1, 1]), np.array([[0.2], [0.7], [0.9], [0.6], [0.1]])
    counts = np.array([[1.0, 1.0], [1.0, 2.0]])
    sums = {
        None: 1,
        "true": counts.sum(1, keepdims=True),
        "pred": counts.sum(0),
        "all": 5,
    }
    matrix = metrics.ConfusionMatrix(normalize=normalize)
    np.testing.assert_allclose(matrix(y, x), counts / sums[normalize])
    three = metrics.ConfusionMatrix(3)
    one_hot = three(np.eye(3)[[0, 1, 2]], np.eye(3)[[0, 2, 2]])
    np.testing.assert_array_equal(one_hot, [[1, 0, 0], [0, 0, 1], [0, 0, 1]])


def test_labels_and_predictions_that_are_not_numbers() -> None:
    sparse = metrics.F1Score("macro")([0, 1, 1], np.eye(2)[[0, 1, 0]])
    dense = metrics.F1Score("macro")(np.eye(2)[[0, 1, 1]], np.eye(2)[[0, 1, 0]])
    assert sparse == pytest.approx(dense)
    nan = metrics.Precision()
    assert nan([1, 1], [np.nan, 0.9]) == 1.0
    assert metrics.AUC()([1, 0], [np.nan, 0.9]) == pytest.approx(0.0)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda: metrics.Precision(thresholds=1.5), "thresholds in 0..1"),
        (lambda: metrics.Precision(top_k=0), "top_k of 1 or more"),
        (lambda: metrics.Recall(class_id=3)([[1, 0]], [[0.1, 0.2]]), "class_id below"),
        (lambda: metrics.AUC(curve="KS"), "auc curve"),
        (lambda: metrics.AUC(num_thresholds=1), "num_thresholds of 2"),
        (lambda: metrics.AUC(num_labels=3), "without multi_label"),
        (lambda: metrics.F1Score("mean"), "average"),
        (lambda: metrics.FBetaScore(beta=0.0), "beta above 0"),
        (lambda: metrics.FBetaScore(threshold=2.0), "up to 1, or None"),
        (lambda: metrics.IoU(2, [2]), r"target_class_ids in 0..1"),
        (lambda: metrics.MeanIoU(2)([1], [[0.1, 0.9]]), "sparse_y_pred=False"),
        (lambda: metrics.R2Score("mean"), "class_aggregation"),
        (lambda: metrics.PrecisionAtRecall(1.2), "a value in 0..1"),
        (lambda: metrics.MeanLoss(fs.losses.Dice()), "a loss of each sample"),
        (
            lambda: metrics.get_all(["mse", "mse"], [], fs.losses.get("mse"), (), ()),
            "different names",
        ),
    ],
)
def test_what_is_refused(wrong: Any, words: str) -> None:
    with pytest.raises(FastserveError, match=words) as error:
        wrong()
    assert len(str(error.value).splitlines()) == 3


class Counted(metrics.AUC):
    """Counts how often its result is computed."""

    computed = 0

    def result(self) -> float:
        self.computed += 1
        return super().result()


@pytest.mark.parametrize("looks", [False, True])
def test_results_are_computed_for_those_who_look(looks: bool) -> None:
    metric, shown = Counted(), list[float]()
    model = fs.Sequential([fs.Input((4,)), fs.layers.Dense(1, "sigmoid")])
    model.compile("sgd", "binary_crossentropy", metrics=[metric])
    rng = np.random.default_rng(0)
    x, y = rng.random((64, 4)), rng.integers(0, 2, (64, 1))
    look = fs.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: shown.append(logs["auc"])
    )
    own = [fs.callbacks.TerminateOnNaN(), *([look] if looks else [])]
    history = model.fit(x, y, 8, 3, verbose=0, callbacks=own).history
    assert metric.computed == 3 * (8 if looks else 1)
    assert len(history["auc"]) == 3
    if looks:
        assert [shown[7], shown[15], shown[23]] == history["auc"]


def test_logs_of_a_step_are_what_results_gives() -> None:
    model = fs.Sequential([fs.Input((4,)), fs.layers.Dense(1, "sigmoid")])
    model.compile("sgd", "binary_crossentropy", metrics=[metrics.AUC()])
    model.fit(np.ones((8, 4)), np.arange(8) % 2, verbose=0)
    trainer = model.trainer
    assert trainer is not None
    later = Later(trainer)
    assert later
    assert later["loss"] == trainer.results()["loss"]
    assert dict(later) == {**later} == trainer.results()
    assert "auc" in later
    assert "recall" not in later
    assert len(later) == 2
