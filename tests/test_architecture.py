"""docs/architecture.md: it has all folders and files, and its drawing is right."""

from __future__ import annotations

import html
import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "architecture.md").read_text("utf-8")
TOP = "fastserve|launch|tests|benchmarks|configs|hostfiles|docs"
WITHIN = "data|layers|core|losses|training|comm|optimizers|ops|config"


def _named() -> set[str]:
    whole = re.findall(rf"`((?:{TOP})/[\w./-]*)`", PAGE)
    parts = re.findall(rf"`((?:{WITHIN})/[\w./-]*)`", PAGE)
    return {*whole, *(f"fastserve/{part}" for part in parts)}


@pytest.mark.parametrize("path", sorted(_named()))
def test_what_it_names_exists(path: str) -> None:
    assert (ROOT / path).exists()


@pytest.mark.parametrize("package", ["fastserve", "launch"])
def test_it_names_every_folder(package: str) -> None:
    for path in (ROOT / package).rglob("*/"):
        if "__" in path.name or not path.is_dir():
            continue
        name = path.relative_to(ROOT).as_posix()
        assert f"`{name}/`" in PAGE or f"`{path.name}/`" in PAGE, name


def _sections() -> dict[str, set[str]]:
    """Return the names that each folder's table of files has in its first column."""
    found: dict[str, set[str]] = {}
    for section in PAGE.split("\n### `")[1:]:
        folder, _, text = section.partition("/`\n")
        cells = re.findall(r"^\|(.*?)\|", text, re.MULTILINE)
        found[folder] = set(re.findall(r"`([\w./]+)`", " ".join(cells)))
    return found


SECTIONS = _sections()


@pytest.mark.parametrize("folder", SECTIONS)
def test_a_folder_s_table_has_its_files_and_no_others(folder: str) -> None:
    files = {path.name for path in (ROOT / folder).glob("*.py")} - {"__init__.py"}
    named = {name for name in SECTIONS[folder] if name.endswith(".py")}
    assert named == files, "write them into the files of docs/architecture.md"


def test_each_folder_of_modules_has_a_table() -> None:
    """But the commands, whose files have the commands' names."""
    found = {
        path.parent.relative_to(ROOT).as_posix()
        for package in ("fastserve", "launch")
        for path in (ROOT / package).rglob("*.py")
    }
    assert set(SECTIONS) == found - {"launch/commands"}


def test_the_drawing_shows_the_order_that_is_tested() -> None:
    order = runpy.run_path(str(ROOT / "tests" / "test_imports.py"))["ORDER"]
    drawing = (ROOT / "docs" / "assets" / "imports.svg").read_text("utf-8")
    middle = re.findall(r'text-anchor="middle"[^>]*>([^<]+)<', drawing)
    shown = [set(html.unescape(line).split(" · ")) for line in middle]
    known = set().union(*order)
    found = [line for line in shown if line & known]
    assert found == list(reversed(order)), "write them into docs/assets/imports.svg"
