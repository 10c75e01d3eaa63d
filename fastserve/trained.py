"""What is done with a trained run: open it, generate text, evaluate it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fastserve import config
from fastserve.assemble.data import Data, end_token, make_data, read_text
from fastserve.assemble.model import (
    compile_model,
    make_model,
    make_sampler,
    total_steps,
)
from fastserve.config import schema
from fastserve.config.labelled import Splits
from fastserve.config.run_folders import find_run
from fastserve.core import without_initial_values
from fastserve.data import preprocessing
from fastserve.data.completions import CompletionSource
from fastserve.data.linear_baseline import linear_r2, r2
from fastserve.data.token_files import open_token_file
from fastserve.data.tokenizers import Tokenizer, load_tokenizer
from fastserve.errors import CheckpointError, DataError
from fastserve.models import GPT, Model
from fastserve.summary import opening
from fastserve.training import checkpoint
from fastserve.training.large_vocabulary import pieces_of
from fastserve.training.perplexity import language_measures


def open_job(folder: str, overrides: Sequence[str] = ()) -> tuple[Path, config.Job]:
    """Return a run's folder and its job; raises CheckpointError if it isn't one."""
    run_dir = find_run(folder)
    return run_dir, config.load_job(run_dir / "config.yaml", overrides, files=False)


def name_of(run_dir: Path) -> str:
    """Return a job's name after its run folder."""
    name = re.sub(r"[^A-Za-z0-9._-]", "-", run_dir.name).lstrip(".-")[:100]
    return name or "imported"


def open_tokenizer(run_dir: Path) -> Tokenizer | None:
    """Return a run's tokenizer, if it has one."""
    path = run_dir / "tokenizer.json"
    return load_tokenizer(path) if path.is_file() else None


class Weights(NamedTuple):
    """Which checkpoint a model's weights are from: 'best', 'latest' or a number."""

    which: str
    step: int

    def __str__(self) -> str:
        if self.which.isdecimal():
            return f"the checkpoint of step {self.step}"
        return f"the {self.which} checkpoint, of step {self.step}"


def silent(text: str) -> None:
    """Tell nobody."""


def open_model(
    run_dir: Path,
    job: config.Job,
    tokenizer: Tokenizer | None,
    which: str | None = None,
) -> tuple[GPT, Weights]:
    """Return a language model's run as model, and which checkpoint it is; raises as
    ``load_weights``."""
    size = tokenizer.vocab_size if tokenizer else None
    if isinstance(job.data, schema.TokensData) and size is None:
        # a file that doesn't tell it needs the key
        opened = job.data.vocab_size or open_token_file(job.data.train, check=False)
        size = opened if isinstance(opened, int) else opened.vocab_size
    with without_initial_values():
        model = make_model(job, size)
    assert isinstance(model, GPT)
    return model, load_weights(run_dir, model, which)


def load_weights(run_dir: Path, model: Model, which: str | None = None) -> Weights:
    """Load the weights of one of the run's checkpoints: ``best``, ``latest``, a step's
    number, or None for the best one if the run has kept one, else the latest.

    Raises CheckpointError if it isn't there."""
    folder, state = run_dir / "checkpoints", None
    which = which or checkpoint.preferred(folder)
    if which != checkpoint.LATEST:
        state = checkpoint.load(checkpoint.find(folder, which), model.store, None)
    else:
        state = checkpoint.load_newest(folder, model.store, None)
    if state is None:
        raise CheckpointError(
            "expected a run with a checkpoint",
            f"{run_dir} without one",
            "train it first: fastserve run, with checkpoint.at_end or checkpoint.every",
        )
    return Weights(which, int(state["step"]))


def generate(
    run: str,
    prompt: str,
    tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
    which: str | None = None,
    note: Callable[[str], None] = silent,
) -> str:
    """Return ``prompt`` and the text that the run's model goes on with.

    ``which`` is as in ``load_weights``; ``note`` is told which checkpoint it is.
    """
    run_dir, job = open_job(run)
    tokenizer = open_tokenizer(run_dir)
    if tokenizer is None:
        raise CheckpointError(
            "generate: expected a run of a language model, with a tokenizer.json",
            run,
            "use evaluate, or train with data.type text",
        )
    start = _prompt(tokenizer, prompt)  # before the model, which may take long
    model, loaded = open_model(run_dir, job, tokenizer, which)
    note(str(loaded))
    model.reset_at = end = _end_of(job, tokenizer)
    made = model.generate(start, tokens, temperature, top_k, top_p, seed)
    if end in made:
        made = made[: made.index(end)]
    # the vocabulary may be padded: such tokens stand for no text
    return prompt + tokenizer.decode([t for t in made if t < tokenizer.vocab_size])


def _prompt(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """Return the tokens to start with: those of a line end without a prompt."""
    try:
        return list(tokenizer.encode(prompt or "\n").tolist())
    except DataError as error:
        if prompt:
            raise DataError(
                f"--prompt: {error.expected}",
                error.received,
                "leave it out of the prompt",
            ) from None
        raise DataError(
            "generate: expected a --prompt, as the tokenizer knows no line end",
            "none",
            f"add one, such as --prompt {opening(tokenizer)}",
        ) from None


def _end_of(job: config.Job, tokenizer: Any) -> int | None:
    """Return the token behind which the model would start something new, if any."""
    data = job.data
    if data.type == "completions":
        return int(tokenizer.end)
    if data.type in ("text", "tokens") and data.reset_attention:
        return end_token(data, tokenizer)
    return None


def evaluate(
    run: str,
    which: str | None = None,
    overrides: Sequence[str] = (),
    split: str = "validation",
    note: Callable[[str], None] = silent,
) -> dict[str, Any]:
    """Return loss and metrics of the run's model on its validation data, or on the part
    ``split`` of its data: 'train', 'validation' or 'test'.

    ``overrides`` change the run's job: data.source=FILE gives it other data. ``which``
    is as in ``load_weights``; ``note`` is told the checkpoint and the part.
    """
    run_dir, job = open_job(run, overrides)
    text, kept = None, kept_tokenizer(job, run_dir, read=True)
    if isinstance(job.data, schema.TextData):
        text = read_text(job.data, kept)
    encoded = preprocessing.read(run_dir) if isinstance(job.data, Splits) else None
    data = make_data(job, text, kept=kept, preprocessing=encoded)
    check_tokenizer(run_dir, data)
    parts = {"train": data.train, "validation": data.validation, "test": data.test}
    part = parts[split]
    if part is None:
        raise DataError(
            f"evaluate: expected a job with {split} data",
            f"{run} without any",
            f"set data.{split}_split or a {split} file in the job",
        )
    with without_initial_values():
        shape = data.train.input_shape
        model = make_model(job, data.vocab_size, shape, data.classes)
    if isinstance(model, GPT):
        model.reset_at = data.reset_at
    loaded = load_weights(run_dir, model, which)
    note(f"{loaded}, on the {'training' if split == 'train' else split} data")
    compile_model(job, model, total_steps(job, make_sampler(job, data)))
    trainer = model.prepare(part)
    measured = trainer.evaluate(part, job.train.global_batch)
    results = trainer.with_arrays(measured)
    results |= language_measures(
        results["loss"], trainer.loss, part, data.bytes_per_token
    )
    if data.target_value is not None:
        results["r2"] = r2(model.forward, part)
        linear = linear_r2(data.train, part)
        results |= {} if linear is None else {"linear_r2": linear}
    if isinstance(part, CompletionSource):
        # logits of so many rows that they aren't too large
        rows = 16 // pieces_of(16 * part.block_size, model.root)
        results["exact"] = part.exact(model.forward, max(1, rows))
    return results


def kept_tokenizer(
    job: config.Job, run_dir: Path | None, read: bool = False
) -> Tokenizer | None:
    """Return the tokenizer that a run trained as bpe, or with ``read`` any that it has:
    the file it was read from may be gone, and other data have other characters."""
    kind = getattr(job.data, "tokenizer", None)
    wanted = kind == "bpe" or (read and kind not in (None, "byte"))
    return open_tokenizer(run_dir) if wanted and run_dir else None


def check_tokenizer(run_dir: Path, data: Data) -> None:
    path = run_dir / "tokenizer.json"
    if data.tokenizer is None or not path.exists():
        return
    if json.loads(path.read_text("utf-8")) != data.tokenizer.to_json():
        raise DataError(
            "expected the text that the run was started with, and its tokenizer",
            "a text of other characters (pydoc-topics differs between Pythons), or "
            "another tokenizer",
            "use the same data.source and data.tokenizer, or start a new run",
        )
