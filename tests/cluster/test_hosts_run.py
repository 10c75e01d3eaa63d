"""Jobs over three hosts: how they run, what is refused, and how they end badly.

The hosts are network namespaces of this machine, made by lab.sh beside this file.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mpi_environments import FLAVOURS, ROOT, environments, require, variables

from launch.process import job_processes

SCRIPT = Path(__file__).with_name("lab.sh")
LIMIT = 45.0  # seconds for any one command
NODES = ("node1", "node2", "node3")
pytestmark = [pytest.mark.mpi, pytest.mark.slow]
both = pytest.mark.parametrize("mpi", FLAVOURS)

# The rank that FAIL names ends in the middle of the training, as it says: with
# os._exit, by SIGKILL, or with an exception.
OWN = """
import json, os, pathlib, signal, socket, threading, time
import numpy as np
import fastserve as fs
from fastserve import environment

RANK = environment.expected_ranks().rank
RUN = pathlib.Path(os.environ["FASTSERVE_RUN_DIR"])

def trains():
    lines = RUN / "metrics.jsonl"
    return lines.exists() and lines.stat().st_size > 0

def fail(how):
    while not trains():
        time.sleep(0.02)
    if how == "exit":
        os._exit(4)
    os.kill(os.getpid(), signal.SIGKILL)

class Slow(fs.data.ArraySource):
    def batch(self, *arguments):
        time.sleep(0.01)
        if os.environ.get("FAIL") == f"raise {RANK}" and trains():
            raise KeyError("the true cause")
        return super().batch(*arguments)

def make_data():
    how, _, rank = os.environ.get("FAIL", "").partition(" ")
    if how in ("exit", "kill") and int(rank) == RANK:
        threading.Thread(target=fail, args=(how,), daemon=True).start()
    seen = {"host": socket.gethostname(), "mark": os.environ.get("MARK"),
            "cwd": os.getcwd(), "pid": os.getpid()}
    (RUN.parent / f"seen-{RANK}.json").write_text(json.dumps(seen))
    x = np.random.default_rng(0).standard_normal((40, 3))
    return Slow(x, x.sum(axis=1, keepdims=True)), None

def make_model():
    model = fs.models.Sequential([fs.layers.Dense(1)])
    model.compile(loss="mse")
    return model
"""
JOB = """
name: tiny
model: {type: python, file: own.py}
data: {type: python, file: own.py}
train: {global_batch: 12, steps: 8, log_every: 1}
comm: {timeout: 20}
launch: {threads: 1, bind: none, env: {MARK: a b}}
run_dir: runs/tiny
"""
FOREVER = ("--set", "train.steps=100000")


class Lab:
    """Three hosts, and a folder that they share."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        kept = [str(ROOT), *map(str, environments().values())]
        self._env = {
            **os.environ,
            "NETLAB": str(folder / "lab"),
            "NETLAB_TTL": "900",
            "NETLAB_KEEP": ":".join(kept),
        }
        self.forget()

    def forget(self) -> None:
        """Take all hosts as whole, and nothing as started."""
        self.cut: set[str] = set()
        self.without_ssh: set[str] = set()
        self._marks: list[str] = []

    def cut_off(self, node: str) -> None:
        self.cut.add(node)
        self.do("cut", node)

    def ssh_off(self, node: str) -> None:
        self.without_ssh.add(node)
        self.do("ssh-off", node)

    def processes(self) -> list[int]:
        """Return the processes of all that was started, ranks on all hosts included."""
        name = "FASTSERVE_TEST_PROCESS"
        return [pid for mark in self._marks for pid in job_processes(mark, name)]

    def do(self, *words: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(SCRIPT), *map(str, words)],
            env=self._env,
            text=True,
            capture_output=True,
            timeout=60,
        )

    def on(self, node: str, *words: str) -> str:
        return self.do("exec", node, *words).stdout

    def start(self, mpi: str, *words: str, node: str = "node1", **env: str) -> Job:
        python = str(require(mpi) / "bin" / "python")
        mark = f"{os.getpid()}-{time.monotonic_ns()}"
        self._marks.append(mark)
        command = [
            *(str(SCRIPT), "exec", node, "timeout", "-k", "2", str(LIMIT)),
            *(python, "-m", "launch.cli", *words),
        ]
        mine = {"NETLAB": str(self.folder / "lab"), "FASTSERVE_TEST_PROCESS": mark}
        process = subprocess.Popen(
            command,
            env=variables(
                **mine,
                OPENBLAS_CORETYPE="Haswell",
                FASTSERVE_CACHE_DIR=str(self.folder / "cache"),
                FASTSERVE_GRACE="3",
                **env,
            ),
            cwd=self.folder / "work",
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        return Job(process, mark, self.folder / "work" / "runs" / "tiny")

    def run(self, mpi: str, *words: str, **env: str) -> Done:
        job = self.start(mpi, "run", "job.yaml", *words, **env)
        done = job.finish()
        self.nothing_left()
        return done

    def nothing_left(self, nodes: tuple[str, ...] = NODES) -> None:
        """Wait until no process of a job is left on the nodes."""
        limit = time.monotonic() + 9
        while left := [line for node in nodes for line in self._processes(node)]:
            assert time.monotonic() < limit, left
            time.sleep(0.2)

    def _processes(self, node: str) -> list[str]:
        listed = self.on(node, "ps", "-ww", "-eo", "args=").splitlines()
        names = ("fastserve", "prted", "hydra_pmi_proxy", "launch.agent", "mpirun")
        return [f"{node}: {line}" for line in listed if any(n in line for n in names)]


class Done:
    def __init__(self, status: int, out: str, err: str, seconds: float) -> None:
        self.status, self.out, self.err, self.seconds = status, out, err, seconds


class Job:
    """A command that runs on a node."""

    def __init__(self, process: subprocess.Popen[str], mark: str, run: Path) -> None:
        self.process, self.mark, self.folder = process, mark, run
        self._began = time.monotonic()

    def finish(self) -> Done:
        out, err = self.process.communicate(timeout=LIMIT + 10)
        seconds = time.monotonic() - self._began
        return Done(self.process.returncode, out, err, seconds)

    def until_it_trains(self) -> None:
        limit = time.monotonic() + 25
        lines = self.folder / "metrics.jsonl"
        while not (lines.exists() and lines.read_text().count("\n") >= 3):
            assert time.monotonic() < limit, "the training has not started"
            assert self.process.poll() is None, self.process.communicate()
            time.sleep(0.05)

    def launcher(self) -> int:
        """Return the process id of ``fastserve run`` itself."""
        for pid in job_processes(self.mark, "FASTSERVE_TEST_PROCESS"):
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            if words[1:3] == [b"-m", b"launch.cli"]:
                return pid
        raise AssertionError("fastserve run is not there")


@pytest.fixture(scope="module")
def hosts() -> Iterator[Lab]:
    base = ROOT / "build"  # not in /tmp, of which each host has its own
    base.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=base, prefix="hosts-") as folder:
        lab = Lab(Path(folder))
        up = lab.do("up", len(NODES))
        if up.returncode == 69 and os.environ.get("CI") != "true":
            pytest.skip(up.stderr)
        assert up.returncode == 0, up.stderr
        try:
            yield lab
        finally:
            lab.do("down")


@pytest.fixture
def lab(hosts: Lab) -> Iterator[Lab]:
    """The hosts, healed, with the job in a folder of its own."""
    work = hosts.folder / "work"
    subprocess.run(["rm", "-rf", str(work)], check=True)
    work.mkdir()
    (work / "own.py").write_text(OWN)
    (work / "job.yaml").write_text(JOB)
    (work / "hosts.txt").write_text("node1 slots=2\nnode2:1\nnode3 # one\n")
    yield hosts
    for node in hosts.cut:
        hosts.do("heal", node)
    for node in hosts.without_ssh:
        hosts.do("ssh-on", node)
    for node in NODES:
        hosts.do("open", node)
    for pid in hosts.processes():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    hosts.forget()


def seen(lab: Lab) -> dict[int, Any]:
    """Return what each rank saw, by its number."""
    files = (lab.folder / "work" / "runs").glob("seen-*.json")
    return {int(f.stem[5:]): json.loads(f.read_text()) for f in files}


def where(lab: Lab) -> list[str]:
    """Return the hosts of the ranks, in the order of the ranks."""
    return [found["host"] for _, found in sorted(seen(lab).items())]


@both
def test_a_hostfile(mpi: str, lab: Lab) -> None:
    done = lab.run(mpi, "--hostfile", "hosts.txt")
    assert done.status == 0, done.err
    assert where(lab) == ["node1", "node1", "node2", "node3"]
    assert {found["mark"] for found in seen(lab).values()} == {"a b"}
    assert {found["cwd"] for found in seen(lab).values()} == {str(lab.folder / "work")}
    assert "4 ranks on 3 hosts (node1:2 node2:1 node3:1), " in done.err


@both
def test_a_list_of_hosts_and_the_choice_among_them(mpi: str, lab: Lab) -> None:
    done = lab.run(mpi, "-H", "node1:2,node2:1")
    assert done.status == 0, done.err
    assert where(lab) == ["node1", "node1", "node2"]
    hosts = ["--hostfile", "hosts.txt", "--overwrite"]
    done = lab.run(mpi, *hosts, "--exclude", "node1")  # none on the launcher's host
    assert done.status == 0, done.err
    assert where(lab)[:2] == ["node2", "node3"]
    assert "2 ranks on 2 hosts (node2:1 node3:1)" in done.err
    done = lab.run(mpi, *hosts, "--include", "node[2-3]", "-n", "1")
    assert done.status == 0, done.err
    assert "1 rank on 1 host (node2:1)" in done.err


@both
def test_the_dry_run_shows_the_place_of_each_rank(mpi: str, lab: Lab) -> None:
    done = lab.run(mpi, "--hostfile", "hosts.txt", "--dry-run")
    assert done.status == 0, done.err
    assert "rank 2      node2, 3 rows a step, 1 thread" in done.out
    assert "node1:2,node2:1,node3:1" in done.out.splitlines()[-1]
    assert not seen(lab)


@both
@pytest.mark.parametrize("interface", ["eth0", "10.77.0.0/16"])
def test_an_interface_beside_one_that_leads_nowhere(
    mpi: str, interface: str, lab: Lab
) -> None:
    for node in NODES:
        for words in (
            "link add docker0 type bridge",
            "addr add 172.17.0.1/16 dev docker0",
            "link set docker0 up",
        ):
            lab.on(node, "ip", *words.split())
    try:
        words = ("--hostfile", "hosts.txt", "--set", f"launch.interface={interface}")
        done = lab.run(mpi, *words)
        assert done.status == 0, done.err
        missing = lab.run(mpi, *words[:3], "launch.interface=ib0", "--overwrite")
        assert missing.status == 2
        assert "no interface ib0 on node1, node2, node3" in missing.err
        assert "docker0, eth0, lo" in missing.err
    finally:
        for node in NODES:
            lab.on(node, "ip", "link", "del", "docker0")


@both
@pytest.mark.parametrize("trouble", [Lab.ssh_off, Lab.cut_off])
def test_a_host_that_is_not_reachable(
    mpi: str, trouble: Callable[[Lab, str], None], lab: Lab
) -> None:
    trouble(lab, "node2")
    done = lab.run(mpi, "--hostfile", "hosts.txt")
    assert done.status == 2, done.err
    assert "node2" in done.err
    assert "to do:" in done.err
    assert done.seconds < 15
    assert not seen(lab)


@both
def test_a_name_that_nobody_knows(mpi: str, lab: Lab) -> None:
    done = lab.run(mpi, "-H", "node1,nowhere.invalid")
    assert done.status == 2, done.err
    assert "nowhere.invalid" in done.err
    assert not seen(lab)


@both
def test_another_version_on_one_host(mpi: str, lab: Lab) -> None:
    folder = next(require(mpi).glob("lib/python3*/site-packages/numpy-*.dist-info"))
    version = folder.name.removeprefix("numpy-").removesuffix(".dist-info")
    text = (folder / "METADATA").read_text("utf-8")
    other = lab.folder / "work" / "METADATA"
    other.write_text(text.replace(f"Version: {version}", "Version: 1.0.7"), "utf-8")
    lab.on("node2", "mount", "--bind", str(other), str(folder / "METADATA"))
    try:
        done = lab.run(mpi, "--hostfile", "hosts.txt")
    finally:
        lab.on("node2", "umount", str(folder / "METADATA"))
    assert done.status == 2, done.err
    assert f"NumPy: {version} on node1, node3; 1.0.7 on node2" in done.err
    assert not seen(lab)


@both
def test_more_ranks_than_slots(mpi: str, lab: Lab) -> None:
    done = lab.run(mpi, "--hostfile", "hosts.txt", "-n", "5")
    assert done.status == 2
    assert "at most 4 ranks" in done.err
    done = lab.run(mpi, "--hostfile", "hosts.txt", "-n", "5", "--oversubscribe")
    assert done.status == 0, done.err
    assert where(lab) == ["node1", "node1", "node1", "node2", "node3"]


@both
def test_another_mpirun_first_on_path(mpi: str, lab: Lab) -> None:
    wrong = lab.folder / "work" / "bin"
    wrong.mkdir()
    for name in ("mpirun", "mpiexec", "prted", "hydra_pmi_proxy"):
        (wrong / name).write_text("#!/bin/sh\necho wrong one >&2\nexit 9\n")
        (wrong / name).chmod(0o755)
    path = f"{wrong}:{os.environ['PATH']}"
    done = lab.run(mpi, "--hostfile", "hosts.txt", PATH=path)
    assert done.status == 0, done.err
    assert "wrong one" not in done.err


@both
def test_a_firewall_that_lets_only_ssh_through(mpi: str, lab: Lab) -> None:
    lab.do("firewall", "node2")
    done = lab.run(mpi, "--hostfile", "hosts.txt")
    assert done.status == 2, done.err
    assert "node2 can't be reached over TCP" in done.err
    assert "firewall" in done.err
    assert done.seconds < 15
    assert not seen(lab)


@both
@pytest.mark.parametrize("rank", [1, 2], ids=["here", "elsewhere"])
@pytest.mark.parametrize("how", ["exit", "kill"])
def test_a_rank_that_ends_without_a_word(
    mpi: str, how: str, rank: int, lab: Lab
) -> None:
    words = (
        "--hostfile",
        "hosts.txt",
        *FOREVER,
        "--set",
        f"launch.env.FAIL={how} {rank}",
    )
    done = lab.run(mpi, *words)
    assert done.status not in (0, 2, 75, 124), done.err
    host = {1: "node1", 2: "node2"}[rank]
    pid = seen(lab)[rank]["pid"]
    # MPICH ends the other rank of the host within milliseconds: both are named then.
    assert f"rank {rank} on {host} (pid {pid})" in done.err
    assert "ended without a word" in done.err
    if "SIGSEGV" not in done.err:  # now and then MPICH crashes when a rank is gone
        assert "rank 3" not in done.err.split("received: ")[1]
    assert done.seconds < 20


@both
def test_an_exception_on_another_host_comes_first(mpi: str, lab: Lab) -> None:
    words = ("--hostfile", "hosts.txt", *FOREVER, "--set", "launch.env.FAIL=raise 3")
    done = lab.run(mpi, *words)
    assert done.status == 1, done.err
    assert "rank 3 on node3 failed: KeyError" in done.err
    assert done.err.count("KeyError: 'the true cause'") == 1
    assert "ended without a word" not in done.err


@both
def test_nothing_survives_a_killed_launcher(mpi: str, lab: Lab) -> None:
    job = lab.start(mpi, "run", "job.yaml", "--hostfile", "hosts.txt", *FOREVER)
    job.until_it_trains()
    os.kill(job.launcher(), signal.SIGKILL)
    job.finish()
    lab.nothing_left()


@both
def test_a_signal_lets_all_hosts_save(mpi: str, lab: Lab) -> None:
    job = lab.start(mpi, "run", "job.yaml", "--hostfile", "hosts.txt", *FOREVER)
    job.until_it_trains()
    os.kill(job.launcher(), signal.SIGTERM)
    done = job.finish()
    assert done.status == 75, done.err
    assert list(job.folder.glob("checkpoints/step-*"))
    lab.nothing_left()


@both
def test_a_link_that_is_cut(mpi: str, lab: Lab) -> None:
    job = lab.start(mpi, "run", "job.yaml", "--hostfile", "hosts.txt", *FOREVER)
    job.until_it_trains()
    lab.cut_off("node2")
    began = time.monotonic()
    done = job.finish()
    assert time.monotonic() - began < 15
    assert done.status not in (0, 124), done.err
    assert "host node2 not reachable any more" in done.err
    assert "--exclude node2" in done.err
    lab.nothing_left()  # on node2 too: its agent misses the launcher
