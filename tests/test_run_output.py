"""What ``fastserve run`` prints: on a terminal, into a file, --quiet, --json."""

from __future__ import annotations

import json
import os
import pty
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from mpi_environments import FLAVOURS, Started, require, run, variables

from fastserve.comm import run_threads
from fastserve.comm.mpi import library_name
from fastserve.config import Job
from fastserve.config.public_command import public_command
from fastserve.formatting import number
from fastserve.summary import _passes, _split

JOB = """
name: tiny
seed: 1
model: {type: gpt, n_layer: 1, n_head: 2, n_embd: 16, block_size: 16}
data: {type: text, source: text.txt, validation_split: 0.2}
train: {global_batch: 4, steps: 400, eval_every: 200, eval_batches: 2, log_every: 100,
        sample_tokens: 0, baseline: false}
checkpoint: {at_end: false}
"""
NAMES = {"openmpi": "Open MPI", "mpich": "MPICH"}
# so much that the line of progress is drawn some times on a fast machine
LARGER = ("--set", "model.n_layer=4", "--set", "model.n_embd=64")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return where the BLAS kernels that were measured are remembered."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def folder(tmp_path: Path, cache: Path) -> Path:
    (tmp_path / "cache").symlink_to(cache)
    (tmp_path / "job.yaml").write_text(JOB)
    (tmp_path / "text.txt").write_text("Pack my box with five dozen liquor jugs. " * 90)
    return tmp_path


def command(flavour: str, *arguments: str) -> list[str]:
    start = [str(require(flavour) / "bin" / "python"), "-m", "launch.cli"]
    return [*start, "run", "job.yaml", "-n", "2", "--launcher", flavour, *arguments]


def environ(folder: Path, **more: str) -> dict[str, str]:
    """Return an environment in which colours depend on ``more`` alone."""
    env = variables(FASTSERVE_CACHE_DIR=str(folder / "cache"), TERM="xterm")
    env.pop("NO_COLOR", None)
    return {**env, **more}


def launch(
    folder: Path, flavour: str, *arguments: str, **more: str
) -> subprocess.CompletedProcess[str]:
    words = command(flavour, *arguments)
    return run(words, 120, cwd=folder, env=environ(folder, **more))


def on_terminal(folder: Path, words: list[str], **more: str) -> tuple[str, int]:
    """Run a command on a terminal of 80 columns; return what came, and its status."""
    ours, theirs = pty.openpty()
    env = environ(folder, COLUMNS="80", LINES="24", **more)
    with Started(
        words, cwd=folder, env=env, stdin=theirs, stdout=theirs, stderr=theirs
    ) as started:
        os.close(theirs)
        came = b""
        try:
            while data := os.read(ours, 1 << 16):
                came += data
        except OSError:  # all have closed the terminal
            pass
        status = started.process.wait(120)
    os.close(ours)
    return came.decode(), status


def left_on_screen(came: str) -> list[str]:
    """Return the lines as they are in the end, without colours."""
    lines = [line.split("\r\x1b[K")[-1].rstrip("\r") for line in came.split("\n")]
    return [re.sub(r"\x1b\[[0-9;]*m", "", line) for line in lines]


@pytest.mark.mpi
@pytest.mark.parametrize("flavour", FLAVOURS)
def test_on_a_terminal(folder: Path, flavour: str) -> None:
    came, status = on_terminal(folder, command(flavour, *LARGER))
    assert status == 0, came
    drawn = re.findall(r"\r\x1b\[K(step [^\r\n]*left)", came)
    assert len(drawn) > 2, came
    bold = r"step +\d+/400  [━╺]+  \x1b\[1mloss [\d.]+\x1b\[0m  .* tokens/s  .*left"
    assert all(re.fullmatch(bold, line) for line in drawn), drawn
    lines = left_on_screen(came)
    assert not [line for line in lines if "━" in line or "╺" in line]
    kept = lines.index(next(x for x in lines if x.startswith("step 200/400  loss ")))
    assert re.fullmatch(
        r"step 200/400  loss [\d.]+  val_loss [\d.]+  val_perplexity [\d.]+\n"
        r"  val_bits_per_byte [\d.]+  \d+:\d\d left",
        "\n".join(lines[kept : kept + 2]),
    )
    block = lines[lines.index(next(x for x in lines if x.startswith("model "))) :]
    block = [line for line in block if not line.startswith(("step ", "[rank "))]
    assert all(len(line) < 80 for line in block), block
    text = "\n".join(lines)
    assert re.search(rf"^ranks    2 on \S+, {NAMES[flavour]} [\d.]+$", text, re.M)
    assert "batch    global 4 = 2 ranks x 2 x 1 accumulation" in text
    assert "run      runs/tiny" in text and text.count("model    gpt") == 1


@pytest.mark.mpi
@pytest.mark.parametrize("flavour", FLAVOURS)
def test_into_a_file(folder: Path, flavour: str) -> None:
    done = launch(folder, flavour)
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout + done.stderr and "\r" not in done.stdout
    steps = [line for line in done.stdout.splitlines() if line.startswith("step ")]
    found = [re.match(r"step (\d+)[/:]", line)[1] for line in steps]  # type: ignore[index]
    assert found == ["100", "200", "200", "300", "400", "400"]
    shown = re.findall(r"^step (\d+)/400  loss (\S+)", done.stdout, re.M)
    assert shown == [(str(n), number(loss)) for n, loss in losses(folder).items()]
    assert re.search(r"^step 400/400  loss .*  0:00 left$", done.stdout, re.M)
    # it has no checkpoint to evaluate
    assert "next     fastserve report runs/tiny\n" in done.stdout
    known = json.loads((folder / "runs/tiny/environment.json").read_text())
    assert known["mpi"].startswith(NAMES[flavour]) and known["ranks"] == 2
    assert [host["ranks"] for host in known["hosts"]] == [2]
    assert known["command"][1:3] == ["-m", "fastserve"] and known["threads"] == 1


@pytest.mark.parametrize(
    ("train", "ranks", "said"),
    [
        ((32, None), 2, "global 32 = 2 ranks x 4 x 4 accumulation, in 8 shards"),
        ((32, 4), 8, "global 32 = 8 ranks x 4 x 1 accumulation, in 8 shards"),
        ((32, 4), 3, "global 32 = 3 ranks x up to 4 x 3 accumulation, in 8 shards"),
        ((10, 4), 1, "global 10 = 1 rank x up to 4 x 3 accumulation, in 3 shards"),
        ((3, 8), 1, "global 3 = 1 rank x 3 x 1 accumulation, in 1 shard"),
    ],
)
def test_the_split_into_shards(
    train: tuple[int, int | None], ranks: int, said: str
) -> None:
    values = yaml.safe_load(JOB)
    values["train"] |= {"global_batch": train[0], "micro_batch": train[1]}
    job = Job.model_validate({**values, "comm": {"algorithm": "exact"}})
    assert run_threads(ranks, lambda comm: _split(job, comm)) == [said] * ranks


def losses(folder: Path) -> dict[int, float]:
    """Return the losses of training by their steps, as metrics.jsonl has them."""
    text = (folder / "runs/tiny/metrics.jsonl").read_text()
    written = [json.loads(line) for line in text.splitlines()]
    return {line["step"]: line["loss"] for line in written if "loss" in line}


def test_a_loss_is_the_mean_of_its_interval_after_a_resume_too(folder: Path) -> None:
    """The steps before the checkpoint count as well."""
    assert alone(folder, "--stop-after", "150").returncode == 75
    done = alone(folder, "--resume", "auto")
    assert done.returncode == 0, done.stderr
    (shown,) = re.findall(r"^step 200/400  loss (\S+)", done.stdout, re.M)
    assert shown == number(losses(folder)[200])


@pytest.mark.parametrize(
    ("passes", "said"),
    [(1.0, "1 pass"), (1.0004, "1 pass"), (0.5, "0.5 passes"), (2.93, "2.93 passes")],
)
def test_passes_over_the_data(passes: float, said: str) -> None:
    assert _passes(passes) == said


def test_the_end_of_a_run_that_is_stopped(folder: Path) -> None:
    keys = ("--set", "train.eval_every=40", "--set", "launch.env.KEY=s3")
    start = [sys.executable, "-m", "launch.cli", "run", "job.yaml", "-n", "1", *keys]
    words = [*start, "--stop-after=53", "--overwrite", "--set", "checkpoint.best=true"]
    done = run(words, 60, cwd=folder, env=environ(folder))
    assert done.returncode == 75, done.stderr
    end = done.stdout[done.stdout.index("trained  ") :]
    then = "fastserve run job.yaml -n 1 --set train.eval_every=40 "
    then += "--set launch.env.KEY=... --set checkpoint.best=true --resume auto"
    value = r"\d\.\d{4}"
    expected = (
        r"trained  0:\d\d\n"
        r"time     \S+ s: computing .*\n"
        r"stopped  after step 53 of 400, saved\n"
        rf"val_loss ({value}) nats a token, perplexity \S+, \S+ bits a byte, "
        r"at step 40\n"
        r"best     val_loss \1 at step 40, in runs/tiny/checkpoints/best\n"
        r"run      runs/tiny\n"
        rf"next     {re.escape(then)}\n"
    )
    assert re.fullmatch(expected, end), end
    assert (done.stdout + done.stderr).count("stopped") == 1
    typed = shlex.split(then.replace("KEY=...", "KEY=s3"))
    words = [sys.executable, "-m", "launch.cli", *typed[1:]]
    done = run(words, 60, cwd=folder, env=environ(folder))
    assert done.returncode == 0 and "resume   after step 53\n" in done.stdout


def test_the_end_of_a_run_that_is_stopped_before_a_validation(folder: Path) -> None:
    done = alone(folder, "--stop-after", "5")
    assert done.returncode == 75 and "val_loss" not in done.stdout
    end = "stopped  after step 5 of 400, saved\nrun      runs/tiny\n"
    assert done.stdout.endswith(f"{end}next     the same command with --resume auto\n")
    done = alone(folder, "--stop-after", "5", "--overwrite", "--quiet")
    said = "stopped after step 5 of 400, saved; --resume auto goes on\n"
    assert done.returncode == 75 and done.stdout == said


@pytest.mark.parametrize("prints", ["--json", "--quiet"])
def test_a_dry_run_whose_step_fails(folder: Path, prints: str) -> None:
    words = [sys.executable, "-m", "launch.cli", "run", "job.yaml", "--dry-run"]
    long = "model.block_size=5000"  # the text is shorter
    done = run([*words, "--set", long, prints], 60, cwd=folder, env=environ(folder))
    assert done.returncode == 2, done.stderr
    text = done.stdout
    if prints == "--json":
        plan, error, end = events(done.stdout)
        text = plan["text"]
        assert error["event"] == "error" and error["status"] == 2
        assert error["message"] in text
        assert end["event"] == "end" and end["status"] == 2
    assert "prediction: none, as a step of the job fails here:\n  " in text
    assert "received: 2952\n" in text and "command:\n" in text
    assert not (folder / "runs").exists()


def events(output: str) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in output.splitlines()]
    assert all(isinstance(event["time"], float) for event in found)
    return found


@pytest.mark.mpi
def test_json(folder: Path) -> None:
    done = launch(folder, "openmpi", "--json")
    assert done.returncode == 0, done.stderr
    found = events(done.stdout)
    kinds = ["step"] * 2 + ["validation"] + ["step"] * 2 + ["validation"]
    assert [event["event"] for event in found] == ["start", *kinds, "end"]
    start, end = found[0], found[-1]
    assert start["environment"]["ranks"] == 2 and start["steps"] == 400
    assert end["state"] == "ended" and end["status"] == 0 and end["steps"] == 400
    path = folder / "runs/tiny/metrics.jsonl"
    written = [json.loads(line) for line in path.read_text().splitlines()]
    assert [
        {k: v for k, v in e.items() if k != "event"} for e in found[1:-1]
    ] == written
    assert end["results"]["val_loss"] == written[-1]["val_loss"]


@pytest.mark.mpi
def test_an_error_of_a_rank_as_json(folder: Path) -> None:
    rates = "--set=optimizer.type=sgd", "--set=optimizer.lr=1e6"
    done = launch(folder, "openmpi", "--json", *rates)
    error, end = events(done.stdout)[-2:]
    assert done.returncode == error["status"] == end["status"] == 1
    assert error["event"] == "error" and error["type"] == "NonFiniteError"
    assert error["rank"] in (0, 1) and error["host"] and "to do:" in error["message"]
    assert end["event"] == "end" and end["state"] == "failed"


def alone(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "fastserve", "job.yaml", *arguments]
    return run(words, 60, cwd=folder, env=environ(folder))


def test_the_rank_program_alone(folder: Path) -> None:
    done = alone(folder, "--quiet")
    assert done.returncode == 0 and done.stderr == ""
    line = (
        r"runs/tiny: 400 steps  val_loss [\d.]+  val_perplexity \S+  \S+ \S+  0:\d\d\n"
    )
    assert re.fullmatch(line, done.stdout), done.stdout
    done = alone(folder, "--json", "--overwrite", "--stop-after", "150")
    found = events(done.stdout)
    assert done.returncode == 75 and found[-1]["state"] == "stopped"
    assert found[-1]["steps"] == 150
    done = alone(folder, "--json")
    assert done.returncode == 2
    (error,) = events(done.stdout)
    assert error["event"] == "error" and error["status"] == 2
    assert error["to_do"].startswith("go on with --resume auto")
    done = alone(folder, "--quiet", "--set", "train.stepz=1")
    assert done.returncode == 2 and done.stdout == "" and "train.stepz" in done.stderr


TABLE = "{type: csv, file: table.csv, target: c, task: classification%s}"
CLASSES = "{type: sequential, layers: [Dense: {units: classes, activation: softmax}],"
CLASSES += " loss: sparse_categorical_crossentropy}"


@pytest.mark.parametrize(
    ("model", "data", "then"),
    [
        ("", "", "generate runs/tiny --prompt z"),
        ("", "{type: tokens, train: t.npy, vocab_size: 7}", "report runs/tiny"),
        (CLASSES, TABLE % ", test_split: 0.2", "evaluate runs/tiny --split test"),
        (CLASSES, TABLE % "", "predict runs/tiny --input FILE"),
    ],
)
def test_what_to_type_next_works(
    folder: Path, model: str, data: str, then: str
) -> None:
    np.save(folder / "t.npy", np.arange(2000, dtype=np.uint16) % 7)
    rows = [f"{n % 2},{n % 3},{'red' if n % 2 else 'blue'}\n" for n in range(100)]
    (folder / "table.csv").write_text("a,b,c\n" + "".join(rows))
    changes = {"data": data, "model": model}
    job = {**yaml.safe_load(JOB)}
    job |= {key: yaml.safe_load(text) for key, text in changes.items() if text}
    job["checkpoint"] = {"at_end": True}
    job["train"] = {"global_batch": 4, "steps": 2, "sample_tokens": 4}
    (folder / "job.yaml").write_text(yaml.safe_dump(job))
    done = alone(folder)
    assert done.returncode == 0, done.stderr
    found = re.findall(r"^next     fastserve (.*)$", done.stdout, re.M)
    assert found == [then]
    words = shlex.split(then.replace("FILE", "table.csv"))
    command = [sys.executable, "-m", "launch.cli", *words]
    done = run(command, 60, cwd=folder, env=environ(folder))
    assert done.returncode == 0 and done.stdout, done.stderr


def test_faults_before_the_start_as_json(folder: Path) -> None:
    words = [sys.executable, "-m", "launch.cli", "run", "job.yaml", "--json"]
    done = run([*words, "--set=train.stepz=1"], 60, cwd=folder, env=environ(folder))
    assert done.returncode == 2 and done.stderr == ""
    error, end = events(done.stdout)
    assert error["type"] == "ConfigError" and "train.stepz" in error["faults"][0]
    assert end == {**end, "event": "end", "state": "failed", "status": 2}


def test_a_plan_as_json(folder: Path) -> None:
    words = [sys.executable, "-m", "launch.cli", "run", "job.yaml", "--json", "-n", "1"]
    done = run([*words, "--dry-run"], 60, cwd=folder, env=environ(folder))
    (plan,) = events(done.stdout)
    assert plan["event"] == "plan" and plan["command"][-1] == "--json"
    assert "prediction:\n" in plan["text"], plan["text"]


@pytest.mark.parametrize(("variable", "value"), [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_terminals_without_colours(folder: Path, variable: str, value: str) -> None:
    words = [sys.executable, "-m", "fastserve", "job.yaml", *LARGER]
    came, status = on_terminal(folder, words, **{variable: value})
    assert status == 0
    assert not re.search(r"\x1b\[[0-9;]*m", came)
    assert ("\x1b[K" in came) == (variable == "NO_COLOR")  # dumb ones can't redraw


def test_the_command_on_a_terminal_that_cannot_redraw(folder: Path) -> None:
    words = [sys.executable, "-m", "launch.cli", "run", "job.yaml", "-n", "1"]
    came, status = on_terminal(folder, words, TERM="dumb")
    assert status == 0
    assert "loss" in came and "\x1b" not in came


@pytest.mark.parametrize(
    ("where", "said"),
    [(">/dev/full", "standard output can't be written any more"), (">&-", "")],
)
def test_output_that_goes_nowhere_ends_nothing(
    folder: Path, where: str, said: str
) -> None:
    words = f"{sys.executable} -m launch.cli run job.yaml -n 1 {where}"
    done = run(["sh", "-c", words], 120, cwd=folder, env=environ(folder))
    assert done.returncode == 0, done.stderr
    assert done.stderr.count(said or "can't be written") == bool(said)
    assert "Traceback" not in done.stderr
    assert (folder / "runs/tiny/done.json").is_file()


def test_a_terminal_that_is_gone_ends_nothing(folder: Path) -> None:
    ours, theirs = pty.openpty()
    words = [sys.executable, "-m", "launch.cli", "run", "job.yaml", "-n", "1"]
    with Started(
        words, cwd=folder, env=environ(folder), stdin=subprocess.DEVNULL, stdout=theirs
    ) as started:
        os.close(theirs)
        os.read(ours, 1)
        os.close(ours)
        assert started.process.wait(120) == 0
    assert (folder / "runs/tiny/done.json").is_file()


def test_what_an_mpi_tells_of_itself() -> None:
    said = "Open MPI v5.0.11, package: Open MPI x@y Distribution, ident: 5.0.11"
    assert library_name(said) == "Open MPI 5.0.11"
    said = "MPICH Version:      4.3.2\nMPICH Release date: x"
    assert library_name(said) == "MPICH 4.3.2"
    said = "Intel(R) MPI Library 2021.17 for Linux* OS\n"
    assert library_name(said) == "Intel(R) MPI Library 2021.17 for Linux* OS"


def test_secrets_stay_out_of_the_command() -> None:
    words = ["python", "--set", "launch.env.KEY=s3", "--set=launch.env={A: s3}"]
    words += ["launch={env: {A: s3}}", "train.steps=3"]
    assert public_command(words) == [
        *("python", "--set", "launch.env.KEY=...", "--set=launch.env=..."),
        *("launch=...", "train.steps=3"),
    ]
