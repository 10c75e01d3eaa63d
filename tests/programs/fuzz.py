"""Feeds damaged files to a reader: only our own errors may come out, in time.

Usage: fuzz.py READER COUNT [SEED]; prints what went wrong, and ends with status 1 then.
Memory is limited to 3 GiB, so a header that asks for too much is found too.
"""

from __future__ import annotations

import faulthandler
import gzip
import io
import json
import random
import resource
import struct
import sys
import tempfile
import time
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import h5py
import numpy as np
from PIL import Image

import fastserve as fs
from fastserve.config import load_job
from fastserve.data.completions import read_pairs
from fastserve.data.documents import Reader as Documents
from fastserve.data.documents import find_inputs, make_parts
from fastserve.data.idx import read_idx
from fastserve.data.images import Pixels
from fastserve.data.labelled_texts import TextEncoder, texts_in
from fastserve.data.npy import load_npy, load_npz
from fastserve.data.preprocessing import ArrayInput, Preprocessing, loads
from fastserve.data.tables import Options, Table
from fastserve.data.tagged import WordEncoder, tagged_in
from fastserve.data.targets import Classes, Values
from fastserve.data.token_files import FORMAT, VERSION, open_token_file
from fastserve.data.tokenizers import BPETokenizer, CharTokenizer, load_tokenizer
from fastserve.errors import FastserveError
from fastserve.models.huggingface import load_pretrained
from fastserve.training import checkpoint
from fastserve.training.metrics_file import MetricsFile
from launch.hosts import parse_hosts, read_hostfile
from launch.html_report.evaluation import Wish
from launch.html_report.report import report
from launch.runs import is_run, read_run

MEMORY = 3 << 30
SECONDS = 3.0  # of computing for one input: others may use the machine, too
FOLDER = "/dev/shm"  # of the inputs: a disk takes longer to write one than all the rest


class Case(NamedTuple):
    """A sound file, and what reads it."""

    name: str
    content: bytes
    read: Callable[[Path], Any]
    sound: bool = True  # False: the file alone is not all that the reader needs


def _json(value: Any) -> bytes:
    return json.dumps(value, indent=1).encode()


def _npy(array: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def _npz() -> bytes:
    file = io.BytesIO()
    np.savez_compressed(file, x=np.arange(12.0).reshape(3, 4), y=np.arange(3))
    return file.getvalue()


def _idx() -> bytes:
    return struct.pack(">HBBIII", 0, 8, 3, 4, 5, 6) + bytes(range(120))


def _png(width: int = 5, height: int = 4) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        tail = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + tail

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    rows = b"".join(b"\0" + bytes(range(width)) for _ in range(height))
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + body + chunk(b"IEND", b"")


def _model() -> fs.models.Sequential:
    model = fs.models.Sequential([fs.layers.Dense(3, input_shape=(4,))])
    model.compile("adam", "mse")
    model.store  # noqa: B018  builds it
    return model


MODEL = _model()


def _saved(name: str, save: Callable[[Path], Any]) -> bytes:
    """Return what ``save`` writes to a file of this name."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, name)
        save(path)
        return path.read_bytes()


def _state() -> bytes:
    entry = {"bytes": 17, "sha256": "0" * 64}
    files = {"model.safetensors": entry, "optimizer.safetensors": entry}
    body = {"format": 1, "step": 3, "optimizer_step": 3, "files": files, "state": {}}
    return _json(body)


def _forged(path: Path) -> None:
    """Load a state.json with the right checksum, whatever is in it."""
    try:
        body = json.loads(path.read_bytes())
        path.write_text(checkpoint._encode(dict(body)))
    except (ValueError, TypeError, RecursionError):
        return
    checkpoint.load(path.parent, MODEL.store, None)


def _table(path: Path, task: str) -> None:
    table = Table(path, Options("y", task))
    rows = np.arange(table.samples)
    table.fit(rows)
    table.encode(rows[:3])


def _images(path: Path) -> None:
    for channels in (1, 3):
        Pixels(4, 5, channels).read(path)


YAML = b"""name: tiny
seed: 1
model: {type: gpt, n_layer: 2, n_head: 2, n_embd: 16}
data: {type: text, source: pydoc-topics, tokenizer: char}
train: {global_batch: 6, steps: 12, clip_norm: 1.0}
optimizer: {type: adamw, lr: 3e-3, betas: [0.9, 0.95]}
launch: {ranks: 2, env: {A: "b c"}, hosts: ["node1:2", "node[2-3]"]}
"""
CSV = b'a,b,kind,y\n1,2.5,red,0\n2,-1e3,"bl""ue",1\n3,0.5,red,1\n4,1,"x\ny",0\n' * 1
JSONL = b'{"a": 1, "b": "red", "y": 0}\n{"a": 2.5, "b": "blue", "y": 1}\n' * 3
PAIRS = b'{"prompt": "ab", "completion": "cd"}\n{"prompt": "c", "completion": "x"}\n'
HOSTS = b"node1 slots=4\n# no\nnode[02-04]:2\n[fe80::1]:3\n\nnode9\n"
TOKENIZER = _json(CharTokenizer.train("abcdefgh\n").to_json())
LLMC = struct.pack("<256i", 20240520, 1, 40, *[0] * 253) + bytes(80)


def _preprocessing(path: Path) -> None:
    loads(path.read_text("utf-8", errors="replace"), str(path))


def _kept_table() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "t.csv")
        path.write_bytes(CSV)
        table = Table(path, Options("y", "classification"))
        table.fit(np.arange(table.samples))
        return table.preprocessing.dumps().encode()


JOB_WITH_TABLES = b"""name: table
model: {type: sequential, layers: [{Dense: {units: 3, activation: softmax}}],
        loss: sparse_categorical_crossentropy, metrics: [accuracy]}
data: {type: csv, file: a.csv, target: y, task: classification, features: [a, b],
       validation_split: 0.1, test_split: 0.1}
train: {global_batch: 6, epochs: 2}
"""
JOB_WITH_TEXTS = b"""name: texts
model: {type: sequential, layers: [{Embedding: {output_dim: 8}},
        GlobalAveragePooling1D: {}, {Dense: {units: 2}}], loss: mse}
data: {type: texts, source: a.jsonl, text: text, label: label,
       vectorize: {output_mode: int, output_sequence_length: 6}}
train: {global_batch: 6, steps: 2}
launch: {max_restarts: 2, min_ranks: 1, ssh: ["-i", "key"], slurm: {extra: ["--x=y"]}}
"""
TAGGED = b"The DT\ndog NN\nruns VB\n\nIt PR\nbarks VB\n\n"
SLASHES = b"The/DT dog/NN runs/VB\nIt/PR barks/VB ./.\n"
TEXTS = b'text,label\n"a good, one",yes\nbad,no\n"so\nso",no\nfine,yes\n'
TEXT_LINES = b'{"text": "good", "label": "yes"}\n{"text": "bad", "label": "no"}\n'
METRICS = b'{"step": 1, "loss": 2.5, "time": 1.0}\n{"step": 2, "loss": null}\n' * 3


def _tagged(path: Path, style: str) -> None:
    made = tagged_in(path, style, "utf-8", WordEncoder([], 5), None, 100, 1)
    made.fit(np.arange(1))
    made.encode(np.arange(1))


def _texts(path: Path) -> None:
    encoder = TextEncoder({"max_tokens": 50, "output_sequence_length": 6})
    made = texts_in(path, ("text", "label"), "utf-8", encoder, None)
    rows = np.arange(made.samples)
    made.fit(rows)
    made.encode(rows[:3])


def _metrics(path: Path) -> None:
    metrics = MetricsFile(path, 1)
    metrics.params, metrics.model = {"first_step": 1}, SimpleNamespace(trainer=None)
    metrics.on_train_begin()
    for line in path.read_text("utf-8").splitlines():
        assert json.loads(line)["step"] <= 1


def _manifest() -> bytes:
    shards = [{"file": "a.bin", "tokens": 40}]
    part = {"shards": shards, "tokens": 40, "bytes": 100}
    body = {"format": FORMAT, "version": VERSION, "dtype": "uint16", "train": part}
    return _json({**body, "vocab_size": 64, "end": 1, "tokenizer": None})


def _shards(path: Path) -> None:
    if not (shard := path.with_name("a.bin")).exists():
        shard.write_bytes(bytes(80))
    opened = open_token_file(path)
    opened.tokens[:8]


def _pretrained(name: str) -> tuple[bytes, Callable[[Path], Any]]:
    """Return a file of a folder in Hugging Face's layout, and what reads the folder."""
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder, "model")
        fs.models.GPT(7, 4, 1, 1, 8).save_pretrained(made)
        files = {p.name: p.read_bytes() for p in made.iterdir()}

    def read(path: Path) -> None:
        for other, content in files.items():
            if other != name and not path.with_name(other).exists():
                path.with_name(other).write_bytes(content)
        load_pretrained(path.parent)

    return files[name], read


def _huggingface(name: str) -> Case:
    return Case(name, *_pretrained(name))


def _kept(encoder: Any, target: Any) -> Case:
    content = Preprocessing(encoder, target).dumps().encode()

    def read(path: Path) -> None:
        loads(_text(path), str(path)).input.input_shape  # noqa: B018

    return Case("p.json", content, read)


def _kept_texts() -> Case:
    encoder = TextEncoder({"max_tokens": 9, "output_sequence_length": 6})
    encoder.fit(iter([["a b c", "c d"]]))
    return _kept(encoder, Classes(("no", "yes")))


def _keras_2(path: Path) -> None:
    """Write the model's weights as Keras 2 did."""
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = [b"dense"]
        group = file.create_group("dense")
        group.attrs["weight_names"] = [b"dense/kernel:0", b"dense/bias:0"]
        for name, array in zip(("kernel", "bias"), MODEL.get_weights(), strict=True):
            group[f"dense/{name}:0"] = array


def _layers() -> fs.models.Sequential:
    k = fs.layers
    return fs.models.Sequential(
        [
            k.Embedding(9, 4, input_shape=(6,)),
            k.Bidirectional(k.LSTM(3, return_sequences=True)),
            k.Conv1D(2, 3, activation="relu"),
            k.GlobalMaxPooling1D(),
            k.Dense(2),
        ]
    )


def _saved_model(model: Any) -> Case:
    name = "m.safetensors"
    return Case(name, _saved(name, model.save), fs.models.load_model)


def _architecture(model: Any) -> Case:
    return Case(
        "m.json",
        model.to_json().encode(),
        lambda p: fs.models.model_from_json(_text(p)),
    )


def _bpe(name: str) -> Case:
    """A file of a byte-pair tokenizer in Hugging Face's layouts."""
    made = BPETokenizer.train(["the cat the dog the end " * 9], 270)
    whole = made.description()
    merges = [
        m if isinstance(m, str) else " ".join(m) for m in whole["model"]["merges"]
    ]
    files = {
        "vocab.json": _json(whole["model"]["vocab"]),
        "merges.txt": "\n".join(["#version: 0.2", *merges]).encode(),
    }
    if name == "tokenizer.json":
        return Case(name, _json(whole), load_tokenizer)

    def read(path: Path) -> None:
        for other, content in files.items():
            if other != name and not path.with_name(other).exists():
                path.with_name(other).write_bytes(content)
        load_tokenizer(path.parent)

    return Case(name, files[name], read)


def _jpeg() -> Case:
    file = io.BytesIO()
    pixels = np.arange(5 * 4 * 3, dtype=np.uint8).reshape(5, 4, 3)
    Image.fromarray(pixels).save(file, "JPEG")
    return Case("a.jpg", file.getvalue(), _images)


def _documents(path: Path) -> None:
    inputs = find_inputs([str(path)], path.parent)
    reader = Documents(inputs, "text", "strict")
    for part in make_parts(inputs, 0.2, whole=True):
        for text, _ in reader.pieces(part):
            assert isinstance(text, str)


def _run_folder(name: str) -> Case:
    """A file of a run folder, which ``runs``, ``top`` and ``report`` read."""
    status = {"step": 2, "steps": 4, "time": 1.0, "state": "running", "ranks": []}
    files = {
        "config.yaml": YAML,
        "metrics.jsonl": METRICS,
        "status.json": _json(status),
        "environment.json": _json({"numpy": "2.0", "ranks": 2}),
        "done.json": _json({"steps": 2, "ranks": 1, "job": "a"}),
    }

    def read(path: Path) -> None:
        for other, content in files.items():
            if other != name and not path.with_name(other).exists():
                path.with_name(other).write_bytes(content)
        if is_run(path.parent):
            page = path.with_name("report.html")
            report([read_run(path.parent)], page, wish=Wish(False), say=str)

    return Case(name, files[name], read)


READERS: dict[str, Callable[[], Case]] = {
    "yaml": lambda: Case("job.yaml", YAML, lambda p: load_job(p, files=False)),
    "hostfile": lambda: Case("hosts.txt", HOSTS, read_hostfile),
    "hosts": lambda: Case(
        "hosts", b"node1:2,node[1-3]:4,[::1]:2", lambda p: parse_hosts(_text(p))
    ),
    "idx": lambda: Case("a-ubyte", _idx(), read_idx),
    "idx gzip": lambda: Case("a.gz", gzip.compress(_idx()), read_idx),
    "csv": lambda: Case("a.csv", CSV, lambda p: _table(p, "classification")),
    "csv numbers": lambda: Case("a.csv", CSV, lambda p: _table(p, "regression")),
    "jsonl": lambda: Case("a.jsonl", JSONL, lambda p: _table(p, "classification")),
    "completions": lambda: Case("a.jsonl", PAIRS, lambda p: list(read_pairs(p))),
    "npy tokens": lambda: Case(
        "a.npy",
        _npy(np.arange(60, dtype=np.uint16)),
        lambda p: open_token_file(p, 64),
    ),
    "llm.c tokens": lambda: Case("a.bin", LLMC, lambda p: open_token_file(p, 64)),
    "tokenizer": lambda: Case("tokenizer.json", TOKENIZER, load_tokenizer),
    "safetensors": lambda: Case(
        "w.safetensors", _saved("w.safetensors", MODEL.save_weights), MODEL.load_weights
    ),
    "state": lambda: Case(
        "state.json",
        _state(),
        lambda p: checkpoint.load(p.parent, MODEL.store, None),
        sound=False,
    ),
    "state with its checksum": lambda: Case(
        "state.json", _state(), _forged, sound=False
    ),
    "yaml of tables": lambda: Case(
        "job.yaml", JOB_WITH_TABLES, lambda p: load_job(p, files=False)
    ),
    "yaml of texts": lambda: Case(
        "job.yaml", JOB_WITH_TEXTS, lambda p: load_job(p, files=False)
    ),
    "tagged columns": lambda: Case("a.txt", TAGGED, lambda p: _tagged(p, "columns")),
    "tagged slashes": lambda: Case("a.txt", SLASHES, lambda p: _tagged(p, "slashes")),
    "texts csv": lambda: Case("a.csv", TEXTS, _texts),
    "texts jsonl": lambda: Case("a.jsonl", TEXT_LINES * 3, _texts),
    "npy": lambda: Case(
        "a.npy",
        _npy(np.arange(12.0).reshape(3, 4)),
        lambda p: load_npy(p, mmap_mode="r"),
    ),
    "manifest": lambda: Case("manifest.json", _manifest(), _shards),
    "metrics": lambda: Case("metrics.jsonl", METRICS, _metrics),
    "hugging face config": lambda: _huggingface("config.json"),
    "hugging face weights": lambda: _huggingface("model.safetensors"),
    "kept words": lambda: _kept(WordEncoder(["", "?", "a"], 5), Classes(("x", "y"))),
    "kept texts": _kept_texts,
    "kept pixels": lambda: _kept(Pixels(4, 5, 3), Values("y", 1.0, 2.0)),
    "kept array": lambda: _kept(ArrayInput((3, 4), 0.5), None),
    "preprocessing": lambda: Case("p.json", _kept_table(), _preprocessing),
    "image png": lambda: Case("a.png", _png(), _images),
    "image pgm": lambda: Case("a.pgm", b"P5\n5 4\n255\n" + bytes(20), _images),
    "keras weights": lambda: Case(
        "a.weights.h5", _saved("a.weights.h5", MODEL.save_weights), MODEL.load_weights
    ),
    "keras 2 weights": lambda: Case(
        "a.h5", _saved("a.h5", _keras_2), MODEL.load_weights
    ),
    "npz": lambda: Case("a.npz", _npz(), load_npz),
    "image jpeg": _jpeg,
    "raw tokens": lambda: Case(
        "a.bin",
        np.arange(60, dtype=np.uint16).tobytes(),
        lambda p: open_token_file(p, 64),
    ),
    "hugging face tokenizer": lambda: _bpe("tokenizer.json"),
    "hugging face vocabulary": lambda: _bpe("vocab.json"),
    "hugging face merges": lambda: _bpe("merges.txt"),
    "saved layers": lambda: _saved_model(_layers()),
    "saved gpt": lambda: _saved_model(fs.models.GPT(7, 4, 1, 1, 8)),
    "architecture of layers": lambda: _architecture(_layers()),
    "architecture of a gpt": lambda: _architecture(fs.models.GPT(7, 4, 1, 1, 8)),
    "documents jsonl": lambda: Case("a.jsonl", TEXT_LINES, _documents),
    "documents": lambda: Case("a.txt", "a b, cä\n\nd".encode(), _documents),
    "run's config": lambda: _run_folder("config.yaml"),
    "run's metrics": lambda: _run_folder("metrics.jsonl"),
    "run's status": lambda: _run_folder("status.json"),
    "run's environment": lambda: _run_folder("environment.json"),
    "run's end": lambda: _run_folder("done.json"),
}


def _text(path: Path) -> str:
    return path.read_text("utf-8", errors="surrogateescape")


PIECES = [
    b"\0",
    b"\xff\xff\xff\xff",
    b"\x7f\xff\xff\xff",
    b"99999999999999999999",
    b"-1",
    b"1e309",
    b"NaN",
    b"null",
    b'"',
    b"{",
    b"[" * 60,
    b"\n",
    b"\r",
    b",",
    b":",
    b"&a *a",
    b"!!python/object:os.system",
    b"../../x",
    b"$(touch x)",
    b"\xed\xa0\x80",
    b"\xf0\x9f\x98\x80",
]


def damage(content: bytes, rng: random.Random) -> bytes:
    """Return the content with one to five faults."""
    data = bytearray(content)
    for _ in range(rng.randint(1, 5)):
        if not data:
            return bytes(data)
        place, kind = rng.randrange(len(data)), rng.randrange(7)
        span = min(len(data) - place, 1 << rng.randrange(8))
        if kind == 0:
            data[place] ^= 1 << rng.randrange(8)
        elif kind == 1:
            data[place] = rng.randrange(256)
        elif kind == 2:
            del data[place : place + span]
        elif kind == 3:
            data[place:place] = data[place : place + span]
        elif kind == 4:
            data[place:place] = rng.choice(PIECES)
        elif kind == 5:
            piece = rng.choice(PIECES)
            data[place : place + len(piece)] = piece
        else:
            del data[place:]
    return bytes(data)


class Examined(NamedTuple):
    """What a reader made of an input; ``problem`` is None if all is well."""

    refused: bool
    problem: str | None


def examine(reader: str, case: Case, path: Path, content: bytes) -> Examined:
    """Let the reader read ``content``, which is written to ``path``."""
    path.write_bytes(content)
    start, refused, problem = time.process_time(), True, None
    try:
        case.read(path)
        refused = False
    except FastserveError:
        pass
    except Exception as error:  # noqa: BLE001  what this looks for
        # of npz and npy files the callers say more
        if reader not in ("npz", "npy") or not isinstance(error, OSError | ValueError):
            problem = f"{type(error).__name__}: {error}"
    if (seconds := time.process_time() - start) > SECONDS:
        problem = f"{seconds:.1f} s"
    return Examined(refused, problem)


def run(reader: str, count: int, seed: int) -> int:
    """Return how many inputs went wrong."""
    case, wrong, refused = READERS[reader](), 0, 0
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(dir=FOLDER) as folder:
        path = Path(folder, case.name)
        if case.sound:
            path.write_bytes(case.content)
            case.read(path)
        for number in range(count):
            content = damage(case.content, random.Random(f"{seed} {number}"))
            found = examine(reader, case, path, content)
            refused += found.refused
            if found.problem:
                wrong += 1
                told = f"{reader} {number}: {found.problem[:300]}"
                print(f"{told}\n  {content[:200]!r}", flush=True)
                if wrong >= 20:
                    break
    rate = count / (time.perf_counter() - start)
    told = f"{refused} refused, {wrong} wrong, {rate:.0f} a second"
    print(f"{reader}: {count} inputs, {told}")
    return wrong


def strict() -> None:
    """Make warnings errors, limit the memory of this process, and show its crash."""
    warnings.simplefilter("error")
    # a header with a fault that NumPy forgives
    warnings.filterwarnings("ignore", "Reading `.npy` or `.npz` file required")
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    faulthandler.enable()  # libraries in C may crash; the input is left in FOLDER then


if __name__ == "__main__":
    strict()
    chosen = [sys.argv[1]] if sys.argv[1] != "all" else list(READERS)
    seed = int(sys.argv[3]) if len(sys.argv) > 3 else 0
    failed = sum(run(name, int(sys.argv[2]), seed) for name in chosen)
    sys.exit(1 if failed else 0)
