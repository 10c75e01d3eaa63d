"""fastserve: train neural networks on CPU clusters with NumPy and MPI.

``import fastserve as fs`` loads nothing but this file; the parts below are loaded when
they are first used. So the launcher can read a job without loading NumPy, and a script
that never starts MPI never loads it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_MODULES = (
    "callbacks comm config data datasets errors initializers layers losses metrics "
    "models optimizers schedules training"
).split()
_NAMES = {
    "Input": "fastserve.layers",
    "Sequential": "fastserve.models",
    "init": "fastserve.comm",
    "world": "fastserve.comm",
}
_ALIASES = {
    "callbacks": "fastserve.training.callbacks",
    "datasets": "fastserve.data.datasets",
    "initializers": "fastserve.core.initializers",
}

if TYPE_CHECKING:
    from . import comm, config, data, errors, layers, losses, metrics, models
    from . import optimizers, schedules, training
    from .comm import init, world
    from .core import initializers
    from .data import datasets
    from .layers import Input
    from .models import Sequential
    from .training import callbacks

__all__ = ["__version__", *_MODULES, *_NAMES]


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        return getattr(importlib.import_module(_NAMES[name]), name)
    if name in _MODULES:
        return importlib.import_module(_ALIASES.get(name, f"fastserve.{name}"))
    raise AttributeError(f"module 'fastserve' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
