"""What of a command may be shown, and kept where others can read it."""

from __future__ import annotations

from collections.abc import Sequence


def public_command(words: Sequence[str]) -> list[str]:
    """Return a command without the values of launch.env: they may be secrets, and a run
    folder may be shared."""
    return [_public(word) for word in words]


def _public(word: str) -> str:
    """Hide the value of an override of launch.env, or of the whole section."""
    head = "--set=" if word.startswith("--set=") else ""
    key, equals, _ = word.removeprefix(head).partition("=")
    hidden = key == "launch" or key.split(".")[:2] == ["launch", "env"]
    return f"{head}{key}=..." if equals and hidden else word
