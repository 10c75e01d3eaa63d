"""The metrics as a table, for TensorBoard, and as events."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from test_callbacks_keras import read_events

from fastserve.errors import StateError
from fastserve.training.metrics_outputs import (
    CsvOutput,
    EventOutput,
    Line,
    TensorBoardOutput,
)

FIRST: list[Line] = [
    {"step": 10, "loss": 3.5, "time": 1000.25},
    {"step": 20, "loss": None, "time": 1001.0},
]
VALIDATION: Line = {"step": 20, "val_loss": 3.25, "val_a,b": 1.0, "time": 1002.0}


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_names_that_come_later_get_the_next_columns(tmp_path: Path) -> None:
    output = CsvOutput(tmp_path / "metrics.csv")
    output.begin([])
    for line in (*FIRST, VALIDATION, {"step": 30, "loss": 2.0, "time": 1003.0}):
        output.write(line)
    assert (tmp_path / "metrics.csv").read_text() == (
        'step,time,loss,val_loss,"val_a,b"\n'
        "10,1000.25,3.5,,\n"
        "20,1001.0,nan,,\n"
        "20,1002.0,,3.25,1.0\n"
        "30,1003.0,2.0,,\n"
    )


def test_a_table_goes_on_with_what_the_run_has_kept(tmp_path: Path) -> None:
    output = CsvOutput(tmp_path / "metrics.csv")
    output.begin([])
    for line in (*FIRST, VALIDATION):
        output.write(line)
    with output.path.open("a") as file:
        file.write("30,10")  # the process was killed
    output = CsvOutput(tmp_path / "metrics.csv")
    output.begin([*FIRST, VALIDATION])
    output.write({"step": 30, "loss": 2.0, "time": 1003.0})
    assert [row["step"] for row in table(output.path)] == ["10", "20", "20", "30"]
    output.begin(FIRST[:1])
    assert table(output.path) == [{"step": "10", "time": "1000.25", "loss": "3.5"}]


def test_events_hold_each_step_once(tmp_path: Path) -> None:
    folder = tmp_path / "tensorboard"
    output = TensorBoardOutput(folder)
    output.begin([])
    for line in (*FIRST, VALIDATION):
        output.write(line)
    # the process was killed, and goes on from a checkpoint of step 10
    again = TensorBoardOutput(folder)
    again.begin(FIRST[:1])
    again.write({"step": 20, "loss": 2.0, "time": 1003.0})
    again.close()
    assert read_events(folder / "train") == {"loss": [(10, 3.5), (20, 2.0)]}
    assert not (folder / "validation").exists()
    output.close()


def test_tensorboard_without_its_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "tensorboardX", None)
    with pytest.raises(StateError, match=r"fastserve-train\[tensorboard\]"):
        TensorBoardOutput(tmp_path)


def test_lines_as_events() -> None:
    events = []
    output = EventOutput(lambda event, line: events.append((event, line)))
    output.begin(FIRST)
    output.write(FIRST[0])
    output.write(VALIDATION)
    output.close()
    assert events == [("step", FIRST[0]), ("validation", VALIDATION)]
