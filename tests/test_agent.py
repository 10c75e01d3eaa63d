"""The helpers on hosts, without ssh or with one that only pretends."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from mpi_environments import run, variables

from fastserve.errors import LaunchError
from launch.agent import MARK, PATIENCE, _rate, remove, resolve, touch
from launch.hosts import Host
from launch.process import job_processes
from launch.remote import Agents

HERE = Host("localhost")


@pytest.fixture
def token() -> Iterator[str]:
    token = f"agent-{os.getpid()}-{time.monotonic_ns()}"
    yield token
    for pid in job_processes(token):
        os.kill(pid, signal.SIGKILL)


def sleeper(token: str, **more: str) -> subprocess.Popen[bytes]:
    """Start a process of the job, in a session of its own as the MPIs do."""
    env = {**os.environ, "FASTSERVE_JOB": token, **more}
    return subprocess.Popen(["sleep", "60"], env=env, start_new_session=True)


def until(true: Callable[[], Any], seconds: float = 10.0) -> Any:
    limit = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < limit
        time.sleep(0.02)
    return found


def agent() -> subprocess.Popen[str]:
    """Start an agent that this test talks to by itself."""
    return subprocess.Popen(
        [sys.executable, "-u", "-m", "launch.agent", "."],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=variables(),
        text=True,
    )


def told(process: subprocess.Popen[str], key: str) -> dict[str, Any]:
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(MARK):
            message: dict[str, Any] = json.loads(line.removeprefix(MARK))
            if key in message:
                return message
    raise AssertionError(f"the agent ended without {key!r}")


def send(process: subprocess.Popen[str], **message: Any) -> None:
    assert process.stdin is not None
    process.stdin.write(json.dumps(message) + "\n")
    process.stdin.flush()


def test_the_end_of_the_launcher_ends_the_job(token: str) -> None:
    with agent() as process:
        told(process, "ready")
        send(process, id=1, do="watch", arguments={"token": token})
        told(process, "id")
        rank = sleeper(token, PMI_RANK="0")
        told(process, "event")
        assert process.stdin is not None
        process.stdin.close()
        assert rank.wait(10) == -signal.SIGKILL
        assert process.wait(10) == 0


def test_silence_of_the_launcher_ends_the_job(token: str) -> None:
    with agent() as process:
        told(process, "ready")
        since = time.monotonic()  # before the last word that the agent hears
        send(process, id=1, do="watch", arguments={"token": token})
        rank = sleeper(token)
        assert rank.wait(PATIENCE + 5) == -signal.SIGKILL
        assert time.monotonic() - since > PATIENCE
        assert process.wait(10) == 0


def test_requests_and_what_fails() -> None:
    with Agents([HERE]) as agents:
        facts = agents.ask("facts")["localhost"]
        assert facts["python"] == ".".join(map(str, sys.version_info[:3]))
        assert facts["cores"] >= 1
        assert any(i["address"] == "127.0.0.1" for i in facts["interfaces"])
        assert agents.ask("hash", files=["/nowhere"])["localhost"] == {"/nowhere": None}
        with pytest.raises(LaunchError, match="KeyError"):
            agents.ask("nonsense")
        with pytest.raises(LaunchError, match=r"localhost: .*path"):
            agents.ask("disk")
        assert agents.ask("disk", path="/nowhere/at/all")["localhost"] > 0


def test_links_between_agents() -> None:
    with Agents([HERE]) as agents:
        port = agents.ask("listen")["localhost"]["port"]
        places = [["127.0.0.1", port], ["127.0.0.1", 1]]
        here, nowhere = agents.ask("reach", addresses=places)["localhost"]
        assert 0 < here < 1000
        assert nowhere is None
        asked = {"address": "127.0.0.1", "port": port, "seconds": 0.1}
        link = agents.ask("link", **asked)["localhost"]
        assert 0 < link["latency"] < 0.1
        assert link["bandwidth"] > 1e6


@pytest.mark.parametrize(
    ("seen", "rate"),
    [
        ([(0.0, 10), (1.0, 20), (2.0, 120), (3.0, 220)], 100.0),  # slow at first
        ([(0.0, 10), (0.1, 20), (3.0, 310)], 100.0),  # nothing between
        ([(5.0, 10)], 0.0),
        ([], 0.0),
    ],
)
def test_the_rate_of_a_link(seen: list[tuple[float, int]], rate: float) -> None:
    assert _rate(seen) == pytest.approx(rate)


def test_ranks_are_seen_to_start_and_to_end(token: str) -> None:
    with Agents([HERE]) as agents:
        agents.watch(token)
        ranks = {r: sleeper(token, OMPI_COMM_WORLD_RANK=str(r)) for r in (0, 3)}
        other = sleeper("another", OMPI_COMM_WORLD_RANK="7")
        events: list[Any] = []
        until(lambda: events.extend(agents.events()) or len(events) >= 2)
        assert {(e.kind, e.rank, e.pid) for e in events} == {
            ("started", rank, process.pid) for rank, process in ranks.items()
        }
        ranks[3].kill()
        ranks[3].wait()
        ended = until(agents.events)
        assert [(e.kind, e.rank, e.host) for e in ended] == [("ended", 3, "localhost")]
        assert agents.kill(token) == []
        assert ranks[0].wait(5) == -signal.SIGKILL
        assert other.poll() is None
        other.kill()
        other.wait()


def test_closing_ends_the_job(token: str) -> None:
    with Agents([HERE]) as agents:
        agents.watch(token)
        rank = sleeper(token)
        until(lambda: job_processes(token))
    assert rank.wait(5) == -signal.SIGKILL


def test_an_agent_that_ends_is_a_lost_host() -> None:
    with Agents([HERE]) as agents:
        pid = next(iter(agents._agents.values())).process.pid
        os.kill(pid, signal.SIGKILL)
        event = until(agents.events)[0]
        assert (event.host, event.kind) == ("localhost", "lost")
        assert agents.kill("nothing") == ["localhost"]


# -- with an ssh that this test writes


@pytest.fixture
def ssh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    def write(script: str) -> None:
        (tmp_path / "ssh").write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "ssh").chmod(0o755)

    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", variables()["PYTHONPATH"])
    return write


# Runs the command, its last word, as a host's shell would.
RUNS = 'for word in "$@"; do command=$word; done; exec sh -c "$command"'


def test_what_a_login_prints_is_ignored(ssh: Callable[[str], None]) -> None:
    ssh(f"echo Welcome to this host; echo motd >&2; echo '{{\"id\": 1}}'; {RUNS}")
    with Agents([Host("far.invalid")]) as agents:
        assert agents.ask("disk", path="/")["far.invalid"] > 0


def test_the_arguments_of_ssh(ssh: Callable[[str], None], tmp_path: Path) -> None:
    ssh(f'printf "%s\\n" "$@" >{tmp_path}/words; {RUNS}')
    host = Host("far.invalid", user="me", port=2222)
    folder = tmp_path / "a b'c"
    folder.mkdir()
    with Agents([host], ["-i", "my key"], cwd=folder, env={"X": "1 2"}) as agents:
        assert agents.ask("facts")["far.invalid"]["cwd_exists"]
    words = (tmp_path / "words").read_text().splitlines()
    assert words[:2] == ["-i", "my key"]
    assert words[words.index("-p") + 1] == "2222"
    assert "BatchMode=yes" in words
    assert words[-3:-1] == ["me@far.invalid", "--"]


def test_every_host_that_fails_is_named(ssh: Callable[[str], None]) -> None:
    ssh(
        'case "$*" in '
        '*one.invalid*) echo "Permission denied (publickey)." >&2; exit 255;; '
        '*two.invalid*) echo "ssh: Could not resolve hostname two" >&2; exit 255;; '
        "esac; " + RUNS
    )
    hosts = [Host(f"{name}.invalid") for name in ("one", "two", "three")]
    with pytest.raises(LaunchError) as caught:
        Agents(hosts)
    text = str(caught.value)
    assert "one.invalid: Permission denied" in text
    assert "two.invalid: ssh: Could not resolve" in text
    assert "three" not in text
    assert "ssh-copy-id" in text
    assert "/etc/hosts" in text
    with Agents(hosts, strict=False) as agents:
        assert set(agents.failed) == {"one.invalid", "two.invalid"}
        assert list(agents.ask("disk", path="/")) == ["three.invalid"]


@pytest.mark.parametrize("line", ["{", "7", "null", '{"event": "end"}'])
def test_a_broken_line_loses_its_host_alone(
    line: str, ssh: Callable[[str], None], tmp_path: Path
) -> None:
    due = tmp_path / "due"  # once the agents have answered
    wait = f"timeout 60 sh -c 'until [ -e {due} ]; do sleep 0.02; done'"
    late = f"({wait}; echo {shlex.quote(MARK + line)}) &"
    ssh(f'case "$*" in *odd.invalid*) {late} ;; esac; {RUNS}')
    with Agents([Host("odd.invalid"), Host("far.invalid")]) as agents:
        due.touch()
        lost = until(lambda: [e for e in agents.events() if e.kind == "lost"])
        assert [event.host for event in lost] == ["odd.invalid"]
        assert lost[0].text == f"its agent says {MARK + line!r}"
        assert agents.ask("disk", hosts=["far.invalid"], path="/")["far.invalid"] > 0


MANY = """
import resource, sys
from fastserve.errors import LaunchError
from launch.hosts import Host
from launch.remote import Agents

soft, hard = map(int, sys.argv[1:])
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
try:
    hosts = [Host(f"h{i}.invalid") for i in range(12)]
    with Agents(hosts, timeout=40.0) as agents:
        print(len(agents.ask("disk", path="/")))
except LaunchError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("soft", "hard", "said"),
    [(24, 256, "12\n"), (24, 24, "Too many open files after ")],
)
def test_more_hosts_than_files_may_be_open(
    soft: int, hard: int, said: str, ssh: Callable[[str], None]
) -> None:
    ssh(RUNS)
    words = [sys.executable, "-c", MANY, str(soft), str(hard)]
    done = run(words, 60, env={**os.environ, "PYTHONPATH": variables()["PYTHONPATH"]})
    assert done.returncode == 0, done.stderr
    assert said in done.stdout
    if hard == soft:
        assert "ulimit -n" in done.stdout


@pytest.mark.parametrize("name", ["node..1", "a" * 64, "no.such.invalid"])
def test_a_name_that_nobody_has(name: str) -> None:
    assert resolve(Path(), [name]) == {name: []}


def test_without_ssh_there_is_no_other_host(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        LaunchError, match=r"(?s)program ssh.*reach far.*openssh-client"
    ):
        Agents([HERE, Host("far.invalid")])


def test_a_login_that_asks_is_not_waited_for(ssh: Callable[[str], None]) -> None:
    ssh("exec sleep 60")  # which ends with it
    since = time.monotonic()
    with pytest.raises(LaunchError, match="silent for 1 s"):
        Agents([Host("far.invalid")], timeout=1.0)
    assert time.monotonic() - since < 8


def test_no_fastserve_there(ssh: Callable[[str], None]) -> None:
    ssh('echo "env: /x/python: No such file or directory" >&2; exit 127')
    with pytest.raises(LaunchError, match=r"launch\.python"):
        Agents([Host("far.invalid")])


def test_a_probe_changes_nothing_and_finds_what_is_in_the_way(tmp_path: Path) -> None:
    made = touch(tmp_path, "runs/deep/probe", "")
    assert made == str(tmp_path / "probe")
    remove(tmp_path, made)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "runs").touch()
    with pytest.raises(OSError, match="Not a directory"):
        touch(tmp_path, "runs/probe", "")
