"""What the sections of a job's schema are made of: types of values, and ``Section``.

Values are never converted between kinds, with one exception: a number like ``1e6`` is
an integer where an integer is wanted.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

MAX_INTEGER = 10**9


def _integral(value: Any) -> Any:
    whole = isinstance(value, float) and value.is_integer()
    return int(value) if whole else value


def _layer(value: Any) -> Any:
    """Make ``{Flatten: {}}`` of ``Flatten`` and of ``{Flatten: null}``."""
    if isinstance(value, str):
        return {value: {}}
    if isinstance(value, dict):
        return {name: {} if keys is None else keys for name, keys in value.items()}
    return value


_LAYER_SCHEMA = {
    "format": "layer",
    "anyOf": [
        {"type": "string"},
        {
            "type": "object",
            "minProperties": 1,
            "maxProperties": 1,
            "additionalProperties": {"type": ["object", "null"]},
        },
    ],
}


def _named(value: Any) -> Any:
    """Make ``{Huber: {}}`` of ``{Huber: null}``; a bare name stays one."""
    return _layer(value) if isinstance(value, dict) else value


_NAMED_SCHEMA = _LAYER_SCHEMA | {"format": "named"}

Natural = Annotated[int, Field(ge=0, le=MAX_INTEGER), BeforeValidator(_integral)]
Count = Annotated[int, Field(ge=1, le=MAX_INTEGER), BeforeValidator(_integral)]
Seed = Annotated[int, Field(ge=0, le=2**63 - 1), BeforeValidator(_integral)]
Level = Annotated[int, Field(ge=2, le=2**32), BeforeValidator(_integral)]
Vocabulary = Annotated[int, Field(ge=257, le=2**31), BeforeValidator(_integral)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
SpikeFactor = Annotated[float, Field(gt=1)]
Factor = Annotated[float, Field(gt=0, le=1)]
Betas = Annotated[tuple[Fraction, Fraction], Field(strict=False)]
Text = Annotated[str, Field(pattern=r"^[^\x00]*$")]
File = Annotated[
    str,
    Field(pattern=r"^[^\x00-\x1f\x7f]+$", json_schema_extra={"format": "path"}),
]
# The MPIs, and env on other hosts, would take a leading dash for an option.
Program = Annotated[
    str,
    Field(
        pattern=r"^[^\x00-\x1f\x7f-][^\x00-\x1f\x7f]*$",
        json_schema_extra={"format": "program"},
    ),
]
Identifier = Annotated[
    str,
    Field(
        pattern=r"^[A-Za-z_][A-Za-z0-9_]*$",
        json_schema_extra={"format": "identifier"},
    ),
]
Line = Annotated[
    str,
    Field(pattern=r"^[^\x00-\x1f\x7f]*$", json_schema_extra={"format": "line"}),
]
Word = Annotated[
    str,
    Field(pattern=r"^[^\s\x00-\x1f\x7f]+$", json_schema_extra={"format": "word"}),
]
SshWord = Annotated[  # mpirun hands them on to the shells of the hosts, unquoted
    str,
    Field(
        pattern=r"^[A-Za-z0-9_@%+=:,./~-]+$",
        json_schema_extra={"format": "ssh-word"},
    ),
]
HostEntry = Annotated[
    str,
    Field(
        pattern=r"^([A-Za-z0-9_][A-Za-z0-9_.-]*@)?"
        r"([A-Za-z0-9_\[][A-Za-z0-9_.,%:\[\]-]*)$",
        json_schema_extra={"format": "host"},
    ),
]
Interface = Annotated[
    str,
    Field(
        pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.:-]*(/[0-9]{1,3})?$",
        json_schema_extra={"format": "interface"},
    ),
]
Duration = Annotated[
    str,
    Field(
        pattern=r"^([0-9]+-)?[0-9]{1,4}(:[0-5][0-9]){2}$|^[1-9][0-9]{0,5}[smhd]$",
        json_schema_extra={"format": "run-time"},
    ),
]
Memory = Annotated[
    str,
    Field(pattern=r"^[1-9][0-9]*[KMGT]B?$", json_schema_extra={"format": "memory"}),
]
RunName = Annotated[
    str,
    Field(
        pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]*$",
        max_length=100,
        json_schema_extra={"format": "run-name"},
    ),
]
LayerEntry = Annotated[
    dict[str, dict[str, Any]],
    Field(min_length=1, max_length=1),
    BeforeValidator(_layer),
    WithJsonSchema(_LAYER_SCHEMA),
]

_OneName = Annotated[dict[str, dict[str, Any]], Field(min_length=1, max_length=1)]
NamedEntry = Annotated[
    Annotated[str, Field(min_length=1, pattern=r"^[^\x00]*$")] | _OneName,
    BeforeValidator(_named),
    WithJsonSchema(_NAMED_SCHEMA),
]


class Section(BaseModel):
    """What all sections share: no unknown keys, no conversions, no changes later."""

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, allow_inf_nan=False
    )
