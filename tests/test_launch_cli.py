"""The ``fastserve`` command: what it prints, refuses and passes on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from mpi_environments import FLAVOURS, environments, mpi_command, run, variables

import fastserve
from fastserve import environment
from fastserve.errors import LaunchError
from launch import blas, cli, environment_report

JOB = """
name: quick
model: {type: gpt, n_layer: 1, n_head: 2, n_embd: 16, block_size: 16}
data: {type: text, source: pydoc-topics, tokenizer: char}
train: {global_batch: 32, micro_batch: 16, steps: 4}
launch: {ranks: 2}
"""


@pytest.fixture
def job(tmp_path: Path) -> Path:
    path = tmp_path / "job.yaml"
    path.write_text(JOB)
    return path


def command(
    folder: Path, *arguments: object, **env: str
) -> subprocess.CompletedProcess[str]:
    """Run the command in a folder; the kernel family is given, to save measuring it."""
    words = [sys.executable, "-m", "launch.cli", *map(str, arguments)]
    env = {"OPENBLAS_CORETYPE": "Haswell", **env}
    return run(words, 60, cwd=folder, env=variables(**env))


def test_check_prints_the_plan(job: Path) -> None:
    done = command(job.parent, "check", "job.yaml", "--set", "train.global_batch=64")
    assert done.returncode == 0, done.stderr
    assert "job.yaml: no faults" in done.stdout
    assert "global 64 = 2 ranks x 16 x 2 accumulation" in done.stdout
    assert "threads     1 per rank" in done.stdout


def test_preflight_looks_at_hosts_without_a_job(tmp_path: Path) -> None:
    done = command(tmp_path, "preflight", "--json")
    report = json.loads(done.stdout)
    rows = {row["check"]: row for row in report["checks"]}
    assert {"ssh", "versions", "cores", "memory", "disk", "run folder"} <= set(rows)
    assert not {"data files", "model"} & set(rows)
    assert rows["run folder"]["state"] == "ok", rows
    assert (report["job"], list(tmp_path.iterdir())) == ([], [])
    done = command(tmp_path, "preflight", "--set", "seed=3")
    assert done.returncode == 2
    assert "expected the job that --set changes" in done.stderr


def test_a_resume_from_what_is_no_run_starts_nothing(job: Path) -> None:
    run_dir = job.parent / "runs" / "quick"
    done = command(job.parent, "run", "job.yaml", "--resume", "runs/quik")
    assert done.returncode == 2
    assert "expected the folder of a run" in done.stderr
    run_dir.mkdir(parents=True)
    (run_dir / "config.yaml").write_text(JOB)
    done = command(job.parent, "run", "job.yaml", "--resume", "runs/quik")
    assert "did you mean runs/quick?" in done.stderr
    done = command(job.parent, "run", "job.yaml", "--resume", "runs/quick")
    assert done.returncode == 2
    assert "runs/quick, a run without checkpoints" in done.stderr
    assert [path.name for path in run_dir.iterdir()] == ["config.yaml"]


def test_preflight_of_a_job_changes_nothing(job: Path) -> None:
    done = command(job.parent, "preflight", "job.yaml", "-n", 1)
    assert "run folder  ok    writable" in done.stdout, done.stderr
    assert list(job.parent.iterdir()) == [job]


def test_the_dry_run_starts_nothing(job: Path) -> None:
    flags = ["--set", "seed=3", "--resume", "auto", "--dry-run"]
    done = command(job.parent, "run", "job.yaml", "-n", 4, *flags)
    assert done.returncode == 0, done.stderr
    last = done.stdout.strip().split("\n")[-1]
    assert last.endswith(f"-m fastserve {job} --set seed=3 --resume auto")
    assert " -n 4 " in last
    assert "rank 3      8 rows a step" in done.stdout
    assert [path.name for path in job.parent.iterdir()] == ["job.yaml"]


def test_one_rank_needs_no_mpi(job: Path) -> None:
    done = command(job.parent, "run", "job.yaml", "-n", 1, "--dry-run")
    last = done.stdout.strip().split("\n")[-1]
    assert last.strip() == f"{sys.executable} -m fastserve {job}"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "nowhere.yaml"], "where no file is"),
        (["run", "."], "a folder"),
        (["check", "job.yaml", "--set", "train.stps=3"], "did you mean 'steps'"),
        (["run", "job.yaml", "-n", "0"], "launch.ranks"),
        (["run", "job.yaml", "--launcher", "local"], "received: 2 ranks"),
        (["run", "job.yaml", "--launcher", "pigeon"], "pigeon"),
        (["rum"], "rum"),
    ],
)
def test_errors_of_users(arguments: list[str], message: str, job: Path) -> None:
    done = command(job.parent, *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_an_mpi_of_another_environment_is_refused(job: Path) -> None:
    own = next(name for name, at in environments().items() if at == Path(sys.prefix))
    other = next(name for name in FLAVOURS if name != own)
    done = command(job.parent, "run", "job.yaml", "--launcher", other)
    assert done.returncode == 2
    assert "whose library the ranks would load" in done.stderr


def test_a_run_with_checkpoints_is_not_replaced(job: Path) -> None:
    kept = job.parent / "runs" / "quick" / "checkpoints" / "step-00000002"
    kept.mkdir(parents=True)
    done = command(job.parent, "run", "job.yaml")
    assert done.returncode == 2
    assert "--resume auto" in done.stderr
    assert "--overwrite" in done.stderr
    assert kept.is_dir()


@pytest.mark.mpi
@pytest.mark.parametrize("flavour", FLAVOURS)
def test_ranks_of_another_launcher_are_refused(flavour: str, job: Path) -> None:
    words = mpi_command(flavour, 2, "-m", "launch.cli", "run", str(job))
    done = run(words, 60, cwd=job.parent)
    assert done.returncode == 2
    assert "2 copies of it, started by" in done.stderr
    assert not (job.parent / "runs").exists()


def test_the_schema_is_json(job: Path) -> None:
    done = command(job.parent, "schema")
    assert set(json.loads(done.stdout)["required"]) >= {"name", "model", "data"}


def test_the_report_names_what_a_bug_report_needs(tmp_path: Path) -> None:
    done = command(tmp_path, "env", FASTSERVE_CACHE_DIR=str(tmp_path))
    assert done.returncode == 0, done.stderr
    rows = dict(line.split(None, 1) for line in done.stdout.strip().split("\n"))
    assert rows["NumPy"] == environment.numpy_version()
    assert "1 threads" in rows["BLAS"]
    assert rows["kernel"].startswith("OPENBLAS_CORETYPE=Haswell; not measured")
    assert str(Path(sys.executable).parent) in rows["MPI"]
    assert rows["cores"].startswith(str(len(environment.affinity_cores())))


def test_the_report_works_without_an_mpi(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing() -> None:
        raise LaunchError("expected an MPI", "no mpirun anywhere", "install one")

    monkeypatch.setattr(environment_report, "find_mpi", nothing)
    assert "none (no mpirun anywhere)" in environment_report.environment_report()


def test_the_command_loads_neither_numpy_nor_mpi() -> None:
    code = (
        "import sys, launch.cli, fastserve.config;"
        "print(sorted({'numpy', 'mpi4py'} & set(sys.modules)))"
    )
    done = run([sys.executable, "-c", code], 60)
    assert done.stdout.strip() == "[]", done.stderr


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Stand in for the library behind the command, and collect what it is asked."""
    calls: list[Any] = []

    def generate(*arguments: Any) -> str:
        calls.append(arguments[:-1])
        arguments[-1]("the best checkpoint, of step 3")
        return "some text"

    def evaluate(*arguments: Any) -> dict[str, Any]:
        calls.append(arguments[:-1])
        arguments[-1]("the best checkpoint, of step 3")
        matrix = np.array([[12345, 0.5]])
        return {"loss": 1.25, "perplexity": 3.4903456, "matrix": matrix}

    modules = {
        "trained": SimpleNamespace(generate=generate, evaluate=evaluate),
        "bench.step": SimpleNamespace(
            step=lambda shape, **options: calls.append((shape, options))
        ),
    }
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, f"fastserve.{name}", module)
        if "." not in name:
            monkeypatch.setattr(fastserve, name, module, raising=False)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    monkeypatch.setattr(blas, "choose_kernel", lambda say, kind="": "Zen")
    monkeypatch.setattr(
        environment,
        "prepare_process",
        lambda kernel: calls.append(kernel),
    )
    return calls


def test_generate_passes_its_options_on(called: list[Any]) -> None:
    words = ["generate", "runs/x", "--prompt", "a", "--tokens", "5", "--top-k", "3"]
    result = CliRunner().invoke(cli.cli, [*words, "--temperature", "0", "--seed", "7"])
    assert result.stdout == "some text\n"
    assert result.stderr == "runs/x: the best checkpoint, of step 3\n"
    assert called == ["Zen", ("runs/x", "a", 5, 0.0, 3, None, 7, None)]


def test_evaluate_prints_each_value(called: list[Any]) -> None:
    words = ["evaluate", "runs/x", "--checkpoint", "best"]
    result = CliRunner().invoke(cli.cli, words)
    assert result.stdout == "loss 1.2500\nperplexity 3.4903\nmatrix\n  12345  0.5\n"
    assert result.stderr == "runs/x: the best checkpoint, of step 3\n"
    assert called == ["Zen", ("runs/x", "best", (), "validation")]


def test_bench_step_passes_its_options_on(called: list[Any]) -> None:
    words = ["bench", "step", "--json", "--repeats", "2", "--batch", "4"]
    result = CliRunner().invoke(cli.cli, [*words, "--shape", "small"])
    assert result.exit_code == 0
    assert called == ["Zen", ("small", {"json": True, "repeats": 2, "batch": 4})]
