"""The messages that docs/troubleshooting.md explains, and that other pages quote, are
those of the program."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "troubleshooting.md").read_text("utf-8")
MESSAGES = re.findall(r"^### (`+)(.+?)\1$", PAGE, re.M)
VALUE = "…"  # stands for what differs from case to case, there and here


def _strings(path: Path) -> str:
    """Return all strings of a file, with VALUE where an f-string has a value."""
    found = []
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.JoinedStr):
            parts = [
                v.value if isinstance(v, ast.Constant) else VALUE for v in node.values
            ]
            found.append("".join(map(str, parts)))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.append(node.value)
    return "\n".join(found)


SOURCES = [*(ROOT / "fastserve").rglob("*.py"), *(ROOT / "launch").rglob("*.py")]
SAID = "\n".join(_strings(path) for path in SOURCES)


@pytest.mark.parametrize("message", [message for _, message in MESSAGES])
def test_the_program_says_so(message: str) -> None:
    message = re.sub(r"^job.yaml: 2 faults$", "… fault", message)
    pattern = re.escape(message.strip()).replace(VALUE, "[^\n]*?")
    assert re.search(pattern, SAID), message


def test_there_are_many() -> None:
    assert len(MESSAGES) > 50


# `expected ...` in a line's code, with what stands in backticks inside of it, and lines
# of blocks
INLINE = re.compile(r"``(expected .+?)``|`(expected [^`]+)`")
SHOWN = re.compile(r"^(?:step \d+: )?(expected .+)$", re.M)
BLOCK = re.compile(r"^```(?!python).*?^```", re.M | re.S)


def _quoted() -> list[tuple[str, str]]:
    found = []
    for path in sorted([*(ROOT / "docs").glob("*.md"), *ROOT.glob("*.md")]):
        text = path.read_text("utf-8")
        shown = SHOWN.findall("\n".join(BLOCK.findall(text)))
        inline = INLINE.findall(BLOCK.sub("", text))
        found += [(path.stem, m) for m in [*shown, *map("".join, inline)]]
    return found


@pytest.mark.parametrize(("page", "message"), _quoted())
def test_a_quoted_message_is_the_program_s(page: str, message: str) -> None:
    """Numbers and names of hosts, which a quotation has, are values there."""
    words = re.sub(r"\d[\d.]*|\.\.\.", VALUE, message.strip())
    pattern = re.escape(words).replace(VALUE, "[^\n]*?")
    assert re.search(pattern, SAID), f"{page}.md: {message}"
