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


# class, arguments, kind of data
METRICS: dict[str, tuple[str, dict[str, Any], str]] = {
    "accuracy": ("Accuracy", {}, "classes"),
    "binary accuracy": ("BinaryAccuracy", {"threshold": 0.4}, "multi label"),
    "categorical accuracy": ("CategoricalAccuracy", {}, "one hot"),
    "sparse accuracy": ("SparseCategoricalAccuracy", {}, "sparse"),
    "top 2": ("TopKCategoricalAccuracy", {"k": 2}, "one hot"),
    "sparse top 3": ("SparseTopKCategoricalAccuracy", {"k": 3}, "sparse"),
    "true positives": ("TruePositives", {}, "binary"),
    "false positives": ("FalsePositives", {"thresholds": [0.2, 0.7]}, "binary"),
    "true negatives": ("TrueNegatives", {"thresholds": 0.3}, "multi label"),
    "false negatives": ("FalseNegatives", {}, "multi label"),
    "precision": ("Precision", {}, "binary"),
    "precision thresholds": ("Precision", {"thresholds": [0.1, 0.8, 0.6]}, "binary"),
    "precision even": ("Precision", {"thresholds": [0.0, 0.5, 1.0]}, "binary"),
    "precision class": ("Precision", {"class_id": 1}, "multi label"),
    "precision top": ("Precision", {"top_k": 2}, "one hot"),
    "precision top class": ("Precision", {"top_k": 2, "class_id": 3}, "one hot"),
    "recall": ("Recall", {}, "multi label"),
    "recall top": ("Recall", {"top_k": 3}, "one hot"),
    "sensitivity": ("SensitivityAtSpecificity", {"specificity": 0.6}, "binary"),
    "specificity": ("SpecificityAtSensitivity", {"sensitivity": 0.7}, "binary"),
    "precision at": ("PrecisionAtRecall", {"recall": 0.5}, "binary"),
    "recall at": (
        "RecallAtPrecision",
        {"precision": 0.6, "num_thresholds": 31, "class_id": 2},
        "multi label",
    ),
    "auc": ("AUC", {}, "binary"),
    "auc coarse": ("AUC", {"num_thresholds": 5}, "binary"),
    "auc thresholds": ("AUC", {"thresholds": [0.2, 0.25, 0.9]}, "binary"),
    "auc pr": ("AUC", {"curve": "PR"}, "binary"),
    "auc pr minoring": (
        "AUC",
        {"curve": "PR", "summation_method": "minoring"},
        "binary",
    ),
    "auc gain": ("AUC", {"curve": "PRGAIN", "num_thresholds": 20}, "binary"),
    "auc majoring": ("AUC", {"summation_method": "majoring"}, "multi label"),
    "auc logits": ("AUC", {"from_logits": True}, "logits"),
    "auc labels": ("AUC", {"multi_label": True}, "multi label"),
    "auc labels pr": (
        "AUC",
        {
            "multi_label": True,
            "curve": "PR",
            "label_weights": [0.1, 0.5, 0.2, 0.9, 0.3],
        },
        "multi label",
    ),
    "auc label weights": (
        "AUC",
        {"label_weights": [0.1, 0.5, 0.2, 0.9, 0.3]},
        "multi label",
    ),
    "f1": ("F1Score", {}, "one hot"),
    "f1 micro": ("F1Score", {"average": "micro"}, "one hot"),
    "f1 macro": ("F1Score", {"average": "macro", "threshold": 0.6}, "multi label"),
    "fbeta": ("FBetaScore", {"average": "weighted", "beta": 2.0}, "one hot"),
    "binary crossentropy": ("BinaryCrossentropy", {"label_smoothing": 0.1}, "column"),
    "categorical crossentropy": ("CategoricalCrossentropy", {}, "one hot"),
    "sparse crossentropy": ("SparseCategoricalCrossentropy", {}, "sparse"),
    "kl": ("KLDivergence", {}, "one hot"),
    "poisson": ("Poisson", {}, "multi label"),
    "hinge": ("Hinge", {}, "multi label"),
    "squared hinge": ("SquaredHinge", {}, "multi label"),
    "categorical hinge": ("CategoricalHinge", {}, "one hot"),
    "mse": ("MeanSquaredError", {}, "real"),
    "mae": ("MeanAbsoluteError", {}, "real"),
    "mape": ("MeanAbsolutePercentageError", {}, "real"),
    "msle": ("MeanSquaredLogarithmicError", {}, "real"),
    "rmse": ("RootMeanSquaredError", {}, "real"),
    "log cosh": ("LogCoshError", {}, "real"),
    "cosine": ("CosineSimilarity", {}, "real"),
    "pearson": ("PearsonCorrelation", {}, "real"),
    "concordance": ("ConcordanceCorrelation", {}, "real"),
    "r2": ("R2Score", {}, "real"),
    "r2 each": ("R2Score", {"class_aggregation": None}, "real"),
    "r2 adjusted": (
        "R2Score",
        {"class_aggregation": "variance_weighted_average", "num_regressors": 3},
        "real",
    ),
    "iou": ("IoU", {"num_classes": 5, "target_class_ids": [0, 3]}, "classes"),
    "mean iou": ("MeanIoU", {"num_classes": 5, "ignore_class": 2}, "classes"),
    "mean iou scores": (
        "MeanIoU",
        {"num_classes": 5, "sparse_y_pred": False},
        "sparse",
    ),
    "binary iou": ("BinaryIoU", {"threshold": 0.4}, "binary"),
    "one hot iou": (
        "OneHotIoU",
        {"num_classes": 5, "target_class_ids": [1, 2]},
        "one hot",
    ),
    "one hot mean iou": ("OneHotMeanIoU", {"num_classes": 5}, "one hot"),
}
BATCHES = (slice(0, 11), slice(11, 17))


def metric_inputs(kind: str) -> tuple[Array, Array, Array]:
    """Return (y_true, y_pred, integer weights) of 17 samples."""
    rng = np.random.default_rng(11)
    n, c = 17, 5
    labels, weights = rng.integers(0, c, n), rng.integers(0, 4, n)
    scores = np.round(rng.random((n, c)), 2).astype(np.float32)
    near = rng.integers(0, 2, (n, c))
    soft = scores + np.eye(c)[labels] * rng.random((n, 1))
    soft /= soft.sum(-1, keepdims=True)
    real = rng.standard_normal((n, c)).astype(np.float32)
    y, x = {
        "classes": (labels, np.where(rng.random(n) < 0.6, labels, 4 - labels)),
        "binary": (near[:, 0], np.round((scores + 0.5 * near)[:, 0] / 1.5, 2)),
        "column": (near[:, :1], np.round((scores + 0.5 * near)[:, :1] / 1.5, 2)),
        "logits": (near[:, 0], 3 * real[:, 0]),
        "multi label": (near, np.round((scores + 0.5 * near) / 1.5, 2)),
        "one hot": (np.eye(c)[labels], soft),
        "sparse": (labels, soft),
        "real": (real + 0.3, real + 0.5 * scores),
    }[kind]
    x = x if x.dtype.kind == "i" else x.astype(np.float32)
    return y, x, weights


SCHEDULES: dict[str, Case] = {
    "exponential": (
        "ExponentialDecay",
        {"initial_learning_rate": 0.3, "decay_steps": 7, "decay_rate": 0.6},
    ),
    "exponential stairs": (
        "ExponentialDecay",
        {
            "initial_learning_rate": 0.3,
            "decay_steps": 7,
            "decay_rate": 0.6,
            "staircase": True,
        },
    ),
    "inverse time": (
        "InverseTimeDecay",
        {"initial_learning_rate": 0.3, "decay_steps": 5, "decay_rate": 0.5},
    ),
    "inverse time stairs": (
        "InverseTimeDecay",
        {
            "initial_learning_rate": 0.3,
            "decay_steps": 5,
            "decay_rate": 0.5,
            "staircase": True,
        },
    ),
    "polynomial": (
        "PolynomialDecay",
        {
            "initial_learning_rate": 0.3,
            "decay_steps": 20,
            "end_learning_rate": 0.01,
            "power": 1.7,
        },
    ),
    "polynomial cycle": (
        "PolynomialDecay",
        {"initial_learning_rate": 0.3, "decay_steps": 12, "cycle": True},
    ),
    "piecewise": (
        "PiecewiseConstantDecay",
        {"boundaries": [5, 17], "values": [0.3, 0.1, 0.02]},
    ),
    "cosine": (
        "CosineDecay",
        {"initial_learning_rate": 0.3, "decay_steps": 30, "alpha": 0.1},
    ),
    "cosine warm-up": (
        "CosineDecay",
        {
            "initial_learning_rate": 0.01,
            "decay_steps": 20,
            "alpha": 0.2,
            "warmup_target": 0.4,
            "warmup_steps": 8,
        },
    ),
    "restarts": (
        "CosineDecayRestarts",
        {"initial_learning_rate": 0.3, "first_decay_steps": 6},
    ),
    "restarts even": (
        "CosineDecayRestarts",
        {
            "initial_learning_rate": 0.3,
            "first_decay_steps": 7,
            "t_mul": 1.0,
            "m_mul": 0.8,
            "alpha": 0.1,
        },
    ),
    "restarts 1.5": (
        "CosineDecayRestarts",
        {
            "initial_learning_rate": 0.3,
            "first_decay_steps": 5,
            "t_mul": 1.5,
            "m_mul": 0.9,
        },
    ),
}
SCHEDULE_STEPS = 45

REGULARIZERS: dict[str, Case] = {
    "l1": ("L1", {"l1": 0.02}),
    "l2": ("L2", {"l2": 0.03}),
    "l1l2": ("L1L2", {"l1": 0.01, "l2": 0.02}),
    "rows": ("OrthogonalRegularizer", {"factor": 0.3}),
    "columns": ("OrthogonalRegularizer", {"factor": 0.2, "mode": "columns"}),
}
CONSTRAINTS: dict[str, Case] = {
    "max norm": ("MaxNorm", {"max_value": 0.9}),
    "max norm rows": ("MaxNorm", {"max_value": 1.5, "axis": 1}),
    "non neg": ("NonNeg", {}),
    "unit norm": ("UnitNorm", {"axis": [0, 1]}),
    "min max": ("MinMaxNorm", {"min_value": 0.8, "max_value": 1.2, "rate": 0.6}),
}


def weight() -> Array:
    return np.random.default_rng(5).standard_normal((6, 4)).astype(np.float32)


# a Dense layer that is trained: reduction, regularizers and constraints
TRAININGS: dict[str, tuple[str, dict[str, Case], dict[str, Case]]] = {
    "plain": ("sum_over_batch_size", {}, {}),
    "sum": ("sum", {"kernel": REGULARIZERS["l1l2"]}, {}),
    "regularized": (
        "sum_over_batch_size",
        {"kernel": REGULARIZERS["columns"], "bias": REGULARIZERS["l2"]},
        {},
    ),
    "constrained": (
        "sum_over_batch_size",
        {"kernel": REGULARIZERS["l1"]},
        {"kernel": CONSTRAINTS["max norm"], "bias": CONSTRAINTS["non neg"]},
    ),
}


def training_inputs() -> tuple[Array, Array, Array, Array]:
    """Return x, y, the sample weights, and the kernel to start with."""
    rng = np.random.default_rng(1)
    x = rng.standard_normal((10, 6)).astype(np.float32)
    y = rng.standard_normal((10, 4)).astype(np.float32)
    return x, y, np.arange(1, 11, dtype=np.float32) / 5, weight()
