"""Make basics.npz with Keras (JAX), next to this file.

Run it with a Python that has both: Dense, Embedding, all activations, shapes, layers
around layers, and those of training alone when they predict. Each case holds the
layer's class and arguments as JSON, ``x``, ``y``, ``dy``, ``dx`` unless x has indices,
and ``w0`` ..., ``g0`` ... for the weights in Keras' order. All numbers are float32.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

os.environ["KERAS_BACKEND"] = "jax"

import jax
import keras
import numpy as np

HERE = Path(__file__).parent
Case = tuple[str, dict[str, Any], tuple[int, ...]]
# glu and threshold need arguments; rows of Keras' sparsemax don't sum to 1
NONE = ("deserialize", "get", "serialize", "glu", "threshold", "sparsemax")
ACTIVATIONS = sorted(
    name
    for name in dir(keras.activations)
    if name not in NONE and not name.startswith("_")
)
INNER = {"layer": ["Conv2D", {"filters": 3, "kernel_size": 2, "activation": "relu"}]}

CASES: list[Case] = [
    ("Dense", {"units": 5}, (4,)),
    ("Dense", {"units": 3, "activation": "relu", "use_bias": False}, (6, 4)),
    ("Dense", {"units": 3, "activation": "gelu"}, (2, 3, 4)),
    ("Dense", {"units": 4, "activation": "softmax"}, (5,)),
    *(("Activation", {"activation": name}, (3, 6)) for name in ACTIVATIONS),
    ("Embedding", {"input_dim": 9, "output_dim": 4}, (5,)),
    ("Embedding", {"input_dim": 9, "output_dim": 3, "mask_zero": True}, (2, 3)),
    ("Flatten", {}, (2, 3, 4)),
    ("Reshape", {"target_shape": [6, 2]}, (3, 4)),
    ("Reshape", {"target_shape": [2, -1, 2]}, (12,)),
    ("Identity", {}, (3,)),
    ("Masking", {"mask_value": 0.0}, (4, 3)),
    ("TimeDistributed", {"layer": ["Dense", {"units": 3}]}, (4, 5)),
    ("TimeDistributed", INNER, (2, 4, 3, 2)),
    *((kind, {"rate": 0.5}, (4, 3)) for kind in ("Dropout", "SpatialDropout1D")),
    *((kind, {"rate": 0.5}, (4,)) for kind in ("AlphaDropout", "GaussianDropout")),
    ("SpatialDropout2D", {"rate": 0.5}, (4, 3, 2)),
    ("GaussianNoise", {"stddev": 0.5}, (4,)),
]


def make(number: int, case: Case) -> dict[str, Any]:
    kind, arguments, shape = case
    rng = np.random.default_rng(number)
    made = dict(arguments)
    if kind == "TimeDistributed":
        inner, its_own = arguments["layer"]
        made["layer"] = getattr(keras.layers, inner)(**its_own)
    layer = getattr(keras.layers, kind)(**made)
    x: Any = np.float32(2 * rng.standard_normal((3, *shape)))
    if kind == "Embedding":
        x = rng.integers(0, 9, x.shape)
    if kind == "Masking":
        x[:, 1] = 0
    layer.build(x.shape)
    weights = [np.float32(rng.standard_normal(v.shape)) for v in layer.weights]
    weights = [w for w, v in zip(weights, layer.weights, strict=True) if v.trainable]
    state = [v.value for v in layer.non_trainable_variables]

    def run(weights: Any, x: Any) -> Any:
        return layer.stateless_call(weights, state, x)[0]

    if kind == "Embedding":
        y, pull = jax.vjp(lambda w: run(w, x), weights)
    else:
        y, pull = jax.vjp(run, weights, x)
    dy = np.float32(rng.standard_normal(y.shape))
    gradients, *dx = pull(dy)
    found = {"layer": json.dumps([kind, arguments]), "x": x, "y": y, "dy": dy}
    found |= {"dx": dx[0]} if dx else {}
    found |= {f"w{i}": w for i, w in enumerate(weights)}
    return found | {f"g{i}": g for i, g in enumerate(gradients)}


def main() -> None:
    jax.config.update("jax_default_matmul_precision", "highest")
    arrays = {
        f"{number}/{key}": np.asarray(value)
        for number, case in enumerate(CASES)
        for key, value in make(number, case).items()
    }
    np.savez_compressed(HERE / "basics.npz", **arrays)  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
