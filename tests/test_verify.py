"""fastserve verify: the bits on other numbers of ranks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from mpi_environments import FLAVOURS, require, run

from fastserve.errors import ArgumentError
from launch.verify import parse_ranks

BOTH = pytest.mark.parametrize("mpi", FLAVOURS)
JOB = """
name: tiny
model: {type: gpt, n_layer: 1, n_head: 2, n_embd: 16, block_size: 16, dropout: 0.1}
data: {type: text, source: pydoc-topics}
train: {global_batch: 10, micro_batch: 2, steps: 8, eval_every: 2, eval_batches: 2,
        clip_norm: 0.1, baseline: false}
checkpoint: {every: 4}
comm: {algorithm: exact, check_every: 1}
"""


def fastserve(mpi: str, folder: Path, *arguments: str) -> tuple[int, str]:
    """Return the exit status of a command, and what it said."""
    python = str(require(mpi) / "bin" / "python")
    command = [python, "-c", "from launch.cli import main; main()", *arguments]
    done = run(command, 120, cwd=folder)
    return done.returncode, done.stdout + done.stderr


def test_numbers_of_ranks() -> None:
    assert parse_ranks("4,1, 2,2") == [1, 2, 4]
    for wrong in ("", "1", "1,1", "1,x", "0,1", "1,-2", "1;2"):
        with pytest.raises(ArgumentError, match="--ranks"):
            parse_ranks(wrong)


@pytest.mark.mpi
@BOTH
def test_a_job_has_the_same_bits_on_any_number_of_ranks(
    mpi: str, tmp_path: Path
) -> None:
    (tmp_path / "job.yaml").write_text(JOB)
    status, said = fastserve(mpi, tmp_path, "run", "job.yaml")
    assert status == 0, said
    kept = tmp_path / "runs/tiny/config.yaml"
    kept.write_text(kept.read_text().replace("min_ranks: null", "min_ranks: 4"))
    status, said = fastserve(mpi, tmp_path, "verify", "runs/tiny", "--ranks", "1,2,3")
    assert status == 0, said
    assert "the same bits on 1, 2, 3 ranks, after 5 steps" in said
    options = ["--ranks", "1,3", "--set", "comm.algorithm=ring", "--steps", "1"]
    status, said = fastserve(mpi, tmp_path, "verify", "runs/tiny", *options)
    assert status == 2, said
    assert "expected a run with comm.algorithm exact" in said


@pytest.mark.mpi
@BOTH
def test_a_resume_on_other_ranks_has_the_bits_of_an_undisturbed_run(
    mpi: str, tmp_path: Path
) -> None:
    (tmp_path / "job.yaml").write_text(JOB)
    status, said = fastserve(mpi, tmp_path, "run", "job.yaml")
    assert status == 0, said
    run = ["run", "job.yaml", "--set", "name=other"]
    for ranks, resume, stop in ((2, [], 3), (3, ["--resume", "auto"], 5)):
        more = [*resume, "-n", str(ranks), "--oversubscribe", "--stop-after", str(stop)]
        status, said = fastserve(mpi, tmp_path, *run, *more)
        assert status == 75, said
    status, said = fastserve(mpi, tmp_path, *run, "--resume", "auto")
    assert status == 0, said
    state = "checkpoints/step-00000008/state.json"
    one, other = (
        json.loads((tmp_path / f"runs/{n}" / state).read_text())
        for n in ("tiny", "other")
    )
    assert other["files"] == one["files"]
    assert other["state"]["totals"] == one["state"]["totals"]
    losses = [
        [
            {k: v for k, v in json.loads(line).items() if "loss" in k or k == "step"}
            for line in (tmp_path / f"runs/{n}/metrics.jsonl").read_text().splitlines()
        ]
        for n in ("tiny", "other")
    ]
    assert losses[0] == losses[1]
