"""Helpers for arrays of labels and sequences, by Keras' names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from fastserve.core import Array, gradient_error
from fastserve.data import PyDataset
from fastserve.errors import ArgumentError, DataError, ShapeError, UnknownNameError

__all__ = [
    "PyDataset",
    "gradient_error",
    "normalize",
    "pad_sequences",
    "to_categorical",
]

# what Keras' users look for here, and what takes its place
_ELSEWHERE = {
    "image_dataset_from_directory": "jobs read folders of images: data.type images",
    "set_random_seed": "give the seed to the model: Sequential(layers, seed=1)",
    "text_dataset_from_directory": "jobs read folders of texts: data.type texts",
}


def __getattr__(name: str) -> Any:
    hint = f"; {_ELSEWHERE[name]}" if name in _ELSEWHERE else ""
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}{hint}")


def to_categorical(x: Any, num_classes: int | None = None) -> Array:
    """Return one-hot rows (..., num_classes), float64, of labels x (...) or (..., 1).

    ``num_classes`` is the largest label + 1 if it isn't given. Raises DataError for
    labels that aren't in 0..num_classes-1.
    """
    labels = np.asarray(x)
    if labels.dtype.kind not in "biuf" or not (labels == labels.astype(int)).all():
        raise DataError(
            "to_categorical: expected whole numbers",
            f"an array of {labels.dtype}",
            "number the classes from 0",
        )
    labels = labels.astype(int)
    if labels.ndim > 1 and labels.shape[-1] == 1:
        labels = labels[..., 0]
    count = num_classes or int(labels.max(initial=-1)) + 1
    if labels.size and not 0 <= labels.min() <= labels.max() < count:
        raise DataError(
            f"to_categorical: expected labels in 0..{count - 1}",
            f"labels from {labels.min()} to {labels.max()}",
            "change num_classes, or number the classes from 0",
        )
    rows = np.zeros((labels.size, count))
    rows[np.arange(labels.size), labels.reshape(-1)] = 1
    return rows.reshape(*labels.shape, count)


def pad_sequences(
    sequences: Sequence[Any],
    maxlen: int | None = None,
    dtype: DTypeLike = "int32",
    padding: str = "pre",
    truncating: str = "pre",
    value: Any = 0.0,
) -> Array:
    """Return sequences of several lengths as one array (sequences, maxlen, ...).

    ``padding`` says on which side ``value`` fills up short ones, ``truncating`` on
    which side long ones are cut: 'pre' or 'post'. ``maxlen`` is the longest length if
    it isn't given, ``dtype`` the type of the array.

    Raises UnknownNameError for another side, DataError for what isn't a list of
    sequences, ShapeError for elements of different shapes.
    """
    for side in (padding, truncating):
        if side not in ("pre", "post"):
            raise UnknownNameError("side of pad_sequences", side, ["pre", "post"])
    try:
        lengths = [len(sequence) for sequence in sequences]
    except TypeError as error:
        raise DataError(
            "pad_sequences: expected a list of sequences",
            str(error),
            "put a single sequence into a list",
        ) from None
    length = max(lengths, default=0) if maxlen is None else maxlen
    if length < 0:
        raise ArgumentError("pad_sequences: expected maxlen of 0 or more", f"{maxlen}")
    first: Any = next((s for s in sequences if len(s)), [])
    shape = np.shape(first)[1:]
    padded = np.full((len(lengths), length, *shape), value, dtype)
    for number, sequence in enumerate(sequences):
        kept = np.asarray(sequence, dtype)
        if not len(kept):
            continue
        if kept.shape[1:] != shape:
            raise ShapeError(
                f"pad_sequences: expected elements of shape {shape}, as the first has",
                f"{kept.shape[1:]} in sequence {number}",
                "make all elements alike",
            )
        if len(kept) > length:
            kept = kept[len(kept) - length :] if truncating == "pre" else kept[:length]
        if padding == "pre":
            padded[number, length - len(kept) :] = kept
        else:
            padded[number, : len(kept)] = kept
    return padded


def normalize(x: Any, axis: int = -1, order: int = 2) -> Array:
    """Return x divided by its norm of this order along ``axis``; zeros stay zeros."""
    array = np.asarray(x)
    norm = np.linalg.norm(array, order, axis, keepdims=True)
    return np.asarray(array / np.where(norm == 0, 1, norm))
