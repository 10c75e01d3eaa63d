"""Objects by their names: strings, classes, and names with arguments."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from fastserve.errors import ArgumentError, UnknownNameError


def make(kind: str, given: Any, named: Mapping[str, Callable[..., Any]]) -> Any:
    """Return what ``given`` stands for; itself if it is no string, class or dict.

    ``kind`` is for messages. A dict is ``{name: {argument: value}}``, as YAML has it,
    or Keras' ``{"class_name": name, "config": {argument: value}}``. Raises
    UnknownNameError for other names, ArgumentError for other arguments.
    """
    if isinstance(given, type):
        return given()
    if not isinstance(given, (str, Mapping)):
        return given
    name, arguments = _parts(kind, given)
    if name not in named:
        raise UnknownNameError(kind, name, named)
    try:
        inspect.signature(named[name]).bind(**arguments)
    except TypeError as error:
        raise ArgumentError(
            f"{kind} {name}: expected arguments {inspect.signature(named[name])}",
            str(error),
            f"write for example {{{name}: {{argument: value}}}}",
        ) from None
    return named[name](**arguments)


def _parts(kind: str, given: Any) -> tuple[str, dict[str, Any]]:
    if isinstance(given, str):
        return given, {}
    if "class_name" in given:
        return str(given["class_name"]), dict(given.get("config") or {})
    pairs = list(given.items())
    if len(pairs) != 1 or not isinstance(pairs[0][1], (Mapping, type(None))):
        raise ArgumentError(
            f"expected one {kind} with a mapping of its arguments",
            repr(dict(given)),
            "write {name: {argument: value}}",
        )
    return str(pairs[0][0]), dict(pairs[0][1] or {})
