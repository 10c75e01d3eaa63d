"""The README's commands do what it says, here with 48 steps of training each.

Those that install something, or need other hosts, a cluster or files of the reader's,
are only looked at by test_docs.py.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest
from mpi_environments import require, run, variables

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")
SHORT = ["train.steps=48", "train.eval_every=24", "train.log_every=12"]
FEW = [word for setting in SHORT for word in ("--set", setting)]
NAMES = {
    "runs/NAME": "runs/quickstart-gpt",
    "runs/A": "runs/again",
    "runs/B": "runs/alone",
    "job.yaml --trace": "configs/quickstart.yaml --trace --set name=traced",
}


def commands(first: str) -> list[str]:
    """Return the commands of the README's block that begins with these words."""
    blocks = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
    (block,) = [text for text in blocks if text.startswith(first)]
    lines = [line.partition("    #")[0].strip() for line in block.splitlines()]
    return [re.sub(r"\s+#.*", "", line) for line in lines if line]


def follow(line: str, folder: Path) -> str:
    """Run a command of fastserve in a folder; return what it prints."""
    for name, own in NAMES.items():
        line = line.replace(name, own) if "my-texts" not in line else line
    words = shlex.split(line)
    assert words[0] == "fastserve", line
    more = FEW if words[1] == "run" else []
    python = str(require("openmpi") / "bin" / "python")
    command = [python, "-m", "launch.cli", *words[1:], *more]
    done = run(command, 120, cwd=folder, env=variables())
    assert done.returncode == 0, (line, done.stdout, done.stderr)
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where ``make train`` has trained."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "configs").symlink_to(ROOT / "configs")
    assert commands("make train") == ["make train"]
    made = ["make", "--no-print-directory", "-n", "-o", ".venv/.installed", "train"]
    own = {k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MFLAGS")}
    done = subprocess.run(
        made, cwd=ROOT, env=own, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    recipe = done.stdout.strip().splitlines()[-1]
    shown = follow(recipe.removeprefix(".venv/bin/"), folder)
    assert "2 ranks" in shown
    assert re.search(r"step +48/48  loss \d", shown)
    assert re.search(r"val_loss \d\.\d+ nats a token", shown)
    assert "\nsample\n" in shown
    assert "next     fastserve generate runs/quickstart-gpt" in shown
    return folder


@pytest.mark.mpi
def test_the_same_without_make(folder: Path) -> None:
    activate, *lines = commands(". .venv/bin/activate")
    assert activate == ". .venv/bin/activate"
    again, alone, dry, generate, evaluate = (follow(line, folder) for line in lines)
    assert "ranks    2 on" in again
    assert "1 rank (one process without MPI)" in alone
    assert "prediction:" in dry
    assert "The " in generate
    assert "loss" in evaluate
    names = {path.name for path in (folder / "runs").iterdir()}
    assert names == {"quickstart-gpt", "again", "alone"}


@pytest.mark.mpi
def test_a_job_of_ones_own(folder: Path) -> None:
    new, trains = (follow(line, folder) for line in commands("fastserve new"))
    assert "my-texts/job.yaml" in new
    assert "val_loss" in trains


@pytest.mark.mpi
def test_what_is_seen_of_runs(folder: Path) -> None:
    top, runs, report, plot, traced = (
        follow(line, folder) for line in commands("fastserve top")
    )
    assert "quickstart-gpt" in top and "loss" in top
    assert "again" in runs and "alone" in runs
    found = {end: re.search(rf"\S+\.{end}", report + plot) for end in ("html", "png")}
    assert found["html"] and found["png"], (report, plot)
    assert "<html" in (folder / found["html"][0]).read_text("utf-8")
    assert (folder / found["png"][0]).read_bytes()[:4] == b"\x89PNG"
    assert (folder / "runs/traced/trace.json").stat().st_size > 1000
    assert "trace" in traced
