"""Metrics: Keras' numbers, ties and NaN, weights, merging of states, names."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fastserve import losses, metrics
from fastserve.errors import ArgumentError, DataError, ShapeError, UnknownNameError

MSE = losses.get("mse")
LABELS = losses.SparseCategoricalCrossentropy()


def result(metric, y, x, w=None):
    metric.update(y, x, w)
    return metric.result()


def test_numbers_of_kerass_documentation():
    binary = metrics.BinaryAccuracy()
    assert result(binary, [[1], [1], [0], [0]], [[0.98], [1], [0], [0.6]]) == 0.75
    binary.reset()
    y, x, w = [[1], [1], [0], [0]], [[0.98], [1], [0], [0.6]], [1, 0, 0, 1]
    assert result(binary, y, x, w) == 0.5
    y, x = [[0, 0, 1], [0, 1, 0]], [[0.1, 0.9, 0.8], [0.05, 0.95, 0]]
    assert result(metrics.CategoricalAccuracy(), y, x) == 0.5
    assert result(metrics.CategoricalAccuracy(), y, x, [0.7, 0.3]) == pytest.approx(0.3)
    y, x = [[2], [1]], [[0.1, 0.6, 0.3], [0.05, 0.95, 0]]
    assert result(metrics.SparseCategoricalAccuracy(), y, x) == 0.5
    weighted = result(metrics.SparseCategoricalAccuracy(), y, x, [0.7, 0.3])
    assert weighted == pytest.approx(0.3)
    y, x = [[0, 0, 1], [0, 1, 0]], [[0.1, 0.9, 0.8], [0.05, 0.95, 0]]
    assert result(metrics.TopKCategoricalAccuracy(k=1), y, x) == 0.5
    assert result(metrics.SparseTopKCategoricalAccuracy(k=1), [2, 1], x) == 0.5
    y, x = [[0, 1], [0, 0]], [[1, 1], [0, 0]]
    assert result(metrics.MeanSquaredError(), y, x) == 0.25
    assert result(metrics.MeanSquaredError(), y, x, [1, 0]) == 0.5
    assert result(metrics.MeanAbsoluteError(), y, x) == 0.25
    assert result(metrics.MeanAbsoluteError(), y, x, [1, 0]) == 0.5


def test_binary_accuracy_at_the_threshold_and_nan():
    x = [[0.5, 0.7], [math.nan, 0.4]]
    assert result(metrics.BinaryAccuracy(), [[0, 1], [0, 1]], x) == 0.75
    assert result(metrics.BinaryAccuracy(threshold=0.7), [[0, 0], [0, 0]], x) == 1.0
    # a row's value is the mean over its last axis
    w = [1, 3]
    half = result(metrics.BinaryAccuracy(), [[0, 1], [1, 0]], x, w)
    assert half == pytest.approx((1 * 1 + 3 * 0.5) / 4)


def test_accuracy_takes_the_first_of_equal_values_and_nan():
    x = np.array([[0.4, 0.4, 0.2], [0.1, np.nan, 0.9]])
    sparse = metrics.SparseCategoricalAccuracy
    assert result(sparse(), [0, 1], x) == 1.0
    assert result(sparse(), [1, 2], x) == 0.0
    one_hot = np.eye(3)[[0, 2]]
    assert result(metrics.CategoricalAccuracy(), one_hot, x) == 0.5


def test_top_k_takes_all_of_equal_values():
    x = np.array([[0.3, 0.2, 0.2, 0.2, 0.1]])
    for label, least in ((0, 1), (1, 2), (2, 2), (3, 2), (4, 5)):
        for k in (1, 2, 3, 4, 5, 9):
            expected = float(k >= least)
            assert result(metrics.SparseTopKCategoricalAccuracy(k), [label], x) == (
                expected
            )
            dense = metrics.TopKCategoricalAccuracy(k)
            assert result(dense, np.eye(5)[[label]], x) == expected


def test_top_k_with_nan():
    x = np.array([[np.nan, 0.2, 0.1]])
    assert result(metrics.SparseTopKCategoricalAccuracy(3), [0], x) == 0.0
    assert result(metrics.SparseTopKCategoricalAccuracy(1), [1], x) == 1.0
    with pytest.raises(DataError, match="label 3 at sample 0"):
        metrics.SparseTopKCategoricalAccuracy(3).update([3], x)
    with pytest.raises(ArgumentError, match="k of 1 or more"):
        metrics.TopKCategoricalAccuracy(0)


def test_perplexity():
    p = np.array([[[0.5, 0.25, 0.25], [0.1, 0.8, 0.1]]])
    y = np.array([[1, 1]])
    expected = math.exp(-(math.log(0.25) + math.log(0.8)) / 2)
    assert result(metrics.Perplexity(), y, p) == pytest.approx(expected, rel=1e-9)
    logits = metrics.Perplexity(from_logits=True)
    assert result(logits, y, np.log(p) + 7) == pytest.approx(expected, rel=1e-9)
    masked = result(metrics.Perplexity(), y, p, np.array([[1, 0]]))
    assert masked == pytest.approx(4.0, rel=1e-9)
    huge = metrics.Perplexity(from_logits=True)
    assert result(huge, [0], np.array([[-5000.0, 0.0]])) == math.inf
    lost = metrics.Perplexity(from_logits=True)
    assert math.isnan(result(lost, [0], np.array([[math.nan, 0.0]])))


def make_all():
    return [
        (metrics.BinaryAccuracy(), "binary"),
        (metrics.CategoricalAccuracy(), "one_hot"),
        (metrics.SparseCategoricalAccuracy(), "labels"),
        (metrics.TopKCategoricalAccuracy(2), "one_hot"),
        (metrics.SparseTopKCategoricalAccuracy(2), "labels"),
        (metrics.Perplexity(), "labels"),
        (metrics.MeanSquaredError(), "one_hot"),
        (metrics.MeanAbsoluteError(), "one_hot"),
        (metrics.get("bce", MSE, (), ()), "one_hot"),
        (metrics.FunctionMetric(lambda y, x: x[..., 0]), "labels"),
    ]


@pytest.mark.parametrize("weighting", [None, "samples", "rows"])
@pytest.mark.parametrize("index", range(10))
def test_states_of_parts_add_up_to_the_whole(index, weighting):
    rng = np.random.default_rng(index)
    n, t, c = 23, 4, 6
    x = rng.random((n, t, c)).astype(np.float32)
    labels = rng.integers(0, c, (n, t))
    y = {
        "labels": labels,
        "one_hot": np.eye(c)[labels],
        "binary": rng.integers(0, 2, (n, t, c)),
    }[make_all()[index][1]]
    w = None if weighting is None else rng.random((n, t))
    w = w[:, 0] if weighting == "samples" else w
    function = isinstance(make_all()[index][0], metrics.FunctionMetric)
    if function and weighting == "rows":
        w = w.mean(axis=1)
    for array in (x, y, w):
        if array is not None:
            array.flags.writeable = False
    whole = make_all()[index][0]
    expected = result(whole, y, x, w)
    ranks = [make_all()[index][0] for _ in range(3)]
    parts = [slice(0, 9), slice(9, 10), slice(10, 10), slice(10, 23)]
    for i, part in enumerate(parts):
        ranks[i % 3].update(y[part], x[part], None if w is None else w[part])
    merged = make_all()[index][0]
    for rank in ranks:
        assert rank.state.dtype == np.float64
        merged.state += rank.state
    np.testing.assert_allclose(merged.state, whole.state, rtol=1e-6)
    assert merged.result() == pytest.approx(expected, rel=1e-6)
    merged.reset()
    assert merged.state.tolist() == [0, 0]


def test_the_mean_of_nothing_is_zero():
    for metric, _ in make_all():
        assert metric.result() == (1.0 if metric.name == "perplexity" else 0.0)
    empty = metrics.SparseCategoricalAccuracy()
    assert result(empty, np.empty(0, int), np.empty((0, 3))) == 0.0
    assert result(empty, [1], [[0.1, 0.9]], [0.0]) == 0.0


def test_against_plain_formulas():
    rng = np.random.default_rng(5)
    x, labels, w = rng.random((50, 7)), rng.integers(0, 7, 50), rng.random(50)
    order = np.argsort(-x, axis=1)
    for k in (1, 3):
        hit = (order[:, :k] == labels[:, None]).any(1)
        top = metrics.SparseTopKCategoricalAccuracy(k)
        assert result(top, labels, x, w) == pytest.approx((hit * w).sum() / w.sum())
    mean = (w * ((x - 0.5) ** 2).mean(1)).sum() / w.sum()
    squared = metrics.MeanSquaredError()
    assert result(squared, np.full_like(x, 0.5), x, w) == pytest.approx(mean)


# -- names -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("y_shape", "output", "cls"),
    [
        ((), (1,), metrics.BinaryAccuracy),
        ((1,), (1,), metrics.BinaryAccuracy),
        ((8, 1), (8, 1), metrics.BinaryAccuracy),
        ((), (10,), metrics.SparseCategoricalAccuracy),
        ((1,), (10,), metrics.SparseCategoricalAccuracy),
        ((8,), (8, 10), metrics.SparseCategoricalAccuracy),
        ((None,), (None, 10), metrics.SparseCategoricalAccuracy),
        ((10,), (10,), metrics.CategoricalAccuracy),
        ((8, 10), (8, 10), metrics.CategoricalAccuracy),
    ],
)
def test_accuracy_resolves_by_shape(y_shape, output, cls):
    for name in ("accuracy", "acc"):
        made = metrics.get(name, MSE, y_shape, output)
        assert type(made) is cls
        assert made.name == name


def test_metrics_follow_a_loss_that_takes_logits():
    logits = losses.BinaryCrossentropy(from_logits=True)
    x, y = np.array([[0.2], [-0.2]]), np.array([1, 0])
    assert result(metrics.get("accuracy", logits, (), (1,)), y, x) == 1.0
    plain = losses.BinaryCrossentropy()
    assert result(metrics.get("accuracy", plain, (), (1,)), y, x) == 0.5
    crossed = result(metrics.get("bce", logits, (), (1,)), y, x)
    assert crossed == pytest.approx(logits(y, x))
    squared = metrics.get("mse", logits, (), (1,))
    assert result(squared, y, x) == pytest.approx(MSE(y, x))
    labels = metrics.get("perplexity", LABELS.with_logits(), (), (2,))
    assert result(labels, [0], np.array([[0.0, 0.0]])) == pytest.approx(2.0)


def test_names():
    for name, cls in {
        "binary_accuracy": metrics.BinaryAccuracy,
        "CategoricalAccuracy": metrics.CategoricalAccuracy,
        "sparse_categorical_accuracy": metrics.SparseCategoricalAccuracy,
        "top_k_categorical_accuracy": metrics.TopKCategoricalAccuracy,
        "sparse_top_k_categorical_accuracy": metrics.SparseTopKCategoricalAccuracy,
        "perplexity": metrics.Perplexity,
        "mse": metrics.MeanLoss,
        "mean_absolute_error": metrics.MeanLoss,
    }.items():
        made = metrics.get(name, LABELS, (), (4,))
        assert type(made) is cls
        assert made.name == name
    top = metrics.TopKCategoricalAccuracy(3, name="top3")
    assert metrics.get(top, LABELS, (), (4,)) is top
    assert top.name == "top3"
    by_class = metrics.get(metrics.BinaryAccuracy, LABELS, (), (4,))
    assert by_class.name == "binary_accuracy"
    assert metrics.get(MSE, LABELS, (), (4,)).name == "mean_squared_error"
    with pytest.raises(UnknownNameError, match="did you mean 'accuracy'"):
        metrics.get("acuracy", LABELS, (), (4,))
    with pytest.raises(ArgumentError, match="received: 3"):
        metrics.get(3, LABELS, (), (4,))


def test_a_plain_function():
    def largest(y, x):
        return x.max(axis=-1)

    metric = metrics.get(largest, MSE, (), (2,))
    assert metric.name == "largest"
    assert result(metric, [0, 0], np.array([[1, 2], [5, 0]]), [3, 1]) == 11 / 4
    whole = metrics.get(lambda y, x: x.max(), MSE, (), (2,))
    with pytest.raises(ShapeError, match="expected 2 numbers, one for each sample"):
        whole.update([0, 0], np.array([[1, 2], [5, 0]]))


@pytest.mark.parametrize(
    ("metric", "y", "x", "words"),
    [
        (
            metrics.SparseCategoricalAccuracy(),
            np.eye(3),
            np.eye(3),
            "use categorical_accuracy",
        ),
        (
            metrics.CategoricalAccuracy(),
            [0, 1, 2],
            np.eye(3),
            "use sparse_categorical_accuracy",
        ),
        (metrics.BinaryAccuracy(), np.eye(3), np.eye(3)[:2], "as many targets"),
        (metrics.CategoricalAccuracy(), [[1]], [[1]], "two or more classes"),
    ],
)
def test_shapes_that_do_not_fit(metric, y, x, words):
    with pytest.raises(ShapeError, match=words):
        metric.update(y, x)
    with pytest.raises(ShapeError, match=r"weights of shape \(3,\)"):
        metrics.BinaryAccuracy().update(np.eye(3), np.eye(3), np.ones((3, 3)))
