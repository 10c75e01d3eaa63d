"""Ranks that round otherwise, and resumes that do: refused or said, with its meaning.

NumPy is told on some ranks, before it loads, to leave out the last of the vector
instructions that it would use.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from mpi_environments import FLAVOURS
from test_worker import launch, rank_program

from fastserve.training import checkpoint
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


def test_of_two_blas_libraries_numpy_s_own_is_recorded(tmp_path: Path) -> None:
    """A copy under another name, of other kernels, as SciPy brings one."""
    code = """
import ctypes, json, os, shutil, sys
from pathlib import Path
from threadpoolctl import threadpool_info
from fastserve.training.numerics import numerics
before = numerics()
pool = threadpool_info()[0]
os.environ["OPENBLAS_CORETYPE"] = "Nehalem"
copy = Path(sys.argv[1], "libopenblas-other.so")
shutil.copy(pool["filepath"], copy)
ctypes.CDLL(str(copy))
names = [Path(x["filepath"]).name for x in threadpool_info()]
print(json.dumps([names, before, numerics()]))
"""
    own = numerics()
    if not own["BLAS"].startswith("openblas") or sys.platform != "linux":
        pytest.skip("no OpenBLAS of which there could be two")
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "OPENBLAS_CORETYPE": own["kernels"]},
    )
    assert done.returncode == 0, done.stderr
    names, before, after = json.loads(done.stdout)
    assert len(names) == 2 and "libopenblas-other.so" in names
    assert after == before
    assert after["library"] == own["library"] != "libopenblas-other.so"
    assert after["threading layer"] in ("pthreads", "openmp", "disabled")
    assert "MAX_THREADS=" in after["build"] and after["kernels"] not in after["build"]


def edit_states(folder: Path, **changes: Any) -> None:
    """Change what checkpoints know; None removes a key, as if they were older."""
    for path in folder.glob("runs/tiny/checkpoints/*/state.json"):
        body = json.loads(path.read_text())
        state = {**body["state"], **changes}
        body["state"] = {k: v for k, v in state.items() if v is not None}
        del body["checksum"]
        path.write_text(checkpoint._encode(body))


def contents(folder: Path) -> dict[Path, bytes]:
    """Return all files but the lock, which names the last process that asked."""
    found = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return {path: text for path, text in found.items() if path.name != ".lock"}


def test_a_resume_with_another_seed_is_refused(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(JOB)
    assert rank_program(tmp_path).returncode == 0
    before = contents(tmp_path)
    done = rank_program(tmp_path, "--resume", "auto", "--set", "seed=999")
    assert done.returncode == 2
    assert "expected the seed that the run was started with, 0" in done.stderr
    assert "received: 999" in done.stderr and "to do: take the same" in done.stderr
    assert contents(tmp_path) == before


def test_a_resume_that_cuts_batches_otherwise_says_so(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(JOB)
    assert rank_program(tmp_path).returncode == 0
    threads = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"), "1")

    def said(*settings: str) -> list[str]:
        words = [x for each in ("train.steps=40", *settings) for x in ("--set", each)]
        words += ["--resume", "auto", "--stop-after", "1"]
        done = rank_program(tmp_path, *words, **threads)
        assert done.returncode == 75, done.stderr
        return [x for x in done.stderr.splitlines() if x.startswith("resumed with")]

    means = "from here on the bits aren't those of a run that wasn't stopped"
    assert said() == []
    assert said("train.micro_batch=2") == [
        f"resumed with shards of 2 instead of 1: {means}"
    ]
    assert said("train.micro_batch=2") == []
    ring = f"resumed with comm.algorithm ring instead of exact: {means}"
    assert said("comm.algorithm=ring") == [ring]
    assert said("comm.algorithm=mpi") == []
    exact = f"resumed with comm.algorithm exact instead of mpi: {means}"
    assert said() == [exact]
    assert said() == []
    state = next(tmp_path.glob("runs/tiny/checkpoints/step-*/state.json"))
    known = json.loads(state.read_text())["state"]["numerics"]
    older = {name: known[name] for name in ("NumPy", "BLAS", "kernels", "threads")}
    gone = dict.fromkeys(("seed", "algorithm", "shard_rows"))
    edit_states(tmp_path, **gone, numerics=older)
    assert said("train.micro_batch=2", "seed=4") == []
