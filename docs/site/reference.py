"""The pages that are made of the program itself, so that they can't be out of date:
the keys of a job from its schema, the commands from ``--help``, the Python names from
their docstrings, the jobs in ``configs/``.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from fastserve.config import json_schema
from launch.cli import cli

ROOT = Path(__file__).parents[2]
Node = dict[str, Any]  # a part of a JSON Schema


# --- the keys of a job --------------------------------------------------------


def job_keys() -> str:
    """Return the page of all keys of a job's YAML file."""
    schema = json_schema()
    definitions = schema["$defs"]
    lines = [
        "# Keys of a job\n",
        "Made from the schema that `fastserve check` uses; `fastserve schema` prints "
        "it for editors. A key that isn't here is an error.\n",
        *_table(schema, definitions),
    ]
    for key, node in schema["properties"].items():
        names = _references(node)
        if not names:
            continue
        lines += [f"\n## {key}\n", node.get("description", "") + "\n"]
        for name in names:
            kind = definitions[name]["properties"].get("type", {}).get("const")
            title = f"{key}: {kind}" if kind and len(names) > 1 else None
            lines += _section(name, title, 3, definitions)
    return "\n".join(lines) + "\n"


def _section(name: str, title: str | None, level: int, definitions: Node) -> list[str]:
    node = definitions[name]
    lines = [f"\n{'#' * level} {title}\n"] if title else []
    lines += [node.get("description", "").replace("``", "`") + "\n"]
    lines += _table(node, definitions)
    for key, inner in node["properties"].items():
        for reference in _references(inner):
            lines += _section(reference, f"{title or ''} {key}", level + 1, definitions)
    return lines


def _table(node: Node, definitions: Node) -> list[str]:
    # the style sheet gives the last column of these tables room in a narrow window
    lines = ['<div class="keys" markdown>\n']
    lines += ["| key | type | default | what |", "|---|---|---|---|"]
    required = node.get("required", [])
    for key, value in node["properties"].items():
        if "default" not in value:
            default = "**required**" if key in required else ""
        elif isinstance(value["default"], dict) and value["default"]:
            kind = value["default"].get("type")
            default = f"`{{type: {kind}}}`" if kind else "its keys' defaults"
        else:
            default = f"`{json.dumps(value['default'])}`"
        words = [
            f"`{key}`",
            _kind(value, definitions),
            default,
            value.get("description", "").replace("``", "`"),
        ]
        lines.append("| " + " | ".join(map(_cell, words)) + " |")
    return [*lines, "\n</div>"]


def _cell(text: str) -> str:
    """Return a cell of a table: bars end it, but in code."""
    parts = text.split("`")
    parts[::2] = [part.replace("|", "\\|") for part in parts[::2]]
    return "`".join(parts)


def _references(node: Node) -> list[str]:
    """Return the sections that a key may hold, in the schema's order."""
    if "$ref" in node:
        return [node["$ref"].rpartition("/")[2]]
    parts = node.get("oneOf", node.get("anyOf", []))
    return [name for part in parts for name in _references(part)]


BOUNDS = {
    "minimum": "≥",
    "exclusiveMinimum": ">",
    "maximum": "≤",
    "exclusiveMaximum": "<",
}
LARGEST = 10**9  # a bound from here on is only against slips of the pen


def _kind(node: Node, definitions: Node) -> str:
    """Return a key's type in words."""
    if node.get("format") in ("layer", "named"):
        return "name, or `{name: {argument: value}}`"
    if references := _references(node):
        null = any(part.get("type") == "null" for part in node.get("anyOf", []))
        kinds = [definitions[n]["properties"].get("type", {}) for n in references]
        types = [f"`{k['const']}`" for k in kinds if "const" in k]
        said = "section" + (" of type " + ", ".join(types) if types else "")
        return said + (" or `null`" if null else "")
    if "const" in node:
        return f"`{node['const']}`"
    if "enum" in node:
        return ", ".join(f"`{value}`" for value in node["enum"])
    if "anyOf" in node:
        return " or ".join(_kind(part, definitions) for part in node["anyOf"])
    kind = node.get("type", "anything")
    if kind == "array":
        items = node.get("prefixItems") or [node.get("items", {})]
        inner = dict.fromkeys(_kind(item, definitions) for item in items)
        return "list of " + ", ".join(inner)
    if kind == "null":
        return "`null`"
    limits = [
        f"{sign} {node[name]:g}"
        for name, sign in BOUNDS.items()
        if name in node and abs(node[name]) < LARGEST
    ]
    words = {"boolean": "`true`, `false`", "object": "mapping", "string": "text"}
    words["string"] = node.get("format", "text").replace("-", " ")
    return " ".join([words.get(kind, kind), ", ".join(limits)]).rstrip()


# --- the commands -------------------------------------------------------------

WIDTH = 84  # characters of a line of code that a page shows without scrolling


def commands() -> str:
    """Return the page of all commands, as ``--help`` prints them."""
    lines = ["# Commands\n", "What `fastserve COMMAND --help` prints.\n"]
    for words, command, context in _all_commands(cli, click.Context(cli), []):
        lines += [f"\n{'#' * min(len(words) + 1, 4)} fastserve {' '.join(words)}\n"]
        lines += ["```text", command.get_help(context).rstrip(), "```"]
    return "\n".join(lines) + "\n"


def _all_commands(
    group: click.Group, parent: click.Context, path: list[str]
) -> Iterator[tuple[list[str], click.Command, click.Context]]:
    for name in group.list_commands(parent):
        command = group.get_command(parent, name)
        if command is None or command.hidden:
            continue
        words = [*path, name]
        context = click.Context(
            command,
            info_name=f"fastserve {' '.join(words)}",
            terminal_width=WIDTH,
            max_content_width=WIDTH,
        )
        yield words, command, context
        if isinstance(command, click.Group):
            yield from _all_commands(command, context, words)


# --- the Python names ---------------------------------------------------------

MODULES = {
    "models": "Models",
    "layers": "Layers",
    "losses": "Losses",
    "metrics": "Metrics",
    "optimizers": "Optimizers",
    "schedules": "Learning rate schedules",
    "initializers": "Initializers",
    "regularizers": "Regularizers",
    "constraints": "Constraints",
    "callbacks": "Callbacks",
    "data": "Data",
    "datasets": "Data sets",
    "utils": "Utilities",
    "comm": "Communication",
    "errors": "Errors",
}
WITH_METHODS = {"models", "callbacks", "data", "comm", "utils"}
BASES = {"Layer", "Loss", "Metric", "Optimizer", "Schedule"}  # what users extend


def python_names() -> dict[str, str]:
    """Return a page of each public module, for mkdocstrings: file name to text."""
    return {f"{name}.md": _module(name, title) for name, title in MODULES.items()}


def _module(name: str, title: str) -> str:
    module = importlib.import_module("fastserve").__getattr__(name)
    lines = [f"# {title}: fs.{name}\n", (inspect.getdoc(module) or "") + "\n"]
    seen: dict[int, str] = {}
    for public in public_names(module):
        found = getattr(module, public)
        if id(found) in seen:  # another name of the same
            lines.append(f"\n## {public}\n\nThe same as `{seen[id(found)]}`.\n")
            continue
        seen[id(found)] = public
        if not _is_written(found):  # made by another function, as losses' functions
            lines += [f"\n## {public}\n", "```python"]
            lines += [f"{public}{inspect.signature(found)}", "```\n"]
            lines += [(inspect.getdoc(found) or "") + "\n"]
            continue
        members = name in WITH_METHODS or public in BASES
        lines += [
            f"\n::: {_home(found, module.__name__, public)}",
            "    options:",
            f"      heading: {public}",
            f"      toc_label: {public}",
            f"      members: {'null' if members else 'false'}",
        ]
    return "\n".join(lines) + "\n"


def public_names(module: Any) -> list[str]:
    """Return the classes and functions of a module that are for users, sorted."""
    given = getattr(module, "__all__", None)
    names = given or [name for name in dir(module) if not name.startswith("_")]
    found = []
    for name in names:
        thing = getattr(module, name)
        made_here = given or getattr(thing, "__module__", "") == module.__name__
        if (inspect.isclass(thing) or inspect.isfunction(thing)) and made_here:
            found.append(name)
    return sorted(found, key=str.lower)


def _is_written(thing: Any) -> bool:
    """Return whether a class or function stands in its module under its name."""
    return inspect.isclass(thing) or thing.__code__.co_name == thing.__name__


def _home(thing: Any, module: str, name: str) -> str:
    """Return where an object is written, which mkdocstrings reads."""
    written = f"{thing.__module__}.{thing.__qualname__}"
    return written if written.startswith("fastserve.") else f"{module}.{name}"


# --- the files ----------------------------------------------------------------


def files() -> str:
    """Return the page of all source files, each with the first line that it has."""
    lines = ["# Every file\n", "With the first line of its docstring.\n"]
    for package in ("fastserve", "launch"):
        folder = ""
        for path in sorted(
            (ROOT / package).rglob("*.py"), key=lambda path: (path.parent, path.name)
        ):
            place = path.relative_to(ROOT)
            said = ast.get_docstring(ast.parse(path.read_text("utf-8"))) or ""
            first = said.split("\n\n")[0].replace("\n", " ").replace("``", "`")
            if str(place.parent) != folder:
                folder = str(place.parent)
                lines += [f"\n## {folder}/\n", "| file | what |", "|---|---|"]
            lines.append(f"| `{place.name}` | {_cell(first)} |")
    return "\n".join(lines) + "\n"


# --- the jobs -----------------------------------------------------------------


def jobs() -> str:
    """Return the page of the jobs in ``configs/``."""
    lines = ["# Jobs to start from\n", "The files of `configs/`.\n"]
    for path in sorted((ROOT / "configs").glob("*.yaml")):
        lines += [f"\n## {path.name}\n", "```yaml", path.read_text("utf-8"), "```"]
    return "\n".join(lines) + "\n"
