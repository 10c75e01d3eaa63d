"""Losses: values and gradients against PyTorch, float64 formulas and Keras' numbers."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from fastserve import losses
from fastserve.errors import ArgumentError, DataError, ShapeError, UnknownNameError

REFERENCE = np.load(Path(__file__).parent / "references" / "losses.npz")
ROWS, CLASSES = 7, 5

Sparse = losses.SparseCategoricalCrossentropy
Categorical = losses.CategoricalCrossentropy
Binary = losses.BinaryCrossentropy
CASES = {
    "sparse_logits": (Sparse(from_logits=True), "labels", "logits"),
    "soft_logits": (Categorical(from_logits=True), "soft", "logits"),
    "sparse_probabilities": (Sparse(), "labels", "soft"),
    "binary_logits": (Binary(from_logits=True), "binary", "logits"),
    "binary_probabilities": (Binary(), "binary", "soft"),
    "mse": (losses.MeanSquaredError(), "soft", "logits"),
    "mae": (losses.MeanAbsoluteError(), "soft", "logits"),
}
GRADIENT_CASES = [
    (Sparse(from_logits=True), "labels"),
    (Sparse(), "labels"),
    (Categorical(from_logits=True), "soft"),
    (Categorical(), "soft"),
    (Binary(from_logits=True), "soft"),
    (Binary(), "soft"),
    (losses.MeanSquaredError(), "soft"),
    (losses.MeanAbsoluteError(), "soft"),
]


def frozen(array: np.ndarray) -> np.ndarray:
    array = array.copy()
    array.flags.writeable = False
    return array


def example(kind, shape, rng, dtype=np.float64):
    """Return read-only targets and positive predictions of this shape."""
    soft = rng.random(shape) + 0.1
    soft /= soft.sum(-1, keepdims=True)
    labels = rng.integers(0, shape[-1], shape[:-1])
    x = (0.2 + 0.6 * rng.random(shape)).astype(dtype)
    return frozen(soft if kind == "soft" else labels), frozen(x)


@pytest.mark.parametrize("name", CASES)
def test_value_and_gradient_are_pytorchs(name):
    loss, target, source = CASES[name]
    y, x = frozen(REFERENCE[target]), frozen(REFERENCE[source])
    w, dy = frozen(REFERENCE["weights"]), np.full((ROWS, CLASSES), np.nan, np.float32)
    total = loss.sum_and_gradient(y, x, w, 1.0, dy)
    np.testing.assert_allclose(total, REFERENCE[f"{name}_sum"], rtol=1e-5)
    np.testing.assert_allclose(dy, REFERENCE[f"{name}_grad"], rtol=1e-5, atol=1e-6)
    assert loss.sum_and_gradient(y, x, w) == pytest.approx(total, rel=1e-12)


@pytest.mark.parametrize("shape", [(6, 4), (3, 5, 4)])
@pytest.mark.parametrize("weighting", ["none", "samples", "rows"])
@pytest.mark.parametrize(("loss", "kind"), GRADIENT_CASES, ids=repr)
def test_gradient_along_a_direction(loss, kind, shape, weighting):
    rng = np.random.default_rng(3)
    y, x = example(kind, shape, rng)
    w = {
        "none": None,
        "samples": frozen(rng.random(shape[0])),
        "rows": frozen(rng.random(shape[:-1])),
    }[weighting]
    dy = np.full(shape, np.nan)
    loss.sum_and_gradient(y, x, w, 0.5, dy)
    for _ in range(3):
        d = rng.standard_normal(shape)
        d /= np.linalg.norm(d)
        h = 1e-5
        up = loss.sum_and_gradient(y, x + h * d, w)
        down = loss.sum_and_gradient(y, x - h * d, w)
        slope = 0.5 * (up - down) / (2 * h)
        # the second bound is for directions that happen to be nearly level
        near = pytest.approx(slope, rel=1e-6, abs=1e-7 * np.linalg.norm(dy))
        assert (dy * d).sum() == near


def test_probabilities_that_do_not_sum_to_one_are_normalised():
    x = np.array([[0.2, 0.3, 0.1], [3.0, 1.0, 4.0]])
    expected = -(np.log(0.5) + np.log(4 / 8)) / 2
    assert Sparse()([1, 2], x) == pytest.approx(expected, rel=1e-12)
    one_hot = np.eye(3)[[1, 2]]
    assert Categorical()(one_hot, x) == pytest.approx(expected, rel=1e-12)


def test_numbers_of_kerass_documentation():
    y, x = [1, 2], [[0.05, 0.95, 0], [0.1, 0.8, 0.1]]
    assert Sparse()(y, x) == pytest.approx(1.177, abs=5e-4)
    assert Sparse()(y, x, [0.3, 0.7]) == pytest.approx(0.814, abs=5e-4)
    one_hot = [[0, 1, 0], [0, 0, 1]]
    assert Categorical()(one_hot, x) == pytest.approx(1.177, abs=5e-4)
    y, x = [[0, 1], [0, 0]], [[-18.6, 0.51], [2.94, -12.8]]
    assert Binary(from_logits=True)(y, x) == pytest.approx(0.865, abs=5e-4)
    y, x = [[0, 1], [0, 0]], [[0.6, 0.4], [0.4, 0.6]]
    assert Binary()(y, x) == pytest.approx(0.815, abs=5e-4)
    assert Binary()(y, x, [1, 0]) == pytest.approx(0.458, abs=5e-4)
    assert losses.MeanSquaredError()([[0, 1]], [[1, 3]]) == pytest.approx(2.5)
    assert losses.MeanAbsoluteError()([[0, 1]], [[1, 3]]) == pytest.approx(1.5)


@pytest.mark.parametrize(
    ("loss", "y"), [(Sparse(), [0]), (Categorical(), [[1, 0]]), (Binary(), [[1, 0]])]
)
def test_clipped_probabilities(loss, y):
    """As in Keras: a loss of -log(1e-7) at most, without a gradient beyond."""
    wrong, dy = np.array([[0.0, 1.0]]), np.full((1, 2), np.nan)
    total = loss.sum_and_gradient(y, wrong, None, 1.0, dy)
    assert total == pytest.approx(-np.log(1e-7), rel=1e-6)
    np.testing.assert_array_equal(dy, 0)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("size", [0.01, 3.0, 50.0, 1e4])
@pytest.mark.parametrize("columns", [2, 65, 3000, 70000])
def test_logits_of_any_size(columns, size, dtype):
    rng = np.random.default_rng(columns)
    x = (size * rng.standard_normal((40, columns))).astype(dtype)
    x[3] -= dtype(10 * size)  # rows far away from the others in the same block
    x[5] += dtype(10 * size)
    y = rng.integers(0, columns, 40)
    dy = np.empty_like(x)
    loss = Sparse(from_logits=True)
    total = loss.sum_and_gradient(y, x, None, 1.0, dy)
    x64 = x.astype(np.float64)
    e = np.exp(x64 - x64.max(1, keepdims=True))
    p = e / e.sum(1, keepdims=True)
    top = x64.max(1) - x64[np.arange(40), y]
    expected = (np.log(e.sum(1)) + top).sum()
    np.testing.assert_allclose(total, expected, rtol=1e-6, atol=1e-6)
    p[np.arange(40), y] -= 1
    np.testing.assert_allclose(dy, p, rtol=1e-4, atol=1e-6)
    one_hot = np.zeros_like(x)
    one_hot[np.arange(40), y] = 1
    dense = np.empty_like(x)
    same = Categorical(from_logits=True).sum_and_gradient(one_hot, x, None, 1.0, dense)
    np.testing.assert_allclose(same, expected, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(dense, dy, rtol=1e-4, atol=1e-6)


def test_binary_logits_of_any_size():
    x = np.array([[-1e4, -100, -1, 0, 1, 100, 1e4]], np.float32)
    dy = np.empty_like(x)
    loss = Binary(from_logits=True)
    total = loss.sum_and_gradient(np.ones_like(x), x, None, 7.0, dy)
    small = np.log1p(np.exp(-1.0))
    assert total * 7 == pytest.approx(1e4 + 100 + 1 + 2 * small + np.log(2), rel=1e-6)
    sigmoid = 1 / (1 + np.exp(-np.clip(x.astype(np.float64), -500, 500)))
    np.testing.assert_allclose(dy, sigmoid - 1, atol=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_sums_of_parts_are_the_sum_of_the_whole(name):
    loss, target, source = CASES[name]
    y, x, w = REFERENCE[target], REFERENCE[source], REFERENCE["weights"]
    whole = np.empty_like(x)
    total = loss.sum_and_gradient(y, x, w, 0.25, whole)
    parts, added = np.empty_like(x), 0.0
    for part in (slice(0, 3), slice(3, 3), slice(3, 7)):
        added += loss.sum_and_gradient(y[part], x[part], w[part], 0.25, parts[part])
    assert added == pytest.approx(total, rel=1e-6)
    np.testing.assert_allclose(parts, whole, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_positions_of_sequences_are_rows(name):
    loss, target, _ = CASES[name]
    rng = np.random.default_rng(0)
    shape = (4, 6, CLASSES)
    y, x = example("labels" if target == "labels" else "soft", shape, rng, np.float32)
    w = rng.random(4).astype(np.float32)
    dy, flat = np.empty_like(x), np.empty((24, CLASSES), np.float32)
    total = loss.sum_and_gradient(y, x, w, 1.0, dy)
    rows = y.reshape(24, *y.shape[2:])
    expected = loss.sum_and_gradient(rows, x.reshape(24, -1), w.repeat(6), 1.0, flat)
    assert total == pytest.approx(expected, rel=1e-12)
    np.testing.assert_array_equal(dy.reshape(24, -1), flat)
    assert loss.count(shape) == 24
    assert loss.count((8, 3)) == 8
    assert loss(y, x, w) == pytest.approx(total / 24, rel=1e-12)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.uint64, float])
def test_labels_of_any_type_and_with_a_last_axis_of_one(dtype):
    x = REFERENCE["logits"]
    y = REFERENCE["labels"].astype(dtype)
    loss = Sparse(from_logits=True)
    expected = loss(REFERENCE["labels"], x)
    assert loss(y, x) == expected
    assert loss(y[:, None], x) == expected
    loss.check_targets(y, (CLASSES,))
    loss.check_targets(y[:, None], (CLASSES,))


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, bool, np.float64])
def test_dense_targets_of_any_type(dtype):
    x, y = REFERENCE["logits"], REFERENCE["binary"]
    for loss in (losses.MeanSquaredError(), Binary(from_logits=True)):
        assert loss(y.astype(dtype), x) == pytest.approx(loss(y, x), rel=1e-6)


def test_a_last_axis_of_one_may_be_missing():
    x, y = np.array([[1.0], [4.0]], np.float32), np.array([0.0, 2.0])
    for loss in (losses.MeanSquaredError(), losses.MeanAbsoluteError(), Binary()):
        loss.check_targets(np.array([0.0, 1.0]), (1,))
        assert loss(y[:, None], x) == loss(y, x) == loss(y, x[:, 0])
    assert losses.get("mse")(y, x) == 2.5


def test_an_empty_batch_is_no_loss():
    dy = np.empty((0, 3), np.float32)
    x, y = np.empty((0, 3), np.float32), np.empty(0, int)
    assert Sparse(from_logits=True).sum_and_gradient(y, x, None, 1.0, dy) == 0.0
    assert Sparse()(y, x) == 0.0
    assert losses.get("mse")(x, x) == 0.0


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", CASES)
def test_what_is_not_finite_shows_in_the_sum_without_warnings(name, bad):
    loss, target, source = CASES[name]
    x = REFERENCE[source].copy()
    x[2] = bad
    dy = np.empty_like(x)
    total = loss.sum_and_gradient(REFERENCE[target], x, None, 1.0, dy)
    clipped = name == "binary_probabilities" and not np.isnan(bad)
    assert np.isfinite(total) == clipped


def test_masked_logits_of_minus_infinity():
    x = np.array([[0.0, -np.inf, 0.0]], np.float32)
    dy = np.empty_like(x)
    total = Sparse(from_logits=True).sum_and_gradient([0], x, None, 1.0, dy)
    assert total == pytest.approx(np.log(2), rel=1e-6)
    np.testing.assert_allclose(dy, [[-0.5, 0, 0.5]])


def test_gradient_has_the_type_of_the_predictions():
    x = REFERENCE["logits"]
    loss = losses.get("mse")
    with pytest.raises(ShapeError, match=r"contiguous dy of shape.*float32"):
        loss.sum_and_gradient(x, x, None, 1.0, np.empty(x.shape))
    with pytest.raises(ShapeError, match=r"received: shape \(5, 7\), float32"):
        loss.sum_and_gradient(x, x, None, 1.0, np.empty((5, 7), np.float32))


def test_predictions_need_not_be_contiguous():
    wide = np.random.default_rng(0).standard_normal((6, 10)).astype(np.float32)
    y, dy = np.arange(6) % 5, np.empty((6, 5), np.float32)
    loss, same = Sparse(from_logits=True), np.empty((6, 5), np.float32)
    total = loss.sum_and_gradient(y, wide[:, ::2], None, 1.0, dy)
    assert total == loss.sum_and_gradient(y, wide[:, ::2].copy(), None, 1.0, same)
    np.testing.assert_array_equal(dy, same)


@pytest.mark.parametrize("columns", [3, 65, 20000])
@pytest.mark.parametrize("loss", [c[0] for c in CASES.values()], ids=CASES)
def test_less_than_64_kB_are_allocated_after_the_first_call(loss, columns):
    rng = np.random.default_rng(0)
    kind = "labels" if loss.name.startswith("sparse") else "soft"
    rows = 400_000 // columns // 4
    y, x = example(kind, (rows, 4, columns), rng, np.float32)
    w, dy = rng.random(rows).astype(np.float32), np.empty_like(x)
    for _ in range(2):
        loss.sum_and_gradient(y, x, w, 1.0, dy)
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    loss.sum_and_gradient(y, x, w, 1.0, dy)
    peak = tracemalloc.get_traced_memory()[1] - before
    tracemalloc.stop()
    assert peak < 64 << 10, peak


# -- fusing and names ------------------------------------------------------------


def test_which_activation_can_be_fused():
    assert Sparse().fused_loss == Categorical().fused_loss == "softmax"
    assert Binary().fused_loss == "sigmoid"
    assert losses.get("mse").fused_loss is None
    for loss in (Sparse(name="x"), Categorical(name="x"), Binary(name="x")):
        logits = loss.with_logits()
        assert logits.from_logits and logits.fused_loss is None and logits.name == "x"
        assert type(logits) is type(loss)
    with pytest.raises(ArgumentError, match="fuses with softmax or sigmoid"):
        losses.get("mae").with_logits()


def test_fused_and_not_fused_are_the_same():
    z = np.random.default_rng(0).standard_normal((7, 5))
    p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    for loss, y in ((Sparse(), "labels"), (Categorical(), "soft")):
        y = REFERENCE[y]
        assert loss.with_logits()(y, z) == pytest.approx(loss(y, p), rel=1e-9)
    y, q = REFERENCE["binary"], 1 / (1 + np.exp(-z))
    assert Binary().with_logits()(y, z) == pytest.approx(Binary()(y, q), rel=1e-9)


def test_names():
    for name, cls in {
        "categorical_crossentropy": Categorical,
        "sparse_categorical_crossentropy": Sparse,
        "SparseCategoricalCrossentropy": Sparse,
        "binary_crossentropy": Binary,
        "bce": Binary,
        "mse": losses.MeanSquaredError,
        "mean_squared_error": losses.MeanSquaredError,
        "MAE": losses.MeanAbsoluteError,
    }.items():
        assert type(losses.get(name)) is cls
    made = Sparse(from_logits=True)
    assert losses.get(made) is made
    assert isinstance(losses.get(Binary), Binary)
    with pytest.raises(UnknownNameError, match="'binary_crossentropy'\\?"):
        losses.get("binary_crossentrpy")
    with pytest.raises(ArgumentError, match="received: 3"):
        losses.get(3)


def test_a_plain_function():
    def cubes(y, x):
        return (abs(x - y) ** 3).sum(-1), 3 * np.sign(x - y) * (x - y) ** 2

    rng = np.random.default_rng(0)
    y, x = frozen(rng.random((4, 3))), frozen(rng.random((4, 3)))
    w, dy = rng.random(4), np.empty((4, 3))
    loss = losses.get(cubes)
    assert loss.name == "cubes"
    loss.check_targets(y, (3,))
    total = loss.sum_and_gradient(y, x, w, 2.0, dy)
    values, gradient = cubes(y, x)
    assert total == pytest.approx((w * values).sum(), rel=1e-12)
    np.testing.assert_allclose(dy, 2 * w[:, None] * gradient, rtol=1e-12)
    assert loss(y, x) == pytest.approx(values.mean(), rel=1e-12)
    only = losses.get(lambda y, x: cubes(y, x)[0])
    assert only(y, x) == pytest.approx(values.mean(), rel=1e-12)
    with pytest.raises(ArgumentError, match=r"expected \(losses, gradient\)"):
        only.sum_and_gradient(y, x, None, 1.0, dy)
    mean = losses.get(lambda y, x: cubes(y, x)[0].mean())
    with pytest.raises(ShapeError, match=r"expected losses of shape \(4,\)"):
        mean(y, x)


def test_a_new_elementwise_loss_is_one_method():
    class Huber(losses.ElementwiseLoss):
        name = "huber"
        targets = losses.Targets(name)

        def elements(self, y, x, values, dx):
            error = np.abs(x - y)
            values[...] = np.where(error < 1, error**2 / 2, error - 0.5)
            if dx is not None:
                dx[...] = np.clip(x - y, -1, 1)

    dy = np.empty((1, 2))
    assert Huber().sum_and_gradient([[0, 0]], np.array([[0.5, 3.0]]), None, 1, dy) == (
        pytest.approx((0.125 + 2.5) / 2)
    )
    np.testing.assert_allclose(dy, [[0.25, 0.5]])


# -- errors ------------------------------------------------------------------------


def check(loss, y, output_shape):
    losses.get(loss).check_targets(np.asarray(y), output_shape)


def test_good_targets_pass():
    check("sparse_categorical_crossentropy", np.arange(6).reshape(2, 3), (3, 6))
    check("sparse_categorical_crossentropy", np.zeros((2, 9), int), (None, 6))
    check("categorical_crossentropy", np.eye(4), (4,))
    check("binary_crossentropy", [[0, 1], [1, 0.5]], (2,))
    check("mse", [[-5.0, 7.0]], (2,))
    check("mse", np.empty((0, 2)), (2,))


@pytest.mark.parametrize(
    ("loss", "y", "output", "words"),
    [
        (
            "sparse_categorical_crossentropy",
            np.eye(4),
            (4,),
            ("of shape (samples,)", "shape (samples, 4)", "categorical_crossentropy,"),
        ),
        (
            "categorical_crossentropy",
            [0, 1, 2],
            (4,),
            ("of shape (samples, 4)", "use sparse_categorical_crossentropy"),
        ),
        (
            "categorical_crossentropy",
            np.zeros((3, 8), int),
            (8, 4),
            ("(samples, 8, 4)", "use sparse_categorical_crossentropy"),
        ),
        (
            "categorical_crossentropy",
            np.eye(3),
            (4,),
            ("of shape (samples, 4)", "shape (samples, 3)", "last layer's size"),
        ),
        (
            "categorical_crossentropy",
            [[1.0]],
            (1,),
            ("two or more classes", "(samples, 1)", "binary"),
        ),
        (
            "binary_crossentropy",
            np.eye(2),
            (1,),
            ("use categorical_crossentropy", "2 units with softmax"),
        ),
        (
            "mse",
            [0, 1, 2],
            (4,),
            ("mean_squared_error", "(samples, 4)", "(samples,)", "each output"),
        ),
        (
            "sparse_categorical_crossentropy",
            np.zeros((2, 5), int),
            (None, 7, 4),
            ("(samples, any, 7)", "shape (samples, 5)"),
        ),
    ],
)
def test_shapes_that_do_not_fit(loss, y, output, words):
    with pytest.raises(ShapeError) as error:
        check(loss, y, output)
    for word in words:
        assert word in str(error.value)
    assert len(str(error.value).splitlines()) == 3


@pytest.mark.parametrize(
    ("loss", "y", "output", "words"),
    [
        (
            "sparse_categorical_crossentropy",
            [0, 1, 4, 9],
            (4,),
            ("labels in 0..3, for 4 classes", "label 4 at sample 2"),
        ),
        (
            "sparse_categorical_crossentropy",
            [[0, 1], [2, -1]],
            (2, 4),
            ("label -1 at sample 1, position 1",),
        ),
        ("sparse_categorical_crossentropy", [0, 1.5], (4,), ("label 1.5 at sample 1",)),
        ("sparse_categorical_crossentropy", [0, np.nan], (4,), ("nan at sample 1",)),
        (
            "categorical_crossentropy",
            [[1, 0], [0, 255]],
            (2,),
            ("targets in 0..1", "255 at sample 1, position 1"),
        ),
        ("binary_crossentropy", [[1], [-1]], (1,), ("-1 at sample 1, position 0",)),
        ("mse", [[0.0, np.inf]], (2,), ("finite", "inf at sample 0, position 1")),
        ("mse", [["a"]], (1,), ("array of numbers", "type <U1")),
        ("mse", [[1j]], (1,), ("array of numbers", "complex")),
    ],
)
def test_values_that_cannot_be_trained_on(loss, y, output, words):
    with pytest.raises(DataError) as error:
        check(loss, y, output)
    for word in words:
        assert word in str(error.value)
    assert len(str(error.value).splitlines()) == 3


def test_the_place_of_a_fault_far_behind(tmp_path):
    y = np.zeros(3 * losses.SCAN, np.uint16)
    y[-1] = 10
    np.save(tmp_path / "y.npy", y)
    mapped = np.load(tmp_path / "y.npy", mmap_mode="r")
    with pytest.raises(DataError, match=f"label 10 at sample {y.size - 1}"):
        Sparse().check_targets(mapped, (10,))


def test_batches_are_checked_too():
    x = REFERENCE["logits"]
    with pytest.raises(DataError, match="label 5 at sample 6"):
        Sparse(from_logits=True)([0, 1, 2, 3, 4, 0, 5], x)
    with pytest.raises(DataError, match="label -1 at sample 1"):
        Sparse()([0, -1, 2, 3, 4, 0, 5], x)
    with pytest.raises(ShapeError, match="as many targets as predictions"):
        Sparse()([0, 1], x)
    with pytest.raises(ShapeError, match="one-hot"):
        Sparse()(x, x)
    with pytest.raises(ShapeError, match=r"weights of shape \(7,\)"):
        losses.get("mse")(x, x, np.ones((7, 5)))
    cube = np.zeros((2, 3, 4))
    with pytest.raises(ShapeError, match=r"weights of shape \(2,\) or \(2, 3\)"):
        losses.get("mse")(cube, cube, np.ones(3))
