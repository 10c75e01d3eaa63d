"""``fastserve predict``: what a trained model says of images, texts, tables, words."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fastserve import config
from fastserve.assemble.labelled import table_options
from fastserve.assemble.model import make_model
from fastserve.config import labelled
from fastserve.config.run_folders import find_run
from fastserve.core import Array, without_initial_values
from fastserve.data import preprocessing
from fastserve.data.columns import BadValue, Columns
from fastserve.data.idx import read_idx
from fastserve.data.images import ENDINGS, Pixels
from fastserve.data.labelled_texts import TextEncoder, read_records
from fastserve.data.lines import Lines, fault
from fastserve.data.npy import load_npy, load_npz
from fastserve.data.preprocessing import ArrayInput, Preprocessing
from fastserve.data.tables import Options, Reader
from fastserve.data.tagged import WordEncoder
from fastserve.data.targets import Classes, Values
from fastserve.errors import CheckpointError, DataError
from fastserve.models import Model
from fastserve.trained import load_weights, open_job, silent

_ROWS = 256  # samples that are computed at once
_ARRAYS = (".npy", ".npz")
OUTPUTS = (".csv", ".jsonl", ".npy")


@dataclass
class Sample:
    """One input: what it is called in the results, and its encoded rows."""

    name: str
    rows: Array  # (1, ...), or of a long sentence more
    words: Sequence[str] = ()


@dataclass
class Result:
    """What the model says of one sample; which fields are there depends on the run.

    Attributes:
        outputs: of the model. best: (class, probability), the likeliest first.
        value: the predicted number. tags: (word, tag, probability).
    """

    name: str
    outputs: Array
    best: Sequence[tuple[str, float]] = ()
    value: float | None = None
    tags: Sequence[tuple[str, str, float]] = ()

    def line(self) -> str:
        if self.tags:
            return " ".join(f"{word}/{tag}" for word, tag, _ in self.tags)
        if self.value is not None:
            return f"{self.name}\t{self.value:.6g}"
        if self.best:
            shown = (f"{name} {share:.4f}" for name, share in self.best)
            return "\t".join([self.name, *shown])
        numbers = " ".join(f"{v:.6g}" for v in self.outputs.reshape(-1).tolist())
        return f"{self.name}\t{numbers}"

    def to_json(self) -> dict[str, Any]:
        made: dict[str, Any] = {"input": self.name}
        if self.tags:
            words, tags, shares = zip(*self.tags, strict=True)
            made |= {"words": words, "tags": tags, "probabilities": shares}
        elif self.value is not None:
            made["value"] = self.value
        elif self.best:
            made |= {"class": self.best[0][0], "probabilities": dict(self.best)}
        else:
            made["outputs"] = self.outputs.tolist()
        return made

    def table(self) -> list[list[Any]]:
        """Return the rows of a CSV file."""
        if self.tags:
            return [[self.name, *tag] for tag in self.tags]
        if self.value is not None:
            return [[self.name, self.value]]
        if self.best:
            return [[self.name, *(part for pair in self.best for part in pair)]]
        return [[self.name, *self.outputs.reshape(-1).tolist()]]


class Predictor:
    """A run's model with what encodes its inputs.

    Args:
        which: the checkpoint, as in ``load_weights``.

    Raises CheckpointError if the run has none, or is one of a language model.
    """

    def __init__(self, run: str, which: str | None = None, top: int = 1) -> None:
        run_dir, self.job = open_job(run)
        kept = preprocessing.read(run_dir)
        if self.job.model.type == "gpt":
            raise CheckpointError(
                "predict: expected a run that tells classes or values",
                f"{run}, a run of a language model",
                f"use fastserve generate {run}",
            )
        if kept is None:
            raise CheckpointError(
                f"predict: expected a run with a {preprocessing.FILE}",
                f"{run}, which has none",
                "train it again with this version",
            )
        self.preprocessing: Preprocessing = kept
        self.model = _model(self.job, kept)
        self.loaded = load_weights(run_dir, self.model, which)
        self.top = top

    def samples(self, inputs: Sequence[str], texts: Sequence[str]) -> Iterator[Sample]:
        """Yield the encoded samples of files and of texts of the command line."""
        kind = self.preprocessing.input
        if texts and not isinstance(kind, TextEncoder | WordEncoder):
            raise DataError(
                "--text: expected a run that was trained on texts",
                f"one whose inputs are of kind {kind.kind}",
                "give --input FILE",
            )
        for text in texts:
            yield self._text(text, text)
        for given in inputs:
            yield from self._file(Path(given))

    def _file(self, path: Path) -> Iterator[Sample]:
        kind = self.preprocessing.input
        if not path.exists():
            raise DataError(
                "--input: expected a file or a folder",
                f"{path}: no such file",
                "give one that is there; --text takes a text itself"
                if isinstance(kind, TextEncoder | WordEncoder)
                else "give one that is there",
            )
        if isinstance(kind, Columns):
            yield from self._table(path, kind)
        elif isinstance(kind, TextEncoder | WordEncoder):
            for name, text in self._texts(path):
                yield self._text(name, text)
        else:
            assert isinstance(kind, ArrayInput | Pixels)
            yield from _images(path, kind)

    def _text(self, name: str, text: str) -> Sample:
        kind = self.preprocessing.input
        if isinstance(kind, WordEncoder):
            words = text.split()
            if not words:
                raise DataError(f"{name}: expected words", "none", "remove blank lines")
            return Sample(name, kind.encode(words), words)
        assert isinstance(kind, TextEncoder)
        return Sample(name, kind.encode([text]))

    def _texts(self, path: Path) -> Iterator[tuple[str, str]]:
        """Yield (name, text) of a file: a text a line, or a record of a table."""
        data = self.job.data
        encoding = getattr(data, "encoding", "utf-8")
        field = getattr(data, "text", "text")
        if path.suffix not in (".csv", ".jsonl"):
            lines = Lines(path, encoding)
            for line in lines:
                if not line.isspace():
                    yield f"line {lines.line}", line.rstrip("\r\n")
            return
        for record in read_records(path, encoding):
            fields = record.fields
            if not isinstance(fields.get(field), str):
                found = ", ".join(fields)[:200]
                raise fault(path, record.line, f"a text in {field!r}", found, "add it")
            yield f"line {record.line}", fields[field]

    def _table(self, path: Path, columns: Columns) -> Iterator[Sample]:
        names = [column.name for column in columns.columns]
        data = self.job.data
        assert isinstance(data, labelled.CsvData | labelled.JsonlData)
        known = table_options(data)
        options = Options(
            known.target,
            known.task,
            names,
            delimiter=known.delimiter,
            encoding=known.encoding,
        )
        for record in Reader(path, options, target=False):
            out = np.empty((1, *columns.input_shape), np.float32)
            try:
                columns.put([record.fields.get(name) for name in names], out[0])
            except BadValue as error:
                raise fault(
                    path,
                    record.line,
                    str(error),
                    json.dumps(record.fields, ensure_ascii=False)[:200],
                    "correct the record, or remove it",
                ) from None
            yield Sample(f"line {record.line}", out)

    # -- computing -------------------------------------------------------------------

    def results(self, samples: Iterable[Sample]) -> Iterator[Result]:
        """Yield what the model says of each sample, in their order."""
        waiting: list[Sample] = []
        for sample in samples:
            waiting.append(sample)
            if sum(len(one.rows) for one in waiting) >= _ROWS:
                yield from self._compute(waiting)
                waiting = []
        if waiting:
            yield from self._compute(waiting)

    def _compute(self, samples: Sequence[Sample]) -> Iterator[Result]:
        x = np.concatenate([sample.rows for sample in samples])
        y = np.array(self.model.forward(x))
        start = 0
        for sample in samples:
            stop = start + len(sample.rows)
            yield self._result(sample, y[start:stop])
            start = stop

    def _result(self, sample: Sample, y: Array) -> Result:
        target = self.preprocessing.target
        if isinstance(target, Values) and y[0].size == 1:
            value = float(target.decode(y.reshape(-1))[0])
            return Result(sample.name, y[0], value=value)
        if not isinstance(target, Classes):
            return Result(sample.name, y[0])
        if sample.words:
            shares = self._shares(y).reshape(-1, y.shape[-1])[: len(sample.words)]
            places = shares.argmax(axis=-1)
            tags = [
                (word, target.names[place], float(share[place]))
                for word, place, share in zip(
                    sample.words, places.tolist(), shares, strict=True
                )
            ]
            return Result(sample.name, shares, tags=tags)
        one = self._shares(y)[0]
        if one.shape != (len(target.names),):
            return Result(sample.name, y[0])
        order = np.argsort(-one, kind="stable")[: self.top].tolist()
        best = [(target.names[place], float(one[place])) for place in order]
        return Result(sample.name, one, best)

    def _shares(self, y: Array) -> Array:
        """Return probabilities (..., classes): outputs may be logits, or one of two."""
        kind = self.model.root.fused_loss
        y = y.astype(np.float64)
        if y.shape[-1] == 1:
            p = y if kind == "sigmoid" else 1 / (1 + np.exp(-y))
            return np.concatenate([1 - p, p], axis=-1)
        if kind is not None:
            return y
        y = np.exp(y - y.max(axis=-1, keepdims=True))
        shares: Array = y / y.sum(axis=-1, keepdims=True)
        return shares


def _model(job: config.Job, kept: Preprocessing) -> Model:
    with without_initial_values():
        shape = kept.input.input_shape
        return make_model(job, kept.vocabulary, shape, kept.classes)


def _images(path: Path, kind: ArrayInput | Pixels) -> Iterator[Sample]:
    """Yield images of files, of a folder of them, or of arrays."""
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.suffix.lower() in ENDINGS)
        if not files:
            raise DataError(
                f"{path}: expected images {', '.join(ENDINGS)}", "none", "add some"
            )
        for file in files:
            yield from _images(file, kind)
        return
    if path.suffix.lower() in ENDINGS:
        pixels = kind if isinstance(kind, Pixels) else _pixels_of(path, kind)
        image = pixels.read(path).reshape(1, *kind.input_shape)
        yield Sample(str(path), image * np.float32(1 / 255))
        return
    scale = kind.scale if isinstance(kind, ArrayInput) else 1 / 255
    for i, row in enumerate(_array(path, kind.input_shape)):
        scaled = row * np.float32(scale) if scale != 1.0 else row
        yield Sample(f"{path}[{i}]", scaled.reshape(1, *kind.input_shape))


def _pixels_of(path: Path, kind: ArrayInput) -> Pixels:
    """Return how an image becomes what a model of arrays takes."""
    shape = kind.shape if len(kind.shape) == 3 else (*kind.shape, 1)
    if len(shape) != 3 or shape[2] not in (1, 3) or kind.scale == 1.0:
        raise DataError(
            f"{path}: expected an array, as the run was trained on arrays of shape "
            f"{kind.shape} whose scale isn't known",
            "an image",
            "give an .npy or .npz file, or train with data.scale (1/255 for bytes)",
        )
    return Pixels(*shape)


def _array(path: Path, shape: tuple[int, ...]) -> Array:
    """Return the samples of a .npy, .npz or IDX file, of a shape that fits."""
    if path.suffix not in _ARRAYS:
        array = read_idx(path)
    else:
        try:
            if path.suffix == ".npz":
                arrays = load_npz(path)
                known = ("x", "x_test", "x_train")
                names: list[str] = [n for n in known if n in arrays]
                names += arrays if len(arrays) == 1 else []
                if not names:
                    raise ValueError(f"arrays {', '.join(arrays)}, no x")
                found = arrays[names[0]]
            else:
                found = load_npy(path)
        except (OSError, ValueError) as error:
            raise DataError(
                "expected an array of numbers", f"{path}: {error}", "write it again"
            ) from None
        array = found
    for given in (array, array[..., None], array[None], array[None, ..., None]):
        if given.shape[1:] == shape and given.dtype.kind in "iufb":
            made: Array = given
            return made
    raise DataError(
        f"{path}: expected samples of shape {shape}",
        f"an array of shape {array.shape}, type {array.dtype}",
        "reshape it",
    )


# -- writing ------------------------------------------------------------------------


def predict(
    run: str,
    inputs: Sequence[str],
    texts: Sequence[str] = (),
    output: str | None = None,
    top: int = 1,
    which: str | None = None,
    say: Callable[[str], None] = print,
    note: Callable[[str], None] = silent,
) -> None:
    """Say, or write to ``output`` (.csv, .jsonl or .npy), what the model predicts.

    ``note`` is told which checkpoint it is.

    Raises DataError for inputs that can't be used; then no output is left.
    """
    find_run(run)  # the first thing to be wrong
    if not inputs and not texts:
        raise DataError(
            "predict: expected --input FILE, or --text", "neither", "give one"
        )
    path = None if output is None else Path(output)
    if path is not None and path.suffix not in OUTPUTS:
        raise DataError(
            f"--output: expected a file that ends in {', '.join(OUTPUTS)}",
            str(path),
            "change its name",
        )
    if path is not None and not path.absolute().parent.is_dir():
        raise DataError("--output: expected an existing folder", str(path.parent))
    predictor = Predictor(run, which, top)
    note(str(predictor.loaded))
    words = isinstance(predictor.preprocessing.input, WordEncoder)
    if path is not None and path.suffix == ".npy" and words:
        raise DataError(
            "--output: expected .csv or .jsonl for tagged words",
            str(path),
            "sentences have different lengths",
        )
    results = predictor.results(predictor.samples(inputs, texts))
    if path is None:
        for result in results:
            say(result.line())
        return
    count = _write(path, results, predictor)
    say(f"{count:,} predictions in {path}")


def _write(path: Path, results: Iterator[Result], predictor: Predictor) -> int:
    """Write the results to a file beside ``path``, then put it there."""
    part = path.with_name(f".{path.name}.part")
    count = 0
    try:
        if path.suffix == ".npy":
            outputs = [result.outputs for result in results]
            count = len(outputs)
            with part.open("wb") as raw:
                np.save(raw, np.array(outputs, np.float32), allow_pickle=False)
        else:
            with part.open("w", encoding="utf-8", newline="") as file:
                if path.suffix == ".csv":
                    csv.writer(file).writerow(_header(predictor))
                for result in results:
                    count += 1
                    file.write(_row(path, result))
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    return count


def _row(path: Path, result: Result) -> str:
    if path.suffix == ".jsonl":
        return json.dumps(result.to_json(), ensure_ascii=False) + "\n"
    text = io.StringIO()
    csv.writer(text).writerows(result.table())
    return text.getvalue()


def _header(predictor: Predictor) -> list[str]:
    made, target = predictor.preprocessing, predictor.preprocessing.target
    if isinstance(made.input, WordEncoder):
        return ["input", "word", "tag", "probability"]
    if isinstance(target, Values):
        return ["input", target.name]
    if isinstance(target, Classes):
        shown = min(predictor.top, len(target.names))
        pairs = [["class", "probability"]] + [
            [f"class_{i}", f"probability_{i}"] for i in range(2, shown + 1)
        ]
        return ["input", *(name for pair in pairs for name in pair)]
    return ["input", "outputs"]
