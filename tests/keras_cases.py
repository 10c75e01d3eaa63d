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
