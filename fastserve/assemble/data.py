"""From a job's configuration to its data: one function for each kind."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fastserve import config
from fastserve.assemble.labelled import make_parts
from fastserve.config import schema
from fastserve.config.labelled import Splits
from fastserve.core import Array
from fastserve.data.completions import (
    CompletionSource,
    Encoded,
    encode_pairs,
    read_pairs,
)
from fastserve.data.encode import EncodedText, encode_text
from fastserve.data.end_token import WithEnd
from fastserve.data.examples import ScaledSource
from fastserve.data.npy import load_npy, load_npz
from fastserve.data.preprocessing import ArrayInput, Preprocessing
from fastserve.data.sources import ArraySource, Source, TokenSource
from fastserve.data.targets import Classes, Values
from fastserve.data.text import bigram_loss
from fastserve.data.token_files import Shards, open_token_file
from fastserve.data.tokenizers import (
    ByteTokenizer,
    CharTokenizer,
    Tokenizer,
    load_tokenizer,
)
from fastserve.errors import DataError

_BASELINE_TOKENS = 1 << 24


@dataclass
class Data:
    """A job's data.

    Attributes:
        summary: one line for the start of the run.
        tokenizer: of a text, else None. tokens: (train, validation) of a text.
        bytes_per_token: mean bytes of text of a validation token; None: not known.
        reset_at: end token that attention doesn't look across; None: there is none.
        prompt: the first one of completions, to show how the model is asked.
        test: the part that is neither trained nor validated on.
        preprocessing: of data with labels: how they are encoded; None: of a text.
        notes: further lines for the start of the run.
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
    test: Source | None = None
    preprocessing: Preprocessing | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def classes(self) -> int | None:
        """Number of classes, None if there are none or it isn't known."""
        return self.preprocessing.classes if self.preprocessing else None

    @property
    def target_value(self) -> Values | None:
        """The number that is to be predicted, None if it is something else."""
        target = self.preprocessing.target if self.preprocessing else None
        return target if isinstance(target, Values) else None

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
    preprocessing: Preprocessing | None = None,
) -> Data:
    """Read the job's data, or take its text as ``read_text`` returned it.

    Without ``check`` files of tokens and images aren't read to find wrong ones.
    ``kept`` is the tokenizer that a run has for its completions, ``preprocessing`` what
    it has of data with labels: it is then used as it is, and not found anew.

    Raises DataError if it can't be used.
    """
    data = job.data
    if isinstance(data, schema.ArraysData):
        return _arrays(data)
    if isinstance(data, Splits):
        summary, parts = make_parts(data, check, preprocessing)
        return Data(
            parts.train,
            parts.validation,
            summary,
            parts.preprocessing.vocabulary,
            test=parts.test,
            preprocessing=parts.preprocessing,
            notes=parts.notes,
        )
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
    if data.file is not None:
        arrays = _load_npz(Path(data.file))
    else:
        names = ("x", "y", "x_val", "y_val", "x_test", "y_test")
        given = {name: getattr(data, name) for name in names}
        full = {"x": "x_train", "y": "y_train"}
        arrays = {full.get(k, k): _map_npy(Path(v)) for k, v in given.items() if v}
    train = _pair(data, arrays, "train")
    parts = {
        part: _pair(data, arrays, part) if f"x_{part}" in arrays else None
        for part in ("val", "test")
    }
    if parts["val"] is None and data.validation_split > 0:
        cut = int(train.samples * (1 - data.validation_split))
        parts["val"] = _scaled(train.x[cut:], train.y[cut:], data.scale)
        train = _scaled(train.x[:cut], train.y[:cut], data.scale)
    validation, test = parts["val"], parts["test"]
    held = f", {validation.samples:,} to validate" if validation else ""
    held += f", {test.samples:,} to test" if test else ""
    return Data(
        train,
        validation,
        f"{data.file or data.x}, {train.samples:,} samples{held}",
        test=test,
        preprocessing=Preprocessing(
            ArrayInput(train.input_shape, data.scale), _classes(data, train.y)
        ),
    )


def _classes(data: schema.ArraysData, y: Array) -> Classes | None:
    """Return the classes of integer labels, by their numbers."""
    count = data.one_hot
    if count is None and y.ndim == 1 and y.dtype.kind in "iu" and y.min() >= 0:
        count = int(y.max()) + 1
    known = count is not None and 2 <= count <= 100_000
    return Classes(tuple(map(str, range(count or 0)))) if known else None


def _scaled(x: Array, y: Array, scale: float) -> ArraySource:
    return ScaledSource(x, y, scale) if scale != 1.0 else ArraySource(x, y)


def _load_npz(path: Path) -> dict[str, Array]:
    try:
        return load_npz(path)
    except (OSError, ValueError) as error:
        raise DataError(
            "expected an .npz file with x_train and y_train",
            f"{path}: {error}",
            "write it with numpy.savez(path, x_train=..., y_train=...)",
        ) from None


def _map_npy(path: Path) -> Array:
    try:
        array: Array = load_npy(path, mmap_mode="r")
    except (OSError, ValueError) as error:
        raise DataError(
            "expected an .npy file of numbers",
            f"{path}: {error}",
            "write it with numpy.save(path, array)",
        ) from None
    return array


def _pair(data: schema.ArraysData, arrays: dict[str, Array], part: str) -> ArraySource:
    for name in (f"x_{part}", f"y_{part}"):
        if name not in arrays:
            raise DataError(
                f"{data.file}: expected an array {name}",
                f"{', '.join(sorted(arrays)) or 'nothing'}",
                "write it with numpy.savez(path, x_train=..., y_train=...)",
            )
    x, y = arrays[f"x_{part}"], arrays[f"y_{part}"]
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
    return _scaled(x, y, data.scale)


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
    return Data(
        train,
        sources[1],
        f"{data.file}, {train.samples:,} samples",
        preprocessing=Preprocessing(ArrayInput(train.input_shape)),
    )


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
