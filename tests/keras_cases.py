"""What is compared with Keras: class names and arguments, for both sides.

``tests/references/make_numbers.py`` runs Keras on them and keeps the numbers; the tests
run ours. A schedule is written as ``{"schedule": [class name, arguments]}``.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
Case = tuple[str, dict[str, Any]]

STEPS = 5
SHAPES = {"kernel": (6, 4), "bias": (4,), "table": (3, 5)}
COSINE = {"schedule": ["CosineDecay", {"initial_learning_rate": 0.1, "decay_steps": 8}]}

OPTIMIZERS: dict[str, Case] = {
    "sgd": ("SGD", {"learning_rate": 0.05}),
    "sgd nesterov": ("SGD", {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
    "sgd ema": ("SGD", {"learning_rate": 0.1, "use_ema": True, "ema_momentum": 0.8}),
    "adam ema": (
        "Adam",
        {
            "learning_rate": 0.1,
            "use_ema": True,
            "ema_momentum": 0.6,
            "ema_overwrite_frequency": 2,
        },
    ),
    "rmsprop": ("RMSprop", {"learning_rate": 0.02}),
    "rmsprop centered": (
        "RMSprop",
        {"learning_rate": 0.02, "momentum": 0.7, "centered": True, "epsilon": 1e-3},
    ),
    "adam": ("Adam", {"learning_rate": 0.05}),
    "adam amsgrad": ("Adam", {"learning_rate": 0.1, "beta_2": 0.5, "amsgrad": True}),
    "adamw": ("AdamW", {"learning_rate": COSINE, "weight_decay": 0.2}),
    "adamw amsgrad": ("AdamW", {"beta_2": 0.6, "amsgrad": True, "clipnorm": 0.5}),
    "adagrad": ("Adagrad", {"learning_rate": 0.1}),
    "adagrad decay": (
        "Adagrad",
        {
            "learning_rate": COSINE,
            "initial_accumulator_value": 0.5,
            "epsilon": 1e-2,
            "weight_decay": 0.1,
        },
    ),
    "adadelta": ("Adadelta", {"learning_rate": 1.0}),
    "adadelta decay": (
        "Adadelta",
        {"learning_rate": COSINE, "rho": 0.8, "epsilon": 1e-3, "weight_decay": 0.1},
    ),
    "adamax": ("Adamax", {"learning_rate": 0.05}),
    "adamax decay": (
        "Adamax",
        {"learning_rate": COSINE, "beta_2": 0.7, "weight_decay": 0.1},
    ),
    "nadam": ("Nadam", {"learning_rate": 0.05}),
    "nadam decay": (
        "Nadam",
        {"learning_rate": COSINE, "beta_1": 0.8, "weight_decay": 0.1},
    ),
    "lion": ("Lion", {"learning_rate": 0.05}),
    "lion decay": (
        "Lion",
        {"learning_rate": COSINE, "weight_decay": 0.1, "global_clipnorm": 1.0},
    ),
    "lamb": ("Lamb", {"learning_rate": 0.05}),
    "lamb decay": (
        "Lamb",
        {"learning_rate": COSINE, "weight_decay": 0.1, "clipvalue": 0.8},
    ),
    "ftrl": ("Ftrl", {"learning_rate": 0.2}),
    "ftrl regularized": (
        "Ftrl",
        {
            "learning_rate": COSINE,
            "learning_rate_power": -0.7,
            "initial_accumulator_value": 0.3,
            "l1_regularization_strength": 0.2,
            "l2_regularization_strength": 0.1,
            "l2_shrinkage_regularization_strength": 0.05,
            "beta": 0.1,
            "weight_decay": 0.1,
        },
    ),
}


def optimizer_inputs() -> tuple[dict[str, Array], list[dict[str, Array]]]:
    """Return the first values and the gradients of each step."""
    rng = np.random.default_rng(7)

    def draw() -> dict[str, Array]:
        return {k: rng.standard_normal(s, np.float32) for k, s in SHAPES.items()}

    first, grads = draw(), [draw() for _ in range(STEPS)]
    first["bias"][...] = 0  # LAMB: the norm of the values is 0
    return first, grads


# class, arguments, kind of targets, kind of predictions
LOSSES: dict[str, tuple[str, dict[str, Any], str, str]] = {
    "mse": ("MeanSquaredError", {}, "real", "real"),
    "mae": ("MeanAbsoluteError", {}, "real", "real"),
    "mape": ("MeanAbsolutePercentageError", {}, "real", "real"),
    "msle": ("MeanSquaredLogarithmicError", {}, "real", "real"),
    "huber": ("Huber", {}, "real", "real"),
    "huber 0.4": ("Huber", {"delta": 0.4}, "real", "real"),
    "log cosh": ("LogCosh", {}, "real", "real"),
    "cosine": ("CosineSimilarity", {}, "real", "real"),
    "kl": ("KLDivergence", {}, "soft", "probability"),
    "poisson": ("Poisson", {}, "count", "probability"),
    "hinge": ("Hinge", {}, "binary", "real"),
    "hinge signs": ("Hinge", {}, "sign", "real"),
    "squared hinge": ("SquaredHinge", {}, "binary", "real"),
    "categorical hinge": ("CategoricalHinge", {}, "one_hot", "real"),
    "bce": ("BinaryCrossentropy", {}, "binary", "probability"),
    "bce smoothed": (
        "BinaryCrossentropy",
        {"label_smoothing": 0.2, "from_logits": True},
        "binary",
        "real",
    ),
    "cce smoothed": (
        "CategoricalCrossentropy",
        {"label_smoothing": 0.1},
        "one_hot",
        "soft",
    ),
    "cce logits smoothed": (
        "CategoricalCrossentropy",
        {"label_smoothing": 0.3, "from_logits": True},
        "one_hot",
        "real",
    ),
    "sparse": ("SparseCategoricalCrossentropy", {}, "labels", "soft"),
    "binary focal": ("BinaryFocalCrossentropy", {}, "binary", "probability"),
    "binary focal logits": (
        "BinaryFocalCrossentropy",
        {
            "from_logits": True,
            "apply_class_balancing": True,
            "alpha": 0.3,
            "gamma": 1.5,
            "label_smoothing": 0.1,
        },
        "binary",
        "real",
    ),
    "focal": ("CategoricalFocalCrossentropy", {}, "one_hot", "soft"),
    "focal logits": (
        "CategoricalFocalCrossentropy",
        {"from_logits": True, "alpha": 0.4, "gamma": 3.0, "label_smoothing": 0.1},
        "one_hot",
        "real",
    ),
    "dice": ("Dice", {}, "binary", "probability"),
    "dice images": ("Dice", {"axis": (1, 2)}, "binary", "probability"),
    "dice features": ("Dice", {"axis": (1,)}, "binary", "probability"),
    "tversky": ("Tversky", {"alpha": 0.7, "beta": 0.2}, "binary", "probability"),
    "tversky images": (
        "Tversky",
        {"alpha": 0.3, "beta": 0.6, "axis": (1, 2)},
        "binary",
        "probability",
    ),
    "ctc": ("CTC", {}, "sequence", "real"),
}
WHOLE = {"dice", "tversky"}  # one number for a batch


def loss_inputs(
    targets: str, predictions: str, shape: tuple[int, ...] = (4, 9, 5), seed: int = 3
) -> tuple[Array, Array]:
    """Return (y_true, y_pred), the latter float32."""
    rng = np.random.default_rng(seed)
    real = rng.standard_normal(shape)
    labels = rng.integers(0, shape[-1], shape[:-1])
    soft = rng.random(shape) + 0.05
    soft /= soft.sum(-1, keepdims=True)
    sequence = np.zeros((shape[0], 4), np.int64)
    for row, length in zip(sequence, (3, 4, 0, 1), strict=False):
        row[:length] = rng.integers(1, shape[-1], length)
    sequence[0, 1] = sequence[0, 0]  # a repeated label
    y = {
        "real": rng.standard_normal(shape).astype(np.float32),
        "soft": soft.astype(np.float32),
        "count": rng.integers(0, 4, shape),
        "binary": rng.integers(0, 2, shape),
        "sign": 2 * rng.integers(0, 2, shape) - 1,
        "one_hot": np.eye(shape[-1])[labels],
        "labels": labels,
        "sequence": sequence,
    }[targets]
    other = rng.random(shape) + 0.05
    x = {
        "real": 1.5 * real,
        "probability": 0.02 + 0.96 * rng.random(shape),
        "soft": other / other.sum(-1, keepdims=True),
    }[predictions]
    return y, x.astype(np.float32)


def loss_weights(shape: tuple[int, ...]) -> Array:
    return np.random.default_rng(8).random(shape, np.float32)
