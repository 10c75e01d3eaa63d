"""Models in files of somebody else: they ask for no more than their file can hold."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

import fastserve as fs
from fastserve.errors import ArgumentError, CheckpointError, DataError, FastserveError
from fastserve.models import load_model, model_from_json


def changed(path: Path, model: Any, change: Callable[[dict[str, Any]], Any]) -> Path:
    """Save a model with another architecture than it has."""
    model.save(path)
    with safe_open(path, "np") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata = dict(file.metadata())
    config = json.loads(metadata["fastserve"])
    text = change(config)
    metadata["fastserve"] = text if isinstance(text, str) else json.dumps(config)
    save_file(tensors, path, metadata)
    return path


def dense() -> fs.models.Sequential:
    return fs.models.Sequential([fs.layers.Dense(3, input_shape=(4,))])


def units(config: dict[str, Any]) -> None:
    for layer in config["layers"]:
        if layer["class"] == "Dense":
            layer["arguments"]["units"] = 10**8


def layers(config: dict[str, Any]) -> None:
    config["n_layer"] = 10**7


@pytest.mark.parametrize(
    ("make", "change", "named"),
    [
        (dense, units, "at most"),
        (lambda: fs.models.GPT(7, 4, 1, 1, 8), layers, "n_layer 10000000 of"),
        (dense, lambda config: "[" * 100_000, "RecursionError"),
        (dense, lambda config: '{"class": "Sequential", "layers": 7}', "TypeError"),
        (dense, lambda config: "[1]", "TypeError"),
    ],
    ids=["units", "n_layer", "nested", "no layers", "a list"],
)
def test_no_more_is_made_than_the_file_has(
    make: Any, change: Any, named: str, tmp_path: Path
) -> None:
    path = changed(tmp_path / "m.safetensors", make(), change)
    start = time.process_time()
    with pytest.raises(FastserveError, match=named) as caught:
        load_model(path)
    assert isinstance(caught.value, CheckpointError) or named == "at most"
    assert time.process_time() - start < 2


@pytest.mark.parametrize("name", ["StringLookup", "IntegerLookup", "TextVectorization"])
def test_no_file_is_read_for_a_saved_vocabulary(name: str) -> None:
    layer = {"class": name, "arguments": {"vocabulary": "/dev/zero"}}
    text = json.dumps({"class": "Sequential", "layers": [layer]})
    with pytest.raises(DataError, match="the name of a file"):
        model_from_json(text)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        "[]",
        '{"class": "Sequential", "layers": [], "dtype": ",loat32"}',
        '{"class": "Sequential", "layers": [[]]}',
        '{"class": "Sequential", "layers": [{"class": "Dense", "arguments": 1e999}]}',
        '{"class": "Model", "layers": [], "nodes": [[0]], "inputs": 1, "outputs": [9]}',
    ],
)
def test_texts_that_are_no_architecture(text: str) -> None:
    with pytest.raises(FastserveError):
        model_from_json(text)


def test_a_gpt_of_many_layers() -> None:
    with pytest.raises(ArgumentError, match="n_layer of at most 1000"):
        fs.models.GPT(7, 4, 1001, 1, 8)


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    for model in (dense(), fs.models.GPT(7, 4, 2, 1, 8)):
        model.save(tmp_path / "m.safetensors")
        made = load_model(tmp_path / "m.safetensors")
        for one, other in zip(made.get_weights(), model.get_weights(), strict=True):
            assert np.array_equal(one, other)
