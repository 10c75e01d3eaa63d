"""``Agents``: a helper on each host of a job, over ssh.

One daemon thread reads what the agents write and sends them a heartbeat a second, so
the launcher may be busy meanwhile. An agent that misses it ends the job on its host;
one that is missed here makes an event.
"""

from __future__ import annotations

import json
import os
import resource
import selectors
import shlex
import shutil
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from fastserve.errors import LaunchError

from .agent import BEAT, MARK, PATIENCE
from .hosts import Host, UnreachableError, is_here, shown

_LAST_LINES = 8  # of an agent's other output, to tell why it doesn't answer
_CLOSE_SECONDS = 1.0
_CURES = (
    (
        ("Permission denied", "Host key verification failed", "password"),
        "let ssh log in there without a question: ssh-copy-id, and once by hand",
    ),
    (
        ("No such file or directory", "not found", "No module named"),
        "install fastserve there at the same path, or set launch.python",
    ),
    (
        ("Could not resolve", "Name or service not known", "not known"),
        "correct the name, or put it into /etc/hosts or ~/.ssh/config",
    ),
)
_CURE = "look whether the host is up and its ssh server answers, or leave it out with "
_CURE += "--exclude"


@dataclass(frozen=True)
class Event:
    """What was noticed about a host.

    ``kind`` is 'lost' (no word from its agent), 'started' or 'ended' (a rank's process,
    at ``time``, seconds since 1970 by this host's clock).
    """

    host: str
    kind: str
    rank: int | None = None
    pid: int | None = None
    text: str = ""
    time: float = 0.0


@dataclass
class _Agent:
    host: Host
    process: subprocess.Popen[bytes]
    ready: bool = False
    lost: str | None = None
    heard: float = field(default_factory=time.monotonic)
    pending: dict[str, bytes] = field(default_factory=dict)
    answers: dict[int, dict[str, Any]] = field(default_factory=dict)
    words: deque[str] = field(default_factory=lambda: deque(maxlen=_LAST_LINES))


class Agents:
    """Helpers on ``hosts``, to be used with ``with``.

    Args:
        ssh: further arguments of ssh; the user's own configuration counts too.
        python: the interpreter's path on the hosts.
        cwd: the job's folder, if a host has it.
        env: variables of the agents.
        timeout: seconds until all of them have to answer.
        strict: False goes on without the hosts that have no agent.

    Attributes:
        failed: what ssh said and the cure, for each host without an agent.

    Raises UnreachableError that names every host without an agent, and what ssh says.
    """

    def __init__(
        self,
        hosts: Sequence[Host],
        ssh: Sequence[str] = (),
        python: str = sys.executable,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        timeout: float = 8.0,
        strict: bool = True,
    ) -> None:
        self.failed: dict[str, tuple[str, str]] = {}
        self._changed = threading.Condition()
        self._events: deque[Event] = deque()
        self._selector = selectors.DefaultSelector()
        self._number = 0
        self._closed = False
        _need_ssh(hosts)
        program = [python, "-u", "-m", "launch.agent", str(cwd or Path.cwd())]
        variables = [f"{name}={value}" for name, value in (env or {}).items()]
        self._agents: dict[str, _Agent] = {}
        words = ["env", *variables, *program]
        _raise_limit_of_files()
        try:
            for host in hosts:
                self._agents[host.name] = self._start(host, words, ssh, timeout)
        except OSError as error:
            for agent in self._agents.values():
                agent.process.kill()
                agent.process.wait()
            raise LaunchError(
                f"expected to be able to start ssh for {len(hosts)} hosts",
                f"{error.strerror} after {len(self._agents)}",
                "raise the limit of open files, ulimit -n: a host takes three",
            ) from error
        self._thread = threading.Thread(target=self._serve, name="agents", daemon=True)
        self._thread.start()
        try:
            self._wait_until_ready(timeout, strict)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Agents:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def ask(
        self,
        what: str,
        hosts: Sequence[str] | None = None,
        timeout: float = 10.0,
        **arguments: Any,
    ) -> dict[str, Any]:
        """Return each host's answer to a request, by the host's name.

        Raises LaunchError that names the hosts that fail; UnreachableError if these
        are hosts that don't answer.
        """
        reached = [name for name in self._agents if name not in self.failed]
        each = dict.fromkeys(reached if hosts is None else hosts, arguments)
        return self.ask_each(what, each, timeout)

    def ask_each(
        self,
        what: str,
        arguments: Mapping[str, Mapping[str, Any]],
        timeout: float = 10.0,
    ) -> dict[str, Any]:
        """As ``ask``, with arguments of its own for each host; all at the same time."""
        answers = self._answers(what, arguments, timeout)
        faults = {n: a["error"] for n, a in answers.items() if "error" in a}
        if faults:
            parts = (
                f"expected an answer of every host to {what!r}",
                "; ".join(f"{name}: {text}" for name, text in faults.items()),
                "look at these hosts, or leave them out with --exclude",
            )
            if all("id" not in answers[name] for name in faults):  # they are silent
                raise UnreachableError(faults, *parts)
            raise LaunchError(*parts)
        return {name: answer["result"] for name, answer in answers.items()}

    def watch(self, token: str) -> None:
        """Look for the processes of the job of this token from now on."""
        self.ask("watch", token=token)

    def events(self) -> list[Event]:
        """Return what has happened since the last call."""
        with self._changed:
            events = list(self._events)
            self._events.clear()
        return events

    def kill(self, token: str, timeout: float = 3.0) -> list[str]:
        """Kill the job's processes on all hosts; return those that don't answer."""
        each = {
            name: {"token": token} for name, a in self._agents.items() if not a.lost
        }
        answers = self._answers("kill", each, timeout)
        silent = [name for name, answer in answers.items() if "error" in answer]
        return silent + [name for name in self._agents if name not in each]

    def close(self) -> None:
        """End the agents, and with them what their hosts still run of the job."""
        if self._closed:
            return
        self._closed = True
        for agent in self._agents.values():
            with suppress(OSError):
                if agent.process.stdin:
                    agent.process.stdin.close()
        limit = time.monotonic() + _CLOSE_SECONDS
        for agent in self._agents.values():
            try:
                agent.process.wait(max(0.0, limit - time.monotonic()))
            except subprocess.TimeoutExpired:
                agent.process.kill()
                agent.process.wait()
        self._thread.join()
        self._selector.close()
        for agent in self._agents.values():
            for stream in (agent.process.stdout, agent.process.stderr):
                if stream:
                    stream.close()

    def _start(
        self, host: Host, program: list[str], ssh: Sequence[str], timeout: float
    ) -> _Agent:
        command = program
        if not is_here(host.name):
            command = _ssh(host, ssh, timeout, program)
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C asks the job to stop, not these
        )
        agent = _Agent(host, process)
        for name, stream in (("out", process.stdout), ("err", process.stderr)):
            assert stream is not None
            os.set_blocking(stream.fileno(), False)
            self._selector.register(stream, selectors.EVENT_READ, (agent, name))
        assert process.stdin is not None
        os.set_blocking(process.stdin.fileno(), False)
        return agent

    def _wait_until_ready(self, timeout: float, strict: bool) -> None:
        limit = time.monotonic() + timeout
        with self._changed:
            while any(not a.ready and not a.lost for a in self._agents.values()):
                if not self._changed.wait(limit - time.monotonic()):
                    break
            without = [a for a in self._agents.values() if not a.ready]
            if not without:
                return
            said = {a.host.name: a.lost or f"silent for {timeout:g} s" for a in without}
        self.failed = {name: (text, _cure(text)) for name, text in said.items()}
        if not strict:
            return
        cures = dict.fromkeys(_cure(text) for text in said.values())
        raise UnreachableError(
            said,
            "expected every host to be reached with ssh, and to have fastserve",
            "\n    ".join(f"{name}: {text}" for name, text in said.items()),
            "\n    ".join(cures),
        )

    def _answers(
        self, what: str, arguments: Mapping[str, Mapping[str, Any]], timeout: float
    ) -> dict[str, dict[str, Any]]:
        """Return each host's answer as it came, or the error that there is none."""
        with self._changed:
            self._number += 1
            number = self._number
        agents = {name: self._agents[name] for name in arguments}
        for name, agent in agents.items():
            message = {"id": number, "do": what, "arguments": dict(arguments[name])}
            self._send(agent, message)
        limit = time.monotonic() + timeout
        with self._changed:
            while any(number not in a.answers and not a.lost for a in agents.values()):
                if not self._changed.wait(max(0.0, limit - time.monotonic())):
                    break
            late = {"error": f"no answer within {timeout:g} s"}
            return {
                name: agent.answers.pop(
                    number, {"error": agent.lost} if agent.lost else late
                )
                for name, agent in agents.items()
            }

    def _send(self, agent: _Agent, message: Mapping[str, Any]) -> None:
        stdin = agent.process.stdin
        assert stdin is not None
        # what doesn't fit into the pipe is lost with the host, and noticed so
        with suppress(OSError, ValueError):
            os.write(stdin.fileno(), json.dumps(message).encode() + b"\n")

    def _serve(self) -> None:
        beaten = 0.0
        while not self._closed:
            for key, _ in self._selector.select(0.1):
                agent, name = key.data
                self._read(agent, name, key.fileobj)
            now = time.monotonic()
            if now - beaten > BEAT:
                beaten = now
                for agent in self._agents.values():
                    if not agent.lost:
                        self._send(agent, {"beat": now})
            for agent in self._agents.values():
                if agent.ready and not agent.lost and now - agent.heard > PATIENCE:
                    self._lose(agent, f"no sign of life for {PATIENCE:g} s")

    def _read(self, agent: _Agent, name: str, stream: Any) -> None:
        try:
            data = os.read(stream.fileno(), 1 << 16)
        except BlockingIOError:
            return
        if not data:
            self._selector.unregister(stream)
            if name == "out":
                self._ended(agent)
            return
        *lines, rest = (agent.pending.get(name, b"") + data).split(b"\n")
        agent.pending[name] = rest
        for line in lines:
            text = line.decode(errors="replace").rstrip()
            if text.startswith(MARK):
                try:
                    self._take(agent, json.loads(text[len(MARK) :]))
                except (ValueError, TypeError, KeyError):  # of this host alone
                    self._lose(agent, f"its agent says {text[:80]!r}")
            elif text:
                agent.words.append(text)

    def _ended(self, agent: _Agent) -> None:
        """Note the end of an agent, with what it said on standard error."""
        with suppress(subprocess.TimeoutExpired):
            agent.process.wait(0.5)
        assert agent.process.stderr is not None
        with suppress(OSError):
            rest = os.read(agent.process.stderr.fileno(), 1 << 16)
            agent.words.extend(rest.decode(errors="replace").split("\n"))
        words = [word.strip() for word in agent.words if word.strip()]
        status = agent.process.returncode
        self._lose(agent, " | ".join(words[-3:]) or f"its agent ended ({status})")

    def _take(self, agent: _Agent, message: dict[str, Any]) -> None:
        agent.heard = time.monotonic()
        with self._changed:
            if "ready" in message:
                agent.ready = True
            elif "id" in message:
                agent.answers[message["id"]] = message
            elif "event" in message:
                self._events.append(
                    Event(
                        agent.host.name,
                        message["event"],
                        message["rank"],
                        message["pid"],
                        time=time.time(),
                    )
                )
            self._changed.notify_all()

    def _lose(self, agent: _Agent, text: str) -> None:
        with self._changed:
            if agent.lost is None:
                agent.lost = text
                event = Event(agent.host.name, "lost", text=text, time=time.time())
                self._events.append(event)
            self._changed.notify_all()


def _need_ssh(hosts: Sequence[Host]) -> None:
    """Raise LaunchError if there are other hosts and no ssh to reach them with."""
    others = [host.name for host in hosts if not is_here(host.name)]
    if others and shutil.which("ssh") is None:
        raise LaunchError(
            f"expected the program ssh on PATH, to reach {shown(others)}",
            "none there",
            "install OpenSSH's client (Debian: openssh-client; Red Hat: "
            "openssh-clients), or start on this host alone, without -H and --hostfile",
        )


def _raise_limit_of_files() -> None:
    """Allow this process all that it may have; what it starts inherits that."""
    least, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if least != most:
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _ssh(
    host: Host, arguments: Sequence[str], timeout: float, program: Sequence[str]
) -> list[str]:
    """Return the command that starts a program on a host, without any question."""
    target = f"{host.user}@{host.name}" if host.user else host.name
    port = ["-p", str(host.port)] if host.port else []
    options = [
        *(
            "-T",
            "-o",
            "BatchMode=yes",
            "-o",
            f"ConnectTimeout={max(1, int(timeout) - 2)}",
        ),
        *("-o", "ServerAliveInterval=2", "-o", "ServerAliveCountMax=2"),
    ]
    # the remote shell splits what it gets: quote it as one line
    return ["ssh", *arguments, *options, *port, target, "--", shlex.join(program)]


def _cure(text: str) -> str:
    for signs, cure in _CURES:
        if any(sign in text for sign in signs):
            return cure
    return _CURE
