"""Damaged files of every kind: only our own errors come out, in time.

FASTSERVE_TEST_FUZZ is the number of inputs for each reader and each of two programs:
one damages files at random, one is guided by coverage. ``make fuzz`` takes 100,000.
"""

from __future__ import annotations

import ast
import os
import platform
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from mpi_environments import run, variables

COUNT = int(os.environ.get("FASTSERVE_TEST_FUZZ", "150"))
PROGRAM = Path(__file__).with_name("programs") / "fuzz.py"
GUIDED = PROGRAM.with_name("fuzz_coverage.py")
SECONDS = max(120.0, COUNT / 20)


def readers() -> list[str]:
    """Return the names in the program's table, without importing it."""
    for node in ast.walk(ast.parse(PROGRAM.read_text("utf-8"))):
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "READERS":
            assert isinstance(node.value, ast.Dict)
            return [ast.literal_eval(key) for key in node.value.keys if key]
    raise AssertionError("no table of readers")


@pytest.mark.parametrize("reader", readers())
def test_only_our_own_errors_come_out(reader: str) -> None:
    command = [sys.executable, str(PROGRAM), reader, str(COUNT)]
    done = run(command, SECONDS, env=variables())
    print(done.stdout[-3000:])
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"{reader}: {COUNT} inputs" in done.stdout


def test_inputs_that_are_guided_by_coverage() -> None:
    """All readers in one process: to import with branches counted takes seconds."""
    if platform.machine() != "x86_64":
        pytest.skip("Atheris has packages for x86_64 alone")
    if find_spec("atheris") is None:
        if os.environ.get("CI") == "true":
            pytest.fail("Atheris isn't installed")
        pytest.skip("Atheris isn't installed; pip install 'fastserve-train[test]' does")
    command = [sys.executable, str(GUIDED), "all", str(COUNT)]
    # with other hashes it would take other ways, and find something once in a while
    env = variables(PYTHONHASHSEED="0")
    done = run(command, SECONDS * len(readers()), env=env)
    print(done.stdout[-10000:])
    assert done.returncode == 0, done.stderr[-3000:]
    for reader in readers():
        assert f"{reader}: {COUNT} inputs guided" in done.stdout
