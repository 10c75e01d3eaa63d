"""The model of a step's time, and what is said of it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from mpi_environments import run, variables

from launch import step_time
from launch.hosts import Host
from launch.plan import LaunchPlan, Place, split_batch
from launch.preflight import advise_bucket
from launch.step_time import ASSUMED, Estimate, Link, exchange_seconds, step_seconds

LINK = Link(1e-4, 1e8)


def test_the_sum_over_hosts_is_that_of_a_ring() -> None:
    assert exchange_seconds(1e8, 1, 1, LINK) == 0
    assert exchange_seconds(1e8, 2, 1, LINK) == pytest.approx(1 + 2e-4)
    assert exchange_seconds(1e8, 4, 1, LINK) == pytest.approx(1.5 + 6e-4)
    many = exchange_seconds(1e8, 1024, 1, LINK)
    assert many == pytest.approx(2 * 1023 / 1024 + 2046e-4)


def test_ranks_of_a_host_add_up_in_its_memory() -> None:
    one, two = (exchange_seconds(48e6, 1, ranks, LINK) for ranks in (1, 2))
    assert (one, two) == (0, pytest.approx(4e-3))


@pytest.mark.parametrize(
    ("compute", "exchange", "expected"),
    [
        (3.0, 0.0, 3.0),
        (3.0, 1.0, 3.1),  # all but the last of 10 buckets is hidden
        (3.0, 2.0, 3.2),
        (3.0, 9.0, 1 + 0.2 + 9),  # from the first bucket on, the link is busy
    ],
)
def test_overlap(compute: float, exchange: float, expected: float) -> None:
    assert step_seconds(compute, exchange, 10, True) == pytest.approx(expected)
    assert step_seconds(compute, exchange, 10, False) == compute + exchange


def plan(hosts: int, ranks_each: int = 1, batch: int = 32) -> LaunchPlan:
    ranks = hosts * ranks_each
    places = tuple(
        Place(Host(f"node{i}"), ranks_each, i * ranks_each, i == 0, 1, False)
        for i in range(hosts)
    )
    return LaunchPlan(
        *("openmpi", "", (), {}, Path("/work"), Path("/work/runs/x"), "t"),
        ranks=ranks,
        places=places,
        cores=(0,),
        split=split_batch(batch, None, ranks),
    )


def comm(**more: Any) -> Any:
    given = {"wire": "float32", "bucket_mb": 4.0, "overlap": "auto"}
    return SimpleNamespace(**{**given, "algorithm": "ring", **more})


def test_what_is_said() -> None:
    cost = Estimate(parameters=25_000_000, rows=8, seconds=0.5, tokens=100)
    lines = step_time.predict(plan(4), cost, LINK, comm(overlap="off"), 100)
    assert lines[0] == "2.00 s a step, 1.6e+03 tokens/s, 3 min for 100 steps"
    assert lines[1] == "computing 500 ms of 8 rows, as 8 rows took 500 ms here just now"
    assert lines[2].startswith("sum of 100.0 MB of gradients 1.50 s, after backward at")
    assert "100 MB/s (measured by fastserve preflight)" in lines[2]
    assert lines[3] == "4 ranks have 1.00 times the speed of one process"


def test_half_the_bytes_and_overlap() -> None:
    cost = Estimate(25_000_000, 8, 0.5)
    lines = step_time.predict(plan(4), cost, ASSUMED, comm(wire="float16"), None)
    assert "sum of 50.0 MB of gradients 628 ms, while backward computes" in lines[2]
    assert "assumed" in lines[2]
    assert lines[0].startswith("808 ms a step, 39.6 samples/s")


def test_one_process_has_no_sum() -> None:
    lines = step_time.predict(plan(1), Estimate(1000, 32, 0.1), ASSUMED, comm(), 10)
    assert len(lines) == 2


def test_links_are_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTSERVE_CACHE_DIR", str(tmp_path / "cache"))
    assert step_time.slowest_remembered(["a", "b", "c"]) is ASSUMED
    slow = Link(2e-5, 5e7)
    step_time.remember({("a", "b"): LINK, ("b", "c"): slow})
    assert step_time.slowest_remembered(["a", "b"]) == LINK
    assert step_time.slowest_remembered(["a", "b", "c"]) is ASSUMED
    step_time.remember({("c", "a"): LINK})
    assert step_time.slowest_remembered(["a", "b", "c"]) == Link(1e-4, 5e7)
    (tmp_path / "cache" / "links.json").write_text('{"a b": 3')
    assert step_time.slowest_remembered(["a", "b"]) is ASSUMED


@pytest.mark.parametrize(
    ("nbytes", "latency", "bandwidth", "expected"),
    [
        (400 << 20, 50e-6, 1.2e8, 1),  # 0.5 MB would do
        (400 << 20, 50e-6, 1.2e9, 8),  # 4.6 MB or more
        (400 << 20, 1e-3, 1.2e9, 64),
        (8 << 20, 1e-3, 1.2e9, 2),  # a quarter of the gradients
    ],
)
def test_the_advised_bucket(
    nbytes: int, latency: float, bandwidth: float, expected: float
) -> None:
    assert advise_bucket(nbytes, 4, Link(latency, bandwidth)) == expected


def test_the_measured_step_is_that_of_the_job(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("Pack my box with five dozen liquor jugs. " * 9)
    (tmp_path / "job.yaml").write_text(
        "name: tiny\nmodel: {type: gpt, n_layer: 1, n_head: 2, n_embd: 8, "
        "block_size: 8}\ndata: {type: text, source: text.txt}\n"
        "train: {global_batch: 6, steps: 12}\n"
    )
    command = [sys.executable, "-m", "fastserve.estimate", "job.yaml", "--rows", "3"]
    done = run(command, 30, cwd=tmp_path, env=variables())
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["rows"], found["tokens"]) == (3, 8)
    # 28 characters, 8 positions, one block, the last normalization
    assert found["parameters"] == 28 * 8 + 8 * 8 + 872 + 2 * 8
    assert 0 < found["seconds"] < 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["job.yaml", "text.txt"]
    (tmp_path / "text.txt").write_text("short")
    bad = run(command, 30, cwd=tmp_path, env=variables())
    assert bad.returncode == 2
    assert "Traceback" not in bad.stderr


def test_a_step_that_takes_too_long_is_no_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = SimpleNamespace(split=split_batch(6, None, 1), environment={}, cwd=tmp_path)
    sleeps = tmp_path / "python"
    sleeps.write_text("#!/bin/sh\nexec sleep 60\n")
    sleeps.chmod(0o755)
    monkeypatch.setattr(step_time, "_SECONDS", 0.1)
    found = step_time.measure(plan, [str(sleeps)], [])  # type: ignore[arg-type]
    assert isinstance(found, step_time.TooSlow)
    assert found == "a step of 6 rows took more than 0.1 s"
