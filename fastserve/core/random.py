"""Random numbers as a pure function of what they are for.

Nothing here has a state that a resumed run would have to restore, and nothing depends
on the rank: a number is found from (seed, purpose, step, sample) by the counter-based
generator Philox (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np


def generator(seed: int, *purpose: object) -> np.random.Generator:
    """Return the generator for a purpose, e.g. ``generator(1, "order", epoch)``.

    The same arguments give the same numbers on every rank and in every run.
    """
    text = "/".join([str(seed), *map(str, purpose)])
    digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
    return np.random.Generator(
        np.random.Philox(key=np.frombuffer(digest, np.uint64).copy())
    )


_default = [0]


def default_seed() -> int:
    """Return the seed of models that aren't given one."""
    return _default[0]


def set_default_seed(seed: int) -> None:
    """Let models that are made from now on have this seed, unless given another."""
    _default[0] = seed


@dataclass(frozen=True)
class StepKey:
    """What ``forward`` is given for ``training``: it is true, and it keys dropout.

    ``first_row`` is the place of the micro-batch's first sample in the global batch,
    so that a sample gets the same dropout wherever it is computed.
    """

    seed: int = 0
    step: int = 0
    first_row: int = 0
