"""Convolutions and pooling beyond the table: pieces, rounding, sizes, errors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from gradcheck import check_layer, frozen, prepare, run

import fastserve as fs
from fastserve import layers as L
from fastserve.core import Layer
from fastserve.errors import ArgumentError, FastserveError, ShapeError
from fastserve.ops import (
    convolution,
    depthwise,
    kernel_rows,
    patches,
    pooling,
    winograd,
)
from fastserve.ops.windows import Axis, transposed_axis, window_axis

Array = np.ndarray[Any, np.dtype[Any]]
Axes = tuple[Axis, Axis]
AXES: list[Axes] = [
    (window_axis(9, 3, 1, 1, pad), window_axis(7, 2, 1, 1, pad))
    for pad in ("valid", "same", "causal")
]
STRIDED: list[Axes] = [
    (window_axis(9, 3, s, d, pad), window_axis(8, 2, 1, d, pad))
    for s, d in ((2, 1), (4, 1), (1, 2))
    for pad in ("valid", "same")
] + [
    (transposed_axis(4, 2, 3), transposed_axis(4, 3, 2, 1, "same", 1)),
]


def plain(x: Array, kernel: Array, axes: Axes) -> Array:
    """The sum over the kernel's places, as the formula says it."""
    h, w = axes
    n, height, width, c = x.shape
    full = np.zeros((n, h.padded, w.padded, c))
    full[:, h.before : h.before + height, w.before : w.before + width] = x
    y = np.zeros((n, h.out, w.out, kernel.shape[3]))
    for i, j in np.ndindex(*kernel.shape[:2]):
        rows = slice(i * h.dilation, i * h.dilation + (h.out - 1) * h.stride + 1)
        columns = slice(j * w.dilation, j * w.dilation + (w.out - 1) * w.stride + 1)
        y += full[:, rows, columns][:, :: h.stride, :: w.stride] @ kernel[i, j]
    return y


def check(way: Any, axes: Axes, kernel: Array, dense: Array) -> None:
    """``dense`` is the kernel of an ordinary convolution that does the same."""
    rng = np.random.default_rng(2)
    h, w = axes
    x = rng.standard_normal((3, h.size, w.size, kernel.shape[2]))
    y = np.full((3, h.out, w.out, dense.shape[3]), np.nan)
    finished: list[slice] = []
    way.forward(frozen(x), frozen(kernel), y, axes, finish=finished.append)
    np.testing.assert_allclose(y, plain(x, dense, axes), atol=1e-11)
    ends = [0, *(rows.stop for rows in finished)]
    assert [rows.start for rows in finished] == ends[:-1]
    assert ends[-1] == 3 * h.out * w.out

    # both gradients are those of a map that is linear in x and in the kernel
    dy, dx, dkernel = (
        rng.standard_normal(y.shape),
        np.empty_like(x),
        np.empty_like(kernel),
    )
    dx.fill(np.nan)
    dkernel.fill(np.nan)
    way.backward(frozen(x), frozen(dy), frozen(kernel), dkernel, dx, axes)
    for array, gradient in ((x, dx), (kernel, dkernel)):
        step = rng.standard_normal(array.shape)
        other = np.empty_like(y)
        if array is x:
            way.forward(step, kernel, other, axes)
        else:
            way.forward(x, step, other, axes)
        assert np.isclose((gradient * step).sum(), (other * dy).sum(), atol=1e-10)
    alone = np.full_like(dx, np.nan)
    way.backward(None, dy, kernel, None, alone, axes)
    np.testing.assert_array_equal(alone, dx)


@pytest.mark.parametrize("size", [1 << 18, 500, 50])
@pytest.mark.parametrize("axes", AXES + STRIDED, ids=str)
def test_pieces_and_bands(
    size: int, axes: Axes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether a piece is all samples, a sample or a few of its rows."""
    rng = np.random.default_rng(1)
    for way in (patches, kernel_rows, winograd, depthwise):
        monkeypatch.setattr(way, "SIZE", size)
    shape = (axes[0].kernel, axes[1].kernel)
    for channels in (1, 5):
        kernel = rng.standard_normal((*shape, channels, 4))
        check(Ungrouped(patches), axes, kernel, kernel)
        if all(axis.stride == 1 for axis in axes):
            check(Ungrouped(kernel_rows), axes, kernel, kernel)
        if all(axis.stride == axis.dilation == 1 for axis in axes):
            check(Ungrouped(winograd), axes, kernel, kernel)
        for times in (1, 2):
            kernel = rng.standard_normal((*shape, channels, times))
            dense = np.zeros((*shape, channels, channels * times))
            for c in range(channels):
                dense[:, :, c, c * times : (c + 1) * times] = kernel[:, :, c]
            check(Ungrouped(depthwise), axes, kernel, dense)


class Ungrouped:
    """A way of computing a convolution, with ``finish`` left out at will."""

    def __init__(self, way: Any) -> None:
        self.way, self.backward = way, way.backward

    def forward(self, *arguments: Any, finish: Any = None) -> None:
        self.way.forward(*arguments, finish)


@pytest.mark.parametrize("size", [1 << 18, 500, 50])
@pytest.mark.parametrize("way", [patches, winograd])
@pytest.mark.parametrize("channels", [1, 32])
def test_kept_for_the_gradient(
    size: int, way: Any, channels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(way, "SIZE", size)
    monkeypatch.setattr(convolution, "_way", lambda *shape: way)
    rng = np.random.default_rng(5)
    stride = 2 if way is patches else 1
    axes = (window_axis(9, 3), window_axis(8, 3, stride, padding="same"))
    x, kernel = rng.standard_normal((5, 9, 8, channels)), np.ones((3, 3, channels, 4))
    dy = rng.standard_normal((5, 7, 8 // stride, 4))
    kept = np.full(convolution.to_keep(5, kernel, axes, 1), np.nan)
    convolution.forward(x, kernel, np.empty_like(dy), axes, kept=kept)
    alone, dkernel = np.empty_like(kernel), np.empty_like(kernel)
    convolution.backward(x, dy, kernel, alone, None, axes)
    x.fill(np.nan)  # isn't read any more
    convolution.backward(x, dy, kernel, dkernel, None, axes, kept=kept)
    np.testing.assert_array_equal(dkernel, alone)
    monkeypatch.setattr(way, "KEPT", kept.size - 1)
    assert convolution.to_keep(5, kernel, axes, 1) == 0


@pytest.mark.parametrize("channels", [6, 30, 60])
def test_groups_are_convolutions_of_their_own(channels: int) -> None:
    rng = np.random.default_rng(3)
    axes = (window_axis(9, 3, padding="same"), window_axis(8, 3, padding="same"))
    part = channels // 3
    assert kernel_rows.pays(*axes, part, part) == (channels == 30)
    assert winograd.pays(*axes, part, part) == (channels == 60)
    kernel = rng.standard_normal((3, 3, part, channels))
    x = rng.standard_normal((2, 9, 8, channels))
    y, dy = np.empty_like(x), rng.standard_normal(x.shape)
    convolution.forward(x, kernel, y, axes, 3)
    dkernel, dx = np.full_like(kernel, np.nan), np.full_like(x, np.nan)
    convolution.backward(x, dy, kernel, dkernel, dx, axes, 3)
    for g in range(3):
        own = np.s_[..., g * part : (g + 1) * part]
        np.testing.assert_allclose(y[own], plain(x[own], kernel[own], axes), atol=1e-10)
        other, dother = np.empty((3, 3, part, part)), np.empty((2, 9, 8, part))
        patches.backward(
            x[own].copy(), dy[own].copy(), kernel[own].copy(), other, dother, axes
        )
        np.testing.assert_allclose(dkernel[own], other, atol=1e-10)
        np.testing.assert_allclose(dx[own], dother, atol=1e-10)


@pytest.mark.parametrize("size", [2, 3, 4, 5])
def test_rounding_of_winograd(size: int) -> None:
    """Within 1e-5 of the largest value, also for many channels and inputs above 0."""
    rng = np.random.default_rng(4)
    axes = (window_axis(16, size, padding="same"),) * 2
    x = np.abs(rng.standard_normal((2, 16, 16, 128)))
    kernel = 0.05 * rng.standard_normal((size, size, 128, 32))
    dy = rng.standard_normal((2, 16, 16, 32))
    found = []
    for kind in (np.float64, np.float32):
        y, dkernel, dx = (np.empty(a.shape, kind) for a in (dy, kernel, x))
        given = [a.astype(np.float32).astype(kind) for a in (x, dy, kernel)]
        winograd.forward(given[0], given[2], y, axes, None)
        winograd.backward(*given, dkernel, dx, axes)  # type: ignore[arg-type]
        found.append((y, dkernel, dx))
    for exact, rounded in zip(*found, strict=True):
        assert np.abs(exact - rounded).max() < 1e-5 * np.abs(exact).max()


SIZES: list[tuple[Callable[[], Layer], int]] = [
    (lambda: L.Conv1D(3, 3, padding="causal"), 1),
    (lambda: L.Conv2D(3, 3, 2), 2),
    (lambda: L.Conv2DTranspose(3, 3, 2, "same"), 2),
    (lambda: L.SeparableConv2D(3, 3), 2),
    (lambda: L.MaxPooling2D(), 2),
    (lambda: L.AveragePooling1D(padding="same"), 1),
    (lambda: L.GlobalAveragePooling1D(), 1),
    (lambda: L.GlobalMaxPooling2D(), 2),
    (lambda: L.UpSampling2D(interpolation="bilinear"), 2),
    (lambda: L.ZeroPadding2D(), 2),
    (lambda: L.Cropping1D(), 1),
]


@pytest.mark.parametrize(("make", "rank"), SIZES)
def test_sizes_may_vary(make: Callable[[], Layer], rank: int) -> None:
    layer = make()
    prepare(layer, (*(None,) * rank, 2))
    outs = layer.output_shape
    assert outs is not None
    for size in (9, 6, 9):
        x = np.random.default_rng(size).standard_normal((2, *(size,) * rank, 2))
        fixed = make()
        prepare(fixed, x.shape[1:])
        y, _, dx = run(layer, x)
        expected, _, dexpected = run(fixed, x)
        np.testing.assert_array_equal(y, expected)
        np.testing.assert_array_equal(dx, dexpected)
        assert all(n in (None, m) for n, m in zip(outs, y.shape[1:], strict=True))


def test_a_size_that_turns_out_too_small() -> None:
    layer = L.Conv2D(3, 5)
    prepare(layer, (None, None, 2))
    with pytest.raises(ShapeError, match="4 x 9"):
        layer.forward(np.zeros((1, 4, 9, 2)))


def test_masks_end_here() -> None:
    for layer in (L.Conv1D(2, 3), L.MaxPooling1D(), L.GlobalAveragePooling1D()):
        prepare(layer, (6, 2))
        layer.mask = np.ones((1, 6), bool)
        layer.forward(np.zeros((1, 6, 2)))
        assert layer.output_mask() is None


def test_a_sequence_of_which_nothing_counts() -> None:
    layer = L.GlobalAveragePooling1D()
    prepare(layer, (3, 2))
    layer.mask = np.array([[True, False, True], [False] * 3])
    y, _, dx = run(layer, np.arange(12.0).reshape(2, 3, 2))
    np.testing.assert_array_equal(y, [[2, 3], [0, 0]])
    assert dx is not None
    assert not dx[1].any()


def test_a_kernel_that_is_not_trained() -> None:
    for layer in (L.Conv2D(2, 3), L.DepthwiseConv2D(3), L.Conv2DTranspose(2, 3)):
        prepare(layer, (5, 5, 2))
        x = np.random.default_rng(0).standard_normal((2, 5, 5, 2))
        _, dy, dx = run(layer, x)
        layer.trainable = False
        layer.kernel.grad.fill(7)
        _, _, again = run(layer, x, dy)
        np.testing.assert_array_equal(again, dx)
        assert (layer.kernel.grad == 7).all()


def test_winner_of_a_large_window() -> None:
    """Windows of more than 256 places, whose number doesn't fit into a byte."""
    x = np.zeros((1, 20, 20, 1))
    x[0, 19, 19] = 1
    layer = L.MaxPooling2D(20)
    prepare(layer, (20, 20, 1))
    _, dy, dx = run(layer, x)
    assert dx is not None
    assert dx[0, 19, 19] == dy
    assert np.count_nonzero(dx) == 1


def test_shares_of_a_mean_at_the_edge() -> None:
    share = pooling.counts((Axis(3, 2, 2, 1, 0, 2),) * 2, np.dtype(np.float64))
    np.testing.assert_array_equal(share[..., 0], [[1 / 4, 1 / 2], [1 / 2, 1]])


BAD: list[tuple[type[FastserveError], str, Callable[[], Layer], tuple[Any, ...]]] = [
    (ArgumentError, "filters", lambda: L.Conv2D(0, 3), ()),
    (ArgumentError, "kernel_size", lambda: L.Conv2D(4, (3, 0)), ()),
    (ArgumentError, "kernel_size", lambda: L.Conv2D(4, (3, 3, 3)), ()),
    (ArgumentError, "kernel_size", lambda: L.Conv1D(4, 2.5), ()),  # type: ignore[arg-type]
    (ArgumentError, "strides", lambda: L.Conv2D(4, 3, 0), ()),
    (ArgumentError, "dilation", lambda: L.Conv2D(4, 3, 2, dilation_rate=2), ()),
    (ArgumentError, "padding", lambda: L.Conv2D(4, 3, padding="causal"), ()),
    (ArgumentError, "padding", lambda: L.MaxPooling2D(padding="full"), ()),
    (ArgumentError, "groups", lambda: L.Conv2D(4, 3, groups=3), ()),
    (
        ArgumentError,
        "transpose",
        lambda: L.Conv2D(4, 3, data_format="channels_first"),
        (),
    ),
    (ArgumentError, "transpose", lambda: L.AvgPool2D(data_format="channels_first"), ()),
    (
        ArgumentError,
        "output_padding",
        lambda: L.Conv2DTranspose(4, 3, 2, "same", 2),
        (),
    ),
    (ArgumentError, "depth_multiplier", lambda: L.DepthwiseConv2D(3, 1, "same", 0), ()),
    (ArgumentError, "pool_size", lambda: L.MaxPooling1D((2, 2)), ()),
    (ArgumentError, "interpolation", lambda: L.UpSampling2D(interpolation="area"), ()),
    (ArgumentError, "two axes", lambda: L.ZeroPadding2D((1, 2, 3)), ()),
    (ArgumentError, "cropping", lambda: L.Cropping2D(((1, -1), (0, 0))), ()),
    (ArgumentError, "dims", lambda: L.Permute((0, 1)), ()),
    (ArgumentError, "n ", lambda: L.RepeatVector(0), ()),
    (ShapeError, "groups", lambda: L.Conv2D(4, 3, groups=2), (8, 8, 3)),
    (ShapeError, "too small", lambda: L.Conv2D(4, 3, dilation_rate=4), (8, 8, 3)),
    (ShapeError, "too small", lambda: L.Conv1D(4, 9), (8, 3)),
    (ShapeError, "too small", lambda: L.MaxPooling2D(3), (2, 4, 3)),
    (ShapeError, "grey", lambda: L.Conv2D(4, 3), (28, 28)),
    (ShapeError, "channels", lambda: L.Conv1D(4, 3), (28, None)),
    (ShapeError, "time", lambda: L.GlobalMaxPooling1D(), (28,)),
    (ShapeError, "cut off", lambda: L.Cropping2D(2), (4, 5, 1)),
    (ShapeError, "3 axes", lambda: L.Permute((2, 1, 3)), (4, 5)),
    (ShapeError, "1 axes", lambda: L.RepeatVector(2), (4, 5)),
]


@pytest.mark.parametrize(("kind", "words", "make", "shape"), BAD)
def test_errors_before_any_work(
    kind: type[FastserveError], words: str, make: Callable[[], Layer], shape: Any
) -> None:
    with pytest.raises(kind, match=words) as caught:
        make().build_once(shape)
    assert all((caught.value.expected, caught.value.received, caught.value.todo))


def test_a_model_of_them_trains_and_is_rebuilt() -> None:
    rng = np.random.default_rng(0)
    x = rng.integers(0, 2, (64, 8, 8, 1)).astype(np.uint8)
    x[:32] *= rng.integers(0, 2, (32, 8, 8, 1)).astype(np.uint8)
    y = np.repeat([0, 1], 32)
    model = fs.models.Sequential(
        [
            L.Conv2D(
                8, (3, 3), padding="same", activation="relu", input_shape=(8, 8, 1)
            ),
            L.MaxPool2D(),
            L.SeparableConv2D(8, 3, activation="relu"),
            L.ZeroPadding2D(((1, 1), (0, 2))),
            L.GlobalAvgPool2D(),
            L.Dense(2, activation="softmax"),
        ]
    )
    model.compile(fs.optimizers.Adam(0.05), "sparse_categorical_crossentropy")
    history = model.fit(x, y, epochs=15, verbose=0)
    assert history.history["loss"][-1] < 0.8 * history.history["loss"][0]
    again = fs.models.Sequential.from_config(model.get_config())
    again.set_weights(model.get_weights())
    np.testing.assert_array_equal(again.predict(x), model.predict(x))


@pytest.mark.parametrize("activation", [None, "relu", "silu"])
def test_a_residual_block_may_use_the_output_again(activation: str | None) -> None:
    chain = L.Residual(
        L.Conv2D(3, 3, padding="same", activation="relu"),
        L.Conv2D(3, 3, padding="same", activation=activation),
    )
    store = prepare(chain, (5, 4, 3))
    x = np.random.default_rng(1).standard_normal((2, 5, 4, 3))
    check_layer(chain, store, x, True)


LAYERS: dict[str, Callable[[], Layer]] = {
    "patches": lambda: L.Conv2D(3, 3, 2),
    "1 x 1": lambda: L.Conv2D(3, 1),
    "winograd": lambda: L.Conv2D(32, 3, activation="silu"),
    "groups": lambda: L.Conv2D(6, 3, groups=2),
    "transpose": lambda: L.Conv2DTranspose(3, 3, 2),
    "depthwise": lambda: L.DepthwiseConv2D(3, depth_multiplier=2),
    "depthwise strides": lambda: L.DepthwiseConv2D(3, 2, "same"),
    "separable": lambda: L.SeparableConv2D(3, 3),
    "max": lambda: L.MaxPooling2D(),
    "max same": lambda: L.MaxPooling2D(3, 2, "same"),
    "average": lambda: L.AveragePooling2D(),
    "global average": lambda: L.GlobalAveragePooling2D(),
    "global max": lambda: L.GlobalMaxPooling2D(),
    "up": lambda: L.UpSampling2D(),
    "bilinear": lambda: L.UpSampling2D(interpolation="bilinear"),
    "padding": lambda: L.ZeroPadding2D(),
    "cropping": lambda: L.Cropping2D(1),
    "permute": lambda: L.Permute((2, 1, 3)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_arrays_of_another_order_in_memory(name: str) -> None:
    """Images that were transposed to channels last, and no copy of them."""
    x = np.random.default_rng(0).standard_normal((2, 9, 8, 24))
    layer = LAYERS[name]()
    store = prepare(layer, x.shape[1:])
    y, dy, dx = run(layer, x)
    kept = store.grads.copy()

    def reordered(a: Array) -> Array:
        return np.moveaxis(np.moveaxis(a, -1, 1).copy(), 1, -1)

    np.testing.assert_allclose(layer.forward(reordered(x), True), y, atol=1e-12)
    np.testing.assert_allclose(layer.backward(reordered(dy)), dx, atol=1e-12)
    np.testing.assert_allclose(store.grads, kept, atol=1e-11)


@pytest.mark.parametrize("name", LAYERS)
def test_no_samples(name: str) -> None:
    """A rank may have no rows in a step; its gradients are zeros."""
    layer = LAYERS[name]()
    store = prepare(layer, (9, 8, 24))
    store.grads.fill(np.nan)
    y, _, dx = run(layer, np.zeros((0, 9, 8, 24)))
    assert y.shape[0] == 0
    assert dx is not None
    assert dx.shape == (0, 9, 8, 24)
    for parameter in store.parameters:
        assert not parameter.grad.any()
