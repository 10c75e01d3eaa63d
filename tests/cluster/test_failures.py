"""How jobs over several hosts end when something fails in the middle of training.

For each: the job ends in time and says what happened where and what to do, its exit
status is not 0, nothing of it is left on any host, and earlier checkpoints are intact.
"""

from __future__ import annotations

import os
import signal
import time

import pytest
from hosts_lab import FOREVER, LIMIT, Done, Job, Lab, in_time, seen, within
from mpi_environments import FLAVOURS, require, run, variables
from safetensors.numpy import load_file

pytestmark = [pytest.mark.mpi, pytest.mark.slow]
both = pytest.mark.parametrize("mpi", FLAVOURS)
HOSTS = ("--hostfile", "hosts.txt")
OF_RANK = {0: "node1", 1: "node1", 2: "node2", 3: "node3"}
SECONDS = 10.0


def check_end(lab: Lab, done: Done, since: float, seconds: float = SECONDS) -> None:
    """See that a job ended as it has to, whatever the failure was."""
    assert done.status not in (0, 124), done.err
    lines = done.err.rstrip().splitlines()
    assert any("to do:" in line for line in lines[-4:]), done.err
    check_checkpoints(lab)
    within(done.ended - since, seconds, done.err)


def check_checkpoints(lab: Lab) -> None:
    """See that the newest checkpoint can be read, and that it isn't the first."""
    folder = lab.folder / "work" / "runs" / "tiny" / "checkpoints"
    newest = (folder / "latest").read_text().strip()
    assert int(newest.removeprefix("step-")) > 1
    found = load_file(folder / newest / "model.safetensors")
    assert len(found) == 2  # kernel and bias


def failed_at(lab: Lab) -> float:
    return float((lab.folder / "work" / "runs" / "failed").read_text())


def failing(how: str) -> tuple[str, ...]:
    return (*HOSTS, *FOREVER, "--set", f"launch.env.FAIL={how}")


def tells_the_first(mpi: str, err: str) -> bool:
    """Whether the MPI has told which rank ended; else all that ended then are named.

    Open MPI leaves its message out once in some fifty times.
    """
    return mpi == "mpich" or "Exit code: " in err or "exited on" in err


@both
@pytest.mark.parametrize("rank", [1, 2], ids=["here", "elsewhere"])
@pytest.mark.parametrize("how", ["exit", "kill", "crash"])
@in_time
def test_a_rank_that_ends_without_a_word(
    mpi: str, how: str, rank: int, lab: Lab
) -> None:
    done = lab.run(mpi, *failing(f"{how} {rank}"))
    assert done.status not in (2, 75), done.err
    pid = seen(lab)[rank]["pid"]
    # MPICH ends the other rank of the host within milliseconds: both are named then.
    assert f"rank {rank} on {OF_RANK[rank]} (pid {pid})" in done.err
    assert "ended without a word" in done.err
    received = done.err.split("received: ")[1]
    if how == "crash":  # others that end about then are named after it
        assert received.startswith(f"rank {rank} on {OF_RANK[rank]}")
        assert "Segmentation fault, see " in received
        log = lab.folder / "work" / "runs" / "tiny" / "logs" / f"rank-{rank:05d}.log"
        assert "own.py" in log.read_text()
    elif "SIGSEGV" not in done.err and tells_the_first(mpi, done.err):
        # MPICH itself crashes now and then in other ranks when one is gone
        assert "rank 3" not in received, done.err
    check_end(lab, done, failed_at(lab))


@both
@pytest.mark.parametrize("how", ["raise", "forward"])
@pytest.mark.parametrize("rank", [0, 3])
@in_time
def test_an_exception_comes_first(mpi: str, rank: int, how: str, lab: Lab) -> None:
    done = lab.run(mpi, *failing(f"{how} {rank}"))
    assert done.status == 1, done.err
    assert f"rank {rank} on {OF_RANK[rank]} failed: KeyError" in done.err
    assert done.err.count("KeyError: 'the true cause'") == 1
    assert "ended without a word" not in done.err
    check_end(lab, done, failed_at(lab))


@both
@in_time
def test_sys_exit_of_a_rank(mpi: str, lab: Lab) -> None:
    done = lab.run(mpi, *failing("sys.exit 2"))
    assert done.status == 3, done.err
    assert "rank 2 on node2" in done.err
    assert "SystemExit" in done.err
    check_end(lab, done, failed_at(lab))


@both
@in_time
def test_a_stuck_rank(mpi: str, lab: Lab) -> None:
    done = lab.run(mpi, *failing("sleep 2"), "--set", "comm.timeout=3")
    assert "missing: rank 2 on node2" in done.err
    assert "comm.timeout" in done.err
    check_end(lab, done, failed_at(lab), 3 + SECONDS)


CALLBACK = """
import sys
import numpy as np
import fastserve as fs

class Bad(fs.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        if batch == 3 and self.rank == 2:
            raise KeyError("the true cause")

model = fs.models.Sequential([fs.layers.Dense(1, input_shape=(3,))])
model.compile(loss="mse")
x = np.ones((96, 3))
model.fit(x, x[:, :1], batch_size=12, epochs=9, verbose=0, callbacks=[Bad()])
"""


@both
def test_an_exception_in_a_callback_of_a_script(mpi: str, lab: Lab) -> None:
    """Started by the MPI's own mpirun, without our launcher."""
    folder = lab.folder / "work"
    (folder / "train.py").write_text(CALLBACK)
    binaries = require(mpi) / "bin"
    options = {
        "openmpi": "--host node1:2,node2:1,node3:1 --bind-to none -x PYTHONPATH",
        "mpich": "-hosts node1:2,node2:1,node3:1 -bind-to none",
    }[mpi].split()
    command = [str(binaries / "mpirun"), "-n", "4", *options]
    script = lab.script("node1", *command, str(binaries / "python"), "train.py")
    env = variables(**lab.environment)
    done = run(script, LIMIT, cwd=folder, env=env)
    assert done.returncode not in (0, 124), done.stderr
    assert done.stderr.count("KeyError: 'the true cause'") == 1
    assert "[rank 2 node2]" in done.stderr
    lab.nothing_left()


@both
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@in_time
def test_a_signal_lets_all_hosts_save(
    mpi: str, number: signal.Signals, lab: Lab
) -> None:
    job = start(lab, mpi)
    os.kill(job.launcher(), number)
    since = time.time()
    done = lab.finish(job)
    assert done.status == 75, done.err
    (line,) = [x for x in done.out.splitlines() if x.startswith("next ")]
    assert line.startswith("next     fastserve run ") and "--resume auto" in line
    check_checkpoints(lab)
    within(done.ended - since, SECONDS, done.err)


@both
def test_nothing_survives_a_killed_launcher(mpi: str, lab: Lab) -> None:
    job = start(lab, mpi)
    os.kill(job.launcher(), signal.SIGKILL)
    lab.finish(job)
    check_checkpoints(lab)


@both
@in_time
def test_nothing_survives_a_killed_mpirun(mpi: str, lab: Lab) -> None:
    job = start(lab, mpi)
    since = time.time()
    os.kill(job.mpirun(), signal.SIGKILL)
    done = lab.finish(job)
    check_end(lab, done, since)


@both
@in_time
def test_a_link_that_is_cut(mpi: str, lab: Lab) -> None:
    job = start(lab, mpi)
    since = time.time()
    lab.cut_off("node2")
    done = lab.finish(job)  # node2 too is clean: its agent misses the launcher
    assert "host node2 not reachable any more" in done.err
    assert "--exclude node2" in done.err
    check_end(lab, done, since)


@both
@in_time
def test_a_host_that_loses_its_power(mpi: str, lab: Lab) -> None:
    job = start(lab, mpi)
    since = time.time()
    lab.crash("node3")
    done = job.finish()
    assert "host node3 not reachable any more" in done.err
    lab.nothing_left(("node1", "node2"))
    check_end(lab, done, since)


@both
@in_time
def test_a_full_disk_at_a_checkpoint(mpi: str, lab: Lab) -> None:
    folder = lab.folder / "work" / "runs" / "tiny" / "checkpoints"
    folder.mkdir(parents=True)
    lab.on("node1", *["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs"], str(folder))
    try:
        job = start(lab, mpi, "--overwrite")
        since = time.time()
        # again and again: what was being saved at that moment gives room back
        more = f"cat /dev/zero >>{folder}/filler; sleep 0.05"
        fill = f"for i in 1 2 3 4 5; do {more}; done"
        lab.on("node1", "sh", "-c", fill)
        done = lab.finish(job)
        assert done.status == 1, done.err
        assert "rank 0 on node1 failed: CheckpointError" in done.err
        assert "No space left on device" in done.err
        within(done.ended - since, SECONDS, done.err)
        kept = lab.on("node1", "cat", str(folder / "latest")).strip()
        assert kept.startswith("step-")
        lab.on("node1", "rm", str(folder / "filler"))
        more = ("--resume", "auto", "--set", f"train.steps={int(kept[5:]) + 9}")
        done = lab.run(mpi, *HOSTS, *more)
        assert done.status == 0, done.err
    finally:
        lab.on("node1", "umount", str(folder))


@both
def test_two_jobs_at_once_on_the_same_hosts(mpi: str, lab: Lab) -> None:
    first = start(lab, mpi)
    other = ("--set", "name=other", "--set", "run_dir=runs/other")
    second = lab.run_beside(mpi, *HOSTS, *other)
    assert second.status == 0, second.err
    assert first.process.poll() is None  # it was not touched by the other one's end
    broken = ("--set", "run_dir=runs/third", "--set", "launch.env.FAIL=kill 2")
    third = lab.run_beside(mpi, *HOSTS, *FOREVER, *broken)
    assert third.status not in (0, 75, 124), third.err
    assert first.process.poll() is None
    os.kill(first.launcher(), signal.SIGTERM)
    assert lab.finish(first).status == 75


def start(lab: Lab, mpi: str, *words: str) -> Job:
    job = lab.start(mpi, "run", "job.yaml", *HOSTS, *FOREVER, *words)
    job.until_it_trains()
    return job
