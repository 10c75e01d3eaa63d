"""``fastserve plot``: what is drawn, where it goes, what is refused."""

from __future__ import annotations

import json
import math
import os
import struct
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from run_folders import make_run, write_json

from fastserve.errors import (
    ArgumentError,
    CheckpointError,
    LaunchError,
    UnknownNameError,
)
from launch import curves
from launch.cli import cli
from launch.runs import Run, read_run


def plot(*words: object) -> Result:
    """Run the command; skipped without matplotlib, but not in CI."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        if os.environ.get("CI") != "true":
            pytest.skip("pip install matplotlib")
        raise
    words = ("plot", *words)
    return CliRunner().invoke(cli, [str(w) for w in words], catch_exceptions=False)


def size(png: Path) -> tuple[int, int]:
    content = png.read_bytes()
    assert content.startswith(b"\x89PNG")
    width, height = struct.unpack(">II", content[16:24])
    return width, height


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path / "one")


def test_a_run_makes_three_pictures(run: Path) -> None:
    assert plot(run).exit_code == 0
    made = sorted(path.name for path in (run / "plots").iterdir())
    assert made == ["loss.png", "metrics.png", "rate.png"]
    assert size(run / "plots" / "loss.png") == (960, 540)


@pytest.mark.parametrize("name", ["all.png", "all.svg", "all.pdf"])
def test_output_makes_one_picture(run: Path, tmp_path: Path, name: str) -> None:
    result = plot(run, "--output", tmp_path / "new" / name, "--log", "--x", "epoch")
    assert result.output.split() == [str(tmp_path / "new" / name)]
    assert [path.name for path in (tmp_path / "new").iterdir()] == [name]
    assert not (run / "plots").exists()


def test_names_are_drawn_as_they_are(tmp_path: Path) -> None:
    first, second = make_run(tmp_path / "_a $x^2$"), make_run(tmp_path / "_b")
    path = tmp_path / "two.svg"
    assert plot(first, second, "--output", path, "--metrics", "loss").exit_code == 0
    text = path.read_text("utf-8")
    assert "<!--  _a $x^2$ -->" in text  # matplotlib names the text that it draws
    assert "<!--  _b -->" in text


def test_several_runs_make_one_picture_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [make_run(tmp_path / name) for name in "ab"]
    monkeypatch.chdir(tmp_path)
    assert plot(*runs).output.strip() == "comparison.png"
    assert size(tmp_path / "comparison.png")[0] > 1000


def test_curves_of_several_runs_have_no_marks_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The legend tells of lines alone; runs validate often, or a few times."""
    pytest.importorskip("matplotlib")
    from matplotlib.axes import Axes

    drawn: list[tuple[int, object]] = []
    own = Axes.plot

    def plotted(self: Axes, *args: object, **kw: object) -> object:
        drawn.extend([(len(args[0]), kw.get("marker"))])  # type: ignore[arg-type]
        return own(self, *args, **kw)  # type: ignore[arg-type]

    monkeypatch.setattr(Axes, "plot", plotted)
    runs = [make_run(tmp_path / f"{n}", n) for n in (20, 100, 1000)]
    words = ("--metrics", "loss", "--output", tmp_path / "all.png")
    assert plot(*runs, *words).exit_code == 0
    lines = {points: marker for points, marker in drawn if marker != "*"}
    # each run has a training curve and a validation of a fourth of its points
    assert lines == {4: None, 1: "o", 20: None, 5: None, 200: None, 50: None}


def test_without_matplotlib_it_says_what_to_install(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    from launch import plots

    with pytest.raises(LaunchError, match=r"pip install 'fastserve-train\[plot\]'"):
        plots.plot([read_run(run)])
    assert not (run / "plots").exists()


def test_what_is_refused(run: Path, tmp_path: Path) -> None:
    from launch import plots

    found = [read_run(run)]
    with pytest.raises(ArgumentError, match=r"\.png, \.svg, \.pdf"):
        plots.plot(found, Path("a.jpg"))
    with pytest.raises(UnknownNameError, match="did you mean 'accuracy'"):
        plots.plot(found, only=["acuracy"])
    (run / "metrics.jsonl").write_text("")
    with pytest.raises(CheckpointError, match="expected a run with metrics"):
        curves.panels([read_run(run)])
    with pytest.raises(CheckpointError, match="expected the folder of a run"):
        plot(tmp_path / "none")


def test_a_file_that_cannot_be_written_is_an_error(run: Path) -> None:
    (run / "plots").write_text("a file")
    with pytest.raises(CheckpointError, match="choose another file with --output"):
        plot(run)


# -- the curves -----------------------------------------------------------------------


def panels(run: Path, *args: object, **kw: object) -> dict[str, curves.Panel]:
    made, _ = curves.panels([read_run(run)], *args, **kw)  # type: ignore[arg-type]
    return {panel.name: panel for panel in made}


def test_panels_pair_training_and_validation(run: Path) -> None:
    found = panels(run)
    names = [
        "loss",
        "accuracy",
        "grad_norm",
        "learning_rate",
        "samples_per_s",
        "gflops",
    ]
    assert list(found) == names
    assert [curve.name for curve in found["loss"].curves] == ["loss", "val_loss"]
    loss, accuracy = found["loss"].curves[1], found["accuracy"].curves[0]
    assert loss.best is not None and loss.steps[loss.best] == 80  # the lowest
    assert accuracy.best == loss.best  # the highest
    assert found["gflops"].curves[0].best is None
    assert found["loss"].label == "loss (mse)"
    assert [p.group for p in found.values()] == [
        "loss",
        *["metrics"] * 3,
        *["rate"] * 2,
    ]


def test_the_axes(run: Path) -> None:
    read = [read_run(run)]
    for axis, last, label in (
        ("step", 100.0, "step"),
        ("epoch", 10.0, "epoch"),  # of 80 samples by 8
        ("time", 47.5, "time (s)"),
    ):
        made, unit = curves.panels(read, axis)  # type: ignore[arg-type]
        assert made[0].curves[0].x[-1] == last
        assert unit == label


def test_long_times_are_in_minutes(tmp_path: Path) -> None:
    run = make_run(tmp_path / "long", steps=1000, every=10)
    made, unit = curves.panels([read_run(run)], "time")
    assert unit == "time (min)"
    assert made[0].curves[0].x[-1] == pytest.approx(495 / 60)


@pytest.mark.parametrize(
    ("train", "steps"), [({"steps": 100}, 81 / 8), ({"epochs": 9}, 11), ({}, 11)]
)
def test_the_last_batch_of_a_pass(
    run: Path, train: dict[str, int], steps: float
) -> None:
    (run / "config.yaml").write_text(f"train: {train}")
    state = {"state": {"samples": 81, "global_batch": 8}}
    write_json(run / "checkpoints" / "step-00000100" / "state.json", state)
    assert curves.steps_per_epoch(read_run(run)) == steps


def test_runs_of_different_losses_share_no_name(run: Path, tmp_path: Path) -> None:
    model = {"type": "gpt"}
    two = [read_run(run), read_run(make_run(tmp_path / "gpt", model=model))]
    for runs, label in (
        (two, "loss"),
        (two[:1] * 2, "loss (mse)"),
        (two[1:], "loss (nats per token)"),
    ):
        made, _ = curves.panels(runs)
        assert made[0].label == label


def test_epochs_without_a_checkpoint(run: Path) -> None:
    (run / "checkpoints" / "step-00000100" / "state.json").write_text("{")
    with pytest.raises(ArgumentError, match="take --x step, or --x time"):
        panels(run, "epoch")


def test_damaged_and_missing_values(run: Path) -> None:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    lines[0] = json.dumps({"step": 5, "loss": None})  # without a time, too
    lines[1] = json.dumps({"step": 10, "loss": "text", "time": 1.0})
    lines[-1] = lines[-1][:20]
    (run / "metrics.jsonl").write_text("\n".join(lines))
    found = panels(run)["loss"].curves[0]
    assert found.y[:2] == [None, None]
    assert all(value is not None for value in found.y[2:])
    assert len(panels(run, "time")["loss"].curves[0].x) == len(found.x) - 1


def test_means_keep_straight_lines_and_gaps() -> None:
    line = [float(i) for i in range(20)]
    assert curves.means(line, 7) == pytest.approx(line)
    assert curves.means([1.0, None, 3.0, 5.0, 7.0], 3)[1] is None
    assert curves.means([1.0, None, 3.0, 5.0, 7.0], 3)[2] == 4.0
    smoothed = curves.means([1.0, 3.0] * 50, 10)
    assert all(abs((v or 0) - 2) < 0.2 for v in smoothed[5:-5])


def test_thin_keeps_what_is_seen() -> None:
    y: list[float | None] = [math.sin(i / 500) for i in range(10_000)]
    y[1234], y[5678] = 9.0, -9.0
    y[7000] = None
    kept = curves.thin(y, 400)
    assert len(kept) <= 420
    assert {0, 1234, 5678, 7000, 9999} <= set(kept)
    assert curves.thin(y[:300], 400) == list(range(300))


def test_ticks() -> None:
    assert curves.ticks(0, 10) == [0, 2, 4, 6, 8, 10]
    assert curves.ticks(0.013, 0.049) == pytest.approx([0.02, 0.03, 0.04])
    assert curves.ticks(3, 3) == [3]
    assert curves.log_ticks(0.01, 10) == pytest.approx([0.01, 0.1, 1, 10])
    assert curves.log_ticks(2.1, 2.9) == pytest.approx([2.2, 2.4, 2.6, 2.8])
    shown = [curves.label_of(v) for v in (0.05, 2000, 20_000, 1.5e6)]
    assert shown == ["0.05", "2000", "20k", "1.5M"]


def test_labels_tell_runs_apart(tmp_path: Path) -> None:
    def run(folder: Path) -> Run:
        return Run(folder, {}, [], {}, {}, "unknown")

    assert curves.labels([run(tmp_path / "a"), run(tmp_path / "b")]) == ["a", "b"]
    same = [tmp_path / "x" / "a", tmp_path / "y" / "a"]
    assert curves.labels([run(path) for path in same]) == list(map(str, same))
