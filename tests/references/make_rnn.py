"""Make rnn.npz with Keras on JAX, next to this file.

Run it with a Python that has both; the tests only load the arrays. Each case of
``CASES`` holds the inputs ``x0``, ``x1``, ..., the outputs ``y0``, ..., and their
gradients ``dy0``, ..., the inputs' gradients ``dx0``, ..., and in Keras' order the
weights ``w0``, ... and their gradients ``g0``, ...
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

os.environ["KERAS_BACKEND"] = "jax"

import jax
import keras
import numpy as np
from rnn_cases import CASES, FEATURES, MASK, TIME, UNITS, VOCABULARY, Case, pack

HERE = Path(__file__).parent
Arrays = dict[str, Any]


def make(case: Case, kind: Any = None) -> Any:
    """Return the layer of a case, from Keras' or from our classes."""
    layers = kind or keras.layers
    layer = getattr(layers, case.kind)(UNITS, **case.options)
    if case.wrapper == "Bidirectional":
        return layers.Bidirectional(layer, **case.wrapped)
    return layer


def of_case(name: str, case: Case, rng: np.random.Generator) -> Arrays:
    x = rng.standard_normal((len(MASK), TIME, FEATURES)).astype(np.float32)
    inputs = [x]
    for _ in range(case.states):
        inputs.append(rng.standard_normal((len(MASK), UNITS)).astype(np.float32))
    layer = make(case)
    layer.build(x.shape)
    for variable in layer.trainable_variables:
        value = np.asarray(variable.value)
        value = value + 0.4 * rng.standard_normal(variable.shape)
        variable.assign(value.astype(np.float32))
    weights = [v.value for v in layer.trainable_variables]
    fixed = [v.value for v in layer.non_trainable_variables]
    mask = MASK if case.masked else None

    def call(weights: list[Any], inputs: list[Any]) -> tuple[Any, ...]:
        more = {"initial_state": inputs[1:]} if case.states else {}
        y, _ = layer.stateless_call(weights, fixed, inputs[0], mask=mask, **more)
        return tuple(y) if isinstance(y, (tuple, list)) else (y,)

    y, pull = jax.vjp(call, weights, inputs)
    dy = tuple(rng.standard_normal(a.shape).astype(np.float32) for a in y)
    dw, dx = pull(dy)
    found = {"x": inputs, "y": y, "dy": dy, "dx": dx, "w": weights, "g": dw}
    return {
        f"{name}/{key}{i}": np.asarray(array, np.float32)
        for key, arrays in found.items()
        for i, array in enumerate(arrays)
    }


def training(rng: np.random.Generator) -> Arrays:
    """Masked labels of words: losses and metrics of each batch, and the weights."""
    x = rng.integers(1, VOCABULARY, (24, TIME))
    for row, length in enumerate(rng.integers(1, TIME + 1, 24)):
        x[row, length:] = 0
    y = (x + np.roll(x, 1, axis=1)) % 3
    weights = rng.uniform(0.5, 2, (24, TIME)).astype(np.float32)
    model = keras.Sequential(
        [
            keras.layers.Embedding(VOCABULARY, 5, mask_zero=True),
            keras.layers.Bidirectional(keras.layers.LSTM(4, return_sequences=True)),
            keras.layers.Dense(3, activation="softmax"),
        ]
    )
    model.build((None, TIME))
    start = [w + 0.3 * rng.standard_normal(w.shape) for w in model.get_weights()]
    start = [w.astype(np.float32) for w in start]
    arrays: Arrays = {"training/x": x, "training/y": y, "training/weights": weights}
    arrays |= {f"training/w{i}": w for i, w in enumerate(start)}
    for name, sample_weight in (("plain", None), ("weighted", weights)):
        model.set_weights(start)
        model.compile(
            keras.optimizers.SGD(0.5),
            "sparse_categorical_crossentropy",
            metrics=["accuracy"],
        )
        steps = []
        for first in range(0, 24, 8):
            part = slice(first, first + 8)
            given = None if sample_weight is None else sample_weight[part]
            steps.append(model.train_on_batch(x[part], y[part], sample_weight=given))
        # losses of the batches, and the accuracy since compile
        arrays[f"training/{name} steps"] = np.array(steps)
        evaluated = model.evaluate(
            x, y, batch_size=24, sample_weight=sample_weight, verbose=0
        )
        arrays[f"training/{name} evaluated"] = np.array(evaluated)
        for i, w in enumerate(model.get_weights()):
            arrays[f"training/{name} w{i}"] = w
    return arrays


def main() -> None:
    rng = np.random.default_rng(0)
    arrays: Arrays = {}
    for name, case in CASES.items():
        arrays |= of_case(name, case, rng)
    arrays |= training(rng)
    np.savez_compressed(HERE / "rnn.npz", **pack(arrays))


if __name__ == "__main__":
    main()
