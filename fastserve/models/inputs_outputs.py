"""What belongs to which input or output: lists and dicts of arrays, losses, metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fastserve.data.sources import numeric
from fastserve.errors import ArgumentError, DataError


def by_name(what: str, given: Mapping[str, Any], names: Sequence[str]) -> list[Any]:
    """Return the values in the order of ``names``, None for those that aren't there.

    Raises ArgumentError for keys that aren't among the names.
    """
    unknown = [key for key in given if key not in names]
    if unknown:
        raise ArgumentError(
            f"{what}: expected keys among {', '.join(names)}",
            ", ".join(map(repr, unknown)),
            "name layers with name=... to choose the keys",
        )
    return [given.get(name) for name in names]


def for_each(what: str, given: Any, names: Sequence[str]) -> list[Any]:
    """Return a value for each output from a list, a dict, or one for all.

    Raises ArgumentError for another number of values, and for unknown keys.
    """
    if isinstance(given, Mapping):
        return by_name(what, given, names)
    if not isinstance(given, (list, tuple)):
        return [given] * len(names)
    if len(given) != len(names):
        raise ArgumentError(
            f"{what}: expected one for each of the outputs {', '.join(names)}",
            f"{len(given)}",
            "give a list in their order, or a dict by their names",
        )
    return list(given)


def metrics_for_each(given: Any, names: Sequence[str]) -> list[list[Any]]:
    """Return a list of metrics for each output, from ``compile``'s ``metrics``."""
    if len(names) == 1 and not isinstance(given, Mapping):
        given = [given]
    if isinstance(given, (str, type)) or not isinstance(given, (list, tuple, Mapping)):
        given = [given]  # Keras refuses that too, unless there is one output
    each = for_each("metrics", given, names) if given else [None] * len(names)
    found: list[list[Any]] = []
    for value in each:
        one = value if isinstance(value, (list, tuple)) else [value]
        flat: list[Any] = []
        for v in one:
            flat.extend(v if isinstance(v, (list, tuple)) else [v])
        found.append([v for v in flat if v is not None])
    return found


def arrays_for(
    what: str, given: Any, names: Sequence[str], optional: Sequence[bool] = ()
) -> Any:
    """Return a tuple with an array for each name, or the only one by itself.

    Args:
        given: a dict by names, a list or tuple in their order, or an array if there
            is one name.
        optional: for which names None will do.

    Raises DataError for another number of arrays, ArgumentError for unknown keys.
    """
    several = len(names) > 1
    if isinstance(given, Mapping):
        values = by_name(what, given, names)
    elif several and isinstance(given, (list, tuple)) and len(given) == len(names):
        values = list(given)
    elif not several:
        listed = isinstance(given, (list, tuple)) and len(given) == 1
        values = list(given) if listed and isinstance(given[0], np.ndarray) else [given]
    else:
        count = len(given) if isinstance(given, (list, tuple)) else 1
        raise DataError(
            f"expected {what} as {len(names)} arrays, for {', '.join(names)}",
            f"{count} in a {type(given).__name__}",
            "give a list in their order, or a dict by their names",
        )
    allowed = optional or (False,) * len(names)
    for name, value, may_miss in zip(names, values, allowed, strict=True):
        if value is None and not may_miss:
            raise DataError(
                f"expected {what} for {name}",
                "none",
                f"give arrays for {', '.join(names)}",
            )
    if not several:
        return values[0]
    return tuple(
        value if value is None or hasattr(value, "shape") else numeric(name, value)
        for name, value in zip(names, values, strict=True)
    )


def each(function: Any, values: Any) -> Any:
    """Return the function's results for a value, or for those of a list or dict."""
    if isinstance(values, dict):
        return {key: function(value) for key, value in values.items()}
    if isinstance(values, (list, tuple)):
        return type(values)(map(function, values))
    return function(values)
