"""Losses: values, gradients and reductions against numbers that Keras gave."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import keras_cases as cases
import numpy as np
import pytest

import fastserve as fs
from fastserve import losses, metrics
from fastserve.comm import run_threads
from fastserve.errors import ArgumentError, DataError, ShapeError, UnknownNameError
from fastserve.training.step import Options

REFERENCE = np.load(Path(__file__).parent / "references" / "numbers_losses.npz")

UNEVEN = {"ctc", "dice features"}  # small arrays for each time; a transposed copy


def inputs(case: str, **options: Any) -> tuple[Any, Any]:
    _, _, targets, predictions = cases.LOSSES[case]
    y, x = cases.loss_inputs(targets, predictions, **options)
    y.flags.writeable = x.flags.writeable = False
    return y, x


def make(case: str, **more: Any) -> losses.Loss:
    kind, arguments, *_ = cases.LOSSES[case]
    made: losses.Loss = getattr(losses, kind)(**arguments, **more)
    return made


@pytest.mark.parametrize("case", cases.LOSSES)
def test_values_are_kerass(case: str) -> None:
    y, x = inputs(case)
    each = make(case, reduction=None)(y, x)
    expected = REFERENCE[f"{case}/each"]
    assert np.shape(each) == expected.shape
    np.testing.assert_allclose(each, expected, 1e-5, 1e-6)
    loss = make(case)
    assert loss(y, x) == pytest.approx(REFERENCE[f"{case}/mean"], rel=1e-5)
    if case in cases.WHOLE:  # what is trained is the mean over the samples
        assert make(case, reduction="sum")(y, x) == pytest.approx(len(x) * loss(y, x))
    else:
        total = make(case, reduction="sum")(y, x)
        assert total == pytest.approx(REFERENCE[f"{case}/sum"], rel=1e-5)
    weights = cases.loss_weights((len(x),))
    weighted = loss(y, x, weights)
    assert weighted == pytest.approx(REFERENCE[f"{case}/weighted"], rel=1e-5)
    if f"{case}/weighted mean" in REFERENCE:
        mean = make(case, reduction="mean_with_sample_weight")(y, x, weights)
        assert mean == pytest.approx(REFERENCE[f"{case}/weighted mean"], rel=1e-5)


@pytest.mark.parametrize("case", cases.LOSSES)
def test_gradients_are_kerass(case: str) -> None:
    y, x = inputs(case)
    dy = np.full_like(x, np.nan)
    make(case).sum_and_gradient(y, x, None, 0.5, dy)
    share = 0.5 * (len(x) if case in cases.WHOLE else 1)
    np.testing.assert_allclose(
        dy, share * REFERENCE[f"{case}/gradient"], 1e-5, share * 2e-6
    )


@pytest.mark.parametrize("case", cases.LOSSES)
def test_gradient_along_a_direction(case: str) -> None:
    y, x = inputs(case)
    x = x.astype(np.float64)
    loss, rng = make(case), np.random.default_rng(0)
    w = rng.random(len(x))
    dy = np.empty_like(x)
    loss.sum_and_gradient(y, x, w, 1.0, dy)
    for _ in range(2):
        d = rng.standard_normal(x.shape)
        d /= np.linalg.norm(d)
        up = loss.sum_and_gradient(y, x + 1e-6 * d, w)
        down = loss.sum_and_gradient(y, x - 1e-6 * d, w)
        near = pytest.approx((up - down) / 2e-6, rel=1e-5, abs=1e-7)
        assert (dy * d).sum() == near


@pytest.mark.parametrize("case", [c for c in cases.LOSSES if c not in cases.WHOLE])
def test_sums_of_parts_are_the_sum_of_the_whole(case: str) -> None:
    y, x = inputs(case)
    w, loss = cases.loss_weights((len(x),)), make(case)
    whole, parts, added = np.empty_like(x), np.empty_like(x), 0.0
    total = loss.sum_and_gradient(y, x, w, 0.25, whole)
    for part in (slice(0, 1), slice(1, 1), slice(1, 4)):
        added += loss.sum_and_gradient(y[part], x[part], w[part], 0.25, parts[part])
    assert added == pytest.approx(total, rel=1e-6)
    np.testing.assert_allclose(parts, whole, 1e-5, 1e-7)


@pytest.mark.parametrize("case", cases.LOSSES)
@pytest.mark.parametrize("size", [0.0, 1e-30, 1e4])
def test_extreme_predictions_give_numbers(case: str, size: float) -> None:
    _, _, _, predictions = cases.LOSSES[case]
    y, x = inputs(case)
    x = x * np.float32(size)
    if predictions != "real":
        x = np.clip(x, 0, 1)
        if predictions == "soft":
            x[..., 0] = 1  # rows that sum to 0 aren't probabilities
    dy = np.empty_like(x)
    total = make(case).sum_and_gradient(y, x, None, 1.0, dy)
    assert np.isfinite(total)
    assert np.isfinite(dy).all()


@pytest.mark.parametrize("case", [c for c in cases.LOSSES if c not in UNEVEN])
def test_less_than_64_kB_are_allocated_after_the_first_call(case: str) -> None:
    y, x = inputs(case, shape=(40, 100, 100))
    loss, dy = make(case), np.empty_like(x)
    for _ in range(2):
        loss.sum_and_gradient(y, x, None, 1.0, dy)
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    loss.sum_and_gradient(y, x, None, 1.0, dy)
    peak = tracemalloc.get_traced_memory()[1] - before
    tracemalloc.stop()
    assert peak < 64 << 10, peak


@pytest.mark.parametrize(
    ("loss", "y", "shape", "words"),
    [
        (losses.CTC(), [[1, 0, 2]], (5, 4), "labels in 1..3, then zeros"),
        (losses.CTC(), [[4, 0, 0]], (5, 4), "4 at sample 0, position 0"),
        (losses.CTC(), [1, 2], (5, 4), "pad the labels"),
        (losses.CTC(), [[1, 2]], (4,), r"outputs \(samples, time, classes\)"),
        (losses.KLDivergence(), [[0.5, np.nan]], (2,), "finite"),
        (losses.BinaryFocalCrossentropy(), [[2, 0]], (2,), "targets in 0..1"),
        (losses.CategoricalFocalCrossentropy(), [1], (3,), "these look like labels"),
        (losses.Dice(), [[1, 0]], (3,), r"shape \(samples, 3\)"),
    ],
)
def test_targets_that_cannot_be_trained_on(
    loss: losses.Loss, y: Any, shape: tuple[int, ...], words: str
) -> None:
    with pytest.raises((DataError, ShapeError), match=words) as error:
        loss.check_targets(np.asarray(y), shape)
    assert len(str(error.value).splitlines()) == 3


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda: losses.Huber(delta=0), "delta above 0"),
        (lambda: losses.BinaryCrossentropy(label_smoothing=1.5), "in 0..1"),
        (
            lambda: losses.SparseCategoricalCrossentropy(label_smoothing=-0.1),
            "in 0..1",
        ),
        (lambda: losses.BinaryCrossentropy(axis=1), "axis=-1, the last"),
        (lambda: losses.MeanSquaredError("average"), "reduction"),
        (lambda: losses.Tversky(alpha=-1), "alpha of 0 or more"),
        (lambda: losses.Dice(axis=(0, 1))([[1]], np.ones((1, 1))), "axes of the sam"),
        (lambda: losses.Dice().check_training(True), "one rank without micro-batches"),
        (
            lambda: losses.Poisson(reduction=None).check_training(False),
            "training knows",
        ),
    ],
)
def test_arguments_that_are_refused(wrong: Any, words: str) -> None:
    with pytest.raises((ArgumentError, UnknownNameError), match=words) as error:
        wrong()
    assert len(str(error.value).splitlines()) == 3


def test_a_sequence_too_short_for_its_labels_is_finite() -> None:
    x, dy = np.zeros((1, 2, 4), np.float32), np.empty((1, 2, 4), np.float32)
    total = losses.CTC().sum_and_gradient([[1, 1, 1]], x, None, 1.0, dy)
    assert 9e4 < total < 1e6
    assert np.isfinite(dy).all()


def test_functions_and_names() -> None:
    y, x = inputs("mse")
    each = losses.mean_squared_error(y, x)
    np.testing.assert_allclose(each, REFERENCE["mse/each"], 1e-5)
    near = losses.huber(y, x, delta=0.4)
    np.testing.assert_allclose(near, REFERENCE["huber 0.4/each"], 1e-5)
    assert type(losses.get(losses.kl_divergence)) is losses.KLDivergence
    for name, cls in {
        "kld": losses.KLDivergence,
        "MAPE": losses.MeanAbsolutePercentageError,
        "huber": losses.Huber,
        "Huber": losses.Huber,
        "log_cosh": losses.LogCosh,
        "ctc": losses.CTC,
        "CTC": losses.CTC,
        "squared_hinge": losses.SquaredHinge,
        "binary_focal_crossentropy": losses.BinaryFocalCrossentropy,
    }.items():
        assert type(losses.get(name)) is cls


def test_ignored_labels_do_not_count() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((4, 3, 5)).astype(np.float32)
    y = rng.integers(0, 5, (4, 3))
    y[0, 1], y[2] = -1, -1
    w = np.arange(1, 5) / 4
    make = losses.SparseCategoricalCrossentropy
    loss = make(from_logits=True, ignore_class=-1)
    assert loss(y, x) == pytest.approx(1.9907957, rel=1e-6)  # Keras'
    assert loss(y, x, w) == pytest.approx(1.3572346, rel=1e-6)
    total = make(True, -1, "sum")(y, x)
    assert total == pytest.approx(15.9263668, rel=1e-6)
    each = make(True, -1, None)(y, x)
    assert each.shape == y.shape and not each[y == -1].any()
    dy = np.empty_like(x)
    loss.sum_and_gradient(y, x, None, 1.0, dy)
    assert not dy[y == -1].any() and dy[y != -1].any(axis=-1).all()
    loss.check_targets(y, (3, 5))
    with pytest.raises(DataError, match="label -2"):
        loss.check_targets(np.where(y == -1, -2, y), (3, 5))
    assert metrics.MeanLoss(loss)(y, x) == pytest.approx(1.9907957, rel=1e-6)


@pytest.mark.parametrize("case", ["cce smoothed", "cce logits smoothed"])
def test_smoothed_labels_are_as_kerass_smoothed_rows(case: str) -> None:
    one_hot, x = inputs(case)
    y, arguments = one_hot.argmax(-1), cases.LOSSES[case][1]
    make = losses.SparseCategoricalCrossentropy
    each = make(**arguments, reduction=None)(y, x)
    np.testing.assert_allclose(each, REFERENCE[f"{case}/each"], 1e-5, 1e-6)
    dy = np.full_like(x, np.nan)
    make(**arguments).sum_and_gradient(y, x, None, 0.5, dy)
    np.testing.assert_allclose(dy, 0.5 * REFERENCE[f"{case}/gradient"], 1e-5, 1e-6)
    of_a_job = losses.get({"SparseCategoricalCrossentropy": arguments})
    assert of_a_job(y, x) == pytest.approx(REFERENCE[f"{case}/mean"], rel=1e-5)


def test_ignored_labels_are_not_smoothed() -> None:
    x = np.random.default_rng(2).standard_normal((6, 5)).astype(np.float32)
    y = np.array([0, -1, 4, 2, -1, 3])
    keep, arguments = y != -1, {"from_logits": True, "label_smoothing": 0.2}
    loss = losses.SparseCategoricalCrossentropy(ignore_class=-1, **arguments)
    alone = losses.SparseCategoricalCrossentropy(**arguments)
    assert loss(y, x) == pytest.approx(alone(y[keep], x[keep]), rel=1e-6)
    dy = np.full_like(x, np.nan)
    loss.sum_and_gradient(y, x, None, 1.0, dy)
    assert not dy[~keep].any() and dy[keep].all()


def test_training_with_ignored_labels_is_that_without_them() -> None:
    rng = np.random.default_rng(1)
    x = rng.standard_normal((12, 4, 6)).astype(np.float32)
    y = rng.integers(0, 3, (12, 4))
    keep = rng.random((12, 4)) < 0.6

    def trained(ignored: bool) -> Any:
        model = fs.Sequential(
            [fs.layers.Dense(3, "softmax", input_shape=(6,) if not ignored else (4, 6))]
        )
        loss = losses.SparseCategoricalCrossentropy(ignore_class=7 if ignored else None)
        model.compile(fs.optimizers.SGD(0.5), loss)
        model.options = Options(micro_batch=3 if ignored else None)
        given = (x, np.where(keep, y, 7)) if ignored else (x[keep], y[keep])
        history = model.fit(*given, len(given[0]), epochs=3, verbose=0, shuffle=False)
        value = model.evaluate(*given, batch_size=5, verbose=0)
        return history.history["loss"], value, model.get_weights()[0]

    plain = trained(False)
    for ranks in (1, 3):
        found = run_threads(ranks, lambda comm: trained(True))[0]
        for one, other in zip(found, plain, strict=True):
            np.testing.assert_allclose(one, other, 1e-5, 1e-6)
