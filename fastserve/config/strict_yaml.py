"""YAML, read strictly.

PyYAML finds the structure; what its scalars mean is decided here, close to YAML 1.2:
``1e-4`` is a number, ``no`` and ``off`` are text, ``12:30`` and ``0755`` are text, and
a key that occurs twice is a fault. There are no tags, no merge keys, no second
document, and the size, the depth and the expansion of aliases are bounded.
"""

from __future__ import annotations

import math
import re
from typing import Any

import yaml

from .faults import Faults, Path, show

MAX_BYTES = 1 << 20
MAX_TEXT = 1 << 18  # characters in all keys and values, aliases written out
MAX_NODES = 10_000  # keys and values, aliases written out
MAX_DEPTH = 32
MAX_DIGITS = 40

_CONSTANTS: dict[str, bool | None] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]*)")
_FLOAT = re.compile(r"[-+]?((0|[1-9][0-9]*)(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")


def load_yaml(text: str | bytes, source: str) -> tuple[Any, dict[Path, int]]:
    """Return one YAML document's value, and the line on which each of its keys is.

    Mappings become dicts with text keys, whatever the key looks like. An empty document
    is None. Raises ConfigError with all faults that can be told apart.
    """
    value, lines, faults = parse(text)
    faults.check(source, lines)
    return value, lines


def dump_yaml(value: Any) -> str:
    """Return YAML in block style which ``load_yaml`` reads back to an equal value."""
    return yaml.dump(
        value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=2**31
    )


def parse(text: str | bytes) -> tuple[Any, dict[Path, int], Faults]:
    """Return the value, the lines and the faults; a key with a fault holds None."""
    reader = _Reader()
    try:
        node = _compose(_decode(text))
        if node is not None:
            return reader.value(node, ()), reader.lines, reader.faults
    except _Refused as error:
        reader.faults.add((), *error.texts)
        reader.lines[()] = error.line
    return None, reader.lines, reader.faults


def plain(text: str) -> Any:
    """Return what a scalar without quotes means; ValueError if it's no fit number."""
    if text in _CONSTANTS:
        return _CONSTANTS[text]
    integer = _INTEGER.fullmatch(text)
    if integer and len(text) > MAX_DIGITS:
        raise ValueError(f"a number of at most {MAX_DIGITS} digits, or text in quotes")
    if integer:
        return int(text)
    number = float(text) if _FLOAT.fullmatch(text) else 0.0
    if _NOT_FINITE.fullmatch(text) or not math.isfinite(number):
        raise ValueError("a finite number, or text in quotes")
    return number if _FLOAT.fullmatch(text) else text


class _Refused(Exception):
    """The text can't be read any further than ``line``."""

    def __init__(self, line: int, expected: str, received: str, hint: str = "") -> None:
        self.line, self.texts = line, (expected, received, hint)


def _decode(text: str | bytes) -> str:
    if len(text) > MAX_BYTES:
        raise _Refused(1, f"at most {MAX_BYTES} bytes", "a longer file")
    if isinstance(text, str):
        return text
    try:
        return text.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = text.count(b"\n", 0, error.start) + 1
        received = f"the byte 0x{text[error.start]:02x}"
        raise _Refused(line, "text in UTF-8", received, "save it as UTF-8") from error


class _Loader(yaml.SafeLoader):
    """Composes nodes while it counts them, and remembers which ones had a tag."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.nodes = 0
        self.depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        line = event.start_mark.line + 1
        if getattr(event, "tag", None) is not None:
            hint = "delete the tag"
            raise _Refused(
                line, "YAML without tags", f"the tag {show(event.tag)}", hint
            )
        self.nodes += 1
        self.depth += 1
        if self.nodes > MAX_NODES:
            raise _too_many(line)
        if self.depth > MAX_DEPTH:
            raise _too_deep(line)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def compose_single(self) -> yaml.Node | None:
        """Return the only document's root, None for an empty text."""
        self.get_event()
        if self.check_event(yaml.StreamEndEvent):
            return None
        root = self.compose_document()
        if not self.check_event(yaml.StreamEndEvent):
            line = self.peek_event().start_mark.line + 1
            raise _Refused(line, "one YAML document", "the start of a second one")
        return root


def _compose(text: str) -> yaml.Node | None:
    expected = "YAML that can be read"
    try:
        return _Loader(text).compose_single()
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        received = f"the character U+{_code(error.character):04X}"
        raise _Refused(line, expected, received, "delete it") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problem = " ".join(filter(None, (error.problem, error.context)))
        line = mark.line + 1 if mark else 1
        received = f"a fault in its form: {problem}"
        hint = "indent with spaces" if r"'\t'" in problem else ""
        raise _Refused(line, expected, received, hint) from error
    except (ValueError, OverflowError) as error:  # an impossible \U escape or %YAML
        raise _Refused(1, expected, f"a fault in its form: {error}") from error


def _code(character: Any) -> int:
    return ord(character) if isinstance(character, str) else int(character)


def _too_many(line: int) -> _Refused:
    hint = "an alias counts each time that it is used"
    return _Refused(line, f"at most {MAX_NODES} keys and values", "more", hint)


def _too_deep(line: int) -> _Refused:
    hint = "an alias may not contain itself"
    return _Refused(line, f"a nesting of at most {MAX_DEPTH}", "a deeper one", hint)


class _Reader:
    """Turns nodes into values, and notes each key's line and each fault."""

    def __init__(self) -> None:
        self.lines: dict[Path, int] = {}
        self.faults = Faults()
        self.nodes = 0
        self.characters = 0

    def value(self, node: yaml.Node, path: Path) -> Any:
        line = node.start_mark.line + 1
        self.lines.setdefault(path, line)
        self.nodes += 1
        if self.nodes > MAX_NODES:
            raise _too_many(line)
        if len(path) >= MAX_DEPTH:
            raise _too_deep(line)
        if isinstance(node, yaml.ScalarNode):
            return self.scalar(node, path)
        if isinstance(node, yaml.MappingNode):
            return self.mapping(node, path)
        return [self.value(item, (*path, i)) for i, item in enumerate(node.value)]

    def mapping(self, node: yaml.MappingNode, path: Path) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            key = self.key(key_node, path)
            if key is None:
                continue
            here = (*path, key)
            if key in result:
                first = f"the first is on line {self.lines[here]}"
                self.faults.add(here, "each key once", "it a second time", first)
                self.lines[here] = line
                continue
            self.lines[here] = line
            result[key] = self.value(value_node, here)
        return result

    def key(self, node: yaml.Node, path: Path) -> str | None:
        """Return a key's text, or None after a fault."""
        line = node.start_mark.line + 1
        if not isinstance(node, yaml.ScalarNode):
            place = (*path, f"key on line {line}")
            self.lines[place] = line
            self.faults.add(place, "a name as the key", "a list or a mapping")
            return None
        if node.value == "<<" and node.style is None:
            place = (*path, "<<")
            self.lines[place] = line
            self.faults.add(place, "keys written out", "a merge key")
            return None
        self.text(node)
        return str(node.value)

    def scalar(self, node: yaml.ScalarNode, path: Path) -> Any:
        text = self.text(node)
        if node.style is not None:
            return text
        try:
            return plain(text)
        except ValueError as error:
            self.faults.add(path, str(error), text[:MAX_DIGITS])
            return None

    def text(self, node: yaml.ScalarNode) -> str:
        """Return a scalar's text after counting its characters."""
        line = node.start_mark.line + 1
        text = str(node.value)
        self.characters += len(text)
        if self.characters > MAX_TEXT:
            raise _Refused(line, f"at most {MAX_TEXT} characters in values", "more")
        if re.search("[\ud800-\udfff]", text):
            raise _Refused(line, "Unicode text", "half of a surrogate pair")
        return text


class _Dumper(yaml.SafeDumper):
    """Quotes every text that would be read back as something else."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _quoted(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    style = None if text.isprintable() else '"'  # escapes every kind of line break
    try:
        if not isinstance(plain(text), str):
            style = "'"
    except ValueError:
        style = "'"
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _quoted)
