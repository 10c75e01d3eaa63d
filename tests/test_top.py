"""``fastserve runs`` and ``fastserve top``: what they show of run folders."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import subprocess
import sys
import termios
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from mpi_environments import run, variables
from run_folders import START, make_run, write_json

from fastserve import formatting
from fastserve.training import files
from launch import run_list, top
from launch.cli import cli
from launch.runs import MetricsReader, Run, read_run

SECONDS = {"compute": 0.1, "communication": 0.01, "waiting": 0.02, "data": 0.001}


def status(run_dir: Path, ranks: int = 2, **changes: Any) -> dict[str, Any]:
    """Write a status.json as a training run leaves it; rank 1 computes longer."""
    found = {
        "version": 1,
        "state": "training",
        "step": 50,
        "total_steps": 100,
        "started": START,
        "time": START + 60,
        "loss": 1.9,
        "rate": 51_200.0,
        "rate_unit": "tokens/s",
        "seconds_left": 31.2,
        "ranks": [
            {
                "rank": rank,
                "host": f"node{rank // 2}",
                "pid": 100 + rank,
                "rss_mb": 210.5 + rank,
                "seconds": SECONDS,
                "step_seconds": SECONDS | ({"compute": 0.2} if rank == 1 else {}),
            }
            for rank in range(ranks)
        ],
        **changes,
    }
    write_json(run_dir / "status.json", found)
    return found


def training(run_dir: Path, ranks: int = 2, **changes: Any) -> Path:
    """Make the folder of a run in the middle of its training."""
    path = make_run(run_dir, steps=100) / "metrics.jsonl"
    (run_dir / "done.json").unlink()
    written = path.read_text().splitlines(keepends=True)
    path.write_text("".join(x for x in written if json.loads(x)["step"] <= 50))
    status(run_dir, ranks, **changes)
    return run_dir


def lines(run: Run, width: int = 80, height: int = 24, after: float = 61) -> list[str]:
    found = top.view(run, width, height, START + after).split("\n")
    assert len(found) <= height
    assert all(len(line) <= width for line in found), found
    return found


def test_a_training_job(tmp_path: Path) -> None:
    run_dir = training(tmp_path / "quick")
    with files.hold(run_dir):
        found = lines(read_run(run_dir))
    assert re.fullmatch(r"quick  running +last look 0:01 ago", found[0])
    assert found[1] == (
        "step 50/100  ━━━━━━━━━━╺╺╺╺╺╺╺╺╺╺  50%  loss 1.9000  51.2k tokens/s  0:31 left"
    )
    assert found[2].startswith("loss          █▄▃")
    assert re.fullmatch(r"val_loss .* 0.7000 to 0.5000, best 0.5000 at 40", found[3])
    table = [line.split() for line in found[-3:]]
    assert table[0][2:] == ["memory", "step", "compute", "comm.", "wait", "data"]
    row = "0 node0 210 MB 131 ms 100 ms 10 ms 20 ms 1.0 ms"
    assert " ".join(found[-2].split()) == row
    assert found[-1].endswith("< slowest") and "231 ms" in found[-1]


def test_many_ranks_in_a_small_window(tmp_path: Path) -> None:
    run_dir = training(tmp_path / "wide", ranks=64)
    found = lines(read_run(run_dir), height=16)
    assert len(found) == 16
    words = found[-1].split()
    assert (words[:3], words[-1]) == (["+57", "242", "MB"], "medians")
    assert "< slowest" in "\n".join(found)  # it is among those that are shown
    assert len(lines(read_run(run_dir), width=40, height=8)) == 8
    everything = top.view(read_run(run_dir), 80, 10**6, START + 61)
    assert everything.count("node") == 64


@pytest.mark.parametrize(
    ("width", "left"),
    [
        (80, "rank host memory step compute comm. wait data"),
        (71, "rank host step compute comm. wait data"),
        (63, "rank host step compute wait data"),
        (50, "rank step compute wait data"),
        (40, "rank step wait data"),
        (39, "rank wait data"),
        (31, "rank wait"),
    ],
)
def test_columns_are_dropped_in_a_narrow_window(
    tmp_path: Path, width: int, left: str
) -> None:
    """The others, and the mark of the slowest rank, stay whole."""
    run = read_run(training(tmp_path / "quick"))
    head, first, second = lines(run, width)[-3:]
    assert head.split() == left.split()
    assert second.endswith("< slowest")
    assert "20 ms" in first  # that it waits


def test_what_it_says_of_states(tmp_path: Path) -> None:
    run_dir = training(tmp_path / "a")
    with files.hold(run_dir):
        assert "no word for 0:40: it validates or saves, or hangs" in lines(
            read_run(run_dir), after=100
        )
        slow = {"step_seconds": {"compute": 8.0}}
        status(run_dir, ranks=1)
        found = json.loads((run_dir / "status.json").read_text())
        found["ranks"][0] |= slow
        write_json(run_dir / "status.json", found)
        assert not [
            line for line in lines(read_run(run_dir), after=100) if "no word" in line
        ]
    assert "its processes are gone without a word: killed?" in lines(read_run(run_dir))
    record = {"rank": 1, "host": "node1", "type": "ValueError", "message": "bad\nx"}
    record |= {"time": time.time() + 9, "status": 1}
    write_json(run_dir / "errors" / "rank-00001.json", record)
    assert "rank 1 on node1: bad" in lines(read_run(run_dir))
    (run_dir / "errors" / "rank-00001.json").unlink()
    write_json(run_dir / "done.json", {"steps": 100, "ranks": 2, "time": START + 100})
    assert re.fullmatch("a  ended +1 s ago", lines(read_run(run_dir), after=101)[0])


@pytest.mark.parametrize(
    "found",
    [
        {},
        {"ranks": None, "loss": "x", "step": None},
        {"ranks": [1, {}, {"step_seconds": 3}, {"rank": "a", "rss_mb": None}]},
        {"ranks": [{"step_seconds": {"compute": 0.1}}, {"step_seconds": {}}]},
    ],
)
def test_half_of_a_status(tmp_path: Path, found: dict[str, Any]) -> None:
    run_dir = training(tmp_path / "a")
    write_json(run_dir / "status.json", found)
    assert lines(read_run(run_dir))
    for name in ("metrics.jsonl", "status.json"):
        (run_dir / name).unlink()
        assert lines(read_run(run_dir))


def test_metrics_are_read_as_they_come(tmp_path: Path) -> None:
    reader, path = MetricsReader(tmp_path), tmp_path / "metrics.jsonl"
    assert reader.read() == []
    path.write_text('{"step": 1}\n{"step": 2')
    assert [line["step"] for line in reader.read()] == [1]
    with path.open("a") as file:
        file.write(', "loss": 1.0}\n{"step": 3}\n')
    assert [line["step"] for line in reader.read()] == [1, 2, 3]
    files.write_atomically(
        path, '{"step": 1}\n{"step": 2}\n{"step": 9}\n{"step": 10}\n'
    )
    assert [line["step"] for line in reader.read()] == [1, 2, 9, 10]  # it was resumed


def test_once(tmp_path: Path) -> None:
    run_dir = training(tmp_path / "a", ranks=64)
    command = [sys.executable, "-m", "launch.cli", "top", str(run_dir), "--once"]
    done = run(command, 30, env=variables())
    assert done.returncode == 0 and done.stdout.count("node") == 64
    assert "\x1b" not in done.stdout
    done = run([*command[:-2], str(tmp_path)], 30, env=variables())
    assert done.returncode == 2 and "expected the folder of a run" in done.stderr


@pytest.mark.parametrize("leave", [b"q", b"\x03"])
def test_the_live_view_gives_the_terminal_back(tmp_path: Path, leave: bytes) -> None:
    run_dir = training(tmp_path / "live", time=time.time())
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(ours, (24, 80)) if hasattr(termios, "tcsetwinsize") else None
    before = termios.tcgetattr(theirs)
    command = [sys.executable, "-m", "launch.cli", "top", str(run_dir)]
    env = variables(TERM="xterm", COLUMNS="80", LINES="24")
    env.pop("NO_COLOR", None)
    shown = b""

    def until(wanted: bytes, seconds: float = 30) -> None:
        nonlocal shown
        end = time.monotonic() + seconds
        while wanted not in shown and time.monotonic() < end:
            if select.select([ours], [], [], 0.2)[0]:
                shown += os.read(ours, 1 << 16)
        assert wanted in shown, shown

    with files.hold(run_dir):
        process = subprocess.Popen(
            command,
            stdin=theirs,
            stdout=theirs,
            env=env,
            start_new_session=True,
            preexec_fn=lambda: _controlling_terminal(),
        )
        try:
            until(b"\x1b[?1049h")
            until(b"step 50/100")
            status(run_dir, step=60, time=time.time())
            until(b"step 60/100")
            os.write(ours, leave)
            until(b"\x1b[?1049l")
            assert process.wait(10) == 0
        finally:
            process.kill()
            process.wait()
    while select.select([ours], [], [], 0.2)[0]:
        shown += os.read(ours, 1 << 16)
    end = shown.partition(b"\x1b[?1049l")[2]
    assert b"live" in end and b"step 60/100" in end  # the last look stays
    assert termios.tcgetattr(theirs)[3] == before[3]
    os.close(ours)
    os.close(theirs)


def _controlling_terminal() -> None:
    import fcntl

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def test_the_live_view_ends_with_the_job(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "a")
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "launch.cli", "top", str(run_dir)]
    done = subprocess.run(
        command, stdin=theirs, stdout=theirs, env=variables(NO_COLOR="1"), timeout=30
    )
    shown = b""  # all that is there, which a terminal gives in pieces
    while b"step 100/100" not in shown or select.select([ours], [], [], 0.2)[0]:
        assert select.select([ours], [], [], 10)[0], shown
        shown += os.read(ours, 1 << 16)
    assert done.returncode == 0
    assert b"step 100/100" in shown and b"\x1b[1m" not in shown
    os.close(ours)
    os.close(theirs)


# -- runs ------------------------------------------------------------------------------


def listed(*arguments: str) -> str:
    done = CliRunner().invoke(cli, ["runs", *arguments], standalone_mode=False)
    assert done.exception is None, done.exception
    return done.output


def test_the_list_of_runs(tmp_path: Path) -> None:
    make_run(tmp_path / "b-best", steps=100)
    make_run(tmp_path / "group" / "a", steps=40)
    make_run(tmp_path / "plain", train={"steps": 300})
    (tmp_path / "plain" / "done.json").unlink()
    (tmp_path / "plain" / ".lock").touch()
    (tmp_path / "notes").mkdir()
    write_json(tmp_path / "b-best" / "status.json", {"trained_seconds": 98.4})
    with files.hold(tmp_path / "plain"):
        found = [re.split(r"  +", line) for line in listed(str(tmp_path)).splitlines()]
    assert tuple(found[0]) == run_list._HEAD
    assert [row[0] for row in found[1:]] == ["plain", "b-best", "group/a"]
    assert found[1][:5] == ["plain", "running", "100/300", "0.1000", "80"]
    assert found[2][:6] == ["b-best", "ended", "100", "0.1000", "80", "1:38"]
    assert found[2][7] == "val_loss 0.3000"
    names = [
        line.split()[0] for line in listed(str(tmp_path), "--sort", "name").splitlines()
    ]
    assert names[1:] == ["b-best", "group/a", "plain"]


def test_runs_for_programs(tmp_path: Path) -> None:
    make_run(tmp_path / "one")
    found = json.loads(listed(str(tmp_path), "--json"))
    assert [row["name"] for row in found] == ["one"]
    assert found[0]["best_val_loss"] == pytest.approx(0.1)
    assert found[0]["best_step"] == 80 and found[0]["ranks"] == 2
    assert found[0]["last"]["val_accuracy"] == pytest.approx(0.7)
    assert json.loads(listed(str(tmp_path / "one"), "--json"))[0]["state"] == "ended"
    (tmp_path / "none").mkdir()
    assert listed(str(tmp_path / "none")) == f"no runs in {tmp_path / 'none'}\n"
    assert json.loads(listed(str(tmp_path / "none"), "--json")) == []


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    done = CliRunner().invoke(cli, ["runs", str(tmp_path / "x")], standalone_mode=False)
    assert "expected a folder with runs" in str(done.exception)


def test_numbers_and_times() -> None:
    now = 1e9
    ago = [formatting.when(now - s, now) for s in (-5, 30, 600, 7200, 10 * 86400)]
    assert ago[:4] == ["0 s ago", "30 s ago", "10 min ago", "2 h ago"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", ago[4]) and formatting.when(None) == "-"
    assert [formatting.duration(s) for s in (5, 75, 3615, 200_000)] == [
        "0:05",
        "1:15",
        "1:00:15",
        "2d 07h",
    ]
    assert (
        formatting.sparkline([1, 2, 3, 4], 2) == "▁█"
        and formatting.sparkline([], 9) == ""
    )
    assert formatting.sparkline([5, 5], 9) == "▁▁"
    assert formatting.sparkline([1, float("nan"), 3], 9) == "▁█"
    assert [formatting.memory(m) for m in (None, 210.5, 2100)] == [
        "-",
        "210 MB",
        "2.1 GB",
    ]
    assert [formatting.short_time(s) for s in (0.0123, 1.5, 150, 0.0, 0.9999)] == [
        *("12 ms", "1.5 s", "150 s", "0 ms", "1.0 s")
    ]
