"""Which kernel family is taken, what is remembered, and what a crash does to it."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fastserve import environment
from launch import blas

FAKE = """
import os, signal, sys
family = os.environ.get('OPENBLAS_CORETYPE', '')
if family == 'Illegal':
    os.kill(os.getpid(), signal.SIGILL)
if family == 'Wrong':
    sys.exit('wrong product')
print('ready', flush=True)
for line in sys.stdin:
    if family == 'Late':
        os.kill(os.getpid(), signal.SIGSEGV)
    if family == 'Stuck':
        signal.pause()
    print({'': 0.5, 'Fast': 0.25}[family], flush=True)
"""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FASTSERVE_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("OPENBLAS_CORETYPE", raising=False)
    return tmp_path / "cache" / "blas.json"


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        ({"": 1.0, "Haswell": 2.0}, ""),
        ({"": 1.0, "SkylakeX": 0.5, "Zen": 0.6}, "SkylakeX"),
        ({"": 1.0, "SkylakeX": 0.98}, ""),
        ({"": 1.0, "SkylakeX": 0.95}, "SkylakeX"),
        ({"SkylakeX": 0.5}, ""),
        ({}, ""),
    ],
)
def test_another_family_must_be_clearly_faster(
    times: dict[str, float], expected: str
) -> None:
    assert blas.fastest(times) == expected


def test_other_machines_have_no_candidates_but_their_own() -> None:
    assert blas.candidates("aarch64") == ("",)
    assert set(blas.candidates("x86_64")) > {"", "Haswell", "SkylakeX", "Zen"}


def test_families_that_crash_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    # What the environment says must not reach the child that measures the own choice.
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Illegal")
    families = ("", "Illegal", "Wrong", "Late", "Fast")
    assert blas.measure(families, code=FAKE) == {"": 0.5, "Fast": 0.25}


def test_a_family_that_hangs_is_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ask, begin = blas._ask, list[float]()

    def impatient(child: Any) -> str:
        """Once the children have started, which has no limit here."""
        begin.append(time.monotonic())
        monkeypatch.setattr(blas, "_SECONDS", 3.0)
        return ask(child)

    monkeypatch.setattr(blas, "_ask", impatient)
    assert blas.measure(("Fast", "Stuck"), code=FAKE) == {"Fast": 0.25}
    assert time.monotonic() - begin[0] < 10


@pytest.mark.parametrize("kind", [blas.LARGE, blas.RECURRENT, blas.CONVOLUTION])
def test_a_real_measurement_is_remembered(
    kind: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blas, "candidates", lambda: ("", "Haswell"))
    lines: list[str] = []
    kernel = blas.choose_kernel(lines.append, kind=kind)
    assert kernel in ("", "Haswell")
    assert environment.remembered_kernel(kind) == kernel
    entry = json.loads(cache.read_text())[environment.kernel_key(kind)]
    assert 0 < entry["milliseconds"]["own"] < 60_000
    assert len(lines) == 1
    assert lines[0].startswith("BLAS kernels measured")
    assert kind in lines[0]


@pytest.mark.parametrize(
    ("layers", "kind"),
    [
        ([{"Dense": {"units": 3}}], blas.LARGE),
        ([{"Conv1D": {}}, {"Dense": {"units": 3}}], blas.CONVOLUTION),
        ([{"DepthwiseConv2D": {}}], blas.CONVOLUTION),
        ([{"Conv1D": {}}, {"GRU": {"units": 3}}], blas.RECURRENT),
        ([{"Bidirectional": {"layer": {"LSTM": {"units": 3}}}}], blas.RECURRENT),
        ([{"TimeDistributed": {"layer": "SimpleRNN"}}], blas.RECURRENT),
    ],
)
def test_the_kind_of_a_job_is_that_of_its_layers(
    layers: list[dict[str, dict[str, object]]], kind: str
) -> None:
    assert blas.kind_of(SimpleNamespace(layers=layers)) == kind


def test_a_model_without_layers_in_the_job_has_large_products() -> None:
    assert blas.kind_of(SimpleNamespace(type="gpt")) == blas.LARGE


def test_each_kind_is_remembered_for_itself() -> None:
    blas.remember("Zen", {"": 2.0, "Zen": 1.0})
    blas.remember("", {"": 1.0, "Zen": 2.0}, blas.RECURRENT)
    assert environment.remembered_kernel() == "Zen"
    assert environment.remembered_kernel(blas.RECURRENT) == ""
    assert environment.remembered_kernel(blas.CONVOLUTION) is None


def test_what_the_own_choice_failed_in_is_not_remembered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(blas, "measure", lambda families, kind: {"Zen": 1.0})
    lines: list[str] = []
    assert blas.choose_kernel(lines.append) == ""
    assert "could not be measured" in lines[0]
    assert environment.remembered_kernel() is None


def test_what_is_remembered_is_not_measured_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert blas.remember("Zen", {"": 2.0, "Zen": 1.0}) == ""
    monkeypatch.setattr(blas, "measure", lambda families, kind: pytest.fail("measured"))
    lines: list[str] = []
    assert blas.choose_kernel(lines.append) == "Zen"
    assert lines == []


@pytest.mark.parametrize("chosen", ["Zen", "zen", "SkylakeX", "Unheard"])
def test_what_the_user_set_is_taken(
    chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert blas.remember("SkylakeX", {"": 2.0, "Zen": 2.0, "SkylakeX": 1.0}) == ""
    monkeypatch.setattr(blas, "measure", lambda families, kind: pytest.fail("measured"))
    lines: list[str] = []
    assert blas.choose_kernel(lines.append, {"OPENBLAS_CORETYPE": chosen}) == chosen
    if chosen.lower() == "zen":
        assert len(lines) == 1
        assert f"OPENBLAS_CORETYPE={chosen} is set and stays" in lines[0]
        assert "2.00 times" in lines[0]
    else:
        assert lines == []


def test_a_failed_measurement_is_said_and_not_remembered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(blas, "measure", lambda families, kind: {})
    lines: list[str] = []
    assert blas.choose_kernel(lines.append) == ""
    assert "could not be measured" in lines[0]
    assert environment.remembered_kernel() is None


def test_a_cache_that_cannot_be_written_is_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FASTSERVE_CACHE_DIR", str(tmp_path / "file" / "below"))
    monkeypatch.setattr(blas, "measure", lambda families, kind: {"": 2.0, "Zen": 1.0})
    lines: list[str] = []
    assert blas.choose_kernel(lines.append) == "Zen"
    assert "Zen is 2.00x" in lines[0]
    assert "not remembered" in lines[0]


def test_entries_of_other_cpus_stay_and_damage_is_mended(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.parent.mkdir()
    cache.write_text("{half")
    blas.remember("Zen", {"": 2.0, "Zen": 1.0})
    monkeypatch.setattr(environment, "kernel_key", lambda kind="": "another")
    blas.remember("", {"": 1.0})
    kernels = [entry["kernel"] for entry in json.loads(cache.read_text()).values()]
    assert kernels == ["Zen", ""]


def test_writers_at_the_same_time_never_show_half_a_file(cache: Path) -> None:
    blas.remember("Zen", {"": 2.0, "Zen": 1.0})
    stop = threading.Event()
    problems: list[str] = []

    def write() -> None:
        while not stop.is_set():
            problems.extend(filter(None, [blas.remember("Zen", {"": 2.0, "Zen": 1.0})]))

    writers = [threading.Thread(target=write) for _ in range(3)]
    for writer in writers:
        writer.start()
    try:
        for _ in range(300):
            assert environment.remembered_kernel() == "Zen"
    finally:
        stop.set()
        for writer in writers:
            writer.join()
    assert problems == []
    assert [path.name for path in cache.parent.iterdir()] == ["blas.json"]
