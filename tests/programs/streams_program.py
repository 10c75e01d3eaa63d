"""Training by a generator that a thread reads ahead; prints what the tests compare."""

import json
import sys
import threading
import time
import zlib

import numpy as np

import fastserve as fs
from fastserve.data import prefetch

# a thread pays however long steps take: ranks may have to share a core, and a batch
# takes more than WORTH by itself
prefetch.PAYS = 0.0
what = sys.argv[1]
rng = np.random.default_rng(0)
x = rng.standard_normal((60, 6)).astype(np.float32)
y = (x @ rng.standard_normal((6, 3))).argmax(axis=1)
rank = fs.world().rank
threads = set()


def batches(passes):
    for _ in range(passes):
        for start in range(0, 60, 16):
            threads.add(threading.current_thread().name)
            time.sleep(0.004)
            rows = slice(start, start + 16)
            if what == "differ" and rank == 1 and start == 48:
                rows = slice(start, start + 8)
            yield x[rows], y[rows]


class Watch(fs.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        if what == "stop" and rank == 1 and batch == 2:
            self.model.stop_training = True
        if what == "fail" and rank == 1 and batch == 2:
            raise KeyError("the cause")
        if what == "sleep":
            if rank == 0:
                print("step", flush=True)
            time.sleep(0.05)


model = fs.models.Sequential(
    [fs.layers.Dense(8, "relu"), fs.layers.Dense(3, "softmax")], seed=2
)
model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
passes = 500 if what == "sleep" else 5
history = model.fit(
    batches(passes), epochs=passes, steps_per_epoch=4, verbose=0, callbacks=Watch()
)
found = {
    "epochs": len(history.epoch),
    "steps": model.optimizer.step,
    "ahead": "prefetch" in threads,
    "left": [t.name for t in threading.enumerate() if t.name == "prefetch"],
    "loss": history.history["loss"][-1],
    "sum": zlib.crc32(model.store.values.tobytes()),
    "answers": zlib.crc32(model.predict(x, 7).tobytes()),
    "mean": float(model.predict(batches(1)).mean(axis=0)[0]),
}
everyone = fs.world().gather_obj(found)
if rank == 0:
    print(json.dumps(everyone), flush=True)
