"""Looking for what went wrong: values that aren't finite, replicas that differ."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any

import numpy as np

from fastserve.comm import Communicator
from fastserve.core import Array, Layer, ParameterStore, StepKey
from fastserve.errors import CommError


def first_nonfinite_layer(root: Layer, x: Any, key: StepKey) -> str | None:
    """Run ``forward`` once more; return the first layer with NaN or infinity in its
    output, or None."""
    found: list[str] = []
    layers = [(path, layer) for path, layer in root.walk()]
    for path, layer in layers:
        layer.forward = _watched(path, layer, found)  # type: ignore
    try:
        with np.errstate(all="ignore"):
            root.forward(x, key)
    finally:
        for _, layer in layers:
            del layer.forward  # the class's own method is there again
    return found[0] if found else None


def _watched(path: str, layer: Layer, found: list[str]) -> Callable[[Any, Any], Any]:
    forward = layer.forward

    def watched(x: Any, training: Any = False) -> Any:
        y = forward(x, training)
        if any(
            a.dtype.kind == "f" and not np.isfinite(a).all()
            for a in (y if isinstance(y, tuple) else (y,))
        ):
            found.append(f"layer {path or 'model'} ({type(layer).__name__})")
        return y

    return watched


def check_replicas(store: ParameterStore, comm: Communicator, step: int) -> None:
    """Raise CommError, on all ranks, if the ranks' parameters differ in some bit.

    It names the first parameter that differs and the ranks that differ from rank 0.
    """
    sums = comm.gather_obj(
        zlib.crc32(_bytes(store.moving), zlib.crc32(_bytes(store.values)))
    )
    alike = comm.broadcast_obj(sums is None or len(set(sums)) == 1)
    if alike:
        return
    compared = store.parameters + [p for p in store.frozen_parameters if p.moving]
    parts = {p.path: zlib.crc32(_bytes(p.value)) for p in compared}
    everyone = comm.gather_obj((comm.host, parts))
    message = None
    for path in parts if everyone is not None else ():
        differ = [
            f"rank {rank} ({host})"
            for rank, (host, sums_) in enumerate(everyone or [])
            if sums_[path] != parts[path]
        ]
        if differ:
            message = f"{path} differs on {', '.join(differ)} from rank 0"
            break
    message = comm.broadcast_obj(message)
    raise CommError(
        f"step {step + 1}: expected the same parameters on every rank",
        f"{message}",
        "look for a rank that changed weights by itself, or for faulty memory; resume "
        "from the last checkpoint",
    )


def _bytes(value: Array) -> memoryview:
    return np.ascontiguousarray(value).data.cast("B")
