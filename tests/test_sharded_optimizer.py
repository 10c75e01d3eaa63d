"""ZeRO stage 1: each rank keeps a part of the optimizer's state; the same result."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mpi_environments import FLAVOURS, mpi_command, run, variables
from safetensors.numpy import load_file

import fastserve as fs
from fastserve import optimizers
from fastserve.comm import Communicator, run_threads
from fastserve.comm.shard import ShardedSum
from fastserve.config import load_job
from fastserve.data import ArraySource
from fastserve.errors import ArgumentError, NonFiniteError
from fastserve.training import checkpoint, shards
from fastserve.training.step import Options

HOSTS = [(2, None), (3, None), (2, [1, 1]), (3, [2, 1]), (4, [1, 3]), (5, [2, 2, 1])]


def model_and_data(optimizer: Any = "adamw") -> tuple[Any, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((48, 20)).astype(np.float32)
    y = (x @ rng.standard_normal((20, 5))).argmax(axis=1)
    model = fs.models.Sequential(
        [
            fs.layers.Dense(33, "tanh", input_shape=(20,)),
            fs.layers.Dropout(0.2),
            fs.layers.Dense(5, "softmax"),
        ],
        seed=3,
    )
    model.compile(optimizer, "sparse_categorical_crossentropy")
    return model, x, y


def order() -> fs.data.Sampler:
    return fs.data.Sampler(48, 16, seed=3, shuffle=True, wrap=True)


def trained(
    ranks: int, per_host: Any = None, make: Any = lambda: "adamw", **options: Any
) -> np.ndarray:
    """Return the weights after two epochs, the same on all ranks."""
    clip_norm = options.pop("clip_norm", None)

    def program(comm: Communicator) -> np.ndarray:
        model, x, y = model_and_data(make())
        model.options, model.clip_norm = Options(check_every=1, **options), clip_norm
        model.fit(x, y, 16, epochs=2, verbose=0)
        if options.get("shard_optimizer"):
            state = model.optimizer.state.values()
            assert all(v.size < model.store.values.size for v in state)
        return model.store.values.copy()

    results = run_threads(ranks, program, per_host)
    for other in results[1:]:
        np.testing.assert_array_equal(other, results[0])
    return results[0]


@pytest.mark.parametrize(("ranks", "per_host"), HOSTS)
def test_the_sums_are_those_of_an_all_reduce(ranks: int, per_host: Any) -> None:
    options = {"overlap": False, "bucket_bytes": 1000}
    plain = trained(ranks, per_host, **options)
    np.testing.assert_allclose(
        trained(ranks, per_host, shard_optimizer=True, **options),
        plain,
        rtol=1e-5,
        atol=1e-7,
    )


@pytest.mark.parametrize(("ranks", "per_host"), HOSTS)
@pytest.mark.parametrize("wire", ["float32", "bfloat16"])
@pytest.mark.parametrize("shared", [True, False])
def test_own_parts_are_sums_and_come_back(
    ranks: int, per_host: Any, wire: str, shared: bool
) -> None:
    size = 1013
    given = np.random.default_rng(1).integers(-9, 9, (ranks, size)).astype(np.float32)
    total = given.sum(axis=0)

    def program(comm: Communicator) -> list[slice]:
        vector, target = given[comm.rank].copy(), np.zeros(size, np.float32)
        parts = [slice(0, 500), slice(500, 505), slice(505, size)]
        ring = ShardedSum(vector, parts, comm, wire, 128, shared)
        for turn in range(3):
            ring.vector[...] = given[comm.rank]
            ring.begin(given[comm.rank] if turn == 2 else None)
            ring.release(3)
            ring.finish()
            for part in ring.own:
                factor = 2 if turn == 2 else 1
                np.testing.assert_array_equal(ring.vector[part], factor * total[part])
                # finer than bfloat16: weights aren't rounded
                target[part] = total[part] + np.float32(1 / 1024)
            ring.gather(target)
            np.testing.assert_array_equal(target, total + np.float32(1 / 1024))
            target[...] = -1
        return ring.own

    covered = np.zeros(size, int)
    for own in run_threads(ranks, program, per_host):
        for part in own:
            covered[part] += 1
    assert (covered == 1).all()


@pytest.mark.parametrize(
    "make",
    [
        lambda: optimizers.SGD(0.1),
        lambda: optimizers.SGD(0.1, 0.9, nesterov=True, weight_decay=0.1),
        lambda: optimizers.RMSprop(centered=True, momentum=0.5, clipvalue=0.01),
        lambda: optimizers.Adam(fs.schedules.CosineDecay(0.01, 9)),
        lambda: optimizers.AdamW(0.01, 0.1, global_clipnorm=0.5),
        lambda: optimizers.LAMB(0.01, weight_decay=0.1),
        lambda: optimizers.Nadam(0.01, use_ema=True, ema_momentum=0.9),
        lambda: optimizers.Adam(0.01, amsgrad=True, use_ema=True),
        lambda: optimizers.Lion(1e-3),
        lambda: optimizers.Adagrad(0.01),
        lambda: optimizers.Ftrl(0.01),
    ],
)
def test_optimizers(make: Any) -> None:
    plain = trained(2, make=make)
    sharded = trained(2, make=make, shard_optimizer=True)
    np.testing.assert_allclose(sharded, plain, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    "options",
    [{"micro_batch": 3}, {"overlap": True}, {"clip_norm": 0.1}, {"wire": "bfloat16"}],
)
def test_options(options: dict[str, Any]) -> None:
    plain = trained(3, [2, 1], **options)
    sharded = trained(3, [2, 1], shard_optimizer=True, **options)
    # a 16-bit wire rounds the sums once less
    tolerance = 3e-3 if "wire" in options else 1e-6
    np.testing.assert_allclose(sharded, plain, rtol=1e-5, atol=tolerance)


def test_one_rank_has_all() -> None:
    np.testing.assert_array_equal(trained_alone(True), trained_alone(False))


def trained_alone(shard: bool) -> np.ndarray:
    model, x, y = model_and_data()
    model.options = Options(shard_optimizer=shard)
    model.fit(x, y, 16, verbose=0)
    return model.store.values.copy()


def test_resume_on_other_numbers_of_ranks(tmp_path: Path) -> None:
    """2 ranks, then 3, then one, then 2 unsharded, as without any interruption.

    With a small epsilon the first steps of Adam are nearly the signs of the gradients,
    which makes the rounding of a sum near zero as large as the step.
    """

    def program(comm: Communicator, first: int, sharded: bool) -> np.ndarray:
        model, x, y = model_and_data(optimizers.AdamW(epsilon=1e-3))
        model.options = Options(shard_optimizer=sharded)
        trainer = model.prepare(ArraySource(x, y))
        store, optimizer = trainer.store, trainer.optimizer
        paths: list[Path] = []
        if first:
            if comm.rank == 0:
                checkpoint.load_newest(tmp_path, store, optimizer, paths.append)
            comm.broadcast(store.values)
            shards.hand_out(paths[0] if paths else None, store, optimizer, comm)
            optimizer.step = first
        sampler = order()
        for step in range(first, first + 2):
            trainer.train(ArraySource(x, y), sampler, step)
        shards.save(tmp_path, first + 2, store, optimizer, {}, 9, comm)
        comm.barrier()
        return store.values.copy()

    def go(ranks: int, first: int, sharded: bool = True) -> np.ndarray:
        return run_threads(ranks, lambda comm: program(comm, first, sharded))[0]

    plain = [go(1, first, False) for first in (0, 2, 4, 6)]
    for path in tmp_path.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    spread = [go(2, 0), go(3, 2), go(1, 4), go(2, 6, False)]
    for one, other in zip(spread, plain, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_files_are_those_of_an_unsharded_run(tmp_path: Path, optimizer: str) -> None:
    def program(comm: Communicator, sharded: bool) -> None:
        model, x, y = model_and_data(optimizer)
        model.options = Options(shard_optimizer=sharded)
        trainer = model.prepare(ArraySource(x, y))
        trainer.train(ArraySource(x, y), order(), 0)
        folder = tmp_path / str(sharded)
        shards.save(folder, 1, trainer.store, trainer.optimizer, {}, 1, comm)

    for sharded in (False, True):
        run_threads(2, lambda comm, s=sharded: program(comm, s))
    files = [
        load_file(tmp_path / str(sharded) / "step-00000001/optimizer.safetensors")
        for sharded in (False, True)
    ]
    assert files[0].keys() == files[1].keys()
    for name, tensor in files[0].items():
        np.testing.assert_array_equal(files[1][name], tensor)


def test_nan_in_one_ranks_part_stops_all_with_one_message() -> None:
    def program(comm: Communicator) -> str:
        model, x, y = model_and_data()
        model.options = Options(shard_optimizer=True)
        trainer = model.prepare(ArraySource(x, y))
        finish = trainer.sync.finish

        def spoil() -> None:
            finish()
            if comm.rank == 1:
                trainer.store.grads[trainer.sync.own[0].start] = np.nan

        trainer.sync.finish = spoil  # type: ignore[method-assign]
        with pytest.raises(NonFiniteError) as error:
            trainer.train(ArraySource(x, y), order(), 0)
        return str(error.value)

    messages = set(run_threads(2, program))
    assert len(messages) == 1
    assert "gradient of " in messages.pop()


def test_what_needs_whole_parameters_is_refused() -> None:
    with pytest.raises(ArgumentError, match="clipnorm"):
        trained(2, make=lambda: optimizers.Adam(clipnorm=1.0), shard_optimizer=True)
    with pytest.raises(ArgumentError, match="ring"):
        trained(2, algorithm="mpi", shard_optimizer=True)


def test_a_job_with_another_algorithm_is_refused() -> None:
    with pytest.raises(fs.errors.ConfigError, match="shard_optimizer"):
        load_job(
            "configs/quickstart.yaml",
            ["train.shard_optimizer=true", "comm.algorithm=mpi"],
        )


JOB = """
name: tiny
model: {type: gpt, n_layer: 2, n_head: 2, n_embd: 32, block_size: 16, dropout: 0.1}
data: {type: text, source: text.txt, validation_split: 0.2}
train: {global_batch: 6, steps: 4, micro_batch: 2, clip_norm: 1.0, recompute: true,
        shard_optimizer: true, sample_tokens: 0}
optimizer: {type: adamw, lr: 3e-3}
comm: {check_every: 1, overlap: "on"}
"""


@pytest.mark.mpi
@pytest.mark.parametrize("flavour", FLAVOURS)
def test_mpi_jobs_resume_on_other_numbers_of_ranks(
    tmp_path: Path, flavour: str
) -> None:
    """Ranks 2, 3, then 1, beside one rank that keeps everything."""
    (tmp_path / "job.yaml").write_text(JOB)
    (tmp_path / "text.txt").write_text("Pack my box with five dozen liquor jugs. " * 90)
    keys = ["train.recompute=false", "train.shard_optimizer=false", "train.steps=12"]
    words = [word for key in keys for word in ("--set", key)]
    module = ["-m", "fastserve", "job.yaml"]
    runs = [(1, ["--set", "name=plain", *words])]
    for ranks, steps in ((2, 4), (3, 8), (1, 12)):
        runs.append((ranks, ["--resume", "auto", "--set", f"train.steps={steps}"]))
    for ranks, arguments in runs:
        command = mpi_command(flavour, ranks, *module, *arguments)
        done = run(command, 60, cwd=tmp_path, env=variables())
        assert done.returncode == 0, done.stderr
    for file in ("model", "optimizer"):
        made, plain = (
            load_file(
                tmp_path / f"runs/{name}/checkpoints/step-00000012/{file}.safetensors"
            )
            for name in ("tiny", "plain")
        )
        for name, tensor in plain.items():
            np.testing.assert_allclose(made[name], tensor, rtol=1e-3, atol=1e-5)
