"""From a job's configuration and its data to the model, ready to train."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from fastserve import config, losses, metrics, optimizers, schedules
from fastserve.assemble.data import Data, call_function
from fastserve.config import schema
from fastserve.core import Layer
from fastserve.data.sampler import Sampler
from fastserve.data.subset import Subset, first_batches
from fastserve.data.token_files import TOKENIZER
from fastserve.data.tokenizer_folders import read_tokenizer
from fastserve.errors import ArgumentError, DataError, FastserveError, ShapeError
from fastserve.models import GPT, Model, Sequential, model_from_json
from fastserve.models.serialization import make_layer
from fastserve.training.step import Options

_COMPARED = 1000  # tokens, to see whether two tokenizers are the same


def make_model(
    job: config.Job,
    vocab_size: int | None,
    input_shape: tuple[int, ...] = (),
    classes: int | None = None,
) -> Model:
    """Make the job's model, built but not compiled.

    ``vocab_size`` is needed for a gpt, ``input_shape`` (of one sample) for others.
    In the layers of a sequential model the words ``classes`` and ``vocabulary`` stand
    for these numbers of the data.
    """
    m = job.model
    if isinstance(m, schema.GptModel):
        assert vocab_size is not None  # config pairs gpt with text and tokens
        options = m.model_dump(exclude={"type", "init_from", "lora"})
        options["vocab_size"] = _vocabulary(m, vocab_size)
        gpt = GPT(**options, seed=job.seed)
        if m.lora is not None:
            gpt.add_lora(**m.lora.model_dump())
        return gpt
    if isinstance(m, schema.SequentialModel):
        model = Sequential(seed=job.seed)
        sizes = {"classes": classes, "vocabulary": vocab_size}
        for layer in make_layers(m, sizes):
            model.add(layer)
        model.build(m.input_shape or input_shape)
        return model
    if isinstance(m, schema.JsonModel):
        made = _model_in(m.file, job.seed)
        if not made.built:
            made.build(made.known_input_shape or input_shape)
        return made
    made = call_function(m.file, m.function, m.arguments)
    if not isinstance(made, Model):
        raise ShapeError(
            f"{m.file}: expected {m.function} to return a model",
            type(made).__name__,
            "return a Sequential or GPT",
        )
    made.seed = job.seed
    if not made.built:
        made.build(made.known_input_shape or input_shape)
    return made


def make_layers(
    model: schema.SequentialModel, sizes: dict[str, int | None]
) -> Iterator[Layer]:
    """Yield a job's layers; errors begin with the place in the job."""
    for number, entry in enumerate(model.layers):
        ((name, arguments),) = entry.items()
        try:
            yield make_layer(name, with_sizes(name, arguments, sizes))
        except FastserveError as error:
            expected = f"model.layers[{number}]: {error.expected}"
            raise ArgumentError(expected, error.received, error.todo) from None


def check_model(job: config.Job) -> None:
    """Raise a FastserveError for names and arguments that no data could make right."""
    if isinstance(job.model, schema.SequentialModel):
        layers = list(make_layers(job.model, {"classes": 2, "vocabulary": 2}))
        loss, named = _measures(job.model)
        Sequential(layers).compile("adam", loss, metrics=named)


def _model_in(file: str, seed: int) -> Model:
    """Return the model of an architecture's file, with the job's seed."""
    try:
        config = json.loads(Path(file).read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(
            "model.file: expected a JSON file of a model's architecture",
            f"{file}: {error}",
            "write it with Path(...).write_text(model.to_json())",
        ) from None
    if not isinstance(config, dict):
        config = {}
    return model_from_json(json.dumps(config | {"seed": seed}))


_SIZED = {"units": "classes", "filters": "classes", "input_dim": "vocabulary"}


def with_sizes(layer: str, arguments: Any, sizes: dict[str, int | None]) -> Any:
    """Return a layer's arguments with the data's numbers in place of their names.

    Raises ShapeError if the data has no such number.
    """
    if isinstance(arguments, list):
        return [with_sizes(layer, one, sizes) for one in arguments]
    if not isinstance(arguments, dict):
        return arguments
    found = {}
    for key, value in arguments.items():
        word = _SIZED.get(key)
        if word is None or value != word:
            found[key] = with_sizes(key, value, sizes)
        elif sizes[word] is None:
            what = "with classes" if word == "classes" else "of numbered words"
            raise ShapeError(
                f"{layer}: expected data {what}, as {key} is {word!r}",
                "data without",
                f"write a number for {key}",
            )
        else:
            found[key] = sizes[word]
    return found


def check_wishes(job: config.Job, data: Data, model: Model) -> None:
    """Raise DataError if the job wants what needs other data than it has."""
    wishes = {
        "train.eval_batches": job.train.eval_batches,
        "train.early_stop": job.train.early_stop,
        "checkpoint.best": job.checkpoint.best,
        "schedule.type plateau": job.schedule.type == "plateau",
    }
    for key, value in wishes.items():
        if value and data.validation is None:
            raise DataError(
                f"expected validation data, as {key} is set",
                "data without any",
                f"add some, or leave {key} out",
            )
    if job.train.sample_every and (not data.tokenizer or not data.tokens):
        raise DataError(
            "expected a text with its tokenizer, as train.sample_every is set",
            data.summary,
            "train on data.type text, or leave train.sample_every out",
        )


def check_start(job: config.Job, data: Data) -> None:
    """Raise DataError if the data's tokens aren't those that the weights to start from
    know, as far as both tokenizers are there to tell."""
    folder = getattr(job.model, "init_from", None)
    given = getattr(job.data, "tokenizer", None)  # a file of tokens has its own
    if folder is None or data.tokenizer is None:
        return
    if given and Path(given) in (Path(folder), Path(folder, TOKENIZER)):
        return
    known = read_tokenizer(Path(folder))
    if known is None:
        return
    count = min(known.vocab_size, data.tokenizer.vocab_size)
    ends = known.end, data.tokenizer.end  # they may have no text
    for token in np.unique(np.linspace(0, count - 1, _COMPARED, dtype=int)).tolist():
        texts = [t.decode([token]) for t in (known, data.tokenizer)]
        if texts[0] != texts[1] and token not in ends:
            raise DataError(
                f"expected the tokens of the weights in {folder}, where token {token} "
                f"is {texts[0]!r}",
                f"data whose token {token} is {texts[1]!r}",
                f"encode the data with the tokenizer in {folder}, for example with "
                "fastserve prepare --tokenizer",
            )


def _vocabulary(model: schema.GptModel, data: int) -> int:
    if model.vocab_size is not None and data > model.vocab_size:
        raise ShapeError(
            f"model.vocab_size: expected at least the data's {data:,} different tokens",
            f"{model.vocab_size:,}",
            "use the tokenizer that the model was trained with; of completions, set "
            "data.end to a text of one token if it has no end token of its own"
            if model.init_from
            else "raise it, or leave it out",
        )
    return model.vocab_size or data


def make_sampler(job: config.Job, data: Data) -> Sampler:
    """Return the order of samples; with ``train.steps`` every batch is full."""
    chosen = isinstance(data.train, Subset)
    return Sampler(
        data.train.samples,
        job.train.global_batch,
        job.seed,
        job.train.shuffle and not chosen,
        wrap=job.train.steps is not None,
    )


def only_first_batches(job: config.Job, data: Data) -> Data:
    """Return the data with just the first ``train.overfit_batches`` batches of the
    training part, to train and to validate on."""
    chosen = first_batches(
        data.train, make_sampler(job, data), job.train.overfit_batches or 0
    )
    return replace(
        data,
        train=chosen,
        validation=chosen,
        summary=f"{data.summary}; {chosen.samples} samples of it to overfit",
        bytes_per_token=None,
    )


def total_steps(job: config.Job, sampler: Sampler) -> int:
    if job.train.steps is not None:
        return job.train.steps
    return (job.train.epochs or 1) * sampler.steps_per_epoch


def _measures(model: schema.SequentialModel) -> tuple[Any, list[Any]]:
    """Return loss and metrics, made of their names and arguments."""
    named = [m if isinstance(m, str) else metrics.make(m) for m in model.metrics]
    return losses.get(model.loss), named


def compile_model(job: config.Job, model: Model, steps: int) -> None:
    """Give the model the job's optimizer, schedule, loss and options."""
    optimizer = _optimizer(job, steps)
    m = job.model
    if isinstance(m, schema.GptModel):
        model.compile(optimizer)
    elif isinstance(m, schema.SequentialModel):
        loss, named = _measures(m)
        model.compile(optimizer, loss, metrics=named)
    elif isinstance(m, schema.JsonModel):
        weights = m.loss_weights
        model.compile(optimizer, m.loss, metrics=m.metrics, loss_weights=weights)
    elif model.loss is not None:
        more: dict[str, Any] = {}
        if model.weighted_metrics:
            more["weighted_metrics"] = model.weighted_metrics
        if model.loss_weights is not None:
            more["loss_weights"] = model.loss_weights
        model.compile(optimizer, model.loss, metrics=model.metrics, **more)
    else:
        raise ShapeError(
            f"{m.file}: expected a compiled model",
            "a model without a loss",
            "call model.compile(loss=...) in the function",
        )
    model.clip_norm = job.train.clip_norm
    threads = job.launch.threads
    model.options = Options(
        micro_batch=job.shard_rows or job.train.micro_batch,
        algorithm=job.comm.algorithm,
        overlap={"auto": None, "on": True, "off": False}[job.comm.overlap],
        wire=job.comm.wire,
        check_every=job.comm.check_every,
        bucket_bytes=int(job.comm.bucket_mb * 2**20),
        spike_factor=job.train.spike_factor,
        recompute=job.train.recompute,
        shard_optimizer=job.train.shard_optimizer,
        threads=None if threads == "auto" else threads,
    )


def _optimizer(job: config.Job, steps: int) -> optimizers.Optimizer:
    o, s = job.optimizer, job.schedule
    rate = schedules.from_config(lr=o.lr, steps=steps, **s.model_dump())
    keys = o.model_dump(exclude={"type", "lr"})
    if "betas" in keys:
        keys["beta_1"], keys["beta_2"] = keys.pop("betas")
    for short, name in {
        "eps": "epsilon",
        "l1": "l1_regularization_strength",
        "l2": "l2_regularization_strength",
    }.items():
        if short in keys:
            keys[name] = keys.pop(short)
    return optimizers.NAMED[o.type](rate, **keys)
