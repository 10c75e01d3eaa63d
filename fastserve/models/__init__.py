"""Models: ``Sequential``, ``Model``, ``GPT``, and ``load_model``."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from fastserve.core import at_most
from fastserve.errors import CheckpointError, DataError, FastserveError
from fastserve.models.gpt import GPT
from fastserve.models.model import Model
from fastserve.models.sequential import Sequential
from fastserve.training import checkpoint

__all__ = [
    "GPT",
    "Model",
    "Sequential",
    "clone_model",
    "load_model",
    "model_from_json",
]

# what constructors of layers raise for arguments of other types, values and sizes
_FAULTS = (
    *(ArithmeticError, AttributeError, LookupError, TypeError, ValueError),
    *(MemoryError, RecursionError, SyntaxError),  # the last of a dtype
)
_SHOWN = 500  # characters of a fault
_BYTES = 8  # of a weight, with its gradient


def load_model(
    filepath: str | Path, custom_objects: Mapping[str, Any] | None = None
) -> Model:
    """Return the model that ``model.save`` wrote, with its weights.

    Args:
        filepath: the file; any ending.
        custom_objects: classes of the user's own layers by their names.

    Raises CheckpointError if the file is damaged, holds weights alone, or is Keras'.
    """
    with suppress(OSError), open(filepath, "rb") as file:
        if file.read(4) in (b"PK\x03\x04", b"\x89HDF"):  # zip, HDF5
            raise CheckpointError(
                "expected a file that model.save wrote",
                f"{filepath}, in a format of Keras",
                "make the same layers and call load_weights on a file that Keras' "
                "save_weights('a.weights.h5') wrote",
            )
    path = Path(filepath)
    text = checkpoint.read_metadata(path).get("fastserve")
    sizes = checkpoint.read_sizes(path)
    with at_most(max(1, sum(sizes))):
        try:
            config = json.loads(text or "")
            if config["class"] == "GPT" and config["n_layer"] > len(sizes):
                raise ValueError(f"n_layer {config['n_layer']} of {len(sizes)} tensors")
            model = _from_config(config, custom_objects)
            model.store  # noqa: B018  builds it
        except _FAULTS as error:
            raise CheckpointError(
                "expected a file with weights and architecture",
                f"{filepath}: {repr(error)[:_SHOWN]}",
                "write it with model.save; for save_weights use model.load_weights",
            ) from None
    model.load_weights(filepath)
    return model


def model_from_json(
    json_string: str, custom_objects: Mapping[str, Any] | None = None
) -> Model:
    """Return a model of the architecture that ``model.to_json()`` gave, with new
    weights.

    Args:
        json_string: that text.
        custom_objects: classes of the user's own layers by their names.

    Raises DataError if the text isn't one, UnknownNameError for a layer that is
    neither this library's nor among ``custom_objects``.
    """
    most = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // _BYTES
    try:
        with at_most(most):
            return _from_config(json.loads(json_string), custom_objects)
    except FastserveError:
        raise
    except _FAULTS as error:
        raise DataError(
            "expected the text that model.to_json() returned",
            repr(error)[:_SHOWN],
            "write it again",
        ) from None


def clone_model(model: Model, custom_objects: Mapping[str, Any] | None = None) -> Model:
    """Return a model of the same architecture, with new weights.

    Raises UnknownNameError for a layer that is neither this library's nor among
    ``custom_objects``.
    """
    return _from_config(model.get_config(), custom_objects)


def _from_config(config: dict[str, Any], custom_objects: Any) -> Model:
    kinds: dict[str, Callable[..., Model]] = {
        "GPT": GPT.from_config,
        "Sequential": Sequential.from_config,
        "Functional": Model.from_config,
    }
    return kinds[config["class"]](config, custom_objects)
