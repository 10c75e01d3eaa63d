"""``fastserve datasets``: which data sets are here, and how to get the others."""

from __future__ import annotations

from fastserve.errors import DataError


def listing() -> str:
    """Return each data set with its place, or the command that gets it."""
    from fastserve.data.datasets import ALL, find

    lines = []
    for known in ALL:
        try:
            place = f"found    {find(known)}"
        except DataError:
            place = f"missing  {known.get}"
        lines += [f"{known.name:<15} {known.about}", f"{'':15} {place}"]
    return "\n".join(lines)


def commands() -> str:
    """Return the commands that get what is missing, a line each, for a shell."""
    from fastserve.data.datasets import ALL, find

    wanted = []
    for known in ALL:
        try:
            find(known)
        except DataError:
            wanted.append(known.get)
    return "\n".join(dict.fromkeys(wanted))
