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
    "attention": ("Attention", {"use_scale": True}, [(2, 4, 3), (2, 5, 3)], {}),
    "attention of all": (
        "Attention",
        {"score_mode": "concat", "use_scale": True},
        [(2, 4, 3), (2, 5, 6), (2, 5, 3)],
        {},
    ),
    "attention masked": (
        "Attention",
        {},
        [(2, 4, 3), (2, 5, 3)],
        {"mask": [(2, 4), (2, 5)], "use_causal_mask": True},
    ),
    "additive attention": (
        "AdditiveAttention",
        {},
        [(2, 4, 3), (2, 5, 6), (2, 5, 3)],
        {"mask": [(2, 4), (2, 5)]},
    ),
    "heads": (
        "MultiHeadAttention",
        {"num_heads": 2, "key_dim": 3},
        [(2, 4, 6), (2, 5, 7)],
        {},
    ),
    "heads of all": (
        "MultiHeadAttention",
        # with dropout Keras computes it by itself, as JAX can't for this value_dim
        {
            "num_heads": 2,
            "key_dim": 3,
            "value_dim": 4,
            "output_shape": 5,
            "dropout": 0.1,
        },
        [(2, 4, 6), (2, 5, 7), (2, 5, 8)],
        {"use_causal_mask": True},
    ),
    "heads with a mask": (
        "MultiHeadAttention",
        {"num_heads": 3, "key_dim": 2, "use_bias": False},
        [(2, 4, 6), (2, 5, 6)],
        {"attention_mask": (2, 4, 5)},
    ),
    "softmax": ("Softmax", {"axis": 1}, [(2, 3, 4)], {}),
    "softmax axes": ("Softmax", {"axis": [1, 2]}, [(2, 3, 4)], {}),
    "softmax masked": ("Softmax", {}, [(3, 6)], {"mask": (3, 6)}),
}


def mask(shape: tuple[int, ...]) -> np.ndarray:
    """Other positions count in each row, and all of a row's first ones."""
    found = RNG.random(shape) < 0.6
    found[..., 0] = True
    return found


def make(case: Case) -> dict[str, np.ndarray]:
    kind, arguments, shapes, call = case
    layer = getattr(keras.layers, kind)(**arguments)
    call = dict(call)
    found: dict[str, np.ndarray] = {
        "config": np.array(
            json.dumps(
                [
                    kind,
                    arguments
                    | ({"causal": True} if call.get("use_causal_mask") else {}),
                    bool(call.get("training")),
                ]
            )
        )
    }
    heads = kind == "MultiHeadAttention"
    xs = [1 + 2 * RNG.standard_normal(s).astype("float32") for s in shapes]
    for name in [name for name, value in call.items() if isinstance(value, tuple)]:
        call[name] = found[name] = mask(call[name])
    if isinstance(call.get("mask"), list):
        call["mask"] = [mask(shape) for shape in call["mask"]]
        found |= {f"mask{i}": m for i, m in enumerate(call["mask"])}
    single = len(xs) == 1
    layer.build(*shapes) if heads else layer.build(shapes[0] if single else shapes)
    shift = 0.0 if heads else 1.0  # scores of heads shall be small
    trained = [
        np.float32(shift + RNG.random(v.shape) - 0.5) for v in layer.trainable_variables
    ]
    seeds = [v for v in layer.non_trainable_variables if "seed" in v.path]
    other = [
        np.float32(0.5 + RNG.random(v.shape))
        for v in layer.non_trainable_variables
        if "seed" not in v.path
    ]

    state = other + [v.value for v in seeds]  # they come last

    def run(trained: Any, xs: Any) -> Any:
        inputs = (xs[0],) if single else tuple(xs) if heads else (list(xs),)
        return layer.stateless_call(trained, state, *inputs, **call)

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
        ("t", after[: len(other)]),
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
