"""Searches for inputs that lead a reader into code that no input has reached before.

Usage: fuzz_coverage.py READER|all COUNT [SEED] [CORPUS]. The readers, and what is a
fault, are those of fuzz.py. Atheris (libFuzzer) starts from the sound file and keeps
each input that reaches a new branch of fastserve or launch, to change it further; with
CORPUS, a folder, these are kept for the next run. Prints what went wrong, and ends
with status 1 then.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import NoReturn

import atheris

with atheris.instrument_imports(include=["fastserve", "launch"]):
    import fuzz

MOST = 20  # faults, after which a run ends
LONGEST = 4096  # bytes of an input beyond the sound file's


class Search:
    """Counts what the fuzzer tries on a reader.

    Args:
        count: inputs to try; the fuzzer doesn't come back from its last one. SIGTERM
            ends it after fewer, and says how many.
    """

    def __init__(self, reader: str, count: int, folder: Path) -> None:
        self.reader, self.case = reader, fuzz.READERS[reader]()
        self._path, self._count = folder / self.case.name, count
        self._tried = self._refused = self._wrong = 0
        self._kinds: set[str] = set()
        self._start = time.perf_counter()
        signal.signal(signal.SIGTERM, lambda *_: self._end())

    def try_one(self, content: bytes) -> None:
        found = fuzz.examine(self.reader, self.case, self._path, content)
        self._tried += 1
        self._refused += found.refused
        if found.problem:
            self._wrong += 1
            if (kind := found.problem[:40]) not in self._kinds:
                self._kinds.add(kind)
                print(f"{self.reader} {self._tried}: {found.problem[:300]}")
                print(f"  {content[:1000]!r}")
        if self._tried == self._count or self._wrong == MOST:
            self._end()

    def _end(self) -> None:
        rate = self._tried / (time.perf_counter() - self._start)
        print(
            f"{self.reader}: {self._tried} inputs guided by coverage, {self._refused} "
            f"refused, {self._wrong} wrong, {rate:.0f} a second",
            flush=True,
        )
        os._exit(1 if self._wrong else 0)


def dictionary() -> str:
    """Return libFuzzer's dictionary of pieces that readers trip over."""
    lines = ("".join(f"\\x{byte:02x}" for byte in piece) for piece in fuzz.PIECES)
    return "".join(f'"{line}"\n' for line in lines)


def search(reader: str, count: int, seed: int, folder: Path, kept: Path) -> NoReturn:
    """Look for faults of a reader; ends the process."""
    (folder / "read").mkdir()
    (folder / "seeds").mkdir()
    (folder / "pieces").write_text(dictionary())
    kept.mkdir(parents=True, exist_ok=True)
    made = Search(reader, count, folder / "read")
    (folder / "seeds" / "sound").write_bytes(made.case.content)
    words = [
        f"-seed={seed + 1}",  # 0 is a random one
        f"-runs={count}",
        f"-timeout={int(20 * fuzz.SECONDS)}",  # of waiting, or of code in C
        f"-rss_limit_mb={fuzz.MEMORY >> 20}",
        f"-max_len={len(made.case.content) + LONGEST}",
        f"-dict={folder / 'pieces'}",
        "-handle_term=0",
        f"-artifact_prefix={folder}/fault-",
        "-verbosity=0",
        str(kept),
        str(folder / "seeds"),
    ]
    fuzz.strict()
    atheris.Setup([sys.argv[0], *words], made.try_one)
    atheris.Fuzz()
    raise AssertionError("the last input ends the process")


def run(reader: str, count: int, seed: int, corpus: Path | None) -> bool:
    """Return whether a reader is without fault."""
    with tempfile.TemporaryDirectory(dir=fuzz.FOLDER) as name:
        folder = Path(name)
        kept = corpus / reader if corpus else folder / "corpus"
        sys.stdout.flush()
        # libFuzzer ends its process, and to import with branches counted takes seconds
        if (child := os.fork()) == 0:
            search(reader, count, seed, folder, kept)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        for path in folder.glob("fault-*"):  # it hung, or took too much memory
            print(f"{reader}: {path.name}\n  {path.read_bytes()[:1000]!r}")
    if status not in (0, 1):
        print(f"{reader}: ended with status {status}")
    return status == 0


if __name__ == "__main__":
    name, number, *rest = sys.argv[1:]
    chosen = list(fuzz.READERS) if name == "all" else [name]
    seed, corpus = int(rest[0]) if rest else 0, Path(rest[1]) if rest[1:] else None
    sound = [run(reader, int(number), seed, corpus) for reader in chosen]
    sys.exit(0 if all(sound) else 1)
