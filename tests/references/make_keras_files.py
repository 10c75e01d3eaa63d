"""Write weights as Keras 3 saves them, and see that Keras reads ours.

``KERAS_BACKEND=jax python tests/references/make_keras_files.py PYTHON``, where PYTHON
runs fastserve. It writes keras_files/NAME.weights.h5, and what the models answer into
keras_files/answers.npz; it fails if Keras answers otherwise with our file.
"""

import json
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np

HERE = Path(__file__).parent / "keras_files"
sys.path.insert(0, str(Path(__file__).parent))
L = keras.layers

OURS = """
import sys, numpy as np
sys.path.insert(0, {folder!r})
import fastserve as fs
from keras_models import MODELS
for name, make in MODELS.items():
    model, x = make(fs)
    rng = np.random.default_rng(7)
    model.set_weights([rng.uniform(0.1, 0.9, w.shape) for w in model.get_weights()])
    model.save_weights({out!r} + f"/{{name}}.weights.h5")
    np.save({out!r} + f"/{{name}}.npy", model.predict(x, verbose=0))
"""


def main():
    from keras_models import MODELS

    HERE.mkdir(exist_ok=True)
    answers = {}
    for name, make in MODELS.items():
        keras.utils.clear_session()
        model, x = make(keras)
        rng = np.random.default_rng(5)
        model.set_weights([rng.uniform(0.1, 0.9, w.shape) for w in model.get_weights()])
        model.save_weights(HERE / f"{name}.weights.h5")
        answers[name] = np.asarray(model.predict(x, verbose=0))
        answers[f"{name}/order"] = np.array(
            json.dumps([list(w.shape) for w in model.get_weights()])
        )
    np.savez_compressed(HERE / "answers.npz", **answers)
    import tempfile

    with tempfile.TemporaryDirectory() as out:
        code = OURS.format(folder=str(Path(__file__).parent), out=out)
        subprocess.run([sys.argv[1], "-c", code], check=True)
        for name, make in MODELS.items():
            keras.utils.clear_session()
            model, x = make(keras)
            model.load_weights(f"{out}/{name}.weights.h5")
            found = np.asarray(model.predict(x, verbose=0))
            wanted = np.load(f"{out}/{name}.npy")
            print(name, np.abs(found - wanted).max())
            np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


main()
