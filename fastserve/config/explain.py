"""Turns what pydantic rejects into faults that a reader of the file understands.

The words come from the JSON Schema: it knows of each key what is expected there.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pydantic import ValidationError

from .faults import Faults, Path, did_you_mean, listed, show
from .schema import Job, json_schema
from .strict_yaml import plain

_MISSING: Any = object()
_FORMATS = {
    "path": "a path",
    "identifier": "a Python name",
    "host": "a host such as node1, node1:4 or user@node[2-4]:4",
    "interface": "an interface's name or a subnet such as 10.0.0.0/8",
    "line": "text on one line",
    "memory": "an amount of memory such as '512M' or '16G'",
    "run-time": "a time such as '02:30:00', '1-12:00:00', '90m', '12h' or '2d'",
    "word": "text without blanks",
    "program": "a path on one line that doesn't begin with '-'",
    "ssh-word": "a word of letters, digits and _@%+=:,./~-; ~/.ssh/config takes others",
    "layer": "a layer's name, or a mapping of one name to the layer's arguments",
    "named": "a name, or a mapping of one name to its arguments",
    "run-name": "a name of at most 100 letters, digits, '.', '_' and '-', which starts "
    "with a letter, a digit or '_'",
}
_SWITCHES = {"yes": "true", "on": "true", "no": "false", "off": "false"}


@dataclass(frozen=True)
class Place:
    """A key of the job: how far its path is known, its schema and its value there."""

    path: Path
    schema: dict[str, Any]
    value: Any

    @property
    def missing(self) -> bool:
        return self.value is _MISSING


class JobData:
    """The raw data of a job, beside the schema that it should follow."""

    def __init__(self, data: Any) -> None:
        self.data = data

    @cached_property
    def schema(self) -> dict[str, Any]:
        return json_schema()

    def place(self, path: Path) -> Place:
        """Follow ``path`` as far as the schema knows it; defaults fill the gaps."""
        schema, value = self.schema, self.data
        for depth, part in enumerate(path):
            child = _child(self._resolve(schema, value), part)
            if child is None:
                return Place(path[:depth], self._resolve(schema, value), value)
            value = _item(value, part)
            schema = child
            if value is _MISSING:
                value = child.get("default", _MISSING)
        return Place(path, self._resolve(schema, value), value)

    def _resolve(self, schema: dict[str, Any], value: Any) -> dict[str, Any]:
        """Follow references, and choose the variant that the value's type names."""
        if "allOf" in schema:  # older pydantic wraps a reference that has a default
            schema = schema["allOf"][0]
        if isinstance(value, dict):  # a section or null
            options = (o for o in schema.get("anyOf", ()) if "$ref" in o)
            schema = next(options, schema)
        if "discriminator" in schema:
            tag = value.get("type") if isinstance(value, dict) else None
            variants = schema["discriminator"]["mapping"]
            if not isinstance(tag, str) or tag not in variants:
                return schema
            schema = {"$ref": variants[tag]}
        if "$ref" in schema:
            schema = self.schema["$defs"][schema["$ref"].rpartition("/")[2]]
        return schema

    def validate(self, faults: Faults) -> Job | None:
        """Return the Job, or None after adding everything that is wrong."""
        try:
            return Job.model_validate(self.data)
        except ValidationError as error:
            for detail in error.errors(include_url=False, include_context=False):
                self._explain(detail["type"], detail["loc"], faults)
        return None

    def _explain(self, kind: str, location: Path, faults: Faults) -> None:
        path = self._without_tag(location)
        place = self.place(path)
        if kind == "extra_forbidden":
            key, known = path[-1], list(place.schema.get("properties", ()))
            expected = f"one of the keys {listed(known)}"
            faults.add(path, expected, repr(key), did_you_mean(key, known))
        elif kind.startswith("union_tag"):
            variants = list(place.schema["discriminator"]["mapping"])
            tag = _item(place.value, "type")
            hint = did_you_mean(tag, variants)
            faults.add((*path, "type"), listed(variants), _received(tag), hint)
        else:
            received, hint = _received(place.value), _hint(place)
            faults.add(place.path, describe(place.schema), received, hint)

    def _without_tag(self, location: Path) -> Path:
        """Drop the variant's name, which pydantic puts behind a section's."""
        if len(location) > 1:
            section = self.schema["properties"].get(location[0], {})
            if "discriminator" in section:
                return (location[0], *location[2:])
        return location


def _child(schema: dict[str, Any], part: str | int) -> dict[str, Any] | None:
    """Return the schema of an item or a key of a value, None if it has none."""
    if isinstance(part, int):
        for option in schema.get("anyOf", ()):  # a list or null
            schema = option if "items" in option else schema
        fixed = schema.get("prefixItems", [])
        child = fixed[part] if part < len(fixed) else schema.get("items")
    else:
        child = schema.get("properties", {}).get(part)
        child = child or schema.get("additionalProperties")
    return child if isinstance(child, dict) else None


def _item(value: Any, part: str | int) -> Any:
    if isinstance(value, dict):
        return value.get(part, _MISSING)
    if isinstance(value, list) and isinstance(part, int) and part < len(value):
        return value[part]
    return _MISSING


def _received(value: Any) -> str:
    return "nothing" if value is _MISSING else show(value)


def _hint(place: Place) -> str:
    schema, value = place.schema, place.value
    types = [option.get("type") for option in schema.get("anyOf", [schema])]
    if isinstance(value, str):
        if "boolean" in types and value in _SWITCHES:
            return f"did you mean {_SWITCHES[value]}?"
        if {"integer", "number"}.intersection(types) and _is_number(value):
            return "write it without quotes"
        return did_you_mean(value, _choices(schema))
    if "string" in types and not _choices(schema) and isinstance(value, int | float):
        return "put it in quotes"
    return ""


def _is_number(text: str) -> bool:
    try:
        return isinstance(plain(text), int | float)
    except ValueError:
        return False


def _choices(schema: dict[str, Any]) -> list[str]:
    """Return the words that a schema allows."""
    found = list(schema.get("enum", ()))
    if "const" in schema and not found:
        found = [schema["const"]]
    for option in schema.get("anyOf", ()):
        found += _choices(option)
    return found


def describe(schema: dict[str, Any]) -> str:
    """Return what a schema expects, in words."""
    if schema.get("format") in _FORMATS:
        return _FORMATS[schema["format"]]
    if "anyOf" in schema:
        return " or ".join(describe(option) for option in schema["anyOf"])
    if "$ref" in schema:
        return "a section"
    if "discriminator" in schema:
        return f"a section of type {listed(schema['discriminator']['mapping'])}"
    if choices := _choices(schema):
        return listed(choices)
    kind = schema.get("type")
    if kind == "string":
        return "text that isn't empty" if schema.get("minLength") else "text"
    if kind == "array":
        return _describe_list(schema)
    if kind == "object":
        return _describe_mapping(schema)
    words = {"integer": "an integer", "number": "a number", "null": "null"}
    return words.get(str(kind), "true or false") + _bounds(schema)


def _describe_list(schema: dict[str, Any]) -> str:
    if fixed := schema.get("prefixItems"):
        return f"a list of {len(fixed)} items, each {describe(fixed[0])}"
    least = " of one or more items" if schema.get("minItems") else ""
    return f"a list{least}"


def _describe_mapping(schema: dict[str, Any]) -> str:
    if "properties" in schema:
        return f"a section with the keys {listed(schema['properties'])}"
    return "a mapping with one key" if schema.get("maxProperties") else "a mapping"


def _bounds(schema: dict[str, Any]) -> str:
    if "minimum" in schema and "maximum" in schema:
        return f" from {show(schema['minimum'])} to {show(schema['maximum'])}"
    words = {
        "minimum": "of at least",
        "exclusiveMinimum": "above",
        "maximum": "at most",
        "exclusiveMaximum": "below",
    }
    found = [f"{words[key]} {show(schema[key])}" for key in words if key in schema]
    return f" {' and '.join(found)}" if found else ""
