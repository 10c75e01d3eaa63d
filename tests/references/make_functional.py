"""Make functional.npz with Keras on JAX, next to this file.

Run it with a Python that has both; the tests only load the arrays. Each merging layer
has its inputs, output, dy and gradients; the model, of two inputs, two outputs and a
shared layer, its weights before and after five steps, losses, and predictions.
"""

from __future__ import annotations

import os

os.environ["KERAS_BACKEND"] = "jax"

from pathlib import Path

import jax
import keras
import numpy as np
from keras import layers as L

HERE = Path(__file__).parent
RNG = np.random.default_rng(3)


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def masks(batch: int, time: int, count: int) -> list[np.ndarray]:
    return [RNG.random((batch, time)) < 0.6 for _ in range(count)]


MERGING = {
    "add": (L.Add, [(4, 3)] * 3, False),
    "add broadcast": (L.Add, [(3,), (2, 1), (4, 2, 3)], False),
    "subtract": (L.Subtract, [(4, 3), (4, 1)], False),
    "multiply": (L.Multiply, [(4, 3)] * 3, False),
    "multiply masked": (L.Multiply, [(4, 3)] * 2, True),
    "average": (L.Average, [(4, 3)] * 3, False),
    "maximum": (L.Maximum, [(4, 3)] * 3, False),
    "maximum masked": (L.Maximum, [(4, 3)] * 3, True),
    "minimum": (L.Minimum, [(4, 3)] * 3, False),
    "minimum masked": (L.Minimum, [(4, 3)] * 2, True),
    "concatenate": (L.Concatenate, [(4, 3), (4, 2)], True),
    "concatenate 1": (lambda: L.Concatenate(axis=1), [(4, 3), (2, 3)], True),
    "dot": (lambda: L.Dot(axes=1), [(5,), (5,)], False),
    "dot of axes": (lambda: L.Dot(axes=(2, 1)), [(3, 4), (4, 2)], False),
    "dot cosine": (lambda: L.Dot(axes=-1, normalize=True), [(3, 4), (2, 4)], False),
}


def merging() -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}
    for name, (make, shapes, masked) in MERGING.items():
        xs = [normal(5, *shape) for shape in shapes]
        if name in ("maximum", "minimum"):  # equal values share the gradient
            xs[1][:2], xs[2][:1] = xs[0][:2], xs[0][:1]
        known = [RNG.random((5, s[0])) < 0.6 for s in shapes] if masked else None

        layer = make()

        def run(values, layer=layer, known=known):
            values = [v * 1 for v in values]
            for value, mask in zip(values, known or [], strict=known is not None):
                keras.src.backend.set_keras_mask(value, mask)
            return layer(values)

        y, back = jax.vjp(run, xs)
        dy = normal(*y.shape)
        (dxs,) = back(jax.numpy.asarray(dy))
        found |= {f"{name}/y": np.asarray(y), f"{name}/dy": dy}
        for i, (x, dx) in enumerate(zip(xs, dxs, strict=True)):
            found |= {f"{name}/x{i}": x, f"{name}/dx{i}": np.asarray(dx)}
        if known is not None:
            for i, mask in enumerate(known):
                found[f"{name}/mask{i}"] = mask
            values = [jax.numpy.asarray(x) for x in xs]
            out = make().compute_mask(values, known)
            if out is not None:
                found[f"{name}/mask"] = np.asarray(out)
    return found


def model() -> keras.Model:
    a = keras.Input((6,), name="numbers")
    b = keras.Input((4,), name="tokens", dtype="int32")
    shared = L.Dense(5, "tanh", name="shared")
    table = L.Embedding(7, 3, name="table")
    words = L.Flatten(name="flatten")(table(b))
    one = shared(L.Dense(6, "relu", name="wide")(a))
    two = shared(L.Dense(6, name="narrow")(words))
    three = shared(a)
    inner = keras.Sequential(
        [keras.Input((5,)), L.Dense(4, "tanh", name="hidden")], name="inner"
    )
    joined = L.concatenate([inner(one), inner(two), three], name="joined")
    cls = L.Dense(3, "softmax", name="cls")(joined)
    score = L.Dense(2, name="score")(L.multiply([one, two], name="product"))
    return keras.Model([a, b], [cls, score])


def training() -> dict[str, np.ndarray]:
    keras.utils.set_random_seed(0)
    x = [normal(24, 6), RNG.integers(0, 7, (24, 4))]
    y = [RNG.integers(0, 3, 24), normal(24, 2)]
    weights = [RNG.random(24).astype(np.float32) + 0.5, RNG.random(24) + 0.5]
    weights = [w.astype(np.float32) for w in weights]
    net = model()
    found = {"x0": x[0], "x1": x[1], "y0": y[0], "y1": y[1]}
    found |= {"w0": weights[0], "w1": weights[1]}
    found["layers"] = np.array([layer.name for layer in net.layers])
    for i, value in enumerate(net.get_weights()):
        found[f"before{i}"] = value
    net.compile(
        keras.optimizers.SGD(0.2),
        ["sparse_categorical_crossentropy", "mse"],
        metrics=[["accuracy"], ["mae"]],
        loss_weights=[0.7, 2.0],
    )
    found["evaluate"] = np.array(net.evaluate(x, y, 10, verbose=0))
    found["weighted"] = np.array(
        net.evaluate(x, y, 24, verbose=0, sample_weight=weights)
    )
    for i, out in enumerate(net.predict(x, verbose=0)):
        found[f"predict{i}"] = out
    losses = []
    for step in range(5):
        rows = slice(5 * step, 5 * step + 5)
        some = [a[rows] for a in x], [a[rows] for a in y], [a[rows] for a in weights]
        result = net.train_on_batch(*some, return_dict=True)
        losses.append(float(result["loss"]))
        net.reset_metrics()
    found["losses"] = np.array(losses)
    for i, value in enumerate(net.get_weights()):
        found[f"after{i}"] = value
    return {f"model/{name}": value for name, value in found.items()}


def masked() -> dict[str, np.ndarray]:
    """A mask arrives at the first of two outputs, of 6 positions each sample."""
    keras.utils.set_random_seed(1)
    tokens = keras.Input((6,), dtype="int32")
    x = L.Embedding(5, 4, mask_zero=True, name="table")(tokens)
    states = L.LSTM(3, return_sequences=True, name="states")(x)
    tags = L.Dense(3, "softmax", name="tags")(states)
    score = L.Dense(1, name="score")(L.LSTM(2, name="last")(states))
    net = keras.Model(tokens, [tags, score])
    x = RNG.integers(0, 5, (12, 6))
    x[:, 0] = 1
    y = [RNG.integers(0, 3, (12, 6)), normal(12, 1)]
    found = {"x0": x, "y0": y[0], "y1": y[1]}
    for i, value in enumerate(net.get_weights()):
        found[f"before{i}"] = value
    net.compile(
        keras.optimizers.SGD(0.3),
        ["sparse_categorical_crossentropy", "mse"],
        metrics=[["accuracy"], []],
        loss_weights=[1.5, 0.5],
    )
    found["evaluate"] = np.array(net.evaluate(x, y, 12, verbose=0))
    for step in range(3):
        rows = slice(4 * step, 4 * step + 4)
        net.train_on_batch(x[rows], [a[rows] for a in y])
    for i, value in enumerate(net.get_weights()):
        found[f"after{i}"] = value
    return {f"masked/{name}": value for name, value in found.items()}


if __name__ == "__main__":
    np.savez_compressed(HERE / "functional.npz", **merging(), **training(), **masked())
