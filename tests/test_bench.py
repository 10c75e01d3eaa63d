"""What ``fastserve bench`` measures, on small sizes: the right thing."""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import numpy as np
import pytest
from mpi_environments import FLAVOURS, require, run, variables

from fastserve.bench import allreduce
from fastserve.bench import generate as bench_generate
from fastserve.bench import layers as bench_layers
from fastserve.bench.allreduce import measure, parse_size, table
from fastserve.bench.cases import CASES
from fastserve.bench.kinds import by_kind
from fastserve.comm import Communicator, run_threads
from fastserve.errors import ArgumentError, UnknownNameError
from launch import blas


def test_sizes() -> None:
    assert [parse_size(s) for s in ("4", "64k", "16M", "1g")] == [
        4,
        65536,
        1 << 24,
        1 << 30,
    ]


@pytest.mark.parametrize("text", ["", "3", "0", "k", "4x", "-4", "4.5k", "6"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ArgumentError, match="multiples of 4"):
        parse_size(text)


def test_both_sides_of_the_crossover_are_measured() -> None:
    def program(comm: Communicator) -> dict[str, Any]:
        return measure(comm, [4, 1 << 18], ("ring", "mpi"), seconds=0.01)

    for result in run_threads(2, program):
        assert result["algorithms"] == ["ring", "mpi"]
        assert [row["bytes"] for row in result["sizes"]] == [4, 1 << 18]
        for row in result["sizes"]:
            assert row["ms"]["ring"] > 0
            assert row["share"].keys() == {"mpi"}
        words = table(result)
        assert words.splitlines()[0] == "sum of float32 over 2 ranks on 1 host"
        assert words.splitlines()[1].split()[-2:] == ["mpi/ring", "GB/s"]


@pytest.mark.parametrize("size", [4, 1 << 18])
def test_what_is_timed_is_the_sum(size: int) -> None:
    def program(comm: Communicator) -> bool:
        array, sum_up = allreduce._ring(comm, size, 1 << 17, 1 << 16)
        array.fill(comm.rank + 1)
        sum_up(array)
        return bool((array == np.float32(6)).all())

    assert run_threads(3, program) == [True, True, True]


@pytest.mark.mpi
def test_a_step_over_ranks() -> None:
    python = str(require("openmpi") / "bin" / "python")
    command = [python, "-m", "launch.cli", "bench", "step", "-n", "2"]
    words = ["--shape", "small", "--batch", "4", "--repeats", "1"]
    done = run([*command, *words, "--json"], 60, env=variables())
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert (result["ranks"], result["hosts"], result["batch"]) == (2, 1, 4)
    assert {"fastserve", "exact", "rank 0 alone"} <= set(result["sides"])
    assert all(side["seconds"] > 0 for side in result["sides"].values())
    done = run([*command, "--batch", "5"], 60, env=variables())
    assert done.returncode == 2
    assert "a batch that 2 ranks divide evenly" in done.stderr
    assert "give another --batch, for example 6" in done.stderr


@pytest.mark.mpi
@pytest.mark.parametrize("flavour", FLAVOURS)
def test_the_command(flavour: str) -> None:
    python = str(require(flavour) / "bin" / "python")
    command = [python, "-m", "launch.cli", "bench", "allreduce", "--seconds", "0.01"]
    done = run([*command, "--sizes", "4,256k", "--json"], 60, env=variables())
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert (result["ranks"], result["hosts"]) == (2, 1)
    assert {"ring", "mpi"} <= set(result["algorithms"])


@pytest.mark.parametrize(
    ("option", "value", "part"),
    [
        ("--sizes", "4,7", "multiples of 4"),
        ("--sizes", "4 TB", "multiples of 4"),
        ("--algorithms", "ring,nccl", "expected some of ring, mpi, gloo"),
        ("--algorithms", ",", "expected some of ring, mpi, gloo"),
    ],
)
def test_bad_options_start_nothing(option: str, value: str, part: str) -> None:
    command = [sys.executable, "-m", "launch.cli", "bench", "allreduce"]
    done = run([*command, option, value], 30, env=variables())
    assert done.returncode == 2
    assert part in done.stderr
    assert "ranks" not in done.stderr
    assert "Traceback" not in done.stderr


def test_more_ranks_than_a_single_process(monkeypatch: pytest.MonkeyPatch) -> None:
    command = [sys.executable, "-m", "launch.cli", "bench", "allreduce"]
    done = run([*command, "--launcher", "local"], 30, env=variables())
    assert done.returncode == 2
    assert "expected one rank for the launcher 'local'" in done.stderr


def test_layers_are_timed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench_layers, "BLOCK", 1e-3)
    cores = os.sched_getaffinity(0)
    result = bench_layers.layers(["mlp"], repeats=2, json=True)
    assert os.sched_getaffinity(0) == cores
    assert json.loads(capsys.readouterr().out) == result
    mlp = result["cases"]["mlp"]
    # of the products: 128 rows, two operations, three products but for the first dx
    assert mlp["gflop"] * 1e9 == 128 * 2 * (2 * 784 * 512 + 3 * (512 * 512 + 5120))
    assert mlp["sides"]["fastserve"]["seconds"] > 0
    assert ("ratio" in mlp) == (result["pytorch"] is not None)
    bench_layers.layers(["mlp"], repeats=1)
    words = capsys.readouterr().out.splitlines()
    assert words[0].startswith("float32, one core, SGEMM peak ")
    assert words[2].startswith("mlp ")
    with pytest.raises(UnknownNameError, match="mlp"):
        bench_layers.layers(["mpl"])


@pytest.mark.parametrize("variant", ["gpt2", "llama"])
def test_generation_is_timed(
    variant: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench_generate, "read_bandwidth", lambda: 20e9)
    result = bench_generate.generate("small", variant, tokens=4, repeats=2, json=True)
    assert json.loads(capsys.readouterr().out) == result
    assert (result["tokens"], result["prompt"], result["repeats"]) == (4, 16, 2)
    assert result["model"]["variant"] == variant
    assert result["sides"]["fastserve"]["tokens_per_s"] > 0
    assert result["floor_ms"] == pytest.approx(
        {"gpt2": 0.160, "llama": 0.170}[variant], rel=0.1
    )
    assert ("ratio" in result) == ("pytorch" in result["sides"])
    bench_generate.generate("small", variant, tokens=4, repeats=1)
    words = capsys.readouterr().out.splitlines()
    assert words[0].startswith(f"{variant} of 0.")
    assert words[2].startswith("fastserve ")


def test_bytes_that_a_token_reads() -> None:
    tied = bench_generate.GPT(10, 8, 1, 2, 4)
    count = tied.count_params() - 8 * 4  # a row of the positions is looked up
    assert bench_generate.bytes_read(tied, 3) == 4 * (count + 2 * 4 * 3)
    llama = bench_generate.GPT(10, 8, 1, 2, 4, variant="llama", n_kv_head=1)
    count = llama.count_params() - 10 * 4  # a row of the tokens is
    assert bench_generate.bytes_read(llama, 3) == 4 * (count + 2 * 2 * 3)


def test_generation_beyond_the_context_is_refused() -> None:
    command = [sys.executable, "-m", "launch.cli", "bench", "generate"]
    done = run([*command, "--shape", "small", "--tokens", "49"], 30, env=variables())
    assert done.returncode == 2
    assert "expected 1 to 48 tokens" in done.stderr
    assert "received: 49" in done.stderr
    assert "Traceback" not in done.stderr


def test_every_case_of_layers_is_of_one_kind() -> None:
    groups = by_kind([])
    assert [name for names in groups.values() for name in names] == list(CASES)
    assert set(groups) == {blas.LARGE, blas.CONVOLUTION, blas.RECURRENT}
    assert by_kind(["lenet", "unknown", "cnn"]) == {
        "convolution": ["lenet", "cnn"],
        "": ["unknown"],
    }
