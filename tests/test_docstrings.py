"""Docstrings of the public names say what each argument is: the reference is made of
them."""

from __future__ import annotations

import inspect
import re
from typing import Any

import pytest

import fastserve as fs

MODULES = (
    "models",
    "layers",
    "losses",
    "metrics",
    "optimizers",
    "schedules",
    "initializers",
    "regularizers",
    "constraints",
    "callbacks",
    "data",
    "datasets",
    "utils",
)


def public() -> list[Any]:
    found = []
    for name in MODULES:
        module = getattr(fs, name)
        given = getattr(module, "__all__", None)
        for public_name in given or dir(module):
            value = getattr(module, public_name)
            here = given or getattr(value, "__module__", "") == module.__name__
            kind = inspect.isclass(value) or inspect.isroutine(value)
            if kind and here and not public_name.startswith("_"):
                found.append(pytest.param(module, value, id=f"{name}.{public_name}"))
    return found


def explained(module: Any, value: Any, seen: set[Any]) -> str:
    """Return a docstring, and those of the classes that it names in backticks."""
    text = inspect.getdoc(value) or ""
    seen.add(value)
    for place, name in re.findall(r"``(?:(\w+)\.)?(\w+)``", text):
        other = getattr(getattr(fs, place, None) if place else module, name, None)
        if inspect.isclass(other) and other not in seen:
            text += explained(module, other, seen)
    return text


def test_many_are_looked_at() -> None:
    assert len(public()) > 300


@pytest.mark.parametrize(("module", "value"), public())
def test_each_argument_is_named(module: Any, value: Any) -> None:
    assert value.__doc__, "no docstring"
    text = f"{inspect.getdoc(module)} {explained(module, value, set())}"
    common = re.findall(r"``(_\w+)``", text)  # endings, as of kernel_initializer
    for name in inspect.signature(value).parameters:
        if name not in ("self", "args", "kwargs") and not name.endswith(tuple(common)):
            assert re.search(rf"\b{name}\b", text), f"nothing about {name}"
