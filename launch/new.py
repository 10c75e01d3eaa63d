"""``fastserve new``: a folder with a job for one's own data, and a sample to try it."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from fastserve.errors import LaunchError

from . import sample_data


@dataclass(frozen=True)
class Template:
    """A kind of job: the sample it runs on, and what its user puts in its place."""

    sample: Callable[[], sample_data.Files]
    about: str
    origin: str
    yours: str


TEMPLATES = {
    "gpt": Template(
        sample_data.text,
        "a GPT that learns a text",
        "text.txt: help texts of Python (pydoc), under the Python Software Foundation "
        "License.",
        "a text file in UTF-8 of 100,000 characters or more; its path is data.source.",
    ),
    "image": Template(
        sample_data.images,
        "a convolutional network for classes of images",
        "images/, to-predict/: drawn by `fastserve new`, free of rights.",
        "a folder with a folder of images for each class; its path is data.folder, "
        "data.size the height and width to resize to, data.channels 3 for colours "
        "(PNG, JPEG and resizing: pip install 'fastserve-train[image]').",
    ),
    "text": Template(
        sample_data.texts,
        "a network that tells the class of a text",
        "texts.csv, to-predict.txt: docstrings of Python's standard library, with what "
        "their module is for, under the Python Software Foundation License.",
        "a .csv or .jsonl file with a text and a class in each record, or a folder of "
        "text files for each class; its path is data.source, the names of the columns "
        "data.text and data.label.",
    ),
    "tabular": Template(
        sample_data.table,
        "a network that predicts a column of a table",
        "table.csv, to-predict.csv: counted in the source of Python's standard library "
        "by `fastserve new`, free of rights. A row is a function; the question is "
        "whether it has a docstring.",
        "a CSV file with a line of names; its path is data.file, the column to predict "
        "data.target, data.task regression if that is a number.",
    ),
}
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")


def new(kind: str, folder: str, name: str | None) -> str:
    """Make a folder with ``job.yaml``, a sample and a README; return what to type next.

    ``kind`` is one of ``TEMPLATES``, ``name`` that of the run, by default the folder's.
    Raises LaunchError for a folder that holds something, and for a name that isn't one;
    DataError if this Python has nothing to make the sample from. Then nothing is
    written.
    """
    template = TEMPLATES[kind]
    place = Path(folder)
    name = _checked(name or re.sub(r"[^A-Za-z0-9._-]+", "-", place.absolute().name))
    _refuse_what_is_there(place)
    shown = os.path.normpath(folder)
    words = {"name": name, "folder": shown, "job": f"{shown}/job.yaml"}
    words["run"] = f"runs/{name}"
    files = {"job.yaml": _job(kind, words).encode(), **template.sample()}
    files["README.md"] = _readme(files["job.yaml"].decode(), template, words).encode()
    try:
        for file, data in files.items():
            path = place / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    except OSError as error:
        raise LaunchError(
            "expected a folder that can be written",
            f"{error.filename or place}: {error.strerror}",
            "give another one",
        ) from None
    commands = "\n".join(f"  {line}" for line in _commands(files["job.yaml"].decode()))
    return (
        f"{shown}: {template.about}, with a sample of data\n{commands}\n"
        f"your own data: {shown}/README.md says what to change"
    )


def _checked(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise LaunchError(
            "expected a name of at most 100 letters, digits, '.', '_' and '-', which "
            "starts with a letter, a digit or '_'",
            repr(name),
            "give one with --name",
        )
    return name


def _refuse_what_is_there(place: Path) -> None:
    try:
        holds = "a file" if not place.is_dir() else next(map(str, place.iterdir()), "")
    except OSError as error:
        holds = str(error.strerror)
    if holds and (place.exists() or place.is_symlink()):
        raise LaunchError(
            "expected a folder that doesn't exist yet, or an empty one",
            f"{place}, which holds {holds}" if place.is_dir() else f"{place}, {holds}",
            "give another folder, or remove what is there",
        )


def _job(kind: str, words: dict[str, str]) -> str:
    """Return the template with its words filled in and a comment behind each key."""
    from fastserve.config.comments import annotate

    text = resources.files("launch").joinpath(f"templates/{kind}.yaml").read_text()
    lines = []
    for line in text.splitlines():
        comment = line.lstrip().startswith("#")
        filled = re.sub(r"\{(name|folder|job|run)\}", lambda m: words[m[1]], line)
        if filled != line and not comment:
            key, _, value = filled.partition(": ")
            filled = f"{key}: {_scalar(value)}"
        lines.append(filled)
    return annotate("\n".join(lines))


def _scalar(value: str) -> str:
    """Return a text as YAML has it: in quotes where it would be something else."""
    from fastserve.config.strict_yaml import parse

    found, _, faults = parse(f"key: {value}")
    return value if not faults and found == {"key": value} else json.dumps(value)


def _commands(job: str) -> list[str]:
    """Return the commands that the head of a job names."""
    return re.findall(r"^#   (fastserve .*)", job, re.M)


def _readme(job: str, template: Template, words: dict[str, str]) -> str:
    commands = "\n".join(_commands(job))
    return f"""\
# {words["name"]}: {template.about}

Try it on the sample, from the folder where you made this one (paths count from there):

```sh
{commands}
```

Your own data: {template.yours}
`job.yaml` says YOURS where there is something to change, and what each key does.

```sh
fastserve check {words["job"]}    # what is wrong, before anything starts
fastserve run {words["job"]} -n 4    # on four ranks; needs an MPI
```

{template.origin}
"""
