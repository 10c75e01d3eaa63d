"""Hosts for a test, made by lab.sh, and jobs on them."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ParamSpec

from mpi_environments import ROOT, environments, require, variables

from launch.process import job_processes

SCRIPT = Path(__file__).with_name("lab.sh")
LIMIT = 150.0  # seconds for any one command: one that takes longer hangs
NODES = ("node1", "node2", "node3")
ALL_NODES = (*NODES, "node4")
# in the command of a process; not just the name, which may be in the checkout's path
OF_A_JOB = re.compile(
    r"(-m |/bin/)fastserve\b|-m launch\b|\blaunch\.agent\b|prted|hydra_pmi_proxy|mpirun"
)
# A job whose rank R fails in the middle of the training, as FAIL="HOW R" says; the file
# "failed" then tells when.
OWN = """
import ctypes, json, os, pathlib, signal, socket, sys, threading, time
import numpy as np
import fastserve as fs
from fastserve import environment

RANK = environment.expected_ranks().rank
RUN = pathlib.Path(os.environ.get("FASTSERVE_RUN_DIR", "nowhere"))
HOW, _, WHO = os.environ.get("FAIL", "").partition(" ")
MINE = WHO.isdigit() and int(WHO) == RANK

def trains():
    lines = RUN / "metrics.jsonl"
    return lines.exists() and lines.read_text().count(chr(10)) > 3

def note():
    (RUN.parent / "failed").write_text(str(time.time()))

def fail():
    while not trains():
        time.sleep(0.02)
    note()
    if HOW == "exit":
        os._exit(4)
    os.kill(os.getpid(), signal.SIGKILL)

class Slow(fs.data.ArraySource):
    def batch(self, *arguments):
        time.sleep(0.01)
        if MINE and HOW in ("raise", "sys.exit", "crash", "sleep") and trains():
            note()
            if HOW == "raise":
                raise KeyError("the true cause")
            if HOW == "sys.exit":
                sys.exit(3)
            if HOW == "crash":
                ctypes.string_at(0)
            time.sleep(1000)
        return super().batch(*arguments)

class Layer(fs.layers.Layer):
    def forward(self, x, training=False):
        if MINE and HOW == "forward" and trains():
            note()
            raise KeyError("the true cause")
        return x
    def backward(self, dy, done=None):
        return dy

def make_data():
    if MINE and HOW in ("exit", "kill"):
        threading.Thread(target=fail, daemon=True).start()
    seen = {"host": socket.gethostname(), "mark": os.environ.get("MARK"),
            "cwd": os.getcwd(), "pid": os.getpid()}
    if "FASTSERVE_RUN_DIR" in os.environ:
        (RUN.parent / f"seen-{RANK}.json").write_text(json.dumps(seen))
    x = np.random.default_rng(0).standard_normal((40, 3))
    return Slow(x, x.sum(axis=1, keepdims=True)), None

def make_model():
    model = fs.models.Sequential([fs.layers.Dense(1), Layer()])
    model.compile(loss="mse")
    return model
"""
JOB = """
name: tiny
model: {type: python, file: own.py}
data: {type: python, file: own.py}
train: {global_batch: 12, steps: 8, log_every: 1}
checkpoint: {every: 1, keep: 2}
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
            "NETLAB_TTL": "14400",
            "NETLAB_KEEP": ":".join(kept),
        }
        self.forget()

    def forget(self) -> None:
        """Take all hosts as whole, and nothing as started."""
        self.cut: set[str] = set()
        self.without_ssh: set[str] = set()
        self.without_power: set[str] = set()
        self._marks: list[str] = []

    def prepare(self) -> None:
        """Make the folder of a job, with nothing in it but the job."""
        work = self.folder / "work"
        subprocess.run(["rm", "-rf", str(work)], check=True)
        work.mkdir()
        (work / "own.py").write_text(OWN)
        (work / "job.yaml").write_text(JOB)
        (work / "hosts.txt").write_text("node1 slots=2\nnode2:1\nnode3 # one\n")

    def heal(self) -> None:
        """Make all hosts whole again, and end what is left of any job."""
        for node in self.without_power:
            assert self.do("boot", node).returncode == 0
        for node in self.cut:
            self.do("heal", node)
        for node in self.without_ssh:
            self.do("ssh-on", node)
        for node in ALL_NODES:
            self.do("open", node)
        limit = time.monotonic() + 20
        while (left := self.processes()) and time.monotonic() < limit:
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)
        self.forget()

    def cut_off(self, node: str) -> None:
        self.cut.add(node)
        self.do("cut", node)

    def ssh_off(self, node: str) -> None:
        self.without_ssh.add(node)
        self.do("ssh-off", node)

    def crash(self, node: str) -> None:
        self.without_power.add(node)
        self.do("crash", node)

    @property
    def environment(self) -> dict[str, str]:
        """The variables of a command that is to be known as started by this test."""
        mark = f"{os.getpid()}-{time.monotonic_ns()}"
        self._marks.append(mark)
        return {
            "NETLAB": str(self.folder / "lab"),
            "FASTSERVE_TEST_PROCESS": mark,
            "OPENBLAS_CORETYPE": "Haswell",
            "FASTSERVE_CACHE_DIR": str(self.folder / "cache"),
        }

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

    def script(self, node: str, *words: str) -> list[str]:
        """Return the command that runs a command on a node, within the limit."""
        limit = ("timeout", "-k", "2", str(LIMIT))
        return [str(SCRIPT), "exec", node, *limit, *words]

    def start(self, mpi: str, *words: str, node: str = "node1", **env: str) -> Job:
        python = str(require(mpi) / "bin" / "python")
        mine = self.environment
        process = subprocess.Popen(
            self.script(node, python, "-m", "launch.cli", *words),
            env=variables(**{**mine, **env}),
            cwd=self.folder / "work",
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        run = self.folder / "work" / "runs" / "tiny"
        return Job(process, mine["FASTSERVE_TEST_PROCESS"], run)

    def run_beside(self, mpi: str, *words: str, **env: str) -> Done:
        """Run a job to its end, while others run."""
        return self.start(mpi, "run", "job.yaml", *words, **env).finish()

    def run(self, mpi: str, *words: str, **env: str) -> Done:
        return self.finish(self.start(mpi, "run", "job.yaml", *words, **env))

    def finish(self, job: Job) -> Done:
        """Wait for a job's end, and for that of its processes on all hosts."""
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
        return [f"{node}: {line}" for line in listed if OF_A_JOB.search(line)]


class Done:
    def __init__(self, status: int, out: str, err: str, seconds: float) -> None:
        self.status, self.out, self.err, self.seconds = status, out, err, seconds
        self.ended = time.time()


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
        """Wait for step 4: by then the checkpoint of step 2 is complete."""
        limit = time.monotonic() + 60
        lines = self.folder / "metrics.jsonl"
        while not (lines.exists() and lines.read_text().count("\n") > 3):
            assert time.monotonic() < limit, "the training has not started"
            assert self.process.poll() is None, self.process.communicate()
            time.sleep(0.05)

    def launcher(self) -> int:
        """Return the process id of ``fastserve run`` itself."""
        return self._process(lambda words: words[1:3] == ["-m", "launch.cli"])

    def mpirun(self) -> int:
        """Return the process id of the MPI's launcher."""
        names = ("mpirun", "prterun", "mpiexec", "mpiexec.hydra")
        return self._process(lambda words: Path(words[0]).name in names)

    def _process(self, wanted: Callable[[list[str]], bool]) -> int:
        for pid in job_processes(self.mark, "FASTSERVE_TEST_PROCESS"):
            with contextlib.suppress(OSError):  # it has ended meanwhile
                line = Path(f"/proc/{pid}/cmdline").read_bytes().decode()
                if wanted(line.split("\0")):
                    return pid
        raise AssertionError("the process is not there")


def seen(lab: Lab) -> dict[int, Any]:
    """Return what each rank saw, by its number."""
    files = (lab.folder / "work" / "runs").glob("seen-*.json")
    return {int(f.stem[5:]): json.loads(f.read_text()) for f in files}


def where(lab: Lab) -> list[str]:
    """Return the hosts of the ranks, in the order of the ranks."""
    return [found["host"] for _, found in sorted(seen(lab).items())]


class Late(AssertionError):
    """All is as it has to be, but it took too long."""


def within(seconds: float, limit: float, told: str) -> None:
    """See that something took less than ``limit`` seconds; a test's last look."""
    if seconds >= limit:
        raise Late(f"{seconds:.1f} s, expected less than {limit:g}: {told}")


P = ParamSpec("P")


def in_time(test: Callable[P, None]) -> Callable[P, None]:
    """Let a test look again, twice at most, if nothing was wrong but the time it took.

    What else the machine does can take seconds; a product that is slow is slow each
    time.
    """

    @functools.wraps(test)
    def looks(*args: P.args, **kwargs: P.kwargs) -> None:
        lab = kwargs["lab"]
        assert isinstance(lab, Lab)
        for _ in range(2):
            try:
                test(*args, **kwargs)
            except Late:
                lab.heal()
                lab.prepare()
            else:
                return
        test(*args, **kwargs)

    return looks
