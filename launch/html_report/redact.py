"""Takes secrets out of what a report shows, because reports are handed on."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from fastserve.environment import NUMERIC_VARIABLES

HIDDEN = "(hidden)"
_NAME = (
    r"(?:(?i:[\w.-]*(?:passw(?:or)?d|passphrase|secret|credential|api[_-]?key|"
    r"(?:access|account|private|signing)[_-]?key)\w*|"
    r"(?:[\w.-]*[_-])?(?:access|api|auth|bearer|hf|hub|refresh|session)[_-]?token)|"
    r"[A-Z0-9_]*TOKEN)"
)
_VALUE = r"(?:\"[^\"]*\"|'[^']*'|\{[^}]*\}|[^\s,;\"']+)"
_SECRET_NAME = re.compile(_NAME)
_RULES = (
    (re.compile(rf"(\blaunch\.env[\w.]*=){_VALUE}"), rf"\1{HIDDEN}"),
    (re.compile(rf"(\b{_NAME}[\"']?\s*[=:]\s*){_VALUE}"), rf"\1{HIDDEN}"),
    (re.compile(r"(://)[^\s/@]+@"), rf"\1{HIDDEN}@"),
    (re.compile(r"(?i)(\b(?:bearer|basic)\s+)[\w.~+/=-]{8,}"), rf"\1{HIDDEN}"),
    # keys that are known by how they begin
    (
        re.compile(
            r"\b(?:hf_\w{16,}|gh[pousr]_\w{16,}|github_pat_\w{16,}|glpat-[\w-]{16,}|"
            r"sk-[\w-]{16,}|xox[abp]-[\w-]{8,}|AKIA[0-9A-Z]{16})"
        ),
        HIDDEN,
    ),
    (
        re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END[^\n]*|\Z)", re.S),
        HIDDEN,
    ),
)
_SHORTEST = 4  # letters of a value that is looked for in other texts


class Redactor:
    """Hides secrets: by the name that they have, by their form, and wherever the values
    of a job's ``launch.env`` come again, but of those that numerics depend on.

    Args:
        jobs: configs of runs, as plain values.
    """

    def __init__(self, jobs: Iterable[dict[str, Any]] = ()) -> None:
        values = set[str]()
        for job in jobs:
            launch = job.get("launch")
            env = launch.get("env") if isinstance(launch, dict) else None
            for name, value in env.items() if isinstance(env, dict) else ():
                if name not in NUMERIC_VARIABLES:
                    values.add(str(value))
        known = sorted(
            (v for v in values if len(v) >= _SHORTEST), key=len, reverse=True
        )
        self._known = re.compile("|".join(map(re.escape, known))) if known else None

    def text(self, text: str) -> str:
        if self._known is not None:
            text = self._known.sub(HIDDEN, text)
        for rule, instead in _RULES:
            text = rule.sub(instead, text)
        return text

    def tree(self, value: Any, name: str = "") -> Any:
        """Return plain values (of YAML or JSON) without the secrets in them."""
        if isinstance(value, dict):
            if name == "env":
                return {str(key): HIDDEN for key in value}
            return {str(key): self.tree(v, str(key)) for key, v in value.items()}
        if isinstance(value, list):
            return [self.tree(v, name) for v in value]
        if value is not None and _SECRET_NAME.fullmatch(name):
            return HIDDEN
        if isinstance(value, str):
            if value.startswith("launch.env"):  # a whole word of a command
                return value.partition("=")[0] + f"={HIDDEN}"
            return self.text(value)
        return value
