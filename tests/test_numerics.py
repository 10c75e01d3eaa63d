"""Ranks that round otherwise, and resumes that do: refused or said, with its meaning.

NumPy is told on some ranks, before it loads, to leave out the last of the vector
instructions that it would use.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from mpi_environments import FLAVOURS
from test_worker import launch, rank_program

from fastserve.training.numerics import numerics

JOB = """
name: tiny
model: {type: gpt, n_layer: 1, n_head: 2, n_embd: 16, block_size: 16}
data: {type: text, source: pydoc-topics}
train: {global_batch: 4, steps: 4, log_every: 1, baseline: false}
comm: {algorithm: exact}
launch: {oversubscribe: true}
"""
LEFT_OUT = "NPY_DISABLE_CPU_FEATURES"
# sitecustomize.py, which every Python imports at its start
SITE = f"""
import os
if "1" in (os.environ.get("OMPI_COMM_WORLD_RANK"), os.environ.get("PMI_RANK")):
    os.environ["{LEFT_OUT}"] = os.environ["OF_RANK_1"]
"""
RING = "--set", "comm.algorithm=ring"


@pytest.fixture
def instruction() -> str:
    found = numerics()["SIMD"]
    if found == "baseline":
        pytest.skip("NumPy uses no instructions beyond those of every such CPU")
    return found.split()[-1]


@pytest.mark.mpi
@pytest.mark.parametrize("mpi", FLAVOURS)
def test_a_rank_with_other_instructions(
    mpi: str, instruction: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "job.yaml").write_text(JOB)
    (tmp_path / "site").mkdir()
    (tmp_path / "site/sitecustomize.py").write_text(SITE)
    monkeypatch.setenv("OF_RANK_1", instruction)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    done = launch(tmp_path, mpi, 2)
    assert done.returncode == 2, done.stderr
    said = "expected the same NumPy, BLAS, kernels and threads on all ranks"
    assert done.stderr.count(said) == 1, done.stderr
    assert "received: rank 1 on " in done.stderr
    assert f" instead of {numerics()['SIMD']}\n" in done.stderr
    assert f"name what the others haven't in {LEFT_OUT}" in done.stderr
    assert not (tmp_path / "runs/tiny/checkpoints").exists()
    done = launch(tmp_path, mpi, 2, *RING)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("ranks compute with other rounding: rank 1 on ") == 1


def test_a_resume_with_other_instructions(instruction: str, tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(JOB)

    def resumed(*settings: str, **env: str) -> str:
        words = ("--set", "train.steps=20", "--resume", "auto", *settings)
        done = rank_program(tmp_path, *words, "--stop-after", "1", **env)
        assert done.returncode == 75, done.stderr
        return done.stderr

    assert rank_program(tmp_path).returncode == 0
    assert "resumed with" not in resumed()
    other = {LEFT_OUT: instruction}
    assert f" instead of {numerics()['SIMD']}: from here on the bits aren't those" in (
        resumed(**other)
    )
    # what was saved since is of the other kind
    known = numerics()["SIMD"]
    assert f"resumed with SIMD: {known} instead of" in resumed()
    assert "results will be the same but for rounding" in resumed(*RING, **other)
