"""fastserve: train neural networks on CPU clusters with NumPy and MPI.

``import fastserve as fs`` loads nothing but this file; the parts below are loaded when
they are first used. So the launcher can read a job without loading NumPy, and a script
that never starts MPI never loads it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# what ``fs.NAME`` is: a module, or with a colon something in a module
_LAZY = {
    "activations": "fastserve.ops.activations",
    "callbacks": "fastserve.training.callbacks",
    "comm": "fastserve.comm",
    "config": "fastserve.config",
    "constraints": "fastserve.core.constraints",
    "data": "fastserve.data",
    "datasets": "fastserve.data.datasets",
    "errors": "fastserve.errors",
    "init": "fastserve.comm:init",
    "initializers": "fastserve.core.initializers",
    "Input": "fastserve.layers:Input",
    "layers": "fastserve.layers",
    "losses": "fastserve.losses",
    "metrics": "fastserve.metrics",
    "Model": "fastserve.models:Model",
    "models": "fastserve.models",
    "optimizers": "fastserve.optimizers",
    "regularizers": "fastserve.core.regularizers",
    "schedules": "fastserve.schedules",
    "Sequential": "fastserve.models:Sequential",
    "training": "fastserve.training",
    "utils": "fastserve.utils",
    "world": "fastserve.comm:world",
}

if TYPE_CHECKING:
    from . import comm as comm
    from . import config as config
    from . import data as data
    from . import errors as errors
    from . import layers as layers
    from . import losses as losses
    from . import metrics as metrics
    from . import models as models
    from . import optimizers as optimizers
    from . import schedules as schedules
    from . import training as training
    from . import utils as utils
    from .comm.world import init as init
    from .comm.world import world as world
    from .core import constraints as constraints
    from .core import initializers as initializers
    from .core import regularizers as regularizers
    from .data import datasets as datasets
    from .layers import Input as Input
    from .models import Model as Model
    from .models import Sequential as Sequential
    from .ops import activations as activations
    from .training import callbacks as callbacks


# what users of Keras look for, and what takes its place
_ELSEWHERE = {
    "applications": "there are no pretrained networks; load_weights reads Keras' files",
    "backend": "arrays are NumPy's, and so are functions on them",
    "distribution": "start the script with mpirun",
    "export": "use model.save or model.save_weights",
    "mixed_precision": "computing is in float32 or float64",
    "ops": "there is no automatic differentiation; see docs/from-keras.md",
    "preprocessing": "pad_sequences is in fs.utils, images are read by fs.data",
    "random": "use NumPy's generators; layers take the model's seed",
    "saving": "load_model is in fs.models",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        hint = f"; {_ELSEWHERE[name]}" if name in _ELSEWHERE else ""
        raise AttributeError(f"module 'fastserve' has no attribute {name!r}{hint}")
    module, _, attribute = _LAZY[name].partition(":")
    found = importlib.import_module(module)
    return getattr(found, attribute) if attribute else found


def __dir__() -> list[str]:
    return sorted(["__version__", *_LAZY])
