"""Whole jobs: from a YAML file to a run folder, on one process and under both MPIs."""

from __future__ import annotations

import faulthandler
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from mpi_environments import Started, mpi_command, require, run, variables
from safetensors.numpy import load_file

from fastserve import trained, worker
from fastserve.comm.single import SingleCommunicator
from fastserve.data.end_token import WithEnd
from fastserve.data.tokenizers import CharTokenizer
from fastserve.errors import CheckpointError, DataError
from fastserve.summary import opening
from fastserve.training import checkpoint
from fastserve.training.records import start_logs

JOB = """
name: tiny
seed: 1
model: {type: gpt, n_layer: 2, n_head: 2, n_embd: 16, block_size: 16, dropout: 0.1}
data: {type: text, source: text.txt, validation_split: 0.2}
train: {global_batch: 6, steps: 12, eval_every: 5, log_every: 2, clip_norm: 1.0,
        sample_tokens: 20}
optimizer: {type: adamw, lr: 3e-3}
schedule: {type: cosine, warmup_steps: 2}
checkpoint: {every: 4, keep: 9}
comm: {check_every: 3}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "job.yaml").write_text(JOB)
    (tmp_path / "text.txt").write_text("Pack my box with five dozen liquor jugs. " * 90)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def rank_program(
    folder: Path, *arguments: str, **env: str
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fastserve", "job.yaml", *arguments]
    return run(command, 60, cwd=folder, env=variables(**env))


def launch(
    folder: Path, flavour: str, ranks: int, *arguments: str
) -> subprocess.CompletedProcess[str]:
    """Run ``fastserve run`` of an environment, as a user does."""
    python = str(require(flavour) / "bin" / "python")
    command = [python, "-m", "launch.cli", "run", "job.yaml", "-n", str(ranks)]
    env = variables(FASTSERVE_CACHE_DIR=str(folder / "cache"))
    return run([*command, "--launcher", flavour, *arguments], 90, cwd=folder, env=env)


def weights(run_dir: Path, step: int = 12) -> dict[str, np.ndarray]:
    path = run_dir / f"checkpoints/step-{step:08d}/model.safetensors"
    found: dict[str, np.ndarray] = load_file(path)
    return found


def metrics(run_dir: Path) -> list[dict[str, Any]]:
    text = (run_dir / "metrics.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def losses(run_dir: Path) -> list[float]:
    return [line.get("loss", line.get("val_loss")) for line in metrics(run_dir)]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of the job on one process."""
    folder = tmp_path_factory.mktemp("alone")
    (folder / "job.yaml").write_text(JOB)
    (folder / "text.txt").write_text("Pack my box with five dozen liquor jugs. " * 90)
    done = rank_program(folder)
    assert done.returncode == 0, done.stderr
    (folder / "out.txt").write_text(done.stdout)
    return folder / "runs/tiny"


def test_what_a_run_leaves(alone: Path) -> None:
    found = {p.relative_to(alone).as_posix() for p in alone.rglob("*") if p.is_file()}
    steps = {f"checkpoints/step-{s:08d}" for s in (4, 8, 12)}
    files = {"model.safetensors", "optimizer.safetensors", "state.json"}
    assert found == {
        ".lock",
        *(f"{step}/{file}" for step in steps for file in files),
        "checkpoints/latest",
        "config.yaml",
        "done.json",
        "environment.json",
        "logs/rank-00000.log",
        "metrics.csv",
        "metrics.jsonl",
        "status.json",
        "tokenizer.json",
    }
    lines = metrics(alone)
    assert [line["step"] for line in lines] == [2, 4, 5, 6, 8, 10, 10, 12, 12]
    assert lines[-1]["val_loss"] < lines[2]["val_loss"]
    assert {"loss", "grad_norm", "learning_rate", "tokens_per_s"} <= lines[0].keys()
    assert json.loads((alone / "done.json").read_text())["steps"] == 12


def test_what_a_run_shows(alone: Path) -> None:
    out = (alone.parents[1] / "out.txt").read_text()
    assert "global 6 = 1 rank x 6 x 1 accumulation" in out
    assert "step  2/12  loss" in out
    assert "val_loss" in out
    assert "2-gram model's" in out
    assert "sample\n" in out
    assert "run      runs/tiny" in out
    assert "\x1b" not in out


def test_generate_and_evaluate(alone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(alone.parents[1])
    text = trained.generate("runs/tiny", "Pack", 10, seed=3)
    assert text.startswith("Pack")
    assert len(text) == 14
    assert text == trained.generate("runs/tiny", "Pack", 10, seed=3)
    assert trained.evaluate("runs/tiny")["loss"] == pytest.approx(
        metrics(alone)[-1]["val_loss"], rel=1e-6
    )
    with pytest.raises(DataError) as error:
        trained.generate("runs/tiny", "Pack Ω", 10)
    assert "'Ω' (U+03A9) at character 5" in str(error.value)
    with pytest.raises(CheckpointError):
        trained.generate("runs", "Pack", 10)


def test_generate_needs_no_text(alone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(alone.parents[2])
    assert trained.generate(str(alone), "my", 5).startswith("my")


def test_a_new_run_refuses_to_replace_checkpoints(folder: Path) -> None:
    assert rank_program(folder, "--set", "train.steps=5").returncode == 0
    before = losses(folder / "runs/tiny")
    again = rank_program(folder)
    assert again.returncode == 2
    assert "--resume auto" in again.stderr
    assert "Traceback" not in again.stderr
    assert losses(folder / "runs/tiny") == before
    (folder / "runs/tiny/report.html").write_text("of the run that is replaced")
    assert rank_program(folder, "--overwrite").returncode == 0
    assert metrics(folder / "runs/tiny")[-1]["step"] == 12
    assert not (folder / "runs/tiny/report.html").exists()


def test_a_run_that_failed_tells_how_many_steps_it_made(folder: Path) -> None:
    """Also between two looks of status.json."""
    words = ("--set", "optimizer={type: sgd, lr: 1e30}", "--set", "train.log_every=99")
    failed = rank_program(folder, *words)
    assert failed.returncode == 1
    made = int(re.findall(r"step (\d+): expected a finite loss", failed.stderr)[0]) - 1
    run_dir = folder / "runs/tiny"
    status = json.loads((run_dir / "status.json").read_text())
    error = json.loads((run_dir / "errors/rank-00000.json").read_text())
    assert 1 <= made < 12
    assert (status["state"], status["step"], error["step"]) == ("failed", made, made)


def test_overwrite_empties_what_links_lead_to(folder: Path) -> None:
    """As users make them who keep checkpoints on another disk."""
    assert rank_program(folder, "--set", "train.steps=8").returncode == 0
    place, run_dir = folder / "scratch", folder / "runs/tiny"
    (run_dir / "checkpoints").rename(place)
    (run_dir / "checkpoints").symlink_to(place)
    (run_dir / "metrics.csv").unlink(missing_ok=True)
    (run_dir / "metrics.csv/inside").mkdir(parents=True)
    again = rank_program(folder, "--overwrite", "--set", "train.steps=3")
    assert again.returncode == 0, again.stderr
    assert (run_dir / "checkpoints").is_symlink()
    assert {path.name for path in place.iterdir()} == {"latest", "step-00000003"}


def test_overwrite_says_what_it_cannot_remove(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(shutil, "rmtree", refused)
    (tmp_path / "checkpoints/step-00000001").mkdir(parents=True)
    unused: Any = None
    with pytest.raises(CheckpointError, match="Permission denied"):
        worker._start_folder(tmp_path, unused, unused, SingleCommunicator(), True)


def test_a_run_that_came_meanwhile_is_not_replaced(folder: Path) -> None:
    """Another job of this name trains while this one still makes its data."""
    kept = folder / "runs/own/checkpoints/step-00000002"
    source = OWN.replace(
        "def make_data(rows):\n",
        f"def make_data(rows):\n    __import__('os').makedirs({str(kept)!r})\n",
    )
    (folder / "own.py").write_text(source)
    (folder / "job.yaml").write_text(PYTHON_JOB)
    late = rank_program(folder)
    assert late.returncode == 2
    assert "expected a run folder without checkpoints" in late.stderr
    assert kept.is_dir()


def test_copies_that_the_user_made_are_no_checkpoints(folder: Path) -> None:
    assert rank_program(folder).returncode == 0
    saved = folder / "runs/tiny/checkpoints"
    copies = [saved / "step-backup", saved / "step-00000008-good"]
    for copy in copies:
        shutil.copytree(saved / "step-00000008", copy)
    start = ["--resume", "runs/tiny/checkpoints/step-00000004", "--overwrite"]
    again = rank_program(folder, *start, "--set", "train.steps=5")
    assert again.returncode == 0, again.stderr
    assert all((copy / "state.json").is_file() for copy in copies)
    assert not (saved / "step-00000012").exists()


@pytest.mark.parametrize("stop", [4, 7])
def test_resume_goes_on_to_the_same_bits(folder: Path, alone: Path, stop: int) -> None:
    keys = ["--set", "schedule.decay_steps=12"]
    first = rank_program(folder, "--set", f"train.steps={stop}", *keys)
    assert first.returncode == 0, first.stderr
    second = rank_program(folder, "--resume", "auto", *keys)
    assert second.returncode == 0, second.stderr
    assert f"after step {stop}" in second.stdout
    both = r"^trained  0:\d\d, 0:\d\d of it since the resume$"
    assert re.search(both, second.stdout, re.M)
    resumed, whole = weights(folder / "runs/tiny"), weights(alone)
    assert resumed.keys() == whole.keys()
    for name in whole:
        np.testing.assert_array_equal(resumed[name], whole[name], err_msg=name)
    tail = [line["step"] for line in metrics(folder / "runs/tiny")]
    assert tail == sorted(tail)
    assert tail.count(12) == 2


def test_a_resume_of_a_complete_run_says_so(folder: Path, alone: Path) -> None:
    shutil.copytree(alone, folder / "runs/tiny")
    before = weights(alone)
    done = rank_program(folder, "--resume", "auto")
    assert done.returncode == 0, done.stderr
    steps = "resume   after step 12: all 12 steps are made; raise train.steps to go on"
    assert f"\n{steps}\n" in done.stdout
    nothing = r"^trained  0:\d\d before; nothing was left to do$"
    assert re.search(nothing, done.stdout, re.M)
    assert "time     " not in done.stdout
    for name, value in weights(folder / "runs/tiny").items():
        np.testing.assert_array_equal(value, before[name], err_msg=name)


def test_resume_from_an_earlier_step(folder: Path) -> None:
    assert rank_program(folder).returncode == 0
    start = ["--resume", "runs/tiny/checkpoints/step-00000004"]
    refused = rank_program(folder, *start)
    assert refused.returncode == 2
    assert "step-00000008, step-00000012" in refused.stderr
    other = rank_program(folder, *start, "--set", "name=other")
    assert other.returncode == 0, other.stderr
    again = rank_program(folder, *start, "--overwrite")
    assert again.returncode == 0, again.stderr
    for name in ("tiny", "other"):
        assert "after step 4" in (again if name == "tiny" else other).stdout
        saved = (folder / "runs" / name / "checkpoints").glob("step-*")
        assert {f.name for f in saved} >= {"step-00000008", "step-00000012"}
    one, two = weights(folder / "runs/tiny"), weights(folder / "runs/other")
    for key in one:
        np.testing.assert_array_equal(one[key], two[key])
    # nothing of a third run is mixed with what goes on in its folder
    kept = folder / "runs/third/checkpoints"
    (kept / "step-00000002").mkdir(parents=True)
    (kept / "base.safetensors").touch()
    refused = rank_program(folder, *start, "--set", "name=third")
    assert refused.returncode == 2
    assert "folder without checkpoints" in refused.stderr
    third = rank_program(folder, *start, "--set", "name=third", "--overwrite")
    assert third.returncode == 0, third.stderr
    assert not (kept / "step-00000002").exists()
    assert not (kept / "base.safetensors").exists()
    nowhere = rank_program(folder, "--resume", "runs/nowhere")
    assert nowhere.returncode == 2
    assert "--resume: expected a run folder" in nowhere.stderr


def test_every_nth_checkpoint_is_kept(folder: Path) -> None:
    keys = ["checkpoint={every: 2, keep: 1, keep_every: 6}", "train.eval_every=null"]
    done = rank_program(folder, *(word for key in keys for word in ("--set", key)))
    assert done.returncode == 0, done.stderr
    saved = (folder / "runs/tiny/checkpoints").glob("step-*")
    assert {int(path.name[5:]) for path in saved} == {6, 12}


def test_resume_with_another_plan_is_refused(folder: Path) -> None:
    assert rank_program(folder).returncode == 0
    other = rank_program(folder, "--resume", "auto", "--set", "train.global_batch=5")
    assert other.returncode == 2
    assert "global_batch" in other.stderr
    short = rank_program(folder, "--resume", "auto", "--set", "train.steps=5")
    assert short.returncode == 2
    assert "at most 5 steps" in short.stderr
    (folder / "text.txt").write_text("Another text, with other letters! " * 90)
    text = rank_program(folder, "--resume", "auto")
    assert text.returncode == 2
    assert "text that the run was started with" in text.stderr
    with pytest.raises(DataError, match=r"'A' \(U\+0041\) at character 0"):
        trained.evaluate("runs/tiny")


def test_a_run_folder_that_cannot_be_written(folder: Path) -> None:
    (folder / "file").write_text("")
    done = rank_program(folder, "--set", "run_dir=file/run")
    assert done.returncode == 2
    assert "expected to be able to write" in done.stderr
    assert "Traceback" not in done.stderr


def terminated(folder: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Run a long job, and send SIGTERM when it has made its first steps."""
    command = [sys.executable, "-m", "fastserve", "job.yaml"]
    more = ["--set", "train.steps=100000", "--set", "checkpoint.every=100000"]
    with Started([*command, *more], cwd=folder, env=variables(**env)) as started:
        path = folder / "runs/tiny/metrics.jsonl"
        limit = time.monotonic() + 60
        while not path.exists() and time.monotonic() < limit:
            time.sleep(0.05)
        started.process.terminate()
        return started.finish(30)


def test_sigterm_saves_and_says_so(folder: Path) -> None:
    done = terminated(folder)
    assert done.returncode == 75
    assert "next     the same command with --resume auto\n" in done.stdout
    steps = sorted((folder / "runs/tiny/checkpoints").glob("step-*"))
    assert len(steps) == 1


def interrupted(
    folder: Path, command: list[str], **env: str
) -> subprocess.CompletedProcess[str]:
    """Run a long job, and press Ctrl-C when it has made its first steps."""
    more = ["--set", "train.steps=100000", "--set", "checkpoint.every=100000"]
    words = [*command, "job.yaml", *more]
    with Started(words, cwd=folder, env=variables(**env)) as started:
        path = folder / "runs/tiny/metrics.jsonl"
        limit = time.monotonic() + 60
        while not path.exists() and time.monotonic() < limit:
            time.sleep(0.05)
        os.killpg(started.process.pid, signal.SIGINT)  # as a terminal does
        return started.finish(30)


def test_ctrl_c_saves_without_the_launcher(folder: Path) -> None:
    command = [sys.executable, "-m", "fastserve"]
    done = interrupted(folder, command)
    assert done.returncode == 75, done.stderr
    assert ", saved\n" in done.stdout
    assert "next     the same command with --resume auto\n" in done.stdout
    assert "the ranks finish their step and save; Ctrl-C again" in done.stderr
    (saved,) = (folder / "runs/tiny/checkpoints").glob("step-*")
    step = int(saved.name[5:])
    done = rank_program(folder, "--resume", "auto", "--set", f"train.steps={step + 1}")
    assert done.returncode == 0, done.stderr


def test_ctrl_c_can_be_left_alone(folder: Path) -> None:
    command = [sys.executable, "-m", "fastserve"]
    done = interrupted(folder, command, FASTSERVE_NO_SIGNALS="1")
    assert done.returncode == 130
    assert not list((folder / "runs/tiny/checkpoints").glob("step-*"))


def test_ctrl_c_saves_under_mpich(folder: Path) -> None:
    """Its mpirun passes SIGINT on, besides what the terminal sends: on a busy machine
    more than half a second later, so here they are one however far apart."""
    code = "from fastserve import worker as w; w._SAME_KEY = 60.0; exit(w.main())"
    done = interrupted(folder, mpi_command("mpich", 2, "-c", code))
    assert done.returncode == 75, done.stderr
    assert ", saved\n" in done.stdout
    assert "next     the same command with --resume auto\n" in done.stdout
    assert done.stderr.count("the ranks finish their step and save") == 1
    assert len(list((folder / "runs/tiny/checkpoints").glob("step-*"))) == 1


def test_ctrl_c_ends_all_under_open_mpi(folder: Path) -> None:
    """Its mpirun makes SIGTERM of it, and SIGKILL a quarter of a second later, so that
    a save isn't certain; what is there must be whole."""
    done = interrupted(folder, mpi_command("openmpi", 2, "-m", "fastserve"))
    assert done.returncode != 0
    for saved in (folder / "runs/tiny/checkpoints").glob("step-*"):
        assert checkpoint.read_state(saved)


@pytest.mark.parametrize("between", [0.0, 0.3], ids=["same key", "second key"])
def test_a_second_ctrl_c_ends_at_once(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], between: float
) -> None:
    monkeypatch.setattr(worker, "_SAME_KEY", 0.2 if between else 60.0)
    monkeypatch.delenv("FASTSERVE_JOB", raising=False)
    trainer = SimpleNamespace(stop_requested=False)
    numbers = signal.SIGINT, signal.SIGTERM, signal.SIGUSR1
    before = [signal.getsignal(number) for number in numbers]
    try:
        worker._catch_signals(trainer, SingleCommunicator())
        os.kill(os.getpid(), signal.SIGINT)
        assert trainer.stop_requested
        time.sleep(between)
        with pytest.raises(KeyboardInterrupt) if between else nullcontext():
            os.kill(os.getpid(), signal.SIGINT)
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
    assert capfd.readouterr().err.count("Ctrl-C again") == 1


def test_the_launcher_alone_handles_ctrl_c(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTSERVE_JOB", "1")
    numbers = signal.SIGINT, signal.SIGTERM, signal.SIGUSR1
    before = [signal.getsignal(number) for number in numbers]
    try:
        worker._catch_signals(SimpleNamespace(), SingleCommunicator())
        assert signal.getsignal(signal.SIGINT) is before[0]
        assert signal.getsignal(signal.SIGUSR1) is not before[2]
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def test_signals_can_be_left_alone(folder: Path) -> None:
    done = terminated(folder, FASTSERVE_NO_SIGNALS="1")
    assert done.returncode == -signal.SIGTERM
    assert not list((folder / "runs/tiny/checkpoints").glob("step-*"))


def test_warnings_come_from_all_ranks_and_messages_if_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def shown(wanted: str | None) -> list[str]:
        if wanted:
            monkeypatch.setenv("FASTSERVE_LOG_RANKS", wanted)
        log = logging.getLogger("fastserve")
        before = log.handlers[:], log.level, log.propagate
        for rank in (0, 3):
            comm = SingleCommunicator()
            comm.rank, comm.size, comm.host = rank, 4, "node1"
            start_logs(tmp_path, comm)
            log.info("a message")
            log.warning("a warning")
        for handler in list(log.handlers):
            log.removeHandler(handler)
            handler.close()
        faulthandler.disable()
        log.handlers[:], log.level, log.propagate = before
        return capfd.readouterr().err.splitlines()

    warnings = ["[rank 0 node1] a warning", "[rank 3 node1] a warning"]
    assert shown(None) == warnings
    assert [line for line in shown("all") if "warning" not in line] == [
        "[rank 0 node1] a message",
        "[rank 3 node1] a message",
    ]
    kept = (tmp_path / "rank-00003.log").read_text()
    assert kept.count("a message") == kept.count("a warning") == 2


BAD_JOBS = [
    ("data.source=nowhere.txt", "nowhere.txt"),
    ("data.source=short.txt", "short.txt"),
    ("data.source=latin.txt", "UTF-8"),
    ("model.n_head=3", "n_head"),
    ("train.stepz=3", "did you mean 'steps'"),
    ("model.block_size=4000", "block"),
    ("data.validation_split=0.001", "validation: expected at least"),
]


@pytest.mark.parametrize(("override", "part"), BAD_JOBS)
def test_a_bad_job_leaves_nothing(folder: Path, override: str, part: str) -> None:
    (folder / "short.txt").write_text("short")
    (folder / "latin.txt").write_bytes(b"caf\xe9 " * 200)
    done = rank_program(folder, "--set", override)
    assert done.returncode == 2
    assert part in done.stderr
    assert "Traceback" not in done.stderr
    assert not (folder / "runs").exists()


def test_a_sequential_job_from_arrays(folder: Path) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((90, 6))
    y = (x @ rng.standard_normal((6, 3))).argmax(axis=1)
    np.savez(folder / "data.npz", x_train=x, y_train=y)
    (folder / "job.yaml").write_text(
        """
name: table
model:
  type: sequential
  layers:
    - Dense: {units: 16, activation: relu}
    - Dense: {units: 3, activation: softmax}
  loss: categorical_crossentropy
  metrics: [accuracy]
data: {type: arrays, file: data.npz, one_hot: 3, validation_split: 0.2}
train: {global_batch: 10, epochs: 30}
optimizer: {type: adam, lr: 0.01}
"""
    )
    done = rank_program(folder)
    assert done.returncode == 0, done.stderr
    assert metrics(folder / "runs/table")[-1]["val_accuracy"] > 0.8
    assert trained.evaluate("runs/table")["accuracy"] > 0.8
    with pytest.raises(CheckpointError) as error:
        trained.generate("runs/table", "a", 3)
    assert "language model" in str(error.value)


def test_a_job_from_token_files(folder: Path) -> None:
    tokens = np.tile(np.arange(9, dtype=np.uint16), 60)
    tokens.tofile(folder / "train.bin")
    np.save(folder / "validation.npy", tokens[:200])
    data = "{type: tokens, train: train.bin, validation: validation.npy, vocab_size: 9}"
    lines = [f"data: {data}" if "data:" in line else line for line in JOB.splitlines()]
    (folder / "job.yaml").write_text("\n".join(lines))
    done = rank_program(folder, "--set", "train.steps=200")
    assert done.returncode == 0, done.stderr
    assert metrics(folder / "runs/tiny")[-1]["val_loss"] < 1.0 < np.log(9)
    assert trained.evaluate("runs/tiny")["loss"] < 1.0
    with pytest.raises(CheckpointError) as error:
        trained.generate("runs/tiny", "a", 3)
    assert "tokenizer.json" in str(error.value)
    refused = rank_program(folder, "--overwrite", "--set", "data.vocab_size=8")
    assert refused.returncode == 2
    assert "8 at place 8" in refused.stderr


PYTHON_JOB = """
name: own
model: {type: python, file: own.py}
data: {type: python, file: own.py, arguments: {rows: 40}}
train: {global_batch: 10, epochs: 2}
"""
OWN = """
import numpy as np, fastserve as fs
def make_data(rows):
    x = np.random.default_rng(0).standard_normal((rows, 3))
    return (x, x.sum(axis=1, keepdims=True)), None
def make_model():
    model = fs.models.Sequential([fs.layers.Dense(1)])
    model.compile(loss="mse")
    return model
"""


def test_a_job_of_the_users_own_functions(folder: Path) -> None:
    (folder / "job.yaml").write_text(PYTHON_JOB)
    (folder / "own.py").write_text(OWN)
    done = rank_program(folder)
    assert done.returncode == 0, done.stderr
    (folder / "own.py").write_text(OWN.replace("def make_data", "def other"))
    done = rank_program(folder, "--overwrite")
    assert done.returncode == 2
    assert "make_data" in done.stderr


# -- under MPI -------------------------------------------------------------------------

both = pytest.mark.parametrize("flavour", ["openmpi", "mpich"])


@pytest.mark.mpi
@both
@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_ranks_train_the_same(
    flavour: str, ranks: int, folder: Path, alone: Path
) -> None:
    done = launch(folder, flavour, ranks)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("sample\n") == 1
    run_dir = folder / "runs/tiny"
    np.testing.assert_allclose(losses(run_dir), losses(alone), rtol=2e-4)
    record = json.loads((run_dir / "done.json").read_text())
    assert record["ranks"] == ranks


@pytest.mark.mpi
@both
def test_mpirun_without_the_launcher(flavour: str, folder: Path, alone: Path) -> None:
    done = run(mpi_command(flavour, 2, "-m", "fastserve", "job.yaml"), 90, cwd=folder)
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(losses(folder / "runs/tiny"), losses(alone), rtol=2e-4)


@pytest.mark.mpi
@both
def test_resume_on_another_number_of_ranks(
    flavour: str, folder: Path, alone: Path
) -> None:
    keys = ["--set", "schedule.decay_steps=12"]
    assert launch(folder, flavour, 3, "--set", "train.steps=7", *keys).returncode == 0
    done = launch(folder, flavour, 2, "--resume", "auto", *keys)
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(
        losses(folder / "runs/tiny")[-1], losses(alone)[-1], rtol=2e-4
    )


FAILING = """
import numpy as np, os, signal, sys, time, fastserve as fs
class Bad(fs.layers.Layer):
    n = 0
    def forward(self, x, training=False):
        Bad.n += 1
        if Bad.n == 3 and fs.world().rank == 1:
            open("began", "w").close()
            HOW
        return x
    def backward(self, dy, done=None):
        return dy
def make_data():
    x = np.random.default_rng(0).standard_normal((400, 3))
    return (x, x.sum(axis=1, keepdims=True)), None
def make_model():
    model = fs.models.Sequential([fs.layers.Dense(1), Bad()])
    model.compile(loss="mse")
    return model
"""
FAILING_JOB = PYTHON_JOB.replace(", arguments: {rows: 40}", "").replace(
    "own.py", "bad.py"
)
FAILURES = [
    ("raise RuntimeError('boom on purpose')", "RuntimeError: boom on purpose", 1),
    ("sys.exit(3)", "", 3),
    ("os._exit(4)", "", None),
    ("os.kill(os.getpid(), signal.SIGKILL)", "", None),
]


@pytest.mark.mpi
@both
@pytest.mark.parametrize(("how", "text", "status"), FAILURES)
def test_a_failing_rank_ends_the_job(
    flavour: str, how: str, text: str, status: int | None, folder: Path
) -> None:
    (folder / "job.yaml").write_text(FAILING_JOB)
    (folder / "bad.py").write_text(FAILING.replace("HOW", how))
    done = launch(folder, flavour, 3)
    assert time.time() - (folder / "began").stat().st_mtime < 20
    assert done.returncode != 0
    if status is not None:
        assert done.returncode == status
    assert "MPI_ABORT was invoked" not in done.stderr or not text
    if text:
        assert done.stderr.count("boom on purpose") == 2  # raised here, and said
        assert "rank 1" in done.stderr


@pytest.mark.mpi
@both
def test_a_rank_that_is_stuck_is_named(flavour: str, folder: Path) -> None:
    (folder / "job.yaml").write_text(FAILING_JOB)
    (folder / "bad.py").write_text(FAILING.replace("HOW", "time.sleep(100)"))
    done = launch(folder, flavour, 3, "--set", "comm.timeout=2")
    assert time.time() - (folder / "began").stat().st_mtime < 30
    assert done.returncode == 1
    assert "within 2 s" in done.stderr
    assert "missing: rank 1 on" in done.stderr
    assert "raise comm.timeout" in done.stderr


@pytest.mark.mpi
@both
def test_a_slow_rank_is_waited_for(flavour: str, folder: Path) -> None:
    (folder / "job.yaml").write_text(FAILING_JOB)
    (folder / "bad.py").write_text(FAILING.replace("HOW", "time.sleep(4)"))
    done = launch(folder, flavour, 2, "--set", "comm.timeout=20")
    assert done.returncode == 0, done.stderr


@pytest.mark.mpi
@both
def test_a_bad_job_is_said_once_under_mpi(flavour: str, folder: Path) -> None:
    (folder / "short.txt").write_text("short")
    done = launch(folder, flavour, 3, "--set", "data.source=short.txt")
    assert done.returncode == 2
    assert done.stderr.count("expected a text") == 1
    assert "no rank said why" not in done.stderr
    assert "MPI_ABORT" not in done.stderr
    assert "Traceback" not in done.stderr
    assert not (folder / "runs").exists()


UNFIT = """
import numpy as np
import fastserve as fs

def data():
    x = np.ones((8, 3), np.float32)
    return (x, x), (x, x)

def model():
    return fs.models.Sequential([fs.layers.Dense(2, input_shape=(3,))])
"""
UNFIT_JOBS = {
    "compile": "{type: python, file: unfit.py, function: model}",
    "targets": "{type: sequential, layers: [Dense: {units: 2}], loss: mse}",
    "arguments": "{type: sequential, layers: [Dense: {unitz: 2}], loss: mse}",
}


@pytest.mark.mpi
@both
@pytest.mark.parametrize("what", UNFIT_JOBS)
def test_what_does_not_fit_is_said_once_under_mpi(
    what: str, flavour: str, folder: Path
) -> None:
    (folder / "unfit.py").write_text(UNFIT)
    (folder / "job.yaml").write_text(
        f"name: tiny\nmodel: {UNFIT_JOBS[what]}\n"
        "data: {type: python, file: unfit.py, function: data}\n"
        "train: {steps: 2, global_batch: 4}\n"
    )
    done = launch(folder, flavour, 3)
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("expected") == done.stderr.count("to do: ") == 1
    assert what.removesuffix("s") in done.stderr, done.stderr
    assert not (folder / "runs").exists()
    done = launch(folder, flavour, 3, "--json")
    found = [json.loads(line)["event"] for line in done.stdout.splitlines()]
    assert found == ["error", "end"]


def test_one_rank_loads_no_mpi(folder: Path) -> None:
    code = (
        "import sys; from fastserve.worker import main; "
        "status = main(['job.yaml', '--set', 'train.steps=2']); "
        "assert not [m for m in sys.modules if m.startswith('mpi4py')]; "
        "sys.exit(status)"
    )
    done = run([sys.executable, "-c", code], 60, cwd=folder, env=variables())
    assert done.returncode == 0, done.stderr


@pytest.mark.mpi
@both
def test_silent_worlds_of_one_are_refused(flavour: str, folder: Path) -> None:
    """Ranks that the launcher of another MPI started don't see each other."""
    done = rank_program(folder, FASTSERVE_RANKS="2")
    assert done.returncode == 2
    assert "2 ranks" in done.stderr
    assert not (folder / "runs").exists()
    other = {"openmpi": "mpich", "mpich": "openmpi"}[flavour]
    command = mpi_command(other, 2, "-m", "fastserve", "job.yaml")
    command[command.index(str(require(other) / "bin" / "python"))] = str(
        require(flavour) / "bin" / "python"
    )
    done = run(command, 60, cwd=folder, env=variables())
    assert done.returncode != 0
    assert not (folder / "runs").exists()


SLOW = """
import os, time
import numpy as np
import fastserve as fs
class Wait(fs.layers.Layer):
    def forward(self, x, training=False):
        time.sleep(float(os.environ[f"WAIT_{fs.comm.world().rank}"]))
        return x
    def backward(self, dy, done=None):
        return dy
def make_data():
    x = np.random.default_rng(0).standard_normal((400, 3))
    return (x, x.sum(axis=1, keepdims=True)), None
def make_model():
    model = fs.models.Sequential([fs.layers.Dense(1), Wait()])
    model.compile(loss="mse")
    return model
"""


@pytest.mark.mpi
@both
def test_the_slowest_rank_is_named(flavour: str, folder: Path) -> None:
    (folder / "job.yaml").write_text(FAILING_JOB)
    (folder / "bad.py").write_text(SLOW)
    # so long that a rank that has to wait for a core, too, makes no difference
    keys = ["--set", "train={global_batch: 12, steps: 22}", "--set"]
    uneven = "launch.env={WAIT_0: '0.2', WAIT_1: '0.2', WAIT_2: '0.3'}"
    done = launch(folder, flavour, 3, *keys, uneven)
    assert done.returncode == 0, done.stderr
    warned = [line for line in done.stderr.splitlines() if "slowest" in line]
    assert len(warned) == 1
    assert warned[0].startswith("[rank 0 ")
    assert "rank 2 on" in warned[0]
    costs = int(warned[0].partition("costs ")[2].partition("%")[0])
    assert 15 <= costs <= 40
    log = folder / "runs/own/logs/rank-00000.log"
    assert "rank 2 on" in log.read_text()
    equal = "launch.env={WAIT_0: '0.3', WAIT_1: '0.3', WAIT_2: '0.3'}"
    done = launch(folder, flavour, 3, *keys, equal, "--overwrite")
    assert done.returncode == 0, done.stderr
    assert "slowest" not in done.stderr


def test_generation_without_a_prompt_or_with_a_strange_one() -> None:
    tokenizer = CharTokenizer("abc")
    with pytest.raises(DataError, match=r"add one, such as --prompt c$"):
        trained._prompt(tokenizer, "")
    with pytest.raises(DataError, match=r"^--prompt: (.|\n)*'d' \(U\+0064\)"):
        trained._prompt(tokenizer, "ad")
    assert trained._prompt(CharTokenizer.train("\nThe "), "") == [0]
    assert opening(CharTokenizer.train("\nThe ")) == "'The '"
    assert opening(WithEnd(CharTokenizer("abc"))) == "c"


@pytest.mark.mpi
@pytest.mark.parametrize("flavour", ["openmpi", "mpich"])
def test_secrets_of_the_environment_are_not_stored(flavour: str, folder: Path) -> None:
    (folder / "job.yaml").write_text(JOB + "launch: {env: {TOKEN: hunter2}}\n")
    done = launch(folder, flavour, 2)
    assert done.returncode == 0, done.stderr
    assert "hunter2" not in done.stdout + done.stderr
    for path in (folder / "runs").rglob("*"):
        assert path.is_dir() or b"hunter2" not in path.read_bytes(), path


@pytest.mark.mpi
def test_secrets_are_in_no_file_and_no_output(folder: Path) -> None:
    """Of a job that ends well and one that fails; files have the modes of the umask."""
    (folder / "job.yaml").write_text(JOB + "launch: {env: {TOKEN: hunter2}}\n")
    given = ("--set", "launch.env.OTHER=hunter3")
    failing = ("--overwrite", "--set", "optimizer.lr=1e30", "--set", "name=failing")
    before = os.umask(0o027)
    try:
        done = [
            launch(folder, "openmpi", 2, *given, "--trace"),
            launch(folder, "openmpi", 2, *given, *failing),
        ]
        assert [job.returncode for job in done] == [0, 1], done
        done += [
            command(folder, "openmpi", *words)
            for words in (
                ("report", "runs/tiny"),
                ("report", "runs/failing"),
                ("runs",),
                ("check", "job.yaml", *given),
                ("submit", "job.yaml", "--print"),
                ("run", "job.yaml", "--dry-run", *given),
            )
        ]
    finally:
        os.umask(before)
    for each in done:
        assert "hunter" not in each.stdout + each.stderr, each.args
    assert [each.returncode for each in done[2:]] == [0] * 6, done
    found = set()
    for path in (folder / "runs").rglob("*"):
        found.add(path.name)
        assert path.is_dir() or b"hunter" not in path.read_bytes(), path
        wanted = 0o750 if path.is_dir() else 0o640
        assert path.stat().st_mode & 0o777 == wanted, path
    assert found >= {
        *("environment.json", "trace.json", "report.html", "status.json"),
        *("metrics.jsonl", "config.yaml", "rank-00001.log", "rank-00000.json"),
    }


def command(
    folder: Path, flavour: str, *words: str
) -> subprocess.CompletedProcess[str]:
    python = str(require(flavour) / "bin" / "python")
    return run([python, "-m", "launch.cli", *words], 60, cwd=folder, env=variables())
