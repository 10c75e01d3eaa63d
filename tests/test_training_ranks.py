"""Any split of a global batch over ranks and micro-batches trains the same."""

from __future__ import annotations

import time
import zlib
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fastserve as fs
from fastserve.comm import Communicator, run_threads
from fastserve.data import ArraySource
from fastserve.data.streams import mark_of
from fastserve.errors import DataError
from fastserve.training.step import Options


def data(samples: int = 96) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((samples, 20)).astype(np.float32)
    return x, (x @ rng.standard_normal((20, 5))).argmax(axis=1)


def mlp(dropout: float = 0.0) -> fs.models.Sequential:
    model = fs.models.Sequential(
        [
            fs.layers.Dense(16, "tanh", input_shape=(20,)),
            fs.layers.Dropout(dropout),
            fs.layers.Dense(5, "softmax"),
        ],
        seed=3,
    )
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def train(comm: Communicator, **options: Any) -> tuple[dict[str, list[float]], int]:
    """Return the history and a checksum of the weights after three epochs."""
    batch = options.pop("batch", 24)
    samples = options.pop("samples", 96)
    model = mlp(options.pop("dropout", 0.0))
    model.options = Options(**options)
    x, y = data(samples)
    assert model.prepare(ArraySource(x, y)).comm is comm, "each rank trains alone"
    history = model.fit(
        x, y, batch, epochs=3, verbose=0, validation_data=(x[:11], y[:11])
    )
    return history.history, zlib.crc32(model.store.values.tobytes())


def on_ranks(ranks: int, **options: Any) -> dict[str, list[float]]:
    results = run_threads(ranks, lambda comm: train(comm, **options))
    assert len({checksum for _, checksum in results}) == 1, "replicas differ"
    for history, _ in results[1:]:
        assert history == results[0][0]
    return results[0][0]


def close(a: dict[str, list[float]], b: dict[str, list[float]]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_allclose(a[name], b[name], rtol=2e-5, atol=1e-6)


@pytest.fixture(scope="module")
def whole() -> dict[str, list[float]]:
    history = on_ranks(1)
    assert history["loss"][-1] < history["loss"][0]
    return history


@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_ranks_that_divide_the_batch(ranks: int, whole: dict[str, list[float]]) -> None:
    close(on_ranks(ranks), whole)


@pytest.mark.parametrize("micro_batch", [6, 7, 1])
def test_accumulation(micro_batch: int, whole: dict[str, list[float]]) -> None:
    close(on_ranks(1, micro_batch=micro_batch), whole)


def test_accumulation_on_ranks(whole: dict[str, list[float]]) -> None:
    close(on_ranks(2, micro_batch=5), whole)


@pytest.mark.parametrize("ranks", [2, 5, 7])
@pytest.mark.parametrize(("samples", "batch"), [(50, 24), (50, 7), (3, 24), (2, 1)])
def test_uneven_shares_and_ranks_without_rows(
    ranks: int, samples: int, batch: int
) -> None:
    expected = on_ranks(1, samples=samples, batch=batch)
    close(on_ranks(ranks, samples=samples, batch=batch), expected)


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 40), st.integers(1, 50), st.integers(1, 7), st.integers(1, 9))
def test_any_split_trains_the_same_and_ends(
    samples: int, batch: int, ranks: int, micro_batch: int
) -> None:
    """All ranks come to each sum, also those without rows; else this would hang."""
    expected = on_ranks(1, samples=samples, batch=batch)
    split = on_ranks(ranks, samples=samples, batch=batch, micro_batch=micro_batch)
    close(split, expected)


def test_dropout_does_not_depend_on_the_split() -> None:
    expected = on_ranks(1, dropout=0.5)
    close(on_ranks(3, dropout=0.5), expected)
    close(on_ranks(2, dropout=0.5, micro_batch=5), expected)
    assert expected["loss"] != on_ranks(1)["loss"]


@pytest.mark.parametrize("algorithm", ["ring", "mpi"])
def test_algorithms_agree(algorithm: str, whole: dict[str, list[float]]) -> None:
    close(on_ranks(3, algorithm=algorithm), whole)


@pytest.mark.parametrize("bucket_bytes", [1, 300, 1 << 30])
def test_size_of_buckets(bucket_bytes: int, whole: dict[str, list[float]]) -> None:
    close(on_ranks(3, bucket_bytes=bucket_bytes), whole)


def test_regrouping_keeps_the_values() -> None:
    model, other = mlp(), mlp()
    other.options = Options(bucket_bytes=100)
    x, y = data()
    model.prepare(ArraySource(x, y))
    other.prepare(ArraySource(x, y))
    assert (len(model.store.buckets), len(other.store.buckets)) == (1, 2)
    for one, two in zip(model.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(one, two)


def test_a_flipped_bit_is_found_and_named() -> None:
    def program(comm: Communicator) -> str:
        model = mlp()
        model.options = Options(check_every=2)
        x, y = data()

        class Flip(fs.callbacks.Callback):
            def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
                if batch == 2 and comm.rank == 1:
                    kernel = next(iter(model.root.parameters()))
                    kernel.value.view(np.uint32)[0, 0] ^= 1

        with pytest.raises(fs.errors.CommError) as error:
            model.fit(x, y, 24, epochs=2, verbose=0, callbacks=[Flip()])
        return str(error.value)

    messages = run_threads(3, program)
    assert len(set(messages)) == 1
    assert "step 4" in messages[0]
    assert "0.kernel differs on rank 1" in messages[0]


def test_nan_names_step_layer_and_rank_on_all_ranks() -> None:
    def program(comm: Communicator) -> tuple[str, bytes]:
        model = mlp()
        x, y = data()

        class Poison(fs.callbacks.Callback):
            def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
                if batch == 2:
                    model.root.layers[2].kernel.value[0, 0] = np.nan  # type: ignore[attr-defined]
                self.before = model.store.values.tobytes()

        poison = Poison()
        with pytest.raises(fs.errors.NonFiniteError) as error:
            model.fit(x, y, 24, epochs=2, verbose=0, callbacks=[poison])
        assert model.store.values.tobytes() == poison.before
        return str(error.value), poison.before

    messages = {message for message, _ in run_threads(2, program)}
    assert len(messages) == 1
    message = messages.pop()
    assert "step 3:" in message
    assert "output of layer 2 (Dense) on rank 0" in message


def test_evaluate_counts_every_sample_once() -> None:
    x, y = data(37)

    def program(comm: Communicator) -> Any:
        model = mlp()
        return model.evaluate(x, y, batch_size=8, verbose=0)

    expected = run_threads(1, program)[0]
    for ranks in (2, 3, 6):
        for result in run_threads(ranks, program):
            np.testing.assert_allclose(result, expected, rtol=1e-6)


def test_a_callback_can_stop_all_ranks_alike() -> None:
    def program(comm: Communicator) -> int:
        model = mlp()
        x, y = data()

        class Stop(fs.callbacks.Callback):
            def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
                if logs["loss"] < 1e9 and epoch == 1:
                    self.model.stop_training = True

        model.fit(x, y, 24, epochs=9, verbose=0, callbacks=[Stop()])
        assert model.optimizer is not None
        return model.optimizer.step

    assert run_threads(3, program) == [8, 8, 8]


def test_arrays_that_differ_between_ranks_are_told() -> None:
    x, y = data()

    def order(comm: Communicator) -> Any:
        rows = np.random.default_rng(comm.rank).permutation(len(x))
        return x[rows], y[rows]

    def fewer(comm: Communicator) -> Any:
        return x[: 96 - comm.rank], y[: 96 - comm.rank]

    def labels(comm: Communicator) -> Any:
        return x, np.where(np.arange(96) < 1, (y + comm.rank) % 5, y)

    def types(comm: Communicator) -> Any:
        return (x.astype("float64"), y) if comm.rank == 1 else (x, y)

    def weights(comm: Communicator) -> Any:
        given = np.full(96, 1.0 + comm.rank) if comm.rank < 2 else None
        return x, y, given

    for differ in (order, fewer, labels, types, weights):

        def program(comm: Communicator, differ: Any = differ) -> str:
            with pytest.raises(DataError) as error:
                x, y, *weights = differ(comm)
                mlp().fit(x, y, verbose=0, sample_weight=(weights or [None])[0])
            return str(error.value)

        messages = set(run_threads(3, program))
        assert len(messages) == 1, differ.__name__
        assert "others on rank 1" in messages.pop()


def test_arrays_may_differ_by_rounding_between_ranks() -> None:
    """NumPy's log has other last bits on a CPU without AVX-512."""
    x, y = data()

    def program(comm: Communicator, algorithm: str = "ring") -> int:
        mine = np.nextafter(x, np.float32(9)) if comm.rank else x
        assert comm.rank == 0 or (mine != x).any()
        model = mlp()
        model.options = Options(algorithm=algorithm)
        model.fit(mine, y, verbose=0)
        assert model.optimizer is not None
        return model.optimizer.step

    assert run_threads(3, program) == [3, 3, 3]
    with pytest.raises(DataError, match="others on rank 1"):
        run_threads(3, partial(program, algorithm="exact"))


def test_comparing_arrays_takes_less_than_a_millisecond() -> None:
    x, y = np.zeros((20_000, 784), np.float32), np.zeros(20_000, np.int64)
    batch = ArraySource(x, y).batch(np.arange(2), np.zeros(2, int))._replace(x=x, y=y)
    seconds = []
    for _ in range(20):
        start = time.perf_counter()
        mark_of(batch)
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 1e-3
