"""Runs from folders of Hugging Face's, and such folders from runs."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastserve import config
from fastserve.data.tokenizer_folders import read_tokenizer
from fastserve.data.tokenizers import Tokenizer
from fastserve.errors import CheckpointError, ConfigError
from fastserve.models import GPT
from fastserve.models.huggingface import load_pretrained
from fastserve.models.huggingface import save_pretrained as save
from fastserve.summary import opening, several
from fastserve.trained import name_of, open_job, open_model, open_tokenizer
from fastserve.training import checkpoint, files

_TOKENIZER, _CONFIG = "tokenizer.json", "config.yaml"


def import_run(folder: str, run: str, overrides: Sequence[str] = ()) -> str:
    """Make a run folder of a folder of Hugging Face's; return what to say of it.

    It is complete or not there at all. Its job evaluates on a built-in text, unless
    ``overrides`` name other data. Its checkpoint holds weights alone: training starts
    from the folder, with ``model.init_from``.

    Raises:
        CheckpointError: as ``load_pretrained``; or the run folder exists.
        ConfigError: overrides that don't fit.
        DataError: a tokenizer.json that can't be used.
    """
    source, target = Path(folder), Path(run).absolute()
    if target.exists() or target.is_symlink():
        raise CheckpointError(
            "--to: expected a folder that isn't there yet", run, "take another name"
        )
    tokenizer = read_tokenizer(source)
    model = load_pretrained(source)
    with files.writing(target):
        files.clean(target.parent, re.escape(target.name))
        with files.temporary(target) as made:
            raw = _job(model, target, tokenizer)
            files.write(made / _CONFIG, config.dump_yaml(raw))
            try:
                job = config.load_job(made / _CONFIG, overrides, files=False)
            except ConfigError as error:  # of the overrides, not of the draft
                raise ConfigError(f"import {folder}", error.faults) from None
            files.write(made / _CONFIG, config.dump_job(job))
            if tokenizer is not None:
                files.write(made / _TOKENIZER, json.dumps(tokenizer.to_json()))
            checkpoint.save(
                made / "checkpoints", 0, model.store, checkpoint.NoOptimizer(), {}, 1
            )
            files.put_folder(made, target)
    o = model.options_of_gpt
    said = [
        f"imported {o['variant']}, {several(o['n_layer'], 'layer')}, width "
        f"{o['n_embd']}, context {o['block_size']}, {o['vocab_size']:,} tokens: "
        f"{model.count_params():,} weights"
    ]
    if tokenizer is None:
        said.append(f"no {_TOKENIZER} in {folder}: generate needs one for text")
        files_of_tokens = "--set data.train=FILE --set data.validation=FILE"
        said.append(f"next     fastserve evaluate {run} {files_of_tokens}")
    else:
        said.append(f"next     fastserve generate {run} --prompt {opening(tokenizer)}")
    return "\n".join(said)


def _job(model: GPT, target: Path, tokenizer: Tokenizer | None) -> dict[str, Any]:
    """Return the raw job of a run whose weights come from elsewhere."""
    if tokenizer is None:
        tokens = {"train": "tokens.bin", "validation": "tokens.bin"}
        size = model.options_of_gpt["vocab_size"]
        data = {"type": "tokens", **tokens, "vocab_size": size}
    else:
        path = str(target / _TOKENIZER)
        data = {"type": "text", "source": "pydoc-topics", "tokenizer": path}
    return {
        "name": name_of(target),
        "model": {"type": "gpt", **model.options_of_gpt},
        "data": data,
        "train": {"global_batch": 4, "steps": 1},
    }


def export_run(
    run: str,
    folder: str,
    dtype: str = "float32",
    max_shard_size: str = "5GB",
    which: str | None = None,
) -> str:
    """Write the weights of a run's checkpoint ``which`` (as in ``load_weights``) as a
    folder of Hugging Face's; return what to say.

    Raises:
        CheckpointError: there is no such run, or ``save_pretrained`` refuses it.
    """
    run_dir, job = open_job(run)
    if job.model.type != "gpt":
        raise CheckpointError(
            "export: expected the run of a gpt", f"a model of type {job.model.type}"
        )
    tokenizer = open_tokenizer(run_dir)
    model, loaded = open_model(run_dir, job, tokenizer, which)
    if model.options_of_lora is not None:
        model.merge_lora()
    save(model, folder, tokenizer, dtype, max_shard_size)
    names = sorted(p.name for p in Path(folder).iterdir())
    shards = [name for name in names if re.fullmatch(r"model-\d+-of-.*", name)]
    if len(shards) > 2:
        place = names.index(shards[0])
        names[place : place + len(shards)] = [f"{shards[0]} ... {shards[-1]}"]
    return f"exported {run}, {loaded}, to {folder}: {', '.join(names)}"
