"""Where a step's time goes, the status file, and the trace of all ranks."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mpi_environments import mpi_command, run, variables

import fastserve as fs
from fastserve.comm import Communicator, run_threads
from fastserve.comm.clocks import Offset, clock_offset
from fastserve.config.trace import joined, steps_of
from fastserve.errors import ArgumentError
from fastserve.training.balance import Balance
from fastserve.training.chrome_trace import Event, RankEvents, chrome_trace
from fastserve.training.status import PARTS, Status, parts_of
from fastserve.training.status_file import mark_failed, put, trained_seconds
from fastserve.training.timing import KINDS, Timing
from fastserve.training.trace import Trace, Tracing, watch_layers

JOB = """
name: small
seed: 3
model: {type: gpt, n_layer: 2, n_head: 2, n_embd: 64, block_size: 32}
data: {type: text, source: text.txt, tokenizer: byte, validation_split: 0.1}
train: {global_batch: 8, micro_batch: 2, steps: 16, clip_norm: 1.0, eval_every: 8,
        eval_batches: 2, log_every: 4}
checkpoint: {every: 8}
comm: {bucket_mb: 0.1, check_every: 5}
"""
STEPS = range(7, 13)  # of the traces here, numbers from 1


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "job.yaml").write_text(JOB)
    words = "the quick brown fox jumps over the lazy dog and runs away\n"
    (tmp_path / "text.txt").write_text(words * 100)
    return tmp_path


# -- the stopwatch


def test_seconds_of_all_kinds_are_the_time_that_has_passed() -> None:
    before = time.perf_counter()
    timing = Timing()
    start = time.perf_counter()
    timing.to("forward")
    time.sleep(0.02)
    with timing.within("sums"):
        time.sleep(0.03)
    timing.to("data")
    time.sleep(0.01)
    least = time.perf_counter() - start
    found = timing.count()
    most = time.perf_counter() - before
    assert list(found) == list(KINDS)
    assert least <= sum(found.values()) + 1e-9 <= most + 2e-9
    assert 0.02 <= found["forward"] < 0.02 + (most - 0.06) + 1e-3
    assert found["sums"] >= 0.03 and found["data"] >= 0.01
    before = time.perf_counter()
    timing.restart()
    assert sum(timing.count().values()) <= time.perf_counter() - before


def test_what_is_within_a_kind_nests_in_a_trace() -> None:
    timing, trace = Timing(), Trace(10)
    timing.to("forward")
    timing.begin_trace(trace)
    with timing.within("sums", "sum of a layer"):
        pass
    timing.to("other")
    (_, inner, kind, a, b, _), (_, outer, _, c, d, _) = trace.events
    assert (inner, kind, outer) == ("sum of a layer", "sums", "forward")
    assert c <= a <= b <= d


def test_a_turn_costs_little() -> None:
    timing = Timing()
    least = 1.0
    for _ in range(20):
        start = time.perf_counter()
        for _ in range(1000):
            timing.to("forward")
        least = min(least, (time.perf_counter() - start) / 1000)
    assert least < 3e-6


# -- parts of the time


def test_waiting_is_what_a_rank_spends_in_sums_beyond_the_least() -> None:
    kinds = np.zeros((3, len(KINDS)))
    kinds[:, KINDS.index("forward")] = 1, 2, 3
    kinds[:, KINDS.index("optimizer")] = 1
    kinds[:, KINDS.index("sums")] = 2.5, 1.5, 0.5
    found = parts_of(kinds)
    assert found[:, PARTS.index("compute")].tolist() == [2, 3, 4]
    assert found[:, PARTS.index("communication")].tolist() == [0.5] * 3
    assert found[:, PARTS.index("waiting")].tolist() == [2, 1, 0]
    np.testing.assert_allclose(found.sum(axis=1), kinds.sum(axis=1))


def test_a_rank_alone_neither_communicates_nor_waits() -> None:
    found = parts_of(np.ones((1, len(KINDS))))
    assert found[0, PARTS.index("compute")] == 4
    assert not found[0, [PARTS.index("communication"), PARTS.index("waiting")]].any()


def fit(comm: Communicator, *callbacks: Any, epochs: int = 3, **wait: float) -> Any:
    """Train a small network; return the weights."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((64, 6)).astype(np.float32)

    class Wait(fs.layers.Layer):
        def forward(self, x: Any, training: Any = False) -> Any:
            time.sleep(wait.get(f"rank{comm.rank}", 0.0))
            return x

        def backward(self, dy: Any, done: Any = None) -> Any:
            return dy

    dense = [fs.layers.Dense(8, "tanh", input_shape=(6,)), fs.layers.Dense(1)]
    model = fs.models.Sequential([*dense, Wait()], seed=1)
    model.compile(fs.optimizers.SGD(0.01), "mse")
    y = x.sum(axis=1, keepdims=True)
    model.fit(x, y, 8, epochs, 0, callbacks=list(callbacks), validation_data=(x, y))
    return model.store.values.copy()


@pytest.mark.parametrize(
    ("step", "looks", "named"),
    [(0.02, (10, 20, 40), 0), (0.3, (10, 20), 1), (0.02, (10, 20, 530), 1)],
    ids=["of a second", "of some seconds", "of short steps"],
)
def test_the_slowest_rank_is_named_after_some_seconds(
    step: float, looks: tuple[int, ...], named: int, caplog: pytest.LogCaptureFixture
) -> None:
    balance, before = Balance(["a", "b"]), 0
    for made in looks:
        seconds = step * (made - before)
        busy = np.array([seconds / 2, seconds])  # rank 0 waits for half of it
        balance.add(made, busy, np.full(2, seconds), np.full(2, 4.0))
        before = made
    assert [r.message.startswith("rank 1 on b is") for r in caplog.records] == (
        [True] * named
    )


def test_status_of_ranks_adds_up_and_names_the_slowest(tmp_path: Path) -> None:
    """One of some looks is right: a rank that the machine leaves aside for a moment
    begins, ends or computes later than the others."""
    for _ in range(4):
        with contextlib.suppress(AssertionError):
            return check_status(tmp_path / "status.json")
    check_status(tmp_path / "status.json")


def check_status(path: Path) -> None:
    def program(comm: Communicator) -> str | None:
        status = Status(path)
        fit(comm, status, epochs=4, rank0=0.004, rank1=0.02)
        status.end("ended")
        return status.summary() if comm.rank == 0 else None

    told = run_threads(2, program)[0]
    found = json.loads(path.read_text())
    passed = found["time"] - found["started"]
    assert found["version"] == 1 and found["state"] == "ended"
    assert found["step"] == found["total_steps"] == 32
    assert found["rate_unit"] == "samples/s" and found["seconds_left"] == 0
    assert found["rate"] < 8 / 0.02 + 1
    for rank, part in enumerate(found["ranks"]):
        assert part["rank"] == rank and part["pid"] > 0 and part["host"]
        assert sum(part["seconds"].values()) == pytest.approx(passed, rel=0.02)
        assert 5 < part["rss_mb"] < 20_000
    fast, slow = (part["seconds"] for part in found["ranks"])
    assert slow["compute"] >= 32 * 0.02
    assert fast["waiting"] > 0.3 * slow["compute"] > slow["waiting"]
    assert fast["communication"] == slow["communication"]
    assert told is not None
    first, second = told.splitlines()
    assert "waiting for slower ranks" in first and "computing" in first
    assert second.startswith("rank 1 on ") and "was the slowest" in second


def test_short_parts_are_shown_too(tmp_path: Path) -> None:
    def program(comm: Communicator) -> str:
        status = Status(tmp_path / "status.json")
        fit(comm, status)
        status.end("ended")
        status.seconds[:] = 0.5, 0.0, 0.0, 0.01, 0.04, 0.03, 0.001
        return status.summary()

    said = run_threads(1, program)
    assert said == ["0.581 s: computing 86%, data 2%, validation 7%, saving 5%"]


def test_the_time_of_all_starts(tmp_path: Path) -> None:
    def program(comm: Communicator) -> float:
        status = Status(tmp_path / "status.json", 100.0)
        fit(comm, status)
        status.end("ended")
        return status.elapsed

    assert trained_seconds(tmp_path) == 0
    (passed,) = run_threads(1, program)
    assert passed > 0
    assert trained_seconds(tmp_path) == pytest.approx(100 + passed, abs=1e-3)
    (tmp_path / "status.json").write_text("[]")
    assert trained_seconds(tmp_path) == 0


def test_a_status_file_that_cannot_be_written_ends_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def program(comm: Communicator) -> None:
        status = Status(tmp_path / "not there" / "status.json")
        fit(comm, status)
        status.end("ended")

    run_threads(1, program)
    assert len([r for r in caplog.records if "isn't written" in r.message]) == 1


def test_only_a_job_of_the_same_token_is_marked_as_failed(tmp_path: Path) -> None:
    path = tmp_path / "status.json"
    mark_failed(tmp_path, "a")
    assert not path.exists()
    for state, job, expected in [
        ("training", "a", "failed"),
        ("training", "b", "training"),
        ("ended", "a", "ended"),
    ]:
        put(path, {"state": state, "job": job, "step": 3})
        mark_failed(tmp_path, "a")
        found = json.loads(path.read_text())
        assert (found["state"], found["step"]) == (expected, 3)
    put(path, {"state": "training", "job": "a", "step": 3})
    mark_failed(tmp_path, "a", 5)
    assert json.loads(path.read_text())["step"] == 5
    path.write_text("{")
    mark_failed(tmp_path, "a")
    assert path.read_text() == "{"


def test_times_and_traces_change_no_weight(tmp_path: Path) -> None:
    def traced(comm: Communicator) -> Any:
        shown: list[str] = []
        path = tmp_path / "trace.json"
        status = Status(tmp_path / "status.json")
        found = fit(comm, status, Tracing(path, shown.append, (2, 9)))
        status.end("ended")
        return found

    plain = run_threads(2, fit)[0]
    np.testing.assert_array_equal(run_threads(2, traced)[0], plain)
    check_trace(tmp_path / "trace.json", range(2, 11), ranks=2)


def test_a_trace_that_cannot_be_written_ends_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shown: list[str] = []
    (tmp_path / "trace.json/inside").mkdir(parents=True)

    def traced(comm: Communicator) -> Any:
        return fit(comm, Tracing(tmp_path / "trace.json", shown.append, (2, 9)))

    plain = run_threads(2, fit)[0]
    np.testing.assert_array_equal(run_threads(2, traced)[0], plain)
    assert not shown
    assert len([r for r in caplog.records if r.message.startswith("no trace")]) == 1


def test_a_trace_of_many_steps_stays_small() -> None:
    trace = Trace(3)
    for number in range(5):
        trace.add("training", f"step {number}", "step", 0.0, 1.0)
        trace.add_layer("dense", "forward", 0.0)
    kinds = [kind for _, _, kind, *_ in trace.events]
    assert kinds == ["step", "forward"] * 3
    assert trace.dropped == 4


# -- the trace


def check_trace(path: Path, steps: range, ranks: int) -> list[dict[str, Any]]:
    """Check a trace strictly by the format; return its events."""
    whole = json.loads(path.read_text())
    assert set(whole) == {"traceEvents", "displayTimeUnit", "otherData"}
    events: list[dict[str, Any]] = whole["traceEvents"]
    by_thread: dict[tuple[int, int], list[tuple[int, int]]] = {}
    names: dict[tuple[int, int], str] = {}
    for event in events:
        assert isinstance(event["pid"], int) and isinstance(event["tid"], int)
        assert isinstance(event["name"], str) and event["name"]
        place = event["pid"], event["tid"]
        if event["ph"] == "M":
            assert set(event) == {"ph", "name", "pid", "tid", "args"}
            if event["name"] == "thread_name":
                names[place] = event["args"]["name"]
            continue
        assert event["ph"] == "X" and event["cat"]
        assert set(event) - {"args"} == {
            "ph",
            "name",
            "cat",
            "pid",
            "tid",
            "ts",
            "dur",
        }
        assert event["ts"] >= 0 and event["dur"] >= 0
        start = round(event["ts"] * 1000)
        by_thread.setdefault(place, []).append(
            (start, start + round(event["dur"] * 1000))
        )
    assert set(by_thread) <= set(names), "threads without a name"
    assert "training 2" not in names.values(), "events that overlap in part"
    assert {pid for pid, _ in by_thread} == set(range(ranks))
    titles = [e["args"]["name"] for e in events if e["name"] == "process_name"]
    assert [title.split()[:2] for title in titles] == [
        ["rank", str(rank)] for rank in range(ranks)
    ]
    for spans in by_thread.values():
        check_nesting(spans)
    for rank in range(ranks):
        mine = [e for e in events if e["pid"] == rank and e["ph"] == "X"]
        training = [e for e in mine if names[rank, e["tid"]] == "training"]
        made = [e for e in training if e["cat"] == "step"]
        assert [e["args"]["step"] for e in made] == list(steps)
        begin = made[0]["ts"]
        end = made[-1]["ts"] + made[-1]["dur"]
        parts = [e for e in training if e["cat"] in KINDS]
        covered = union([(e["ts"], e["ts"] + e["dur"]) for e in parts], begin, end)
        assert covered >= 0.95 * (end - begin)
    return events


def check_nesting(spans: list[tuple[int, int]]) -> None:
    inside: list[int] = []
    for start, end in sorted(spans, key=lambda s: (s[0], -s[1])):
        while inside and inside[-1] <= start:
            inside.pop()
        assert not inside or end <= inside[-1], "events that overlap in part"
        inside.append(end)


def union(spans: list[tuple[float, float]], begin: float, end: float) -> float:
    """Return how much of the time from begin to end the spans cover."""
    covered, reached = 0.0, begin
    for start, stop in sorted(spans):
        start, stop = max(start, reached), min(stop, end)
        if stop > start:
            covered += stop - start
            reached = stop
    return covered


def in_seconds(*events: tuple[str, str, str, float, float]) -> list[Event]:
    return [(*event, None) for event in events]


def test_clocks_are_aligned_and_waits_are_found() -> None:
    """Rank 1's clock is 100 s ahead, and gains 1 ms a second."""
    exact = Offset(0.0, 0.0, 0.0), Offset(0.0, 0.0, 10.0)
    ahead = Offset(100.0, 1e-6, 100.0), Offset(100.01, 1e-6, 110.01)

    def there(time: float) -> float:
        return time + 100 + time * 1e-3

    zero = in_seconds(
        ("training", "forward", "forward", 1.0, 2.0),
        ("training", "sum of gradients", "sums", 2.0, 4.0),
    )
    one = in_seconds(
        ("training", "forward", "forward", there(1.0), there(3.5)),
        ("training", "sum of gradients", "sums", there(3.5), there(4.0)),
    )
    made = chrome_trace(
        [
            RankEvents(0, "a", 0.0, zero, 0, exact),
            RankEvents(1, "b", 100.0, one, 0, ahead),
        ]
    )
    events = [e for e in made["traceEvents"] if e["ph"] == "X"]
    wait = next(e for e in events if e["cat"] == "waiting")
    assert (wait["pid"], wait["name"]) == (0, "waiting for rank 1")
    assert wait["ts"] == pytest.approx(1.0e6, abs=20)
    assert wait["dur"] == pytest.approx(1.5e6, abs=20)
    forward = [e for e in events if e["name"] == "forward"]
    assert forward[0]["ts"] == pytest.approx(forward[1]["ts"], abs=20)
    assert made["otherData"]["clocks"][1]["ahead_us"] == [1e8, 1.0001e8]


def test_buckets_that_overlap_are_shown_beside_each_other() -> None:
    still = Offset(0.0, 0.0, 0.0), Offset(0.0, 0.0, 1.0)
    events = in_seconds(
        ("communication", "all-reduce bucket 0", "communication", 0.0, 2.0),
        ("communication", "all-reduce bucket 1", "communication", 1.0, 3.0),
        ("communication", "all-reduce bucket 2", "communication", 2.0, 4.0),
    )
    made = chrome_trace([RankEvents(0, "a", 0.0, events, 0, still)])["traceEvents"]
    lanes = [e["tid"] for e in made if e["ph"] == "X"]
    assert len(lanes) == 3 and len(set(lanes)) == 2


def test_calls_of_layers_are_limited_and_forgotten() -> None:
    model = fs.models.Sequential(
        [fs.layers.Dense(3, input_shape=(2,)), fs.layers.Dense(1)]
    )
    model.predict(np.ones((1, 2), np.float32), verbose=0)  # makes the weights
    trace = Trace(3)
    forget = watch_layers(model.root, trace)
    for _ in range(2):
        model.root.forward(np.ones((1, 2), np.float32))
    forget()
    model.root.forward(np.ones((1, 2), np.float32))
    assert [event[1] for event in trace.events] == ["0 Dense", "1 Dense", "0 Dense"]
    assert trace.dropped == 1
    assert all("forward" not in vars(layer) for _, layer in model.root.walk())


@pytest.mark.parametrize("ranks", [1, 3])
def test_clocks_of_one_host_are_the_same(ranks: int) -> None:
    assert {o.seconds for o in run_threads(ranks, clock_offset)} == {0.0}


def test_clocks_of_hosts_are_compared() -> None:
    def program(comm: Communicator) -> Offset:
        comm.groups = [[0, 1], [2]]  # as if on two hosts, whose clocks agree
        return clock_offset(comm)

    first, second, third = run_threads(3, program)
    assert first.seconds == first.error == second.seconds == 0
    assert 0 < third.error < 0.1
    assert abs(third.seconds) <= third.error


# -- the command line


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["job.yaml", "--trace"], ["job.yaml", "--trace=auto"]),
        (["--trace", "job.yaml"], ["--trace=auto", "job.yaml"]),
        (["--trace", "5:10", "job.yaml"], ["--trace=5:10", "job.yaml"]),
        (["--trace=5:10", "-n", "2"], ["--trace=5:10", "-n", "2"]),
        (["job.yaml", "-n", "2"], ["job.yaml", "-n", "2"]),
    ],
)
def test_the_value_of_trace_may_be_left_out(
    words: list[str], expected: list[str]
) -> None:
    assert joined(words) == expected


def test_steps_of_a_trace() -> None:
    assert steps_of("auto") is None
    assert steps_of("101:20") == (101, 20)
    for wrong in ("0:5", "5:0", "5", "a:b", "5:-1", ""):
        with pytest.raises(ArgumentError, match="FIRST:COUNT"):
            steps_of(wrong)


# -- jobs

CASES = {
    "one": (1, "ring", "off"),
    "ring": (2, "ring", "off"),
    "overlap": (2, "ring", "on"),
    "exact": (2, "exact", "on"),
}


def train(folder: Path, ranks: int, flavour: str, *words: str) -> Path:
    program = ["-m", "fastserve", "job.yaml", *words]
    command = [sys.executable, *program]
    if ranks > 1:
        command = mpi_command(flavour, ranks, *program)
    done = run(command, 120, cwd=folder, env=variables())
    assert done.returncode == 0, done.stdout + done.stderr
    assert "time     " in done.stdout
    return folder / "runs" / "small"


def trained(run_dir: Path) -> bytes:
    folder = max((run_dir / "checkpoints").glob("step-*"))
    return (folder / "model.safetensors").read_bytes()


@pytest.mark.mpi
@pytest.mark.parametrize(
    ("case", "flavour"),
    [
        (case, flavour)
        for case in CASES
        for flavour in ("openmpi", "mpich")
        if (case, flavour) != ("one", "mpich")  # one rank is trained without MPI
    ],
)
def test_a_traced_job(case: str, flavour: str, folder: Path) -> None:
    ranks, algorithm, overlap = CASES[case]
    keys = ["--set", f"comm.algorithm={algorithm}", "--set", f"comm.overlap={overlap}"]
    run_dir = train(folder, ranks, flavour, "--trace", f"7:{len(STEPS)}", *keys)
    events = check_trace(run_dir / "trace.json", STEPS, ranks)
    spans = [e for e in events if e["ph"] == "X"]
    kinds = {e["cat"] for e in spans if e["pid"] == 0}
    assert {"step", "data", "forward", "backward", "optimizer", "sums"} <= kinds
    assert {"validation", "saving", "saver"} <= kinds  # after step 8
    layers = {e["name"] for e in spans if e["cat"] == "backward"}
    assert any("Attention" in name for name in layers)
    buckets = [e for e in spans if e["cat"] == "communication"]
    if ranks > 1:
        numbers = {e["args"]["bucket"] for e in buckets if e["pid"] == 1}
        assert numbers == set(range(max(numbers) + 1)) and len(numbers) > 1
        assert len(buckets) == ranks * len(STEPS) * len(numbers)
        assert all(e["args"]["bytes"] > 0 for e in buckets)
    if overlap == "on":
        assert any(during(buckets, e) for e in spans if e["name"] == "backward")
    status = json.loads((run_dir / "status.json").read_text())
    assert (status["state"], status["step"]) == ("ended", 16)
    assert all(part["seconds"]["validation"] > 0 for part in status["ranks"])
    for _ in range(4):  # a rank that is left aside for a moment begins or ends later
        if adds_up(status):
            break
        train(folder, ranks, flavour, "--overwrite", *keys)
        status = json.loads((run_dir / "status.json").read_text())
    assert adds_up(status), status
    if case == "exact":
        weights = trained(run_dir)
        train(folder, 1, flavour, "--overwrite", *keys)
        assert not (run_dir / "trace.json").exists(), "of another training"
        assert trained(run_dir) == weights


def adds_up(status: dict[str, Any]) -> bool:
    """Return whether the times of each rank are about the time that has passed."""
    passed = status["time"] - status["started"]
    sums = [sum(part["seconds"].values()) for part in status["ranks"]]
    return sums == pytest.approx([passed] * len(sums), rel=0.05)


def during(buckets: list[dict[str, Any]], backward: dict[str, Any]) -> bool:
    """Return whether a bucket was on its way in this time."""
    start, end = backward["ts"], backward["ts"] + backward["dur"]
    return any(
        e["pid"] == backward["pid"] and start < e["ts"] + e["dur"] / 2 < end
        for e in buckets
    )


def test_a_stop_and_a_failure_are_told(folder: Path) -> None:
    program = [sys.executable, "-m", "fastserve", "job.yaml"]
    done = run([*program, "--stop-after", "5", "--trace"], 60, cwd=folder)
    assert done.returncode == 75, done.stderr
    run_dir = folder / "runs" / "small"
    status = json.loads((run_dir / "status.json").read_text())
    assert (status["state"], status["step"]) == ("stopped", 5)
    before = status["trained_seconds"]
    assert before > 0
    assert not (run_dir / "trace.json").exists()
    assert "no trace: the training has ended before step 9" in done.stderr
    words = [
        "--resume",
        "auto",
        "--set",
        "optimizer={type: adamw, lr: 1e30}",
        "--trace",
        "1:3",
    ]
    done = run([*program, *words], 60, cwd=folder)
    assert done.returncode == 1, done.stdout
    assert "no trace: steps 1 to 3" in done.stderr
    status = json.loads((run_dir / "status.json").read_text())
    assert status["state"] == "failed"
    assert status["trained_seconds"] >= before
