"""Make preprocessing.npz with Keras 3 on JAX, next to this file.

Run it with a Python that has both; the tests only load the arrays. Images that are
moved by matrices (8 numbers, as Keras has them), what random layers make of given
random numbers, categories, and boundaries that were learned.
"""

from __future__ import annotations

import os
from pathlib import Path

os.environ["KERAS_BACKEND"] = "jax"

import keras
import numpy as np

HERE = Path(__file__).parent
RNG = np.random.default_rng(8)


def matrices(images: np.ndarray) -> dict[str, np.ndarray]:
    """Those of the random layers, for factors that are given."""
    count, height, width = images.shape[:3]
    rotation = keras.layers.RandomRotation(0.5)
    angle = RNG.uniform(-180, 180, count).astype("float32")
    zero, one = np.zeros(count, "float32"), np.ones(count, "float32")
    zoom = keras.layers.RandomZoom(0.5, 0.5)
    zooms = RNG.uniform(0.5, 1.5, (count, 2)).astype("float32")
    translation = keras.layers.RandomTranslation(0.5, 0.5)
    moves = RNG.uniform(-3, 3, (count, 2)).astype("float32")
    return {
        "angle": angle,
        "zooms": zooms,
        "moves": moves,
        "rotation": rotation._compute_affine_matrix(
            0.5, 0.5, angle, zero, zero, one, zero, zero, height, width
        ),
        "zoom": zoom._get_zoom_matrix(zooms, height, width),
        "translation": translation._get_translation_matrix(moves),
    }


def adapt(layer: keras.layers.Discretization, batches: list[np.ndarray]) -> None:
    """As its own ``adapt``, which needs TensorFlow."""
    layer.reset_state()
    for batch in batches:
        layer.update_state(batch)
    layer.finalize_state()


def main() -> None:
    images = RNG.uniform(0, 255, (4, 5, 7, 3)).astype("float32")
    arrays = {"images": images, **matrices(images)}
    for kind in ("rotation", "zoom", "translation"):
        for mode in ("reflect", "wrap", "constant", "nearest"):
            for how in ("bilinear", "nearest"):
                arrays[f"{kind} {mode} {how}"] = keras.ops.image.affine_transform(
                    images, arrays[kind], how, mode, 9.0
                )
    contrast = keras.layers.RandomContrast(0.5)
    factor = RNG.uniform(0.5, 1.5, (4, 1, 1, 1)).astype("float32")
    arrays["contrast factor"] = factor
    arrays["contrast"] = contrast.transform_images(
        images, {"contrast_factor": factor}, training=True
    )
    brightness = keras.layers.RandomBrightness(0.5)
    shift = RNG.uniform(-120, 120, (4, 1, 1, 1)).astype("float32")
    arrays["brightness shift"] = shift
    arrays["brightness"] = brightness.transform_images(
        images.copy(), {"rgb_delta": shift}, training=True
    )
    integers = RNG.integers(0, 6, (5, 4))
    arrays["integers"] = integers
    for mode in ("one_hot", "multi_hot", "count"):
        layer = keras.layers.CategoryEncoding(num_tokens=6, output_mode=mode)
        arrays[f"categories {mode}"] = layer(integers)
    weights = RNG.uniform(0, 2, (5, 4)).astype("float32")
    layer = keras.layers.CategoryEncoding(num_tokens=6, output_mode="count")
    arrays["category weights"] = weights
    arrays["categories weighted"] = layer(integers, count_weights=weights)
    numbers = RNG.standard_normal((700, 3)).astype("float32")
    arrays["numbers"] = numbers
    for bins in (3, 4, 10):
        layer = keras.layers.Discretization(num_bins=bins, epsilon=0.02)
        adapt(layer, [numbers])
        arrays[f"boundaries {bins}"] = np.array(layer.bin_boundaries)
        arrays[f"bins {bins}"] = layer(numbers[:9])
        adapt(layer, [numbers[i : i + 100] for i in range(0, 700, 100)])
        arrays[f"boundaries of batches {bins}"] = np.array(layer.bin_boundaries)
    few = keras.layers.Discretization(num_bins=3)
    adapt(few, [np.array([-1.5, 1.0, 3.4, 0.5])])
    arrays["boundaries of few"] = np.array(few.bin_boundaries)
    adapted = keras.layers.Normalization(axis=1)
    adapted.adapt(numbers[:, :, None] + 5)
    arrays["normalized"] = adapted(numbers[:9, :, None])
    np.savez_compressed(
        HERE / "preprocessing.npz", **{k: np.asarray(v) for k, v in arrays.items()}
    )


if __name__ == "__main__":
    main()
