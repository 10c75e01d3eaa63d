"""A model's weights, in arrays and in files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from fastserve.comm import world
from fastserve.errors import ArgumentError, CheckpointError
from fastserve.models import keras_files
from fastserve.models.serialization import without_arrays
from fastserve.training import checkpoint

if TYPE_CHECKING:
    from fastserve.models.model import Model


def save_weights(model: Model, path: Path, overwrite: bool) -> None:
    """See ``Model.save_weights``."""
    _check_absent(path, overwrite)
    comm = world()
    with comm.after_rank_0():
        if comm.rank == 0 and keras_files.is_keras_file(path):
            keras_files.save(path, model._built_root())
        elif comm.rank == 0:
            checkpoint.save_weights(path, model.store, {})


def load_weights(model: Model, path: Path, skip_mismatch: bool, by_name: bool) -> None:
    """See ``Model.load_weights``."""
    if keras_files.is_keras_file(path):
        keras_files.load(path, model._built_root(), skip_mismatch, by_name)
    elif skip_mismatch or by_name:
        raise ArgumentError(
            "load_weights: expected skip_mismatch and by_name with Keras' files",
            f"{path}",
            "leave them out",
        )
    else:
        checkpoint.load_weights(path, model.store)


def save(model: Model, path: Path, overwrite: bool) -> None:
    """See ``Model.save``."""
    if keras_files.is_keras_file(path):
        raise ArgumentError(
            "save: expected a path that doesn't end in .h5",
            f"{path}",
            "take .safetensors, or save_weights for Keras' .weights.h5",
        )
    _check_absent(path, overwrite)
    with without_arrays():
        metadata = {"fastserve": json.dumps(model.get_config())}
    comm = world()
    with comm.after_rank_0():
        if comm.rank == 0:
            checkpoint.save_weights(path, model.store, metadata)


def _check_absent(path: Path, overwrite: bool) -> None:
    """Raise CheckpointError, alike on all ranks, for a file that is to be kept."""
    if not overwrite and world().broadcast_obj(path.exists()):
        raise CheckpointError(
            "expected a path where no file is, as overwrite is false",
            f"{path}",
            "take another path, or leave out overwrite",
        )
