"""Models: ``Sequential``, ``Model``, ``GPT``, and ``load_model``."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from fastserve.errors import CheckpointError, DataError
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
    text = checkpoint.read_metadata(Path(filepath)).get("fastserve")
    try:
        model = _from_config(json.loads(text or ""), custom_objects)
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            "expected a file with weights and architecture",
            f"{filepath}: {error!r}",
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
    try:
        return _from_config(json.loads(json_string), custom_objects)
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            "expected the text that model.to_json() returned",
            repr(error),
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
