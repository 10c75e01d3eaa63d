"""A job that has lost a rank or a host starts again from its checkpoint."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import signal
import time
from pathlib import Path

import pytest
from mpi_environments import FLAVOURS, ROOT, Started, require, variables

from fastserve.comm import SingleCommunicator
from fastserve.training.files import write_atomically
from fastserve.training.records import write_error
from launch.hosts import Host, UnreachableError
from launch.process import job_processes
from launch.records import error_records
from launch.restart import Goal, Loss, run

JOB = """
name: tiny
model: {type: gpt, n_layer: 1, n_head: 2, n_embd: 32, block_size: 64}
data: {type: text, source: pydoc-topics}
train: {global_batch: 16, steps: 300, log_every: 1, baseline: false}
checkpoint: {every: 5}
comm: {algorithm: exact}
launch: {ranks: 2, oversubscribe: true, max_restarts: 2}
"""


class Attempts:
    """Stands in for jobs that lose these hosts, one list after the other.

    ``saves`` is where each takes over a run folder and saves a checkpoint.
    """

    def __init__(self, *losses: list[str] | None, saves: Path | None = None) -> None:
        self.losses, self.saves = list(losses), saves
        self.made: list[tuple[int, bool]] = []

    def __call__(self, goal: Goal, loss: Loss, again: bool) -> int:
        self.made.append((goal.count, again))
        if self.saves is not None:
            write_atomically(self.saves / "config.yaml", "name: tiny")
            save(self.saves, 12)
        lost = self.losses.pop(0) if self.losses else None
        if lost is None:
            return 0
        loss.note(lost)
        return 70


def save(run_dir: Path, step: int) -> None:
    folder = run_dir / "checkpoints" / f"step-{step:08d}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "state.json").write_text("{}")


def goal(ranks: int | None = None, least: int = 2) -> Goal:
    return Goal((Host("a", 2), Host("b", 2), Host("c", 1)), ranks, least)


def test_a_lost_host_is_left_out(tmp_path: Path) -> None:
    said: list[str] = []
    attempts = Attempts(["b"], [])
    assert run(goal(), 3, attempts, tmp_path, said.append) == 0
    assert attempts.made == [(5, False), (3, False), (3, False)]
    assert said[0].startswith("restart 1 of at most 3, from the start, on 3 ranks")
    assert "without b" in said[0]
    attempts = Attempts(["b", "c"])
    assert run(goal(4), 1, attempts, tmp_path, said.append) == 0
    assert attempts.made == [(4, False), (2, False)]


def test_a_job_begins_as_it_was_asked_to_until_it_has_a_checkpoint(
    tmp_path: Path,
) -> None:
    said: list[str] = []
    write_atomically(tmp_path / "config.yaml", "name: before")
    save(tmp_path, 99)  # of the run before, to be replaced
    attempts = Attempts([], [])
    assert run(goal(), 2, attempts, tmp_path, said.append) == 0
    assert [goes_on for _, goes_on in attempts.made] == [False, False, False]
    assert "from the start" in said[0]
    (tmp_path / "checkpoints/step-00000099/state.json").unlink()
    attempts = Attempts([], saves=tmp_path)
    assert run(goal(), 2, attempts, tmp_path, said.append) == 0
    assert [goes_on for _, goes_on in attempts.made] == [False, True]
    assert "from checkpoint step-00000012" in said[-1]


def test_enough_is_enough(tmp_path: Path) -> None:
    said: list[str] = []
    attempts = Attempts([], [], [], saves=tmp_path)
    assert run(goal(), 2, attempts, tmp_path, said.append) == 70
    assert len(attempts.made) == 3
    assert "from checkpoint step-00000012" in said[0]
    assert said[-1] == "ended after 2 restarts"
    attempts = Attempts(["a", "b"])
    assert run(goal(least=2), 9, attempts, tmp_path, said.append) == 70
    assert attempts.made == [(5, False)]
    assert "1 ranks are left of at least 2" in said[-1]
    attempts = Attempts(["a", "b", "c"])
    assert run(goal(least=1), 9, attempts, tmp_path, said.append) == 70
    assert "0 ranks are left" in said[-1]


def test_no_restart_without_a_loss_or_a_wish(tmp_path: Path) -> None:
    said: list[str] = []

    def fails(goal: Goal, loss: Loss, again: bool) -> int:
        return 1

    assert run(goal(), 5, fails, tmp_path, said.append) == 1
    attempts = Attempts(["b"])
    assert run(goal(), 0, attempts, tmp_path, said.append) == 70
    assert said == []


def test_a_host_that_the_next_start_misses_is_left_out(tmp_path: Path) -> None:
    """It costs no restart; at the first start it is a fault of the user's."""
    said: list[str] = []
    made: list[int] = []

    def attempt(goal: Goal, loss: Loss, again: bool) -> int:
        made.append(goal.count)
        if len(made) == 1:
            loss.note()
            return 70
        if len(made) < 4:
            missed = goal.hosts[-1].name
            raise UnreachableError([missed], "expected all hosts", f"not {missed}")
        return 0

    assert run(goal(), 1, attempt, tmp_path, said.append) == 0
    assert made == [5, 5, 4, 2]
    assert "restart 1 of at most 1, from the start, on 2 ranks without b" in said[-1]
    made = []
    assert run(goal(least=4), 1, attempt, tmp_path, said.append) == 70
    assert "2 ranks are left of at least 4" in said[-1]

    def refused(goal: Goal, loss: Loss, again: bool) -> int:
        raise UnreachableError(["a"], "expected all hosts", "not a")

    with pytest.raises(UnreachableError):
        run(goal(), 1, refused, tmp_path, said.append)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_between_two_attempts(number: signal.Signals, tmp_path: Path) -> None:
    said: list[str] = []
    attempts = Attempts([], [], saves=tmp_path)
    before = signal.getsignal(number)

    def asked(goal: Goal, loss: Loss, again: bool) -> int:
        if again or not attempts.saves:
            os.kill(os.getpid(), number)  # as while ssh looks for the hosts
            time.sleep(5)
        return attempts(goal, loss, again)

    assert run(goal(), 3, asked, tmp_path, said.append) == 75
    assert len(attempts.made) == 1
    assert said[-1] == (
        f"stopped by {number.name} while no rank was running, after checkpoint "
        "step-00000012; go on with --resume auto"
    )
    attempts = Attempts()
    assert run(goal(), 3, asked, tmp_path / "new", said.append) == 128 + number
    assert said[-1] == f"stopped by {number.name} while no rank was running"
    assert signal.getsignal(number) is before


@pytest.mark.mpi
def test_no_restart_of_a_job_that_was_asked_to_end(tmp_path: Path) -> None:
    """Not even if it loses a rank before it has."""
    (tmp_path / "job.yaml").write_text(JOB)
    command = [str(require("openmpi") / "bin/python"), "-m", "launch.cli", "run"]
    longer = [*command, "job.yaml", "--set", "train.steps=100000"]
    with Started(longer, cwd=tmp_path) as started:
        pid = _rank_that_trains(tmp_path / "runs/tiny", time.time())
        os.kill(pid, signal.SIGSTOP)  # so it won't finish its step
        started.process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        os.kill(pid, signal.SIGKILL)
        done = started.finish(60)
    assert done.returncode == 128 + signal.SIGTERM, done.stderr
    assert "restart" not in done.stderr
    assert "stopped by SIGTERM before the ranks could save" in done.stderr


@pytest.mark.mpi
@pytest.mark.parametrize("mpi", FLAVOURS)
def test_a_killed_rank_costs_nothing_but_time(mpi: str, tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(JOB)
    command = [str(require(mpi) / "bin" / "python"), "-m", "launch.cli", "run"]
    whole = [*command, "job.yaml", "-n", "1", "--set", "name=whole"]
    with Started(whole, cwd=tmp_path) as started:
        assert started.finish(240).returncode == 0
    with Started([*command, "job.yaml"], cwd=tmp_path) as started:
        killed = time.time()
        for _ in range(2):
            pid = _rank_that_trains(tmp_path / "runs/tiny", killed)
            os.kill(pid, signal.SIGKILL)
            killed = time.time()
        done = started.finish(240)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("restart ") == 2, done.stderr
    _same_files(tmp_path / "runs/whole", tmp_path / "runs/tiny", 300)


OWN = """
import time
import numpy as np, fastserve as fs

class Slow(fs.layers.Layer):
    def forward(self, x, training=False):
        time.sleep(0.02)  # so that a kill comes in time
        return x

    def backward(self, dy, done=None):
        return dy

def make_data(rows):
    x = np.random.default_rng(0).standard_normal((rows, 3))
    return (x, x.sum(axis=1, keepdims=True)), None

def make_model(units):
    model = fs.models.Sequential([
        fs.layers.Dense(units, "tanh"), fs.layers.Dropout(0.2), Slow(),
        fs.layers.Dense(1),
    ])
    model.compile("adam", "mse")
    return model
"""
OWN_JOB = """
name: tiny
model: {type: python, file: own.py, arguments: {units: 5}}
data: {type: python, file: own.py, arguments: {rows: 50}}
train: {global_batch: 8, micro_batch: 2, steps: 100, log_every: 1, baseline: false}
checkpoint: {every: 5}
comm: {algorithm: exact}
launch: {ranks: 2, oversubscribe: true, max_restarts: 1}
"""


@pytest.mark.mpi
@pytest.mark.parametrize("mpi", FLAVOURS)
def test_a_model_of_the_users_own_file_goes_on(mpi: str, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(OWN)
    (tmp_path / "job.yaml").write_text(OWN_JOB)
    command = [str(require(mpi) / "bin" / "python"), "-m", "launch.cli", "run"]
    whole = [*command, "job.yaml", "-n", "1", "--set", "name=whole"]
    with Started(whole, cwd=tmp_path) as started:
        done = started.finish(60)
        assert done.returncode == 0, done.stderr
    with Started([*command, "job.yaml"], cwd=tmp_path) as started:
        pid = _rank_that_trains(tmp_path / "runs/tiny", time.time())
        os.kill(pid, signal.SIGKILL)
        done = started.finish(60)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("restart 1 of at most 1, from checkpoint step-") == 1
    _recovery_is_told(done.stdout, tmp_path / "runs/tiny")
    _same_files(tmp_path / "runs/whole", tmp_path / "runs/tiny", 100)


# sitecustomize.py, which every Python imports at its start
CLOCK = """
import os, time
true = time.time
time.time = lambda: true() + 7200.0 * (not os.path.exists(os.environ["SET_BACK"]))
"""


@pytest.mark.mpi
@pytest.mark.parametrize("mpi", FLAVOURS)
def test_a_clock_that_is_set_back(mpi: str, tmp_path: Path) -> None:
    """By two hours: a killed rank is restarted, and a signal still saves."""
    (tmp_path / "job.yaml").write_text(JOB)
    (tmp_path / "sitecustomize.py").write_text(CLOCK)
    run_dir, set_back = tmp_path / "runs/tiny", tmp_path / "set-back"
    env = variables(SET_BACK=str(set_back), PYTHONPATH=f"{tmp_path}:{ROOT}")
    command = [str(require(mpi) / "bin" / "python"), "-m", "launch.cli", "run"]
    longer = [*command, "job.yaml", "--set", "train.steps=100000"]
    with Started(longer, cwd=tmp_path, env=env) as started:
        killed = _rank_that_trains(run_dir, time.time())
        set_back.touch()
        os.kill(killed, signal.SIGKILL)
        _rank_that_trains(run_dir, time.time())
        started.process.send_signal(signal.SIGTERM)
        done = started.finish(60)
    assert done.returncode == 75, done.stderr
    said = "restart 1 of at most 2, from checkpoint step-"
    assert done.stderr.count(said) == 1, done.stderr
    text = (run_dir / "metrics.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    made = [line["step"] for line in lines if "grad_norm" in line]
    assert made == list(range(1, len(made) + 1))
    times = [line["time"] for line in lines]
    assert min(b - a for a, b in itertools.pairwise(times)) < -7000  # it was set
    newest = max(run_dir.glob("checkpoints/step-*/state.json"))
    assert json.loads(newest.read_text())["step"] == made[-1]


PARTS = (
    "ending the rest",
    "hosts and launcher",
    "Python and MPI",
    "data and model",
    "checkpoint",
    "first step",
)


def _recovery_is_told(out: str, run_dir: Path) -> None:
    """See that the parts add up to the whole, and that to the pause in the metrics."""
    told = re.findall(r"^(.*) from the loss to the first step again: (.*)$", out, re.M)
    assert len(told) == 1, out
    names = [
        part.rpartition(" ")[0].rpartition(" ")[0] for part in told[0][1].split(", ")
    ]
    assert names == list(PARTS)
    seconds = [_seconds(part) for part in (told[0][0], *told[0][1].split(", "))]
    assert sum(seconds[1:]) == pytest.approx(seconds[0], rel=0.02)
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    times = [json.loads(line)["time"] for line in lines]
    pause = max(b - a for a, b in itertools.pairwise(times))
    assert 0.5 * pause < seconds[0] < pause + 0.5


def _seconds(text: str) -> float:
    """Return the seconds of a text that ends as in ``1.23 s`` or ``12.3 ms``."""
    value, unit = text.split()[-2:]
    return float(value) * {"s": 1.0, "ms": 1e-3, "us": 1e-6}[unit]


def _same_files(one: Path, other: Path, steps: int) -> None:
    """Compare the checksums of two runs' last checkpoints, and see all lines there."""
    name = f"checkpoints/step-{steps:08d}/state.json"
    states = [json.loads((run_dir / name).read_text()) for run_dir in (one, other)]
    assert states[0]["files"] == states[1]["files"]
    lines = (other / "metrics.jsonl").read_text().splitlines()
    made = [json.loads(x)["step"] for x in lines if "grad_norm" in x]
    assert made == list(range(1, steps + 1))


def _rank_that_trains(run_dir: Path, since: float) -> int:
    """Return the process of a rank of a job that has begun since then, and saved."""
    limit = time.monotonic() + 60
    while time.monotonic() < limit:
        time.sleep(0.02)
        # a job writes it once the ranks of the one before, and their saves, are gone
        began = _age(run_dir / "config.yaml")
        saved = [_age(p) for p in run_dir.glob("checkpoints/[!.]*/state.json")]
        lines = run_dir / "metrics.jsonl"
        if not lines.exists() or not since < began < max(saved, default=0.0):
            continue
        for pid in job_processes(str(run_dir), "FASTSERVE_RUN_DIR"):
            with contextlib.suppress(OSError):  # it has ended meanwhile
                words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
                if words[1:3] == [b"-m", b"fastserve"]:
                    return pid
    raise AssertionError("no rank trains")


def _age(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:  # it was removed meanwhile, or isn't there yet
        return 0.0


def test_an_mpi_error_is_known_as_one_that_follows(tmp_path: Path) -> None:
    """MPICH may raise in a rank when another one has gone."""
    kind = type("Exception", (RuntimeError,), {"__module__": "mpi4py.MPI"})
    for error, name in ((kind("Testall"), "CommError"), (KeyError("x"), "KeyError")):
        write_error(tmp_path, SingleCommunicator(), error)
        (record,) = error_records(tmp_path, 0.0)
        assert record.type == name
