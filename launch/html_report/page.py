"""The page around a report: one file that loads nothing, and runs no other program."""

from __future__ import annotations

import base64
import hashlib
import time
from collections.abc import Sequence
from pathlib import Path

import fastserve

from ..output_file import replacing
from .markup import Html, Section, element

_HERE = Path(__file__).parent


def page(title: str, heading: Html, sections: Sequence[Section]) -> str:
    """Return a whole HTML document.

    Its policy lets a browser load nothing from anywhere, and run no script but ours,
    whatever is in a text of the run.
    """
    style = (_HERE / "page.css").read_text("utf-8")
    program = (_HERE / "page.js").read_text("utf-8")
    digest = base64.b64encode(hashlib.sha256(program.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; "
        "base-uri 'none'; form-action 'none'"
    )
    links = [element("a", part.title, href=f"#{part.place}") for part in sections]
    parts = [
        element("section", element("h2", part.title), part.content, id=part.place)
        for part in sections
    ]
    made = time.strftime("%Y-%m-%d %H:%M:%S %z")
    foot = f"made by fastserve {fastserve.__version__}, {made}"
    head = element(
        "head",
        Html('<meta charset="utf-8">'),
        Html('<meta name="viewport" content="width=device-width, initial-scale=1">'),
        Html(f'<meta http-equiv="Content-Security-Policy" content="{policy}">'),
        element("title", title),
        Html(f"<style>{style}</style>"),
    )
    body = element(
        "body",
        element("header", heading, element("nav", *links)),
        element("main", *parts),
        element("footer", foot),
        Html(f"<script>{program}</script>"),
    )
    return f"<!DOCTYPE html>\n{element('html', head, body, lang='en')}\n"


def write(path: Path, text: str) -> None:
    """Write the page; raises CheckpointError if that can't be."""
    with replacing(path, "report") as part:
        part.write_bytes(text.encode("utf-8", errors="replace"))
