"""fs.utils, and what models tell about themselves: as in Keras."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import fastserve as fs
from fastserve.errors import (
    ArgumentError,
    CheckpointError,
    DataError,
    ShapeError,
    StateError,
    UnknownNameError,
)
from fastserve.training.flops import flops_per_sample
from fastserve.utils import normalize, pad_sequences, to_categorical


def test_one_hot_rows() -> None:
    np.testing.assert_array_equal(to_categorical([0, 2]), [[1, 0, 0], [0, 0, 1]])
    assert to_categorical(np.zeros((4, 5, 1)), 3).shape == (4, 5, 3)
    assert to_categorical([], 3).shape == (0, 3)
    for labels, classes in (([0, 3], 3), ([-1, 0], None), ([0.5], None)):
        with pytest.raises(DataError, match="to_categorical"):
            to_categorical(labels, classes)
    with pytest.raises(DataError, match="whole numbers"):
        to_categorical(["a"])


def test_sequences_of_several_lengths() -> None:
    rows = [[1], [2, 3], [4, 5, 6], []]
    before = [[0, 0, 1], [0, 2, 3], [4, 5, 6], [0, 0, 0]]
    np.testing.assert_array_equal(pad_sequences(rows), before)
    assert pad_sequences(rows).dtype == np.int32
    after = pad_sequences(rows, 2, "float32", "post", "post", value=-1)
    np.testing.assert_array_equal(after, [[1, -1], [2, 3], [4, 5], [-1, -1]])
    assert after.dtype == np.float32
    cut = pad_sequences(rows, 2)
    np.testing.assert_array_equal(cut, [[0, 1], [2, 3], [5, 6], [0, 0]])
    assert pad_sequences([np.ones((2, 5)), np.ones((3, 5))]).shape == (2, 3, 5)
    with pytest.raises(UnknownNameError, match="pre"):
        pad_sequences(rows, padding="left")
    with pytest.raises(DataError, match="list of sequences"):
        pad_sequences([1, 2])
    with pytest.raises(ShapeError, match="sequence 1"):
        pad_sequences([np.ones((2, 5)), np.ones((3, 4))])


def test_norms_of_1() -> None:
    x = np.array([[3.0, 4.0], [0.0, 0.0]])
    np.testing.assert_allclose(normalize(x), [[0.6, 0.8], [0, 0]])
    np.testing.assert_allclose(normalize(x, axis=0, order=1), [[1, 1], [0, 0]])


def test_what_a_model_has() -> None:
    layers = fs.layers
    model = fs.Sequential([fs.Input((4,)), layers.Dense(3), layers.Dense(2)])
    assert type(model.pop()) is layers.Dense
    model.add(layers.BatchNormalization())
    model.compile("sgd", "mse", metrics=["mae"])
    assert model.metrics_names == ["loss"]
    model.train_on_batch(np.ones((2, 4)), np.ones((2, 3)))
    assert model.metrics_names == ["loss", "mae"]
    assert model.input_shape == (4,)
    names = [p.name for p in model.weights]
    assert names == ["kernel", "bias", "gamma", "beta"] + [
        p.name for p in model.non_trainable_weights
    ]
    assert [p.name for p in model.trainable_weights] == names[:4]
    assert [p.shape for p in model.weights] == [w.shape for w in model.get_weights()]
    results = model.test_on_batch(np.ones((2, 4)), np.ones((2, 3)), return_dict=True)
    assert results.keys() == {"loss", "mae"}
    lines: list[str] = []
    model.summary(print_fn=lines.append)
    assert lines == model.describe().splitlines()
    with pytest.raises(StateError, match="pop"):
        model.pop()


@pytest.mark.parametrize(
    ("arguments", "rates"),
    [  # of Keras, at these steps
        ((0.1, 10), [0.1, 0.0024472, 0.1, 0.0006156, 0.1, 0.0001541, 0.0999615]),
        ((0.1, 10, 1.0, 0.5), [0.1, 0.0024472, 0.05, 6.118e-4, 0.0125, 3.82e-5]),
        ((0.1, 4, 1.5, 0.8, 0.1), [0.1, 0.0148231, 0.0676, 0.017229, 0.0137904]),
    ],
)
def test_cosines_with_restarts(
    arguments: tuple[float, ...], rates: list[float]
) -> None:
    schedule = fs.schedules.CosineDecayRestarts(*arguments)
    steps = [0, 9, 10, 29, 30, 69, 71]
    np.testing.assert_allclose(
        [schedule(step) for step in steps[: len(rates)]], rates, atol=6e-8
    )


def test_files_that_shall_stay_stay(tmp_path: Path) -> None:
    model = fs.Sequential([fs.Input((2, 2)), fs.layers.Flatten(), fs.layers.Dense(1)])
    for name in ("save", "save_weights"):
        path = tmp_path / f"{name}.safetensors"
        write = getattr(model, name)
        write(path, overwrite=False)
        before = path.read_bytes()
        with pytest.raises(CheckpointError, match="overwrite"):
            write(path, overwrite=False)
        assert path.read_bytes() == before
        write(path)


def test_a_clone_has_weights_of_its_own() -> None:
    model = fs.Sequential([fs.Input((2, 2)), fs.layers.Flatten(), fs.layers.Dense(1)])
    clone = fs.models.clone_model(model)
    assert clone.get_config() == model.get_config()
    model.set_weights([w + 1 for w in model.get_weights()])
    assert not (clone.get_weights()[0] == model.get_weights()[0]).any()
    with pytest.raises(ArgumentError, match="channels_last"):
        fs.layers.Flatten("channels_first")


def test_operations_of_convolutions_are_counted() -> None:
    layers = fs.layers
    model = fs.Sequential(
        [
            fs.Input((7, 7, 8)),
            layers.Conv2DTranspose(4, 3, strides=2),  # 15 x 15
            layers.DepthwiseConv2D(3),  # 13 x 13
            layers.SeparableConv2D(5, 3),  # 11 x 11
            layers.Flatten(),
            layers.Dense(2),
        ]
    )
    model.build((7, 7, 8))
    products = 49 * 9 * 8 * 4 + 169 * 9 * 4 + 121 * (9 * 4 + 4 * 5) + 121 * 5 * 2
    assert flops_per_sample(model.root) == 6 * products
