"""Formulas in pages: ``$...$`` and ``$$...$$`` become MathML, which needs no script.

An extension of Python-Markdown. A formula that isn't understood ends the build.
"""

from __future__ import annotations

import re

from markdown import Markdown
from markdown.extensions import Extension
from markdown.inlinepatterns import InlineProcessor
from math_core import LatexToMathML

# between code in backticks (190), which keeps its dollars, and backslashes (180)
PRIORITY = 185
INLINE = r"(?<![\\$])\$(?![\s$])([^$\n]*[^$\s\\])\$(?![\d$])"
BLOCK = r"\$\$(.+?)\$\$"


class _Formula(InlineProcessor):
    def __init__(self, pattern: str, md: Markdown, block: bool) -> None:
        super().__init__(pattern, md)
        self.block = block
        self.converter = LatexToMathML(fancy_error=False)

    def handleMatch(self, m: re.Match[str], data: str) -> tuple[str, int, int]:
        made = self.converter.convert_with_local_state(
            m.group(1).strip(), displaystyle=self.block
        )
        if self.block:  # what is too wide for the window is scrolled by itself
            made = f'<span class="formula">{made}</span>'
        return self.md.htmlStash.store(made), m.start(), m.end()


class Formulas(Extension):
    def extendMarkdown(self, md: Markdown) -> None:
        md.inlinePatterns.register(_Formula(BLOCK, md, True), "formulas", PRIORITY + 1)
        md.inlinePatterns.register(_Formula(INLINE, md, False), "formula", PRIORITY)


def makeExtension(**options: object) -> Formulas:
    return Formulas(**options)
