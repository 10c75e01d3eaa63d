"""Each command's help has examples that are understood; shells complete its words."""

from __future__ import annotations

import os
import pty
import re
import select
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from mpi_environments import ROOT, variables

from launch.cli import cli


def commands(
    group: click.Group = cli, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    for name, command in group.commands.items():
        yield (*path, name), command
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))


EVERY = dict(commands()) | {(): cli}
NAMES = [pytest.param(path, id=" ".join(path) or "fastserve") for path in EVERY]


def shown(path: tuple[str, ...]) -> str:
    """Return the help as a terminal of 80 columns has it."""
    context = click.Context(cli, info_name="fastserve", terminal_width=80)
    for end in range(len(path)):
        command = EVERY[path[: end + 1]]
        context = click.Context(command, info_name=path[end], parent=context)
    return context.command.get_help(context)


def parse(words: list[str]) -> None:
    """Let the command read its words, without running it; raises click.UsageError."""
    command: Any = cli
    context = click.Context(cli, info_name="fastserve")
    while isinstance(command, click.Group):
        name, command, words = command.resolve_command(context, words)
        context = click.Context(command, info_name=name, parent=context)
    command.parse_args(context, list(words))


@pytest.mark.parametrize("path", NAMES)
def test_help_has_examples_that_are_understood(path: tuple[str, ...]) -> None:
    text = shown(path)
    _, found, examples = text.partition("Examples:\n")
    assert found, f"the help of {' '.join(path)} has no examples"
    lines = [line for line in examples.split("\n\n")[0].splitlines() if line.strip()]
    own = 0
    for line in lines:
        match = re.search(r"(?<!\S)fastserve ([^|>#]+)", line)
        assert match, line
        words = shlex.split(match[1])
        own += tuple(words[: len(path)]) == path
        if "COMMAND" not in words:
            parse(words)
        for word in words:
            assert not word.startswith("configs/") or (ROOT / word).exists(), word
    assert own, f"no example of {' '.join(path)} itself"
    assert max(map(len, lines)) <= 84  # they aren't wrapped


@pytest.mark.parametrize("path", NAMES)
def test_no_summary_of_a_command_is_cut(path: tuple[str, ...]) -> None:
    _, _, summaries = shown(path).partition("Commands:\n")
    assert bool(summaries) == isinstance(EVERY[path], click.Group)
    assert "..." not in summaries


@pytest.mark.parametrize("path", NAMES)
def test_every_option_is_explained(path: tuple[str, ...]) -> None:
    for parameter in EVERY[path].params:
        if isinstance(parameter, click.Option):
            assert parameter.help, parameter.name


def test_an_option_has_the_same_words_in_every_command() -> None:
    found: dict[str, set[str | None]] = {}
    for command in EVERY.values():
        for option in command.params:
            if isinstance(option, click.Option):
                found.setdefault(option.opts[0], set()).add(option.help)
    for name in ("--checkpoint", "--split", "--oversubscribe", "--set", "--launcher"):
        assert len(found[name]) == 1, found[name]
    assert all(str(words).endswith("for programs.") for words in found["--json"])


def test_completion_is_set_up_as_its_page_says() -> None:
    page = (ROOT / "docs" / "new.md").read_text("utf-8")
    lines = re.findall(r"^ *(fastserve completion .*)", shown(("completion",)), re.M)
    assert len(lines) == 3
    for line in lines:
        assert f"\n{line}" in page


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """A folder with the command ``fastserve`` that runs these sources."""
    path = tmp_path / "bin" / "fastserve"
    path.parent.mkdir()
    code = "import sys; sys.argv[0] = 'fastserve'; from launch.cli import main; main()"
    path.write_text(f'#!/bin/sh\nexec {sys.executable} -c "{code}" "$@"\n')
    path.chmod(0o755)
    return path


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_of_each_shell(shell: str, program: Path) -> None:
    made = subprocess.run(
        [program, "completion", shell],
        env=variables(),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    ).stdout
    assert f"_FASTSERVE_COMPLETE={shell}_complete" in made
    if shutil.which(shell):
        check = {"fish": "--no-execute"}.get(shell, "-n")
        subprocess.run([shell, check], input=made, text=True, check=True, timeout=30)


@pytest.mark.skipif(not shutil.which("bash"), reason="needs bash")
def test_bash_completes_commands_and_files(program: Path, tmp_path: Path) -> None:
    (tmp_path / "a-job.yaml").touch()
    made = [program, "completion", "bash"]
    with (tmp_path / "rc").open("w") as file:  # as the help and docs/new.md say
        subprocess.run(made, env=variables(), stdout=file, timeout=60, check=True)
        file.write("PS1='ready '\n")
    search = f"{program.parent}{os.pathsep}{os.environ['PATH']}"
    env = variables(PATH=search, TERM="dumb", HOME=str(tmp_path))
    terminal, its_end = pty.openpty()
    bash = subprocess.Popen(
        ["bash", "--noprofile", "--rcfile", "rc", "-i"],
        cwd=tmp_path,
        env=env,
        stdin=its_end,
        stdout=its_end,
        stderr=its_end,
        start_new_session=True,
    )
    os.close(its_end)
    try:
        read_until(terminal, "ready ")
        os.write(terminal, b"fastserve merge\t")
        read_until(terminal, "fastserve merge-lora ")
        os.write(terminal, b"\x15fastserve run a-\t")
        read_until(terminal, "fastserve run a-job.yaml ")
        os.write(terminal, b"\x15fastserve run a-job.yaml --oversub\t")
        read_until(terminal, "a-job.yaml --oversubscribe ")
    finally:
        bash.kill()
        bash.wait()
        os.close(terminal)


def read_until(terminal: int, wanted: str, seconds: float = 60) -> None:
    text, end = "", time.monotonic() + seconds
    while wanted not in text.replace("\a", ""):
        ready, _, _ = select.select([terminal], [], [], end - time.monotonic())
        assert ready, f"no {wanted!r} in {text!r}"
        text += os.read(terminal, 4096).decode()
