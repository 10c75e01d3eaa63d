"""From examples to the sources of the training, validation and test parts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from fastserve.core import Array
from fastserve.data.examples import Examples
from fastserve.data.preprocessing import Preprocessing
from fastserve.data.sources import Source
from fastserve.data.splits import Split, copies, split
from fastserve.data.targets import Classes

_MANY_COPIES = 0.1  # of the samples: few inputs that come often, not copies


@dataclass(frozen=True)
class Shares:
    """How examples are divided; the names are those of the job's keys."""

    validation_split: float = 0.0
    test_split: float = 0.0
    split_seed: int = 0
    drop_duplicates: bool = False


@dataclass
class Parts:
    """Sources of the three parts, and what is worth telling about them."""

    train: Source
    validation: Source | None
    test: Source | None
    preprocessing: Preprocessing
    notes: list[str] = field(default_factory=list)

    @property
    def counts(self) -> str:
        """Say how many samples each part has."""
        shown = f"{self.train.samples:,} samples"
        for part, use in ((self.validation, "validate"), (self.test, "test")):
            shown += f", {part.samples:,} to {use}" if part else ""
        return shown


def divide(
    examples: Examples,
    shares: Shares,
    others: dict[str, Callable[[Preprocessing], Examples]],
    fitted: bool = False,
) -> Parts:
    """Return the parts of ``examples``, which are fitted to the training part.

    Args:
        others: what opens examples of their own for 'validation' or 'test', encoded
            as the training part is; such a part isn't taken out of ``examples``.
        fitted: the examples were made with a run's preprocessing already.
    """
    rows = np.arange(examples.samples)
    notes, first = [], None
    if shares.drop_duplicates or shares.validation_split or shares.test_split:
        first = copies(examples.digests())
        twice = int((first != rows).sum())
        if twice and shares.drop_duplicates:
            notes.append(_left_out(twice, len(rows)))
            rows = rows[first == rows]
    parts = split(
        rows,
        None if examples.targets is None else examples.targets[rows],
        0.0 if "validation" in others else shares.validation_split,
        0.0 if "test" in others else shares.test_split,
        shares.split_seed,
    )
    if first is not None and not shares.drop_duplicates:
        notes += _shared(first, parts)
    if not fitted:
        examples.fit(parts.train)
    found: dict[str, Source | None] = {}
    for name, own in (("validation", parts.validation), ("test", parts.test)):
        if name in others:
            opened = others[name](examples.preprocessing)
            found[name] = opened.source(np.arange(opened.samples))
        else:
            found[name] = examples.source(own) if len(own) else None
    notes = [*_balance(examples, parts.train), *notes]
    return Parts(
        examples.source(parts.train),
        found["validation"],
        found["test"],
        examples.preprocessing,
        notes,
    )


def _left_out(twice: int, samples: int) -> str:
    if twice < _MANY_COPIES * samples:
        plural = "s" if twice > 1 else ""
        return f"{twice:,} sample{plural} left out whose input equals an earlier one's"
    return (
        f"warning: {twice:,} of {samples:,} samples left out, as their input equals an "
        "earlier one's, whatever the target; data.drop_duplicates: false keeps them"
    )


def _balance(examples: Examples, train: Array) -> list[str]:
    target = examples.preprocessing.target
    if not isinstance(target, Classes) or examples.targets is None:
        return examples.notes
    labels = examples.targets[train]
    counts = np.bincount(labels, minlength=len(target.names))
    empty = [name for name, n in zip(target.names, counts, strict=True) if not n]
    notes = [f"to train: {target.balance(labels)}"]
    if empty:
        notes.append(
            f"warning: no sample to train of {len(empty)} of {len(counts)} classes: "
            f"{', '.join(empty[:5])}"
        )
    return [*notes, *examples.notes]


def _shared(first: Array, parts: Split) -> list[str]:
    """Warn of held out samples that equal one of the training part."""
    train = np.unique(first[parts.train])
    held = [part for part in parts[1:] if len(part)]
    known = sum(int(np.isin(first[part], train).sum()) for part in held)
    if not known:
        return []
    total = sum(map(len, held))
    return [
        f"warning: {known:,} of {total:,} held out samples equal one to train on; "
        "data.drop_duplicates: true leaves copies out"
    ]
