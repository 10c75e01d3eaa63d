"""Make norms.npz with Keras 3 on JAX, next to this file.

Run it with a Python that has both; the tests only load the arrays. A case holds
``config`` (the layer's class, its arguments, whether it trains), ``x0``, ``x1`` ...,
``mask`` if there is one, ``y``, ``dy``, ``dx0`` ..., for each trained weight ``w0`` ...
and ``g0`` ... in Keras' order, and for each other weight ``s0`` ... before and ``t0``
... after the call. All numbers are float32.
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
RNG = np.random.default_rng(5)
Case = tuple[str, dict[str, Any], list[tuple[int, ...]], dict[str, Any]]

CASES: dict[str, Case] = {
    "batch norm": ("BatchNormalization", {}, [(6, 5)], {"training": True}),
    "batch norm 2-D": (
        "BatchNormalization",
        {"momentum": 0.9, "epsilon": 1e-4},
        [(3, 4, 5, 7)],
        {"training": True},
    ),
    "batch norm axis": (
        "BatchNormalization",
        {"axis": 1, "center": False},
        [(3, 4, 5)],
        {"training": True},
    ),
    "batch norm masked": (
        "BatchNormalization",
        {"scale": False},
        [(3, 6, 4)],
        {"training": True, "mask": (3, 6)},
    ),
    "batch norm inference": ("BatchNormalization", {}, [(6, 5)], {"training": False}),
    "layer norm axes": ("LayerNormalization", {"axis": [1, 3]}, [(2, 3, 4, 5)], {}),
    "rms norm": ("RMSNormalization", {}, [(2, 3, 4)], {}),
    "group norm": ("GroupNormalization", {"groups": 3}, [(2, 4, 3, 6)], {}),
    "group norm axis": (
        "GroupNormalization",
        {"groups": 2, "axis": 1},
        [(2, 4, 3)],
        {},
    ),
    "instance norm": ("GroupNormalization", {"groups": -1}, [(2, 5, 4)], {}),
    "unit norm": ("UnitNormalization", {"axis": [1, 2]}, [(2, 3, 4)], {}),
    "relu": ("ReLU", {}, [(4, 6)], {}),
    "relu arguments": (
        "ReLU",
        {"max_value": 1.5, "negative_slope": 0.2, "threshold": 0.5},
        [(8, 6)],
        {},
    ),
    "leaky relu": ("LeakyReLU", {}, [(4, 6)], {}),
    "elu": ("ELU", {"alpha": 0.6}, [(4, 6)], {}),
    "prelu": ("PReLU", {}, [(4, 3, 5)], {}),
    "prelu shared": ("PReLU", {"shared_axes": [1, 2]}, [(2, 3, 4, 5)], {}),
    "rescaling": ("Rescaling", {"scale": 0.5, "offset": -1.0}, [(2, 3)], {}),
    "normalization given": (
        "Normalization",
        {"mean": [1.0, 2.0], "variance": [4.0, 0.5]},
        [(3, 4, 2)],
        {},
    ),
    "normalization of two axes": (
        "Normalization",
        {"axis": [1, 3], "mean": [1.0, 2.0], "variance": [4.0, 0.5], "invert": True},
        [(3, 4, 5, 2)],
        {},
    ),
    "center crop": ("CenterCrop", {"height": 3, "width": 4}, [(2, 6, 7, 2)], {}),
    "center crop up": ("CenterCrop", {"height": 3, "width": 8}, [(2, 6, 7, 2)], {}),
    **{
        f"resizing {i}": ("Resizing", arguments, [(2, 6, 7, channels)], {})
        for i, (channels, arguments) in enumerate(
            [
                (2, {"height": 9, "width": 4}),
                (5, {"height": 4, "width": 11}),
                (2, {"height": 4, "width": 11, "interpolation": "nearest"}),
                (2, {"height": 3, "width": 3, "antialias": True}),
                (2, {"height": 9, "width": 4, "crop_to_aspect_ratio": True}),
                (
                    2,
                    {
                        "height": 9,
                        "width": 4,
                        "pad_to_aspect_ratio": True,
                        "fill_value": 2.0,
                    },
                ),
                (1, {"height": 4, "width": 12, "pad_to_aspect_ratio": True}),
            ]
        )
    },
    "softmax": ("Softmax", {"axis": 1}, [(2, 3, 4)], {}),
    "softmax axes": ("Softmax", {"axis": [1, 2]}, [(2, 3, 4)], {}),
    "softmax masked": ("Softmax", {}, [(3, 6)], {"mask": (3, 6)}),
}


def mask(shape: tuple[int, ...]) -> np.ndarray:
    """Other positions count in each row, and all of a row's first ones."""
    found = RNG.random(shape) < 0.6
    found[:, 0] = True
    return found


def make(case: Case) -> dict[str, np.ndarray]:
    kind, arguments, shapes, call = case
    layer = getattr(keras.layers, kind)(**arguments)
    call = dict(call)
    found: dict[str, np.ndarray] = {
        "config": np.array(json.dumps([kind, arguments, bool(call.get("training"))]))
    }
    xs = [1 + 2 * RNG.standard_normal(s).astype("float32") for s in shapes]
    for name in [name for name, value in call.items() if isinstance(value, tuple)]:
        call[name] = found[name] = mask(call[name])
    single = len(xs) == 1
    layer.build(shapes[0] if single else shapes)
    trained = [np.float32(0.5 + RNG.random(v.shape)) for v in layer.trainable_variables]
    other = [
        np.float32(0.5 + RNG.random(v.shape)) for v in layer.non_trainable_variables
    ]

    def run(trained: Any, xs: Any) -> Any:
        inputs = (xs[0],) if single else (list(xs),)
        return layer.stateless_call(trained, other, *inputs, **call)

    y, pull, after = jax.vjp(run, trained, xs, has_aux=True)
    dy = RNG.standard_normal(y.shape).astype("float32")
    grads, dxs = pull(dy)
    found |= {"y": y, "dy": dy}
    for name, arrays in (
        ("x", xs),
        ("dx", dxs),
        ("w", trained),
        ("g", grads),
        ("s", other),
        ("t", after),
    ):
        found |= {f"{name}{i}": np.asarray(a) for i, a in enumerate(arrays)}
    return {key: np.asarray(value) for key, value in found.items()}


def main() -> None:
    arrays = {
        f"{name}/{key}": value
        for name, case in CASES.items()
        for key, value in make(case).items()
    }
    np.savez_compressed(HERE / "norms.npz", **arrays)


if __name__ == "__main__":
    main()
