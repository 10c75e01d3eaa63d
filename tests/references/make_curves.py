"""Writes curves.json: the losses of short trainings in Keras, one a step.

KERAS_BACKEND=jax python tests/references/make_curves.py
"""

import json
from pathlib import Path

import keras
from curves import CLASSES, MODELS, OPTIMIZERS, TIME, WORDS, batches, start
from keras import layers

LAYERS = {
    "mlp": lambda: [
        layers.Input((20,)),
        layers.Dense(32, "relu"),
        layers.Dense(16, "tanh"),
        layers.Dense(CLASSES, "softmax"),
    ],
    "cnn": lambda: [
        layers.Input((12, 12, 3)),
        layers.Conv2D(8, 3, padding="same", use_bias=False),
        layers.BatchNormalization(),
        layers.Activation("relu"),
        layers.MaxPooling2D(),
        layers.Conv2D(12, 3, strides=2, padding="same"),
        layers.BatchNormalization(),
        layers.Activation("relu"),
        layers.AveragePooling2D(3, strides=1),
        layers.Flatten(),
        layers.Dense(CLASSES, "softmax"),
    ],
    "lstm": lambda: [
        layers.Input((TIME,)),
        layers.Embedding(WORDS, 8, mask_zero=True),
        layers.LSTM(16, return_sequences=True),
        layers.LSTM(12),
        layers.Dense(CLASSES, "softmax"),
    ],
}


def losses(name: str, optimizer: str) -> list[float]:
    model = keras.Sequential(LAYERS[name]())
    made = {"adam": keras.optimizers.Adam, "sgd": keras.optimizers.SGD}[optimizer]
    model.compile(made(**OPTIMIZERS[optimizer]), "sparse_categorical_crossentropy")
    weights = model.get_weights()
    for i, matrix in enumerate(start([w.shape for w in weights])):
        weights[i] = weights[i] if matrix is None else matrix
    model.set_weights(weights)
    found = []
    for x, y in batches(name):
        model.reset_metrics()  # else the loss is the mean of all steps
        found.append(round(float(model.train_on_batch(x, y)), 6))
    return found


def main() -> None:
    curves = {
        f"{name} {optimizer}": losses(name, optimizer)
        for name in MODELS
        for optimizer in OPTIMIZERS
    }
    path = Path(__file__).with_name("curves.json")
    path.write_text(json.dumps(curves, indent=0) + "\n", encoding="utf-8")


main()
