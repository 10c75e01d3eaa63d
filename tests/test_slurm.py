"""What is worked out of Slurm's variables, and the batch script."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from fastserve.config import Job
from fastserve.errors import LaunchError
from launch import slurm, submit
from launch.hosts import Host
from launch.mpi import FoundMPI
from launch.plan import LaunchPlan, Machine, make_plan

OPENMPI = FoundMPI("openmpi", Path("/env/bin/mpirun"), "Open MPI 5.0.11")
MPICH = FoundMPI("mpich", Path("/env/bin/mpiexec"), "MPICH 5.0.2")
ALLOCATION = {
    "SLURM_JOB_ID": "17",
    "SLURM_JOB_NODELIST": "node[01-02],big",
    "SLURM_TASKS_PER_NODE": "2(x2),1",
    "SLURM_JOB_CPUS_PER_NODE": "8(x3)",
}


def job(**launch: Any) -> Job:
    return Job.model_validate(
        {
            "name": "tiny",
            "model": {"type": "gpt"},
            "data": {"type": "text", "source": "x.txt"},
            "train": {"global_batch": 30, "steps": 10},
            "launch": launch,
        }
    )


def plan(mpi: FoundMPI, starter: str = "mpirun", **launch: Any) -> LaunchPlan:
    made = job(threads=1, **launch)
    hosts, found = slurm.join(made.launch, [], ALLOCATION)
    assert found is not None
    found = slurm.replace(found, starter=starter)
    machine = Machine((0, 1), {}, Path("/work"))
    return make_plan(
        *(made, hosts, mpi, machine, "abc", ["/work/job.yaml"]),
        program=["/env/bin/python", "-m", "fastserve"],
        allocation=found,
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2(x2),1", [2, 2, 1]),
        ("4", [4]),
        ("", []),
        ("2(x2", []),
        ("a", []),
        ("1(x99999999)", []),
    ],
)
def test_counts(text: str, expected: list[int]) -> None:
    assert slurm.counts(text) == expected


def test_the_allocation() -> None:
    found = slurm.find(ALLOCATION)
    assert found is not None
    assert found.hosts == (Host("node01", 2), Host("node02", 2), Host("big", 1))
    assert found.cores == {"node01": 8, "node02": 8, "big": 8}
    own = slurm.find({**ALLOCATION, "SLURM_CPUS_PER_TASK": "3"})
    assert own is not None
    assert own.cores == {"node01": 6, "node02": 6, "big": 3}
    assert slurm.find({}) is None


def test_variables_that_contradict_each_other() -> None:
    with pytest.raises(LaunchError, match="tasks of 3 nodes"):
        slurm.find({**ALLOCATION, "SLURM_TASKS_PER_NODE": "2"})


def test_outside_of_an_allocation() -> None:
    assert slurm.join(job().launch, [Host("a")], {}) == ([Host("a")], None)
    with pytest.raises(LaunchError, match="salloc"):
        slurm.join(job(launcher="slurm").launch, [], {})


def test_a_list_of_other_hosts_wins() -> None:
    hosts, found = slurm.join(job().launch, [Host("far")], ALLOCATION)
    assert hosts == [Host("far")]
    assert found is not None
    assert found.over_ssh
    assert "over ssh" in found.note
    with pytest.raises(LaunchError, match="far"):
        slurm.join(job(launcher="slurm").launch, [Host("far")], ALLOCATION)


@pytest.mark.parametrize(
    ("wanted", "mpi", "types", "expected"),
    [
        ("auto", MPICH, ["none", "pmi2"], "mpirun"),
        ("pmi2", MPICH, ["none", "pmi2"], "pmi2"),
        ("auto", MPICH, ["none"], "mpirun"),
        ("auto", OPENMPI, ["pmix", "pmi2"], "mpirun"),
        ("pmix", OPENMPI, ["pmix"], "pmix"),
        ("mpirun", MPICH, ["pmi2"], "mpirun"),
    ],
)
def test_what_starts_the_ranks(
    wanted: str, mpi: FoundMPI, types: list[str], expected: str
) -> None:
    assert slurm.choose_starter(wanted, mpi, types) == expected


@pytest.mark.parametrize(
    ("wanted", "mpi", "types"),
    [("pmi2", OPENMPI, ["pmi2"]), ("pmix", MPICH, ["pmix"]), ("pmix", OPENMPI, [])],
)
def test_what_cannot_start_them(wanted: str, mpi: FoundMPI, types: list[str]) -> None:
    with pytest.raises(LaunchError, match="mpirun"):
        slurm.choose_starter(wanted, mpi, types)


def test_srun_golden() -> None:
    made = plan(MPICH, "pmi2")
    assert " ".join(made.command) == (
        "srun --mpi=pmi2 --job-name=fastserve-abc --cpu-bind=none "
        "--kill-on-bad-exit=1 --export=ALL --nodes=3 --ntasks=5 "
        "/env/bin/python -m fastserve /work/job.yaml"
    )
    assert made.environment["SLURM_EXPORT_ENV"] == "ALL"
    assert made.title == "MPICH 5.0.2 by srun in Slurm's job 17"
    fewer = plan(MPICH, "pmi2", ranks=3)
    assert "--distribution=arbitrary --nodelist=node01,node01,node02" in " ".join(
        fewer.command
    )


def test_mpirun_golden() -> None:
    words = " ".join(plan(OPENMPI).command)
    assert words.startswith(
        "/env/bin/mpirun --host node01:2,node02:2,big:1 "
        "--prtemca plm_slurm_args --job-name=fastserve-abc --cpu-bind=none "
    )
    assert "ssh_args" not in words
    hydra = plan(MPICH)
    assert hydra.environment["HYDRA_LAUNCHER"] == "slurm"
    assert "-hosts node01:2,node02:2,big:1" in " ".join(hydra.command)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("90m", "01:30:00"),
        ("45s", "00:00:45"),
        ("12h", "12:00:00"),
        ("2d", "2-00:00:00"),
        ("36h", "1-12:00:00"),
        ("02:30:00", "02:30:00"),
        ("1-12:00:00", "1-12:00:00"),
    ],
)
def test_durations(text: str, expected: str) -> None:
    assert submit.clock(text) == expected


def script(run_dir: str = "/work/runs/tiny", **more: Any) -> str:
    made = job(ranks=6, threads=2, slurm=more)
    words = ["/work/a job.yaml", "--resume", "auto"]
    return submit.script(made, Path(run_dir), Path("/work"), words, "/env/bin/python")


def test_the_script() -> None:
    text = script(
        partition="short",
        account="me",
        time="90m",
        nodes=3,
        mem="16G",
        exclusive=True,
        signal_seconds=90,
        prologue=["module load gcc", "source env.sh"],
        extra=["--reservation=x"],
    )
    wanted = [
        *("--job-name=tiny", "--partition=short", "--account=me", "--time=01:30:00"),
        *("--nodes=3", "--ntasks=6", "--cpus-per-task=2", "--mem=16G"),
        *("--chdir=/work", "--output=/work/runs/tiny/slurm-%j.out"),
        *("--open-mode=append", "--signal=B:USR1@90", "--requeue", "--exclusive"),
        "--reservation=x",
    ]
    lines = text.splitlines()
    assert lines[0] == "#!/bin/bash"
    assert [line[8:] for line in lines if line.startswith("#SBATCH ")] == wanted
    assert lines.index("module load gcc") + 1 == lines.index("source env.sh")
    started = "/env/bin/python -m launch.cli run '/work/a job.yaml' --resume auto &"
    assert lines.index("source env.sh") < lines.index(started)
    assert "scontrol requeue" in text
    assert subprocess.run(["bash", "-n"], input=text, text=True).returncode == 0


def test_a_script_without_requeue() -> None:
    text = script(requeue=False)
    assert "#SBATCH --no-requeue" in text
    assert "scontrol" not in text


def test_folders_with_spaces_and_percents() -> None:
    text = script("/a b/50%")
    assert '#SBATCH --output="/a b/50%%/slurm-%j.out"' in text


STUB = """#!/bin/bash
trap 'sleep 0.3; echo saved; exit {status}' USR1 TERM
echo started
while :; do sleep 0.05; done
"""


@pytest.mark.parametrize(
    ("number", "status", "requeued"),
    [("USR1", 75, True), ("USR1", 1, False), ("TERM", 75, False)],
)
def test_the_script_waits_for_the_ranks_and_requeues(
    number: str, status: int, requeued: bool, tmp_path: Path
) -> None:
    stub = tmp_path / "python"
    stub.write_text(STUB.format(status=status))
    (tmp_path / "scontrol").write_text(f'#!/bin/sh\necho "$@" >{tmp_path}/asked\n')
    for file in tmp_path.iterdir():
        file.chmod(0o755)
    text = submit.script(job(), tmp_path, tmp_path, ["job.yaml"], str(stub))
    (tmp_path / "submit.sh").write_text(text)
    env = {"PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_JOB_ID": "17"}
    with subprocess.Popen(
        ["bash", str(tmp_path / "submit.sh")],
        env=env,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "started\n"
        waits = Path(f"/proc/{process.pid}/stat")  # for the job, its traps are set
        while waits.read_text().rpartition(")")[2].split()[0] != "S":
            time.sleep(0.01)
        subprocess.run(["kill", f"-{number}", str(process.pid)], check=True)
        out, _ = process.communicate(timeout=60)
    assert out.startswith("saved\n")
    assert process.returncode == (0 if requeued else status)
    asked = tmp_path / "asked"
    assert asked.exists() == requeued
    if requeued:
        assert asked.read_text() == "requeue 17\n"


def test_no_sbatch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LaunchError, match="login node"):
        submit.submit("x", tmp_path / "run")
    assert (tmp_path / "run" / "submit.sh").read_text() == "x"
