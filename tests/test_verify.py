"""fastserve verify: the bits on other numbers of ranks."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
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


LAYERS = {
    "mlp": "[Dense: {units: 9, activation: gelu}, Dropout: {rate: 0.3}, Dense: "
    "{units: 3, activation: softmax}]",
    "cnn": "[Conv2D: {filters: 4, kernel_size: 3}, BatchNormalization, Activation: "
    "{activation: relu}, Flatten, Dropout: {rate: 0.3}, Dense: {units: 3, "
    "activation: softmax}]",
    "lstm": "[LSTM: {units: 5, dropout: 0.2}, Dense: {units: 3, activation: softmax}]",
}
SHAPES = {"mlp": (6,), "cnn": (6, 6, 2), "lstm": (7, 4)}
SEQUENTIAL = """
name: tiny
model: {type: sequential, layers: LAYERS, loss: sparse_categorical_crossentropy,
        metrics: [accuracy]}
data: {type: arrays, file: data.npz, validation_split: 0.2}
train: {global_batch: 16, micro_batch: 2, steps: 8, eval_every: 3, clip_norm: 0.1,
        baseline: false}
comm: {algorithm: exact, overlap: "on", check_every: 1}
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
@pytest.mark.parametrize(
    ("ranks", "models"), [(4, "cnn lstm"), (6, "lstm mlp"), (8, "mlp cnn")]
)
def test_many_ranks(mpi: str, ranks: int, models: str, tmp_path: Path) -> None:
    """Short last batches and shards, evaluations, clipping, dropout, overlap."""
    model = models.split()[FLAVOURS.index(mpi)]
    rng = np.random.default_rng(0)
    x = rng.standard_normal((59, *SHAPES[model])).astype(np.float32)
    np.savez(tmp_path / "data.npz", x_train=x, y_train=rng.integers(0, 3, 59))
    kept = tmp_path / "runs/tiny/config.yaml"
    kept.parent.mkdir(parents=True)
    kept.write_text(SEQUENTIAL.replace("LAYERS", LAYERS[model]))
    options = ["--ranks", f"1,{ranks}", "--steps", "7"]
    status, said = fastserve(mpi, tmp_path, "verify", "runs/tiny", *options)
    assert status == 0, said
    assert f"the same bits on 1, {ranks} ranks, after 7 steps" in said


@pytest.mark.mpi
def test_other_bits_are_seen(tmp_path: Path) -> None:
    """A ring gives them: the way that the command refuses to go."""
    (tmp_path / "job.yaml").write_text(JOB.replace("exact", "ring"))
    code = (
        "from pathlib import Path; from launch.verify import verify; "
        "raise SystemExit(5 * verify(Path('job.yaml'), [1, 3], 5, [], print))"
    )
    done = run([str(require("openmpi") / "bin/python"), "-c", code], 60, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "other bits than on 1 on 3 ranks, after 5 steps" in done.stdout


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
