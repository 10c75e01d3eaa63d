"""comm.algorithm exact: the same bits on any number of ranks."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import fastserve as fs
from fastserve.comm import Communicator, run_threads
from fastserve.config import schema
from fastserve.environment import NUMERICS_KEYS
from fastserve.training import exact
from fastserve.training import numerics as module
from fastserve.training.numerics import numerics, odd_rank
from fastserve.training.step import Options

L = fs.layers
RNG = np.random.default_rng(4)
ROWS = 45  # the last batch is short, and so is its last shard


def test_a_job_and_a_script_cut_a_batch_alike() -> None:
    assert schema.SHARDS == exact.SHARDS


def mlp() -> fs.models.Model:
    model = fs.models.Sequential(
        [
            L.Dense(33, "gelu", input_shape=(20,), kernel_regularizer="l2"),
            L.Dropout(0.3),
            L.LayerNormalization(),
            L.Dense(5, "softmax"),
        ],
        seed=3,
    )
    model.compile(
        fs.optimizers.AdamW(1e-2),
        "sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    return model


def gpt() -> fs.models.Model:
    model = fs.models.GPT(17, 12, 2, 2, 16, dropout=0.1, seed=3)
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def lstm() -> fs.models.Model:
    model = fs.models.Sequential(
        [
            L.Embedding(11, 6, mask_zero=True, input_shape=(9,)),
            L.LSTM(7, dropout=0.2, return_sequences=True),
            L.GRU(5),
            L.Dense(1, "sigmoid"),
        ],
        seed=3,
    )
    model.compile("rmsprop", "binary_crossentropy", metrics=["accuracy"])
    return model


def batch_norm() -> fs.models.Model:
    model = fs.models.Sequential(
        [
            L.Dense(12, input_shape=(20,)),
            L.BatchNormalization(),
            L.Activation("relu"),
            L.Dense(5, "softmax"),
        ],
        seed=3,
    )
    model.compile(
        fs.optimizers.SGD(0.05, 0.9),
        "sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    return model


def cnn() -> fs.models.Model:
    model = fs.models.Sequential(
        [
            L.Conv2D(6, 3, padding="same", input_shape=(8, 8, 2)),
            L.BatchNormalization(),
            L.Activation("relu"),
            L.MaxPooling2D(2),
            L.Conv2D(5, 3, strides=2),
            L.BatchNormalization(),
            L.GlobalAveragePooling2D(),
            L.Dense(3, "softmax"),
        ],
        seed=3,
    )
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def both_ways() -> fs.models.Model:
    model = fs.models.Sequential(
        [
            L.Embedding(11, 6, mask_zero=True, input_shape=(9,)),
            L.Bidirectional(L.LSTM(5)),
            L.Dense(1, "sigmoid"),
        ],
        seed=3,
    )
    model.compile(
        fs.optimizers.Adam(1e-2, use_ema=True),
        "binary_crossentropy",
        metrics=[fs.metrics.AUC(num_thresholds=20)],
    )
    return model


def two_outputs() -> fs.models.Model:
    x = fs.Input((20,))
    hidden = L.Dropout(0.2)(L.Dense(12, "relu")(x))
    outputs = [L.Dense(5, "softmax", name="kind")(hidden), L.Dense(1, name="size")(x)]
    model = fs.models.Model(x, outputs, seed=3)
    model.compile("adam", ["sparse_categorical_crossentropy", "mse"])
    return model


CASES: dict[str, tuple[Callable[[], fs.models.Model], Any, Any]] = {
    "mlp": (mlp, RNG.standard_normal((ROWS, 20)), RNG.integers(0, 5, ROWS)),
    "batch norm": (
        batch_norm,
        RNG.standard_normal((ROWS, 20)),
        RNG.integers(0, 5, ROWS),
    ),
    "cnn": (cnn, RNG.standard_normal((ROWS, 8, 8, 2)), RNG.integers(0, 3, ROWS)),
    "two outputs": (
        two_outputs,
        RNG.standard_normal((ROWS, 20)),
        [RNG.integers(0, 5, ROWS), RNG.standard_normal((ROWS, 1))],
    ),
    "both ways": (
        both_ways,
        RNG.integers(0, 11, (ROWS, 9)),
        RNG.integers(0, 2, ROWS),
    ),
    "lstm": (lstm, RNG.integers(0, 11, (ROWS, 9)), RNG.integers(0, 2, ROWS)),
    "gpt": (gpt, RNG.integers(0, 17, (ROWS, 12)), RNG.integers(0, 17, (ROWS, 12))),
}


def train(name: str, ranks: int, **options: Any) -> tuple[str, Any]:
    """Return the hash of all weights, and the losses and metrics of each epoch."""
    make, x, y = CASES[name]
    known = [part[:19] for part in y] if isinstance(y, list) else y[:19]

    def program(comm: Communicator) -> tuple[str, Any]:
        model = make()
        model.clip_norm = 0.5
        model.options = Options(algorithm="exact", check_every=1, **options)
        history = model.fit(
            x, y, batch_size=16, epochs=2, validation_data=(x[:19], known), verbose=0
        )
        assert model.trainer is not None
        state = model.optimizer.state if model.optimizer else {}
        digest = hashlib.sha256(model.store.values.tobytes())
        digest.update(model.store.frozen.tobytes())
        for vector in state.values():
            digest.update(vector.tobytes())
        return digest.hexdigest(), history.history

    results = run_threads(ranks, program)
    assert all(result == results[0] for result in results)
    return results[0]


@pytest.mark.parametrize("micro_batch", [None, 3, 16])
@pytest.mark.parametrize("name", CASES)
def test_the_same_bits_on_any_number_of_ranks(
    name: str, micro_batch: int | None
) -> None:
    alone = train(name, 1, micro_batch=micro_batch)
    for ranks in (2, 3, 4, 6, 8):
        overlap = ranks % 2 == 0
        other = train(name, ranks, micro_batch=micro_batch, overlap=overlap)
        assert other == alone, ranks


def test_another_cut_gives_other_bits_of_the_same_numbers() -> None:
    one, _ = train("mlp", 2, micro_batch=2)
    other, losses = train("mlp", 2, micro_batch=4)
    assert one != other
    np.testing.assert_allclose(
        losses["loss"], train("mlp", 2, micro_batch=2)[1]["loss"], rtol=1e-4
    )


def test_blas_has_one_thread_unless_told() -> None:
    model = mlp()
    model.options = Options(algorithm="exact")
    model.train_on_batch(*CASES["mlp"][1:])
    assert numerics()["threads"] == "1"
    assert numerics().keys() == NUMERICS_KEYS.keys()


def test_a_rank_that_rounds_otherwise_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def program(comm: Communicator) -> str | None:
        mine = {"NumPy": "2.4", "threads": str(1 + comm.rank // 2)}
        local.numerics = mine
        return odd_rank(comm)

    local = threading.local()
    monkeypatch.setattr(module, "numerics", lambda: local.numerics)
    said = run_threads(3, program)
    assert said == [said[0]] * 3
    assert str(said[0]).startswith("rank 2 on ")
    assert str(said[0]).endswith(" has threads: 2 instead of 1")
    assert run_threads(2, program) == [None, None]


@pytest.mark.parametrize("shape", [(64, 256), (300, 70)])
def test_orthogonal_weights_do_not_depend_on_threads(shape: tuple[int, int]) -> None:
    code = (
        "import zlib, numpy as np; from fastserve.core import initializers; "
        f"w = initializers.Orthogonal()({shape}, np.random.default_rng(0)); "
        "print(zlib.crc32(w.tobytes()))"
    )
    sums = set()
    for threads in ("1", "2", "4"):
        env = {**os.environ, "OPENBLAS_NUM_THREADS": threads}
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            env=env,
            timeout=60,
            check=True,
        )
        sums.add(done.stdout)
    assert len(sums) == 1


@pytest.mark.parametrize("ranks", [1, 2, 3, 8, 9, 12])
def test_each_row_is_one_ranks_and_none_has_less_than_none(ranks: int) -> None:
    for total in range(1, 25):
        made = exact.make_shards(total, 24, 2, ranks)
        parts = [made.rows_of(rank) for rank in range(ranks)]
        assert all(part.start <= part.stop for part in parts)
        rows = [row for part in parts for row in range(part.start, part.stop)]
        assert rows == list(range(total))
