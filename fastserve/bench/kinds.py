"""The kinds of jobs that the cases of ``fastserve bench layers`` are.

By its kind a job gets the kernels of its matrix products (``launch/blas.py``), before
NumPy is loaded; so this module doesn't load it.
"""

from __future__ import annotations

from collections.abc import Sequence

KINDS = {
    "": ("mlp", "mlp-fit", "small-fit"),
    "convolution": ("conv-26", "conv-32", "conv-16", "lenet", "cnn", "resnet"),
    "recurrent": ("lstm-128", "lstm-256", "gru-128", "gru-256", "classifier"),
}


def by_kind(names: Sequence[str]) -> dict[str, list[str]]:
    """Return the names of cases by their kind, all if there are none.

    One that isn't known is of the kind that has no name.
    """
    kinds = {name: kind for kind, cases in KINDS.items() for name in cases}
    found: dict[str, list[str]] = {}
    for name in names or kinds:
        found.setdefault(kinds.get(name, ""), []).append(name)
    return found
