"""The configs of language models: each makes a few steps, as its head says, on its own
text where that is here, else on one that every Python carries."""

from __future__ import annotations

import functools
import json
import operator
import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from mpi_environments import run, variables
from real_data import FOLDER

from fastserve.config import load_job
from fastserve.config.comments import comment
from fastserve.config.strict_yaml import parse
from fastserve.data.datasets import ALL, find
from fastserve.errors import DataError

CONFIGS = Path(__file__).parents[1] / "configs"
EVERY = sorted(CONFIGS.glob("*.yaml"))
QUICKSTART = CONFIGS / "quickstart.yaml"
HEADED = [path for path in EVERY if path != QUICKSTART]
FEW = {
    "train.epochs": "null",
    "train.steps": "3",
    "train.global_batch": "4",
    "train.micro_batch": "null",
    "train.eval_every": "null",
    "train.eval_batches": "1",
    "train.sample_tokens": "8",
    "schedule.warmup_steps": "0",
    "data.validation_split": "0.02",
}
RUNS = {"quickstart": "quickstart-gpt"}
TASKS = [{"prompt": f"{n} -> ", "completion": str(n)[::-1]} for n in range(100, 400)]


def fastserve(folder: Path, *words: str) -> str:
    command = [sys.executable, "-m", "launch.cli", *words]
    done = run(
        command, 200, cwd=folder, env=variables(FASTSERVE_DATA_DIR=str(data_folder()))
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def data_folder() -> Path:
    return Path(os.environ.get("FASTSERVE_DATA_DIR", FOLDER))


def few_steps(folder: Path, name: str, **more: str) -> None:
    """Make three steps of a config in a folder, and look at what the run says."""
    overrides = {**FEW, "launch.threads": "1", **more}
    words = [word for pair in overrides.items() for word in ("--set", "=".join(pair))]
    fastserve(folder, "run", str(CONFIGS / f"{name}.yaml"), "-n", "1", *words)
    lines = (
        (folder / "runs" / RUNS.get(name, name) / "metrics.jsonl")
        .read_text()
        .splitlines()
    )
    rows = list(map(json.loads, lines))
    assert rows[-1]["step"] == 3 and np.isfinite(rows[-1]["val_loss"])


def text(name: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the name of a built-in text, or of another one where it isn't here."""
    monkeypatch.setenv("FASTSERVE_DATA_DIR", str(data_folder()))
    try:
        find(next(known for known in ALL if known.name == name))
    except DataError:
        return "pydoc-topics"
    return name


@pytest.mark.parametrize("name", ["shakespeare-small", "shakespeare"])
def test_characters(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = text("shakespeare", monkeypatch)
    few_steps(tmp_path, name, **{"data.source": source})


@pytest.mark.slow
def test_byte_pairs_and_a_folder_to_go_on_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tokenizers")
    # 40 MB take a minute to find byte pairs in: another text, fewer pairs
    few = {"data.source": "pydoc-topics", "data.vocab_size": "500"}
    few_steps(tmp_path, "gcide", **few)
    fastserve(tmp_path, "export", "runs/gcide", "--to", "gcide-gpt2")
    few_steps(tmp_path, "finetune-gpt2", **{"data.source": "pydoc-topics"})


@pytest.mark.slow
def test_the_quickstart_and_completions(tmp_path: Path) -> None:
    few_steps(tmp_path, "quickstart", **{"model.block_size": "64"})
    fastserve(tmp_path, "export", "runs/quickstart-gpt", "--to", "base-model")
    lines = "".join(json.dumps(task) + "\n" for task in TASKS)
    (tmp_path / "tasks.jsonl").write_text(lines)
    for name in ("finetune", "finetune-lora"):
        few_steps(tmp_path, name, **{"data.validation_split": "0.1"})
        assert "exact" in fastserve(tmp_path, "evaluate", f"runs/{name}")


def test_every_config_is_run_by_a_test() -> None:
    here = Path(__file__).read_text("utf-8")
    labelled = (Path(__file__).parent / "test_real_configs.py").read_text("utf-8")
    for path in EVERY:
        assert f'"{path.stem}"' in here + labelled, path.stem


def test_the_quickstart_s_comments_have_the_schema_s_defaults() -> None:
    """They are in words of their own, as the first that a newcomer reads."""
    text, section, seen = QUICKSTART.read_text("utf-8"), "", 0
    data = parse(text)[0]
    for line in text.splitlines():
        if found := re.match(r"(\w+):", line):
            section = found[1]
        if not (found := re.match(r"  (\w+): .*# (.*)$", line)):
            continue
        kind = comment(f"{section}.{found[1]}", data).partition(". ")[0]
        if (default := re.search(r" = (.*)$", kind)) and "required" not in found[2]:
            said = re.search(r" = (\[.*?\]|[^ ;:]+)", found[2])
            assert said and parse(said[1])[0] == parse(default[1])[0], line
            seen += 1
    assert seen > 50


@pytest.mark.parametrize("path", EVERY, ids=lambda p: p.stem)
def test_the_head_says_how_to_run_it_and_what_comes_out(path: Path) -> None:
    head = re.match(r"(?:#.*\n)+", path.read_text("utf-8"))
    assert head
    assert f"#   fastserve run configs/{path.name}\n" in head[0]
    assert re.search(r"Reached: .*\d", head[0])


@pytest.mark.parametrize("path", HEADED, ids=lambda p: p.stem)
def test_comments_say_what_the_schema_says(path: Path) -> None:
    """Each key has type and default behind it, but for the layers' own arguments."""
    lines = path.read_text("utf-8").splitlines()
    data = parse(path.read_text("utf-8"))[0]
    above: list[str] = []
    seen = []
    for line in lines:
        found = re.match(r"( *)(\w+):(?: [^#]*)?(?:# (.*))?$", line)
        if not found:
            continue
        above = [*above[: len(found[1]) // 2], found[2]]
        key, said = ".".join(above), found[3] or ""
        types = comment(key, data).partition(". ")[0]
        if isinstance(functools.reduce(operator.getitem, above, data), dict):
            need = "required" if key in ("data", "model", "train") else ""
            assert said.startswith("section" if len(above) > 1 else need), line
        elif above[-1] == "type":
            assert said.startswith("required; "), line
        elif above[0] in ("data", "model"):  # their types are told in more detail
            default = re.search(r"required$|= .*", types)
            assert said and (default is None or default[0] in said), line
        else:
            assert said == types or said.startswith(f"{types};"), line
        seen.append(key)
    assert {"name", "seed", "data.type", "model.type", "train.log_every"} <= set(seen)
    assert max(map(len, lines)) <= 105


def test_configs_are_jobs() -> None:
    for path in EVERY:
        if not path.stem.startswith("finetune"):  # they start from what isn't here
            load_job(path, files=False)
