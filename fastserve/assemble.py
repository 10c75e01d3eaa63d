"""From a job's configuration to its data and its model, ready to train."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from fastserve import config, optimizers, schedules
from fastserve.config import schema
from fastserve.core import Array
from fastserve.data.completions import (
    CompletionSource,
    Encoded,
    encode_pairs,
    read_pairs,
)
from fastserve.data.encode import EncodedText, encode_text
from fastserve.data.end_token import WithEnd
from fastserve.data.sampler import Sampler
from fastserve.data.sources import ArraySource, Source, TokenSource
from fastserve.data.subset import Subset, first_batches
from fastserve.data.text import bigram_loss
from fastserve.data.token_files import TOKENIZER, Shards, open_token_file
from fastserve.data.tokenizer_folders import read_tokenizer
from fastserve.data.tokenizers import (
    ByteTokenizer,
    CharTokenizer,
    Tokenizer,
    load_tokenizer,
)
from fastserve.errors import DataError, ShapeError
from fastserve.models import GPT, Model, Sequential
from fastserve.models.config import make_layer
from fastserve.training.step import Options

_BASELINE_TOKENS = 1 << 24
_COMPARED = 1000  # tokens, to see whether two tokenizers are the same


@dataclass
class Data:
    """A job's data.

    Attributes:
        summary: one line for the start of the run.
        tokenizer: of a text, else None. tokens: (train, validation) of a text.
        bytes_per_token: mean bytes of text of a validation token; None: not known.
        reset_at: end token that attention doesn't look across; None: there is none.
        prompt: the first one of completions, to show how the model is asked.
    """

    train: Source
    validation: Source | None
    summary: str
    vocab_size: int | None = None
    tokenizer: Tokenizer | WithEnd | None = None
    tokens: tuple[Array | Shards, Array | Shards] | None = None
    bytes_per_token: float | None = None
    reset_at: int | None = None
    prompt: str = ""

    def baseline(self, samples: int | None = None) -> float | None:
        """Return the validation loss of a 2-gram model, in nats a token.

        With ``samples`` only that of the first ones.
        """
        if self.tokens is None or self.vocab_size is None or not len(self.tokens[1]):
            return None
        train, validation = self.tokens
        if samples is not None:
            validation = validation[: samples * self.train.tokens_per_sample + 1]
        if len(train) + len(validation) > _BASELINE_TOKENS:
            return None  # it takes some 50 bytes of memory for each
        whole = np.asarray(train), np.asarray(validation)
        return bigram_loss(*whole, self.vocab_size)


def make_data(
    job: config.Job,
    encoded: EncodedText | None = None,
    check: bool = True,
    kept: Tokenizer | WithEnd | None = None,
) -> Data:
    """Read the job's data, or take its text as ``read_text`` returned it.

    Without ``check`` files of tokens aren't read to find wrong ones. ``kept`` is the
    tokenizer that a run has for its completions.

    Raises DataError if it can't be used.
    """
    data = job.data
    if isinstance(data, schema.ArraysData):
        return _arrays(data)
    if isinstance(data, schema.PythonData):
        return _python_data(data)
    assert isinstance(job.model, schema.GptModel)  # config pairs gpt with these
    block = job.model.block_size
    if isinstance(data, schema.TextData):
        return _text(data, encoded or read_text(data), block, job.seed)
    if isinstance(data, schema.CompletionsData):
        return _completions(data, block, kept)
    return _tokens(data, block, job.seed, check)


def read_text(data: schema.TextData, kept: Tokenizer | None = None) -> EncodedText:
    """Read and encode a job's text; ``kept`` is the tokenizer that its run has."""
    split = data.validation_split
    return encode_text(data.source, data.tokenizer, data.vocab_size, split, kept)


def _text(data: schema.TextData, text: EncodedText, block: int, seed: int) -> Data:
    train, validation, tokenizer = text.train, text.validation, text.tokenizer
    unit = {"byte": "bytes", "char": "characters"}.get(data.tokenizer, "tokens")
    summary = (
        f"{data.source}, {len(train) + len(validation):,} {unit}, "
        f"{tokenizer.vocab_size:,} different, "
        f"the last {len(validation):,} to validate"
    )
    return Data(
        TokenSource(train, block, seed),
        _validation(validation, block) if len(validation) else None,
        summary,
        tokenizer.vocab_size,
        tokenizer,
        (train, validation),
        text.bytes_per_token,
        reset_at=_reset_at(data, tokenizer.vocab_size, tokenizer),
    )


def _validation(tokens: Array | Shards, block: int) -> TokenSource:
    try:
        return TokenSource(tokens, block, shift=False)
    except DataError as error:
        raise DataError(
            f"validation: {error.expected}",
            error.received,
            "validate on a larger part of the text, or take a smaller block_size",
        ) from None


def _tokens(data: schema.TokensData, block: int, seed: int, check: bool) -> Data:
    train = open_token_file(data.train, data.vocab_size, "train", check)
    vocabulary, validation, per_token = train.vocab_size, None, None
    if data.validation is not None:
        validation = open_token_file(data.validation, vocabulary, "validation", check)
        if validation.text_bytes is not None:
            per_token = validation.text_bytes / len(validation.tokens)
    held = f", {len(validation.tokens):,} to validate" if validation else ""
    return Data(
        TokenSource(train.tokens, block, seed),
        _validation(validation.tokens, block) if validation else None,
        f"{data.train}, {len(train.tokens):,} tokens{held}, vocabulary of "
        f"{vocabulary:,}",
        vocabulary,
        train.tokenizer,
        (train.tokens, validation.tokens if validation else train.tokens[:0]),
        per_token,
        reset_at=_reset_at(data, vocabulary, train),
    )


def end_token(data: schema.TextData | schema.TokensData, known: Any) -> int | None:
    """Return the job's end token, or else that of ``known``: a tokenizer, or an open
    file."""
    return data.end_token if data.end_token is not None else getattr(known, "end", None)


def _reset_at(
    data: schema.TextData | schema.TokensData, vocabulary: int, known: Any
) -> int | None:
    """Return the end token that attention shall not look across, if any."""
    if not data.reset_attention:
        return None
    end = end_token(data, known)
    if end is None or not 0 <= end < vocabulary:
        raise DataError(
            f"data.reset_attention: expected an end token below {vocabulary}",
            "no end token" if end is None else f"{end}",
            "set data.end_token to the number of the token that ends a document",
        )
    return int(end)


def _completions(
    data: schema.CompletionsData, block: int, kept: Tokenizer | WithEnd | None
) -> Data:
    pairs = read_pairs(data.file)
    tokenizer: Any
    if kept is not None:
        tokenizer = kept
    elif data.tokenizer == "char":
        text = "".join(p.prompt + p.completion for p in pairs) + (data.end or "")
        tokenizer = CharTokenizer.train(text)
    elif data.tokenizer == "byte":
        tokenizer = ByteTokenizer()
    else:
        tokenizer = load_tokenizer(data.tokenizer)
    wanted = data.end is not None and kept is None
    if wanted or getattr(tokenizer, "end", None) is None:
        inner = tokenizer.tokenizer if isinstance(tokenizer, WithEnd) else tokenizer
        tokenizer = WithEnd(inner, data.end)

    held, path = [], data.file
    if data.validation is not None:
        path = data.validation
        held = read_pairs(path)
    elif data.validation_split:
        cut = int(len(pairs) * (1 - data.validation_split))
        pairs, held = pairs[:cut], pairs[cut:]
    if not pairs or (data.validation_split and not held):
        raise DataError(
            "expected at least one example to train and one to validate",
            f"{len(pairs)} and {len(held)}",
            "add lines to data.file, or change data.validation_split",
        )
    may_cut = data.too_long == "cut"
    made = encode_pairs(data.file, pairs, tokenizer, block, may_cut)
    train = CompletionSource(made.examples, block, tokenizer.end, data.packing)
    validation = None
    parts = [made]
    if held:
        parts.append(encode_pairs(path, held, tokenizer, block, may_cut))
        validation = CompletionSource(
            parts[1].examples, block, tokenizer.end, data.packing
        )
    return Data(
        train,
        validation,
        _describe_completions(data, parts, train),
        tokenizer.vocab_size,
        tokenizer,
        reset_at=tokenizer.end if data.packing else None,
        prompt=pairs[0].prompt,
    )


def _describe_completions(
    data: schema.CompletionsData, parts: list[Encoded], train: CompletionSource
) -> str:
    held = f" and {len(parts[1].examples):,} to validate" if parts[1:] else ""
    cut, out = sum(p.cut for p in parts), sum(p.left_out for p in parts)
    long = f"; too long: {cut:,} cut, {out:,} left out" if cut or out else ""
    return (
        f"{data.file}, {len(parts[0].examples):,} examples{held}, in {train.samples:,} "
        f"rows of {train.block_size} tokens ({train.filled:.0%} filled), "
        f"{train.counted:,} of them with a loss{long}"
    )


def _arrays(data: schema.ArraysData) -> Data:
    arrays = _load_npz(Path(data.file))
    train = _pair(data, arrays, "train")
    validation = _pair(data, arrays, "val") if "x_val" in arrays else None
    if validation is None and data.validation_split > 0:
        cut = int(train.samples * (1 - data.validation_split))
        validation = ArraySource(train.x[cut:], train.y[cut:])
        train = ArraySource(train.x[:cut], train.y[:cut])
    held = f", {validation.samples:,} to validate" if validation else ""
    return Data(train, validation, f"{data.file}, {train.samples:,} samples{held}")


def _load_npz(path: Path) -> dict[str, Array]:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except (OSError, ValueError, EOFError, KeyError) as error:
        raise DataError(
            "expected an .npz file with x_train and y_train",
            f"{path}: {error}",
            "write it with numpy.savez(path, x_train=..., y_train=...)",
        ) from None


def _pair(data: schema.ArraysData, arrays: dict[str, Array], part: str) -> ArraySource:
    for name in (f"x_{part}", f"y_{part}"):
        if name not in arrays:
            raise DataError(
                f"{data.file}: expected an array {name}",
                f"{', '.join(sorted(arrays)) or 'nothing'}",
                "write it with numpy.savez(path, x_train=..., y_train=...)",
            )
    x, y = arrays[f"x_{part}"], arrays[f"y_{part}"]
    if data.scale != 1.0:
        x = x * np.float32(data.scale)
    classes = data.one_hot
    if classes is not None:
        if y.ndim != 1 or y.dtype.kind not in "iu" or y.min() < 0 or y.max() >= classes:
            raise DataError(
                f"data.one_hot: expected y_{part} (samples,) of integers below "
                f"{classes}",
                f"shape {y.shape}, type {y.dtype}, from {y.min()} to {y.max()}",
                "change data.one_hot",
            )
        y = np.eye(classes, dtype=np.float32)[y]
    return ArraySource(x, y)


def _python_data(data: schema.PythonData) -> Data:
    made = call_function(data.file, data.function, data.arguments)
    parts = made if isinstance(made, tuple) else (made, None)
    sources = [
        part if part is None or isinstance(part, Source) else ArraySource(*part)
        for part in parts
    ]
    if len(sources) != 2 or sources[0] is None:
        raise DataError(
            f"{data.file}: expected {data.function} to return (train, "
            "validation), each (x, y), a Source, or None for no validation",
            f"{type(made).__name__}",
            "change the function",
        )
    train = sources[0]
    return Data(train, sources[1], f"{data.file}, {train.samples:,} samples")


def call_function(file: str, function: str, arguments: dict[str, Any]) -> Any:
    """Call a function of a Python file of the user's."""
    spec = importlib.util.spec_from_file_location(Path(file).stem, file)
    if spec is None or spec.loader is None:
        raise DataError("expected a Python file", file, "its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not callable(getattr(module, function, None)):
        raise DataError(
            f"{file}: expected a function {function}",
            f"{', '.join(n for n in vars(module) if n[0] != '_') or 'nothing'}",
            "define it, or change the job's key 'function'",
        )
    return getattr(module, function)(**arguments)


def make_model(
    job: config.Job, vocab_size: int | None, input_shape: tuple[int, ...] = ()
) -> Model:
    """Make the job's model, built but not compiled.

    ``vocab_size`` is needed for a gpt, ``input_shape`` (of one sample) for others.
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
        for entry in m.layers:
            ((name, arguments),) = entry.items()
            model.add(make_layer(name, arguments))
        model.build(m.input_shape or input_shape)
        return model
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


def check_wishes(job: config.Job, data: Data, model: Model) -> None:
    """Raise DataError if the job wants what needs other data than it has."""
    wishes = {
        "train.eval_batches": job.train.eval_batches,
        "train.early_stop": job.train.early_stop,
        "checkpoint.best": job.checkpoint.best,
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


def compile_model(job: config.Job, model: Model, steps: int) -> None:
    """Give the model the job's optimizer, schedule, loss and options."""
    optimizer = _optimizer(job, steps)
    m = job.model
    if isinstance(m, schema.GptModel):
        model.compile(optimizer)
    elif isinstance(m, schema.SequentialModel):
        model.compile(optimizer, m.loss, m.metrics)
    elif model.loss is not None:
        model.compile(optimizer, model.loss, model.metrics)
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
