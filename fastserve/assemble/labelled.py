"""From a job's data section with labels to its parts."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from fastserve.config import labelled
from fastserve.core import Array
from fastserve.data import datasets
from fastserve.data.datasets.known import DIAMONDS, PENGUINS
from fastserve.data.examples import ArrayExamples, Examples
from fastserve.data.idx import read_idx
from fastserve.data.images import ImageFolder, Pixels
from fastserve.data.labelled_texts import TextEncoder, texts_in, texts_of
from fastserve.data.parts import Parts, Shares, divide
from fastserve.data.preprocessing import Preprocessing
from fastserve.data.tables import Options, Table
from fastserve.data.tagged import WordEncoder, tagged_in, tagged_of
from fastserve.data.targets import Classes
from fastserve.errors import DataError

_TABLES = {known.name: known for known in (DIAMONDS, PENGUINS)}
_TEXTS = {
    "spam": (datasets.spam, datasets.MAIL),
    "news": (datasets.news, datasets.NEWS_CLASSES),
    "film-sentiment": (datasets.film_sentiment, datasets.SENTIMENTS),
}
Others = dict[str, Callable[[Preprocessing], Examples]]


def make_parts(
    data: labelled.Splits, check: bool, kept: Preprocessing | None
) -> tuple[str, Parts]:
    """Return one line about a job's data, and its parts.

    Args:
        check: look into files that would otherwise be read during training.
        kept: what a run has, to be used as it is; None: it is found anew.
    """
    examples: Examples
    others: Others = {}
    if isinstance(data, labelled.IdxData):
        examples, others = _idx(data)
        name = data.train_images
    elif isinstance(data, labelled.CsvData | labelled.JsonlData):
        examples, others, name = _table(data, kept)
    elif isinstance(data, labelled.ImagesData):
        examples, others = _images(data, check, kept)
        name = data.folder
    elif isinstance(data, labelled.TextsData):
        examples, others = _texts(data, kept)
        name = data.source
    elif isinstance(data, labelled.TaggedData):
        examples, others = _tagged(data, kept)
        name = data.file
    else:
        assert isinstance(data, labelled.DatasetData)
        examples, others = _dataset(data, kept)
        name = data.name
    fields = labelled.Splits.model_fields
    shares = Shares(**{key: getattr(data, key) for key in fields})
    parts = divide(examples, shares, others, fitted=kept is not None)
    return f"{name}, {parts.counts}", parts


def _idx(data: labelled.IdxData) -> tuple[Examples, Others]:
    x, y = _idx_pair(data.train_images, data.train_labels)
    names = data.class_names or [str(i) for i in range(max(2, int(y.max()) + 1))]
    most = len(names) - 1
    scale = 1.0
    if data.normalize and x.dtype.kind in "iu":
        scale = 1.0 / float(np.iinfo(x.dtype).max)
    channel = data.channel and x.ndim == 3

    def examples(x: Array, y: Array, file: str) -> ArrayExamples:
        if y.max() > most:
            raise DataError(
                f"{file}: expected labels from 0 to {most}",
                f"{y.max()}",
                "correct data.class_names, or the files",
            )
        return ArrayExamples(x, y, Classes(tuple(names)), scale, channel)

    def test(_: Preprocessing) -> Examples:
        assert data.test_images and data.test_labels  # the job is checked
        held = _idx_pair(data.test_images, data.test_labels)
        return examples(*held, data.test_labels)

    return examples(x, y, data.train_labels), {"test": test} if data.test_images else {}


def _idx_pair(images: str, labels: str) -> tuple[Array, Array]:
    x, y = read_idx(images), read_idx(labels)
    if y.ndim != 1 or y.dtype.kind not in "iu" or len(x) != len(y) or y.min() < 0:
        raise DataError(
            f"{labels}: expected one class for each of {len(x)} samples",
            f"shape {y.shape}, type {y.dtype}",
            "check which file belongs to which key",
        )
    return x, y.astype(np.int64)


def table_options(data: labelled.CsvData | labelled.JsonlData) -> Options:
    """Return how the job wants its table to be read."""
    return Options(
        data.target,
        data.task,
        data.features,
        data.categorical,
        data.categories,
        data.missing,
        data.missing_values,
        data.standardize,
        data.delimiter if isinstance(data, labelled.CsvData) else ",",
        data.encoding,
    )


def _table(
    data: labelled.CsvData | labelled.JsonlData, kept: Preprocessing | None
) -> tuple[Examples, Others, str]:
    options = table_options(data)
    known = _TABLES.get(data.file) if isinstance(data, labelled.CsvData) else None
    path = datasets.find(known) if known else Path(data.file)
    others = _others(data, lambda file, made: Table(Path(file), options, made))
    return Table(path, options, kept), others, data.file


def _others(data: Any, opens: Callable[[str, Preprocessing], Examples]) -> Others:
    """Return what opens the parts that have files of their own."""
    files = {name: getattr(data, name) for name in ("validation", "test")}
    return {name: partial(opens, file) for name, file in files.items() if file}


def _images(
    data: labelled.ImagesData, check: bool, kept: Preprocessing | None
) -> tuple[Examples, Others]:
    pixels = Pixels(data.size[0], data.size[1], data.channels)
    return ImageFolder(Path(data.folder), pixels, check, kept), _others(
        data, lambda folder, made: ImageFolder(Path(folder), pixels, check, made)
    )


def _texts(
    data: labelled.TextsData, kept: Preprocessing | None
) -> tuple[Examples, Others]:
    def texts(file: str, made: Preprocessing | None) -> Examples:
        encoder = _text_encoder(data.vectorize)
        columns = data.text, data.label
        return texts_in(Path(file), columns, data.encoding, encoder, made)

    return texts(data.source, kept), _others(data, texts)


def _text_encoder(options: labelled.Vectorize) -> TextEncoder:
    arguments = options.model_dump(exclude={"sublinear"})
    if options.standardize == "none":
        arguments["standardize"] = None
    return TextEncoder(arguments, options.sublinear)


def _tagged(
    data: labelled.TaggedData, kept: Preprocessing | None
) -> tuple[Examples, Others]:
    words = data.words

    def sentences(file: str, made: Preprocessing | None) -> Examples:
        return tagged_in(
            Path(file),
            data.format,
            data.encoding,
            WordEncoder((), words.length),
            made,
            words.max_words,
            words.min_count,
        )

    return sentences(data.file, kept), _others(data, sentences)


def _dataset(
    data: labelled.DatasetData, kept: Preprocessing | None
) -> tuple[Examples, Others]:
    if data.name in _TEXTS:
        read, names = _TEXTS[data.name]
        encoder = _text_encoder(data.vectorize)
        return texts_of(*read(), names, encoder, kept), {}
    if data.name == "tagged-words":
        words = data.words
        empty = WordEncoder((), words.length)
        wanted = words.max_words, words.min_count
        return tagged_of(datasets.tagged_words(), empty, kept, *wanted), {}
    digits = Classes(tuple(map(str, range(10))))
    if data.name == "fashion-mnist":
        train, test = datasets.fashion_mnist()
        clothes = Classes(datasets.CLOTHES)
        made = [
            ArrayExamples(x, y.astype(np.int64), clothes, 1 / 255, True)
            for x, y in (train, test)
        ]
        return made[0], {} if data.test_split else {"test": lambda _: made[1]}
    assert data.name in ("digits", "mnist-sample")
    own = data.name == "digits"
    x, y = datasets.digits() if own else datasets.mnist_sample()
    scale = 1 / 16 if own else 1 / 255
    return ArrayExamples(x, y.astype(np.int64), digits, scale, True), {}
