"""Keras' files of weights: read and written, all or nothing.

references/keras_files were written by Keras 3, and Keras read ours when they were made.
"""

from __future__ import annotations

import json
import logging
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastserve as fs
from fastserve.comm import Communicator, run_threads
from fastserve.errors import ArgumentError, CheckpointError, ShapeError, StateError

h5py = pytest.importorskip("h5py")
FOLDER = Path(__file__).parent / "references/keras_files"
sys.path.insert(0, str(FOLDER.parent))
from keras_models import MODELS  # noqa: E402

L = fs.layers


@pytest.mark.parametrize("name", MODELS)
def test_what_keras_has_saved(name: str) -> None:
    model, x = MODELS[name](fs)
    model.load_weights(FOLDER / f"{name}.weights.h5")
    with np.load(FOLDER / "answers.npz") as answers:
        np.testing.assert_allclose(
            model.predict(x), answers[name], rtol=1e-4, atol=1e-5
        )
        order = json.loads(str(answers[f"{name}/order"]))
    # get_weights gives the same arrays in the same order
    assert [list(w.shape) for w in model.get_weights()] == order


@pytest.mark.parametrize("name", MODELS)
def test_what_is_saved_is_read_and_named_as_in_keras(name: str, tmp_path: Path) -> None:
    model, x = MODELS[name](fs)
    again, _ = MODELS[name](fs)
    rng = np.random.default_rng(1)
    model.set_weights([rng.uniform(0.1, 1, w.shape) for w in model.get_weights()])
    path = tmp_path / "new" / "a.weights.h5"
    model.save_weights(path)
    again.load_weights(path)
    np.testing.assert_array_equal(again.predict(x), model.predict(x))

    def shapes(path: Path) -> dict[str, tuple[int, ...]]:
        found = {}
        with h5py.File(path) as file:
            file.visititems(
                lambda n, item: (
                    found.update({n: item.shape}) if hasattr(item, "shape") else None
                )
            )
        return found

    assert shapes(path) == shapes(FOLDER / f"{name}.weights.h5")
    assert [p.name for p in path.parent.iterdir()] == ["a.weights.h5"]


def attention() -> fs.models.Sequential:
    model = fs.models.Sequential(
        [L.MultiHeadAttention(4, 3, num_kv_heads=2, input_shape=(5, 6)), L.Dense(2)],
        seed=3,
    )
    model.build((5, 6))
    return model


def test_attention_has_three_matrices_in_a_file(tmp_path: Path) -> None:
    model, path = attention(), tmp_path / "a.weights.h5"
    model.save_weights(path)
    place = "layers/multi_head_attention"
    with h5py.File(path) as file:
        shapes = {
            name: [file[f"{place}/{name}/vars/{i}"].shape for i in range(2)]
            for name in ("query_dense", "key_dense", "value_dense", "output_dense")
        }
    assert shapes == {
        "query_dense": [(6, 4, 3), (4, 3)],
        "key_dense": [(6, 2, 3), (2, 3)],
        "value_dense": [(6, 2, 3), (2, 3)],
        "output_dense": [(4, 3, 6), (6,)],
    }
    other = attention()
    other.set_weights([w * 0 for w in other.get_weights()])
    other.load_weights(path)
    for a, b in zip(other.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def dense(*units: int, names: Any = (None,) * 9) -> fs.models.Sequential:
    model = fs.models.Sequential(
        [L.Dense(n, name=name) for n, name in zip(units, names, strict=False)], seed=2
    )
    model.build((4,))
    return model


def test_another_model_changes_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "a.weights.h5"
    dense(3, 2).save_weights(path)
    for other, reason in (
        (dense(3, 5), r"dense_1/vars/0 has shape \(3, 2\), not \(3, 5\)"),
        (dense(3, 2, 2), "dense_2/vars/0 is missing"),
        (dense(3), "dense_1/vars/0 has no place in the model"),
    ):
        before = [w.copy() for w in other.get_weights()]
        with pytest.raises(CheckpointError, match=reason):
            other.load_weights(path)
        for a, b in zip(other.get_weights(), before, strict=True):
            np.testing.assert_array_equal(a, b)
    other = dense(3, 5)
    with caplog.at_level(logging.WARNING, "fastserve"):
        logging.getLogger("fastserve").propagate = True
        other.load_weights(path, skip_mismatch=True)
    assert "left as they are: layers/dense_1/vars/0 has shape" in caplog.text
    np.testing.assert_array_equal(other.get_weights()[0], dense(3, 2).get_weights()[0])


def test_what_keras_saves_besides_weights_is_passed_over(tmp_path: Path) -> None:
    path, model = tmp_path / "a.weights.h5", dense(3)
    model.save_weights(path)
    with h5py.File(path, "a") as file:
        file["optimizer/vars/0"] = np.zeros(3)
        file["layers/dropout/seed_generator/vars/0"] = np.zeros(2, np.uint32)
        file["_loss_tracker/vars/0"] = 1.0
    model.load_weights(path)


def test_damaged_files(tmp_path: Path) -> None:
    path, model = tmp_path / "a.weights.h5", dense(300)
    model.save_weights(path)
    whole = path.read_bytes()
    for data in (b"", b"nothing", whole[:100], whole[: len(whole) // 2]):
        path.write_bytes(data)
        with pytest.raises(CheckpointError, match="a sound HDF5 file"):
            model.load_weights(path)
    with pytest.raises(CheckpointError, match="there is none"):
        model.load_weights(tmp_path / "b.weights.h5")
    path.write_bytes(whole)
    with h5py.File(path, "a") as file:
        del file["layers/dense/vars/1"]
        file["layers/dense/vars/1"] = ["text"] * 300
    with pytest.raises(CheckpointError, match=r"vars/1 is of type"):
        model.load_weights(path)
    with h5py.File(path, "a") as file:  # a group where a weight should be
        del file["layers/dense/vars/1"]
        file.create_group("layers/dense/vars/1")
    with pytest.raises(CheckpointError, match=r"vars/1 is missing"):
        model.load_weights(path)


def test_damage_that_hdf5_reads_without_an_end(tmp_path: Path) -> None:
    path, model = tmp_path / "a.weights.h5", dense(3)
    model.save_weights(path)
    with h5py.File(path, "a") as file:
        file["layers"].attrs["text"] = "of any length"  # in a global heap
    whole = path.read_bytes()

    free, place = struct.unpack_from("<QQ", whole, whole.index(b"HEAP") + 16)
    itself = bytearray(whole)  # is the next free block
    struct.pack_into("<Q", itself, place + free, free)

    first = whole.index(b"GCOL") + 16
    size = struct.unpack_from("<Q", whole, first + 8)[0]
    empty = bytearray(whole)  # free, of 0 bytes, behind the text
    struct.pack_into("<Q", empty, first + 16 + -(-size // 8) * 8 + 8, 0)
    around = bytearray(whole)  # with its header of 16 bytes it is 2**64
    struct.pack_into("<Q", around, first + 8, 2**64 - 16)

    for data, reason in (
        (itself, "free blocks have no end"),
        (empty, "objects have no end"),
        (around, "objects have no end"),
        (whole[:8] + b"\4" + whole[9:], "not a superblock with sizes of 8"),
        (whole[:13] + b"\4" + whole[14:], "not a superblock with sizes of 8"),
        (bytes(512) + whole, "no HDF5 at its start"),
    ):
        path.write_bytes(data)
        with pytest.raises(CheckpointError, match=reason):
            model.load_weights(path)
    path.write_bytes(whole)
    model.load_weights(path)


def test_types_that_numpy_does_not_have(tmp_path: Path) -> None:
    path, model = tmp_path / "a.weights.h5", dense(3)
    model.save_weights(path)
    # of a float32: offset, bits; place and size of exponent and mantissa; bias
    layout = "<HHBBBBI"
    float32 = struct.pack(layout, 0, 32, 23, 8, 0, 23, 127)
    odd = struct.pack(layout, 0, 32, 23, 8, 0, 23, 1 << 20)
    path.write_bytes(path.read_bytes().replace(float32, odd))
    with pytest.raises(CheckpointError, match="Insufficient precision"):
        model.load_weights(path)

    model.save_weights(path)
    with h5py.File(path, "a") as file:
        del file["layers/dense/vars/1"]
        file["layers/dense/vars/1"] = np.full(3, b"x", "S77")
    # texts of 77 bytes, filled with zeros; 0 is ASCII, 1 UTF-8
    coded = {code: struct.pack("<BBxxI", 0x13, code << 4 | 1, 77) for code in (0, 2)}
    path.write_bytes(path.read_bytes().replace(coded[0], coded[2]))
    with pytest.raises(CheckpointError, match="Unknown string encoding"):
        model.load_weights(path)


def test_weights_in_other_files_are_not_read(tmp_path: Path) -> None:
    """A file could name any other that the user may read, and have it published."""
    path, model = tmp_path / "a.weights.h5", dense(3)
    other = tmp_path / "other.h5"
    place = "layers/dense/vars/1"
    (tmp_path / "secret").write_bytes(bytes(range(12)))
    with h5py.File(other, "w") as file:
        file[place] = np.zeros(3, np.float32)
    virtual = h5py.VirtualLayout((3,), np.float32)
    virtual[:] = h5py.VirtualSource(other, place, (3,))

    def add_outside(file: Any) -> None:
        outside = [(str(tmp_path / "secret"), 0, 12)]
        file.create_dataset(place, (3,), np.float32, external=outside)

    def add_link(file: Any) -> None:
        file[place] = h5py.ExternalLink(other, place)

    def add_group(file: Any) -> None:
        del file["layers"]
        file["layers"] = h5py.ExternalLink(other, "layers")

    def add_virtual(file: Any) -> None:
        file.create_virtual_dataset(place, virtual)

    for add, reason in (
        (add_outside, "vars/1 is kept in another file"),
        (add_virtual, "vars/1 is kept in another file"),
        (add_link, "vars/1 is a link"),
        (add_group, "vars/0 is a link"),
    ):
        model.save_weights(path)
        with h5py.File(path, "a") as file:
            del file[place]
            add(file)
        with pytest.raises(CheckpointError, match=reason):
            model.load_weights(path)


def test_names_and_the_missing_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = dense(3)
    with pytest.raises(ArgumentError, match=r"ends in \.weights\.h5"):
        model.save_weights(tmp_path / "a.h5")
    model.save_weights(tmp_path / "a.safetensors")
    with pytest.raises(ArgumentError, match="with Keras' files"):
        model.load_weights(tmp_path / "a.safetensors", skip_mismatch=True)
    monkeypatch.setitem(sys.modules, "h5py", None)
    for act in (model.save_weights, model.load_weights):
        with pytest.raises(StateError, match=r"fastserve-train\[hdf5\]"):
            act(tmp_path / "a.weights.h5")
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


def test_checkpoints_on_ranks(tmp_path: Path) -> None:
    def program(comm: Communicator) -> Any:
        model = dense(3, 2)
        model.compile("sgd", "mse")
        path = tmp_path / "{epoch}.weights.h5"
        saved = fs.callbacks.ModelCheckpoint(path, save_weights_only=True)
        model.fit(np.ones((6, 4)), np.ones((6, 2)), 3, 2, 0, saved)
        other = dense(3, 2)
        other.load_weights(tmp_path / "2.weights.h5")
        return [w.tobytes() for w in other.get_weights()], [
            w.tobytes() for w in model.get_weights()
        ]

    for saved, trained in run_threads(2, program):
        assert saved == trained


def test_set_weights_checks_shapes_before_it_changes_any() -> None:
    model = dense(3, 2)
    before = model.get_weights()
    with pytest.raises(ShapeError):
        model.set_weights([before[0] + 1, before[1], before[2].T, before[3]])
    np.testing.assert_array_equal(model.get_weights()[0], before[0])


# -- Keras 2 ---------------------------------------------------------------------------


def old_file(path: Path, layers: dict[str, list[np.ndarray]], inside: bool) -> None:
    """Write weights as Keras 2 did."""
    with h5py.File(path, "w") as file:
        group = file.create_group("model_weights") if inside else file
        group.attrs["layer_names"] = [name.encode() for name in layers]
        for name, arrays in layers.items():
            one = group.create_group(name)
            names = [f"{name}/weight_{i}:0" for i in range(len(arrays))]
            one.attrs["weight_names"] = [n.encode() for n in names]
            for weight, array in zip(names, arrays, strict=True):
                one[weight] = array


@pytest.mark.parametrize("inside", [True, False])
def test_files_of_keras_2(tmp_path: Path, inside: bool) -> None:
    rng = np.random.default_rng(0)
    model = fs.models.Sequential(
        [
            L.Dense(3, input_shape=(4,), name="one"),
            L.BatchNormalization(),
            L.Dropout(0.5),
            L.Dense(2, name="two"),
        ]
    )
    model.build((4,))
    values = [rng.uniform(size=w.shape) for w in model.get_weights()]
    path = tmp_path / "old.h5"
    layers = {"one": values[:2], "norm": values[2:6], "drop": [], "two": values[6:]}
    old_file(path, layers, inside)
    model.load_weights(path)
    for a, b in zip(model.get_weights(), values, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)
    with h5py.File(path, "a") as file:
        (file["model_weights"] if inside else file).attrs["layer_names"] = b"three"
    with pytest.raises(CheckpointError, match="there is no three"):
        model.load_weights(path)
    with h5py.File(path, "a") as file:
        group = file["model_weights"] if inside else file
        kind = h5py.vlen_dtype(np.uint8)
        lists = np.empty(1, object)
        lists[0] = np.zeros(3, np.uint8)
        group.attrs.create("layer_names", lists, dtype=kind)
    with pytest.raises(CheckpointError, match="layer_names is of type object, not"):
        model.load_weights(path)
    old_file(path, {"other": values[:1], "two": [v + 1 for v in values[6:]]}, inside)
    with pytest.raises(CheckpointError, match="2 layers with weights where the model"):
        model.load_weights(path)
    model.load_weights(path, by_name=True)
    np.testing.assert_allclose(model.get_weights()[6], values[6] + 1, rtol=1e-6)
    np.testing.assert_allclose(model.get_weights()[0], values[0], rtol=1e-6)
    old_file(path, {**layers, "two": values[6:7]}, inside)
    with pytest.raises(CheckpointError, match="two has 1 weights, not 2"):
        model.load_weights(path)
    path = tmp_path / "new.weights.h5"
    model.save_weights(path)
    with pytest.raises(ArgumentError, match="files of Keras 2"):
        model.load_weights(path, by_name=True)


def test_a_cudnn_lstm_of_keras_2_becomes_an_lstm(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    kernel, recurrent = rng.uniform(size=(3, 8)), rng.uniform(size=(2, 8))
    biases = rng.uniform(size=(2, 8))
    # in such a file a gate's matrix (features, units) lies as (units, features)
    gates = [g.T.ravel().reshape(3, 2) for g in np.hsplit(kernel, 4)]
    states = [g.T for g in np.hsplit(recurrent, 4)]
    path = tmp_path / "old.hdf5"
    weights = [np.hstack(gates), np.hstack(states), biases.ravel()]
    old_file(path, {"rnn": weights}, True)
    model = fs.models.Sequential([L.LSTM(2, input_shape=(5, 3))])
    model.build((5, 3))
    model.load_weights(path)
    for found, wanted in zip(
        model.get_weights(), (kernel, recurrent, biases.sum(axis=0)), strict=True
    ):
        np.testing.assert_allclose(found, wanted, rtol=1e-6)


def test_a_name_that_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "a.weights.h5"
    model = fs.models.Sequential([fs.layers.Dense(3, input_shape=(4,))])
    model.save_weights(path)
    content = path.read_bytes()
    assert b"dense" in content
    for bad in (b"\xffense", b"den\xffe"):
        path.write_bytes(content.replace(b"dense", bad))
        with pytest.raises(CheckpointError):
            model.load_weights(path)
