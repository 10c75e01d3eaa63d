"""What ``fastserve run`` shows: the ranks' output and the launcher's own lines.

Nobody else writes to the terminal, so the progress of the job, which rank 0 sends as
whole lines behind ``environment.STATUS_LINE``, can stay the last line: what else is to
be shown goes above it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import time
from collections.abc import Callable
from typing import Any, BinaryIO

from fastserve import environment
from fastserve.errors import ConfigError, FastserveError

WORDS, QUIET, JSON = "words", "quiet", "json"
_STATUS = environment.STATUS_LINE.encode()
_CLEAR = b"\r\x1b[K"
_COLOUR = re.compile(rb"\x1b\[[0-9;]*m")
_FAILED = re.compile(r"^rank \d+ on \S+ failed: .*$", re.MULTILINE)
_FIRST = re.compile(r"^.*$", re.MULTILINE)
_RED, _PLAIN = "\x1b[31m", "\x1b[0m"


class Screen:
    """Shows the streams of a job, and lines of ours: calling it shows one.

    Args:
        mode: 'words'; 'quiet': without notes; 'json': standard output gets JSON
            objects alone, a line each, and other text goes to standard error.
        say: shows a line of ours; None: standard error.
    """

    def __init__(
        self,
        mode: str = WORDS,
        say: Callable[[str], None] | None = None,
        out: BinaryIO | None = None,
        err: BinaryIO | None = None,
    ) -> None:
        self.mode, self._say = mode, say
        self.out, self.err = out or sys.stdout.buffer, err or sys.stderr.buffer
        self._coloured = {
            id(sink): environment.is_terminal(sink) and environment.wants_colour()
            for sink in (self.out, self.err)
        }
        self._status, self._drawn = "", False
        self._kept: dict[int, bytes] = {}  # of a sink: a line without its end
        self._within: dict[int, bool] = {}  # the start of a line is shown already
        self._closed: set[int] = set()

    # -- lines of ours ------------------------------------------------------------

    def __call__(self, line: str) -> None:
        """Show a line: a warning, or what becomes of the job."""
        if self.mode == JSON:
            self.event("message", {"text": line})
        else:
            self._line(line)

    def note(self, line: str) -> None:
        """Show a line that isn't needed."""
        if self.mode == WORDS:
            self(line)

    def error(self, text: str, **known: Any) -> None:
        """Show why the job ends; ``known`` tells more of it to a program."""
        if self.mode == JSON:
            self.event("error", {"message": text, **known})
        else:
            self._line(self.red(text))

    def failed(self, error: FastserveError, status: int) -> None:
        """Show an error of ours, with its parts."""
        parts = {"expected": "expected", "received": "received", "to_do": "todo"}
        known = {name: getattr(error, own, "") for name, own in parts.items()}
        told = {name: text for name, text in known.items() if text}
        if isinstance(error, ConfigError):
            told["faults"] = list(error.faults)
        self.error(str(error), type=type(error).__name__, **told, status=status)

    def red(self, text: str) -> str:
        """Return a message with its main line in red, if there are colours: that of
        the rank that failed, below its traceback, or the first."""
        if not self._coloured[id(self.err)] or self._say:
            return text
        main = _FAILED.search(text) or _FIRST.search(text)
        assert main is not None
        start, end = main.span()
        return f"{text[:start]}{_RED}{text[start:end]}{_PLAIN}{text[end:]}"

    def event(self, event: str, values: dict[str, Any]) -> None:
        """Print a JSON object, if it is JSON that is wanted."""
        if self.mode == JSON:
            line = {"event": event, **values, "time": time.time()}
            self._write(self.out, json.dumps(line).encode() + b"\n")

    def _line(self, line: str) -> None:
        self._hide()
        if self._say:
            self._say(line)
        else:
            self._write(self.err, line.encode(errors="replace") + b"\n")
        self._draw()

    # -- the job's streams ---------------------------------------------------------

    def show(self, data: bytes, sink: BinaryIO) -> None:
        """Show bytes of one of the job's streams; ``sink`` is ``out`` or ``err``."""
        if not data:
            return
        *lines, rest = (self._kept.pop(id(sink), b"") + data).split(b"\n")
        for line in lines:
            self._job_line(line + b"\n", sink)
        if not rest:
            pass
        elif self._is_status(rest, sink) or (self.mode == JSON and sink is self.out):
            self._kept[id(sink)] = rest  # until the rest of the line is there
        else:
            self._job_line(rest, sink)
        self._draw()

    def end(self) -> None:
        """Show what is left: the job has ended."""
        for sink in (self.out, self.err):
            rest = self._kept.pop(id(sink), b"")
            if not rest.startswith(_STATUS):
                self._job_line(rest, sink)
        self._hide()
        self._status = ""

    def _is_status(self, line: bytes, sink: BinaryIO) -> bool:
        new = not self._within.get(id(sink))
        return sink is self.out and new and _STATUS.startswith(line[: len(_STATUS)])

    def _job_line(self, line: bytes, sink: BinaryIO) -> None:
        if line.endswith(b"\n") and self._is_status(line, sink) and line != b"\n":
            self._status = line[len(_STATUS) : -1].decode(errors="replace")
            if not self._status:
                self._hide()
            return
        if self.mode == JSON and sink is self.out and not _is_object(line):
            sink = self.err
        if not self._coloured[id(sink)]:
            line = _COLOUR.sub(b"", line)
        self._hide()
        self._within[id(sink)] = not line.endswith(b"\n")
        self._write(sink, line)

    # -- the last line -------------------------------------------------------------

    def _hide(self) -> None:
        if self._drawn:
            self._write(self.out, _CLEAR)
            self._drawn = False

    def _draw(self) -> None:
        if not self._status or any(self._within.values()):
            return
        width = shutil.get_terminal_size().columns - 1
        line = cropped(self._status.encode(), width)
        if not self._coloured[id(self.out)]:
            line = _COLOUR.sub(b"", line)
        self._write(self.out, _CLEAR + line)
        self._drawn = True

    def _write(self, sink: BinaryIO, data: bytes) -> None:
        """Write; a reader who went away, or a full disk, does not end the training."""
        if not data or id(sink) in self._closed:
            return
        try:
            sink.write(data)
            sink.flush()
        except OSError as error:
            self._closed.add(id(sink))
            _lead_nowhere(sink)
            if not isinstance(error, BrokenPipeError):
                self._say_closed(sink, error)

    def _say_closed(self, sink: BinaryIO, error: OSError) -> None:
        """Show on the other stream that nothing more is written to this one."""
        name = "output" if sink is self.out else "error"
        line = f"standard {name} can't be written any more: {error.strerror}"
        if sink is self.out:
            self._line(line)
        elif self.mode == JSON:
            self.event("message", {"text": line})
        else:
            self._job_line(line.encode() + b"\n", self.out)


def _lead_nowhere(sink: BinaryIO) -> None:
    """Let what is kept of a stream that can't be written go nowhere: to fail with it
    again at the end would change the exit status."""
    try:
        number = sink.fileno()
    except OSError:  # it is no file of the system
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, number)
    os.close(nowhere)


def cropped(line: bytes, width: int) -> bytes:
    """Return at most ``width`` letters of a line of UTF-8, and all of its colours."""
    shown, kept = 0, []
    for piece in re.findall(r"\x1b\[[0-9;]*m|.", line.decode(errors="replace")):
        coloured = len(piece) > 1
        shown += not coloured
        if coloured or shown <= width:
            kept.append(piece)
    return "".join(kept).encode()


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False
