"""Checks that need more than one key, or a look at the disk.

They run on the raw data, so that they also find what is wrong beside other faults: a
check that meets a key with a fault of its own is left out.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Collection
from contextlib import suppress
from typing import Any

from .explain import JobData
from .faults import Faults, Path, did_you_mean, listed, show
from .labelled import LABELLED, TABLES
from .names import LAYERS, LOSSES, METRICS, METRICS_WITH_ARGUMENTS
from .schema import SHARDS, Job

BUILT_IN_TEXTS = ("pydoc-topics", "shakespeare", "gcide")
_TOKEN_FILES = (".npy", ".bin", "manifest.json")
_IN_FILES = ("csv", "jsonl", "images", "texts", "tagged")  # with parts in own files
_FILE_KEYS = ("file", "validation", "test")
_ARRAYS = ("x", "y", "x_val", "y_val", "x_test", "y_test")
_IDX = ("train_images", "train_labels", "test_images", "test_labels")
_FOLDER = ("/",)  # a folder
_TEXTS = ("/", ".csv", ".jsonl")
TOKENIZERS = ("char", "byte", "bpe")


class _Unknown(Exception):
    """A key can't be used by a check: it has a fault, or another type lacks it."""


class _Keys:
    """Looks up keys by their dotted names, and adds faults to them."""

    def __init__(self, job: JobData, faults: Faults) -> None:
        self._job, self._faults = job, faults

    def __getitem__(self, key: str) -> Any:
        path = _path(key)
        place = self._job.place(path)
        if self._faults.touch(path) or place.path != path or place.missing:
            raise _Unknown(key)
        return place.value

    def fault(
        self, key: str | Path, expected: str, received: Any, hint: str = ""
    ) -> None:
        path = _path(key) if isinstance(key, str) else key
        self._faults.add(path, expected, show(received), hint)


def _path(key: str) -> Path:
    return tuple(key.split("."))


def check(job: JobData, faults: Faults, files: bool) -> None:
    """Add the faults that all checks find; ``files`` also looks for the files."""
    for one in (*_CHECKS, _files) if files else _CHECKS:
        try:
            one(_Keys(job, faults))
        except _Unknown:
            continue


def _heads(job: _Keys) -> None:
    width, heads = job["model.n_embd"], job["model.n_head"]
    if width % heads:
        expected = f"a multiple of n_head ({show(heads)})"
        job.fault("model.n_embd", expected, width)


def _lora(job: _Keys) -> None:
    if job["model.lora"] is None:
        return
    if job["model.init_from"] is None:
        expected = "model.init_from beside it: the weights that it corrects"
        job.fault("model.lora", expected, job["model.lora"])
    mlp = job["model.mlp"] or ("swiglu" if job["model.variant"] == "llama" else "gelu")
    if "gate" in job["model.lora.targets"] and mlp != "swiglu":
        expected = "targets without gate, which only swiglu has"
        job.fault("model.lora.targets", expected, job["model.lora.targets"])


def _end_token(job: _Keys) -> None:
    end, reset = job["data.end_token"], job["data.reset_attention"]
    if end is not None and not reset:
        job.fault("data.end_token", "null, as data.reset_attention is false", end)
    if reset and end is None and job["data.tokenizer"] in ("char", "byte"):
        expected = f"a token, as the tokenizer {job['data.tokenizer']} has no end token"
        job.fault("data.end_token", expected, None)


def _kv_heads(job: _Keys) -> None:
    heads, kv_heads = job["model.n_head"], job["model.n_kv_head"]
    if kv_heads is not None and heads % kv_heads:
        expected = f"a divisor of n_head ({show(heads)})"
        job.fault("model.n_kv_head", expected, kv_heads)


def _rotary(job: _Keys) -> None:
    width, heads = job["model.n_embd"], job["model.n_head"]
    usual = {"gpt2": "learned", "llama": "rotary"}[job["model.variant"]]
    rotary = (job["model.positions"] or usual) == "rotary"
    if rotary and width % heads == 0 and width // heads % 2:
        expected = f"an even multiple of n_head ({show(heads)}) for rotary positions"
        job.fault("model.n_embd", expected, width)


def _data_fits_model(job: _Keys) -> None:
    model, data = job["model.type"], job["data.type"]
    if (model == "gpt") != (data in ("text", "tokens", "completions")):
        texts = "text, tokens or completions"
        wanted = texts if model == "gpt" else listed(("arrays", "python", *LABELLED))
        job.fault("data.type", f"{wanted} for a model of type {model}", data)


def _layers(job: _Keys) -> None:
    for number, entry in enumerate(job["model.layers"]):
        _layer(job, ("model", "layers", number), entry)


def _layer(job: _Keys, path: Path, entry: Any) -> None:
    """Check a layer's name, and those of layers among its arguments."""
    name, arguments = _named(entry)
    if name is not None and name not in LAYERS:
        job.fault(path, "the name of a layer", name, _near(name, LAYERS))
    for key, value in arguments.items():
        if key.endswith("layer") and isinstance(value, dict):
            _layer(job, (*path, name or "", key), value)


def _loss(job: _Keys) -> None:
    if job["model.type"] == "json":
        return  # which may have one for each output
    name, _ = _named(job["model.loss"])
    if name is not None and name not in LOSSES:
        job.fault("model.loss", "the name of a loss", name, _near(name, LOSSES))


def _metrics(job: _Keys) -> None:
    if job["model.type"] == "json":
        return
    for number, entry in enumerate(job["model.metrics"]):
        name, _ = _named(entry)
        known = METRICS if isinstance(entry, str) else METRICS_WITH_ARGUMENTS
        if name is not None and name not in known:
            path = ("model", "metrics", number)
            job.fault(path, "the name of a metric", name, _near(name, known))


def _named(entry: Any) -> tuple[str | None, dict[str, Any]]:
    """Return the one name of a layer, loss or metric, with its arguments.

    None for what is no such entry: then it has a fault of its own.
    """
    if isinstance(entry, str):
        return entry, {}
    if not isinstance(entry, dict) or len(entry) != 1:
        return None, {}
    ((name, arguments),) = entry.items()
    return name, arguments if isinstance(arguments, dict) else {}


def _near(name: str, known: Collection[str]) -> str:
    return did_you_mean(name, sorted(known)) or f"such as {listed(sorted(known)[:8])}"


def _length(job: _Keys) -> None:
    steps, epochs = job["train.steps"], job["train.epochs"]
    if steps is None and epochs is None:
        job.fault("train.steps", "a number of steps here, or of epochs", None)
    if steps is not None and epochs is not None:
        expected = f"either steps ({show(steps)}) or epochs, not both"
        job.fault("train.epochs", expected, epochs)


def _micro_batch(job: _Keys) -> None:
    micro, whole = job["train.micro_batch"], job["train.global_batch"]
    if micro is not None and micro > whole:
        job.fault("train.micro_batch", f"at most global_batch ({show(whole)})", micro)


def _validation(job: _Keys) -> None:
    keys = {"text": "data.validation_split", "tokens": "data.validation"}
    key = keys.get(job["data.type"])
    if job["data.type"] == "completions" and job["data.validation"] is None:
        key = "data.validation_split"
    if job["data.type"] in LABELLED:
        given = job["data.type"] in _IN_FILES and job["data.validation"]
        key = None if given else "data.validation_split"
    if key is None or job[key] or job["train.overfit_batches"]:
        return
    for wish in _NEED_VALIDATION:
        if job[wish]:
            job.fault(key, f"validation data, as {wish} is set", job[key])
            return
    if job["schedule.type"] == "plateau":
        job.fault(key, "validation data, as schedule.type is plateau", job[key])


_NEED_VALIDATION = (
    "train.eval_every",
    "train.eval_batches",
    "train.early_stop",
    "checkpoint.best",
)


def _arrays(job: _Keys) -> None:
    if job["data.type"] != "arrays":
        return
    if job["data.file"] is None:
        if job["data.x"] is None:
            job.fault("data.file", "an .npz file here, or .npy files in x and y", None)
    elif job["data.x"] is not None:
        job.fault("data.x", "null beside data.file", job["data.x"])
    for name in ("", "_val", "_test"):
        x, y = job[f"data.x{name}"], job[f"data.y{name}"]
        if (x is None) != (y is None):
            missing = "x" if x is None else "y"
            job.fault(f"data.{missing}{name}", "a file beside the other one", None)


def _parts(job: _Keys) -> None:
    if job["data.type"] not in LABELLED:
        return
    shares = job["data.validation_split"], job["data.test_split"]
    if sum(shares) >= 1:
        expected = f"less than 1 together with test_split ({show(shares[1])})"
        job.fault("data.validation_split", expected, shares[0])
    if job["data.type"] in _IN_FILES:
        for name in ("validation", "test"):
            if job[f"data.{name}"] is not None and job[f"data.{name}_split"]:
                expected = f"0 beside data.{name}"
                job.fault(f"data.{name}_split", expected, job[f"data.{name}_split"])
    elif job["data.type"] == "idx":
        images, labels = job["data.test_images"], job["data.test_labels"]
        if (images is None) != (labels is None):
            missing = "images" if images is None else "labels"
            job.fault(f"data.test_{missing}", "a file beside the other one", None)
        if images is not None and shares[1]:
            job.fault("data.test_split", "0 beside data.test_images", shares[1])


def _table(job: _Keys) -> None:
    target, features = job["data.target"], job["data.features"]
    if features is not None and target in features:
        job.fault("data.features", f"columns without the target {target!r}", features)
    if features is not None and not features:
        job.fault("data.features", "one or more columns, or null", features)
    unknown = [n for n in job["data.categorical"] if n not in (features or [n])]
    if unknown or target in job["data.categorical"]:
        expected = "only columns of data.features"
        job.fault("data.categorical", expected, job["data.categorical"])


def _vectorize(job: _Keys) -> None:
    mode = job["data.vectorize.output_mode"]
    length = job["data.vectorize.output_sequence_length"]
    if mode == "int" and length is None:
        expected = "a number of tokens for the output_mode int"
        job.fault("data.vectorize.output_sequence_length", expected, None)
    if mode in ("int", "multi_hot") and job["data.vectorize.sublinear"]:
        expected = f"false for the output_mode {mode}"
        job.fault("data.vectorize.sublinear", expected, True)
    if mode != "int" and length is not None:
        expected = f"null for the output_mode {mode}"
        job.fault("data.vectorize.output_sequence_length", expected, length)


def _early_stop(job: _Keys) -> None:
    wanted = job["train.early_stop"] is not None and job["train.steps"] is not None
    if wanted and job["train.eval_every"] is None:
        expected = "steps between validations, as train.early_stop is set"
        job.fault("train.eval_every", expected, None)


def _plateau(job: _Keys) -> None:
    wanted = job["schedule.type"] == "plateau" and job["train.steps"] is not None
    if wanted and job["train.eval_every"] is None:
        expected = "steps between validations, as schedule.type is plateau"
        job.fault("train.eval_every", expected, None)


def _samples(job: _Keys) -> None:
    every = job["train.sample_every"]
    if every is None:
        return
    if job["model.type"] != "gpt":
        expected = "null for a model that isn't of type gpt"
        job.fault("train.sample_every", expected, every)
    elif job["data.type"] == "completions":
        expected = "null for data of type completions, which is no text to go on with"
        job.fault("train.sample_every", expected, every)
    elif not job["train.sample_tokens"]:
        expected = "more than 0, as train.sample_every is set"
        job.fault("train.sample_tokens", expected, 0)


def _vocabulary(job: _Keys) -> None:
    if job["data.type"] != "text":
        return
    size, kind = job["data.vocab_size"], job["data.tokenizer"]
    if kind == "bpe" and size is None:
        job.fault(
            "data.vocab_size", "a number such as 8192 for the tokenizer bpe", None
        )
    elif kind != "bpe" and size is not None:
        expected = f"null, as the tokenizer {kind} has its own vocabulary"
        job.fault("data.vocab_size", expected, size)


def _nesterov(job: _Keys) -> None:
    if job["optimizer.nesterov"] and not job["optimizer.momentum"]:
        job.fault("optimizer.nesterov", "a momentum above 0 beside it", True)


def _warmup(job: _Keys) -> None:
    warmup, steps = job["schedule.warmup_steps"], job["train.steps"]
    if steps is not None and warmup > steps:
        expected = f"at most train.steps ({show(steps)})"
        job.fault("schedule.warmup_steps", expected, warmup)


def _decay(job: _Keys) -> None:
    if job["schedule.type"] == "exponential":
        return
    warmup, decay = job["schedule.warmup_steps"], job["schedule.decay_steps"]
    if decay is not None and decay <= warmup:
        expected = f"more than warmup_steps ({show(warmup)})"
        job.fault("schedule.decay_steps", expected, decay)


def _boundaries(job: _Keys) -> None:
    places, factors = job["schedule.boundaries"], job["schedule.factors"]
    if not places:
        return
    if len(places) != len(factors):
        expected = f"a factor for each of {len(places)} boundaries"
        job.fault("schedule.factors", expected, factors)
    if sorted(set(places)) != list(places):
        job.fault("schedule.boundaries", "steps that grow", places)
    elif places[0] < job["schedule.warmup_steps"]:
        expected = f"steps from warmup_steps ({show(job['schedule.warmup_steps'])}) on"
        job.fault("schedule.boundaries", expected, places)


def _last_rate(job: _Keys) -> None:
    last, first = job["schedule.min_lr"], job["optimizer.lr"]
    if last > first:
        job.fault("schedule.min_lr", f"at most optimizer.lr ({show(first)})", last)


def _overlap(job: _Keys) -> None:
    if job["comm.algorithm"] == "mpi" and job["comm.overlap"] == "on":
        job.fault("comm.overlap", "auto or off for the algorithm mpi", "on")


def _wire(job: _Keys) -> None:
    wire = job["comm.wire"]
    algorithm = job["comm.algorithm"]
    if algorithm != "ring" and wire != "float32":
        job.fault("comm.wire", f"float32 for the algorithm {algorithm}", wire)


def _shards(job: _Keys) -> None:
    if job["train.shard_optimizer"] and job["comm.algorithm"] != "ring":
        expected = "ring beside train.shard_optimizer"
        job.fault("comm.algorithm", expected, job["comm.algorithm"])


def _restarts(job: _Keys) -> None:
    ranks, least = job["launch.ranks"], job["launch.min_ranks"]
    if ranks is not None and least is not None and least > ranks:
        job.fault("launch.min_ranks", f"at most launch.ranks ({ranks})", least)


def _exact(job: _Keys) -> None:
    ranks, whole = job["launch.ranks"], job["train.global_batch"]
    rows = job["train.micro_batch"] or -(-whole // SHARDS)
    shards = -(-whole // rows)
    if job["comm.algorithm"] == "exact" and ranks is not None and ranks > shards:
        expected = f"at most {shards}, the number of shards of a batch"
        cure = f"with algorithm exact; or train.micro_batch of {max(1, whole // ranks)}"
        job.fault("launch.ranks", expected, ranks, cure)


def _kept_checkpoints(job: _Keys) -> None:
    every, kept = job["checkpoint.every"], job["checkpoint.keep_every"]
    if kept is None:
        return
    if every is None:
        job.fault("checkpoint.keep_every", "checkpoint.every beside it", kept)
    elif kept % every:
        expected = f"a multiple of checkpoint.every ({show(every)})"
        job.fault("checkpoint.keep_every", expected, kept)


def _environment(job: _Keys) -> None:
    for name in job["launch.env"]:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            job.fault("launch.env", "names of letters, digits and '_'", name)


def _hosts(job: _Keys) -> None:
    if job["launch.hosts"] is not None and job["launch.hostfile"] is not None:
        expected = "either hosts or hostfile, not both"
        job.fault("launch.hostfile", expected, job["launch.hostfile"])


def _chosen_hosts(job: _Keys) -> None:
    if job["launch.hosts"] is not None or job["launch.hostfile"] is not None:
        return
    for key in ("launch.include", "launch.exclude"):
        if job[key]:
            job.fault(key, "hosts or hostfile beside it, to choose from", job[key])


def _local_hosts(job: _Keys) -> None:
    listed = job["launch.hosts"] is not None or job["launch.hostfile"] is not None
    if job["launch.launcher"] == "local" and listed:
        expected = "auto, openmpi or mpich, as hosts are given"
        job.fault("launch.launcher", expected, "local")


def _interface(job: _Keys) -> None:
    interface = job["launch.interface"]
    if interface is None or "/" not in interface:
        return
    try:
        ipaddress.ip_network(interface, strict=False)
    except ValueError:
        expected = "an interface's name or a subnet such as 10.0.0.0/8"
        job.fault("launch.interface", expected, interface)


_READ = (  # section, its type, key, endings of the file
    ("model", "python", "file", (".py",)),
    ("data", "python", "file", (".py",)),
    ("data", "text", "source", ()),
    ("data", "tokens", "train", _TOKEN_FILES),
    ("data", "tokens", "validation", _TOKEN_FILES),
    ("data", "completions", "file", ()),
    ("data", "completions", "validation", ()),
    ("data", "arrays", "file", (".npz",)),
    *(("data", "arrays", key, (".npy",)) for key in _ARRAYS),
    *(("data", "idx", key, ()) for key in _IDX),
    *(("data", "csv", key, ()) for key in _FILE_KEYS),
    *(("data", "jsonl", key, (".jsonl",)) for key in _FILE_KEYS),
    *(("data", "tagged", key, ()) for key in _FILE_KEYS),
    *(("data", "images", key, _FOLDER) for key in ("folder", *_FILE_KEYS[1:])),
    *(("data", "texts", key, _TEXTS) for key in ("source", *_FILE_KEYS[1:])),
)


def files_of(job: Job) -> list[str]:
    """Return the files and folders that ranks read, without built-in data."""
    found = [getattr(job.model, "init_from", None)]
    for section, kind, key, _ in _READ:
        part = getattr(job, section)
        if part.type == kind:
            found.append(getattr(part, key, None))
    found.append(getattr(job.data, "tokenizer", None))
    built_in = (*BUILT_IN_TEXTS, *TABLES, *TOKENIZERS)
    return [path for path in dict.fromkeys(found) if path and path not in built_in]


def _files(job: _Keys) -> None:
    for section, kind, key, endings in _READ:
        with suppress(_Unknown):
            if job[f"{section}.type"] == kind:
                _file(job, f"{section}.{key}", endings)
    with suppress(_Unknown):
        _file(job, "launch.hostfile", ())
    with suppress(_Unknown):
        if job["data.type"] in ("text", "completions"):
            _tokenizer(job)


def _tokenizer(job: _Keys) -> None:
    given = job["data.tokenizer"]
    known = TOKENIZERS if job["data.type"] == "text" else ("char", "byte")
    if given not in known and not os.path.exists(given):
        expected = f"{listed(known)}, or an existing tokenizer.json or folder"
        hint = did_you_mean(given, known)
        job.fault("data.tokenizer", expected, given, hint)


def _file(job: _Keys, key: str, endings: tuple[str, ...]) -> None:
    path = job[key]
    built_in = key == "data.source" and job["data.type"] == "text"
    texts = BUILT_IN_TEXTS if built_in else ()
    if path is None or path in texts:
        return
    if key == "data.file" and path in TABLES and job["data.type"] == "csv":
        return
    if "/" in endings and (endings == _FOLDER or not path.endswith(endings)):
        if not os.path.isdir(path):
            place = "" if os.path.isabs(path) else f"looked in {os.getcwd()}"
            more = ""
            if endings != _FOLDER:
                more = f", or a file that ends in {listed(endings[1:])}"
            job.fault(key, f"an existing folder{more}", path, place)
        return
    if endings == _TOKEN_FILES and os.path.isdir(path):
        path = os.path.join(path, "manifest.json")
    if endings and not path.endswith(endings):
        job.fault(key, f"a file that ends in {listed(endings)}", path)
    elif not os.path.isfile(path):
        known = f" or the built-in text {listed(texts)}" if texts else ""
        place = "" if os.path.isabs(path) else f"looked in {os.getcwd()}"
        hint = did_you_mean(path, texts) or place
        job.fault(key, f"an existing file{known}", path, hint)


_CHECKS = (
    _heads,
    _lora,
    _end_token,
    _kv_heads,
    _rotary,
    _data_fits_model,
    _layers,
    _loss,
    _metrics,
    _length,
    _micro_batch,
    _validation,
    _arrays,
    _parts,
    _table,
    _vectorize,
    _early_stop,
    _plateau,
    _samples,
    _vocabulary,
    _nesterov,
    _warmup,
    _decay,
    _boundaries,
    _last_rate,
    _exact,
    _restarts,
    _overlap,
    _wire,
    _shards,
    _kept_checkpoints,
    _environment,
    _hosts,
    _chosen_hosts,
    _local_hosts,
    _interface,
)
