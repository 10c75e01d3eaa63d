"""Looking for what went wrong: values that aren't finite, replicas that differ."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any

import numpy as np

from fastserve.comm import Communicator
from fastserve.core import Array, Layer, ParameterStore, StepKey
from fastserve.errors import ReplicaError
from fastserve.optimizers import Optimizer


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


def check_replicas(
    store: ParameterStore,
    comm: Communicator,
    step: int,
    optimizer: Optimizer | None = None,
) -> None:
    """Raise ReplicaError, on all ranks, if the ranks' parameters differ in some bit.

    With ``optimizer`` its state is compared too, unless each rank has its own part. The
    error names the first tensor that differs, and the ranks that differ in it from most
    others.
    """
    vectors = [store.values, store.frozen]
    state = optimizer.state if optimizer and optimizer.own is None else {}
    own = 0
    for vector in (*vectors, *state.values()):
        own = zlib.crc32(_bytes(vector), own)
    sums = comm.gather_obj(own)
    if comm.broadcast_obj(sums is None or len(set(sums)) == 1):
        return
    parameters = store.parameters + store.frozen_parameters
    parts = {p.path: zlib.crc32(_bytes(p.value)) for p in parameters}
    for slot, vector in state.items():
        for p in store.parameters:
            view = store.view(vector, p)
            parts[f"{slot} of {p.path}"] = zlib.crc32(_bytes(view))
    everyone = comm.gather_obj((comm.host, parts))
    message = None
    for name in parts if everyone is not None else ():
        found = [theirs[name] for _, theirs in everyone or []]
        usual = max(found, key=found.count)
        differ = [
            f"rank {rank} ({host})"
            for rank, (host, _) in enumerate(everyone or [])
            if found[rank] != usual
        ]
        if differ:
            like = f"rank {found.index(usual)}"
            message = f"{name} differs on {', '.join(differ)} from {like}"
            break
    message = comm.broadcast_obj(message)
    raise ReplicaError(
        f"step {step + 1}: expected the same parameters on every rank",
        f"{message}",
        "look for a rank that changed weights by itself, or for faulty memory; resume "
        "from the last checkpoint",
    )


def _bytes(value: Array) -> memoryview:
    return np.ascontiguousarray(value).data.cast("B")
