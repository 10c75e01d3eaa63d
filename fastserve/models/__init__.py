"""Models: ``Sequential``, ``GPT``, and ``load_model``."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastserve.errors import CheckpointError
from fastserve.models.gpt import GPT
from fastserve.models.model import Model
from fastserve.models.sequential import Sequential
from fastserve.training import checkpoint

__all__ = ["GPT", "Model", "Sequential", "load_model"]


def load_model(path: str | Path) -> Model:
    """Return the model that ``model.save(path)`` wrote, with its weights.

    Raises CheckpointError if the file is damaged or holds weights alone.
    """
    text = checkpoint.read_metadata(Path(path)).get("fastserve")
    kinds: dict[str, Callable[[dict[str, Any]], Model]] = {
        "GPT": GPT.from_config,
        "Sequential": Sequential.from_config,
    }
    try:
        config = json.loads(text or "")
        model = kinds[config["class"]](config)
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            "expected a file with weights and architecture",
            f"{path}: {error!r}",
            "write it with model.save; for save_weights use model.load_weights",
        ) from None
    model.load_weights(path)
    return model
