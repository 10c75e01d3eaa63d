"""``fastserve prepare``: text, JSONL or folders of them become a folder of token files.

The text is cut into parts by its length alone, each becomes one shard, and the ranks
take turns at the parts. So the result is the same for any number of ranks, and after a
restart: shards that are complete are kept. All is made in ``FOLDER.unfinished``, which
is renamed once it is complete. A rank holds about 2 MiB of text at a time, or a line of
JSONL; a tokenizer is trained from a sample.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, TypeVar

import numpy as np

from fastserve.comm import Communicator, init
from fastserve.core import Array
from fastserve.errors import DataError, FastserveError

from .documents import (
    LEAST_PART,
    MOST_PARTS,
    Input,
    Part,
    Reader,
    find_inputs,
    make_folder,
    make_parts,
    write_json,
    writing,
)
from .token_files import DTYPES, FORMAT, MANIFEST, PARTS, TOKENIZER, VERSION
from .tokenizers import (
    BPETokenizer,
    ByteTokenizer,
    CharTokenizer,
    Tokenizer,
    load_tokenizer,
    tokenizer_from_json,
)

VOCAB_SIZE = 8192
SAMPLE_BYTES = 16_000_000  # from which a tokenizer is trained
_USAGE = 2
_REPORT = 2.0  # seconds between lines of progress
_T = TypeVar("_T")


@dataclass
class Checked:
    """What is found in a part when it is read for the first time."""

    bytes: int = 0
    documents: int = 0
    characters: set[str] = field(default_factory=set)


class _Agreed(Exception):
    """An error that all ranks know of; rank 0 says it."""


def check_part(reader: Reader, part: Part, characters: bool) -> Checked:
    """Read a part for the first time: it has to be text all through."""
    found = Checked()
    for text, ends in reader.pieces(part):
        found.bytes += len(text.encode())
        found.documents += ends
        if characters:
            found.characters |= set(text)
    return found


def sample(reader: Reader, parts: Sequence[Part], most: int) -> Iterator[str]:
    """Yield pieces of the training text, spread evenly, of about ``most`` bytes."""
    training = [part for part in parts if part.split == "train"]
    share = min(1.0, most / max(1, sum(part.bytes for part in training)))
    seen = taken = 0
    for part in training:
        for text, _ in reader.pieces(part):
            seen += len(text)
            if text and taken <= seen * share:
                taken += len(text)
                yield text


# -- writing --------------------------------------------------------------------------


class Work:
    """The folder in which the result is made, ``FOLDER.unfinished``.

    ``state/`` in it holds the plan, a record of each complete shard, and a lock.
    """

    def __init__(self, target: Path) -> None:
        self.target = target
        self.folder = target.with_name(f"{target.name}.unfinished")
        self.state = self.folder / "state"

    def lock(self) -> IO[bytes]:
        """Keep others from working on the same folder, until this process ends."""
        make_folder(self.state)
        lock = (self.state / "lock").open("wb")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            raise DataError(
                f"expected to be the only one that prepares {self.target}",
                f"another process works on {self.folder}",
                "wait for it, or choose another folder",
            ) from None
        except OSError:
            pass  # a file system without locks
        return lock

    def begin(self, plan: dict[str, Any]) -> bool:
        """Return whether there is a start of the same plan; remove one of another."""
        path = self.state / "plan.json"
        plan = json.loads(json.dumps(plan))
        try:
            if json.loads(path.read_text("utf-8")) == plan:
                return True
        except (OSError, ValueError):
            pass
        for old in [*self.folder.iterdir(), *self.state.iterdir()]:
            if old.is_file() and old.name != "lock" and old.name[:7] != "source-":
                old.unlink()
        write_json(path, plan)
        return False

    def shard(self, part: Part, dtype: str) -> Path:
        bits = np.dtype(DTYPES[dtype]).itemsize * 8
        return self.folder / f"{part.split}-{part.number:05}.u{bits}.bin"

    def record(self, part: Part, dtype: str) -> dict[str, Any] | None:
        """Return what was noted of a shard that is complete, else None."""
        path = self.shard(part, dtype)
        try:
            record = json.loads((self.state / f"{path.name}.json").read_text("utf-8"))
            size = path.stat().st_size
        except (OSError, ValueError):
            return None
        whole = size == record["tokens"] * np.dtype(DTYPES[dtype]).itemsize
        return dict(record) if whole else None

    def finish(self, overwrite: bool) -> None:
        """Give the complete folder its name."""
        old = self.target.with_name(f"{self.target.name}.old")
        try:
            if overwrite and self.target.exists():
                shutil.rmtree(old, ignore_errors=True)
                self.target.rename(old)
            self.folder.rename(self.target)
        except OSError as error:
            raise DataError(
                f"expected to be able to rename {self.folder} to {self.target}",
                f"{error.strerror}",
                "choose another folder, or remove what is there",
            ) from None
        shutil.rmtree(self.target / "state")
        for source in self.target.glob("source-*.txt"):
            source.unlink()
        shutil.rmtree(old, ignore_errors=True)


def encode_part(
    reader: Reader, part: Part, tokenizer: Tokenizer, dtype: str, work: Work
) -> None:
    """Write the shard of a part, then its record."""
    behind = ending(tokenizer)
    path, digest = work.shard(part, dtype), hashlib.sha256()
    tokens = 0
    with writing(path) as file:
        for text, ends in reader.pieces(part):
            found = tokenizer.encode(text)
            for array in (found, behind) if ends else (found,):
                data = array.astype(DTYPES[dtype]).tobytes()
                digest.update(data)
                file.write(data)
                tokens += len(array)
    record = {"file": path.name, "tokens": tokens, "sha256": digest.hexdigest()}
    write_json(work.state / f"{path.name}.json", record)


def ending(tokenizer: Tokenizer) -> Array:
    """Return what stands behind each document: the end token, else a line end."""
    if tokenizer.end is not None:
        return np.array([tokenizer.end])
    return tokenizer.encode("\n")


# -- all together ---------------------------------------------------------------------


def prepare(options: argparse.Namespace, comm: Communicator) -> str:
    """Prepare the inputs on all ranks; return the report (on all ranks)."""
    with ExitStack() as locks:
        return _prepare(options, comm, locks)


def _prepare(options: argparse.Namespace, comm: Communicator, locks: ExitStack) -> str:
    work = Work(Path(options.to).absolute())
    given, inputs, parts = _on_first(comm, lambda: _plan(options, work))
    whole = given is not None and not given.may_be_cut
    reader = Reader(inputs, options.jsonl_key, options.errors, whole)
    characters = options.tokenizer == "char" or isinstance(given, CharTokenizer)
    mine = range(comm.rank, len(parts), comm.size)

    def check() -> dict[int, Checked]:
        return {i: check_part(reader, parts[i], characters) for i in mine}

    checked: dict[int, Checked] = {}
    for found in _on_all(comm, check):
        checked.update(found)

    def begin() -> Any:
        _check_whole(parts, checked, given, options.validation_split)
        locks.enter_context(work.lock())
        again = work.begin(_description(options, inputs, given))
        _say(_found(checked, inputs) + (f", going on in {work.folder}" * again))
        return _tokenizer(options, given, reader, parts, checked, work).to_json()

    tokenizer = tokenizer_from_json(_on_first(comm, begin))
    dtype = "uint16" if tokenizer.vocab_size <= 1 << 16 else "uint32"

    def encode() -> None:
        progress = _Progress(sum(parts[i].bytes for i in mine), comm)
        for i in mine:
            kept = work.record(parts[i], dtype) is not None
            if not kept:
                encode_part(reader, parts[i], tokenizer, dtype, work)
            progress.add(parts[i].bytes, kept)

    _on_all(comm, encode)

    def finish() -> str:
        manifest = _manifest(parts, checked, tokenizer, dtype, work)
        write_json(work.folder / MANIFEST, manifest)
        work.finish(options.overwrite)
        return _report(options.to, manifest)

    return _on_first(comm, finish)


def _plan(
    options: argparse.Namespace, work: Work
) -> tuple[Tokenizer | None, list[Input], list[Part]]:
    """Return the tokenizer, if it needs no training, the inputs and the parts."""
    if not 0 <= options.validation_split < 1:
        raise DataError(
            "--validation-split: expected a number from 0 to below 1",
            str(options.validation_split),
        )
    target = work.target
    if target.exists() and not options.overwrite:
        if not target.is_dir() or any(target.iterdir()):
            raise DataError(
                "--to: expected a new folder",
                f"{target}, which is there",
                "choose another, or replace it with --overwrite",
            )
    elif target.exists() and not (target / MANIFEST).is_file():
        raise DataError(
            f"--overwrite: expected a folder with a {MANIFEST} to replace",
            f"{target} without one",
            "choose another folder",
        )
    if options.vocab_size is not None and options.tokenizer != "bpe":
        raise DataError(
            "--vocab-size: expected with --tokenizer bpe only",
            f"--tokenizer {options.tokenizer}",
            "leave --vocab-size out: this tokenizer has its own",
        )
    given: Tokenizer | None = None
    if options.tokenizer == "byte":
        given = ByteTokenizer()
    elif options.tokenizer == "bpe":
        BPETokenizer.train([], options.vocab_size or VOCAB_SIZE)  # could it be done?
    elif options.tokenizer != "char":
        given = load_tokenizer(options.tokenizer)
    inputs = find_inputs(options.inputs, work.folder)
    whole = given is not None and not given.may_be_cut
    return given, inputs, make_parts(inputs, options.validation_split, whole)


def _description(
    options: argparse.Namespace, inputs: Sequence[Input], given: Tokenizer | None
) -> dict[str, Any]:
    """Return what the result depends on."""
    return {
        "version": VERSION,
        "inputs": [one.key for one in inputs],
        "tokenizer": given.to_json() if given else options.tokenizer,
        "vocab_size": options.vocab_size,
        "validation_split": options.validation_split,
        "jsonl_key": options.jsonl_key,
        "errors": options.errors,
        "sizes": [LEAST_PART, MOST_PARTS, SAMPLE_BYTES],
    }


def _check_whole(
    parts: Sequence[Part],
    checked: dict[int, Checked],
    given: Tokenizer | None,
    validation_split: float,
) -> None:
    """Raise DataError if there is nothing, or what the tokenizer doesn't know."""
    for split in PARTS if validation_split else PARTS[:1]:
        if not sum(checked[i].bytes for i, p in enumerate(parts) if p.split == split):
            part = "training" if split == "train" else split
            raise DataError(
                f"expected text for {part}",
                "none",
                "give more text, or change --validation-split"
                if validation_split
                else "give files that aren't empty",
            )
    if isinstance(given, CharTokenizer):
        known = set(given.characters)
        for found in checked.values():
            given.encode("".join(sorted({"\n", *found.characters} - known)))


def _tokenizer(
    options: argparse.Namespace,
    given: Tokenizer | None,
    reader: Reader,
    parts: Sequence[Part],
    checked: dict[int, Checked],
    work: Work,
) -> Tokenizer:
    """Return the tokenizer: that of a start before this one, or a new one."""
    path = work.folder / TOKENIZER
    if path.is_file():
        return load_tokenizer(path)
    if given is not None:
        made = given
    elif options.tokenizer == "char":
        characters = {"\n"}.union(*(found.characters for found in checked.values()))
        made = CharTokenizer("".join(sorted(characters)))
    else:
        start = time.perf_counter()
        texts = sample(reader, parts, SAMPLE_BYTES)
        made = BPETokenizer.train(texts, options.vocab_size or VOCAB_SIZE)
        seconds = time.perf_counter() - start
        _say(f"trained a tokenizer of {made.vocab_size:,} tokens in {seconds:.1f} s")
    write_json(path, made.to_json())
    return made


def _manifest(
    parts: Sequence[Part],
    checked: dict[int, Checked],
    tokenizer: Tokenizer,
    dtype: str,
    work: Work,
) -> dict[str, Any]:
    manifest: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "dtype": dtype,
        "vocab_size": tokenizer.vocab_size,
        "end": tokenizer.end,
        "tokenizer": TOKENIZER,
    }
    for split in PARTS:
        numbers = [i for i, part in enumerate(parts) if part.split == split]
        shards = [work.record(parts[i], dtype) for i in numbers]
        if None in shards:
            raise DataError(
                "expected all shards in one folder",
                f"{shards.count(None)} aren't in {work.folder}",
                "choose a folder that all hosts share",
            )
        if shards:
            manifest[split] = {
                "tokens": sum(shard["tokens"] for shard in shards if shard),
                "bytes": sum(checked[i].bytes for i in numbers),
                "documents": sum(checked[i].documents for i in numbers),
                "shards": shards,
            }
    return manifest


def _found(checked: dict[int, Checked], inputs: Sequence[Input]) -> str:
    size = sum(found.bytes for found in checked.values())
    documents = sum(found.documents for found in checked.values())
    plural = "s" if len(inputs) != 1 else ""
    return (
        f"{len(inputs):,} file{plural}, {size / 1e6:,.1f} MB of text, "
        f"documents: {documents:,}"
    )


def _report(to: str, manifest: dict[str, Any]) -> str:
    lines = []
    for split in PARTS:
        part = manifest.get(split)
        if part:
            lines.append(
                f"{split:10} {part['tokens']:,} tokens, "
                f"{part['bytes'] / part['tokens']:.3f} bytes each, "
                f"shards: {len(part['shards'])}"
            )
    held = f", validation: {to}" if "validation" in manifest else ""
    lines.append(f"vocabulary {manifest['vocab_size']:,}")
    lines.append(f"use        data: {{type: tokens, train: {to}{held}}}")
    return "\n".join(lines)


class _Progress:
    """Lines on standard error of rank 0, about its share of the text."""

    def __init__(self, total: int, comm: Communicator) -> None:
        self._total, self._comm = total, comm
        self._start = self._last = time.perf_counter()
        self._done = self._made = 0

    def add(self, size: int, kept: bool) -> None:
        self._done += size
        self._made += 0 if kept else size
        now = time.perf_counter()
        last = self._done == self._total
        if self._comm.rank or (now - self._last < _REPORT and not last):
            return
        self._last = now
        rate = self._made / max(1e-9, now - self._start)
        ranks = self._comm.size
        each = " rank 0's" if ranks > 1 else ""
        left = (self._total - self._done) / rate if rate else 0.0
        _say(
            f"encoded {self._done / 1e6:,.1f} of{each} {self._total / 1e6:,.1f} MB, "
            f"{rate * ranks / 1e6:.2f} MB/s, {left:.0f} s left"
        )


def _on_all(comm: Communicator, work: Callable[[], _T]) -> list[_T]:
    """Return every rank's result on all ranks; an error of one is one of all."""
    outcome: tuple[bool, Any]
    try:
        outcome = (True, work())
    except FastserveError as error:
        outcome = (False, str(error))
    outcomes = comm.broadcast_obj(comm.gather_obj(outcome))
    for good, result in outcomes:
        if not good:
            raise _Agreed(result)
    return [result for _, result in outcomes]


def _on_first(comm: Communicator, work: Callable[[], _T]) -> _T:
    """Return rank 0's result on all ranks."""
    found = _on_all(comm, lambda: work() if comm.rank == 0 else None)[0]
    assert found is not None
    return found


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m fastserve.data.prepare")
    parser.add_argument("inputs", nargs="+")
    parser.add_argument("--to", required=True)
    parser.add_argument("--tokenizer", default="bpe")
    parser.add_argument("--vocab-size", type=int)
    parser.add_argument("--validation-split", type=float, default=0.0)
    parser.add_argument("--jsonl-key", default="text")
    parser.add_argument("--errors", default="strict", choices=["strict", "replace"])
    parser.add_argument("--overwrite", action="store_true")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one rank of ``fastserve prepare``; return its exit status."""
    options = _parse(argv)
    comm = init()
    try:
        report = prepare(options, comm)
    except _Agreed as error:
        if comm.rank == 0:
            _say(str(error))
        return _USAGE
    except BaseException:  # noqa: BLE001  the other ranks wait for this one
        _say(traceback.format_exc())
        if comm.size > 1:
            comm.abort(1)
        return 1
    if comm.rank == 0:
        print(report, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
