"""Write callbacks.json: what Keras' callbacks do with given values of val_loss.

Run with Keras 3: ``KERAS_BACKEND=jax python tests/references/make_callbacks.py``.
"""

import json
import tempfile
from pathlib import Path

import keras
import numpy as np

VALUES = [
    [3, 2, 2, 2, 2, 1.5, 1.5, 1.5, 1.5, 1.5, 1.5, 1.4],
    [1, 2, 3, 4, 5, 6, 7, 8, 9, 10],
    [1, 0.99999, 0.99998, 0.9, 0.89995, 0.8, 0.8, 0.8],
]
PLATEAU = [
    {"patience": 2, "factor": 0.5},
    {"patience": 1, "factor": 0.1, "min_lr": 0.002},
    {"patience": 2, "factor": 0.5, "cooldown": 2},
    {"patience": 0, "factor": 0.5, "cooldown": 1},
    {"patience": 1, "factor": 0.5, "min_delta": 0.6},
    {"patience": 1, "factor": 0.5, "mode": "max"},
]
STOPPING = [
    {"patience": 0},
    {"patience": 1},
    {"patience": 3},
    {"patience": 2, "baseline": 1.6},
    {"patience": 1, "min_delta": 0.6},
    {"patience": 2, "start_from_epoch": 3},
    {"patience": 1, "mode": "max"},
]


class Put(keras.callbacks.Callback):
    def __init__(self, values):
        super().__init__()
        self.values = values

    def on_epoch_end(self, epoch, logs=None):
        logs["val_loss"] = self.values[epoch]


class Events(keras.callbacks.Callback):
    def __init__(self, stop_at=None):
        super().__init__()
        self.seen, self.stop_at = [], stop_at

    def on_train_batch_end(self, batch, logs=None):
        self.seen.append(f"train_batch_end {batch}")
        if self.stop_at is not None and len(self.seen) >= self.stop_at:
            self.model.stop_training = True


for moment in ("train", "test", "predict"):
    for end in ("begin", "end"):

        def heard(self, logs=None, name=f"{moment}_{end}"):
            self.seen.append(name)

        setattr(Events, f"on_{moment}_{end}", heard)
for moment in (
    "epoch_begin",
    "epoch_end",
    "train_batch_begin",
    "test_batch_begin",
    "test_batch_end",
    "predict_batch_begin",
    "predict_batch_end",
):

    def heard(self, number, logs=None, name=moment):
        self.seen.append(f"{name} {number}")

    setattr(Events, f"on_{moment}", heard)


def fit(values, callback):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.layers.Input((3,)), keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(0.05), "mse")
    x = np.zeros((4, 3), "float32")
    y = np.zeros((4, 1), "float32")
    history = model.fit(
        x,
        y,
        epochs=len(values),
        verbose=0,
        callbacks=[Put(values), callback],
        validation_data=(x, y),
    )
    return history


def moments(batches, stop_at=None, **keys):
    model = keras.Sequential([keras.layers.Input((3,)), keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(0.05), "mse")
    x, y = np.zeros((6, 3), "float32"), np.zeros((6, 1), "float32")
    events = Events(stop_at)
    history = model.fit(
        x,
        y,
        2,
        epochs=3,
        verbose=0,
        callbacks=[events],
        validation_data=(x[:3], y[:3]),
        shuffle=False,
        **keys,
    )
    fitted = events.seen
    events.seen = []
    model.evaluate(x, y, 4, verbose=0, callbacks=[events])
    model.predict(x, 4, verbose=0, callbacks=[events])
    return {
        "fit": fitted,
        "after": events.seen,
        "epochs": history.epoch,
        "keys": sorted(history.history),
        "lengths": {k: len(v) for k, v in history.history.items()},
    }


def csv(values, append, **keys):
    model = keras.Sequential([keras.layers.Input((3,)), keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(0.05), "mse", metrics=["mae"])
    x, y = np.zeros((6, 3), "float32"), np.zeros((6, 1), "float32")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "log.csv"
        for _ in range(2):
            logger = keras.callbacks.CSVLogger(str(path), append=append, separator=";")
            model.fit(x, y, epochs=2, verbose=0, callbacks=[logger], **keys)
        return path.read_bytes().decode()


xy = np.zeros((6, 3), "float32"), np.zeros((6, 1), "float32")
found = {
    "plateau": [
        {
            "options": options,
            "values": values,
            "rates": fit(
                values, keras.callbacks.ReduceLROnPlateau(**{"mode": "min", **options})
            ).history["learning_rate"],
        }
        for options in PLATEAU
        for values in VALUES
    ],
    "stopping": [
        {
            "options": options,
            "values": values,
            "epochs": len(
                fit(
                    values, keras.callbacks.EarlyStopping(**{"mode": "min", **options})
                ).epoch
            ),
        }
        for options in STOPPING
        for values in VALUES
    ],
    "scheduler": fit(
        VALUES[0],
        keras.callbacks.LearningRateScheduler(
            lambda e, r: r * (0.5 if e % 3 == 2 else 1.0)
        ),
    ).history["learning_rate"],
    "moments": moments(3),
    "moments_freq_2": moments(3, validation_freq=2),
    "moments_freq_list": moments(3, validation_freq=[1, 3]),
    "moments_stop": moments(3, stop_at=12),
    "csv": csv(VALUES[0], False),
    "csv_append": csv(VALUES[0], True, validation_data=xy),
}
path = Path(__file__).with_name("callbacks.json")
path.write_text(json.dumps(found, indent=1) + "\n")
print(path, path.stat().st_size)
