"""Weights in Keras' HDF5 files: ``.weights.h5`` of Keras 3, older ``.h5``.

Keras 3 names weights by their places: ``layers/dense_1/vars/0`` is the first weight of
the second Dense layer of a model. Layers inside of a layer are named by the attribute
that holds them, models inside of a model have ``layers`` again, and the weights of a
recurrent layer are those of its ``cell``. So a file fits each model of the same
architecture, whatever the layers' names are.

Keras 2 lists layers by their names, each with the names of its weights. They belong to
our layers in order, or by name.

Of attention, ours has one matrix for queries, keys and values; the files have three.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fastserve.core import Array, Layer
from fastserve.errors import ArgumentError, CheckpointError, FastserveError, StateError
from fastserve.layers.attention import MultiHeadAttention
from fastserve.layers.graph import snake_case
from fastserve.layers.recurrent import Recurrent
from fastserve.models import hdf5
from fastserve.training.files import clean, replace, sync, writing

ENDING = ".weights.h5"
_LISTED = 5  # weights that an error names
# what Keras saves besides a model's weights
_IGNORED = ("seed_generator", "optimizer", "compile", "metrics", "loss")

log = logging.getLogger("fastserve")


@dataclass
class Entry:
    """A layer's weights in Keras' order, as views that can be read and written."""

    path: str
    name: str
    arrays: list[Array]


def is_keras_file(path: str | Path) -> bool:
    """Return whether a file's name is that of an HDF5 file."""
    return str(path).endswith((".h5", ".hdf5"))


def entries(root: Layer) -> list[Entry]:
    """Return the weights of a model, and of all inside, at their places in a file.

    What is used in several places is there once, in the first.
    """
    return list(_entries(root, "", root.name or snake_case(root.label), set()))


def _entries(layer: Layer, path: str, name: str, seen: set[int]) -> Iterator[Entry]:
    if id(layer) in seen:
        return
    seen.add(id(layer))

    def below(part: str) -> str:
        return f"{path}/{part}" if path else part

    if isinstance(layer, MultiHeadAttention):
        yield Entry(path, name, [])
        yield from _attention(layer, path)
        return
    own = sorted(layer.own_parameters(), key=lambda p: p.moving)  # the trained first
    values = [parameter.value for parameter in own]
    cell = isinstance(layer, Recurrent)
    yield Entry(path, name, [] if cell else values)
    if cell:
        yield Entry(below("cell"), f"{snake_case(layer.label)}_cell", values)
    inside = getattr(layer, "layers", None)
    if not isinstance(inside, list):
        for part, child in layer.children().items():
            yield from _entries(child, below(part), part, seen)
        return
    counts: dict[str, int] = {}
    for child in inside:
        kind = snake_case(child.label)
        count = counts[kind] = counts.get(kind, -1) + 1
        place = below(f"layers/{kind}_{count}" if count else f"layers/{kind}")
        yield from _entries(child, place, child.name or kind, seen)


def _attention(layer: MultiHeadAttention, path: str) -> Iterator[Entry]:
    """Yield query, key, value (features, heads, width) and output (heads, width,
    features), each with its bias."""
    width = layer.key_dim or 0
    heads = [layer.num_heads, layer.num_kv_heads, layer.num_kv_heads]
    matrices = [p.value for p in layer.qkv.own_parameters()]
    start = 0
    for part, count in zip(("query", "key", "value"), heads, strict=True):
        columns = slice(start, start + count * width)
        arrays = [m[..., columns] for m in matrices]
        start = columns.stop
        split = [a.reshape(*a.shape[:-1], count, width) for a in arrays]
        yield Entry(f"{path}/{part}_dense", part, split)
    kernel, *bias = [p.value for p in layer.output.own_parameters()]
    shaped = kernel.reshape(layer.num_heads, width, -1)
    yield Entry(f"{path}/output_dense", "attention_output", [shaped, *bias])


def save(path: Path, root: Layer) -> None:
    """Write a file that Keras' ``load_weights`` reads; it replaces one that is there.

    Raises ArgumentError for another ending, StateError without h5py, CheckpointError if
    it can't be written; a file that was there is then as it was.
    """
    if not path.name.endswith(ENDING):
        raise ArgumentError(
            f"expected a name that ends in {ENDING}, as Keras wants it, or in "
            ".safetensors",
            f"{path.name}",
            "rename it",
        )
    h5py = _library()
    with writing(path):
        clean(path.parent, path.name.replace(".", r"\."))
        replace(path, lambda place: _write(h5py, place, root))


def _write(h5py: Any, path: Path, root: Layer) -> None:
    with h5py.File(path, "w") as file:
        for entry in entries(root):
            group = file.create_group(f"{entry.path}/vars" if entry.path else "vars")
            group.attrs["name"] = entry.name
            for i, array in enumerate(entry.arrays):
                group[str(i)] = array
    sync(path)


def load(
    path: Path, root: Layer, skip_mismatch: bool = False, by_name: bool = False
) -> None:
    """Set the weights from a file of Keras 3 or 2: all of them or none.

    Args:
        skip_mismatch: leave weights as they are that the file doesn't have, or in
            another shape, and say so in a warning.
        by_name: of Keras 2 files, by the layers' names instead of their order, and
            only those that have the same.

    Raises StateError without h5py, CheckpointError for a damaged file, or one of
    another model.
    """
    with _opened(path) as file:
        old = _member(file, "model_weights") or file
        if "layer_names" in old.attrs:
            found, faults = _old_weights(old, root, by_name)
        elif by_name:
            raise ArgumentError(
                "load_weights: expected by_name with files of Keras 2 alone",
                f"{path.name}, where weights have no names",
                "leave it out; layers are known by their places",
            )
        else:
            found, faults = _weights(file, root)
        if faults and not skip_mismatch:
            raise _foreign(path, faults)
        if faults:
            log.warning("%s: left as they are: %s", path, "; ".join(faults))
        values = [(target, _read(dataset)) for target, dataset in found]
    for target, value in values:
        target[...] = value


def _weights(file: Any, root: Layer) -> tuple[list[tuple[Array, Any]], list[str]]:
    """Return pairs of a weight and what the file has for it, and what doesn't fit."""
    found: list[tuple[Array, Any]] = []
    faults: list[str] = []
    expected = set()
    for entry in entries(root):
        place = f"{entry.path}/vars" if entry.path else "vars"
        for i, array in enumerate(entry.arrays):
            expected.add(f"{place}/{i}")
            dataset = _member(file, f"{place}/{i}")
            fault = _fault(f"{place}/{i}", array, dataset)
            if fault is None:
                found.append((array, dataset))
            else:
                faults.append(fault)
    for name in _names(file):
        if name not in expected and not _is_ignored(name):
            faults.append(f"{name} has no place in the model")
    return found, faults


def _old_weights(
    group: Any, root: Layer, by_name: bool
) -> tuple[list[tuple[Array, Any]], list[str]]:
    saved = []
    for name in _texts(group, "layer_names"):
        inside = _known(group, name)
        weights = [_known(inside, w) for w in _texts(inside, "weight_names")]
        if weights:
            saved.append((name, weights))
    layers = [(name, arrays) for name, arrays in _old_layers(root) if arrays]
    faults: list[str] = []
    if by_name:
        known = dict(layers)
        pairs = [(n, known[n], datasets) for n, datasets in saved if n in known]
    else:
        if len(saved) != len(layers):
            faults.append(
                f"{len(saved)} layers with weights where the model has {len(layers)}"
            )
        pairs = [
            (name, arrays, datasets)
            for (_, arrays), (name, datasets) in zip(layers, saved, strict=False)
        ]
    found = []
    for name, arrays, datasets in pairs:
        if len(arrays) != len(datasets):
            faults.append(f"{name} has {len(datasets)} weights, not {len(arrays)}")
            continue
        if _is_cudnn(arrays, datasets):
            datasets = _from_cudnn([_read(dataset) for dataset in datasets])
        for i, (array, dataset) in enumerate(zip(arrays, datasets, strict=True)):
            fault = _fault(f"{name}, weight {i}", array, dataset)
            if fault is None:
                found.append((array, dataset))
            else:
                faults.append(fault)
    return found, faults


def _is_cudnn(arrays: list[Array], datasets: list[Any]) -> bool:
    """Return whether these are the weights of a CuDNNLSTM for an LSTM."""
    shapes = [array.shape for array in arrays]
    if len(shapes) != 3 or shapes[2] != (4 * shapes[1][0],):
        return False
    if not all(map(_is_array, datasets)) or any(d.dtype.kind != "f" for d in datasets):
        return False
    return [d.shape for d in datasets] == [*shapes[:2], (2 * shapes[2][0],)]


def _from_cudnn(weights: list[Array]) -> list[Array]:
    """Return a CuDNNLSTM's kernel, recurrent kernel and bias as those of an LSTM.

    Each gate's matrices are transposed in it, the first in place of its shape, and
    there are two biases, of the input and of the states, which are added.
    """
    kernel, recurrent, bias = weights
    gates = [g.T.reshape(g.shape, order="F") for g in np.hsplit(kernel, 4)]
    states = [g.T for g in np.hsplit(recurrent, 4)]
    return [np.hstack(gates), np.hstack(states), np.add(*np.split(bias, 2))]


def _old_layers(root: Layer) -> Iterator[tuple[str, list[Array]]]:
    """Yield each layer of the model with all weights inside, the trained ones first."""
    inside = getattr(root, "layers", None)
    for layer in inside if isinstance(inside, list) else [root]:
        own = {id(p): p for p in layer.parameters()}.values()
        arrays = [p.value for p in sorted(own, key=lambda p: p.moving)]
        yield layer.name or snake_case(layer.label), arrays


def _is_array(dataset: Any) -> bool:
    return hasattr(dataset, "shape")  # a group has none


def _fault(name: str, array: Array, dataset: Any) -> str | None:
    if not _is_array(dataset):
        return f"{name} is missing"
    if dataset.shape != array.shape:
        return f"{name} has shape {dataset.shape}, not {array.shape}"
    if dataset.dtype.kind not in "fiu":
        return f"{name} is of type {dataset.dtype}"
    return None


def _member(group: Any, name: str) -> Any | None:
    """Return the group or the dataset at a path, None if there is none.

    Raises OSError for links, and for what is kept in another file: the one that is
    read could name any.
    """
    h5py = _library()
    item = group
    for part in name.strip("/").split("/"):
        link = item.get(part, getlink=True) if isinstance(item, h5py.Group) else None
        if link is None:
            return None
        if not isinstance(link, h5py.HardLink):
            raise OSError(f"{name} is a link")
        item = item[part]
    if isinstance(item, h5py.Dataset) and (item.external or item.is_virtual):
        raise OSError(f"{name} is kept in another file")
    return item


def _known(group: Any, name: str) -> Any:
    """Return a member that the file itself says it has."""
    if (item := _member(group, name)) is None:
        raise KeyError(f"there is no {name}")
    return item


def _texts(group: Any, attribute: str) -> list[str]:
    kept = group.attrs.get_id(attribute)
    if kept.shape == (0,):  # of numbers, as nothing says what it would be
        return []
    if _library().check_string_dtype(kept.dtype) is None:
        # damaged lists of other things crash HDF5 2.0 when it reads them
        raise ValueError(f"{attribute} is of type {kept.dtype}, not texts")
    return [_text(name) for name in np.atleast_1d(group.attrs[attribute])]


def _names(file: Any) -> list[str]:
    names: list[str] = []

    def visit(name: str, item: Any) -> None:
        if hasattr(item, "shape"):
            names.append(_text(name))  # of other bytes than UTF-8, h5py gives these

    file.visititems(visit)
    return names


def _is_ignored(name: str) -> bool:
    first, *rest = name.split("/")
    others = first not in ("layers", "vars") and first.strip("_").startswith(_IGNORED)
    return others or "seed_generator" in rest


def _read(dataset: Any) -> Array:
    return np.asarray(dataset[()])


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    h5py = _library()
    if not path.is_file():
        raise CheckpointError(
            f"expected a file of weights: {path}", "there is none", "check the name"
        )
    try:
        hdf5.check(path)
        with h5py.File(path, "r") as file:
            yield file
    except FastserveError:
        raise
    except (OSError, KeyError, RuntimeError, TypeError, ValueError) as error:
        # h5py has each of these for a file, TypeError and ValueError for types of data
        raise _damaged(path, str(error)) from error


def _text(name: Any) -> str:
    return name.decode() if isinstance(name, bytes) else str(name)


def _library() -> Any:
    try:
        import h5py
    except ImportError as error:
        raise StateError(
            "expected the library h5py, for files in HDF5",
            str(error),
            "pip install 'fastserve-train[hdf5]'",
        ) from None
    return h5py


def _damaged(path: Path, reason: str) -> CheckpointError:
    return CheckpointError(
        f"expected a sound HDF5 file: {path}", reason, "save it or fetch it again"
    )


def _foreign(path: Path, faults: list[str]) -> CheckpointError:
    shown = "; ".join(faults[:_LISTED])
    more = len(faults) - _LISTED
    return CheckpointError(
        f"expected the weights of this model in {path}",
        f"{shown}{f'; and {more} more' if more > 0 else ''}",
        "make the model that they were saved from, or give skip_mismatch=True",
    )
