"""HTML in which every text is escaped, unless it is made here."""

from __future__ import annotations

import html
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any


class Html(str):
    """A text that is HTML already; any other text is escaped where it is put in."""


def element(name: str, *children: str | None, **attributes: Any) -> Html:
    """Return an element; ``class_`` is the attribute class, and _ in names is -.

    Children and attributes that are None are left out; True is an attribute's name.
    """
    words = [name]
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        key = key.rstrip("_").replace("_", "-")
        words.append(key if value is True else f'{key}="{html.escape(str(value))}"')
    inner = "".join(map(escape, children))
    return Html(f"<{' '.join(words)}>{inner}</{name}>")


def escape(text: str | None) -> str:
    if text is None:
        return ""
    return text if isinstance(text, Html) else html.escape(text)


def join(parts: Iterable[str | None]) -> Html:
    return Html("".join(map(escape, parts)))


def data(value: Any, class_: str) -> Html:
    """Return JSON that the page's program reads; nothing in it can end the element."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    for sign in "<>&":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return Html(f'<script type="application/json" class="{class_}">{text}</script>')


def table(
    head: Sequence[str], rows: Iterable[Sequence[str]], numbers: Sequence[int] = ()
) -> Html:
    """Return a table that scrolls by itself; ``numbers`` are columns to align right."""
    kinds = ["number" if i in numbers else None for i in range(len(head))]
    cells = zip(head, kinds, strict=True)
    top = element("tr", *(element("th", c, class_=k, scope="col") for c, k in cells))
    above = element("thead", top) if any(head) else None
    body = [
        element("tr", *(element("td", c, class_=k) for c, k in zip(row, kinds)))  # noqa: B905
        for row in rows
    ]
    whole = element("table", above, element("tbody", *body))
    return element("div", whole, class_="wide", tabindex="0")


@dataclass(frozen=True)
class Section:
    """A part of the page under a heading."""

    title: str
    content: Html

    @property
    def place(self) -> str:
        return self.title.lower().replace(" ", "-")


def section(title: str, *children: str | None, note: str = "") -> Section:
    above = element("p", note, class_="note") if note else None
    return Section(title, join((above, *children)))
