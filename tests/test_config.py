"""The job file: strict YAML, every fault with its line, overrides, and the way back."""

from __future__ import annotations

import json
import math
import string
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastserve.config import Job, dump_job, json_schema, load_job, load_yaml, names
from fastserve.config.schema import AdamW, GptModel
from fastserve.config.strict_yaml import (
    MAX_BYTES,
    MAX_DEPTH,
    MAX_NODES,
    MAX_TEXT,
    dump_yaml,
)
from fastserve.errors import ConfigError

QUICKSTART = Path(__file__).parents[1] / "configs" / "quickstart.yaml"

# One key on each line, so that a test can name a line and replace it.
JOB = """\
name: job
seed: 3
model:
  type: gpt
  n_layer: 2
  n_head: 4
  n_embd: 64
data:
  type: text
  source: pydoc-topics
train:
  global_batch: 32
  steps: 100
optimizer:
  type: adamw
  lr: 1e-3
schedule:
  type: cosine
  warmup_steps: 10
"""

MODELS: dict[str, dict[str, Any]] = {
    "gpt": {"type": "gpt", "n_embd": 96, "n_head": 3, "dropout": 0.1},
    "sequential": {
        "type": "sequential",
        "layers": [{"Dense": {"units": 8, "activation": "relu"}}, "Flatten"],
        "loss": {"Huber": {"delta": 2.0}},
        "metrics": ["accuracy", {"Precision": {"class_id": 1}}],
        "input_shape": [28, 28],
    },
    "python": {
        "type": "python",
        "file": "part.py",
        "function": "make",
        "arguments": {"width": 3, "rate": 5e-05, "name": "no", "all": [None, "1e-4"]},
    },
}
DATA: dict[str, dict[str, Any]] = {
    "text": {"type": "text", "source": "words.txt", "tokenizer": "byte"},
    "tokens": {
        "type": "tokens",
        "train": "a.npy",
        "validation": "b.bin",
        "vocab_size": 50257,
    },
    "arrays": {"type": "arrays", "file": "c.npz", "one_hot": 10, "scale": 1 / 255},
    "python": {"type": "python", "file": "part.py"},
}
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "sgd": {"type": "sgd", "lr": 0.1, "momentum": 0.9, "nesterov": True},
    "rmsprop": {"type": "rmsprop", "lr": 1e-4, "rho": 0.8, "eps": 1e-6},
    "adam": {"type": "adam", "lr": 5e-05, "betas": [0.8, 0.9]},
    "adamw": {"type": "adamw", "lr": 1e-3, "weight_decay": 0},
    "adamax": {"type": "adamax", "betas": [0.8, 0.9]},
    "nadam": {"type": "nadam", "eps": 1e-5},
    "lamb": {"type": "lamb", "weight_decay": 0.1},
    "lion": {"type": "lion", "betas": [0.95, 0.98]},
    "adagrad": {"type": "adagrad", "initial_accumulator_value": 0},
    "adadelta": {"type": "adadelta", "lr": 1, "rho": 0.9},
    "ftrl": {"type": "ftrl", "l1": 0.1, "learning_rate_power": -0.4},
}
SCHEDULES: dict[str, dict[str, Any]] = {
    "constant": {"type": "constant", "warmup_steps": 3},
    "linear": {"type": "linear", "min_lr": 1e-06},
    "cosine": {"type": "cosine", "warmup_steps": 5, "decay_steps": 40},
    "exponential": {"type": "exponential", "rate": 0.5, "decay_steps": 10},
    "step": {"type": "step", "step_size": 30, "gamma": 0.1},
    "cosine_restarts": {"type": "cosine_restarts", "first_decay_steps": 9, "t_mul": 1},
    "polynomial": {"type": "polynomial", "power": 2, "cycle": True},
    "piecewise": {"type": "piecewise", "boundaries": [5, 9], "factors": [0.5, 0]},
    "plateau": {"type": "plateau", "factor": 0.5, "patience": 2, "cooldown": 1},
}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Run each test in a folder that has a file of each kind."""
    for name in ("part.py", "words.txt", "a.npy", "b.bin", "c.npz"):
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def load(text: str | bytes, *overrides: str) -> Job:
    file = Path("job.yaml")
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return load_job(file, overrides)


def faults(text: str | bytes, *overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(text, *overrides)
    return caught.value.faults


def changed(line: int, text: str) -> str:
    """Return JOB with one line (numbered from 1) replaced by one or more."""
    lines = JOB.splitlines()
    lines[line - 1] = text
    return "\n".join(lines) + "\n"


# --- scalars and structure


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("1e6", 1e6),
        ("5e-05", 5e-05),
        ("-1.5E+3", -1500.0),
        (".5", 0.5),
        ("2.", 2.0),
        ("0", 0),
        ("-7", -7),
        ("+7", 7),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("''", ""),
    ],
)
def test_scalars(text: str, value: Any) -> None:
    found, lines = load_yaml(f"a: {text}", "here")
    assert found == {"a": value}
    assert type(found["a"]) is type(value)
    assert lines == {(): 1, ("a",): 1}


@pytest.mark.parametrize(
    "text",
    [
        *("no", "yes", "on", "off", "Yes", "NO", "y", "n", "tRUE", "nan", "inf"),
        *("12:30", "12:30:00", "1:30", "02:00:00", "2024-01-01", "1.2.3"),
        *("0755", "0o17", "0x1F", "0b1", "1_000", "00.5", "e5", "1e", "1e5.0", "="),
    ],
)
def test_what_stays_text(text: str) -> None:
    assert load_yaml(f"a: {text}", "here")[0] == {"a": text}


def test_quoted_and_block_scalars_are_text() -> None:
    text = "a: '1'\nb: \"true\"\nc: |\n  12\nd: >-\n  null\n"
    assert load_yaml(text, "here")[0] == {
        "a": "1",
        "b": "true",
        "c": "12\n",
        "d": "null",
    }


def test_keys_are_text() -> None:
    text = "1: a\non: b\nnull: c\n1e3: d\n"
    assert list(load_yaml(text, "here")[0]) == ["1", "on", "null", "1e3"]


def test_lines_of_keys_and_items() -> None:
    text = "# comment\na:\n  b: 1\n  c:\n    - x\n    - {d: 2}\n"
    lines = load_yaml(text, "here")[1]
    assert lines[("a",)] == 2
    assert lines[("a", "b")] == 3
    assert lines[("a", "c", 0)] == 5
    assert lines[("a", "c", 1, "d")] == 6


def test_aliases_are_copies() -> None:
    value = load_yaml("a: &x {b: [1]}\nc: *x\n", "here")[0]
    assert value["a"] == value["c"]
    assert value["a"]["b"] is not value["c"]["b"]


def bomb() -> str:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    for i in range(1, 12):
        lines.append(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]")
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("a: 1\nb:\n  c: 1\n  c: 2\n", "line 4: b.c: expected each key once"),
        ("a: 1\nb: !!python/name:os.system x\n", "line 2: the file: expected YAML wi"),
        ("a: !!str 1\n", "line 1: the file: expected YAML without tags"),
        ("a: ! 1\n", "line 1: the file: expected YAML without tags"),
        ("a: 1\n---\nb: 2\n", "line 2: the file: expected one YAML document"),
        ("a: &x {b: 1}\nc:\n  <<: *x\n", "line 3: c.'<<': expected keys written out"),
        ("a: 1\n? [b]\n: 2\n", "line 2: 'key on line 2': expected a name as the key"),
        ("a:\n\tb: 1\n", "line 2: the file: expected YAML that can be read"),
        ("a: [1,\nb: 2\n", "line 3: the file: expected YAML that can be read"),
        ("a: 1\nb: *nowhere\n", "line 2: the file: expected YAML that can be read"),
        ("a: 1\nb: \x07\n", "line 2: the file: expected YAML that can be read"),
        ('a: "\\UFFFFFFFF"\n', "line 1: the file: expected YAML that can be read"),
        ('a: 1\nb: "\\ud800"\n', "line 2: the file: expected Unicode text"),
        ("a: 1\nb: .nan\n", "line 2: b: expected a finite number"),
        ("a: 1\nb: -.inf\n", "line 2: b: expected a finite number"),
        ("a: 1\nb: [1e999]\n", "line 2: b[0]: expected a finite number"),
        (f"a: {'9' * 5000}\n", "line 1: a: expected a number of at most 40 digits"),
        (
            "a: &x [*x]\n",
            f"line 1: the file: expected a nesting of at most {MAX_DEPTH}",
        ),
        ("[" * 5000, f"line 1: the file: expected a nesting of at most {MAX_DEPTH}"),
        ("- x\n" * (MAX_NODES + 1), f"line {MAX_NODES}: the file: expected at most"),
        (bomb(), f"line 1: the file: expected at most {MAX_NODES} keys and values"),
        (
            f"a: &x {'y' * (MAX_TEXT // 2)}\nb: *x\nc: *x\n",
            "line 1: the file: expected",
        ),
        (
            "#" * (MAX_BYTES + 1),
            f"line 1: the file: expected at most {MAX_BYTES} bytes",
        ),
        (b"a: 1\nb: \xff\n", "line 2: the file: expected text in UTF-8, received the"),
        ("a: 1\n".encode("utf-16"), "line 1: the file: expected text in UTF-8"),
    ],
    ids=range(25),
)
def test_refused_yaml(text: str | bytes, fault: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_yaml(text, "job.yaml")
    assert len(caught.value.faults) == 1
    assert caught.value.faults[0].startswith(fault)
    assert str(caught.value).startswith("job.yaml: 1 fault\n")


def test_a_tab_is_told_as_such() -> None:
    with pytest.raises(ConfigError, match="indent with spaces") as caught:
        load_yaml("a:\n\tb: 1\n", "job.yaml")
    assert caught.value.faults[0].startswith("line 2: the file: expected YAML")


def test_a_duplicate_key_names_both_lines() -> None:
    text = JOB + "seed: 4\n"
    assert faults(text) == [
        "line 20: seed: expected each key once, received it a second time, "
        "the first is on line 2"
    ]


@pytest.mark.parametrize(
    ("text", "received"),
    [
        ("", "an empty file"),
        ("# only a comment\n", "an empty file"),
        ("~", "an empty file"),
        ("- 1\n- 2\n", "[1, 2]"),
        ("just text", "'just text'"),
        ("12", "12"),
    ],
)
def test_a_top_that_is_no_mapping(text: str, received: str) -> None:
    expected = "expected a mapping with the keys of a job"
    assert faults(text) == [f"line 1: the file: {expected}, received {received}"]


def test_a_byte_order_mark_is_allowed() -> None:
    assert load(b"\xef\xbb\xbf" + JOB.encode()).name == "job"


@pytest.mark.parametrize("path", ["nowhere.yaml", ".", "a\0b"])
def test_files_that_cannot_be_read(path: str) -> None:
    with pytest.raises(ConfigError, match="expected a file that can be read"):
        load_job(path)


# --- values


def test_a_job_and_its_defaults() -> None:
    job = load(JOB)
    assert (job.name, job.seed, job.run_dir) == ("job", 3, None)
    assert job.model.type == "gpt"
    assert (job.model.n_layer, job.model.block_size, job.model.dropout) == (2, 128, 0)
    assert job.optimizer.type == "adamw"
    assert job.optimizer.betas == (0.9, 0.95)
    assert (job.comm.algorithm, job.comm.bucket_mb, job.comm.timeout) == (
        "ring",
        4,
        60,
    )
    assert (job.launch.ranks, job.launch.threads, job.launch.bind) == (
        None,
        "auto",
        "core",
    )
    assert (job.launch.hosts, job.launch.hostfile, job.launch.ssh) == (None, None, [])
    assert (job.launch.oversubscribe, job.launch.start_timeout) == (False, 30)
    assert (job.launch.slurm.requeue, job.launch.slurm.signal_seconds) == (True, 120)
    assert (job.checkpoint.every, job.checkpoint.keep) == (None, 2)
    assert (job.train.log_every, job.train.sample_tokens) == (10, 200)


def test_the_quickstart() -> None:
    job = load_job(QUICKSTART)
    assert job.name == "quickstart-gpt"
    assert job.launch.ranks == 2
    assert job.train.steps == 400
    assert job.schedule.type == "cosine"
    assert (job.optimizer.lr, job.schedule.min_lr) == (4e-3, 4e-4)


# what a first job, which runs on one host, needn't know
FOR_CLUSTERS = {
    "hosts",
    "hostfile",
    "include",
    "exclude",
    "interface",
    "ssh",
    "oversubscribe",
    "python",
    "start_timeout",
    "slurm",
}


def test_the_quickstart_names_every_key_of_its_sections() -> None:
    data, _ = load_yaml(QUICKSTART.read_text(), "quickstart")
    job = load_job(QUICKSTART)
    assert list(data) and set(data) == set(Job.model_fields)
    for name, section in data.items():
        if isinstance(section, dict):
            known = set(type(getattr(job, name)).model_fields) - {"epochs"}
            known -= FOR_CLUSTERS
            assert set(section) == known, name


@pytest.mark.parametrize("written", ["1e6", "1000000.0", "1000000"])
def test_integral_numbers_are_integers(written: str) -> None:
    job = load(changed(13, f"  steps: {written}"))
    assert job.train.steps == 1_000_000
    assert type(job.train.steps) is int


def test_numbers_are_floats_where_a_number_is_wanted() -> None:
    lr = load(changed(16, "  lr: 1")).optimizer.lr
    assert (lr, type(lr)) == (1.0, float)


def test_words_that_look_like_booleans_are_text() -> None:
    job = load(changed(1, "name: off") + "launch: {env: {A: no, B: '1'}}\n")
    assert job.name == "off"
    assert job.launch.env == {"A": "no", "B": "1"}
    assert load(JOB + "comm: {overlap: off}\n").comm.overlap == "off"


def test_hosts_of_a_job() -> None:
    launch = "launch: {hosts: [node1:2, 'me@node[2-4]:4', '[fe80::1]:2'], ssh: ['-4'], "
    more = "interface: 10.0.0.0/8, slurm: {time: '90m', mem: 16G, prologue: [module x]}"
    made = load(f"{JOB}{launch}{more}}}\n").launch
    assert made.hosts == ["node1:2", "me@node[2-4]:4", "[fe80::1]:2"]
    assert (made.ssh, made.interface) == (["-4"], "10.0.0.0/8")
    assert (made.slurm.time, made.slurm.mem) == ("90m", "16G")


def test_bare_layers_are_layers_without_arguments() -> None:
    model = (
        "{type: sequential, loss: mse, layers: [Flatten, ReLU: , Dense: {units: 3}]}"
    )
    job = load(f"name: a\nmodel: {model}\ndata: {DATA['arrays']}\ntrain: {{epochs: 1}}")
    assert job.model.type == "sequential"
    assert job.model.layers == [{"Flatten": {}}, {"ReLU": {}}, {"Dense": {"units": 3}}]


# --- faults and their lines

COUNT = "expected an integer from 1 to 1000000000"
NAME = (
    "expected a name of at most 100 letters, digits, '.', '_' and '-', which starts "
    "with a letter, a digit or '_'"
)
FAULTS = [
    (5, "  n_layer: 2.5", 5, f"model.n_layer: {COUNT}, received 2.5"),
    (5, "  n_layer: true", 5, f"model.n_layer: {COUNT}, received true"),
    (5, "  n_layer: 0", 5, f"model.n_layer: {COUNT}, received 0"),
    (5, "  n_layer: 2e9", 5, f"model.n_layer: {COUNT}, received 2000000000"),
    (5, "  n_layer: 12:30", 5, f"model.n_layer: {COUNT}, received '12:30'"),
    (5, "  n_layer: 0755", 5, f"model.n_layer: {COUNT}, received '0755'"),
    (5, "  n_layer:", 5, f"model.n_layer: {COUNT}, received nothing (null)"),
    (5, "  n_layer: [1]", 5, f"model.n_layer: {COUNT}, received [1]"),
    (
        5,
        "  n_layer: '2'",
        5,
        f"model.n_layer: {COUNT}, received '2', write it without quotes",
    ),
    (12, "  global_batch: 0", 12, f"train.global_batch: {COUNT}, received 0"),
    (13, "  steps: x", 13, f"train.steps: {COUNT} or null, received 'x'"),
    (
        16,
        "  lr: true",
        16,
        "optimizer.lr: expected a number above 0, received true",
    ),
    (16, "  lr: 0", 16, "optimizer.lr: expected a number above 0, received 0"),
    (
        16,
        "  lr: .inf",
        16,
        "optimizer.lr: expected a finite number, or text in quotes, received .inf",
    ),
    (
        5,
        "  n_layers: 2",
        5,
        "model.n_layers: expected one of the keys type, n_layer, n_head, n_embd, "
        "block_size, dropout, variant, n_kv_head, ff_dim, positions, norm, mlp or 7 "
        "others, received 'n_layers', did you mean 'n_layer'?",
    ),
    (
        4,
        "  type: gtp",
        4,
        "model.type: expected gpt, json, python or sequential, received 'gtp', "
        "did you mean 'gpt'?",
    ),
    (
        4,
        "  n_layre: 2",
        3,
        "model.type: expected gpt, json, python or sequential, received nothing",
    ),
    (
        4,
        "  type: [gpt]",
        4,
        'model.type: expected gpt, json, python or sequential, received ["gpt"]',
    ),
    (
        10,
        "  tokenizer: char",
        8,
        "data.source: expected a path, received nothing",
    ),
    (1, "names: job", 1, f"name: {NAME}, received nothing"),
    (1, "name: ../job", 1, f"name: {NAME}, received '../job'"),
    (1, "name: ..", 1, f"name: {NAME}, received '..'"),
    (1, "name: 2024", 1, f"name: {NAME}, received 2024, put it in quotes"),
    (1, 'name: "a\\n"', 1, f"name: {NAME}, received 'a\\n'"),
    (2, "seed: -1", 2, "seed: expected an integer from 0 to 9223372036854775807, "),
    (2, "run_dir: ''", 2, "run_dir: expected a path or null, received ''"),
    (
        2,
        "comm: {algorithm: rnig}",
        2,
        "comm.algorithm: expected ring, mpi or exact, received 'rnig', "
        "did you mean 'ring'?",
    ),
    (
        2,
        "launch: {threads: atuo}",
        2,
        f"launch.threads: {COUNT} or auto, received 'atuo', did you mean 'auto'?",
    ),
    (2, "launch: {threads: {int: 3}}", 2, f"launch.threads: {COUNT} or auto, received"),
    (2, "launch: {env: {A: 4}}", 2, "launch.env.A: expected text, received 4, put it"),
    (
        2,
        "launch: {env: {'A=': x}}",
        2,
        "launch.env: expected names of letters, digits and '_', received 'A='",
    ),
    (2, "launch: {hosts: []}", 2, "launch.hosts: expected a list of one or more items"),
    (2, "launch: {hosts: [-x]}", 2, "launch.hosts[0]: expected a host such as node1"),
    (2, "launch: {hosts: [a b]}", 2, "launch.hosts[0]: expected a host such as node1"),
    (
        2,
        "launch: {ssh: [-i k]}",
        2,
        "launch.ssh[0]: expected a word of letters, digits and _@%+=:,./~-",
    ),
    (2, "launch: {hostfile: nope}", 2, "launch.hostfile: expected an existing file"),
    (
        2,
        "launch: {hosts: [a], hostfile: b}",
        2,
        "launch.hostfile: expected either hosts or hostfile, not both, received 'b'",
    ),
    (
        2,
        "launch: {include: [a]}",
        2,
        "launch.include: expected hosts or hostfile beside it, to choose from",
    ),
    (
        2,
        "launch: {exclude: [a]}",
        2,
        "launch.exclude: expected hosts or hostfile beside it, to choose from",
    ),
    (
        2,
        "launch: {launcher: local, hosts: [a]}",
        2,
        "launch.launcher: expected auto, openmpi or mpich, as hosts are given",
    ),
    (
        2,
        "launch: {interface: '10.0.0.300/8'}",
        2,
        "launch.interface: expected an interface's name or a subnet such as",
    ),
    (2, "launch: {interface: 'a,b'}", 2, "launch.interface: expected an interface's"),
    (
        2,
        "launch: {slurm: {time: soon}}",
        2,
        "launch.slurm.time: expected a time such as '02:30:00'",
    ),
    (2, "launch: {slurm: {time: 90}}", 2, "launch.slurm.time: expected a time such as"),
    (
        2,
        "launch: {slurm: {mem: lots}}",
        2,
        "launch.slurm.mem: expected an amount of memory such as",
    ),
    (
        2,
        'launch: {slurm: {extra: ["a\\nb"]}}',
        2,
        "launch.slurm.extra[0]: expected text on one line",
    ),
    (2, "launch: {slurm: {partion: x}}", 2, "launch.slurm.partion: expected one of"),
    (
        2,
        "checkpoint:",
        2,
        "checkpoint: expected a section with the keys every, keep, keep_every, at_end "
        "or best, received nothing (null)",
    ),
    (
        2,
        "checkpoint: {every: 4, keep_every: 6}",
        2,
        "checkpoint.keep_every: expected a multiple of checkpoint.every (4), received "
        "6",
    ),
    (
        2,
        "checkpoint: {keep_every: 6}",
        2,
        "checkpoint.keep_every: expected checkpoint.every beside it, received 6",
    ),
    (
        2,
        "checkpoint: {at_end: yes}",
        2,
        "checkpoint.at_end: expected true or false, received 'yes', did you mean true?",
    ),
    (
        15,
        "  type: adamw\n  betas: [0.9]",
        16,
        "optimizer.betas[1]: expected a number of at least 0 and below 1, "
        "received nothing",
    ),
    (
        15,
        "  type: adamw\n  betas:\n    - 0.9\n    - 1.5",
        18,
        "optimizer.betas[1]: expected a number of at least 0 and below 1, received 1.5",
    ),
    (
        15,
        "  type: adamw\n  betas: 0.9",
        16,
        "optimizer.betas: expected a list of 2 items, each a number of at least 0 and "
        "below 1, received 0.9",
    ),
    (
        15,
        "  type: sgd\n  rho: 0.9",
        16,
        "optimizer.rho: expected one of the keys type, lr, momentum, nesterov or "
        "weight_decay, received 'rho'",
    ),
    # checks over several keys
    (
        6,
        "  n_head: 5",
        7,
        "model.n_embd: expected a multiple of n_head (5), received 64",
    ),
    (
        13,
        "  log_every: 1",
        11,
        "train.steps: expected a number of steps here, or of epochs, received nothing",
    ),
    (
        13,
        "  steps: 5e2\n  epochs: 2",
        14,
        "train.epochs: expected either steps (500) or epochs, not both, received 2",
    ),
    (
        13,
        "  steps: 50\n  micro_batch: 64",
        14,
        "train.micro_batch: expected at most global_batch (32), received 64",
    ),
    (
        15,
        "  type: sgd\n  nesterov: true",
        16,
        "optimizer.nesterov: expected a momentum above 0 beside it, received true",
    ),
    (
        19,
        "  warmup_steps: 101",
        19,
        "schedule.warmup_steps: expected at most train.steps (100), received 101",
    ),
    (
        19,
        "  warmup_steps: 10\n  decay_steps: 10",
        20,
        "schedule.decay_steps: expected more than warmup_steps (10), received 10",
    ),
    (
        19,
        "  min_lr: 0.01",
        19,
        "schedule.min_lr: expected at most optimizer.lr (0.001), received 0.01",
    ),
    (
        2,
        "comm: {algorithm: exact}\nlaunch: {ranks: 9}",
        3,
        "launch.ranks: expected at most 8, the number of shards of a batch, received 9",
    ),
    (
        10,
        "  source: pydoc-topic",
        10,
        "data.source: expected an existing file or the built-in text pydoc-topics, "
        "shakespeare or gcide, "
        "received 'pydoc-topic', did you mean 'pydoc-topics'?",
    ),
    (
        10,
        "  source: /nowhere/at-all",
        10,
        "data.source: expected an existing file or the built-in text pydoc-topics, "
        "shakespeare or gcide, "
        "received '/nowhere/at-all'",
    ),
    (
        9,
        "  type: arrays\n  file: c.npz",
        9,
        "data.type: expected text, tokens or completions for a model of type gpt, "
        "received 'arrays'",
    ),
    (
        4,
        "  type: python\n  file: part.py\nignored:",
        11,
        "data.type: expected arrays, python, idx, csv, jsonl, images, texts, tagged or",
    ),
    (
        9,
        "  type: tokens\n  vocab_size: 256\n  train: a.txt",
        11,
        "data.train: expected a file that ends in .npy, .bin or manifest.json, "
        "received 'a.txt'",
    ),
    (
        9,
        "  type: tokens\n  vocab_size: 256\n  train: a.npy\n  validation: z.npy",
        12,
        "data.validation: expected an existing file, received 'z.npy', looked in /",
    ),
]


@pytest.mark.parametrize(
    ("line", "text", "at", "fault"), FAULTS, ids=range(len(FAULTS))
)
def test_faults_have_the_line_of_the_key(
    line: int, text: str, at: int, fault: str
) -> None:
    found = faults(changed(line, text))
    match = [one for one in found if one.startswith(f"line {at}: {fault}")]
    assert len(match) == 1, found


@pytest.mark.parametrize("source", ["shakespeare", "shakespeare.csv"])
def test_built_in_texts_are_no_texts_with_a_class(source: str) -> None:
    model = "  type: sequential\n  loss: mse\n  layers: [Dense: {units: 1}]\nignored:"
    text = changed(4, model).replace("type: text", "type: texts")
    found = faults(text.replace("pydoc-topics", source))
    assert [one for one in found if f"received '{source}'" in one], found
    assert not [one for one in found if "built-in" in one or "pydoc-topics" in one]


@pytest.mark.parametrize(
    ("layers", "fault"),
    [
        ("[]", "layers: expected a list of one or more items, received []"),
        ("Dense", "layers: expected a list of one or more items, received 'Dense'"),
        ("[{A: , B: }]", "layers[0]: expected a layer's name, or a mapping of one"),
        ("[A, 3]", "layers[1]: expected a layer's name, or a mapping of one name to"),
        ("[A: 3]", "layers[0]: expected a layer's name, or a mapping of one name to"),
    ],
)
def test_faults_in_layers(layers: str, fault: str) -> None:
    model = f"  type: sequential\n  loss: mse\n  layers: {layers}\nignored:"
    found = faults(changed(4, model))
    assert [one for one in found if one.startswith(f"line 6: model.{fault}")], found


def test_all_faults_are_listed_at_once_in_order() -> None:
    text = changed(12, "  global_batch: 0\n  stepz: 3").replace(
        "n_head: 4", "n_head: 5"
    )
    found = faults(text.replace("1e-3", "x"), "comm.overlap=maybe", "seed=no")
    assert [one.split(": expected")[0] for one in found] == [
        "line 7: model.n_embd",
        "line 12: train.global_batch",
        "line 13: train.stepz",
        "line 17: optimizer.lr",
        "--set: seed",
        "--set: comm.overlap",
    ]


def test_the_message_shows_the_source_and_the_count() -> None:
    with pytest.raises(ConfigError) as caught:
        load(changed(5, "  n_layer: 0").replace("1e-3", "x"))
    first, *rest = str(caught.value).splitlines()
    assert first == "job.yaml: 2 faults"
    assert rest == caught.value.faults


def test_faults_use_the_words_of_the_file() -> None:
    words = ("Input should", "union_tag", "literal[", "function-before")
    for line, text, _, _ in FAULTS:
        found = "\n".join(faults(changed(line, text)))
        assert not [word for word in words if word in found]
        assert "model.gpt" not in found
        assert "optimizer.adamw" not in found


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        ("text\n  source: words.txt\n  validation_split: 0", "validation_split"),
        ("tokens\n  vocab_size: 9\n  train: a.npy\n  validation:", "validation"),
    ],
)
def test_eval_every_needs_validation_data(data: str, fault: str) -> None:
    text = changed(9, f"  type: {data}").replace("  source: pydoc-topics\n", "")
    assert load(text).train.eval_every is None
    (found,) = faults(text, "train.eval_every=5")
    line = text[: text.index(fault)].count("\n") + 1
    expected = "expected validation data, as train.eval_every is set"
    assert found.startswith(f"line {line}: data.{fault}: {expected}, received ")


def test_files_need_not_be_looked_for() -> None:
    Path("job.yaml").write_text(changed(10, "  source: gone.txt"))
    job = load_job("job.yaml", files=False)
    assert job.data.type == "text"
    assert job.data.source == "gone.txt"


# --- overrides


def test_overrides() -> None:
    job = load(
        JOB,
        "train.steps=5e2",
        "model={type: gpt, n_embd: 32}",
        "optimizer.betas.0=0.8",
        "optimizer.betas=[0.7, 0.8]",
        "optimizer.betas.1=0.9",
        "launch.env.A=b=c",
        "launch.env.B=no",
        "checkpoint.every=",
        "name=off",
    )
    assert job.train.steps == 500
    assert job.model == GptModel(type="gpt", n_embd=32)
    assert job.optimizer == AdamW(type="adamw", betas=(0.7, 0.9))
    assert job.launch.env == {"A": "b=c", "B": "no"}
    assert job.checkpoint.every is None
    assert job.name == "off"


def test_an_override_mends_a_fault_of_the_file() -> None:
    model = load(changed(5, "  n_layer: x"), "model.n_layer=3").model
    assert model == GptModel(type="gpt", n_layer=3, n_embd=64)


def test_overrides_reach_into_lists() -> None:
    model = "{type: sequential, loss: mse, layers: [Flatten, Dense: {units: 3}]}"
    text = f"name: a\nmodel: {model}\ndata: {DATA['arrays']}\ntrain: {{epochs: 1}}\n"
    job = load(text, "model.layers.1.Dense.units=7", "model.layers.0=ReLU")
    assert job.model.type == "sequential"
    assert job.model.layers == [{"ReLU": {}}, {"Dense": {"units": 7}}]


@pytest.mark.parametrize(
    ("override", "fault"),
    [
        (
            "train.steps",
            "'train.steps': expected an override of the form key.path=value",
        ),
        ("=3", "'=3': expected an override of the form key.path=value, received ''"),
        ("a..b=3", "expected an override of the form key.path=value, received 'a..b'"),
        ("train.stepz=3", "train.stepz: expected one of the keys"),
        ("train.steps=x", f"train.steps: {COUNT} or null, received 'x'"),
        ("train.steps=-1", f"train.steps: {COUNT} or null, received -1"),
        ("train.clip_norm=.nan", "train.clip_norm: expected a finite number"),
        ("train={steps: 1, steps: 2}", "train.steps: expected each key once"),
        ("train={steps: true}", f"train.steps: {COUNT} or null, received true"),
        ("seed=[1", "seed: expected YAML that can be read"),
        ("seed=!!int 1", "seed: expected YAML without tags"),
        ("name.first=x", "name.first: expected a section or list around 'first'"),
        ("optimizer.betas.3=1", "optimizer.betas: expected a list of 2 items"),
        ("comm={algorithm: exact, wire: float16}", "comm.wire: expected float32 for"),
        ("comm={algorithm: mpi, overlap: 'on'}", "comm.overlap: expected auto or off"),
        ("comm={algorithm: mpi, wire: float16}", "comm.wire: expected float32 for"),
        ("comm.wire=float8", "comm.wire: expected float32, float16 or bfloat16"),
        ("schedule={type: step}", "schedule.step_size: expected an integer from"),
        (
            "model={type: gpt, n_kv_head: 3}",
            "model.n_kv_head: expected a divisor of n_head (4), received 3",
        ),
        (
            "model={type: gpt, n_embd: 20, variant: llama}",
            "model.n_embd: expected an even multiple of n_head (4) for rotary",
        ),
        (
            "model={type: gpt, n_embd: 20, positions: rotary}",
            "model.n_embd: expected an even multiple of n_head (4) for rotary",
        ),
        ("model={type: gpt, n_head: 3}", "model.n_embd: expected a multiple of n_head"),
        (f"model.{'a.' * 40}b=1", "expected a nesting of at most"),
    ],
)
def test_faults_of_overrides(override: str, fault: str) -> None:
    found = faults(JOB, override)
    assert [one for one in found if one.startswith("--set: ") and fault in one], found


# --- the way back


def round_trip(**sections: dict[str, Any]) -> Job:
    parts = {
        "name": "trip",
        "model": MODELS["gpt"],
        "data": DATA["text"],
        "train": {"steps": 50},
        **sections,
    }
    job = load(dump_yaml(parts))
    again = load(dump_job(job))
    assert again == job
    assert dump_job(again) == dump_job(job)
    return job


@pytest.mark.parametrize("kind", MODELS)
def test_round_trip_of_models(kind: str) -> None:
    data = DATA["tokens" if kind == "gpt" else "python"]
    job = round_trip(model=MODELS[kind], data=data)
    assert job.model.type == kind


@pytest.mark.parametrize("kind", DATA)
def test_round_trip_of_data(kind: str) -> None:
    model = MODELS["gpt" if kind in ("text", "tokens") else "sequential"]
    assert round_trip(data=DATA[kind], model=model).data.type == kind


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_round_trip_of_optimizers(kind: str) -> None:
    assert round_trip(optimizer=OPTIMIZERS[kind]).optimizer.type == kind


@pytest.mark.parametrize("kind", SCHEDULES)
def test_round_trip_of_schedules(kind: str) -> None:
    train = {"steps": 50, "eval_every": 10}
    job = round_trip(schedule=SCHEDULES[kind], train=train)
    assert job.schedule.type == kind


def test_round_trip_of_the_quickstart() -> None:
    job = load_job(QUICKSTART)
    assert load(dump_job(job)) == job


def test_a_dump_lists_every_key() -> None:
    dumped, _ = load_yaml(dump_job(load(JOB)), "dump")
    assert list(dumped) == list(Job.model_fields)
    assert list(dumped["schedule"]) == ["type", "warmup_steps", "min_lr", "decay_steps"]


YAML_TEXT = st.text(
    st.characters(exclude_categories=["Cs"]) | st.sampled_from(string.printable)
)
TRICKY = st.sampled_from(
    ["1e-4", "no", "0755", "12:30", ".nan", "1e999", "null", "~", "<<", "=", "true", ""]
)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats(allow_nan=False, allow_infinity=False)
    | YAML_TEXT
    | TRICKY,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(YAML_TEXT | TRICKY, inner, max_size=4)
    ),
    max_leaves=12,
)


@given(VALUES)
@settings(deadline=None)
def test_any_value_survives_a_dump(value: Any) -> None:
    found, _ = load_yaml(dump_yaml({"a": value}), "here")
    assert found == {"a": value}
    assert json.dumps(found) == json.dumps({"a": value})


def only_job_or_config_error(text: str | bytes, *overrides: str) -> None:
    try:
        job = load(text, *overrides)
    except ConfigError as error:
        assert error.faults
        for fault in error.faults:
            assert len(fault.splitlines()) == 1
            assert fault.startswith(("line ", "--set: "))
    else:
        assert isinstance(job, Job)
        assert load(dump_job(job)) == job


SLOWLY = settings(
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
YAML_LIKE = st.lists(
    st.sampled_from(
        [
            *("name", "model", "data", "train", "type", "gpt", "text", "steps", "a"),
            *(":", "-", "[", "]", "{", "}", ",", "&", "*", "!", "?", "|", ">", "'"),
            *('"', "#", "%", "@", "---", "...", "<<", "\n", "\n  ", "\n    ", ": "),
            *("- ", "\t", " ", "1", "1e6", ".nan", "true"),
        ]
    ),
    max_size=60,
).map("".join)


@given(st.text() | st.binary() | YAML_LIKE)
@SLOWLY
def test_arbitrary_text_gives_a_job_or_a_config_error(text: str | bytes) -> None:
    only_job_or_config_error(text)


@given(st.sampled_from(JOB.splitlines()), st.text(max_size=20) | YAML_LIKE)
@SLOWLY
def test_a_spoilt_line_gives_a_job_or_a_config_error(line: str, text: str) -> None:
    only_job_or_config_error(JOB.replace(line, line.partition(":")[0] + ": " + text))


@given(
    st.sampled_from(["", "seed", "model", "model.n_layer", "train", "launch.env.A"]),
    st.text(max_size=20) | YAML_LIKE | VALUES.map(json.dumps),
)
@SLOWLY
def test_any_override_gives_a_job_or_a_config_error(key: str, value: str) -> None:
    only_job_or_config_error(JOB, f"{key}={value}")
    only_job_or_config_error(JOB, value)


@given(
    st.dictionaries(st.sampled_from(sorted(Job.model_fields)), VALUES),
    st.sampled_from(sorted(Job.model_fields)),
    VALUES,
)
@SLOWLY
def test_any_data_gives_a_job_or_a_config_error(
    sections: dict[str, Any], section: str, value: Any
) -> None:
    only_job_or_config_error(dump_yaml(sections))
    good, _ = load_yaml(JOB, "job")
    for key in good.get(section, ()) if isinstance(good.get(section), dict) else ():
        spoilt = {**good, section: {**good[section], key: value}}
        only_job_or_config_error(dump_yaml(spoilt))


# --- the schema, and what importing it costs


def properties(schema: dict[str, Any]) -> list[tuple[str, str, dict[str, Any], bool]]:
    """Return (section, key, schema, required) of every key."""
    return [
        (section.get("description", ""), key, one, key in section.get("required", []))
        for section in [schema, *schema["$defs"].values()]
        for key, one in section["properties"].items()
    ]


def test_every_key_in_the_json_schema_is_described_and_has_a_default() -> None:
    schema = json_schema()
    json.dumps(schema, allow_nan=False)
    found = properties(schema)
    assert len(found) > 80
    for section, key, one, required in found:
        assert section, key
        assert len(one.get("description", "")) > 8, (section, key)
        assert required != ("default" in one), (section, key)


def test_the_json_schema_refuses_unknown_keys() -> None:
    schema = json_schema()
    for section in [schema, *schema["$defs"].values()]:
        assert section["additionalProperties"] is False


def test_defaults_are_valid_themselves() -> None:
    for _, key, one, required in properties(json_schema()):
        if not required and isinstance(one["default"], float):
            assert math.isfinite(one["default"]), key


def test_the_import_loads_no_numpy() -> None:
    code = (
        "import sys, fastserve.config; "
        "print([m for m in ('numpy', 'mpi4py', 'rich') if m in sys.modules])"
    )
    root = Path(__file__).parents[1]
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=root,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert result.stdout.strip() == "[]"


TYPOS = """
name: typos
data: {type: python, file: data.py, function: make}
model:
  type: sequential
  layers:
    - Densee: {units: 4}
    - Bidirectional: {layer: {LSTMM: {units: 4}}}
    - TimeDistributed:
        layer: {Dense: {units: 2}}
  loss: crossentropyy
  metrics: [foo, {Presision: {class_id: 1}}, acc]
train: {steps: 10}
"""


def test_names_of_layers_losses_and_metrics_are_checked_with_their_lines(
    tmp_path: Path,
) -> None:
    path = tmp_path / "typos.yaml"
    path.write_text(TYPOS)
    with pytest.raises(ConfigError) as caught:
        load_job(path, files=False)
    found = [fault.partition(", received ") for fault in caught.value.faults]
    assert [place for place, _, _ in found] == [
        "line 7: model.layers[0]: expected the name of a layer",
        "line 8: model.layers[1].Bidirectional.layer: expected the name of a layer",
        "line 11: model.loss: expected the name of a loss",
        "line 12: model.metrics[0]: expected the name of a metric",
        "line 12: model.metrics[1]: expected the name of a metric",
    ]
    assert [rest for _, _, rest in found][:3] == [
        "'Densee', did you mean 'Dense'?",
        "'LSTMM', did you mean 'LSTM'?",
        "'crossentropyy', did you mean 'BinaryCrossentropy'?",
    ]
    assert found[3][2].startswith("'foo', such as ")
    assert "recision'?" in found[4][2]


def test_the_names_are_the_librarys() -> None:
    from fastserve import layers, losses, metrics

    classes = {name for name in layers.__all__ if name[0].isupper()} - {"Layer"}
    assert classes == names.LAYERS
    assert set(losses.NAMED) == names.LOSSES
    assert set(metrics.KNOWN) == names.METRICS
    assert set(metrics.WITH_ARGUMENTS) == names.METRICS_WITH_ARGUMENTS
