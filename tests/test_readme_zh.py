"""The Chinese README says what the English one does: commands, code, links, names."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
ENGLISH = (ROOT / "README.md").read_text("utf-8")
CHINESE = (ROOT / "README.zh.md").read_text("utf-8")
TO_DO = "change README.zh.md as README.md was"


def code(text: str) -> list[str]:
    """Return the lines of all blocks of code, without their comments."""
    found = re.findall(r"^```(\w+)\n(.*?)^```", text, re.S | re.M)
    lines = "".join(f"{language}\n{block}" for language, block in found).splitlines()
    return [re.sub(r"\s*(^|\s)# .*", "", line).rstrip() for line in lines]


def files(text: str) -> list[str]:
    """Return the names of files and folders in the blocks that aren't code."""
    shown = "".join(re.findall(r"^```\n(.*?)^```", text, re.S | re.M))
    return re.findall(r"[\w.-]+\.(?:json\w*|yaml|safetensors|log|lock)\b|\w+/", shown)


def inline(text: str) -> list[str]:
    prose = re.sub(r"^```.*?^```", "", text, flags=re.S | re.M)
    return sorted(re.findall(r"`([^`\n]+)`", prose))


def links(text: str) -> list[str]:
    named = re.findall(r"\]\(([^)]+)\)", text)
    return sorted(link for link in named if not link.startswith("README"))


def test_the_same_commands_and_code() -> None:
    assert code(CHINESE) == code(ENGLISH), TO_DO


def test_the_same_files_of_a_run() -> None:
    assert files(CHINESE) == files(ENGLISH), TO_DO


def test_the_same_names_and_links() -> None:
    assert inline(CHINESE) == inline(ENGLISH), TO_DO
    assert links(CHINESE) == links(ENGLISH), TO_DO


def test_the_same_sections_and_tables() -> None:
    def shape(text: str) -> list[str]:
        outside = re.sub(r"^```.*?^```", "", text, flags=re.S | re.M)
        return re.findall(r"^(#+|\||-)", outside, re.M)

    assert shape(CHINESE) == shape(ENGLISH), TO_DO


def test_each_leads_to_the_other() -> None:
    assert "](README.md)" in CHINESE
    assert "](README.zh.md)" in ENGLISH
