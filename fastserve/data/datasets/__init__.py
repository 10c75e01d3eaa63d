"""Real data sets from packages that pip, npm or apt get; their code is never run.

Each is found in the data folder (FASTSERVE_DATA_DIR, or else ``data`` in the working
folder) or where its package was installed. ``fastserve datasets`` lists them all, with
the command that gets each.
"""

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
