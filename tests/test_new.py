"""``fastserve new``: each template runs on its sample, learns, and is used after it."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from mpi_environments import run, variables

from fastserve.config import load_job
from fastserve.config.comments import annotate, comment
from fastserve.config.schema import GptModel, Train
from fastserve.errors import DataError, LaunchError
from launch import sample_data
from launch.new import TEMPLATES, new

LEAST = {"image": 0.7, "text": 0.8, "tabular": 0.6}  # val_accuracy


def fastserve(words: list[str], cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "launch.cli", *words]
    return run(command, 200, cwd=cwd, env=variables())


SAMPLES = {kind: cache(template.sample) for kind, template in TEMPLATES.items()}


@pytest.fixture
def made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let each sample be made once for all tests: those of texts take seconds."""
    for kind, template in list(TEMPLATES.items()):
        cached = dataclasses.replace(template, sample=SAMPLES[kind])
        monkeypatch.setitem(TEMPLATES, kind, cached)


@pytest.mark.slow
@pytest.mark.parametrize("kind", TEMPLATES)
def test_what_it_prints_runs(kind: str, tmp_path: Path) -> None:
    made = fastserve(["new", kind, "mine"], tmp_path)
    assert made.returncode == 0, made.stderr
    commands = re.findall(r"^  fastserve (.*)", made.stdout, re.M)
    readme = (tmp_path / "mine" / "README.md").read_text("utf-8")
    assert commands[0] == "run mine/job.yaml" and len(commands) >= 2
    for command in commands:
        assert f"\nfastserve {command}\n" in readme
        words = shlex.split(command)
        if command.startswith("run"):  # half of it, and not on cores that others use
            words += ["--set", "launch.threads=1"]
            words += ["--set", "train.steps=150"] if kind == "gpt" else []
        done = fastserve(words, tmp_path)
        assert done.returncode == 0, done.stderr
        if command.startswith("run"):
            assert "warning" not in done.stdout
            check_learned(kind, tmp_path / "runs" / "mine", done.stdout)
        elif command.startswith("predict"):
            unseen = 1 if "--text" in command else 6 if kind == "image" else 5
            assert done.stdout.count("\n") == unseen, done.stdout
        elif command.startswith("generate"):
            assert len(done.stdout) > 150


def check_learned(kind: str, run_dir: Path, said: str) -> None:
    rows = map(json.loads, (run_dir / "metrics.jsonl").read_text().splitlines())
    last = [row for row in rows if "val_loss" in row][-1]
    if kind == "gpt":
        assert last["val_loss"] < 2.6 and "a 2-gram model's" in said
    else:
        assert last["val_accuracy"] > LEAST[kind]


@pytest.mark.parametrize("kind", TEMPLATES)
def test_the_job_says_what_the_schema_says(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made_once: None
) -> None:
    monkeypatch.chdir(tmp_path)
    new(kind, "mine", "a-name")
    path = Path("mine/job.yaml")
    text = path.read_text("utf-8")
    job = load_job(path)
    assert (job.name, job.launch.ranks, job.checkpoint.best) == ("a-name", 1, True)
    assert text.count("YOURS") >= 5
    keys = re.findall(r"^ *[a-z_]+:(?=(.*\n?.*))", text, re.M)
    assert len(keys) > 25 and all("  # " in key for key in keys)
    assert max(map(len, text.splitlines())) <= 110
    assert re.search(r"global_batch: \d+ +# integer = 32\. Samples in a step", text)


@pytest.mark.parametrize("kind", TEMPLATES)
def test_the_same_python_makes_the_same_sample(kind: str) -> None:
    files = SAMPLES[kind]()
    assert files == TEMPLATES[kind].sample()
    assert 0 < sum(map(len, files.values())) < 1_000_000
    assert all(not Path(name).is_absolute() for name in files)


def test_names_that_yaml_would_take_for_something_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder, name in (("1e4", "1e4"), ("a: b #c", "a-b-c"), ("null", "null")):
        new("gpt", folder, None)
        job = load_job(Path(folder, "job.yaml"))
        assert job.name == name
        assert job.data.type == "text" and job.data.source == f"{folder}/text.txt"


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    assert str(tmp_path) in new("gpt", str(tmp_path), None)
    with pytest.raises(LaunchError, match="holds") as error:
        new("gpt", str(tmp_path), None)
    assert "give another folder" in str(error.value)


def test_nothing_is_written_on_a_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for folder, name in (("file", None), ("link", None), ("a", "a b"), ("-x-", "-x-")):
        with pytest.raises(LaunchError):
            new("gpt", str(tmp_path / folder), name)
    with pytest.raises(LaunchError, match="can be written"):
        new("gpt", str(tmp_path / "file" / "below"), None)
    monkeypatch.setattr(
        sample_data.sysconfig, "get_paths", lambda: {"stdlib": "/nowhere"}
    )
    for kind in ("text", "tabular"):
        with pytest.raises(DataError, match="0 rows from /nowhere"):
            new(kind, str(tmp_path / "a"), None)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "link"]


def test_the_command_refuses(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("x")
    done = fastserve(["new", "gpt", "a"], tmp_path)
    assert done.returncode == 2
    assert done.stderr.splitlines()[0].startswith(
        "expected a folder that doesn't exist"
    )
    assert "received: a, a file" in done.stderr and "to do: " in done.stderr


# --- comments from the schema

GPT = {"model": {"type": "gpt"}, "optimizer": {"type": "adamw"}}


@pytest.mark.parametrize(
    ("path", "begins"),
    [
        ("train.steps", "integer = null. Number of steps"),
        ("train.spike_factor", "number > 1 = null. "),
        ("train.shuffle", "true | false = true. "),
        ("model.type", "gpt | json | python | sequential; required"),
        ("model.dropout", "number in [0, 1) = 0.0. "),
        ("model.norm", "layer | rms = null. "),
        ("model.init_from", "path = null. "),
        ("model", "What is trained."),
        ("optimizer.betas", "two values: number in [0, 1) = [0.9, 0.95]. "),
        ("launch.threads", "integer or auto = auto. "),
        ("launch.env", "mapping = {}. "),
        ("model.layers", ""),
        ("no.such.key", ""),
    ],
)
def test_a_comment(path: str, begins: str) -> None:
    found = comment(path, GPT)
    assert found.startswith(begins) and bool(found) == bool(begins)


def test_each_key_of_a_section_has_a_comment() -> None:
    for name, section in (("model", GptModel), ("train", Train)):
        for key, field in section.model_fields.items():
            found = comment(f"{name}.{key}", GPT)
            assert key == "type" or str(field.description) in found


def test_comments_keep_the_file() -> None:
    text = "# head\nname: a\nmodel:\n  type: gpt\n  x: 1\ntrain: {steps: 3}\n"
    lines = annotate(text).splitlines()
    assert lines[0] == "# head"
    assert lines[1].startswith("name: a    ") and "# name, required." in lines[1]
    assert "  x: 1" in lines  # unknown: the loader tells
