"""Runs a plan: streams its output, passes signals on, and judges how it ended.

Whatever happens, no process of the job is left when :func:`run_plan` returns.
"""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import IO, BinaryIO

from fastserve import environment
from fastserve.errors import LaunchError

from .noise import NoiseFilter
from .plan import LaunchPlan
from .records import completed, describe_errors, error_records

REFUSED = 2
STOPPED_EARLY = 75
NOT_COMPLETED = 70
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# Slurm kills a cancelled job after 30 s: be done before.
_GRACE = 20.0
_TERMINATE_SECONDS = 3.0
_FAILED_SECONDS = 5.0
_TICK = 0.1


def run_plan(plan: LaunchPlan, say: Callable[[str], None] | None = None) -> int:
    """Run the job of a plan and return its exit status; ``say`` shows a line of ours.

    0 needs a record of completion by rank 0, whatever the launcher of the MPI says. A
    rank that wrote down why it failed gives its own status, and its error is shown
    instead of the MPI's messages. SIGINT, SIGTERM and SIGHUP ask the ranks to stop:
    first with SIGUSR1, on which they finish their step and save; a second signal, or
    FASTSERVE_GRACE seconds, end them.

    Raises LaunchError if the command can't be started, or for a FASTSERVE_GRACE that is
    no number.
    """
    say = say or _to_stderr
    grace = _grace()
    started = time.time()
    # Signals are caught before the job starts: none may end us with ranks behind us.
    with _caught_signals() as caught:
        process = _start(plan)
        run = _Run(plan, process, caught, started, grace, say)
        try:
            run.watch()
        finally:
            run.end_all()
        return run.judge()


class _Output:
    """One of the job's streams on its way to ours."""

    def __init__(self, source: IO[bytes], sink: BinaryIO) -> None:
        self.source, self.sink = source, sink
        self.noise = NoiseFilter()
        self._closed = False

    def read(self) -> bool:
        """Pass on what is there; return False at the stream's end."""
        data = os.read(self.source.fileno(), 1 << 16)
        self.write(self.noise.feed(data) if data else self.noise.finish())
        return bool(data)

    def write(self, data: bytes) -> None:
        """Show data; a reader of ours who went away does not end the training."""
        if not data or self._closed:
            return
        try:
            self.sink.write(data)
            self.sink.flush()
        except BrokenPipeError:
            self._closed = True


class _Run:
    """A job while it runs, and the judgement on it."""

    def __init__(
        self,
        plan: LaunchPlan,
        process: subprocess.Popen[bytes],
        caught: list[int],
        started: float,
        grace: float,
        say: Callable[[str], None],
    ) -> None:
        self.plan, self.process, self.started, self.say = plan, process, started, say
        self.caught, self._grace = caught, grace
        self._asked = 0  # how many of the caught signals have been acted on
        self._asked_at = 0.0  # unix time of the first
        self._escalation: Iterator[tuple[int, float]] = iter(())
        self._deadline: float | None = None
        self._next_look = 0.0
        assert process.stdout is not None and process.stderr is not None
        self._outputs = [
            _Output(process.stdout, sys.stdout.buffer),
            _Output(process.stderr, sys.stderr.buffer),
        ]
        self._selector = selectors.DefaultSelector()
        for output in self._outputs:
            self._selector.register(output.source, selectors.EVENT_READ, output)

    def watch(self) -> None:
        """Stream the output until the job's command has ended."""
        while self.process.poll() is None:
            self._stream(_TICK)
            if len(self.caught) > self._asked:
                self._asked += 1
                self._stop_requested()
            elif self._deadline is None:
                self._look_for_failure()
            elif time.monotonic() >= self._deadline:
                self._escalate()

    def end_all(self) -> None:
        """Leave no process of the job behind, and show the rest of its output."""
        if self.process.poll() is None:
            kill_job(self.process, self.plan.token)
        limit = time.monotonic() + 1.0
        while job_processes(self.plan.token) and time.monotonic() < limit:
            self._stream(_TICK)
        kill_job(self.process, self.plan.token)
        self.process.wait()
        # Nobody holds the other ends any more, so the streams end.
        limit = time.monotonic() + 1.0
        while self._selector.get_map() and time.monotonic() < limit:
            self._stream(_TICK)
        self._selector.close()
        for output in self._outputs:
            output.write(output.noise.finish())
            output.source.close()

    def judge(self) -> int:
        """Return the job's exit status, and say why it isn't 0."""
        plan, status = self.plan, _shell_status(self.process.returncode)
        if status == 0 and completed(plan.run_dir, plan.token, plan.ranks):
            return 0
        if status == STOPPED_EARLY:
            self.say("stopped early with a checkpoint; go on with --resume auto")
            return status
        records = error_records(plan.run_dir, self.started)
        # Ranks that fail once others have been stopped are not the cause of the end.
        if self.caught and not (records and records[0].time < self._asked_at):
            name = signal.Signals(self.caught[0]).name
            self.say(f"stopped by {name} before the ranks could save")
            return 128 + self.caught[0]
        if records:
            self.say(describe_errors(records, plan.ranks, plan.run_dir))
            return records[0].status or 1
        if status == REFUSED:
            return status  # before there was a run folder, a rank has said why
        for output in self._outputs:
            output.write(output.noise.held)
        self.say(str(_unexplained(plan, status)))
        return status or NOT_COMPLETED

    def _stream(self, seconds: float) -> None:
        if not self._selector.get_map():
            time.sleep(seconds)
        for key, _ in self._selector.select(seconds):
            if not key.data.read():
                self._selector.unregister(key.fileobj)

    def _stop_requested(self) -> None:
        if self._asked == 1:
            self._asked_at = time.time()
            self.say(
                "stopping: the ranks finish their step and save "
                f"(once more: at once; at the latest in {self._grace:g} s)"
            )
            self._end_by(
                (signal.SIGUSR1, self._grace), (signal.SIGTERM, _TERMINATE_SECONDS)
            )
        self._escalate()

    def _end_by(self, *steps: tuple[int, float]) -> None:
        self._escalation = iter(steps)

    def _escalate(self) -> None:
        """Send the next signal; after the last one, kill."""
        number, seconds = next(self._escalation, (signal.SIGKILL, 1.0))
        if number == signal.SIGKILL:
            kill_job(self.process, self.plan.token)
        else:
            self.process.send_signal(number)
        self._deadline = time.monotonic() + seconds

    def _look_for_failure(self) -> None:
        """End a job whose MPI doesn't, some seconds after one of its ranks failed."""
        if time.monotonic() < self._next_look:
            return
        self._next_look = time.monotonic() + 1.0
        if error_records(self.plan.run_dir, self.started):
            self._end_by((signal.SIGTERM, _TERMINATE_SECONDS))
            self._deadline = time.monotonic() + _FAILED_SECONDS


def job_processes(token: str, name: str = "FASTSERVE_JOB") -> list[int]:
    """Return the ids of all running processes of a job on this host (Linux).

    They are known by the variable ``name`` in their environment, since the MPIs put
    ranks into process groups and sessions of their own.
    """
    wanted = f"{name}={token}".encode()
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            variables = (folder / "environ").read_bytes().split(b"\0")
        except OSError:  # it ended meanwhile, or it is another user's
            continue
        if wanted in variables and int(folder.name) != os.getpid():
            found.append(int(folder.name))
    return found


def kill_job(process: subprocess.Popen[bytes], token: str) -> None:
    """Kill a job: its process group, and every process that bears its token."""
    if process.poll() is None:  # else the number may be another group's by now
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    limit = time.monotonic() + 2.0
    while (left := job_processes(token)) and time.monotonic() < limit:
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)


def _grace() -> float:
    given = environment.setting("GRACE") or str(_GRACE)
    try:
        return float(given)
    except ValueError:
        raise LaunchError(
            "expected FASTSERVE_GRACE to be the seconds that ranks get to save",
            repr(given),
            f"set a number, or unset it ({_GRACE:g} s)",
        ) from None


def _start(plan: LaunchPlan) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(
            plan.command,
            cwd=plan.cwd,
            env={**os.environ, **plan.environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            preexec_fn=_end_with_launcher,
        )
    except OSError as error:
        raise LaunchError(
            "expected a command that can be started",
            f"{plan.command[0]}: {error.strerror}",
            "see the whole command with --dry-run",
        ) from error


def _end_with_launcher() -> None:
    """In the new process: end when the launcher is killed, and take the ranks along."""
    environment.die_with_parent(signal.SIGTERM)


@contextmanager
def _caught_signals() -> Iterator[list[int]]:
    """Collect the signals that ask for an end; one that is ignored stays ignored."""
    caught: list[int] = []

    def catch(number: int, frame: FrameType | None) -> None:
        caught.append(number)

    before = {}
    for number in _SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            before[number] = signal.signal(number, catch)
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _shell_status(returncode: int) -> int:
    """Return what a shell would call a status: 128 + n after signal n."""
    return 128 - returncode if returncode < 0 else returncode


def _unexplained(plan: LaunchPlan, status: int) -> LaunchError:
    logs = plan.run_dir / "logs"
    if status == 0:
        return LaunchError(
            "expected rank 0 to record the job's completion",
            "exit status 0 without that record: a rank or a host left early",
            f"look at the output above and at {logs}; go on with --resume auto",
        )
    return LaunchError(
        "expected all ranks to end by themselves",
        f"exit status {status}{_signal_meaning(plan, status)}; no rank said why",
        f"look at the output above and at {logs}; a rank that is killed without a "
        "word often ran out of memory (dmesg tells)",
    )


def _signal_meaning(plan: LaunchPlan, status: int) -> str:
    """Return which signal a status stands for; MPICH gives its bare number."""
    number = status if plan.launcher == "mpich" else status - 128
    known = {s.value: s.name for s in (signal.SIGKILL, signal.SIGSEGV, signal.SIGBUS)}
    return f" (as after {known[number]})" if number in known else ""


def _to_stderr(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
