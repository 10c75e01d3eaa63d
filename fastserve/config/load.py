"""From a job file and ``--set`` overrides to a Job, and back to YAML."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import Any

from ..errors import ConfigError
from .checks import check
from .explain import JobData
from .faults import Faults, Path, show
from .schema import Job
from .starting import take_over
from .strict_yaml import MAX_BYTES, MAX_DEPTH, dump_yaml, parse

_KEY = re.compile(r"[\w-]+(\.[\w-]+)*")


def load_job(
    path: str | os.PathLike[str], overrides: Sequence[str] = (), *, files: bool = True
) -> Job:
    """Return the job of a YAML file, with overrides such as ``train.steps=50``.

    Paths in the job count from the working folder. ``files=False`` doesn't look whether
    they exist, for jobs that have run already. Raises ConfigError with all faults, each
    as ``line N: key.path: expected …, received …``.
    """
    data, lines, faults = parse(_read(path))
    where: dict[Path, int | None] = dict(lines)
    if isinstance(data, dict):
        for override in overrides:
            _override(data, where, faults, override)
    elif not faults:
        expected = "a mapping with the keys of a job"
        faults.add((), expected, "an empty file" if data is None else show(data))
    job = None
    if isinstance(data, dict):
        if files:
            take_over(data, faults)
        raw = JobData(data)
        job = raw.validate(faults)
        check(raw, faults, files)
    faults.check(os.fspath(path), where)
    assert job is not None, "pydantic refused a job without giving a fault"
    return job


def dump_job(job: Job) -> str:
    """Return the whole job as YAML, defaults included; ``load_job`` reads it back."""
    return dump_yaml(job.model_dump(mode="json"))


def _read(path: str | os.PathLike[str]) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        fault = f"expected a file that can be read, received: {reason}"
        raise ConfigError(os.fspath(path), [fault]) from error


def _override(
    data: dict[str, Any], where: dict[Path, int | None], faults: Faults, override: str
) -> None:
    """Put the value of ``a.b=value`` into the data, and note that it came so."""
    key, equals, text = override.partition("=")
    if not equals or not _KEY.fullmatch(key):
        where[(override,)] = None
        faults.add((override,), "an override of the form key.path=value", show(key))
        return
    names = key.split(".")
    value, lines, found = parse(text)
    section, path = _section(data, where, names[:-1])
    last = _part(section, names[-1])
    path = (*path, last)
    _forget(where, path)
    faults.merge(found, path)
    if len(path) + max(map(len, lines), default=0) >= MAX_DEPTH:
        faults.add(path, f"a nesting of at most {MAX_DEPTH}", "a deeper one")
    elif isinstance(section, dict) or isinstance(last, int):
        section[last] = value
    else:
        faults.add(path, f"a section or list around {last!r}", show(section))


def _section(
    data: dict[str, Any], where: dict[Path, int | None], names: list[str]
) -> tuple[Any, Path]:
    """Go into the named sections, making those that aren't there.

    Returns what was found, which isn't a section if a name leads nowhere.
    """
    node: Any = data
    path: Path = ()
    for name in names:
        part = _part(node, name)
        if not isinstance(node, dict) and isinstance(part, str):
            break
        path = (*path, part)
        if isinstance(node, dict) and node.get(part) is None:
            node[part] = {}
            where[path] = None
        node = node[part]
    return node, path


def _part(node: Any, name: str) -> str | int:
    """Return a list's index for a name that is one, else the name."""
    is_index = isinstance(node, list) and re.fullmatch("[0-9]{1,9}", name)
    return int(name) if is_index and int(name) < len(node) else name


def _forget(where: dict[Path, int | None], path: Path) -> None:
    """Let everything at ``path`` have come from the command line."""
    for known in [known for known in where if known[: len(path)] == path]:
        del where[known]
    where[path] = None
