"""The commands of the README and the quickstart do what they say.

Trainings have 48 steps here, benchmarks their smallest case. Commands that install
something or need other hosts or a cluster are only looked at by test_docs.py.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from mpi_environments import mpi_command, require, run, variables
from pages import blocks
from real_data import real

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")
QUICKSTART = (ROOT / "docs" / "quickstart.md").read_text("utf-8")
SHORT = [
    *("train.epochs=null", "train.steps=48", "train.eval_every=24"),
    *("train.log_every=12", "schedule.warmup_steps=12"),
]
FEW = [word for setting in SHORT for word in ("--set", setting)]
SMALL = "--set train.global_batch=4 --set train.eval_batches=4 --set data.source="
NAMES = {
    "runs/NAME": "runs/quickstart-gpt",
    "runs/A": "runs/again",
    "runs/B": "runs/alone",
    "job.yaml --trace": "configs/quickstart.yaml --trace --set name=traced",
    "--vocab-size 8192": "--vocab-size 400",
    "configs/shakespeare.yaml": f"configs/shakespeare.yaml {SMALL}pydoc-topics",
    "--shape gpt2": "--shape small --batch 1 --repeats 1",
    "bench layers": "bench layers --only mlp --repeats 1",
}


def commands(page: str, first: str) -> list[str]:
    """Return the commands of the page's block that begins with these words."""
    (block,) = [b for b in blocks(page) if b.code.startswith(first)]
    lines = [line.partition("    #")[0].strip() for line in block.code.splitlines()]
    return [re.sub(r"\s+#.*", "", line) for line in lines if line]


def follow(line: str, folder: Path, **more: str) -> str:
    """Run a command of fastserve in a folder; return what it prints."""
    for name, own in NAMES.items():
        line = line.replace(name, own) if "my-texts" not in line else line
    words = shlex.split(line)
    assert words[0] == "fastserve", line
    few = FEW if words[1] == "run" else []
    python = str(require("openmpi") / "bin" / "python")
    command = [python, "-m", "launch.cli", *words[1:], *few]
    done = run(command, 120, cwd=folder, env=variables(**more))
    assert done.returncode == 0, (line, done.stdout, done.stderr)
    return done.stdout + done.stderr


def with_data(name: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Return the variable that says where a real data set is."""
    real(name, monkeypatch)
    return {"FASTSERVE_DATA_DIR": os.environ["FASTSERVE_DATA_DIR"]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where ``make train`` has trained."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "configs").symlink_to(ROOT / "configs")
    assert commands(README, "make train") == ["make train"]
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
    activate, *lines = commands(README, ". .venv/bin/activate")
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
def test_without_the_launcher(folder: Path) -> None:
    words = ["python", "-m", "fastserve", "configs/quickstart.yaml"]
    assert f"`mpirun -n 2 {' '.join(words)}`" in README
    command = mpi_command("openmpi", 2, *words[1:], "--set", "name=mpirun", *FEW)
    done = run(command, 120, cwd=folder, env=variables())
    assert done.returncode == 0, done.stderr
    assert "ranks    2 on" in done.stdout and "val_loss" in done.stdout


@pytest.mark.mpi
def test_a_job_of_ones_own(folder: Path) -> None:
    new, trains = (follow(line, folder) for line in commands(README, "fastserve new"))
    assert "my-texts/job.yaml" in new
    assert "val_loss" in trains


@pytest.mark.mpi
def test_what_is_seen_of_runs(folder: Path) -> None:
    top, runs, report, plot, traced = (
        follow(line, folder) for line in commands(README, "fastserve top")
    )
    assert "quickstart-gpt" in top and "loss" in top
    assert "again" in runs and "alone" in runs
    found = {end: re.search(rf"\S+\.{end}", report + plot) for end in ("html", "png")}
    assert found["html"] and found["png"], (report, plot)
    assert "<html" in (folder / found["html"][0]).read_text("utf-8")
    assert (folder / found["png"][0]).read_bytes()[:4] == b"\x89PNG"
    assert (folder / "runs/traced/trace.json").stat().st_size > 1000
    assert "trace" in traced


@pytest.mark.mpi
def test_language_models(folder: Path) -> None:
    pytest.importorskip("tokenizers")
    (folder / "books").mkdir()
    for page in (ROOT / "docs" / "tutorials").glob("*.md"):
        shutil.copy(page, folder / "books" / f"{page.stem}.txt")
    follow("fastserve export runs/quickstart-gpt --to gpt2-folder", folder)
    prepare, train, imported, generate, export, bench = (
        follow(line, folder) for line in commands(README, "fastserve prepare")
    )
    assert "400" in prepare and list((folder / "tokens").glob("*.bin"))
    assert "3.27M weights" in train and "variant llama" in train
    assert (folder / "runs/shakespeare/checkpoints/best").is_dir()
    assert "runs/gpt2" in imported
    assert "The " in generate
    files = {path.name for path in (folder / "folder").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= files, export
    assert re.search(r"^fastserve +[\d.]+ ", bench, re.M), bench


@pytest.mark.mpi
def test_images(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = with_data("digits", monkeypatch)
    np.save(folder / "images.npy", np.zeros((3, 8, 8), "uint8"))
    datasets, train, evaluate, predict, bench = (
        follow(line, folder, **data) for line in commands(README, "fastserve datasets")
    )
    assert "digits" in datasets and "fashion-mnist" in datasets
    assert "next     fastserve evaluate runs/digits --split test" in train
    assert "accuracy" in evaluate
    assert len(re.findall(r"0\.\d+", predict)) >= 3, predict
    assert "mlp" in bench


@pytest.mark.mpi
def test_the_quickstart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    text = commands(QUICKSTART, "fastserve run configs/quickstart.yaml")
    trains, generate, evaluate = (follow(line, tmp_path) for line in text)
    assert "val_loss" in trains and "The " in generate and "loss" in evaluate
    data = with_data("digits", monkeypatch)
    images = commands(QUICKSTART, "fastserve datasets")
    datasets, trains, evaluate = (follow(line, tmp_path, **data) for line in images)
    assert "digits" in datasets and "val_loss" in trains and "accuracy" in evaluate
