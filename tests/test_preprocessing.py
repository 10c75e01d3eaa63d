"""Preprocessing and augmentation: against Keras 3, in models, and on ranks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gradcheck import prepare

import fastserve as fs
from fastserve.comm import Communicator, run_threads
from fastserve.core import StepKey
from fastserve.errors import ArgumentError, DataError, ShapeError, StateError
from fastserve.models.serialization import layer_config, layer_from_config
from fastserve.ops import images as ops
from fastserve.training.step import Options

L = fs.layers
Array = np.ndarray[Any, np.dtype[Any]]
with np.load(Path(__file__).parent / "references" / "preprocessing.npz") as _file:
    REFERENCE: dict[str, Array] = {key: _file[key] for key in _file.files}
KEY = StepKey(seed=3, step=7)


def again(layer: Any) -> Any:
    """The layer after a way through JSON."""
    return layer_from_config(json.loads(json.dumps(layer_config(layer))))


def built(layer: Any, shape: tuple[int, ...], dtype: Any = np.float32) -> Any:
    prepare(layer, shape, dtype, seed=None)
    return layer


# -- against Keras ---------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["rotation", "zoom", "translation"])
@pytest.mark.parametrize("mode", ["reflect", "wrap", "constant", "nearest"])
@pytest.mark.parametrize("how", ["bilinear", "nearest"])
def test_moved_images(kind: str, mode: str, how: str) -> None:
    images = REFERENCE["images"]
    y = np.empty_like(images)
    ops.affine(images, REFERENCE[kind][:, :6].astype(float), mode, 9.0, how, y)
    np.testing.assert_allclose(y, REFERENCE[f"{kind} {mode} {how}"], atol=255e-5)


def test_the_matrices_of_the_random_layers() -> None:
    height, width = REFERENCE["images"].shape[1:3]
    angles = REFERENCE["angle"][:, None] / 360 + 0.5  # of a range of a turn
    zooms, moves = REFERENCE["zooms"][:, ::-1], REFERENCE["moves"][:, ::-1]
    for layer, numbers, name in (
        (L.RandomRotation(0.5), angles, "rotation"),
        (L.RandomZoom(0.5, 0.5), zooms - 0.5, "zoom"),
        (
            L.RandomTranslation(0.5, 0.5),
            moves / (height, width) + 0.5,
            "translation",
        ),
    ):
        found = layer.matrices(numbers, height, width)
        np.testing.assert_allclose(found, REFERENCE[name][:, :6], atol=1e-5)


def test_contrast_and_brightness() -> None:
    images = REFERENCE["images"]
    layer = built(L.RandomContrast(0.5), images.shape[1:])
    y = np.empty_like(images)
    layer.change(images, REFERENCE["contrast factor"][:, 0, 0] - 0.5, y)
    np.testing.assert_allclose(y, REFERENCE["contrast"], atol=255e-5)
    bright = built(L.RandomBrightness(0.5), images.shape[1:])
    shift = REFERENCE["brightness shift"][:, 0, 0] / 255 + 0.5
    bright.change(images, shift, y)
    np.testing.assert_allclose(y, REFERENCE["brightness"], atol=255e-5)


def test_categories() -> None:
    x = REFERENCE["integers"]
    for mode in ("one_hot", "multi_hot", "count"):
        layer = built(L.CategoryEncoding(6, mode), x.shape[1:])
        np.testing.assert_array_equal(layer.forward(x), REFERENCE[f"categories {mode}"])
    layer = L.CategoryEncoding(6, "count")
    layer.build_once(((4,), (4,)))
    found = layer.forward((x, REFERENCE["category weights"]))
    np.testing.assert_allclose(found, REFERENCE["categories weighted"], rtol=1e-6)
    with pytest.raises(DataError, match="0 to 5"):
        built(L.CategoryEncoding(6), (1,)).forward(np.array([[6]]))
    with pytest.raises(ArgumentError, match="count"):
        L.CategoryEncoding(6).build_once(((4,), (4,)))


@pytest.mark.parametrize("bins", [3, 4, 10])
def test_learned_bins(bins: int) -> None:
    numbers = REFERENCE["numbers"]
    layer = L.Discretization(num_bins=bins, epsilon=0.02)
    with pytest.raises(StateError, match="adapt"):
        layer.build_once((3,))
    layer.adapt(numbers)
    expected = REFERENCE[f"boundaries {bins}"]
    np.testing.assert_allclose(layer.bin_boundaries, expected, rtol=1e-6)
    for one in (layer, again(layer)):
        one.build_once((3,))
        found = one.forward(numbers[:9])
        np.testing.assert_array_equal(found, REFERENCE[f"bins {bins}"])
    layer.adapt([numbers[i : i + 100] for i in range(0, 700, 100)])
    expected = REFERENCE[f"boundaries of batches {bins}"]
    np.testing.assert_allclose(layer.bin_boundaries, expected, rtol=1e-6)


def test_bins() -> None:
    few = L.Discretization(num_bins=3)
    few.adapt(np.array([-1.5, 1.0, 3.4, 0.5]))
    np.testing.assert_allclose(few.bin_boundaries, REFERENCE["boundaries of few"])
    layer = built(L.Discretization([0.0, 1.0, 2.0]), (4,))
    found = layer.forward(np.array([[-1.5, 1.0, 3.4, 0.5], [0.0, 3.0, 1.3, 0.0]]))
    assert found.tolist() == [[0, 2, 3, 1], [1, 3, 2, 1]]
    with pytest.raises(DataError, match="increasing"):
        L.Discretization([1.0, 0.0])
    for arguments in ({}, {"bin_boundaries": [0], "num_bins": 2}):
        with pytest.raises(ArgumentError, match="num_bins"):
            L.Discretization(**arguments)


# -- Normalization and Rescaling -------------------------------------------------------


def test_normalization_learns() -> None:
    numbers = REFERENCE["numbers"]
    whole = L.Normalization(axis=1)
    whole.adapt(numbers[:, :, None] + 5)
    expected = REFERENCE["normalized"]
    found = whole.forward(numbers[:9, :, None])
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    parts = L.Normalization(axis=1)
    parts.adapt(numbers[i : i + 70, :, None] + 5 for i in range(0, 700, 70))
    np.testing.assert_allclose(parts.mean.value, whole.mean.value, rtol=1e-6)
    np.testing.assert_allclose(parts.variance.value, whole.variance.value, rtol=1e-6)
    one = L.Normalization(axis=None)
    one.adapt(numbers)
    y = one.forward(numbers)
    np.testing.assert_allclose([y.mean(), y.std()], [0, 1], atol=1e-5)


def test_normalization_learns_of_large_data_in_pieces() -> None:
    x = np.float32(1e4) + np.random.default_rng(0).standard_normal((300_000, 5))
    layer = L.Normalization()
    layer.adapt(x.astype(np.float32))
    wide = x.astype(np.float32).astype(float)
    np.testing.assert_allclose(layer.mean.value, wide.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(layer.variance.value, wide.var(axis=0), rtol=1e-6)


def test_what_was_learned_is_part_of_a_model(tmp_path: Path) -> None:
    x = 3 + 2 * np.random.default_rng(0).standard_normal((40, 3))
    y = x.sum(axis=1, keepdims=True)

    def program(comm: Communicator) -> tuple[Any, Array]:
        layer = L.Normalization(input_shape=(3,))
        layer.adapt(x)
        model = fs.models.Sequential([layer, L.Dense(1)])
        model.compile("adam", "mse")
        model.options = Options(check_every=1)
        learned = layer.mean.value.copy()
        model.fit(x, y, batch_size=7, verbose=0)
        np.testing.assert_array_equal(layer.mean.value, learned)
        return model, learned

    everyone = run_threads(3, program)
    for _, learned in everyone:
        np.testing.assert_allclose(learned, x.mean(axis=0), rtol=1e-6)
    model = everyone[0][0]
    model.save(tmp_path / "m.safetensors")
    loaded = fs.models.load_model(tmp_path / "m.safetensors")
    np.testing.assert_array_equal(loaded.predict(x), model.predict(x))
    layer = model.layers[0]
    layer.adapt(x + 1)  # also of a model that is built
    np.testing.assert_allclose(layer.mean.value, learned + 1, rtol=1e-6)


def test_wrong_use_of_normalization_and_rescaling() -> None:
    with pytest.raises(ArgumentError, match="neither"):
        L.Normalization(mean=1.0)
    with pytest.raises(StateError, match="given"):
        L.Normalization(mean=1.0, variance=1.0).adapt(np.ones((2, 2)))
    with pytest.raises(ShapeError, match="mean and variance"):
        L.Normalization(mean=[1.0, 2.0], variance=[1.0, 1.0]).build_once((3,))
    with pytest.raises(DataError, match="adapt"):
        L.Normalization().adapt([1.0, 2.0])
    with pytest.raises(DataError, match="expected data"):
        L.Normalization().adapt([])
    layer = L.Normalization()
    layer.adapt(np.ones((3, 2)))
    with pytest.raises(ShapeError):
        layer.adapt(np.ones((3, 4)))
    with pytest.raises(ShapeError, match="scale"):
        L.Rescaling([1.0, 2.0]).build_once((4, 3))


# -- augmentation ----------------------------------------------------------------------

IMAGES = np.random.default_rng(1).uniform(0, 255, (6, 8, 9, 3)).astype(np.float32)
RANDOM = [
    L.RandomFlip("horizontal"),
    L.RandomCrop(5, 4),
    L.RandomRotation(0.2),
    L.RandomTranslation(0.3, 0.2, "wrap"),
    L.RandomZoom(0.4, fill_mode="constant"),
    L.RandomContrast(0.4),
    L.RandomBrightness(0.3),
]


@pytest.mark.parametrize("layer", RANDOM, ids=lambda layer: type(layer).__name__)
def test_random_changes_are_those_of_the_sample(layer: Any) -> None:
    one = built(again(layer), IMAGES.shape[1:])
    y = one.forward(IMAGES, KEY).copy()
    assert np.array_equal(one.forward(IMAGES, KEY), y)
    for i in range(len(IMAGES)):
        alone = one.forward(IMAGES[i : i + 1], StepKey(KEY.seed, KEY.step, i))
        np.testing.assert_array_equal(alone[0], y[i])
    for key in (StepKey(KEY.seed, KEY.step + 1), StepKey(KEY.seed + 1, KEY.step)):
        assert not np.array_equal(one.forward(IMAGES, key), y)
    still = one.forward(IMAGES, False)
    if y.shape == IMAGES.shape:
        np.testing.assert_array_equal(still, IMAGES)
    else:
        assert still.shape == y.shape
    one.path = "another"
    assert not np.array_equal(one.forward(IMAGES, KEY), y)
    # a seed of the layer's own takes the place of the model's
    fixed = built(type(layer)(**{**bound(layer), "seed": 5}), IMAGES.shape[1:])
    first = fixed.forward(IMAGES, KEY).copy()
    other = fixed.forward(IMAGES, StepKey(KEY.seed + 1, KEY.step))
    np.testing.assert_array_equal(first, other)


def bound(layer: Any) -> dict[str, Any]:
    return dict(layer_config(layer)["arguments"])


def test_flips_and_crops_are_what_they_say() -> None:
    many = np.broadcast_to(IMAGES[:1], (200, *IMAGES.shape[1:]))
    y = built(L.RandomFlip("horizontal"), IMAGES.shape[1:]).forward(many, KEY)
    flipped = [np.array_equal(image, IMAGES[0, :, ::-1]) for image in y]
    same = [np.array_equal(image, IMAGES[0]) for image in y]
    assert all(a != b for a, b in zip(flipped, same, strict=True))
    assert 70 < sum(flipped) < 130
    y = built(L.RandomCrop(5, 4), IMAGES.shape[1:]).forward(many, KEY)
    windows = np.lib.stride_tricks.sliding_window_view(IMAGES[0], (5, 4), (0, 1))
    parts = {part.tobytes() for row in windows for part in row.transpose(0, 2, 3, 1)}
    assert len(parts) == 24
    assert {image.tobytes() for image in y} == parts


def test_augmentation_does_not_depend_on_the_ranks() -> None:
    y = np.arange(6) % 3

    def program(comm: Communicator) -> list[Array]:
        layers = [again(layer) for layer in RANDOM[2:]]
        model = fs.models.Sequential(
            [*layers, L.Rescaling(1 / 255), L.Flatten(), L.Dense(3, "softmax")], seed=4
        )
        model.compile("sgd", "sparse_categorical_crossentropy")
        model.options = Options(check_every=1, micro_batch=2)
        model.fit(IMAGES, y, batch_size=5, epochs=2, verbose=0)
        return model.get_weights()

    (alone,) = run_threads(1, program)
    for weights in run_threads(3, program):
        for ours, theirs in zip(weights, alone, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)


def test_wrong_use_of_images() -> None:
    with pytest.raises(ShapeError, match="known size"):
        L.Resizing(3, 3).build_once((None, 4, 3))
    with pytest.raises(ShapeError, match="height"):
        L.RandomFlip().build_once((4, 3))
    for wrong in (
        lambda: L.RandomFlip("up"),
        lambda: L.RandomRotation(2.0),
        lambda: L.RandomZoom(-1.0, [-1.0, 0.0]),
        lambda: L.RandomRotation(0.1, fill_mode="mirror"),
        lambda: L.Resizing(3, 3, "bicubic"),
        lambda: L.Resizing(3, 3, crop_to_aspect_ratio=True, pad_to_aspect_ratio=True),
        lambda: L.RandomContrast((0.1, 2.0)),
        lambda: L.RandomBrightness(0.1, (1, 1)),
        lambda: L.CenterCrop(3, 3, "channels_first"),
        lambda: L.RandomFlip(seed=-1),
    ):
        with pytest.raises(ValueError, match="expected"):
            wrong()
