"""fastserve verify: the bits on other numbers of ranks."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from mpi_environments import FLAVOURS, require, run

from fastserve.environment import NUMERICS_KEYS
from fastserve.errors import ArgumentError
from launch import blas
from launch.verify import Recorded, kernel_words, parse_ranks, recorded

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


HASHED = ("model", "optimizer")
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
    assert "the bits of the run's own checkpoint of step 4\n" in said
    environment = tmp_path / "runs/tiny/environment.json"
    known = json.loads(environment.read_text())
    state = next(tmp_path.glob("runs/tiny/checkpoints/step-*/state.json"))
    recorded = json.loads(state.read_text())["state"]["numerics"]
    assert {k: str(known[v]) for k, v in NUMERICS_KEYS.items()} == recorded
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


ALONE = "compared among these alone: the run has kept no checkpoint of its first"


@pytest.mark.mpi
def test_the_runs_own_kernels_and_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run of kernels that this CPU wouldn't get by itself, in a job whose products
    are large enough for other bits."""
    monkeypatch.delenv("OPENBLAS_CORETYPE", raising=False)
    usable = blas.measure(("Haswell", "Nehalem"))
    if set(usable) != {"Haswell", "Nehalem"}:
        pytest.skip("needs OpenBLAS and a CPU with AVX2")
    family, env = "Nehalem", "launch.env.OPENBLAS_CORETYPE"
    (tmp_path / "job.yaml").write_text(
        JOB.replace("n_embd: 16", "n_embd: 64")
        + f"launch: {{env: {{OPENBLAS_CORETYPE: {family}, TOKEN: hunter2}}}}\n"
    )
    status, said = fastserve("openmpi", tmp_path, "run", "job.yaml")
    assert status == 0, said
    kept = tmp_path / "runs/tiny/config.yaml"
    text = kept.read_text()
    assert f"OPENBLAS_CORETYPE: {family}" in text and "TOKEN" not in text

    def verify(*more: str) -> tuple[int, str]:
        words = ("verify", "runs/tiny", "--ranks", "1,2", *more)
        return fastserve("openmpi", tmp_path, *words)

    own = "the bits of the run's own checkpoint of step 4\n"
    status, said = verify()
    assert status == 0 and own in said, said
    # as of a run whose kernels the launcher has measured, or a shell has set
    kept.write_text(text.replace(f"OPENBLAS_CORETYPE: {family}", "OTHER: a"))
    status, said = verify()
    assert status == 0 and own in said, said
    other = f"computed otherwise than the run: kernels: Haswell instead of {family}\n"
    status, said = verify("--set", f"{env}=Haswell")
    assert status == 1 and other in said and own not in said, said
    assert "other bits than the run's own checkpoint of step 4, " in said
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Haswell")
    status, said = verify("--steps", "2")
    assert status == 1 and other in said, said
    assert f"{ALONE} 2 steps; the run's own bits may be others" in said
    status, said = verify("--steps", "2", "--set", "seed=3")
    assert status == 0 and "with --set it isn't the run's job" in said, said
    monkeypatch.delenv("OPENBLAS_CORETYPE")
    status, said = verify("--steps", "2")
    assert status == 0 and f"{ALONE} 2 steps\n" in said, said
    kept.write_text(kept.read_text().replace("seed: 0", "seed: 1"))
    status, said = verify()
    assert status == 1, said
    assert "data, code or config.yaml were others" in said and "otherwise" not in said


def test_what_runs_have_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENBLAS_CORETYPE", raising=False)
    assert recorded(tmp_path, 5) == Recorded({}, 0, None)
    old = {"numpy": "2.4", "blas": None, "kernels": "Zen", "threads": 1, "hosts": []}
    (tmp_path / "environment.json").write_text(json.dumps(old))
    found = recorded(tmp_path, 5)
    assert found == Recorded(
        {"NumPy": "2.4", "kernels": "Zen", "threads": "1"}, 0, None
    )
    assert kernel_words(found, {}) == []  # not known to be OpenBLAS'
    for step in (12, 6, 3):
        files = {f"{x}.safetensors": {"sha256": f"{x} {step}"} for x in HASHED}
        numerics = {"BLAS": "openblas 0.3", "kernels": f"family of {step}"}
        state = {"step": step, "files": files, "state": {"numerics": numerics}}
        folder = tmp_path / f"checkpoints/step-{step:08d}"
        folder.mkdir(parents=True)
        (folder / "state.json").write_text(json.dumps(state))
    assert recorded(tmp_path, 2)[:2] == (numerics, 0)
    for steps, expected in ((3, 3), (5, 3), (6, 6), (11, 6)):
        found = recorded(tmp_path, steps)
        assert found.step == expected and found.hashes is not None
        assert found.hashes == (f"model {expected}", f"optimizer {expected}")
        assert found.numerics["kernels"] == f"family of {expected}"
    words = ["--set", "launch.env.OPENBLAS_CORETYPE=family of 6"]
    assert kernel_words(found, {"A": "b"}) == words
    assert kernel_words(found, {"OPENBLAS_CORETYPE": "Zen"}) == []
    (tmp_path / "checkpoints/step-00000006/state.json").write_text("{")
    assert recorded(tmp_path, 11).step == 3


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
