"""What the README says is so: its paths exist and its code runs."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
PATHS = sorted(
    set(
        re.findall(
            r"`((?:fastserve|launch|configs|tests|benchmarks)/[\w./-]*)`", README
        )
    )
)


@pytest.mark.parametrize("path", PATHS)
def test_paths_exist(path: str) -> None:
    assert (ROOT / path).exists()


def test_the_table_names_every_part() -> None:
    parts = {
        p.name if p.is_file() else f"{p.name}/"
        for p in (ROOT / "fastserve").iterdir()
        if not p.name.startswith("__") and p.name != "py.typed"
    }
    unnamed = {part for part in parts if f"`fastserve/{part}`" not in README}
    assert unnamed <= {"environment.py", "errors.py"}


def test_no_figure_is_left_open() -> None:
    assert not re.findall(
        r"\b[A-Z]+_[A-Z]+\b(?![`'\w])", README.replace("OPENBLAS_", "")
    )


def test_the_first_example_runs() -> None:
    rng = np.random.default_rng(0)
    x = rng.random((64, 784), dtype=np.float32)
    y = np.eye(10, dtype=np.float32)[rng.integers(0, 10, 64)]
    names: dict[str, Any] = {
        "x_train": x,
        "y_train": y,
        "x_val": x,
        "y_val": y,
        "x_test": x,
    }
    exec(BLOCKS[0], names)  # the example as it stands
    assert names["predictions"].shape == (64, 10)


def test_the_digits_of_the_readme() -> None:
    names: dict[str, Any] = {}
    exec("import fastserve as fs", names)
    try:
        exec(BLOCKS[1], names)
    except names["fs"].errors.DataError as error:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(str(error))
    assert names["x_train"].shape == (4000, 784)
    assert names["y_test"].shape == (500, 10)
    assert names["y_val"].argmax(axis=1).std() > 2  # shuffled


def test_the_layer_of_the_readme_has_the_right_gradient() -> None:
    names: dict[str, Any] = {"__name__": "readme"}
    exec(BLOCKS[2], names)
    fs = names["fs"]
    x = np.random.default_rng(0).standard_normal((50, 4)).astype(np.float32)
    model = fs.models.Sequential([names["Scale"]()])
    model.compile(fs.optimizers.Adam(0.05), "mse")
    model.fit(x, x * [2.0, -1.0, 0.5, 3.0], epochs=300, verbose=0)
    np.testing.assert_allclose(model.get_weights()[0], [2, -1, 0.5, 3], rtol=1e-2)
