"""Sorts the MPIs' messages on how a job was aborted out of the ranks' output.

They repeat on every failure, in ten lines or more, that some rank ended. When the rank
itself has said why, they only bury the cause; when it could not, they are all there is.
"""

from __future__ import annotations

import re

# Messages between two rules: of dashes from Open MPI, of equal signs from MPICH.
_RULE = re.compile(rb"(-{50,80}|={60,90})\s*\Z")
_OPENERS = (
    b"MPI_ABORT was invoked",
    b"prterun has exited due",
    b"prterun noticed that",
    b"prterun detected that",
    b"mpirun has exited due",
    b"mpirun noticed that",
    b"mpirun detected that",
    b"Primary job  terminated",
    b"An MPI communication peer process has unexpectedly disconnected",
    b"=   BAD TERMINATION",
)
_LONGEST = 40
# Messages of a line each, all from MPICH.
_LINES = (
    b"Abort(",
    b"YOUR APPLICATION TERMINATED WITH THE EXIT STRING: ",
    b"This typically refers to a problem with your application.",
    b"Please see the FAQ page for debugging suggestions",
)
_ABORT = re.compile(rb"Abort\(-?\d+\) on node \d+ .*MPI_Abort")
# Lines of Open MPI's ranks, and of MPICH's launcher, that only follow from an end.
_FOLLOWS = re.compile(
    rb"\[[\w.-]+:\d+\] (\*\*\* |plm:ssh: Warning: setpgid)"
    rb"|\[(proxy:\d+(:\d+)?|mpiexec)@[\w.-]+\] \w+ \("
)
_STARTS = (*_LINES, b"-" * 50, b"=" * 60)


class NoiseFilter:
    """Splits a stream of bytes: ``feed`` returns the output, ``held`` keeps the noise.

    Text without a newline, such as a progress bar, passes at once, unless it could be
    the beginning of one of the MPIs' lines.
    """

    def __init__(self) -> None:
        self.held = b""
        self.follows = b""  # of the noise, what ranks say that miss another one
        self._block: list[bytes] = []  # a rule, and the message that follows it
        self._tail = b""
        self._within_line = False  # the start of this line has been passed on

    def feed(self, data: bytes) -> bytes:
        """Return what of the stream so far is to be shown now."""
        # Open MPI ends some of its messages with a stray zero byte.
        *lines, self._tail = (self._tail + data.replace(b"\0", b"")).split(b"\n")
        shown = b"".join(self._line(line + b"\n") for line in lines)
        if self._tail and not self._may_be_noise():
            shown += self.finish()
            self._within_line = True
        return shown

    def finish(self) -> bytes:
        """Return what waits for more of the stream, as if there were none."""
        left = b"".join(self._block) + self._tail
        self._block, self._tail = [], b""
        return left

    def _may_be_noise(self) -> bool:
        if self._within_line or len(self._block) > 1:
            return not self._within_line
        starts = _OPENERS if self._block else _STARTS
        return any(s.startswith(self._tail) or self._tail.startswith(s) for s in starts)

    def _line(self, line: bytes) -> bytes:
        """Return what to show once a line is complete: nothing, the line, or more."""
        if self._within_line:
            self._within_line = False
            return line
        if self._block:
            return self._line_after_rule(line)
        if _RULE.match(line):
            self._block = [line]
            return b""
        if line.startswith(_LINES[1:]) or _ABORT.match(line):
            self.held += line
            return b""
        if _FOLLOWS.match(line):
            self.follows += line
            return b""
        return line

    def _line_after_rule(self, line: bytes) -> bytes:
        if len(self._block) == 1 and not line.startswith(_OPENERS):
            rule, self._block = self._block[0], []
            return rule + self._line(line)
        self._block.append(line)
        if len(self._block) == _LONGEST:
            return self.finish()
        if _RULE.match(line):
            self.held += b"".join(self._block)
            self._block = []
        return b""
