"""Writes keras_surface.json: what Keras 3 calls its things, and their arguments.

    KERAS_BACKEND=jax python tests/references/make_surface.py

group -> name -> argument -> its default, as Python writes it; "required" without one.
"""

import inspect
import json
from pathlib import Path

import keras

GROUPS = {
    "layers": (keras.layers, keras.layers.Layer),
    "losses": (keras.losses, keras.losses.Loss),
    "metrics": (keras.metrics, keras.metrics.Metric),
    "optimizers": (keras.optimizers, keras.optimizers.Optimizer),
    "schedules": (
        keras.optimizers.schedules,
        keras.optimizers.schedules.LearningRateSchedule,
    ),
    "callbacks": (keras.callbacks, keras.callbacks.Callback),
    "initializers": (keras.initializers, keras.initializers.Initializer),
    "regularizers": (keras.regularizers, keras.regularizers.Regularizer),
    "constraints": (keras.constraints, keras.constraints.Constraint),
}
METHODS = """
    add build compile count_params evaluate fit from_config get_config get_layer
    get_weights input_shape layers load_weights metrics_names non_trainable_weights
    output_shape pop predict predict_on_batch reset_metrics save save_weights
    set_weights summary test_on_batch to_json train_on_batch trainable
    trainable_weights weights
"""


def arguments(function: object) -> dict[str, str]:
    """Return the arguments, without self and those that stand for any."""
    found = {}
    for p in inspect.signature(function).parameters.values():
        if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD) and p.name != "self":
            found[p.name] = "required" if p.default is p.empty else repr(p.default)
    return found


def classes(module: object, base: type) -> dict[str, dict[str, str]]:
    named = {}
    for name in sorted(dir(module)):
        found = getattr(module, name)
        if name[0].isupper() and isinstance(found, type) and issubclass(found, base):
            named[name] = arguments(found.__init__)
    return named


def main() -> None:
    surface = {group: classes(*of) for group, of in GROUPS.items()}
    surface["model"] = {
        name: arguments(found) if callable(found) else {}
        for name in METHODS.split()
        for found in [getattr(keras.Sequential, name)]
    }
    functions = ("clone_model", "load_model", "model_from_json")
    surface["models"] = {n: arguments(getattr(keras.models, n)) for n in functions}
    functions = ("to_categorical", "pad_sequences", "set_random_seed", "normalize")
    surface["utils"] = {n: arguments(getattr(keras.utils, n)) for n in functions}
    surface["activations"] = {
        n: {}
        for n in sorted(dir(keras.activations))
        if n[0] != "_" and n not in ("get", "serialize", "deserialize")
    }
    text = json.dumps({"keras": keras.__version__, **surface}, indent=1)
    path = Path(__file__).with_name("keras_surface.json")
    path.write_text(text + "\n", encoding="utf-8")


main()
