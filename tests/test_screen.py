"""What the launcher shows: the job's streams, with the progress below them."""

from __future__ import annotations

import errno
import io
import json
from typing import Any

import pytest

from fastserve.environment import STATUS_LINE
from fastserve.errors import ConfigError, LaunchError
from fastserve.training import progress
from launch.screen import JSON, QUIET, WORDS, Screen, cropped

STATUS = STATUS_LINE.encode()
CLEAR = b"\r\x1b[K"


class Terminal(io.BytesIO):
    def isatty(self) -> bool:
        return True


def terminal_screen(mode: str = WORDS) -> Screen:
    """Return a screen whose two streams are one terminal."""
    both = Terminal()
    return Screen(mode, out=both, err=both)


def shown(screen: Screen) -> bytes:
    """Return what a person sees: what is behind the last clearing of each line."""
    assert isinstance(screen.out, io.BytesIO)
    lines = screen.out.getvalue().split(b"\n")
    return b"\n".join(line.split(CLEAR)[-1] for line in lines)


@pytest.fixture(autouse=True)
def eighty_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)


def test_the_progress_stays_below_everything_else() -> None:
    screen = terminal_screen()
    screen.show(b"model gpt\n" + STATUS + b"step 1/9\n", screen.out)
    assert shown(screen) == b"model gpt\nstep 1/9"
    screen.show(b"[rank 1 node2] slow\n", screen.err)
    screen.show(STATUS + b"step 2/9\n", screen.out)
    screen("a line of ours")
    assert shown(screen) == b"model gpt\n[rank 1 node2] slow\na line of ours\nstep 2/9"
    screen.show(STATUS + b"\n", screen.out)
    screen.show(b"trained 0:09\n", screen.out)
    screen.end()
    assert shown(screen).endswith(b"a line of ours\ntrained 0:09\n")


def test_the_progress_is_gone_at_the_end_of_a_killed_job() -> None:
    screen = terminal_screen()
    screen.show(STATUS + b"step 1/9\n" + STATUS + b"step 2", screen.out)
    screen.end()
    screen("rank 1 was killed")
    assert shown(screen) == b"rank 1 was killed\n"


def test_pieces_of_lines() -> None:
    """An MPI passes on what it has read, which may end anywhere."""
    screen = terminal_screen()
    whole = b"begin\n" + STATUS + b"step 1\n\rhalf\n\x1b[1mend\x1b[0m\n"
    for place in range(len(whole)):
        screen.show(whole[place : place + 1], screen.out)
    assert shown(screen) == b"begin\n\rhalf\n\x1b[1mend\x1b[0m\nstep 1"


def test_text_without_a_line_end_is_shown_at_once() -> None:
    screen = terminal_screen()
    screen.show(STATUS + b"step 1\n", screen.out)
    screen.show(b"password: ", screen.out)
    assert shown(screen) == b"password: "  # and nothing behind it
    screen.show(b"ok\n", screen.out)
    assert shown(screen) == b"password: ok\nstep 1"


def test_the_progress_is_as_wide_as_the_terminal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    screen = terminal_screen()
    monkeypatch.setenv("COLUMNS", "10")
    screen.show(STATUS + "━━━━ \x1b[1mloss 1.234\x1b[0m\n".encode(), screen.out)
    assert shown(screen).decode() == "━━━━ \x1b[1mloss\x1b[0m"
    assert cropped(b"abc", 3) == b"abc" and cropped(b"abc", 2) == b"ab"


@pytest.mark.parametrize(
    ("variable", "value"), [("NO_COLOR", "1"), ("TERM", "dumb"), ("", "")]
)
def test_colours_are_for_terminals_that_want_them(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    if variable:
        monkeypatch.setenv(variable, value)
    screen = (
        terminal_screen() if variable else Screen(out=io.BytesIO(), err=io.BytesIO())
    )
    screen.show(b"\x1b[33ma warning\x1b[0m\n", screen.err)
    screen.error("expected a\n  received: b")
    assert isinstance(screen.err, io.BytesIO)
    found = screen.err.getvalue().replace(CLEAR, b"")
    assert found == b"a warning\nexpected a\n  received: b\n"


def test_errors_are_red_on_a_terminal() -> None:
    screen = terminal_screen()
    screen.error("expected a\n  received: b")
    trace = "Traceback:\n  x\nrank 1 on node2 failed: ValueError\n1 other rank stopped"
    screen.error(trace)
    assert shown(screen) == (
        b"\x1b[31mexpected a\x1b[0m\n  received: b\n"
        b"Traceback:\n  x\n\x1b[31mrank 1 on node2 failed: ValueError\x1b[0m\n"
        b"1 other rank stopped\n"
    )


def test_quiet_leaves_notes_out() -> None:
    screen = terminal_screen(QUIET)
    screen.note("2 ranks (Open MPI 5.0.11)")
    screen("restart 1 of at most 2")
    assert shown(screen) == b"restart 1 of at most 2\n"


def test_json_keeps_everything_else_from_standard_output() -> None:
    screen = Screen(JSON, out=io.BytesIO(), err=io.BytesIO())
    screen.note("2 ranks")
    screen("restart 1")
    for piece in (b'{"event": "st', b'ep", "step": 1}\nprinted by', b" a layer\n[1]\n"):
        screen.show(piece, screen.out)
    screen.show(b"a warning\n", screen.err)
    screen.show(b"the last words", screen.out)
    screen.end()
    screen.failed(LaunchError("expected a", "b", "do c"), 2)
    screen.failed(ConfigError("job.yaml", ["line 1: x"]), 2)
    assert isinstance(screen.out, io.BytesIO) and isinstance(screen.err, io.BytesIO)
    events = [json.loads(line) for line in screen.out.getvalue().splitlines()]
    assert [event["event"] for event in events] == ["message", "step", "error", "error"]
    assert events[2]["to_do"] == "do c" and events[2]["status"] == 2
    assert events[2]["type"] == "LaunchError" and events[3]["faults"] == ["line 1: x"]
    other = b"printed by a layer\n[1]\na warning\nthe last words"
    assert screen.err.getvalue() == other


class Full(io.BytesIO):
    """A file on a full disk, or a terminal that is gone."""

    def write(self, data: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_stream_that_cannot_be_written_is_said_on_the_other() -> None:
    said = b" can't be written any more: No space left on device\n"
    for mode in (WORDS, JSON):
        screen = Screen(mode, out=Full(), err=io.BytesIO())
        screen.show(STATUS + b"step 1/9\n", screen.out)
        screen.show(b"{}\n{}\n", screen.out)
        screen.end()
        assert isinstance(screen.err, io.BytesIO)
        assert screen.err.getvalue() == b"standard output" + said
    screen = Screen(out=io.BytesIO(), err=Full())
    screen("a warning")
    screen("another one")
    assert isinstance(screen.out, io.BytesIO)
    assert screen.out.getvalue() == b"standard error" + said
    screen = Screen(JSON, out=io.BytesIO(), err=Full())
    screen.show(b"a warning\n", screen.err)
    assert isinstance(screen.out, io.BytesIO)
    event = json.loads(screen.out.getvalue())
    assert event["text"].encode() + b"\n" == b"standard error" + said
    screen = Screen(out=Full(), err=Full())  # both on one disk
    screen.show(b"a line\n", screen.out)
    screen("a warning")


def test_a_line_that_stays_fits() -> None:
    values, rates = ["loss 1.9000", "acc 0.5000"], ["51k tokens/s", "120 GFLOP/s"]
    shown = {
        width: progress.in_rows(width, "step 5/10", values, rates, "0:12 left")
        for width in (None, 73, 72, 50, 45, 25)
    }
    whole = "step 5/10  loss 1.9000  acc 0.5000  51k tokens/s  120 GFLOP/s  0:12 left"
    assert shown[None] == shown[73] == whole
    assert shown[72] == whole.replace("  120 GFLOP/s", "")
    assert shown[50] == "step 5/10  loss 1.9000  acc 0.5000  0:12 left"
    assert shown[45] == "step 5/10  loss 1.9000  acc 0.5000\n  0:12 left"
    assert shown[25] == "step 5/10  loss 1.9000\n  acc 0.5000  0:12 left"


def test_the_line_of_progress_fits() -> None:
    values, rates, left = (
        "loss 1.9000  acc 0.5000",
        ["51k tokens/s", "120 GFLOP/s"],
        "0:12 left",
    )
    lines = {
        width: progress.fit(width, "step 5/10", 0.5, values, rates, left)
        for width in (140, 80, 60, 50, 40, 20)
    }
    assert all(len(line) < width for width, line in lines.items())
    assert lines[140] == (
        "step 5/10  ━━━━━━━━━━╺╺╺╺╺╺╺╺╺╺  loss 1.9000  acc 0.5000  51k tokens/s  "
        "120 GFLOP/s  0:12 left"
    )
    assert lines[80] == (
        "step 5/10  ━━━━━╺╺╺╺╺  loss 1.9000  acc 0.5000  51k tokens/s  0:12 left"
    )
    assert lines[60] == ("step 5/10  loss 1.9000  acc 0.5000  51k tokens/s  0:12 left")
    assert lines[50] == "step 5/10  loss 1.9000  acc 0.5000  0:12 left"
    assert lines[40] == "step 5/10  loss 1.9000  acc   0:12 left"
