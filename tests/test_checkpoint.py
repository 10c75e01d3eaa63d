"""Checkpoints: what comes back, what is refused, and what survives a kill."""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from small_disks import small_disk

from fastserve.core import Layer, ParameterStore, Shape, initializers
from fastserve.errors import ArgumentError, CheckpointError
from fastserve.training import checkpoint

ROOT = Path(__file__).parents[1]
FILES = ("model.safetensors", "optimizer.safetensors", "state.json")
STATE = {"totals": [0.1, 1e-30, 3.0], "seed": 7, "name": "é\n", "none": None}

Tamper = Callable[[Path], None]


class Part(Layer):
    """Parameters of some shapes, among them none, one and a prime number of values."""

    shapes: tuple[tuple[str, tuple[int, ...]], ...] = (
        ("kernel", (13, 7)),
        ("bias", (7,)),
        ("scale", ()),
        ("none", (0, 3)),
    )

    def build(self, input_shape: Shape) -> Shape:
        normal = initializers.get("random_normal")
        for name, shape in self.shapes:
            self.param(name, shape, normal)
        return input_shape


class Tree(Layer):
    """Two parts, one inside of the other's place in the tree."""

    def __init__(self, part: type[Part] = Part) -> None:
        super().__init__()
        self.part = part

    def build(self, input_shape: Shape) -> Shape:
        for name in ("0", "head"):
            self.child(name, self.part()).build_once(input_shape)
        return input_shape


class Slots:
    """An optimizer as far as checkpoints know it."""

    def __init__(self, store: ParameterStore, *names: str) -> None:
        self.own = None
        self.step = 0
        self.state = {name: np.zeros_like(store.values) for name in names}


def make(
    seed: int = 0,
    bucket_bytes: int = 1 << 20,
    part: type[Part] = Part,
    slots: tuple[str, ...] = ("m", "v"),
    dtype: type = np.float32,
) -> tuple[ParameterStore, Slots]:
    """Return a store and an optimizer with values that depend on the seed."""
    tree = Tree(part)
    tree.build_once((13,))
    store = ParameterStore(tree, seed, dtype, bucket_bytes)
    optimizer = Slots(store, *slots)
    rng = np.random.default_rng(seed)
    for vector in optimizer.state.values():
        for parameter in store.parameters:
            view = store.view(vector, parameter)
            view[...] = rng.standard_normal(parameter.shape)
    optimizer.step = seed
    return store, optimizer


def contents(store: ParameterStore, optimizer: Slots | None = None) -> dict[str, bytes]:
    """Return all bits by name, in whatever order the store has them."""
    vectors = {"": store.values, **(optimizer.state if optimizer else {})}
    return {
        f"{slot}/{p.path}": store.view(vector, p).tobytes()
        for slot, vector in vectors.items()
        for p in store.parameters
    }


def save(
    folder: Path,
    step: int,
    seed: int | None = None,
    keep: int = 9,
    keep_every: int | None = None,
) -> Path:
    store, optimizer = make(step if seed is None else seed)
    parts = store, optimizer, STATE, keep, None, keep_every
    return checkpoint.save(folder, step, *parts)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# -- what comes back -------------------------------------------------------------------


@pytest.mark.parametrize("bucket_bytes", [1, 100, 400, 1 << 20])
def test_round_trip_to_the_bit_with_other_buckets(
    tmp_path: Path, bucket_bytes: int
) -> None:
    store, optimizer = make(200)
    special = [np.nan, np.inf, -0.0, 1e-45]
    kernel = next(p for p in store.parameters if p.path == "0.kernel")
    kernel.value[0, : len(special)] = special
    path = checkpoint.save(tmp_path, 200, store, optimizer, STATE, 2)
    assert path == tmp_path / "step-00000200"
    assert names(path) == sorted(FILES)
    assert names(tmp_path) == ["latest", "step-00000200"]
    assert (tmp_path / "latest").read_text() == "step-00000200\n"

    other, other_optimizer = make(1, bucket_bytes)
    assert checkpoint.load(path, other, other_optimizer) == {**STATE, "step": 200}
    assert contents(other, other_optimizer) == contents(store, optimizer)
    assert other_optimizer.step == 200
    gaps = np.ones(other.values.size, bool)
    for parameter in other.parameters:
        other.view(gaps, parameter)[...] = False
    assert not other.values[gaps].any()


def test_files_name_tensors_by_path(tmp_path: Path) -> None:
    path = save(tmp_path, 3)
    paths = [f"{part}.{name}" for part in ("0", "head") for name, _ in Part.shapes]
    assert set(load_file(path / FILES[0])) == set(paths)
    slots = {f"{slot}/{name}" for slot in "mv" for name in paths}
    assert set(load_file(path / FILES[1])) == slots
    body = json.loads((path / FILES[2]).read_text())
    assert body["step"] == body["optimizer_step"] == 3
    assert set(body["versions"]) == {"fastserve", "numpy", "python"}


def test_double_precision_and_no_slots(tmp_path: Path) -> None:
    store, optimizer = make(5, slots=(), dtype=np.float64)
    path = checkpoint.save(tmp_path, 5, store, optimizer, {}, 1)
    other, other_optimizer = make(1, slots=(), dtype=np.float64)
    assert checkpoint.load(path, other, other_optimizer) == {"step": 5}
    assert contents(other) == contents(store)


def test_weights_alone_of_a_checkpoint(tmp_path: Path) -> None:
    path = save(tmp_path, 4)
    store, _ = make(1)
    assert checkpoint.load(path, store, None)["step"] == 4
    assert contents(store) == contents(make(4)[0])


def test_keep_counts_complete_checkpoints_of_earlier_steps(tmp_path: Path) -> None:
    for step in (100, 200, 300, 400):
        save(tmp_path, step)
    (tmp_path / "step-00000300" / FILES[0]).unlink()
    (tmp_path / "step-notes").mkdir()
    save(tmp_path, 350, keep=2)
    steps = [f"step-{step:08d}" for step in (200, 300, 350, 400)]
    assert names(tmp_path) == ["latest", *steps, "step-notes"]
    save(tmp_path, 400, keep=1)
    assert names(tmp_path) == ["latest", "step-00000400", "step-notes"]


def test_links_are_removed_without_what_they_lead_to(tmp_path: Path) -> None:
    folder, elsewhere = tmp_path / "checkpoints", tmp_path / "elsewhere"
    path = save(folder, 100)
    path.rename(elsewhere)
    path.symlink_to(elsewhere)
    gone = folder / "step-00000200"
    gone.symlink_to(tmp_path / "nowhere")
    save(folder, 200)  # in the place of a link
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait(timeout=30)
    (folder / f".step-00000050.tmp-{ended.pid}").symlink_to(elsewhere)
    save(folder, 300, keep=1)
    assert names(folder) == ["latest", "step-00000300"]
    assert names(elsewhere) == sorted(FILES)


def test_every_nth_is_kept_for_good(tmp_path: Path) -> None:
    for step in range(2, 27, 2):
        save(tmp_path, step, keep=2, keep_every=8)
    steps = [f"step-{step:08d}" for step in (8, 16, 24, 26)]
    assert names(tmp_path) == ["latest", *steps]
    save(tmp_path, 24, keep=1, keep_every=8)  # one of them is replaced as others are
    assert names(tmp_path) == ["latest", *steps]
    shutil.copytree(tmp_path / steps[0], tmp_path / f"{steps[0]}.old")
    (tmp_path / steps[1]).rename(tmp_path / f"{steps[1]}.old")
    save(tmp_path, 28, keep=1, keep_every=8)
    steps = [steps[0], f"{steps[1]}.old", steps[2], "step-00000028"]
    assert names(tmp_path) == ["latest", *steps]
    save(tmp_path, 30, keep=1)
    assert names(tmp_path) == ["latest", "step-00000030"]


def test_steps_are_ordered_as_numbers(tmp_path: Path) -> None:
    for step in (99_999_999, 100_000_000):
        save(tmp_path, step, seed=1)
    assert checkpoint.newest(tmp_path) == tmp_path / "step-100000000"


def test_two_saves_of_a_step_leave_the_second(tmp_path: Path) -> None:
    save(tmp_path, 7, seed=1)
    path = save(tmp_path, 7, seed=2, keep=1)
    assert names(tmp_path) == ["latest", "step-00000007"]
    store, optimizer = make(3)
    checkpoint.load(path, store, optimizer)
    assert contents(store, optimizer) == contents(*make(2))


def test_a_replaced_step_can_be_found_between_the_two_renames(tmp_path: Path) -> None:
    path = save(tmp_path, 7, seed=1)
    path.rename(tmp_path / "step-00000007.old")
    assert checkpoint.newest(tmp_path) == tmp_path / "step-00000007.old"
    save(tmp_path, 7, seed=2)
    assert names(tmp_path) == ["latest", "step-00000007"]


def test_nothing_to_load(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    store, optimizer = make()
    for folder in (tmp_path, tmp_path / "missing", tmp_path / "file"):
        assert checkpoint.newest(folder) is None
        assert checkpoint.load_newest(folder, store, optimizer) is None


def test_latest_is_not_trusted(tmp_path: Path) -> None:
    save(tmp_path, 1)
    path = save(tmp_path, 2)
    (tmp_path / "latest").write_text("step-00000001\n")
    assert checkpoint.newest(tmp_path) == path
    (tmp_path / "latest").unlink()
    assert checkpoint.newest(tmp_path) == path


# -- damage ----------------------------------------------------------------------------


def flip(name: str, place: float) -> Tamper:
    def tamper(path: Path) -> None:
        data = bytearray((path / name).read_bytes())
        data[int(place * (len(data) - 1))] ^= 4
        (path / name).write_bytes(data)

    return tamper


def cut(name: str, left: float) -> Tamper:
    def tamper(path: Path) -> None:
        data = (path / name).read_bytes()
        (path / name).write_bytes(data[: int(left * (len(data) - 1))])

    return tamper


def remove(name: str) -> Tamper:
    return lambda path: (path / name).unlink()


def forge(path: Path, name: str, data: bytes) -> None:
    """Replace a file, and make state.json agree with it."""
    (path / name).write_bytes(data)
    body = json.loads((path / "state.json").read_text())
    digest = hashlib.sha256(data).hexdigest()
    body["files"][name] = {"bytes": len(data), "sha256": digest}
    rewrite(path, body)


def rewrite(path: Path, body: dict[str, Any]) -> None:
    """Write a state.json with the right checksum."""
    body.pop("checksum", None)
    digest = hashlib.sha256(json.dumps(body, indent=1).encode()).hexdigest()
    text = json.dumps({**body, "checksum": digest}, indent=1) + "\n"
    (path / "state.json").write_text(text)


def header(change: Callable[[dict[str, Any]], object]) -> Tamper:
    """Change the safetensors header, with checksums that fit."""

    def tamper(path: Path) -> None:
        data = (path / FILES[0]).read_bytes()
        (size,) = struct.unpack("<Q", data[:8])
        entries = json.loads(data[8 : 8 + size])
        change(entries)
        text = json.dumps(entries).encode()
        made = struct.pack("<Q", len(text)) + text + data[8 + size :]
        forge(path, FILES[0], made)

    return tamper


def beyond(entries: dict[str, Any]) -> None:
    begin, end = entries["head.kernel"]["data_offsets"]
    entries["head.kernel"]["data_offsets"] = [begin + 4096, end + 4096]


def field(key: str, value: object) -> Tamper:
    def tamper(path: Path) -> None:
        body = json.loads((path / "state.json").read_text())
        rewrite(path, {**body, key: value})

    return tamper


def text(content: str) -> Tamper:
    def tamper(path: Path) -> None:
        (path / FILES[2]).write_text(content)

    return tamper


def pipe(path: Path) -> None:
    (path / FILES[0]).unlink()
    os.mkfifo(path / FILES[0])


DAMAGE: dict[str, tuple[Tamper, str, str]] = {
    **{f"no {name}": (remove(name), name, "no such file") for name in FILES},
    **{
        f"{name} cut to {left}": (
            cut(name, left),
            name,
            "JSON" if name == FILES[2] else "bytes instead of",
        )
        for name in FILES
        for left in (0, 0.5, 1)
        if (name, left) != (FILES[2], 1)
    },
    "state.json without its last byte": (cut(FILES[2], 1), FILES[2], "checksum"),
    **{
        f"byte at {place} of {name}": (flip(name, place), name, "SHA-256")
        for name in FILES[:2]
        for place in (0, 0.01, 0.5, 1)
    },
    "a pipe": (pipe, FILES[0], "no such file"),
    "header beyond the file": (header(beyond), FILES[0], "header"),
    "header of other shapes": (
        header(lambda h: h["head.kernel"].update(shape=[7, 13])),
        FILES[0],
        "head.kernel is F32 (7, 13) instead of F32 (13, 7)",
    ),
    "header of another type": (
        header(lambda h: h["head.bias"].update(dtype="I32")),
        FILES[0],
        "head.bias is I32 (7,) instead of F32 (7,)",
    ),
    "header of another name": (
        header(lambda h: h.update({"head.b": h.pop("head.bias")})),
        FILES[0],
        "head.bias is missing; head.b isn't in the model",
    ),
    "huge header": (
        lambda p: forge(p, FILES[0], b"\xff" * 8 + (p / FILES[0]).read_bytes()[8:]),
        FILES[0],
        "eader",
    ),
    "empty tensors": (lambda p: forge(p, FILES[0], b""), FILES[0], "eader"),
    "state is a list": (text("[1]\n"), FILES[2], "JSON of this kind"),
    "state is a number": (text("1\n"), FILES[2], "JSON of this kind"),
    "state is deep": (text("[" * 200_000), FILES[2], "JSON of this kind"),
    "state without checksum": (text('{"step": 1}'), FILES[2], "JSON of this kind"),
    "format of the future": (field("format", 2), FILES[2], "format 2"),
    "no step": (field("step", None), FILES[2], "step is None"),
    "other files": (field("files", {"../x": {}}), FILES[2], "files are"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_named_and_nothing_is_loaded(
    tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    tamper, file, reason = DAMAGE[kind]
    save(tmp_path, 100)
    path = save(tmp_path, 200)
    tamper(path)
    store, optimizer = make(1)
    before = contents(store, optimizer)
    with pytest.raises(CheckpointError) as caught:
        checkpoint.load(path, store, optimizer)
    assert str(path / file) in str(caught.value)
    assert reason in str(caught.value)
    assert caught.value.todo
    assert (contents(store, optimizer), optimizer.step) == (before, 1)

    with caplog.at_level(logging.WARNING, "fastserve"):
        state = checkpoint.load_newest(tmp_path, store, optimizer)
    assert state == {**STATE, "step": 100}
    assert contents(store, optimizer) == contents(*make(100))
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert str(path / file) in record.getMessage()


def test_every_flipped_byte_of_the_state_is_found(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    good = (path / "state.json").read_bytes()
    for place in range(len(good)):
        bad = bytearray(good)
        bad[place] ^= 1 << place % 8
        (path / "state.json").write_bytes(bad)
        assert checkpoint.newest(tmp_path) is None, f"byte {place}"


def test_the_best_one_is_apart_from_the_others(tmp_path: Path) -> None:
    store, optimizer = make()
    for step in (1, 2, 3):
        checkpoint.save(tmp_path, step, store, optimizer, {"loss": 0.5}, None)
        assert checkpoint.find(tmp_path, "best") == tmp_path / "best"
    assert [p.name for p in tmp_path.iterdir()] == ["best"]
    assert checkpoint.read_state(tmp_path / "best") == {"step": 3, "loss": 0.5}
    assert checkpoint.load_newest(tmp_path, store, optimizer) is not None
    for step in (4, 5, 6):
        checkpoint.save(tmp_path, step, store, optimizer, {}, 1)
    names = {p.name for p in tmp_path.iterdir()}
    assert names == {"best", "latest", "step-00000006"}
    newest = checkpoint.load_newest(tmp_path, store, optimizer)
    assert newest is not None
    assert newest["step"] == 6
    assert checkpoint.find(tmp_path, "6") == checkpoint.find(tmp_path, "latest")
    # as if killed between two renamings
    (tmp_path / "best").rename(tmp_path / "best.old")
    assert checkpoint.find(tmp_path, "best") == tmp_path / "best.old"
    checkpoint.save(tmp_path, 7, store, optimizer, {}, None)
    assert {p.name for p in tmp_path.iterdir()} == names
    (tmp_path / "best/model.safetensors").write_bytes(b"")
    assert checkpoint.read_state(tmp_path / "best") is None
    with pytest.raises(CheckpointError, match="there are step-00000006, best"):
        checkpoint.find(tmp_path, "best")


def test_damage_in_the_optimizer_alone_keeps_the_weights_out(tmp_path: Path) -> None:
    path = save(tmp_path, 2)
    flip(FILES[1], 0.9)(path)
    store, _ = make(1)
    before = contents(store)
    with pytest.raises(CheckpointError, match=r"optimizer\.safetensors"):
        checkpoint.load(path, store, None)
    assert contents(store) == before


def test_none_that_can_be_loaded_is_an_error(tmp_path: Path) -> None:
    for step in (1, 2):
        flip(FILES[0], 0.5)(save(tmp_path, step))
    store, optimizer = make()
    with pytest.raises(CheckpointError, match="2 that can't") as caught:
        checkpoint.load_newest(tmp_path, store, optimizer)
    assert str(tmp_path / "step-00000002" / FILES[0]) in str(caught.value)


def test_a_damaged_step_is_replaced_by_a_new_one(tmp_path: Path) -> None:
    flip(FILES[0], 0.5)(save(tmp_path, 2))
    save(tmp_path, 2)
    store, optimizer = make()
    assert checkpoint.load_newest(tmp_path, store, optimizer) == {**STATE, "step": 2}


class FlippingFile:
    """A file that writes the last byte of ``name`` wrong."""

    def __init__(self, file: Any) -> None:
        self.file = file

    def __enter__(self) -> FlippingFile:
        return self

    def __exit__(self, *exc: object) -> None:
        self.file.close()

    def write(self, data: Any) -> int:
        wrong = bytearray(data)
        wrong[-1:] = bytes([wrong[-1] ^ 4]) if wrong else b""
        return int(self.file.write(wrong))


@pytest.mark.parametrize("moment", ["writing", "on the disk"])
@pytest.mark.parametrize("name", FILES[:2])
@pytest.mark.parametrize("vectors", [False, True], ids=["whole", "sharded"])
def test_what_was_written_wrong_removes_no_earlier_one(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    moment: str,
    name: str,
    vectors: bool,
) -> None:
    save(tmp_path, 1, keep=1)
    if moment == "writing":
        opened = Path.open

        def open_(path: Path, mode: str = "r", **kw: Any) -> Any:
            file = opened(path, mode, **kw)
            return FlippingFile(file) if (path.name, mode) == (name, "wb") else file

        monkeypatch.setattr(Path, "open", open_)
    else:
        synced = checkpoint.sync

        def sync(path: Path) -> None:
            synced(path)
            if path.name == name:
                flip(name, 0.9)(path.parent)

        monkeypatch.setattr(checkpoint, "sync", sync)
    store, optimizer = make(2)
    whole = optimizer.state.values() if vectors else None
    with pytest.raises(CheckpointError, match="other bytes") as caught:
        checkpoint.save(tmp_path, 2, store, optimizer, STATE, 1, whole)
    monkeypatch.undo()
    assert name in str(caught.value)
    assert names(tmp_path) == ["latest", "step-00000001"]
    assert checkpoint.load_newest(tmp_path, store, optimizer) == {**STATE, "step": 1}
    wanted, slots = make(1)
    assert contents(store, optimizer) == contents(wanted, slots)


@pytest.mark.parametrize("moment", ["as it is written", "between two saves"])
def test_a_base_that_is_wrong_removes_no_earlier_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """The part of the model that never changes, as below LoRA's adapters."""
    store, optimizer = make(1)
    frozen = copy.copy(store.parameters[0])
    frozen.base, frozen.path = True, "base"
    store.frozen_parameters.append(frozen)
    name, replaced = "base.safetensors", checkpoint.sync

    def sync(path: Path) -> None:
        replaced(path)
        if path.name == name:
            flip(name, 0.9)(path.parent)

    if moment == "as it is written":
        monkeypatch.setattr(checkpoint, "sync", sync)
        with pytest.raises(CheckpointError, match="other bytes"):
            checkpoint.save(tmp_path, 1, store, optimizer, STATE, 1)
        assert names(tmp_path) == []
        return
    checkpoint.save(tmp_path, 1, store, optimizer, STATE, 1)
    assert names(tmp_path) == [name, "latest", "step-00000001"]
    flip(name, 0.9)(tmp_path)
    with pytest.raises(CheckpointError, match="it never changes"):
        checkpoint.save(tmp_path, 2, store, optimizer, STATE, 1)
    assert names(tmp_path) == [name, "latest", "step-00000001"]


def test_a_state_written_wrong_is_not_put_in_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 1, keep=1)
    write = checkpoint.write

    def wrong(path: Path, content: str) -> None:
        write(path, content.replace('"step": 2', '"step": 3'))

    monkeypatch.setattr(checkpoint, "write", wrong)
    with pytest.raises(CheckpointError, match="checksum"):
        save(tmp_path, 2, keep=1)
    assert names(tmp_path) == ["latest", "step-00000001"]


class Wider(Part):
    shapes = (("kernel", (13, 8)), ("bias", (7,)), ("scale", ()), ("none", (0, 3)))


class Fewer(Part):
    shapes = (("kernel", (13, 7)), ("bias", (7,)), ("scale", ()))


class More(Part):
    shapes = (*Part.shapes, *((f"more{i}", (2,)) for i in range(4)))


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"part": Wider}, "0.kernel is F32 (13, 7) instead of F32 (13, 8)"),
        ({"part": Fewer}, "0.none isn't in the model; head.none isn't in the model"),
        ({"part": More}, "and 3 more"),
        ({"dtype": np.float64}, "0.kernel is F32 (13, 7) instead of F64 (13, 7)"),
        ({"slots": ("m", "velocity")}, "velocity/0.kernel is missing"),
        ({"slots": ()}, "m/0.bias isn't in the model"),
    ],
)
def test_another_model_or_optimizer(
    tmp_path: Path, arguments: dict[str, Any], named: str
) -> None:
    path = save(tmp_path, 2)
    store, optimizer = make(1, **arguments)
    before = contents(store, optimizer)
    with pytest.raises(CheckpointError) as caught:
        checkpoint.load(path, store, optimizer)
    assert named in str(caught.value)
    assert contents(store, optimizer) == before


# -- what can't be written -------------------------------------------------------------


@pytest.mark.parametrize(
    "state",
    [
        {"x": np.zeros(2)},
        {"x": float("nan")},
        {"x": (1, 2)},
        {1: "a"},
        {"x": {1, 2}},
        {"step": 3},
    ],
)
def test_state_that_would_come_back_as_another(
    tmp_path: Path, state: dict[str, Any]
) -> None:
    store, optimizer = make()
    with pytest.raises(CheckpointError, match="expected a state that JSON can hold"):
        checkpoint.save(tmp_path / "new", 1, store, optimizer, state, 1)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(("step", "keep"), [(-1, 1), (1, 0)])
def test_arguments(tmp_path: Path, step: int, keep: int) -> None:
    store, optimizer = make()
    with pytest.raises(ArgumentError, match=f"step {step}, keep {keep}"):
        checkpoint.save(tmp_path, step, store, optimizer, {}, keep)


# A child process: its limits and its user are its own.
CHILD = """
import os, resource, sys
sys.path[:0] = [{root!r}, {tests!r}]
from pathlib import Path
import test_checkpoint as t
from fastserve.errors import CheckpointError
from fastserve.training import checkpoint
folder = Path({folder!r})
{code}
"""


def child(folder: Path, code: str) -> subprocess.Popen[str]:
    source = CHILD.format(
        root=str(ROOT), tests=str(Path(__file__).parent), folder=str(folder), code=code
    )
    return subprocess.Popen(
        [sys.executable, "-c", source],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def run(folder: Path, code: str) -> str:
    process = child(folder, code)
    try:
        output, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 0, output
    return output


def refused(folder: Path, call: str, reason: str, prepare: str) -> str:
    """Let a child make a call that must be refused; return the error's text."""
    code = f"{prepare}\ntry:\n    {call}\nexcept CheckpointError as e:\n    print(e)\n"
    output = run(folder, code + "else:\n    print('no error')")
    assert "expected to be able to write" in output
    assert reason in output
    return output


LIMIT = "resource.setrlimit(resource.RLIMIT_FSIZE, ({0}, {0}))"


@pytest.mark.parametrize("limit", [0, 100, 1500])
def test_no_space_left(tmp_path: Path, limit: int) -> None:
    """The limit is met in the tensors of the model, the optimizer or earlier."""
    save(tmp_path, 1)
    before = names(tmp_path)
    output = refused(
        tmp_path, "t.save(folder, 2, keep=1)", "File too large", LIMIT.format(limit)
    )
    assert "step-00000002" in output
    assert names(tmp_path) == before
    store, optimizer = make()
    assert checkpoint.load_newest(tmp_path, store, optimizer) == {**STATE, "step": 1}


@pytest.mark.parametrize("name", ["state.json", "latest"])
def test_no_space_left_for_a_small_file(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 1)

    def full(path: Path, content: str) -> None:
        if path.name == name:
            path.write_text(content[:5])
            raise OSError(28, "No space left on device")
        path.write_text(content)

    monkeypatch.setattr(checkpoint, "write", full)
    with pytest.raises(CheckpointError, match="No space left on device"):
        save(tmp_path, 2, keep=1)
    monkeypatch.undo()
    in_place = ["step-00000002"] if name == "latest" else []
    assert names(tmp_path) == ["latest", "step-00000001", *in_place]
    assert (tmp_path / "latest").read_text() == "step-00000001\n"
    store, optimizer = make()
    state = checkpoint.load_newest(tmp_path, store, optimizer)
    assert state == {**STATE, "step": 2 if in_place else 1}


def test_a_full_disk(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "64k") as disk:
        save(disk, 1)
        (disk / "filler").write_bytes(b"x" * 45_000)
        with pytest.raises(CheckpointError, match="No space left on device"):
            save(disk, 2, keep=1)
        assert names(disk) == ["filler", "latest", "step-00000001"]
        (disk / "filler").unlink()
        save(disk, 2, keep=1)
        assert names(disk) == ["latest", "step-00000002"]


# As root everything may be written, so a child becomes nobody. It enters the folder
# before that, because nobody may not be let in by the folders above.
NOBODY = """
os.chdir(folder)
folder = Path()
if os.getuid() == 0:
    os.setgid(65534)
    os.setuid(65534)
"""


def test_no_permission_to_write(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    save(folder, 1)
    folder.chmod(0o555)
    try:
        before = names(folder)
        for call in (
            "t.save(folder, 2, keep=1)",
            "checkpoint.save_weights(folder / 'w.safetensors', t.make()[0], {})",
            "checkpoint.save_weights(folder / 'new/w', t.make()[0], {})",
            "checkpoint.write_atomically(folder / 'config.yaml', 'a: 1')",
        ):
            refused(folder, call, "Permission denied", NOBODY)
        assert names(folder) == before
    finally:
        folder.chmod(0o755)


def test_no_permission_to_read(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    for step, place in ((1, "state.json"), (2, "model.safetensors"), (3, "")):
        (save(tmp_path, step) / place).chmod(0)
    code = (
        NOBODY
        + """
for step in (1, 2, 3):
    path = folder / f'step-{step:08d}'
    try:
        checkpoint.load(path, *t.make())
    except CheckpointError as error:
        assert str(path) in str(error) and 'Permission denied' in str(error), error
        print('refused', step, end=' ')
"""
    )
    try:
        assert run(tmp_path, code) == "refused 1 refused 2 refused 3 "
    finally:
        (tmp_path / "step-00000003").chmod(0o755)


@pytest.mark.parametrize(
    ("umask", "file", "folder"), [(0o022, 0o644, 0o755), (0o007, 0o660, 0o770)]
)
def test_modes_follow_the_umask(
    tmp_path: Path, umask: int, file: int, folder: int
) -> None:
    before = os.umask(umask)
    try:
        path = save(tmp_path, 1)
        checkpoint.save_weights(tmp_path / "w.safetensors", make()[0], {})
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == folder
    written = [*path.iterdir(), tmp_path / "latest", tmp_path / "w.safetensors"]
    assert {p.stat().st_mode & 0o777 for p in written} == {file}


# -- a process that is killed ----------------------------------------------------------


def start(folder: Path) -> int:
    """Return the first number of a child that saves each step twice."""
    path = checkpoint.newest(folder)
    return 2 * int(path.name[5:13]) if path else 0


def test_kill_at_any_moment(tmp_path: Path) -> None:
    rng = random.Random(0)
    code = """
step = first = t.start(folder)
while True:
    step += 1
    begin = t.time.perf_counter()
    t.save(folder, step // 2 + 1, keep=1)
    if step == first + 1:
        print(t.time.perf_counter() - begin, flush=True)
"""
    last = 0
    leftovers = 0
    for _ in range(30):
        process = child(tmp_path, code)
        try:
            assert process.stdout is not None
            took = float(process.stdout.readline())  # it saves, at this pace
            time.sleep(rng.uniform(0, 6 * took))
        finally:
            process.send_signal(signal.SIGKILL)
            process.communicate(timeout=30)
        leftovers += any(".tmp-" in name for name in names(tmp_path))
        path = checkpoint.newest(tmp_path)
        assert path is not None
        store, optimizer = make()
        state = checkpoint.load(path, store, optimizer)
        assert state["step"] == int(path.name[5:13]) >= last
        assert contents(store, optimizer) == contents(*make(state["step"]))
        last = state["step"]
    assert leftovers > 0, "no kill met a save"
    assert last > 30
    save(tmp_path, last + 1, keep=1)
    assert names(tmp_path) == ["latest", f"step-{last + 1:08d}"]


def test_leftovers_of_the_living_stay(tmp_path: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait(timeout=30)
    dead, living, own = ended.pid, os.getppid(), os.getpid()
    for pid in (dead, living, own):
        for stem in ("step-00000009", "step-00000009.old", "latest", "mine"):
            (tmp_path / f".{stem}.tmp-{pid}").mkdir()
    (tmp_path / ".step-00000009").mkdir()
    save(tmp_path, 10)
    stems = ("step-00000009", "step-00000009.old", "latest")
    expected = {f".{stem}.tmp-{living}" for stem in stems}
    expected |= {f".mine.tmp-{pid}" for pid in (dead, living, own)}
    expected |= {".step-00000009", "latest", "step-00000010"}
    assert set(names(tmp_path)) == expected


def test_leftovers_of_a_zombie(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as zombie:
        os.waitid(os.P_PID, zombie.pid, os.WEXITED | os.WNOWAIT)  # it isn't reaped
        os.kill(zombie.pid, 0)
        (tmp_path / f".latest.tmp-{zombie.pid}").mkdir()
        save(tmp_path, 10)
    assert set(names(tmp_path)) == {"latest", "step-00000010"}


def test_leftovers_of_a_number_that_a_later_process_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / f".latest.tmp-{os.getppid()}").mkdir()
    save(tmp_path, 10)
    assert len(names(tmp_path)) == 3
    # as after a restart of the machine: all processes are younger than the folder
    clock = time.clock_gettime
    monkeypatch.setattr(time, "clock_gettime", lambda of: clock(of) - 10 * 86400)
    save(tmp_path, 11)
    assert set(names(tmp_path)) == {"latest", "step-00000010", "step-00000011"}


# -- single files ----------------------------------------------------------------------


def test_weights_round_trip_with_metadata(tmp_path: Path) -> None:
    path = tmp_path / "new" / "w.safetensors"
    store, _ = make(1)
    metadata = {"fastserve": '{"a": 1}', "é": "ü"}
    checkpoint.save_weights(path, store, metadata)
    assert checkpoint.read_metadata(path) == metadata
    other, _ = make(2, bucket_bytes=1)
    assert checkpoint.load_weights(path, other) == metadata
    assert contents(other) == contents(store)
    checkpoint.save_weights(path, make(3)[0], {})
    assert checkpoint.load_weights(path, other) == {}
    assert contents(other) == contents(make(3)[0])
    assert names(path.parent) == ["w.safetensors"]


def test_weights_of_another_program(tmp_path: Path) -> None:
    store, _ = make(1)
    arrays = {p.path: np.asarray(p.value * 2, np.float32) for p in store.parameters}
    save_file(arrays, tmp_path / "w.safetensors")
    other, _ = make(2)
    checkpoint.load_weights(tmp_path / "w.safetensors", other)
    assert np.array_equal(other.values, make(1)[0].values * 2)


def test_weights_are_loaded_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    store, _ = make(1)
    before = contents(store)
    checkpoint.save_weights(path, make(2)[0], {})
    data = path.read_bytes()
    for length in (0, 4, 8, 100, len(data) - 1):
        path.write_bytes(data[:length])
        with pytest.raises(CheckpointError, match=r"w\.safetensors"):
            checkpoint.load_weights(path, store)
        with pytest.raises(CheckpointError, match=r"w\.safetensors"):
            checkpoint.read_metadata(path)
    checkpoint.save_weights(path, make(2, part=Wider)[0], {})
    with pytest.raises(CheckpointError, match=r"head\.kernel is F32 \(13, 8\)"):
        checkpoint.load_weights(path, store)
    with pytest.raises(CheckpointError, match="no such file"):
        checkpoint.load_weights(tmp_path / "missing", store)
    with pytest.raises(CheckpointError, match="no such file"):
        checkpoint.load_weights(tmp_path, store)
    assert contents(store) == before


def test_metadata_must_be_text(tmp_path: Path) -> None:
    store, _ = make()
    with pytest.raises(ArgumentError, match="'a': 1"):
        checkpoint.save_weights(tmp_path / "w", store, {"a": 1})  # type: ignore[dict-item]
    assert names(tmp_path) == []


def test_a_failed_write_leaves_the_file_before(tmp_path: Path) -> None:
    weights, text_file = tmp_path / "w.safetensors", tmp_path / "config.yaml"
    checkpoint.save_weights(weights, make(1)[0], {})
    checkpoint.write_atomically(text_file, "a: é\r\n")
    before = {path: path.read_bytes() for path in (weights, text_file)}
    assert before[text_file] == "a: é\r\n".encode()
    for call in (
        "checkpoint.save_weights(folder / 'w.safetensors', t.make(2)[0], {})",
        "checkpoint.write_atomically(folder / 'config.yaml', 'x' * 1000)",
    ):
        refused(tmp_path, call, "File too large", LIMIT.format(500))
    assert names(tmp_path) == ["config.yaml", "w.safetensors"]
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.parametrize("moment", ["sync", "put_folder"])
def test_a_folder_that_goes_during_a_save_is_no_damage(
    moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever removes a run shall read that it is gone, not that a file is damaged."""
    made = getattr(checkpoint, moment)

    def removed(place: Path, *args: Any) -> None:
        whole = (place / checkpoint.STATE).exists()  # the last of its files
        made(place, *args)
        if whole:
            shutil.rmtree(tmp_path / "run")

    folder = tmp_path / "run/checkpoints"
    folder.mkdir(parents=True)
    monkeypatch.setattr(checkpoint, moment, removed)
    with pytest.raises(CheckpointError, match="which was there before"):
        save(folder, 3)
    assert not list(folder.glob("step-*"))
