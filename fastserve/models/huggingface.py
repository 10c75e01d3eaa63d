"""Folders as Hugging Face's ``transformers`` writes them: GPT-2 and Llama, in and out.

::

    config.json                    architecture and sizes
    model.safetensors              the weights, or in shards:
    model-00001-of-00002.safetensors ...  and model.safetensors.index.json
    tokenizer.json                 not needed for the weights

Names of the tensors are those of GPT2LMHeadModel, with or without ``transformer.`` at
the start, and of LlamaForCausalLM. GPT-2's matrices are (in, out), as ours; Llama's are
(out, in), and its queries, keys and values are three matrices where ours are one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fastserve.config import pretrained
from fastserve.core import Array, without_initial_values
from fastserve.data.end_token import WithEnd
from fastserve.data.tokenizer_folders import tokenizer_files
from fastserve.data.tokenizers import Tokenizer
from fastserve.errors import ArgumentError, CheckpointError, UnknownNameError
from fastserve.models.gpt import GPT
from fastserve.models.tensor_files import TensorFile, write_tensors
from fastserve.training import files

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
DTYPES = {"float32": 4, "float16": 2, "bfloat16": 2}
_LISTED = 5  # tensors that an error names
_UNITS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}
# tables that GPT-2 and Llama compute, and older versions saved
_COMPUTED = re.compile(
    r"h\.\d+\.attn\.(masked_)?bias|model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq"
)
_PREFIX, _HEAD = "transformer.", "lm_head.weight"


@dataclass(frozen=True)
class Place:
    """Where in the model a tensor of a folder is.

    Attributes:
        path: of the parameter. shape: of the tensor, as in the folder.
        transposed: the parameter is (in, out) and the tensor (out, in).
        first: the tensor's first row in the parameter; others are before it.
    """

    path: str
    shape: tuple[int, ...]
    transposed: bool = False
    first: int = 0


def load_pretrained(
    folder: str | Path,
    dropout: float | None = None,
    block_size: int | None = None,
    seed: int | None = None,
) -> GPT:
    """Return the model of a folder, in float32, with its weights.

    Args:
        dropout: for training; by default the folder's own.
        block_size: a shorter context than the folder's; learned positions after it are
            left out.

    Raises:
        CheckpointError: the folder isn't there, is damaged, or holds a model that
            can't be had here; it names the key of config.json, or the tensors.
    """
    options = pretrained.read_options(folder, dropout, block_size)
    with _open(Path(folder), options) as weights:
        with without_initial_values():
            model = GPT(**options, seed=seed)
        weights.fill(model)
    return model


def load_weights(model: GPT, folder: str | Path) -> None:
    """Fill a model that was made with the folder's options.

    Raises:
        CheckpointError: as ``load_pretrained``, or the model has other options. After
            a tensor with NaN some of the weights may be the folder's already.
    """
    options = pretrained.read_options(folder, dropout=0.0)
    own = model.options_of_gpt
    options["block_size"] = min(options["block_size"], own["block_size"])
    free = {"dropout", "variant"}  # the variant only names a set of the others
    others = [
        f"{k} {own[k]}"
        for k in sorted(set(own) - free)
        if own[k] != options.get(k, own[k])
    ]
    if others:
        raise CheckpointError(
            f"{folder}: expected a model with the folder's options",
            ", ".join(others),
            "make the model with GPT.from_pretrained",
        )
    with _open(Path(folder), options) as weights:
        weights.fill(model)


def save_pretrained(
    model: GPT,
    folder: str | Path,
    tokenizer: Tokenizer | WithEnd | None = None,
    dtype: str = "float32",
    max_shard_size: str | int = "5GB",
) -> None:
    """Write a folder that ``transformers`` loads; it is complete or not there at all.

    Args:
        tokenizer: one of ``fastserve.data.tokenizers``; it becomes tokenizer.json.
        dtype: of the weights in the folder: float32, float16 or bfloat16.
        max_shard_size: bytes, or text such as '5GB'; weights that need more go into
            several files.

    Raises:
        CheckpointError: the folder exists or can't be written, the model has options
            that neither architecture has, or numbers that ``dtype`` can't hold.
    """
    folder = Path(folder)
    if model.options_of_lora is not None:
        raise ArgumentError(
            "expected a model without LoRA, which the format can't hold",
            "one with it",
            "call model.merge_lora() before",
        )
    if dtype not in DTYPES:
        raise UnknownNameError("type of weights", dtype, DTYPES)
    limit = parse_size(max_shard_size)
    if folder.exists() or folder.is_symlink():
        raise CheckpointError(
            "expected a folder that isn't there yet", str(folder), "take another name"
        )
    config = pretrained.make_config(model.options_of_gpt, dtype)
    texts = {pretrained.CONFIG: config}
    if tokenizer is not None:
        config["eos_token_id"] = tokenizer.end
        texts |= tokenizer_files(tokenizer, model.block_size)
    places, values = _places(model.options_of_gpt), _values(model)
    others = sorted(set(values) - {place.path for place in places.values()})
    if others:
        raise CheckpointError(
            "expected a model with the weights of Hugging Face's classes alone",
            f"{len(others)} others, such as {others[0]}",
            "merge adapters into the weights first",
        )
    views = {name: _view(place, values) for name, place in places.items()}
    with files.writing(folder):
        files.clean(folder.absolute().parent, re.escape(folder.name))
        with files.temporary(folder.absolute()) as made:
            for name, content in texts.items():
                files.write(made / name, json.dumps(content, indent=2) + "\n")
            _write_weights(made, views, dtype, limit)
            files.sync(made)
            files.put_folder(made, folder.absolute())


def parse_size(size: str | int) -> int:
    """Return the bytes of '300MB', '5GB' (powers of 1000), or '5GiB' (of 1024)."""
    match = re.fullmatch(r"\s*([0-9]{1,15})\s*([KMGT]?)(i?)B?\s*", str(size), re.I)
    count = 0
    if match and not (match[3] and not match[2]):
        base = 1024 if match[3] else 1000
        count = int(match[1]) * base ** _UNITS[match[2].upper()]
    if count < 1:
        raise ArgumentError(
            "expected a size of shards", repr(size), "give one such as 300MB or 5GB"
        )
    return count


# -- where the tensors are in the model -----------------------------------------------


def _places(options: Mapping[str, Any]) -> dict[str, Place]:
    """Return the place of each tensor that a folder with these options holds."""
    gpt2 = options["positions"] == "learned"
    return (_gpt2_places if gpt2 else _llama_places)(options)


def _gpt2_places(o: Mapping[str, Any]) -> dict[str, Place]:
    width, hidden = o["n_embd"], o["ff_dim"]
    places = {
        "wte.weight": Place("tokens.embeddings", (o["vocab_size"], width)),
        "wpe.weight": Place("positions.embeddings", (o["block_size"], width)),
    }

    def norm(name: str, path: str) -> None:
        places[f"{name}.weight"] = Place(f"{path}.gamma", (width,))
        places[f"{name}.bias"] = Place(f"{path}.beta", (width,))

    def dense(name: str, path: str, inputs: int, outputs: int) -> None:
        places[f"{name}.weight"] = Place(f"{path}.kernel", (inputs, outputs))
        places[f"{name}.bias"] = Place(f"{path}.bias", (outputs,))

    for i in range(o["n_layer"]):
        attention, mlp = f"blocks.{i}.attention", f"blocks.{i}.mlp"
        norm(f"h.{i}.ln_1", f"{attention}.norm")
        dense(f"h.{i}.attn.c_attn", f"{attention}.heads.qkv", width, 3 * width)
        dense(f"h.{i}.attn.c_proj", f"{attention}.heads.output", width, width)
        norm(f"h.{i}.ln_2", f"{mlp}.norm")
        dense(f"h.{i}.mlp.c_fc", f"{mlp}.expand", width, hidden)
        dense(f"h.{i}.mlp.c_proj", f"{mlp}.contract", hidden, width)
    norm("ln_f", "norm")
    return {_PREFIX + name: place for name, place in places.items()} | _head(o)


def _llama_places(o: Mapping[str, Any]) -> dict[str, Place]:
    width, hidden = o["n_embd"], o["ff_dim"]
    queries = width
    keys = width // o["n_head"] * o["n_kv_head"]
    places = {
        "model.embed_tokens.weight": Place(
            "tokens.embeddings", (o["vocab_size"], width)
        )
    }
    for i in range(o["n_layer"]):
        name = f"model.layers.{i}"
        attention, mlp = f"blocks.{i}.attention", f"blocks.{i}.mlp"
        qkv = f"{attention}.heads.qkv.kernel"
        for part, place in {
            "input_layernorm": Place(f"{attention}.norm.gamma", (width,)),
            "self_attn.q_proj": Place(qkv, (queries, width), True),
            "self_attn.k_proj": Place(qkv, (keys, width), True, queries),
            "self_attn.v_proj": Place(qkv, (keys, width), True, queries + keys),
            "self_attn.o_proj": Place(
                f"{attention}.heads.output.kernel", (width, queries), True
            ),
            "post_attention_layernorm": Place(f"{mlp}.norm.gamma", (width,)),
            "mlp.gate_proj": Place(f"{mlp}.gate.kernel", (hidden, width), True),
            "mlp.up_proj": Place(f"{mlp}.expand.kernel", (hidden, width), True),
            "mlp.down_proj": Place(f"{mlp}.contract.kernel", (width, hidden), True),
        }.items():
            places[f"{name}.{part}.weight"] = place
    places["model.norm.weight"] = Place("norm.gamma", (width,))
    return places | _head(o)


def _head(o: Mapping[str, Any]) -> dict[str, Place]:
    shape = o["vocab_size"], o["n_embd"]
    return {} if o["tied"] else {_HEAD: Place("head.kernel", shape, True)}


def _values(model: GPT) -> dict[str, Array]:
    model.store  # noqa: B018  raises if the model isn't built
    return {p.path: p.value for p in model.root.parameters()}  # frozen ones too


def _view(place: Place, values: Mapping[str, Array]) -> Array:
    """Return the view of a parameter that has the tensor's shape."""
    value = values[place.path]
    value = value.T if place.transposed else value
    return value[place.first : place.first + place.shape[0]]


# -- reading --------------------------------------------------------------------------


class _Weights:
    """The open files of a folder; their tensors are exactly those of the model."""

    def __init__(self, places: dict[str, Place], found: dict[str, _Tensor]) -> None:
        self._places, self._found = places, found

    def fill(self, model: GPT) -> None:
        """Copy all into the model, a piece at a time."""
        values = _values(model)
        for name, place in self._places.items():
            view = _view(place, values)
            for first, rows in self._pieces(name):
                room = view[first : first + len(rows)]
                room[...] = rows[: len(room)]  # positions may be fewer
        if _HEAD in self._found and _HEAD not in self._places:
            self._check_tied(values["tokens.embeddings"])

    def _pieces(self, name: str) -> Iterator[tuple[int, Array]]:
        file, stored = self._found[name]
        for first, rows in file.pieces(stored):
            if not np.isfinite(rows).all():
                place = np.argwhere(~np.isfinite(rows))[0]
                raise CheckpointError(
                    f"{file.path}: expected finite numbers",
                    f"{rows[tuple(place)]} in {stored} at "
                    f"{(int(place[0]) + first, *place[1:].tolist())}",
                    "the model is damaged: fetch it again, or take an earlier one",
                )
            yield first, rows

    def _check_tied(self, table: Array) -> None:
        """Refuse a head that is stored beside the table and isn't the same."""
        for first, rows in self._pieces(_HEAD):
            if not np.array_equal(rows, table[first : first + len(rows)]):
                raise CheckpointError(
                    f"{self._found[_HEAD][0].path}: expected {_HEAD} to be the token "
                    "embedding, as tie_word_embeddings is true",
                    "other numbers",
                    'set "tie_word_embeddings": false in config.json',
                )


_Tensor = tuple[TensorFile, str]  # a file, and the name of a tensor in it


@contextmanager
def _open(folder: Path, options: dict[str, Any]) -> Iterator[_Weights]:
    """Open the weights of a folder; all names, shapes and types are checked.

    ``options`` may have a shorter block_size than the folder.
    """
    with ExitStack() as stack:
        found: dict[str, _Tensor] = {}
        index = _read_index(folder)
        for path in _weight_files(folder, index):
            file = stack.enter_context(TensorFile(path))
            for stored in file.entries:
                name = _full_name(stored, options)
                if name in found:
                    raise _wrong(folder, [f"{name} is there twice"])
                if not _COMPUTED.fullmatch(name.removeprefix(_PREFIX)):
                    found[name] = file, stored
        _check_index(folder, index, found)
        yield _Weights(_compare(folder, options, found), found)


def _weight_files(folder: Path, index: Mapping[str, str] | None) -> list[Path]:
    if index is not None:
        return [folder / name for name in sorted(set(index.values()))]
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    others = [p.name for p in sorted(folder.iterdir())]
    pickled = [n for n in others if n.endswith((".bin", ".pt", ".pth", ".ckpt"))]
    if pickled:
        raise CheckpointError(
            f"expected {WEIGHTS} in {folder}",
            f"{pickled[0]}: a pickle can run any code when it is loaded",
            "convert it where you trust it: AutoModelForCausalLM.from_pretrained(DIR)"
            ".save_pretrained(NEW), with transformers, writes safetensors",
        )
    raise CheckpointError(
        f"expected {WEIGHTS} or {INDEX} in {folder}",
        ", ".join(others[:10]) or "an empty folder",
        "fetch the folder again",
    )


def _read_index(folder: Path) -> dict[str, str] | None:
    """Return the shard of each tensor; None where one file has all."""
    path = folder / INDEX
    if (folder / WEIGHTS).is_file() or not path.is_file():
        return None
    try:
        read = json.loads(path.read_bytes())
        shards = read["weight_map"]
        right = isinstance(shards, dict) and bool(shards)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise _wrong_index(path, f"no weight_map: {error!r}") from None
    if not right:
        raise _wrong_index(path, f"weight_map {str(shards)[:80]}")
    for shard in shards.values():
        plain = isinstance(shard, str) and re.fullmatch(
            r"[^/\\\x00]+\.safetensors", shard
        )
        if not plain:
            raise _wrong_index(path, f"a shard {str(shard)[:80]!r} outside of it")
    return dict(shards)


def _wrong_index(path: Path, reason: str) -> CheckpointError:
    return CheckpointError(
        f"{path}: expected the name of a .safetensors file in the same folder for each "
        "tensor",
        reason,
        "fetch the folder again",
    )


def _check_index(
    folder: Path, index: Mapping[str, str] | None, found: Mapping[str, _Tensor]
) -> None:
    if index is None:
        return
    held = {stored: file.path.name for file, stored in found.values()}
    faults = [f"{name} isn't in the index" for name in held if name not in index]
    for name, shard in index.items():
        if name in held and held[name] != shard:
            faults.append(f"{name} is in {held[name]} instead of {shard}")
    if faults:
        raise _wrong(folder, faults)


def _full_name(stored: str, options: Mapping[str, Any]) -> str:
    """Return a name with GPT-2's prefix, which the base model's folders leave out."""
    bare = options["positions"] == "learned" and stored != _HEAD
    return _PREFIX + stored.removeprefix(_PREFIX) if bare else stored


def _compare(
    folder: Path, options: dict[str, Any], found: Mapping[str, _Tensor]
) -> dict[str, Place]:
    """Return the places of the tensors; refuse missing, extra and misshapen ones."""
    layers = options["n_layer"]
    if layers > len(found):  # don't list a million names that a forged config asks for
        raise _wrong(folder, [f"{len(found)} tensors for {layers} layers"])
    stored = found.get(f"{_PREFIX}wpe.weight")
    shape = stored[0].entries[stored[1]].shape if stored else ()
    if shape and shape[0] > options["block_size"]:
        whole = pretrained.read_options(folder, dropout=0.0)["block_size"]
        options = {**options, "block_size": whole}
    places = _places(options)
    tied = {_HEAD: Place("", places[_first(places)].shape)} if options["tied"] else {}
    faults = [f"{name} is missing" for name in places if name not in found]
    for name, (file, key) in found.items():
        place = (places | tied).get(name)
        shape = file.entries[key].shape
        if place is None:
            faults.append(f"{key} isn't in such a model")
        elif shape != place.shape:
            faults.append(f"{key} is {shape} instead of {place.shape}")
    if faults:
        raise _wrong(folder, faults)
    return places


def _first(places: Mapping[str, Place]) -> str:
    return next(iter(places))  # the token embedding


def _wrong(folder: Path, faults: list[str]) -> CheckpointError:
    more = len(faults) - _LISTED
    shown = [*faults[:_LISTED], *([f"and {more} more"] if more > 0 else [])]
    return CheckpointError(
        f"{folder}: expected the tensors of the model that config.json describes",
        "; ".join(shown),
        "fetch the whole folder again, or correct config.json",
    )


# -- writing --------------------------------------------------------------------------


def _write_weights(
    folder: Path, views: dict[str, Array], dtype: str, limit: int
) -> None:
    """Write one file, or where that would be larger than ``limit`` several."""
    item = DTYPES[dtype]
    shards = _shards(((n, v.size * item) for n, v in views.items()), limit)
    if len(shards) == 1:
        write_tensors(folder / WEIGHTS, views, dtype)
        return
    where: dict[str, str] = {}
    for number, names in enumerate(shards, 1):
        shard = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        write_tensors(folder / shard, {n: views[n] for n in names}, dtype)
        where |= dict.fromkeys(names, shard)
    total = sum(view.size for view in views.values())
    index = {
        "metadata": {"total_parameters": total, "total_size": total * item},
        "weight_map": where,
    }
    files.write(folder / INDEX, json.dumps(index, indent=2) + "\n")


def _shards(sizes: Iterable[tuple[str, int]], limit: int) -> list[list[str]]:
    """Return the names in groups of at most ``limit`` bytes; larger ones are alone."""
    groups: list[list[str]] = [[]]
    room = limit
    for name, size in sizes:
        if size > room and groups[-1]:
            groups.append([])
            room = limit
        groups[-1].append(name)
        room -= size
    return groups
