"""Real jobs, well and badly ended: status, messages, and no process left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from mpi_environments import FLAVOURS, ROOT, Started, environments, require, variables

from launch.process import _Run, job_processes, kill_job
from launch.records import crashes, logs

DRIVER = ROOT / "tests" / "launch_driver.py"
LIMIT = 10.0  # seconds until a job that fails, or is stopped, must have ended
HANGS = 60.0  # seconds for anything; how long a start takes is the machine's
mpi = pytest.mark.parametrize("launcher", FLAVOURS)
every = pytest.mark.parametrize("launcher", ("local", *FLAVOURS))
pytestmark = pytest.mark.mpi


def start(launcher: str, mode: str, run: Path, ranks: int = 2, **env: str) -> Started:
    if launcher == "local":
        python, ranks = Path(sys.executable), 1
    else:
        python = require(launcher) / "bin" / "python"
    command = [str(python), str(DRIVER), launcher, str(ranks), str(run), mode]
    return Started(command, env=variables(**{"FASTSERVE_GRACE": "1.5", **env}))


def end(
    launcher: str, mode: str, run: Path, ranks: int = 2
) -> subprocess.CompletedProcess[str]:
    with start(launcher, mode, run, ranks) as job:
        done = job.finish(HANGS)
        ended = time.time()
        assert job.left() == []
    # of the ranks' start, or of their failure
    signs = [*run.glob("pids/*"), *run.glob("errors/rank-*.json")]
    assert ended - max(sign.stat().st_mtime for sign in signs) < LIMIT
    return done


def when_running(run: Path, ranks: int) -> list[int]:
    """Wait until all ranks are at work, and return their process ids."""
    limit = time.monotonic() + 20
    while time.monotonic() < limit:
        texts = [path.read_text() for path in run.glob("pids/*")]
        if len(texts) == ranks and all(texts):
            time.sleep(0.4)
            return [json.loads(text) for text in texts]
        time.sleep(0.05)
    raise AssertionError("the ranks have not started")


def test_the_running_environment_is_found() -> None:
    assert Path(sys.prefix) in environments().values()


@every
def test_success(launcher: str, tmp_path: Path) -> None:
    done = end(launcher, "succeeds", tmp_path)
    ranks = 1 if launcher == "local" else 2
    assert done.returncode == 0, done.stderr
    lines = sorted(done.stdout.split("\n"))
    said = [f"rank {rank} of {ranks}" for rank in range(ranks)]
    assert lines == ["", *["at work"] * ranks, *said]
    assert "warning of rank 0" in done.stderr


@mpi
def test_more_ranks_than_cores(launcher: str, tmp_path: Path) -> None:
    ranks = len(os.sched_getaffinity(0)) + 2
    done = end(launcher, "succeeds", tmp_path, ranks=ranks)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(f"of {ranks}") == ranks


def test_files_of_a_killed_mpirun_are_not_in_the_way(tmp_path: Path) -> None:
    ids = int(Path("/proc/sys/kernel/pid_max").read_text())
    with subprocess.Popen(["true"]) as newest:
        following = [(newest.pid + i) % ids for i in range(2000)]
    folders = [tmp_path / f"ompi.{number}" for number in following]
    for folder in folders:
        folder.mkdir()
        (folder / f"pmix.{os.uname().nodename}.tool").write_text("of a killed mpirun")
    with start("openmpi", "succeeds", tmp_path, TMPDIR=str(tmp_path)) as job:
        done = job.finish(HANGS)
    assert done.returncode == 0, done.stderr
    assert sum(folder.exists() for folder in folders) < len(folders)


@every
def test_success_without_a_record_of_completion_is_a_failure(
    launcher: str, tmp_path: Path
) -> None:
    done = end(launcher, "forgets", tmp_path)
    assert done.returncode == 70
    assert "record the job's completion" in done.stderr


def test_the_record_of_another_job_does_not_count(tmp_path: Path) -> None:
    (tmp_path / "done.json").write_text('{"job": "another", "ranks": 1, "steps": 1}')
    assert end("local", "forgets", tmp_path).returncode == 70


@every
def test_an_exception_is_shown_once_and_gives_its_status(
    launcher: str, tmp_path: Path
) -> None:
    done = end(launcher, "recorded", tmp_path)
    assert done.returncode == 3
    assert done.stderr.count("KeyError: 'the true cause'") == 1
    assert done.stderr.count("Traceback") <= 1
    assert "at work" in done.stdout  # nothing printed is lost
    rank = 0 if launcher == "local" else 1
    assert f"rank {rank} on testhost failed: KeyError" in done.stderr
    assert ("1 other rank stopped because of it" in done.stderr) == (rank == 1)
    output = done.stdout + done.stderr
    for noise in ("MPI_ABORT", "MPI_Abort", "prterun", "BAD TERMINATION", "-----"):
        assert noise not in output


def test_an_earlier_job_s_record_is_not_shown(tmp_path: Path) -> None:
    folder = tmp_path / "errors"
    folder.mkdir()
    old = {"rank": 0, "host": "h", "time": 1.0, "type": "E", "status": 9}
    record = {**old, "message": "old", "traceback": "old"}
    (folder / "rank-00000.json").write_text(json.dumps(record))
    done = end("local", "killed", tmp_path)
    assert done.returncode == 137
    assert "old" not in done.stderr


@mpi
def test_a_job_that_its_mpi_does_not_end_after_an_error(
    launcher: str, tmp_path: Path
) -> None:
    done = end(launcher, "recorded_hang", tmp_path)
    assert done.returncode == 3
    assert "the true cause" in done.stderr


@every
def test_a_killed_rank(launcher: str, tmp_path: Path) -> None:
    done = end(launcher, "killed", tmp_path)
    assert done.returncode != 0
    assert "SIGKILL" in done.stderr
    output = done.stdout + done.stderr
    what_the_mpi_says = {"openmpi": "signal 9", "mpich": "BAD TERMINATION"}
    assert what_the_mpi_says.get(launcher, "") in output


@every
def test_os_exit_of_a_rank(launcher: str, tmp_path: Path) -> None:
    done = end(launcher, "exit", tmp_path)
    # Now and then Hydra reports how it ended the other rank, status 9, instead.
    assert done.returncode in ((4, 9) if launcher == "mpich" else (4,))
    assert f"exit status {done.returncode}" in done.stderr
    assert "no rank said why" in done.stderr


@every
@pytest.mark.parametrize("mode", ["hangs", "stubborn"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["term", "int"])
def test_a_signal_leaves_no_process_behind(
    launcher: str, mode: str, number: signal.Signals, tmp_path: Path
) -> None:
    with start(launcher, mode, tmp_path) as job:
        when_running(tmp_path, 1 if launcher == "local" else 2)
        job.process.send_signal(number)
        done = job.finish(LIMIT)
        assert job.left() == []
    assert done.returncode == 128 + number
    assert f"stopped by {number.name}" in done.stderr
    assert "Traceback" not in done.stderr


@every
def test_a_signal_lets_the_ranks_save(launcher: str, tmp_path: Path) -> None:
    with start(launcher, "saves", tmp_path, FASTSERVE_GRACE="8") as job:
        when_running(tmp_path, 1 if launcher == "local" else 2)
        job.process.send_signal(signal.SIGTERM)
        done = job.finish(LIMIT)
        assert job.left() == []
    assert done.returncode == 75, done.stderr
    assert "the ranks finish their step and save" in done.stderr


@mpi
def test_a_second_signal_does_not_wait(launcher: str, tmp_path: Path) -> None:
    with start(launcher, "stubborn", tmp_path, FASTSERVE_GRACE="30") as job:
        when_running(tmp_path, 2)
        begin = time.monotonic()
        for _ in range(3):
            job.process.send_signal(signal.SIGINT)
            time.sleep(0.3)
        done = job.finish(HANGS)
        assert job.left() == []
    assert time.monotonic() - begin < 15.0  # one signal alone takes 33 s
    assert done.returncode == 130


@every
@pytest.mark.parametrize("victim", ["launcher", "command", "both"])
def test_nothing_survives_a_killed_launcher(
    launcher: str, victim: str, tmp_path: Path
) -> None:
    with start(launcher, "hangs", tmp_path) as job:
        when_running(tmp_path, 1 if launcher == "local" else 2)
        pid = job.process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        victims = {"launcher": [pid], "command": [int(children[0])]}
        victims["both"] = [pid, int(children[0])]
        for target in victims[victim]:
            os.kill(target, signal.SIGKILL)
        done = job.finish(LIMIT)
        limit = time.monotonic() + 5
        while job.left() and time.monotonic() < limit:
            time.sleep(0.05)
        assert job.left() == []
    assert done.returncode == (137 if victim == "command" else -9)


def test_processes_in_sessions_of_their_own_are_killed_too() -> None:
    words = ["sh", "-c", "setsid sleep 60 & setsid sleep 60 & wait"]
    token = f"of-this-test-{os.getpid()}-{time.monotonic_ns()}"
    env = {**os.environ, "FASTSERVE_JOB": token}
    with subprocess.Popen(words, env=env, start_new_session=True) as process:
        limit = time.monotonic() + 5
        while len(job_processes(token)) < 3 and time.monotonic() < limit:
            time.sleep(0.05)
        assert len(job_processes(token)) == 3
        kill_job(process, token)
        assert job_processes(token) == []


def test_a_reader_that_goes_away_does_not_end_the_job(tmp_path: Path) -> None:
    with start("local", "succeeds", tmp_path) as job:
        assert job.process.stdout is not None
        job.process.stdout.close()
        job.process.stdout = None
        done = job.finish(HANGS)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "done.json").exists()


def test_a_grace_that_is_no_number(tmp_path: Path) -> None:
    with start("local", "succeeds", tmp_path, FASTSERVE_GRACE="soon") as job:
        done = job.finish(HANGS)
    assert done.returncode != 0
    assert "expected FASTSERVE_GRACE to be" in done.stderr
    assert not (tmp_path / "pids").exists()


def test_logs_are_known_whatever_the_clock_says(tmp_path: Path) -> None:
    """Those that the job has written to, though their times are before its start."""
    (tmp_path / "logs").mkdir()
    idle, used, new = (tmp_path / f"logs/rank-0000{i}.log" for i in range(3))
    for path in (idle, used):
        path.write_text("before\n")
    run: Any = SimpleNamespace(
        plan=SimpleNamespace(run_dir=tmp_path), _logs_before=logs(tmp_path)
    )
    assert _Run._logs(run) == []
    used.write_text("before\nFatal Python error: Aborted\n")
    new.write_text("")
    for path in (used, new):
        os.utime(path, (1e9, 1e9))
    assert sorted(_Run._logs(run)) == [used, new]
    assert crashes(_Run._logs(run)) == {1: f"Aborted, see {used}"}
