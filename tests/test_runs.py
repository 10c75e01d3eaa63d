"""What is read of run folders: whole ones, half-written ones, and foreign ones."""

from __future__ import annotations

import fcntl
import json
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from fastserve.errors import CheckpointError
from fastserve.training import files
from launch import cli, jobs, runs

CONFIG = "name: a\nmodel: {type: gpt}\ntrain: {steps: 40, global_batch: 8}\n"
LINES = [
    {"step": 10, "loss": 3.0, "tokens_per_s": 5e4, "time": 1000.0},
    {"step": 20, "loss": None, "tokens_per_s": 5e4, "time": 1001.0},
    {"step": 20, "val_loss": 2.5, "val_accuracy": 0.1, "time": 1001.5},
    {"step": 30, "loss": 2.0, "tokens_per_s": 5e4, "time": 1002.0},
    {"step": 30, "val_loss": 2.75, "val_accuracy": 0.2, "time": 1002.5},
]


def make(folder: Path, **others: Any) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(CONFIG)
    text = "".join(json.dumps(line) + "\n" for line in LINES)
    (folder / "metrics.jsonl").write_text(text)
    (folder / ".lock").write_text("process 1 on here\n")
    for name, value in others.items():
        (folder / f"{name}.json").write_text(json.dumps(value))
    return folder


def test_a_run(tmp_path: Path) -> None:
    done = {"job": "x", "ranks": 2, "steps": 40, "time": 1010.0}
    run = runs.read_run(make(tmp_path / "a", done=done, environment={"python": "3"}))
    assert (run.name, run.state, run.step, run.total_steps) == ("a", "ended", 40, 40)
    assert run.ranks == 2 and run.last_time == 1010.0
    assert run.results == {"val_loss": 2.75, "val_accuracy": 0.2}
    assert run.best() == (2.5, 20) and run.last("loss") == 2.0
    assert run.last("absent") is None and run.best("absent") is None
    assert run.value("model", "type") == "gpt" and run.value("model", "x", "y") is None
    assert runs.series(run.metrics, "loss") == ([10, 30], [3.0, 2.0])
    assert run.environment == {"python": "3"} and run.status == {}


def test_the_states_of_a_run(tmp_path: Path) -> None:
    assert runs.read_run(make(tmp_path / "stopped", stopped={"steps": 7})).step == 30
    assert runs.read_run(tmp_path / "stopped").state == "stopped"
    killed = make(tmp_path / "killed")
    assert runs.read_run(killed).state == "failed"
    (killed / ".lock").unlink()
    assert runs.read_run(killed).state == "unknown"
    training = {"state": "training", "time": time.time(), "step": 35, "total_steps": 50}
    fresh = runs.read_run(make(tmp_path / "fresh", status=training))
    assert fresh.state == "failed"  # fresh, but nobody has the lock any more
    assert (fresh.step, fresh.total_steps) == (35, 50)
    (tmp_path / "fresh" / ".lock").unlink()  # as on a file system without locks
    assert runs.read_run(tmp_path / "fresh").state == "running"
    old = make(tmp_path / "old", status=training | {"time": time.time() - 3600})
    (old / ".lock").unlink()
    assert runs.read_run(old).state == "unknown"


def test_errors_of_an_earlier_attempt_are_not_those_of_this_one(tmp_path: Path) -> None:
    run_dir = make(tmp_path / "a")
    (run_dir / "errors").mkdir()
    record = {"rank": 1, "host": "h", "type": "E", "message": "m", "status": 3}
    path = run_dir / "errors" / "rank-00001.json"
    path.write_text(json.dumps(record | {"time": time.time() + 5}))
    run = runs.read_run(run_dir)
    assert run.state == "failed" and [e.rank for e in run.errors] == [1]
    assert run.step == 30  # of the last line of metrics: an older version's record
    path.write_text(json.dumps(record | {"time": time.time() + 5, "step": 37}))
    assert runs.read_run(run_dir).step == 37
    path.write_text(json.dumps(record | {"time": 1000.0}))
    assert runs.read_run(run_dir).errors == []


def test_a_running_job_is_known_by_its_lock(tmp_path: Path) -> None:
    run_dir = make(tmp_path / "a", done={"steps": 40})
    with files.hold(run_dir):
        assert runs.read_run(run_dir).state == "running"
        with pytest.raises(CheckpointError, match="no other job uses"):
            files.hold(run_dir)
    assert runs.read_run(run_dir).state == "ended"


def test_a_look_at_the_lock_keeps_no_job_from_starting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (make(tmp_path / "a") / ".lock").open() as looks:
        fcntl.flock(looks, fcntl.LOCK_SH)
        monkeypatch.setattr(files.time, "sleep", lambda _: looks.close())
        files.hold(tmp_path / "a").close()


def test_damaged_and_missing_files(tmp_path: Path) -> None:
    run_dir = make(tmp_path / "a")
    for name in ("status", "done", "stopped", "environment"):
        (run_dir / f"{name}.json").write_text('{"half": ')
    (run_dir / "config.yaml").write_bytes(b"\xff\xfe{{{")
    whole = (run_dir / "metrics.jsonl").read_text()
    odd = '[1]\n"x"\n{"step": "1"}\n{"step": true}\n' + "[" * 100_000 + "\n\xff\n"
    (run_dir / "metrics.jsonl").write_text(odd + whole + '{"step": 40, "lo')
    run = runs.read_run(run_dir)
    assert run.config == {} and run.status == {} and run.end == {}
    assert run.metrics == LINES and run.total_steps is None
    (run_dir / "metrics.jsonl").unlink()
    assert runs.read_run(run_dir).step is None


def test_folders_that_are_no_runs(tmp_path: Path) -> None:
    make(tmp_path / "b")
    make(tmp_path / "group" / "c")
    (tmp_path / "empty" / "deep").mkdir(parents=True)
    (tmp_path / "file").write_text("x")
    assert [run.name for run in runs.find_runs(tmp_path)] == ["b", "c"]
    assert list(runs.find_runs(tmp_path / "absent")) == []
    for folder in ("empty", "absent", "file"):
        with pytest.raises(CheckpointError, match="expected the folder of a run"):
            runs.read_run(tmp_path / folder)


USES = {
    "evaluate": [],
    "generate": [],
    "predict": [],
    "export": ["--to", "x"],
    "merge-lora": ["--to", "x"],
    "verify": [],
    "report": [],
    "plot": [],
    "top": [],
}


@pytest.mark.parametrize("command", USES)
def test_every_command_tells_which_runs_there_are(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "prepare_process", lambda *threads: None)
    monkeypatch.chdir(tmp_path)

    def message(folder: str) -> list[str]:
        result = CliRunner().invoke(cli.cli, [command, folder, *USES[command]])
        assert isinstance(result.exception, CheckpointError), result.output
        return str(result.exception).split("\n")

    (tmp_path / "empty").mkdir()
    expected, received, todo = message("empty")
    assert expected.startswith("expected the folder of a run, with a config.yaml")
    assert received.startswith("  received: empty, which has no config.yaml")
    assert todo.startswith("  to do: train one, as fastserve run JOB.yaml, or go to")
    make(tmp_path / "runs" / "small")
    make(tmp_path / "runs" / "other")
    assert message("runs/nope")[1:] == [
        "  received: runs/nope, which doesn't exist",
        "  to do: give one of them: runs/ has other, small",
    ]
    for folder in ("runs/smal", "smal", "empty/small", "small"):
        todo = "  to do: did you mean runs/small? runs/ has other, small"
        assert message(folder)[-1] == todo
    assert message("runs")[-1] == "  to do: give one of them: runs/ has other, small"
    for i in range(12):
        make(tmp_path / "runs" / f"x{i:02}")
    assert message("nope")[-1].endswith(
        "has other, small, x00, x01, x02, x03, x04, x05, x06, x07 and 4 more"
    )


def test_forged_files_of_a_run_are_read_as_far_as_they_are_sound(
    tmp_path: Path,
) -> None:
    from launch.runs import read_run

    aliases = [f"k{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 9)]
    (tmp_path / "config.yaml").write_text("\n".join(["k0: &a0 [x]", *aliases]))
    huge = "9" * 400
    lines = [f'{{"step": 1, "loss": {huge}}}', f'{{"step": {huge}}}']
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    (tmp_path / "status.json").write_text("[" * 100_000)
    run = read_run(tmp_path)
    assert (run.config, run.status, run.step) == ({}, {}, 1)
    assert run.last("loss") is None
