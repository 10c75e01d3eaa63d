"""The hosts that the tests run on: what the other tests rely on."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("lab.sh")
BUILD = Path(__file__).resolve().parents[2] / "build"


class Hosts:
    def __init__(self, state: Path) -> None:
        self.state = state

    def do(self, *words: str, status: int = 0) -> str:
        done = subprocess.run(
            [str(SCRIPT), *words],
            env={**os.environ, "NETLAB": str(self.state), "NETLAB_TTL": "300"},
            capture_output=True,
            text=True,
            timeout=60,
        )
        if done.returncode == 69 and os.environ.get("CI") != "true":
            pytest.skip(done.stderr)
        assert done.returncode == status, done.stderr
        return done.stdout.strip()

    def on(self, node: str, command: str, status: int = 0) -> str:
        words = ("exec", node, "timeout", "10", "sh", "-c", command)
        return self.do(*words, status=status)


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    BUILD.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=BUILD, prefix="lab-") as folder:
        lab = Hosts(Path(folder) / "state")
        lab.do("up", "2")
        yield lab
        lab.do("down")
        assert not lab.state.exists()


def interfaces() -> str:
    return subprocess.run(
        ["ip", "-o", "link"], capture_output=True, text=True, timeout=10
    ).stdout


def test_hosts_are_apart_but_share_files(hosts: Hosts) -> None:
    assert hosts.on("node1", "ssh node2 hostname") == "node2"
    assert hosts.on("node1", "hostname -i") != hosts.on("node2", "hostname -i")
    hosts.on("node1", f"echo here >{hosts.state}/file; echo here >/tmp/own")
    assert hosts.on("node2", f"cat {hosts.state}/file") == "here"
    hosts.on("node2", "test ! -e /tmp/own")
    assert "port1" not in interfaces()


def test_a_link_has_the_rate_that_was_asked_for(hosts: Hosts) -> None:
    hosts.do("rate", "node2", "80mbit")
    send = "dd if=/dev/zero bs=1M count=20 2>/dev/null | ssh node2 'cat >/dev/null'"

    def milliseconds(command: str) -> int:
        clock = f"a=$(date +%s%N); {command}; echo $(( ($(date +%s%N) - a) / 1000000 ))"
        return int(hosts.on("node1", clock))

    # of 20 MiB at 10 MB/s; what a login takes is the machine's
    took = [(milliseconds("ssh node2 true"), milliseconds(send)) for _ in range(3)]
    assert min(whole for _, whole in took) > 1900
    assert min(whole - login for login, whole in took) < 3000


def test_what_breaks_and_comes_back(hosts: Hosts) -> None:
    login = "ssh -o ConnectTimeout=1 node2 hostname"
    again = f"until {login} 2>/dev/null; do sleep 0.1; done"  # at most 10 s
    for trouble, cure in (
        ("cut", "heal"),
        ("ssh-off", "ssh-on"),
        ("crash", "boot"),
    ):
        hosts.do(trouble, "node2")
        hosts.on("node1", login, status=255)
        hosts.do(cure, "node2")
        assert hosts.on("node1", again) == "node2"


def test_a_firewall_lets_only_ssh_through(hosts: Hosts) -> None:
    connect = "timeout {} bash -c 'echo >/dev/tcp/node2/999'"
    hosts.on("node1", connect.format(9), status=1)  # refused: nobody listens
    hosts.do("firewall", "node2")
    assert hosts.on("node1", "ssh node2 hostname") == "node2"
    hosts.on("node1", connect.format(1), status=124)
    hosts.do("open", "node2")
    hosts.on("node1", connect.format(9), status=1)


def test_two_labs_at_once(hosts: Hosts, tmp_path: Path) -> None:
    other = Hosts(tmp_path / "other")
    other.do("up", "1")
    elsewhere = "timeout 1 bash -c 'echo >/dev/tcp/10.77.0.2/22'"
    other.on("node1", f"{elsewhere} || exit 3", status=3)
    assert other.on("node1", f"ls {tmp_path}") == "other"
    other.do("down")
    assert hosts.on("node1", "ssh node2 hostname") == "node2"
