"""Damaged files of every kind: only our own errors come out, in time.

FASTSERVE_TEST_FUZZ is the number of inputs for each reader; ``make fuzz`` takes
100,000.
"""

from __future__ import annotations

import ast
import os
import sys
from pathlib import Path

import pytest
from mpi_environments import run, variables

COUNT = int(os.environ.get("FASTSERVE_TEST_FUZZ", "150"))
PROGRAM = Path(__file__).with_name("programs") / "fuzz.py"
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
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert f"{reader}: {COUNT} inputs" in done.stdout
