"""Follows a page of the documentation as a reader would, in a folder.

Blocks run in order:

- ````` ```sh ````` is run by bash, which ends at the first command that fails.
- ````` ```yaml title="job.yaml" ````` (or ``python``, ``text``) is a file to save; a
  second block of that title goes to its end.
- ````` ```python ````` without a title is a program of its own.
- ````` ```text ````` is what the block before printed: see :func:`same_form`.

``<!-- not run: REASON -->`` before a block leaves it out; ``<!-- setup sh ... -->``
runs what a reader has or does by then and the page needn't show.

``python tests/pages.py docs/tutorials/NAME.md [FOLDER]`` follows a page in full and
shows what each block prints: what is pasted into the page.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

BLOCKS = re.compile(
    r"<!-- setup sh\n(?P<setup>.*?)-->"
    r"|(?P<skipped><!-- not run[^>]*-->\s*)?"
    r'^```(?P<language>\w+)(?: title="(?P<title>[^"]+)")?\n(?P<code>.*?)^```',
    re.S | re.M,
)
# runs a command and returns its status and all that it printed
Runner = Callable[[Sequence[str]], tuple[int, str]]


@dataclass
class Block:
    language: str
    title: str | None
    code: str
    line: int  # in the page


def blocks(text: str) -> Iterator[Block]:
    """Yield the blocks of a page that are run, saved or compared."""
    for found in BLOCKS.finditer(text):
        line = 1 + text.count("\n", 0, found.start())
        if found["setup"] is not None:
            yield Block("sh", None, found["setup"], line)
        elif found["skipped"] is None:
            yield Block(found["language"], found["title"], found["code"], line)


@dataclass
class Reader:
    """Follows a page.

    Attributes:
        printed: what each block that was run has printed, with its line in the page.
    """

    folder: Path
    runner: Runner
    printed: list[tuple[int, str]] = field(default_factory=list)

    def follow(self, text: str, results: bool = True) -> None:
        """Run all blocks; without ``results`` only the form of outputs is compared.

        Raises AssertionError for a command that fails, and for output that differs.
        """
        saved: set[str] = set()
        for block in blocks(text):
            where = f"the block of line {block.line}"
            if block.title:
                with open(
                    self.folder / block.title, "a" if block.title in saved else "w"
                ) as file:
                    file.write(block.code)
                saved.add(block.title)
            elif block.language in ("sh", "python"):
                status, out = self.runner(self._command(block))
                self.printed.append((block.line, out))
                assert status == 0, f"{where} ended with {status}:\n{out[-3000:]}"
            elif block.language == "text":
                difference = same_form(block.code, self.printed[-1][1], results)
                assert difference is None, f"{where}: {difference}"

    @staticmethod
    def _command(block: Block) -> list[str]:
        if block.language == "sh":
            return ["bash", "-euo", "pipefail", "-c", block.code]
        return ["python", "-c", block.code]


NUMBER = re.compile(r"-?\d[\d.,:]*(?:e[-+]?\d+)?[kMG%]?")
UNIT = re.compile(r"# ?(?:us|ms|s|min|h)\b")
RESULT = re.compile(r"((?:val_)?(?:loss|accuracy|perplexity)):? +([\d.]+\d)")
TOLERANCE = 0.1  # of a result: other versions, kernels and ranks round differently


def form(line: str) -> str:
    """Return a line without its numbers, units of time and additional spaces."""
    return UNIT.sub("# s", NUMBER.sub("#", " ".join(line.split())))


def same_form(expected: str, printed: str, results: bool = True) -> str | None:
    """Return None, or how what was printed differs from what a page shows.

    Each line of the page must have been printed, in this order, with any numbers; with
    ``results`` losses, accuracies and perplexities must be the page's within a tenth;
    without, lines of the same form need be there only once: fewer steps print fewer.
    A line ``...`` stands for any lines, and ``...`` at a line's end for any rest.
    """
    left, seen = printed.splitlines(), set[str]()
    for line in expected.splitlines():
        if line.strip() in ("", "...") or (not results and form(line) in seen):
            continue
        seen.add(form(line))
        alike = [n for n, found in enumerate(left) if has_form(line, found)]
        place = next((n for n in alike if not results or agree(line, left[n])), None)
        if place is None:
            what = "with these results " if alike else ""
            return f"no {line!r} {what}in its place in what was printed:\n{printed}"
        del left[: place + 1]
    return None


def has_form(wanted: str, found: str) -> bool:
    start = form(wanted.removesuffix(" ..."))
    whole = form(found)
    return whole == start or (wanted.endswith(" ...") and whole.startswith(start))


def agree(wanted: str, found: str) -> bool:
    """Return whether the results in two lines are about the same."""
    return all(
        abs(float(shown) - float(got)) <= TOLERANCE * float(shown)
        for (_, shown), (_, got) in zip(
            RESULT.findall(wanted), RESULT.findall(found), strict=False
        )
    )


def main() -> None:
    import subprocess

    page = Path(sys.argv[1]).resolve()
    folder = Path(sys.argv[2] if len(sys.argv) > 2 else ".")
    folder.mkdir(parents=True, exist_ok=True)

    def runner(command: Sequence[str]) -> tuple[int, str]:
        print("\n>>>", command[-1].strip(), flush=True)
        done = subprocess.run(
            command,
            cwd=folder,
            text=True,
            check=False,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        print(done.stdout, flush=True)
        return done.returncode, done.stdout

    Reader(folder, runner).follow(page.read_text("utf-8"))


if __name__ == "__main__":
    main()
