"""What people find around the code: citation, contributing, templates, make help."""

from __future__ import annotations

import configparser
import re
import subprocess
from pathlib import Path

import pytest
import yaml

import fastserve

ROOT = Path(__file__).parents[1]
FORMS = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))


def test_the_version_is_in_one_place() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    assert setup["metadata"]["version"] == "attr: fastserve.__version__"
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert str(citation["version"]) == fastserve.__version__


def test_the_citation_has_what_its_format_requires() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert citation["cff-version"] == "1.2.0"
    assert {"message", "title", "authors"} <= set(citation)
    assert citation["type"] == "software" and citation["license"] == "MIT"
    assert all("name" in one or "family-names" in one for one in citation["authors"])


def test_contributing_names_what_is_there() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    parts = r"(?:fastserve|launch|tests|configs|docs)/[\w./-]*"
    paths = set(re.findall(rf"`({parts})`|\]\(({parts}|[\w.]+)\)", text))
    for path in map("".join, paths):
        assert (ROOT / path).exists(), path
    makefile = (ROOT / "Makefile").read_text("utf-8")
    for target in re.findall(r"make ([a-z-]+)", text):
        assert re.search(rf"^{target}:.*##", makefile, re.M), target


def test_make_help_lists_every_target() -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    (phony,) = re.findall(r"^\.PHONY: (.*)", makefile, re.M)
    shown = subprocess.run(
        ["make", "--no-print-directory", "help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    lines = dict(line.split(maxsplit=1) for line in shown.splitlines())
    assert set(lines) == set(phony.split())
    starts = {
        line.index(text)
        for line, text in zip(shown.splitlines(), lines.values(), strict=True)
    }
    assert len(starts) == 1  # one column


@pytest.mark.parametrize("path", FORMS, ids=lambda p: p.stem)
def test_the_forms(path: Path) -> None:
    form = yaml.safe_load(path.read_text("utf-8"))
    if path.stem == "config":
        assert set(form) == {"blank_issues_enabled"}
        return
    assert form["name"] and form["description"]
    ids = [part["id"] for part in form["body"]]
    assert len(set(ids)) == len(ids)
    for part in form["body"]:
        assert part["type"] == "textarea" and part["attributes"]["label"]
    assert path.stem != "bug" or "fastserve env" in path.read_text("utf-8")
