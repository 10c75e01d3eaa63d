"""Small real data for ``fastserve new``, made from what every Python carries.

Each function returns the files of a sample: their names in the folder, and their bytes.
The same Python gives the same files.
"""

from __future__ import annotations

import ast
import csv
import io
import math
import random
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path

from fastserve.errors import DataError

Files = dict[str, bytes]
Function = ast.FunctionDef | ast.AsyncFunctionDef
CHARACTERS = 300_000
PICTURES = 120  # of each shape
SIDE = 32  # pixels
_TOPICS = {
    "network": "email ftplib http imaplib poplib smtplib socket socketserver ssl "
    "urllib xmlrpc",
    "numbers": "_pydatetime _pydecimal calendar colorsys datetime decimal fractions "
    "numbers random statistics",
    "processes": "asyncio concurrent multiprocessing queue sched selectors signal "
    "subprocess threading",
    "files": "bz2 csv fileinput filecmp gzip lzma os pathlib shutil tarfile tempfile "
    "zipfile _pyio",
}


def text() -> Files:
    """The beginning of Python's own help texts, for a language model."""
    from fastserve.data.text import load_text

    return {"text.txt": load_text("pydoc-topics")[:CHARACTERS].encode()}


def images() -> Files:
    """Grey pictures of drawn shapes, a folder for each, and six to predict."""
    draw = random.Random(1)
    files = {}
    for name, inside in _SHAPES.items():
        for number in range(PICTURES + 2):
            place = f"images/{name}/{number:03}.pgm"
            if number >= PICTURES:
                place = f"to-predict/{name}-{number - PICTURES + 1}.pgm"
            files[place] = _picture(inside, draw)
    return files


def texts() -> Files:
    """Docstrings of the standard library, with what their module is for."""
    rows = []
    for topic in _TOPICS:
        for tree in _modules(topic):
            for node in ast.walk(tree):
                if isinstance(node, (ast.Module, ast.ClassDef, *_FUNCTIONS)):
                    words = (ast.get_docstring(node) or "").split()
                    if len(words) >= 8:
                        rows.append((" ".join(words[:80]), topic))
    rows = sorted(set(rows))
    _enough(len(rows))
    random.Random(1).shuffle(rows)
    unseen, rows = rows[:5], rows[5:]
    return {
        "texts.csv": _csv([("text", "label"), *rows]),
        "to-predict.txt": "".join(f"{words}\n" for words, _ in unseen).encode(),
    }


def table() -> Files:
    """Functions of the standard library: their size, and whether they are explained."""
    rows = []
    for topic in _TOPICS:
        for tree in _modules(topic):
            for parent in ast.walk(tree):
                for node in ast.iter_child_nodes(parent):
                    if isinstance(node, _FUNCTIONS):
                        rows.append(_measured(node, parent, topic))
    rows = sorted(set(rows))
    _enough(len(rows))
    random.Random(1).shuffle(rows)
    unseen, rows = [row[:-1] for row in rows[:5]], rows[5:]
    return {
        "table.csv": _csv([_COLUMNS, *rows]),
        "to-predict.csv": _csv([_COLUMNS[:-1], *unseen]),
    }


_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
_COLUMNS = (
    "topic",
    "kind",
    "name_length",
    "underscores",
    "lines",
    "arguments",
    "defaults",
    "decorator",
    "calls",
    "returns",
    "calls_per_line",
    "documented",
)


def _measured(node: Function, parent: ast.AST, topic: str) -> tuple[str, ...]:
    documented = ast.get_docstring(node) is not None
    body = node.body[1:] if documented else node.body  # the rest mustn't tell
    inside = [one for statement in body for one in ast.walk(statement)]
    lines = 1 + sum((one.end_lineno or 0) - one.lineno + 1 for one in body)
    calls = sum(isinstance(one, ast.Call) for one in inside)
    first = next(iter(node.decorator_list), None)
    decorator = ast.unparse(first).split("(")[0].rpartition(".")[2] if first else "none"
    known = ("none", "property", "classmethod", "staticmethod")
    return (
        topic,
        "method" if isinstance(parent, ast.ClassDef) else "function",
        str(len(node.name)),
        str(len(node.name) - len(node.name.strip("_"))),
        str(lines),
        str(len(node.args.args) + len(node.args.kwonlyargs)),
        str(len(node.args.defaults)),
        decorator if decorator in known else "other",
        str(calls),
        str(sum(isinstance(one, ast.Return) for one in inside)),
        f"{calls / (lines - 1):.2f}" if body else "",  # nothing: a missing value
        "yes" if documented else "no",
    )


def _modules(topic: str) -> Iterator[ast.Module]:
    library = Path(sysconfig.get_paths()["stdlib"])
    for name in _TOPICS[topic].split():
        folder, file = library / name, library / f"{name}.py"
        found = sorted(folder.rglob("*.py")) if folder.is_dir() else [file]
        for path in found:
            if path.is_file():
                yield ast.parse(path.read_bytes())


def _enough(rows: int) -> None:
    if rows < 500:
        raise DataError(
            "expected the source of Python's standard library, to make a sample of",
            f"{rows} rows from {sysconfig.get_paths()['stdlib']}",
            "use a Python that has its library as .py files",
        )


def _csv(rows: list[tuple[str, ...]]) -> bytes:
    file = io.StringIO(newline="")
    csv.writer(file, lineterminator="\n").writerows(rows)
    return file.getvalue().encode()


def _circle(x: float, y: float) -> bool:
    return math.hypot(x, y) < 0.8


def _square(x: float, y: float) -> bool:
    return max(abs(x), abs(y)) < 0.7


def _triangle(x: float, y: float) -> bool:
    turns = (math.tau * third / 3 for third in range(3))
    return all(x * math.sin(turn) + y * math.cos(turn) < 0.5 for turn in turns)


_SHAPES = {"circle": _circle, "square": _square, "triangle": _triangle}


def _picture(inside: Callable[[float, float], bool], draw: random.Random) -> bytes:
    """Return a PGM of a shape of random place, size, turn and shade, with noise."""
    size = draw.uniform(7, 12)  # pixels from its middle
    left, top = (draw.uniform(size, SIDE - size) for _ in range(2))
    turn = draw.uniform(-0.3, 0.3)
    ground = draw.uniform(20, 100)
    shade = ground + draw.uniform(60, 130)
    pixels = bytearray()
    for row in range(SIDE):
        for column in range(SIDE):
            x, y = (column - left) / size, (row - top) / size
            across = x * math.cos(turn) - y * math.sin(turn)
            down = x * math.sin(turn) + y * math.cos(turn)
            value = draw.gauss(shade if inside(across, down) else ground, 15)
            pixels.append(min(255, max(0, round(value))))
    return b"P5 %d %d 255\n" % (SIDE, SIDE) + bytes(pixels)
