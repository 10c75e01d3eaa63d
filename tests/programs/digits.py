"""The README's first example on real digits; prints what the tests compare."""

import json
import sys
import zlib

import numpy as np

import fastserve as fs

x, y = fs.datasets.mnist_sample()
order = np.random.default_rng(0).permutation(len(x))
x = x[order].reshape(-1, 784).astype("float32") / 255
y = np.eye(10, dtype="float32")[y[order]]
x_train, y_train = x[:4000], y[:4000]
x_val, y_val = x[4000:4500], y[4000:4500]
x_test, y_test = x[4500:], y[4500:]

model = fs.models.Sequential()
model.add(fs.layers.Dense(128, activation="relu", input_shape=(784,)))
model.add(fs.layers.Dense(64, activation="relu"))
model.add(fs.layers.Dense(10, activation="softmax"))
model.compile(optimizer="adam", loss="categorical_crossentropy", metrics=["accuracy"])
history = model.fit(
    x_train,
    y_train,
    batch_size=32,
    epochs=int(sys.argv[1]) if len(sys.argv) > 1 else 10,
    validation_data=(x_val, y_val),
)
predictions = model.predict(x_test)
accuracy = float((predictions.argmax(axis=1) == y_test.argmax(axis=1)).mean())

world = fs.world()
sums = world.gather_obj(zlib.crc32(model.store.values.tobytes()))
if world.rank == 0:
    result = {"ranks": world.size, "accuracy": accuracy, "sums": sums}
    print(json.dumps({**result, "history": history.history}), flush=True)
