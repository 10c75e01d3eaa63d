"""Texts with labels: mails, news, film reviews; and sentences of tagged words."""

from __future__ import annotations

import io
import re
import tarfile

import numpy as np

from fastserve.core import Array

from .known import FILMS, NEWS, SPAM, WORDS
from .places import damaged, find, read_file, read_files, wrong

Sentence = list[tuple[str, str]]
MAIL = ("ham", "spam")
NEWS_CLASSES = ("business", "entertainment", "politics", "sports", "tech")
SENTIMENTS = ("negative", "positive")
_GROUPS = {
    "easy-ham-1": 0,
    "easy-ham-2": 0,
    "hard-ham-1": 0,
    "spam-1": 1,
    "spam-2": 1,
}
_SUBJECT = re.compile(r"^subject:[ \t]*(.*(?:\n[ \t]+.*)*)", re.IGNORECASE | re.M)
_MARK = re.compile(r"-(tl|hl|nc)(?=-|$)")  # of titles, headlines, cited words


def spam() -> tuple[list[str], Array]:
    """Return (texts, labels) of 6046 mails; label 1 is spam, as in ``MAIL``.

    A text is the mail's subject, a line end, and its body as it was sent. The other
    headers are left out: they tell where a mail was collected, and so its label.
    Source: SpamAssassin's public corpus, 2002-2003, read as latin-1.

    Raises:
        DataError: it isn't there (says how to get it), or isn't whole.
    """
    texts, labels = [], []
    for name, data in read_files(SPAM, "*/*.txt"):
        group = name.split("/")[-2]
        if group in _GROUPS:
            texts.append(_subject_and_body(data.decode("latin-1")))
            labels.append(_GROUPS[group])
    if len(texts) != 6046:
        raise wrong(SPAM, find(SPAM), "6046 mails", f"{len(texts)}")
    return texts, np.array(labels, np.int64)


def _subject_and_body(mail: str) -> str:
    headers, _, body = mail.replace("\r\n", "\n").partition("\n\n")
    found = _SUBJECT.search(headers)
    return f"{found[1] if found else ''}\n{body}"


def news() -> tuple[list[str], Array]:
    """Return (texts, labels) of 2127 articles in the 5 classes ``NEWS_CLASSES``.

    Of the 2225 files 98 are copies of others; each text comes once. The articles are
    the BBC's (Greene, Cunningham 2006): to be used for research only.

    Raises:
        DataError: it isn't there (says how to get it), or isn't whole.
    """
    texts: dict[str, int] = {}
    for name, data in read_files(NEWS, "*/*.txt"):
        kind = name.split("/")[-2]
        if kind in NEWS_CLASSES:
            # one file isn't UTF-8
            text = data.decode(errors="surrogateescape")
            text = re.sub("[\ud800-\udfff]", lambda m: chr(ord(m[0]) - 0xDC00), text)
            texts.setdefault(text.strip(), NEWS_CLASSES.index(kind))
    if not 2100 < len(texts) < 2200:
        raise wrong(NEWS, find(NEWS), "2127 different articles", f"{len(texts)}")
    return list(texts), np.array(list(texts.values()), np.int64)


def film_sentiment() -> tuple[list[str], Array]:
    """Return (texts, labels) of 10,568 snippets of film reviews; 1 is positive.

    The label is the sign of the mean of what some 15 people said, from -4 to 4; 37
    snippets of mean 0 are left out. ``film_ratings`` has the means.
    Source: Hutto, Gilbert: VADER, ICWSM 2014 (cite it).

    Raises:
        DataError: it isn't there (says how to get it), or isn't whole.
    """
    texts, ratings = film_ratings()
    kept = np.flatnonzero(ratings)
    return [texts[i] for i in kept], (ratings[kept] > 0).astype(np.int64)


def film_ratings() -> tuple[list[str], Array]:
    """Return (texts, ratings) of all 10,605 snippets; ratings from -4 to 4, float64."""
    path, data = read_file(FILMS)
    inner = "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt"
    with damaged(FILMS, path, inner):
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:gz") as packed:
            try:
                member = packed.extractfile(inner)
            except KeyError:
                member = None
            if member is None:
                raise wrong(FILMS, path, inner, "no such file in it")
            text = member.read(1 << 26).decode()
        rows = [line.split("\t") for line in text.splitlines() if line]
        ratings = np.array([float(row[1]) for row in rows if len(row) == 3])
    if len(ratings) != 10605:
        raise wrong(FILMS, path, "10,605 lines of 3 columns", f"{len(ratings)}")
    return [row[2] for row in rows], ratings


def tagged_words(simple: bool = True) -> list[Sentence]:
    """Return 57,340 sentences, each a list of (word, tag): 1,161,192 words.

    Tags are those of the Brown corpus in lower case. ``simple`` takes off the marks of
    titles, headlines and cited words (``nn-tl`` becomes ``nn``) and makes one tag,
    ``fw``, of those of foreign words: 182 tags instead of 472.
    Source: Francis, Kucera: Brown corpus, 1979.

    Raises:
        DataError: it isn't there (says how to get it), or isn't whole.
    """
    sentences: list[Sentence] = []
    for _, data in read_files(WORDS, "c[a-r][0-9][0-9]"):
        for line in data.decode("latin-1").splitlines():
            pairs = [pair.rpartition("/") for pair in line.split()]
            if pairs:
                tag = _simple if simple else str
                sentences.append([(word, tag(t)) for word, _, t in pairs])
    if len(sentences) != 57340 or any(not w for s in sentences for w, _ in s):
        found = f"{len(sentences)} sentences"
        raise wrong(WORDS, find(WORDS), "57,340 sentences of word/tag", found)
    return sentences


def _simple(tag: str) -> str:
    if tag.startswith("fw-"):
        return "fw"
    return _MARK.sub("", tag) or tag
