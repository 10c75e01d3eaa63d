"""Runs a plan: streams its output, passes signals on, and judges how it ended.

Whatever happens, no process of the job is left when :func:`run_plan` returns.
"""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import IO, BinaryIO, Protocol

from fastserve import environment
from fastserve.errors import LaunchError

from . import openmpi, slurm
from .hosts import shown
from .mpi_messages import NoiseFilter
from .plan import THIS_HOST, LaunchPlan
from .records import (
    ErrorRecord,
    LogMark,
    completed,
    crashes,
    describe_errors,
    error_records,
    logs,
    stopped,
)
from .restart import Loss
from .screen import Screen
from .verdict import FOLLOWS, Sight, lost_hosts, silent_rank
from .watch import Watch

REFUSED = 2
STOPPED_EARLY = 75
NOT_COMPLETED = 70
UNRECORDED = 74  # of a rank that says why it fails, but can't write it down
# SIGUSR1 is what Slurm is told to send before a job's time is over.
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
# Slurm kills a cancelled job after 30 s: be done before.
_GRACE = 20.0
_TERMINATE_SECONDS = 3.0
_FAILED_SECONDS = 5.0
_SILENT_SECONDS = 3.0  # that a job may go on without one of its ranks
_NOTICED_SECONDS = 0.5
_TICK = 0.1


class Event(Protocol):
    """What a host's agent saw: its own connection 'lost', or a rank 'ended'."""

    @property
    def host(self) -> str: ...
    @property
    def kind(self) -> str: ...
    @property
    def rank(self) -> int | None: ...
    @property
    def pid(self) -> int | None: ...
    @property
    def text(self) -> str: ...


class Agents(Protocol):
    """The part of :class:`launch.remote.Agents` that a running job needs."""

    def watch(self, token: str) -> None: ...
    def events(self) -> Sequence[Event]: ...
    def kill(self, token: str, timeout: float = 3.0) -> list[str]: ...


@dataclass(frozen=True)
class Cluster:
    """The hosts of a running job: their agents, and what is known of each.

    ``skews`` are the seconds that a host's clock, by its own name, is ahead of this
    one's; ``blind`` are the hosts that don't see the run folder of this one.
    """

    agents: Agents
    skews: Mapping[str, float] = field(default_factory=dict)
    blind: tuple[str, ...] = ()


def run_plan(
    plan: LaunchPlan,
    say: Callable[[str], None] | None = None,
    cluster: Cluster | None = None,
    loss: Loss | None = None,
) -> int:
    """Run the job of a plan and return its exit status; ``say`` shows a line of ours.

    0 needs a record of completion by rank 0, whatever the launcher of the MPI says. A
    rank that wrote down why it failed gives its own status, and its error is shown
    instead of the MPI's messages. SIGINT, SIGTERM, SIGHUP and SIGUSR1 ask the ranks to
    stop: first with SIGUSR1, on which they finish their step and save; a second signal,
    or FASTSERVE_GRACE seconds, end them.

    ``cluster`` is needed for a plan of other hosts than this one. The job ends when a
    host is lost, or a rank ends while the others go on. ``loss`` is filled if that, or
    a link that was cut, is what ended it.

    Raises LaunchError if the command can't be started, or for a FASTSERVE_GRACE that is
    no number.
    """
    screen = say if isinstance(say, Screen) else Screen(say=say)
    grace = _grace()
    started = time.time()
    # Signals are caught before the job starts: none may end us with ranks behind us.
    with _caught_signals() as caught:
        if cluster:
            cluster.agents.watch(plan.token)
        before = logs(plan.run_dir)
        process = _start(plan)
        run = _Run(plan, process, caught, started, before, grace, screen, cluster, loss)
        try:
            run.watch()
        finally:
            run.end_all()
        status = run.judge()
        if status:
            _note_failure(plan)
        if caught:  # whatever was lost, the job was to end
            run.loss.found = False
        return status


def _note_failure(plan: LaunchPlan) -> None:
    """Say in the run's status file that it isn't trained any more; a rank that was
    killed couldn't."""
    from fastserve.training.status_file import mark_failed

    with suppress(OSError):
        mark_failed(plan.run_dir, plan.token)


class _Output:
    """One of the job's streams on its way to ours."""

    def __init__(self, source: IO[bytes], sink: BinaryIO, screen: Screen) -> None:
        self.source, self.sink, self.screen = source, sink, screen
        self.noise = NoiseFilter()

    def read(self) -> bool:
        """Pass on what is there; return False at the stream's end."""
        data = os.read(self.source.fileno(), 1 << 16)
        self.write(self.noise.feed(data) if data else self.noise.finish())
        return bool(data)

    def write(self, data: bytes) -> None:
        self.screen.show(data, self.sink)


class _Run:
    """A job while it runs, and the judgement on it."""

    def __init__(
        self,
        plan: LaunchPlan,
        process: subprocess.Popen[bytes],
        caught: list[int],
        started: float,
        before: Mapping[Path, LogMark],
        grace: float,
        screen: Screen,
        cluster: Cluster | None = None,
        loss: Loss | None = None,
    ) -> None:
        self.loss = loss or Loss()
        self.plan, self.process, self.started = plan, process, started
        self._logs_before = before
        self.screen = self.say = screen
        self._started = time.monotonic()  # the other is to compare with records
        self._ended_since: float | None = None  # monotonic; of the first rank
        self.cluster, self.sight = cluster, Sight()
        self._watch = None if cluster else Watch(plan.token)
        self.caught, self._grace = caught, grace
        self._asked = 0  # how many of the caught signals have been acted on
        self._asked_at = 0.0  # unix time of the first
        self._late: list[int] = []  # ranks that haven't started in time
        self._killed = False  # by us, because it would not have ended
        self._escalation: Iterator[tuple[int, float]] = iter(())
        self._deadline: float | None = None
        self._next_look = 0.0
        assert process.stdout is not None and process.stderr is not None
        self._outputs = [
            _Output(process.stdout, screen.out, screen),
            _Output(process.stderr, screen.err, screen),
        ]
        self._selector = selectors.DefaultSelector()
        for output in self._outputs:
            self._selector.register(output.source, selectors.EVENT_READ, output)

    def watch(self) -> None:
        """Stream the output until the job's command has ended."""
        while self.process.poll() is None:
            self._stream(_TICK)
            self._look_around()
            self._note_time()
            if self.sight.lost:
                self._kill()
            elif len(self.caught) > self._asked:
                self._asked += 1
                self._stop_requested()
            elif self._deadline is None:
                self._look_for_failure()
            elif time.monotonic() >= self._deadline:
                self._escalate()

    def _note_time(self) -> None:
        """Note when the first sign of a loss was seen."""
        if self.sight.ended and self._ended_since is None:
            self._ended_since = time.monotonic()
        if (self.sight.lost or self.sight.ended) and not self.loss.noticed:
            self.loss.noticed = time.monotonic()

    def end_all(self) -> None:
        """Leave no process of the job behind, and show the rest of its output."""
        self._look_around()  # while it is known which processes were ranks
        self.loss.noticed = self.loss.noticed or time.monotonic()  # if there is one
        if self.plan.allocation and self.process.poll() != 0:
            self._end_step(self.plan.allocation)
        if self.process.poll() is None:
            kill_job(self.process, self.plan.token)
        if self.cluster:
            self._end_on_hosts(self.cluster.agents)
        limit = time.monotonic() + 1.0
        while job_processes(self.plan.token) and time.monotonic() < limit:
            self._stream(_TICK)
        kill_job(self.process, self.plan.token)
        self.process.wait()
        openmpi.forget_session(self.process.pid, _variables(self.plan))
        # Nobody holds the other ends any more, so the streams end.
        limit = time.monotonic() + 1.0
        while self._selector.get_map() and time.monotonic() < limit:
            self._stream(_TICK)
        self._selector.close()
        for output in self._outputs:
            output.write(output.noise.finish())
            output.source.close()
        self.screen.end()

    def judge(self) -> int:
        """Return the job's exit status, and say why it isn't 0."""
        plan, status = self.plan, _shell_status(self.process.returncode)
        done = plan.split is None or completed(plan.run_dir, plan.token, plan.ranks)
        if status == 0 and done and not (self.sight.lost and plan.split is None):
            return 0
        if plan.split is not None and stopped(plan.run_dir, plan.token, plan.ranks):
            return STOPPED_EARLY
        records = self._records()
        # Ranks that fail once others have been stopped are not the cause of the end.
        if self.caught and not (records and records[0].time < self._asked_at):
            name = signal.Signals(self.caught[0]).name
            unsaved = " before the ranks could save" if plan.split is not None else ""
            self.say(f"stopped by {name}{unsaved}")
            return 128 + self.caught[0]
        if self._late:
            self.screen.error(str(_not_in_time(plan, self._late)))
            return NOT_COMPLETED
        if lost := lost_hosts(self.sight, records):
            self.loss.note(list(self.sight.lost))
            self.screen.error(str(lost))
            return NOT_COMPLETED
        follows = bool(records) and records[0].type == FOLLOWS
        if status == UNRECORDED and plan.split is not None and (follows or not records):
            return status
        noises = [output.noise for output in self._outputs]
        words = b"".join(noise.held + noise.follows for noise in noises)
        crashed = crashes(self._logs())
        silent = silent_rank(plan, records, self.sight, words, crashed)
        # A rank that fails by itself says so: without a word one was lost, though it
        # may not be known which, as on the other nodes of a Slurm job.
        unsaid = status != 0 and not records and self._began()
        if silent or self._killed or follows or unsaid:
            self.loss.note()
        if records and not silent:
            self._show_first(records)
            return records[0].status or 1
        if status == REFUSED and not self._began():
            return status  # a rank has said why
        for output in self._outputs:
            output.write(output.noise.held)
            output.write(b"" if silent else output.noise.follows)
        ended = None if self._killed else status
        self.screen.error(str(_unexplained(plan, ended, silent, self._blind())))
        return NOT_COMPLETED if self._killed else status or NOT_COMPLETED

    def _show_first(self, records: list[ErrorRecord]) -> None:
        """Show the earliest error, which is the cause of the others."""
        first = records[0]
        known = {"rank": first.rank, "host": first.host, "type": first.type}
        text = describe_errors(records, self.plan.ranks, self.plan.run_dir)
        self.screen.error(text, **known, status=first.status or 1)

    def _records(self) -> list[ErrorRecord]:
        plan, skews = self.plan, self.cluster.skews if self.cluster else {}
        return error_records(plan.run_dir, self.started, skews, plan.token)

    def _began(self) -> bool:
        """Whether ranks came as far as to write logs."""
        return bool(self._logs())

    def _logs(self) -> list[Path]:
        """Return the logs that this job has written to, whatever the clocks say."""
        now, before = logs(self.plan.run_dir), self._logs_before
        return [path for path, mark in now.items() if mark != before.get(path)]

    def _blind(self) -> tuple[str, ...]:
        return self.cluster.blind if self.cluster else ()

    def _look_around(self, late: bool = False) -> None:
        """Note which ranks have ended and which hosts are lost.

        ``late`` is for ranks that we have ended: they tell who had which process id.
        """
        now = float("inf") if late else time.time()
        if self._watch is not None:
            for seen in self._watch.poll():
                if seen.ended:
                    self.sight.end(seen.rank, self._here(seen.rank), seen.pid, now)
                else:
                    self.sight.started.add(seen.rank)
        for event in self.cluster.agents.events() if self.cluster else ():
            if event.kind == "lost":
                self.sight.lost.setdefault(event.host, event.text)
            elif event.kind == "started" and event.rank is not None:
                self.sight.started.add(event.rank)
            elif event.kind == "ended" and event.rank is not None:
                self.sight.end(event.rank, event.host, event.pid or 0, now)

    def _here(self, rank: int) -> str:
        """Return what this host is called among those of the job."""
        return self.plan.place_of(rank).host.name if self.plan.allocation else THIS_HOST

    def _end_step(self, job: str) -> None:
        """End the job's processes on Slurm's hosts, also those of a killed srun."""
        if not slurm.end_step(job, slurm.step_name(self.plan.token)):
            self.say(
                f"Slurm doesn't answer: see with squeue --steps --jobs={job} whether "
                "processes of the job are left"
            )

    def _kill(self) -> None:
        """End the job at once, on this host; ``end_all`` does on the others."""
        self._killed = True
        kill_job(self.process, self.plan.token)
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(1.0)

    def _end_on_hosts(self, agents: Agents) -> None:
        if self.process.returncode and not self._killed:
            # What ended the job takes a moment to be noticed on its host.
            limit = time.monotonic() + _NOTICED_SECONDS
            while time.monotonic() < limit:
                self._stream(_TICK)
                self._look_around()
        silent = set(agents.kill(self.plan.token)) | self.sight.lost.keys()
        limit = time.monotonic() + (1.0 if self.process.returncode else 0.0)
        while len(self.sight.ended) < self.plan.ranks and time.monotonic() < limit:
            self._stream(_TICK)
            self._look_around(late=True)
        if silent:
            self.say(
                f"no answer from {', '.join(sorted(silent))}: the job's processes "
                "there end by themselves within seconds, as they miss this one"
            )

    def _stream(self, seconds: float) -> None:
        if not self._selector.get_map():
            time.sleep(seconds)
        for key, _ in self._selector.select(seconds):
            if not key.data.read():
                self._selector.unregister(key.fileobj)

    def _stop_requested(self) -> None:
        if self._asked == 1:
            self._asked_at = time.time()
            trains = self.plan.split is not None  # others have nothing to save
            what = ": the ranks finish their step and save" if trains else ""
            self.say(
                f"stopping{what}, which may take {self._grace:g} s; Ctrl-C again ends "
                "them at once"
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
        if self._records():
            self._end_by((signal.SIGTERM, _TERMINATE_SECONDS))
            self._deadline = time.monotonic() + _FAILED_SECONDS
        elif self._misses_a_rank():
            self._kill()
        elif time.monotonic() > self._started + self.plan.start_timeout:
            self._late = self._not_started()
            if self._late:
                self._kill()

    def _not_started(self) -> list[int]:
        """Return the ranks without a process; none if they can't be seen from here."""
        if self.plan.launcher == "local" or self.plan.allocation or self._began():
            return []
        return [r for r in range(self.plan.ranks) if r not in self.sight.started]

    def _misses_a_rank(self) -> bool:
        """Whether the job has gone on for a while without one of its ranks."""
        since, plan = self._ended_since, self.plan
        return (
            since is not None
            and time.monotonic() - since > _SILENT_SECONDS
            and len(self.sight.ended) < plan.ranks
            and not completed(plan.run_dir, plan.token, plan.ranks)
            and not stopped(plan.run_dir, plan.token, plan.ranks)
        )


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
    variables = _variables(plan)

    def prepare() -> None:  # in the new process
        openmpi.forget_session(os.getpid(), variables)
        # End when the launcher is killed, and take the ranks along.
        environment.die_with_parent(signal.SIGTERM)

    try:
        return subprocess.Popen(
            plan.command,
            cwd=plan.cwd,
            env=variables,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            preexec_fn=prepare,
        )
    except OSError as error:
        raise LaunchError(
            "expected a command that can be started",
            f"{plan.command[0]}: {error.strerror}",
            "see the whole command with --dry-run",
        ) from error


def _variables(plan: LaunchPlan) -> dict[str, str]:
    return {**os.environ, **plan.environment}


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


def _not_in_time(plan: LaunchPlan, late: Sequence[int]) -> LaunchError:
    where = dict.fromkeys(plan.place_of(rank).host.name for rank in late)
    ranks = shown([str(rank) for rank in late])
    return LaunchError(
        f"expected all ranks to start within {plan.start_timeout:g} s",
        f"no process of rank{'s' if len(late) > 1 else ''} {ranks} on "
        f"{shown(list(where))}",
        "see whether these hosts are busy, and what the MPI says above; for slow file "
        "systems raise launch.start_timeout",
    )


def _unexplained(
    plan: LaunchPlan, status: int | None, silent: str | None, blind: Sequence[str]
) -> LaunchError:
    """Return the error of a job whose ranks didn't say why it ended.

    ``status`` is None if the job went on, and was killed for that.
    """
    if plan.split is None:  # a program that isn't a training leaves no logs
        look, on = "look at the output above", ""
    else:
        look = f"look at the output above and at {plan.run_dir / 'logs'}"
        on = "; go on with --resume auto"
    if blind:
        look += f"; {plan.run_dir} isn't shared with {', '.join(blind)}: look there too"
    if status == 0 and not silent:
        return LaunchError(
            "expected rank 0 to record the job's completion",
            "exit status 0 without that record: a rank or a host left early",
            look + on,
        )
    parts = [silent] if silent else []
    if status is None:
        parts.append("the others waited for it")
    else:
        parts.append(f"exit status {status}{_signal_meaning(plan, status)}")
    return LaunchError(
        "expected all ranks to end by themselves",
        f"{'; '.join(parts)}; no rank said why",
        f"{look}; a rank that is killed without a word often ran out of memory "
        f"(dmesg tells){on}",
    )


def _signal_meaning(plan: LaunchPlan, status: int) -> str:
    """Return which signal a status stands for; MPICH gives its bare number."""
    number = status if plan.launcher == "mpich" else status - 128
    known = {s.value: s.name for s in (signal.SIGKILL, signal.SIGSEGV, signal.SIGBUS)}
    return f" (as after {known[number]})" if number in known else ""
