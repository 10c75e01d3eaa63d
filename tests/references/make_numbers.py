"""Make numbers_*.npz with Keras' JAX backend, next to this file.

Run it with a Python that has keras and jax: optimizers, losses, metrics, schedules and
initializers of ``tests/keras_cases.py``.
"""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path
from typing import Any

os.environ["KERAS_BACKEND"] = "jax"
HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

import jax  # noqa: E402
import keras  # noqa: E402
import keras_cases as cases  # noqa: E402
import numpy as np  # noqa: E402

Arrays = dict[str, np.ndarray[Any, Any]]


def given(arguments: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments with the schedules made."""
    made = dict(arguments)
    for name, value in arguments.items():
        if isinstance(value, dict) and "schedule" in value:
            kind, keys = value["schedule"]
            made[name] = getattr(keras.optimizers.schedules, kind)(**keys)
    return made


def optimizers() -> Arrays:
    found: Arrays = {}
    for case, (kind, arguments) in cases.OPTIMIZERS.items():
        first, grads = cases.optimizer_inputs()
        variables = {k: keras.Variable(v, name=k) for k, v in first.items()}
        optimizer = getattr(keras.optimizers, kind)(**given(arguments))
        optimizer.exclude_from_weight_decay(var_names=["bias"])
        for step in grads:
            optimizer.apply([step[k] for k in variables], list(variables.values()))
            for k, v in variables.items():
                found.setdefault(f"{case}/{k}", []).append(np.array(v))
        if arguments.get("use_ema"):
            optimizer.finalize_variable_values(list(variables.values()))
            for k, v in variables.items():
                found[f"{case}/{k}"].append(np.array(v))
    return {name: np.stack(values) for name, values in found.items()}


def losses() -> Arrays:
    found: Arrays = {}
    for case, (kind, arguments, targets, predictions) in cases.LOSSES.items():
        y, x = cases.loss_inputs(targets, predictions)
        make = getattr(keras.losses, kind)
        each = make(**arguments, reduction=None)
        found[f"{case}/each"] = np.array(each(y, x))
        found[f"{case}/mean"] = np.array(make(**arguments)(y, x))
        found[f"{case}/sum"] = np.array(make(**arguments, reduction="sum")(y, x))
        found[f"{case}/gradient"] = np.array(
            jax.grad(lambda x, y=y, each=each: each(y, x).sum())(x)
        )
        weights = cases.loss_weights(found[f"{case}/each"].shape[:1] or (4,))
        found[f"{case}/weighted"] = np.array(
            make(**arguments)(
                y, x, weights[:, None] if found[f"{case}/each"].ndim > 1 else weights
            )
        )
        weighted = make(**arguments, reduction="mean_with_sample_weight")
        if case not in cases.WHOLE and found[f"{case}/each"].ndim == 1:
            found[f"{case}/weighted mean"] = np.array(weighted(y, x, weights))
    return found


def metrics() -> Arrays:
    found: Arrays = {}
    for case, (kind, arguments, data) in cases.METRICS.items():
        y, x, weights = cases.metric_inputs(data)
        for weighted in (False, True):
            metric = getattr(keras.metrics, kind)(**arguments)
            for part in cases.BATCHES:
                metric.update_state(
                    y[part], x[part], weights[part] if weighted else None
                )
            found[f"{case}/{weighted}"] = np.array(metric.result())
    return found


def schedules() -> Arrays:
    found: Arrays = {}
    for case, (kind, arguments) in cases.SCHEDULES.items():
        schedule = getattr(keras.optimizers.schedules, kind)(**arguments)
        steps = range(cases.SCHEDULE_STEPS)
        found[case] = np.array([float(schedule(step)) for step in steps], np.float32)
    return found


def weights() -> Arrays:
    found: Arrays = {}
    w = jax.numpy.asarray(cases.weight())
    for case, (kind, arguments) in cases.REGULARIZERS.items():
        penalty = getattr(keras.regularizers, kind)(**arguments)
        found[f"{case}/penalty"] = np.array(penalty(w))
        found[f"{case}/gradient"] = np.array(jax.grad(penalty)(w))
    for case, (kind, arguments) in cases.CONSTRAINTS.items():
        arguments = {
            k: tuple(v) if k == "axis" and v != 0 and v != 1 else v
            for k, v in arguments.items()
        }
        found[f"{case}/value"] = np.array(
            getattr(keras.constraints, kind)(**arguments)(w)
        )
    return found


def trainings() -> Arrays:
    found: Arrays = {}
    x, y, sample_weight, kernel = cases.training_inputs()
    for case, (reduction, penalties, rules) in cases.TRAININGS.items():
        options = {
            f"{name}_regularizer": getattr(keras.regularizers, kind)(**arguments)
            for name, (kind, arguments) in penalties.items()
        } | {
            f"{name}_constraint": getattr(keras.constraints, kind)(**arguments)
            for name, (kind, arguments) in rules.items()
        }
        model = keras.Sequential(
            [keras.layers.Input((6,)), keras.layers.Dense(4, **options)]
        )
        model.set_weights([kernel, np.zeros(4, np.float32)])
        loss = keras.losses.MeanSquaredError(reduction)
        model.compile(
            keras.optimizers.SGD(0.02), loss, metrics=["mae"], weighted_metrics=["mae"]
        )
        data = {"batch_size": 4, "sample_weight": sample_weight, "verbose": 0}
        history = model.fit(x, y, epochs=3, shuffle=False, **data).history
        found |= {f"{case}/history/{k}": np.array(v) for k, v in history.items()}
        measured = model.evaluate(x, y, return_dict=True, **data)
        found |= {f"{case}/evaluate/{k}": np.array(v) for k, v in measured.items()}
        found[f"{case}/kernel"], found[f"{case}/bias"] = model.get_weights()
    return found


def main() -> None:
    warnings.simplefilter("ignore")
    made = {
        "optimizers": optimizers(),
        "losses": losses(),
        "metrics": metrics(),
        "schedules": schedules(),
        "weights": weights(),
        "trainings": trainings(),
    }
    for name, arrays in made.items():
        path = HERE / f"numbers_{name}.npz"
        np.savez_compressed(path, **arrays)
        print(path.name, len(arrays), path.stat().st_size)


if __name__ == "__main__":
    main()
