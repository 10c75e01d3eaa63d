"""The pages in docs/: their Python runs, their commands and jobs are understood, and
their links lead somewhere.

All Python blocks of a page are one program. What a reader has by then and a block
doesn't make, such as arrays, is made in a comment that isn't shown::

    <!-- setup
    x = ...
    -->

``<!-- not run: REASON -->`` before a block leaves it out.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from itertools import takewhile
from pathlib import Path
from typing import Any

import click
import pytest

from fastserve.config import json_schema, load_job
from fastserve.config.strict_yaml import dump_yaml, parse
from launch.cli import cli

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))
TUTORIALS = sorted((ROOT / "docs" / "tutorials").glob("*.md"))  # test_tutorials.py
EVERY = [
    ROOT / "README.md",
    ROOT / "README.zh.md",
    ROOT / "CHANGELOG.md",
    *PAGES,
    *TUTORIALS,
]
NOT_RUN = r"(<!-- not run[^>]*-->\s*)?"
BLOCK = re.compile(r"<!-- setup\n(.*?)-->|" + NOT_RUN + r"```python\n(.*?)```", re.S)
TIME_LIMIT = 60  # seconds for a page


def program(page: Path) -> str:
    """Return a page's Python, with the lines where they are in the page."""
    text, lines = page.read_text("utf-8"), list[str]()
    for match in BLOCK.finditer(text):
        setup, skipped, code = match.groups()
        if skipped:
            continue
        start = match.start(1) if code is None else match.start(3)
        lines += [""] * (text.count("\n", 0, start) - len(lines))
        lines += (setup if code is None else code).splitlines()
    return "\n".join(lines)


WITH_PYTHON = [page for page in PAGES if program(page)]


@pytest.mark.parametrize("page", WITH_PYTHON, ids=lambda p: p.stem)
def test_the_python_runs(page: Path, tmp_path: Path) -> None:
    code = (
        "import warnings, sys\n"
        "warnings.simplefilter('error')\n"
        f"exec(compile({program(page)!r}, {str(page)!r}, 'exec'), {{'__name__': 'x'}})"
    )
    made = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=TIME_LIMIT,
        check=False,
    )
    said = made.stdout.strip().splitlines()
    missing = made.returncode and "to do: pip install" in made.stdout
    if missing and os.environ.get("CI") != "true":
        pytest.skip(said[-1])
    assert made.returncode == 0, "\n".join(said[-15:])


def _fenced(page: Path, *languages: str) -> list[str]:
    fence = r'^```(\w*)(?: title="[^"]+")?\n(.*?)^```'
    blocks = re.findall(fence, page.read_text("utf-8"), re.S | re.M)
    return [block for language, block in blocks if language in languages]


def _commands() -> list[Any]:
    found = []
    for page in EVERY:
        shown = "".join(
            _fenced(page, "sh", "bash", "console", "")
        )  # with "$ " where output follows
        indented = re.findall(r"^    (fastserve .+)", page.read_text("utf-8"), re.M)
        lines = [*re.findall(r"^(?:\$ )?(fastserve .+)", shown, re.M), *indented]
        for line in lines:
            words = shlex.split(line.removesuffix("..."), comments=True)
            own = takewhile(lambda word: word not in (">", ">>", "|"), words[1:])
            found.append(pytest.param(list(own), id=f"{page.stem}: {line}"))
    return found


@pytest.mark.parametrize("words", _commands())
def test_the_commands_are_understood(words: list[str]) -> None:
    command: Any = cli
    context = click.Context(cli, info_name="fastserve")
    while isinstance(command, click.Group):
        name, command, words = command.resolve_command(context, words)
        context = click.Context(command, info_name=name, parent=context)
    command.parse_args(context, list(words))  # raises UsageError
    for word in words:
        assert not re.match(r"configs/(?!NAME)", word) or (ROOT / word).exists()


def _jobs() -> list[Any]:
    return [
        pytest.param(block, id=f"{page.stem}-{number}")
        for page in [ROOT / "README.md", *PAGES, *TUTORIALS]
        for number, block in enumerate(_fenced(page, "yaml"))
        if "{...," not in block
    ]


LABELLED = "{type: arrays, file: data.npz}"
DENSE = "{type: sequential, layers: [{Dense: {units: 2}}], loss: mse}"
GPT = "{type: gpt, n_layer: 1, n_head: 2, n_embd: 32, block_size: 16}"
LANGUAGE = ("text", "tokens", "completions")


@pytest.mark.parametrize("block", _jobs())
def test_the_jobs_are_valid(block: str, tmp_path: Path) -> None:
    for alternative in _alternatives(block):
        job, _, faults = parse(alternative.encode())
        faults.check("the docs", {})
        job.setdefault("name", "job")
        language = job.get("model", {}).get("type", "gpt") == "gpt"
        if "data" in job:
            language = job["data"]["type"] in LANGUAGE
        job.setdefault("model", parse((GPT if language else DENSE).encode())[0])
        text = "{type: text, source: a.txt}"
        job.setdefault("data", parse((text if language else LABELLED).encode())[0])
        train = job.setdefault("train", {})
        train.setdefault("global_batch", 8)
        if "epochs" not in train:
            train.setdefault("steps", 1000)
        path = tmp_path / "job.yaml"
        path.write_text(dump_yaml(job))
        load_job(path, files=False)


def _alternatives(block: str) -> list[str]:
    """Return a block, or its lines if each is a way to write the same section."""
    lines = block.splitlines()
    starts = [line.split(":")[0] for line in lines]
    if len(lines) > 1 and len(set(starts)) == 1:
        return lines
    return [block]


@pytest.mark.parametrize("page", EVERY, ids=lambda p: p.stem)
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text("utf-8")
    for link in re.findall(r"\]\((?!https?:)([^)#\s]*)(?:#[^)]*)?\)", text):
        assert not link or (page.parent / link).exists(), link


KEY = re.compile(
    r"(?<![\w./])(?:train|comm|launch|checkpoint|data|optimizer|schedule)(?:\.\w+)+(?![\w(])"
)


def _keys() -> set[str]:
    """Return all keys of a job, of all kinds of its sections: ``launch.slurm.mpi``."""
    schema, found = json_schema(), set()

    def walk(node: Any, path: str) -> None:
        for kind in [node, *node.get("oneOf", ()), *node.get("anyOf", ())]:
            name = kind.get("$ref", "").rpartition("/")[2]
            section = schema["$defs"].get(name, schema if node is schema else {})
            for key, value in section.get("properties", {}).items():
                found.add(f"{path}{key}")
                walk(value, f"{path}{key}.")

    walk(schema, "")
    return found


def test_the_keys_that_pages_name_are_there() -> None:
    known, seen = _keys(), 0
    for page in EVERY:
        prose = re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.S | re.M)
        for code in re.findall(r"`([^`\n]+)`", prose):
            for key in KEY.findall(code):
                if not key.endswith((".py", ".bin")):
                    assert key in known, f"{page.name}: {key}"
                    seen += 1
    assert seen > 100


def test_every_page_is_in_the_index() -> None:
    index = (ROOT / "docs" / "README.md").read_text("utf-8")
    named = set(re.findall(r"\]\(((?:tutorials/)?[\w-]+\.md)\)", index))
    pages = {str(page.relative_to(ROOT / "docs")) for page in PAGES + TUTORIALS}
    assert pages - named == {"README.md"}


def test_each_environment_variable_is_explained() -> None:
    """Those that are read by ``environment.setting`` are in the list, and no others."""
    folders = (ROOT / "fastserve", ROOT / "launch")
    code = "".join(p.read_text("utf-8") for f in folders for p in f.rglob("*.py"))
    read = set(re.findall(r"""\bsetting\(\s*"([A-Z_]+)\"""", code))
    assert {"JOB", "DATA_DIR", "NO_SIGNALS"} <= read
    page = (ROOT / "docs/install.md").read_text("utf-8")
    assert set(re.findall(r"FASTSERVE_([A-Z_]+)", page)) == read
