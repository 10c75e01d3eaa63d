"""Whole jobs on byte pairs: one tokenizer for all ranks, and for what comes after."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from mpi_environments import mpi_command, run, variables

from fastserve import config, trained
from fastserve.assemble.data import make_data
from fastserve.data.encode import encode_text, share_text
from fastserve.data.text import load_text
from fastserve.data.tokenizers import BPETokenizer, load_tokenizer
from fastserve.errors import ConfigError, DataError

JOB = """
name: pairs
seed: 1
model: {type: gpt, n_layer: 1, n_head: 2, n_embd: 16, block_size: 16}
data: {type: text, source: text.txt, tokenizer: bpe, vocab_size: 300}
train: {global_batch: 6, steps: 6, sample_tokens: 5}
checkpoint: {every: 3, keep: 9}
"""
TEXT = load_text("pydoc-topics")[:30_000] + "Größe \N{GRINNING FACE}\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "job.yaml").write_text(JOB)
    (tmp_path / "text.txt").write_text(TEXT)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def train(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fastserve", "job.yaml", *arguments]
    return run(command, 60, cwd=folder, env=variables())


def test_a_run_and_what_comes_after(folder: Path) -> None:
    done = train(folder)
    assert done.returncode == 0, done.stderr
    assert "tokens, 300 different, the last" in done.stdout
    run_dir = folder / "runs/pairs"
    tokenizer = load_tokenizer(run_dir / "tokenizer.json")
    assert tokenizer.vocab_size == 300
    prompt = "Größe \N{GRINNING FACE}"
    assert trained.generate("runs/pairs", prompt, 5, seed=2).startswith(prompt)
    said = done.stdout.split("val_loss ")[1].split()[0]
    shown = float(said)
    assert trained.evaluate("runs/pairs")["loss"] == pytest.approx(shown, rel=1e-3)
    again = train(folder, "--resume", "auto", "--set", "train.steps=8")
    assert again.returncode == 0, again.stderr
    # a tokenizer of a run serves others, and its path is a job's tokenizer
    kept = ["--set", "data.tokenizer=runs/pairs/tokenizer.json"]
    more = train(folder, *kept, "--set", "data.vocab_size=null", "--set", "name=other")
    assert more.returncode == 0, more.stderr
    assert more.stdout.split("val_loss ")[1].split()[0] == said
    (run_dir / "tokenizer.json").unlink()  # the other run has a copy
    assert trained.evaluate("runs/other")["loss"] == pytest.approx(shown, rel=1e-3)


def test_a_run_without_checkpoints_starts_with_its_own_tokenizer(folder: Path) -> None:
    (folder / "runs/pairs").mkdir(parents=True)
    older = BPETokenizer.train([TEXT], 270)
    (folder / "runs/pairs/tokenizer.json").write_text(json.dumps(older.to_json()))
    done = train(folder, "--resume", "auto", "--set", "train.steps=1")
    assert "tokens, 300 different, the last" in done.stdout, done.stderr


@pytest.mark.mpi
def test_two_ranks_have_the_tokenizer_of_the_first(folder: Path) -> None:
    assert train(folder).returncode == 0
    here = folder / "runs/pairs"
    alone = (here / "tokenizer.json").read_text()
    first = json.loads((here / "metrics.jsonl").read_text().splitlines()[-1])
    program = ("-m", "fastserve", "job.yaml", "--overwrite")
    command = mpi_command("openmpi", 2, *program)
    done = run(command, 90, cwd=folder, env=variables())
    assert done.returncode == 0, done.stderr
    assert (here / "tokenizer.json").read_text() == alone
    last = json.loads((here / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["val_loss"] == pytest.approx(first["val_loss"], rel=1e-5)


def test_sharing_over_ranks() -> None:
    from fastserve.comm.base import Communicator
    from fastserve.comm.thread import run_threads

    found = encode_text("pydoc-topics", "char", None, 0.1)

    def program(comm: Communicator) -> tuple[object, bytes, bytes, float | None]:
        text = share_text(found if comm.rank == 0 else None, comm)
        made = text.tokenizer.to_json()
        per_token = text.bytes_per_token
        return made, text.train.tobytes(), text.validation.tobytes(), per_token

    results = run_threads(3, program)
    assert results[0] == results[1] == results[2]
    assert results[0][2] == found.validation.tobytes()


@pytest.mark.parametrize(
    ("tokenizer", "low", "high"), [("char", 1.0, 1.1), ("byte", 1, 1), ("bpe", 1.3, 3)]
)
def test_bytes_of_a_token(
    folder: Path, tokenizer: str, low: float, high: float
) -> None:
    size = "300" if tokenizer == "bpe" else "null"
    keys = [f"data.tokenizer={tokenizer}", f"data.vocab_size={size}"]
    data = make_data(config.load_job("job.yaml", keys))
    assert data.bytes_per_token is not None and data.tokens is not None
    assert low <= data.bytes_per_token <= high
    assert data.tokenizer is not None
    text = data.tokenizer.decode(data.tokens[1])
    assert data.bytes_per_token == len(text.encode()) / len(data.tokens[1])
    without = make_data(config.load_job("job.yaml", [*keys, "data.validation_split=0"]))
    assert without.bytes_per_token is None


def test_both_parts_are_the_text(folder: Path) -> None:
    found = encode_text("text.txt", "bpe", 400, 0.1)
    made = found.tokenizer
    assert made.decode(found.train) + made.decode(found.validation) == TEXT
    kept = BPETokenizer.train(["other"], 300)
    assert encode_text("text.txt", "bpe", 400, 0.1, kept).tokenizer is kept
    np.testing.assert_array_equal(
        encode_text("text.txt", "bpe", 400, 0.1).train, found.train
    )


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ("data.vocab_size=null", "data.vocab_size: expected a number such as 8192"),
        ("data.vocab_size=256", "257"),
        ("data.tokenizer=char", "data.vocab_size: expected null"),
        ("data.tokenizer=bep", "did you mean 'bpe'"),
        ("data.tokenizer=missing/tokenizer.json", "existing tokenizer.json"),
    ],
)
def test_faults_of_the_job(folder: Path, change: str, part: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config.load_job("job.yaml", [change])
    assert part in str(caught.value)


def test_a_bad_tokenizer_file_is_said_before_anything_is_written(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{}")
    keys = ["data.tokenizer=tokenizer.json", "data.vocab_size=null"]
    job = config.load_job("job.yaml", keys)
    with pytest.raises(DataError, match=r"tokenizer\.json: no 'model'"):
        make_data(job)
    words = [word for key in keys for word in ("--set", key)]
    done = train(folder, *words)
    assert done.returncode == 2 and "received" in done.stderr
    assert not (folder / "runs").exists()
