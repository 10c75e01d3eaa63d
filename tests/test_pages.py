"""What following a page of the documentation means: see pages.py."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
from pages import Reader, blocks, same_form

PAGE = """
```sh
echo step 1  loss 2.00
echo step 2  loss 1.00
cat own.txt
```
"""


def follow(text: str, folder: Path) -> Reader:
    def runner(command: Sequence[str]) -> tuple[int, str]:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, check=False
        )
        return done.returncode, done.stdout + done.stderr

    reader = Reader(folder, runner)
    reader.follow(text)
    return reader


def test_blocks_that_are_followed() -> None:
    text = "<!-- not run: no -->\n```sh\nfalse\n```\n```\nshown\n```\n"
    text += '```yaml title="a"\nb\n```\n<!-- setup sh\ntrue\n-->\n'
    found = list(blocks(text))
    assert [(b.language, b.title, b.code) for b in found] == [
        ("yaml", "a", "b\n"),
        ("sh", None, "true\n"),
    ]


def test_files_commands_and_outputs(tmp_path: Path) -> None:
    saved = '```text title="own.txt"\none\n```\n```text title="own.txt"\ntwo\n```\n'
    shown = "```text\nstep 1 loss 2.1\n...\ntwo\n```\n"
    reader = follow(saved + PAGE + shown, tmp_path)
    assert reader.printed == [(8, "step 1 loss 2.00\nstep 2 loss 1.00\none\ntwo\n")]


def test_a_command_that_fails(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"line 2 ended with 1[\s\S]*own.txt"):
        follow(PAGE, tmp_path)


PRINTED = "epoch 1 loss 2.0  3 ms\nepoch 2 loss 1.0  40 ms\nended"


@pytest.mark.parametrize(
    "shown",
    [
        "epoch 1 loss 2.1  9 s",
        "...\nepoch 2 loss 1.05 ...\nended",
        "epoch 1  loss 2.0 ...\nepoch 2 loss 1.0 ...",
    ],
)
def test_the_same(shown: str) -> None:
    assert same_form(shown, PRINTED) is None


@pytest.mark.parametrize(
    "shown",
    [
        "epoch 1 loss 3.0 ...",
        "ended\nepoch 2 loss 1.0 ...",
        "epoch 1 cost 2.0  3 ms",
        "epoch 1",
    ],
)
def test_not_the_same(shown: str) -> None:
    assert same_form(shown, PRINTED)


def test_a_shortened_page_needs_the_form_alone() -> None:
    shown = "epoch 8 loss 0.1 ...\nepoch 9 loss 0.1 ...\nepoch 10 loss 0.1 ...\nended"
    assert same_form(shown, PRINTED, results=False) is None
    assert same_form("lost", PRINTED, results=False)
