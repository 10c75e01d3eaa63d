"""Comments for a job file, made from the schema: so they can't say what isn't so."""

from __future__ import annotations

import functools
import json
import re
import textwrap
from typing import Any

from .schema import json_schema
from .strict_yaml import parse

COLUMN = 31  # where comments begin
WIDTH = 72  # of a comment
_KEY = re.compile(r"(?P<indent> *)(?P<key>[a-z_]+):(?: (?P<value>.*))?")

Schema = dict[str, Any]


def annotate(text: str) -> str:
    """Return a job's YAML with type, default and meaning behind each key.

    The keys stand in lines of their own, with two spaces a level; what is below a key
    that holds a list, such as layers, stays as it is. Keys that the schema doesn't know
    get no comment.
    """
    whole = _schema()
    data, _, _ = parse(text)
    path: list[str] = []
    lines = []
    for line in text.splitlines():
        found = _KEY.fullmatch(line)
        if found is None or len(found["indent"]) // 2 > len(path):
            lines.append(line)
            continue
        path = [*path[: len(found["indent"]) // 2], found["key"]]
        about = _describe(whole, data, path)
        lines += _beside(line, about) if about else [line]
    return "\n".join(lines) + "\n"


def comment(path: str, data: Schema) -> str:
    """Return what stands behind a key such as ``train.steps`` of the job ``data``.

    ``integer = 32. Samples in a step, over all ranks together.``; nothing for a key
    that the schema doesn't know.
    """
    return _describe(_schema(), data, path.split("."))


def kind(schema: Schema, whole: Schema) -> str:
    """Return a value's type in a few words: ``integer``, ``adam | sgd``, ``path``."""
    schema = _resolved(schema, whole)
    if "enum" in schema or "const" in schema:
        return " | ".join(map(str, schema.get("enum", [schema.get("const")])))
    if "anyOf" in schema and "format" not in schema:
        kinds = [kind(one, whole) for one in schema["anyOf"]]
        return " or ".join(dict.fromkeys(kinds))
    if "discriminator" in schema:
        return " | ".join(schema["discriminator"]["mapping"])
    if "format" in schema:
        return _FORMATS.get(schema["format"], "text")
    if schema.get("type") == "array":
        several = "prefixItems" in schema
        of = schema["prefixItems"][0] if several else schema.get("items", {})
        return f"{'two values' if several else 'list'}: {kind(of, whole)}"
    name = _TYPES.get(schema.get("type", ""), "any value")
    return name + _range(schema) if name == "number" else name


_schema = functools.cache(json_schema)
_TYPES = {
    "string": "text",
    "boolean": "true | false",
    "object": "mapping",
    "null": "null",
    "integer": "integer",
    "number": "number",
}
_FORMATS = {
    "path": "path",
    "program": "path",
    "layer": "layer",
    "named": "name",
    "run-name": "name",
}


def _range(schema: Schema) -> str:
    low, above = schema.get("minimum"), schema.get("exclusiveMinimum")
    high, below = schema.get("maximum"), schema.get("exclusiveMaximum")
    if low is None and above is None:
        return ""
    if high is None and below is None:
        return f" > {above:g}" if low is None else f" >= {low:g}"
    start = f"({above:g}" if low is None else f"[{low:g}"
    return f" in {start}, {below:g})" if high is None else f" in {start}, {high:g}]"


def _resolved(schema: Schema, whole: Schema) -> Schema:
    while "$ref" in schema:
        schema = whole["$defs"][schema["$ref"].rpartition("/")[2]]
    return schema


def _describe(whole: Schema, data: Any, path: list[str]) -> str:
    section, parent = whole, {}
    for name in path[:-1]:
        parent = section.get("properties", {}).get(name, {})
        section = _section(parent, whole, data.get(name))
        data = data[name] if isinstance(data.get(name), dict) else {}
    field = section.get("properties", {}).get(path[-1])
    if field is None:
        return ""
    text = str(field["description"])
    if path[-1] == "type" and "discriminator" in parent:
        return f"{kind(parent, whole)}; required"
    if "properties" in _section(field, whole, data.get(path[-1])):
        return text
    types = kind(field, whole)
    if path[-1] in section.get("required", ()):
        types += ", required"
    elif "default" in field:
        if field["default"] is None:  # which says itself that null is allowed
            types = types.removesuffix(" or null")
        types += f" = {_written(field['default'])}"
    return f"{types}. {text}"


def _section(field: Schema, whole: Schema, data: Any) -> Schema:
    """Return the schema of a section; of several kinds that which ``data`` has."""
    field = _resolved(field, whole)
    if "discriminator" in field:
        mapping = field["discriminator"]["mapping"]
        chosen = data.get("type") if isinstance(data, dict) else None
        return _resolved({"$ref": mapping[chosen]}, whole) if chosen in mapping else {}
    for one in field.get("anyOf", ()):
        found = _resolved(one, whole)
        if "properties" in found:
            return found
    return field


def _written(value: Any) -> str:
    plain = isinstance(value, str) and re.fullmatch(r"\w.*", value)
    return value if plain else json.dumps(value)


def _beside(line: str, about: str) -> list[str]:
    """Return a line with its comment, on as many lines as it takes."""
    rows = textwrap.wrap(about, WIDTH, break_on_hyphens=False)
    rows = [f"{'':{COLUMN}}# {row}" for row in rows]
    if len(line) > COLUMN - 2:
        return [line, *rows]
    return [line + rows[0][len(line) :], *rows[1:]]
