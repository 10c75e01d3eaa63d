"""What a look at the hosts finds, and which rank or host is told to be the cause."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from fastserve.config.schema import Launch
from fastserve.errors import LaunchError
from launch import cluster, preflight, start
from launch.hosts import Host, parse_hosts
from launch.mpi import FoundMPI
from launch.plan import LaunchPlan, Machine, plan_program
from launch.process import Cluster, run_plan
from launch.records import ErrorRecord
from launch.verdict import Sight, deaths, lost_hosts, silent_rank


def fact(number: int, **other: Any) -> dict[str, Any]:
    interfaces = [
        {"name": "lo", "address": "127.0.0.1", "prefix": 8},
        {"name": "docker0", "address": "172.17.0.1", "prefix": 16},
        {"name": "eth0", "address": f"10.0.0.{number}", "prefix": 24},
    ]
    same = dict.fromkeys(["python", "numpy", "mpi4py", "fastserve", "code", "mpi"], "1")
    more = {"interfaces": interfaces, "cwd_exists": True, "time": 0.0, "cores": 2}
    return {**same, "hostname": f"own{number}", **more, **other}


class FakeAgents:
    """Hosts that answer by a table; ``blocked`` are addresses nobody reaches."""

    def __init__(self, facts: dict[str, Any], blocked: Sequence[str] = ()) -> None:
        self.facts, self.blocked = facts, blocked
        self.tried: list[tuple[str, str]] = []

    def ask(
        self,
        what: str,
        hosts: Sequence[str] | None = None,
        timeout: float = 10.0,
        **arguments: Any,
    ) -> dict[str, Any]:
        if what == "listen":
            return {name: {"port": 5000 + n} for n, name in enumerate(self.facts)}
        assert what == "reach"
        answers = {}
        for host in hosts or self.facts:
            tries = arguments["addresses"]
            self.tried += [(host, address) for address, _ in tries]
            answers[host] = [None if a in self.blocked else 0.1 for a, _ in tries]
        return answers

    def ask_each(
        self, what: str, arguments: dict[str, Any], timeout: float = 10.0
    ) -> dict[str, Any]:
        return {h: self.ask(what, [h], **a)[h] for h, a in arguments.items()}


FACTS = {f"node{n}": fact(n) for n in (1, 2, 3)}
HOSTS = parse_hosts("node[1-3]")


def check(facts: dict[str, Any], interface: str | None = None, **more: Any) -> None:
    agents = FakeAgents(facts, **more)
    cluster.check_hosts(agents, facts, HOSTS, interface, Path("/work"))


def test_hosts_that_fit() -> None:
    for interface in (None, "eth0", "10.0.0.0/16"):
        check(FACTS, interface)


def test_addresses_that_several_hosts_have_are_not_tried() -> None:
    agents = FakeAgents(FACTS)
    cluster.check_hosts(agents, FACTS, HOSTS, None, Path("/work"))
    assert {address for _, address in agents.tried} == {
        f"10.0.0.{n}" for n in (1, 2, 3)
    }
    assert len(agents.tried) == 6  # each host tries both others


def test_everything_that_does_not_fit_is_told_at_once() -> None:
    facts = {
        "node1": fact(1),
        "node2": fact(2, numpy="2", mpi="Open MPI 5.0.1"),
        "node3": fact(3, cwd_exists=False),
    }
    with pytest.raises(LaunchError) as caught:
        check(facts, "ib0")
    text = str(caught.value)
    assert "NumPy: 1 on node1, node3; 2 on node2" in text
    assert "MPI: 1 on node1, node3; Open MPI 5.0.1 on node2" in text
    assert "no folder /work on node3" in text
    assert "no interface ib0 on node1, node2, node3" in text
    assert "docker0, eth0, lo" in text
    assert text.count("install the same on all hosts") == 1


def test_a_firewall() -> None:
    with pytest.raises(LaunchError, match=r"(?s)node2 can't be reached.*node1, node3"):
        check(FACTS, blocked=["10.0.0.2"])


def test_a_subnet_becomes_a_name_for_mpich() -> None:
    assert cluster.interface_name(FACTS, "10.0.0.0/8") == "eth0"
    assert cluster.interface_name(FACTS, "ib0") == "ib0"
    assert cluster.interface_name(FACTS, None) is None
    other = fact(2)
    other["interfaces"][2]["name"] = "ens1"
    with pytest.raises(LaunchError, match=r"ens1, eth0"):
        cluster.interface_name({**FACTS, "node2": other}, "10.0.0.0/8")


def test_clock_skews() -> None:
    now = time.time()
    skews = cluster.clock_skews({"node1": fact(1, time=now - 7)}, now)
    assert skews["own1"] == pytest.approx(-7, abs=0.5)


def test_the_hosts_of_a_launch_section(tmp_path: Path) -> None:
    assert start.hosts_of(Launch()) == []
    listed = Launch(hosts=["node[1-2]:2", "me@node3"], exclude=["node1"])
    assert start.hosts_of(listed) == [Host("node2", 2), Host("node3", 1, "me")]
    path = tmp_path / "hosts"
    path.write_text("a\nb slots=3\n")
    assert start.hosts_of(Launch(hostfile=str(path), include=["b"])) == [Host("b", 3)]


def plan(tmp_path: Path, ranks: int = 4) -> LaunchPlan:
    mpi = FoundMPI("openmpi", Path("/env/bin/mpirun"), "Open MPI 5.0.11")
    machine = Machine((0, 1), {}, tmp_path)
    hosts = parse_hosts("node1:2,node2,node3")
    made = plan_program(Launch(), ["x"], hosts, mpi, machine, "abc", tmp_path)
    assert made.ranks == ranks
    return made


def record(rank: int, kind: str = "CommError", at: float = 10.0) -> ErrorRecord:
    return ErrorRecord(rank, f"node{rank}", at, kind, "message", "", 1)


def sight(*ended: tuple[int, str, float]) -> Sight:
    seen = Sight()
    for rank, host, at in ended:
        seen.end(rank, host, 100 + rank, at)
    return seen


SIGNALED = b"process rank 2 with PID 102 on node node2 exited on\nsignal 9 (Killed)."
EXITED = b"  Process name: [prterun-node1-109@1,2]\n  Exit code:    4\n"
BAD = b"=   PID 102 RUNNING AT node2\n=   EXIT CODE: 9\n=   CLEANING UP"
PEER = (
    b"[node3:00000] *** reported by process [585695233,3]\n  Peer host:  node2\n"
    b"prterun has exited due to process rank 3 with PID 125 on node node3 calling\n"
)


def test_what_the_mpis_say_of_deaths() -> None:
    assert [d.how for d in deaths(SIGNALED + EXITED + BAD)] == [
        "SIGKILL",
        "exit status 4",
        "SIGKILL",
    ]
    assert deaths(PEER) == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (SIGNALED, "rank 2 on node2 (pid 102) ended without a word: SIGKILL"),
        (EXITED, "rank 2 on node2 (pid 102) ended without a word: exit status 4"),
        (BAD, "rank 2 on node2 (pid 102) ended without a word: SIGKILL"),
        (PEER, "rank 2 on node2 (pid 102) ended without a word"),
    ],
)
def test_the_mpi_tells_which_rank_was_first(
    words: bytes, said: str, tmp_path: Path
) -> None:
    seen = sight((3, "node3", 9.6), (2, "node2", 9.7), (0, "node1", 9.8))
    assert silent_rank(plan(tmp_path), [], seen, words) == said
    assert silent_rank(plan(tmp_path), [record(0)], seen, words) == said


def test_the_first_that_ended_is_named_and_those_with_it(tmp_path: Path) -> None:
    made = plan(tmp_path)
    seen = sight((1, "node1", 5.0), (0, "node1", 5.1), (2, "node2", 9.0))
    assert silent_rank(made, [], seen, b"") == (
        "rank 1 on node1 (pid 101) and rank 0 on node1 (pid 100) ended without a word"
    )
    assert silent_rank(made, [], Sight(), b"") is None
    crashed = {0: "Segmentation fault, see log"}
    assert silent_rank(made, [], seen, b"", crashed) == (
        "rank 0 on node1 (pid 100): Segmentation fault, see log and "
        "rank 1 on node1 (pid 101) ended without a word"
    )


def test_a_crash_may_follow_from_another_rank_s_end(tmp_path: Path) -> None:
    words = BAD.replace(b"PID 102 RUNNING AT node2", b"PID 100 RUNNING AT node1")
    seen = sight((0, "node1", 9.7), (2, "node2", 9.6), (3, "node3", float("inf")))
    made = plan(tmp_path)
    assert silent_rank(made, [], seen, words.replace(b"CODE: 9", b"CODE: 11")) == (
        "rank 0 on node1 (pid 100) ended without a word: SIGSEGV; about then also "
        "rank 2 on node2 (pid 102)"
    )
    killed = silent_rank(made, [], seen, words)
    assert killed == "rank 0 on node1 (pid 100) ended without a word: SIGKILL"


def test_the_error_of_a_rank_comes_before_what_follows(tmp_path: Path) -> None:
    made = plan(tmp_path)
    gone = sight((2, "node2", 9.0))
    assert silent_rank(made, [record(3, "KeyError")], gone, SIGNALED) is None
    assert silent_rank(made, [record(3)], gone, b"") is not None
    # ended by the abort of the rank that wrote the record
    assert silent_rank(made, [record(3)], sight((2, "node2", 10.2)), b"") is None
    # rank 2 has said itself why
    assert silent_rank(made, [record(2)], gone, SIGNALED) is None


def test_lost_hosts() -> None:
    seen = Sight(lost={"node2": "silent for 5 s"})
    error = lost_hosts(seen, [record(0)])
    assert error is not None
    assert "host node2 not reachable any more (silent for 5 s)" in str(error)
    assert "--exclude node2" in str(error)
    assert lost_hosts(seen, [record(0, "KeyError")]) is None
    assert lost_hosts(Sight(), []) is None


class Event:
    def __init__(self, kind: str, rank: int | None = None) -> None:
        self.host, self.kind, self.rank, self.pid, self.text = (
            "node2",
            kind,
            rank,
            7,
            "",
        )


class Watching:
    """Agents of a running job: they report one event, and count what is killed."""

    def __init__(self, event: Event | None) -> None:
        self.pending, self.watched, self.killed = [event], "", 0

    def watch(self, token: str) -> None:
        self.watched = token

    def events(self) -> list[Event]:
        found, self.pending = [e for e in self.pending if e], []
        return found

    def kill(self, token: str, timeout: float = 3.0) -> list[str]:
        assert token == self.watched
        self.killed += 1
        return []


def run(
    tmp_path: Path, command: Sequence[str], event: Event | None, **more: float
) -> tuple[int, list[str], Watching, float]:
    said: list[str] = []
    agents = Watching(event)
    made = plan(tmp_path)
    changes = {"command": tuple(command), "token": "t" * 9, **more}
    changed = LaunchPlan(**{**vars(made), **changes})
    began = time.monotonic()
    status = run_plan(changed, said.append, Cluster(agents))
    return status, said, agents, time.monotonic() - began


def test_a_lost_host_ends_the_job_at_once(tmp_path: Path) -> None:
    status, said, agents, seconds = run(tmp_path, ["sleep", "30"], Event("lost"))
    assert status == 70
    assert "host node2 not reachable any more" in said[-1]
    assert agents.killed == 1
    assert seconds < 4


def test_ranks_that_do_not_start_in_time(tmp_path: Path) -> None:
    here = Event("started", 1)
    status, said, agents, seconds = run(
        tmp_path, ["sleep", "30"], here, start_timeout=1.5
    )
    assert status == 70
    assert "expected all ranks to start within 1.5 s" in said[-1]
    assert "no process of ranks 0, 2, 3 on node1, node2, node3" in said[-1]
    assert "launch.start_timeout" in said[-1]
    assert agents.killed == 1
    assert 1.5 <= seconds < 6


def test_a_job_without_one_of_its_ranks_is_ended(tmp_path: Path) -> None:
    status, said, agents, seconds = run(tmp_path, ["sleep", "30"], Event("ended", 2))
    assert status == 70
    assert "rank 2 on node2 (pid 7) ended without a word; the others waited" in said[-1]
    assert agents.killed == 1
    assert 3 <= seconds < 8


def test_a_program_without_records_succeeds_by_its_status(tmp_path: Path) -> None:
    assert run(tmp_path, ["true"], None)[0] == 0
    status, said, agents, _ = run(tmp_path, ["sh", "-c", "exit 5"], None)
    assert (status, agents.killed) == (5, 1)
    assert "exit status 5; no rank said why" in said[-1]


def test_subnets_that_lead_nowhere() -> None:
    docker = {"name": "docker0", "address": "172.17.0.1", "prefix": 16}
    facts = {
        f"node{i}": {
            "interfaces": [
                {"name": "lo", "address": "127.0.0.1", "prefix": 8},
                {"name": "eth0", "address": f"10.1.0.{i}", "prefix": 24},
                docker,
            ]
        }
        for i in (1, 2)
    }
    assert cluster.dead_ends(facts) == ("172.17.0.0/16",)
    facts["node2"]["interfaces"].remove(docker)
    assert cluster.dead_ends(facts) == ()


def test_preflight_claims_nothing_of_hosts_that_it_did_not_reach(
    tmp_path: Path,
) -> None:
    here = {"localhost": fact(9, memory_free=1, load=0.0)}
    cores = preflight._cores(plan(tmp_path), here)
    for row in (cores, preflight._memory(plan(tmp_path), here, "none")):
        assert row.state == preflight.NOTE and "no host of the ranks" in row.found
