"""The site of the documentation is built without network, and whole."""

from __future__ import annotations

import html
import importlib.util
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest
from browser import Browser

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "docs" / "site"
NEEDED = ("zensical", "mkdocstrings_handlers", "math_core")
TIME_LIMIT = 400  # seconds for the build

if os.environ.get("CI") != "true":
    for name in NEEDED:
        pytest.importorskip(name, reason="needs pip install 'fastserve-train[docs]'")


@pytest.fixture(scope="module")
def build() -> ModuleType:
    """The builder, docs/site/build.py."""
    sys.path.insert(0, str(FOLDER))
    specification = importlib.util.spec_from_file_location("b", FOLDER / "build.py")
    assert specification and specification.loader
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    sys.path.remove(str(FOLDER))
    return module


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("docs") / "site"
    made = subprocess.run(
        [sys.executable, FOLDER / "build.py", folder],
        env={**os.environ, "PYTHONPATH": str(ROOT), "NO_COLOR": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=TIME_LIMIT,
        check=False,
    )
    assert made.returncode == 0, made.stdout
    assert "No issues found" in made.stdout
    return folder


@pytest.mark.slow
def test_every_page_is_there(site: Path) -> None:
    pages = [p.relative_to(ROOT / "docs") for p in (ROOT / "docs").rglob("*.md")]
    missing = {p for p in pages if not (site / p.with_suffix(".html")).exists()}
    assert missing == {Path("README.md")}
    assert (site / "index.html").exists()


@pytest.mark.slow
def test_every_key_command_and_public_name_is_there(
    site: Path, build: ModuleType
) -> None:
    import fastserve as fs
    from fastserve.config import json_schema
    from launch.cli import cli

    files = (site / "reference" / "files.html").read_text("utf-8")
    for place in ("fastserve/training", "launch/commands"):
        for path in (ROOT / place).glob("*.py"):
            assert f"<code>{path.name}</code>" in files
    keys = (site / "reference" / "job.html").read_text("utf-8")
    sections = json_schema()["$defs"].values()
    known = {key for section in sections for key in section["properties"]}
    assert len(known) > 150
    assert [key for key in known if f"<code>{key}</code>" not in keys] == []
    commands = (site / "reference" / "commands.html").read_text("utf-8")
    assert all(f'id="fastserve-{name}"' in commands for name in cli.commands)
    for module in build.reference.MODULES:
        text = (site / "reference" / "python" / f"{module}.html").read_text("utf-8")
        headings = {
            html.unescape(re.sub(r"<[^>]+>", "", heading)).split()[0].strip("¶")
            for heading in re.findall(r"<h2[^>]*>(.*?)</h2>", text, re.S)
        }
        public = build.reference.public_names(getattr(fs, module))
        assert public and set(public) <= headings, module


@pytest.mark.slow
def test_formulas_and_drawings_are_in_the_pages(site: Path) -> None:
    formulas = (site / "mathematics.html").read_text("utf-8")
    assert formulas.count("<math") > 100
    prose = re.sub(r"<(pre|code|script)\b.*?</\1>", "", formulas, flags=re.S)
    assert "$" not in prose
    for page in ("concepts", "architecture"):
        text = (site / f"{page}.html").read_text("utf-8")
        for drawing in re.findall(r'src="(assets/[^"]+\.svg)"', text):
            assert (site / drawing).exists()
        assert "assets/" in text


@pytest.mark.slow
def test_no_words_were_taken_for_tags(site: Path) -> None:
    """As "<gradient, d>" in a docstring is, which belongs into backticks."""
    for page in (site / "reference" / "python").glob("*.html"):
        assert not re.findall(r"<[a-z]+,", page.read_text("utf-8")), page


@pytest.mark.slow
def test_nothing_is_loaded_from_elsewhere(site: Path, build: ModuleType) -> None:
    for page in site.rglob("*.html"):
        assert not build.LOADED.findall(page.read_text("utf-8")), page
    text = '<script src="https://x.org/a.js"><link rel="stylesheet" href="//x.org/a">'
    assert len(build.LOADED.findall(text)) == 2  # the search isn't blind


@pytest.mark.slow
def test_drawings_and_keys_can_be_read_in_a_narrow_window(
    site: Path, tmp_path: Path
) -> None:
    """They scroll within the page, and don't shrink until nothing can be read."""
    boxes = "[...document.querySelectorAll('{}')].map(e => [{}])"
    whole = "e.clientWidth, getComputedStyle(e.parentElement).overflowX"
    with Browser(tmp_path) as browser:
        for page in ("concepts", "architecture"):
            browser.open(site / f"{page}.html", 400)
            assert browser.value("document.documentElement.scrollWidth") <= 400
            drawings = browser.value(boxes.format('img[src$=".svg"]', whole))
            assert drawings
            assert all(w >= 600 and kind == "auto" for w, kind in drawings)
        browser.open(site / "reference" / "job.html", 400)
        wrapped = "document.querySelectorAll('.keys .md-typeset__scrollwrap').length"
        limit = time.monotonic() + 60
        while not browser.value(wrapped):  # the page's program wraps them when loaded
            assert time.monotonic() < limit
            time.sleep(0.05)
        assert browser.value("document.documentElement.scrollWidth") <= 400
        inner = "e.clientWidth, getComputedStyle(e).overflowX, e.scrollWidth"
        tables = browser.value(boxes.format(".keys .md-typeset__scrollwrap", inner))
        assert len(tables) > 30
        assert all(kind == "auto" for _, kind, _ in tables)
        what = browser.value(boxes.format(".keys td:last-child", "e.clientWidth"))
        assert min(width for (width,) in what) > 150


def test_a_broken_link_ends_the_build(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "index.md").write_text("# A\n\n[b](b.md) [a](#c)\n")
    (tmp_path / "mkdocs.yml").write_text("site_name: a\n")
    made = subprocess.run(
        [sys.executable, "-m", "zensical", "build", "--strict"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
        check=False,
    )
    assert made.returncode == 1
    assert "2 issues found" in made.stdout


def test_a_page_that_is_not_in_the_nav_ends_the_build(
    tmp_path: Path, build: ModuleType
) -> None:
    for name in ("index.md", "a.md", "b.md"):
        (tmp_path / name).write_text("# A\n")
    build.check_nav(["index.md", {"S": ["a.md", "b.md"]}], tmp_path)
    with pytest.raises(SystemExit, match=r"not found: b\.md"):
        build.check_nav(["index.md", {"S": ["a.md"]}], tmp_path)
    with pytest.raises(SystemExit, match=r"aren't there: c\.md"):
        build.check_nav(["index.md", {"S": ["a.md", "b.md", "c.md"]}], tmp_path)


def test_links_to_files_that_the_site_has_not_become_words(build: ModuleType) -> None:
    page = ROOT / "docs" / "tutorials" / "x.md"
    text = (
        "[a](../faq.md#b) [i](../README.md) [c](../../configs/digits.yaml) "
        "[o](../../fastserve/ops/norm.py) [w](https://x.org)\n```\n[a](../README.md)\n```\n"
    )
    assert build.relinked(text, page) == (
        "[a](../faq.md#b) [i](../index.md) [c](../reference/jobs.md#digitsyaml) "
        "o [w](https://x.org)\n```\n[a](../README.md)\n```\n"
    )


def test_a_formula_that_is_not_understood_ends_the_build(build: ModuleType) -> None:
    code = (
        "import markdown, formulas\n"
        "m = markdown.Markdown(extensions=['fenced_code', 'formulas'])\n"
        "text = m.convert('a $x_1$ costs 5$ and `$y$`\\n\\n$$\\nx^2\\n$$')\n"
        "assert text.count('<math') == 2, text\n"
        "assert '5$' in text and '<code>$y$</code>' in text, text\n"
        "m.convert('$\\\\frac{1$')\n"
    )
    made = subprocess.run(
        [sys.executable, "-c", code],
        cwd=FOLDER,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "LatexError" in made.stderr, made.stderr


def test_bounds_of_a_number_are_told_apart(build: ModuleType) -> None:
    node = {"type": "number", "minimum": 0, "exclusiveMaximum": 1}
    assert build.reference._kind(node, {}) == "number ≥ 0, < 1"
    assert build.reference._kind({"type": "boolean"}, {}) == "`true`, `false`"
