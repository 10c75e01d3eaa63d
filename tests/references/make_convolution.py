"""Make convolution.npz with Keras (JAX), next to this file.

Run it with a Python that has Keras and JAX, as ``KERAS_BACKEND=jax python
make_convolution.py``; the tests only load the arrays. Each case holds ``x``, ``y``,
``dy``, ``dx``, for each weight ``w.NAME`` and ``g.NAME``, and the layer's class and
arguments as JSON, with which both sides make it. What goes in (x, dy and weights) are
sixteenths, kept as int8, and what comes out float32.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import keras
import numpy as np

HERE = Path(__file__).parent
IMAGE, SEQUENCE = (6, 7, 4), (9, 4)
Case = tuple[str, dict[str, Any], tuple[int, ...]]

CASES: list[Case] = [
    ("Conv1D", {"filters": 3, "kernel_size": 3}, SEQUENCE),
    (
        "Conv1D",
        {"filters": 3, "kernel_size": 4, "strides": 2, "padding": "same"},
        (8, 4),
    ),
    (
        "Conv1D",
        {"filters": 4, "kernel_size": 3, "padding": "causal", "dilation_rate": 2}
        | {"groups": 2, "activation": "relu"},
        SEQUENCE,
    ),
    (
        "Conv1D",
        {"filters": 3, "kernel_size": 3, "strides": 2, "padding": "causal"},
        (8, 4),
    ),
    ("Conv1D", {"filters": 3, "kernel_size": 2, "use_bias": False}, SEQUENCE),
    ("Conv2D", {"filters": 3, "kernel_size": 3, "activation": "gelu"}, IMAGE),
    ("Conv2D", {"filters": 3, "kernel_size": [3, 2], "padding": "same"}, IMAGE),
    (
        "Conv2D",
        {"filters": 3, "kernel_size": 3, "strides": 2, "padding": "same"},
        (6, 8, 4),
    ),
    (
        "Conv2D",
        {"filters": 3, "kernel_size": 2, "strides": [3, 4], "padding": "same"},
        (7, 9, 4),
    ),
    ("Conv2D", {"filters": 3, "kernel_size": 2, "strides": [2, 3]}, IMAGE),
    (
        "Conv2D",
        {"filters": 4, "kernel_size": 3, "padding": "same", "dilation_rate": [2, 1]}
        | {"groups": 2, "activation": "tanh"},
        IMAGE,
    ),
    ("Conv2D", {"filters": 3, "kernel_size": 3, "dilation_rate": 2}, IMAGE),
    ("Conv2D", {"filters": 2, "kernel_size": 3, "activation": "softmax"}, IMAGE),
    ("Conv2D", {"filters": 5, "kernel_size": 1}, IMAGE),
    ("Conv2D", {"filters": 3, "kernel_size": 3}, (6, 7, 1)),
    # Winograd's algorithm
    ("Conv2D", {"filters": 20, "kernel_size": 3, "padding": "same"}, (6, 9, 24)),
    ("Conv2D", {"filters": 20, "kernel_size": [5, 1], "padding": "same"}, (6, 5, 24)),
    ("Conv1D", {"filters": 24, "kernel_size": 3, "padding": "causal"}, (9, 24)),
    (
        "Conv2DTranspose",
        {"filters": 20, "kernel_size": 3, "padding": "same"},
        (5, 4, 24),
    ),
    ("DepthwiseConv1D", {"kernel_size": 3, "strides": 2, "padding": "same"}, (8, 4)),
    ("DepthwiseConv1D", {"kernel_size": 3, "dilation_rate": 2}, SEQUENCE),
    ("DepthwiseConv2D", {"kernel_size": 3}, IMAGE),
    (
        "DepthwiseConv2D",
        {"kernel_size": 3, "strides": 2, "padding": "same", "depth_multiplier": 2}
        | {"activation": "relu"},
        (6, 8, 4),
    ),
    (
        "DepthwiseConv2D",
        {"kernel_size": [3, 2], "padding": "same", "dilation_rate": [1, 2]}
        | {"depth_multiplier": 3, "use_bias": False},
        IMAGE,
    ),
    ("DepthwiseConv2D", {"kernel_size": 2, "strides": 3}, IMAGE),
    (
        "SeparableConv1D",
        {"filters": 3, "kernel_size": 3, "padding": "same", "depth_multiplier": 2},
        SEQUENCE,
    ),
    (
        "SeparableConv2D",
        {"filters": 3, "kernel_size": 3, "strides": 2, "padding": "same"}
        | {"depth_multiplier": 2, "activation": "relu"},
        (6, 8, 4),
    ),
    ("SeparableConv2D", {"filters": 3, "kernel_size": 2, "dilation_rate": 2}, IMAGE),
    *(
        ("Conv2DTranspose", {"filters": 3} | options, (4, 3, 2))
        for options in (
            {"kernel_size": 3},
            {"kernel_size": 3, "strides": 2, "activation": "relu"},
            {"kernel_size": 3, "strides": 2, "padding": "same"},
            {"kernel_size": 4, "strides": 2, "padding": "same"},
            {"kernel_size": [2, 3], "strides": [3, 4]},
            {"kernel_size": [2, 3], "strides": [3, 4], "padding": "same"},
            {"kernel_size": 3, "strides": 2, "output_padding": 1},
            {"kernel_size": 3, "strides": 3, "output_padding": [0, 2]},
            {"kernel_size": 3, "strides": 2, "padding": "same", "output_padding": 0},
            {"kernel_size": [4, 5], "strides": 3, "padding": "same"}
            | {"output_padding": [2, 1]},
            {"kernel_size": 3, "padding": "same", "dilation_rate": 2},
            {"kernel_size": 3, "dilation_rate": [1, 2], "use_bias": False},
        )
    ),
    (
        "Conv1DTranspose",
        {"filters": 3, "kernel_size": 3, "strides": 2, "padding": "same"},
        (5, 4),
    ),
    ("Conv1DTranspose", {"filters": 3, "kernel_size": 2, "strides": 3}, (5, 4)),
    *(
        (f"{kind}Pooling{axes}", options, shape)
        for kind in ("Max", "Average")
        for axes, options, shape in (
            ("1D", {"pool_size": 2}, SEQUENCE),
            ("1D", {"pool_size": 3, "strides": 2, "padding": "same"}, (8, 4)),
            ("2D", {"pool_size": 2}, IMAGE),
            ("2D", {"pool_size": 2, "padding": "same"}, (6, 7, 4)),
            ("2D", {"pool_size": [3, 2], "strides": 2, "padding": "same"}, (6, 8, 4)),
            ("2D", {"pool_size": 3, "strides": 1}, IMAGE),
            ("2D", {"pool_size": 2, "strides": [3, 4]}, (7, 9, 4)),
        )
    ),
    *(
        (f"Global{kind}Pooling{axes}", {"keepdims": keep}, shape)
        for kind in ("Max", "Average")
        for axes, shape in (("1D", SEQUENCE), ("2D", IMAGE))
        for keep in (False, True)
    ),
    ("UpSampling1D", {"size": 3}, (4, 3)),
    *(
        ("UpSampling2D", {"size": [2, 3], "interpolation": name}, (4, 5, 2))
        for name in ("nearest", "bilinear", "bicubic", "lanczos3", "lanczos5")
    ),
    ("ZeroPadding1D", {"padding": [1, 2]}, (4, 3)),
    ("ZeroPadding2D", {"padding": 1}, (4, 3, 2)),
    ("ZeroPadding2D", {"padding": [1, 2]}, (4, 3, 2)),
    ("ZeroPadding2D", {"padding": [[1, 0], [2, 3]]}, (4, 3, 2)),
    ("Cropping1D", {"cropping": [1, 2]}, (5, 3)),
    ("Cropping2D", {"cropping": 1}, (4, 5, 2)),
    ("Cropping2D", {"cropping": [[1, 0], [2, 1]]}, (4, 5, 2)),
    ("Permute", {"dims": [3, 1, 2]}, (2, 3, 4)),
    ("RepeatVector", {"n": 3}, (4,)),
]


def draw(rng: np.random.Generator, shape: tuple[int, ...], scale: float) -> np.ndarray:
    """Return normal numbers as int8, in sixteenths."""
    return np.clip(16 * scale * rng.standard_normal(shape), -127, 127).astype(np.int8)


def case(
    number: int, kind: str, options: dict[str, Any], shape: tuple[int, ...]
) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(number)
    layer = getattr(keras.layers, kind)(**options)
    given = {"x": draw(rng, (2, *shape), 1.0)}
    if "Max" in kind:  # equal values: who gets the gradient?
        given["x"] = given["x"] // 16 * np.int8(16)
    layer.build(given["x"].shape)
    names = [f"w.{variable.name}" for variable in layer.weights]
    for name, variable in zip(names, layer.weights, strict=True):
        given[name] = draw(rng, variable.shape, 0.5)

    def function(x: Any, weights: Any) -> Any:
        mask = {}
        if kind == "GlobalAveragePooling1D" and options["keepdims"]:
            mask = {"mask": jnp.asarray(MASK)}
        pairs = zip(layer.weights, weights, strict=True)
        with keras.StatelessScope(state_mapping=list(pairs)):
            return layer(x, **mask)

    x, weights = real(given["x"]), [real(given[name]) for name in names]
    y, pullback = jax.vjp(function, x, weights)
    given["dy"] = draw(rng, y.shape, 1.0)
    dx, gradients = pullback(real(given["dy"]))
    found = given | {"y": y, "dx": dx}
    for name, gradient in zip(names, gradients, strict=True):
        found["g" + name[1:]] = gradient
    arrays = {f"{number}/{key}": np.asarray(value) for key, value in found.items()}
    arrays[f"{number}/layer"] = np.array(json.dumps([kind, options]))
    return arrays


def real(sixteenths: np.ndarray) -> jax.Array:
    return jnp.asarray(sixteenths, jnp.float32) / 16


MASK = np.arange(SEQUENCE[0]) < np.array([[SEQUENCE[0]], [4]])


def main() -> None:
    jax.config.update("jax_default_matmul_precision", "highest")
    arrays: dict[str, np.ndarray] = {"mask": MASK}
    for number, (kind, options, shape) in enumerate(CASES):
        arrays |= case(number, kind, options, shape)
    np.savez_compressed(HERE / "convolution.npz", **arrays)  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
