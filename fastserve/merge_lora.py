"""A run of a whole model from a run with LoRA's adapters."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from fastserve import config
from fastserve.config import schema
from fastserve.errors import CheckpointError
from fastserve.trained import name_of, open_job, open_model, open_tokenizer
from fastserve.training import checkpoint, files


def merge_run(run: str, to: str, which: str | None = None) -> str:
    """Write a run whose model is that of ``run`` with LoRA's corrections merged.

    It is complete or not there at all. It has the checkpoint ``which`` (as in
    ``load_weights``), weights alone, so it is no start for ``--resume``. Returns what
    to say of it.

    Raises CheckpointError if ``run`` has no LoRA, or something is at ``to``.
    """
    run_dir, job = open_job(run)
    target = Path(to).absolute()
    m = job.model
    if not isinstance(m, schema.GptModel) or m.lora is None:
        raise CheckpointError(
            "merge-lora: expected a run with model.lora",
            f"{run} without it",
            "use the run as it is",
        )
    if target.exists() or target.is_symlink():
        raise CheckpointError(
            "--to: expected a folder that isn't there yet", to, "take another name"
        )
    path = run_dir / "tokenizer.json"
    model, loaded = open_model(run_dir, job, open_tokenizer(run_dir), which)
    model.merge_lora()
    whole = m.model_copy(update={"lora": None, "init_from": None})
    # its own folder: else --resume would go on in that of the run it is made from
    of_itself = {"model": whole, "name": name_of(target), "run_dir": str(target)}
    merged = job.model_copy(update=of_itself)
    with files.writing(target):
        files.clean(target.parent, re.escape(target.name))
        with files.temporary(target) as made:
            files.write(made / "config.yaml", config.dump_job(merged))
            if path.is_file():
                shutil.copyfile(path, made / path.name)
            checkpoint.save(
                made / "checkpoints",
                loaded.step,
                model.store,
                checkpoint.NoOptimizer(),
                {},
                1,
            )
            files.put_folder(made, target)
    return f"merged {run}, {loaded}, into {to}"
