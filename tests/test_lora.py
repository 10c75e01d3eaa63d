"""LoRA: what is trained, what stays, what is kept and sent."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gradcheck import check_layer, prepare
from mpi_environments import require, run, variables
from safetensors.numpy import load_file

from fastserve import models, trained, worker
from fastserve.comm import Communicator, run_threads
from fastserve.config import load_job
from fastserve.core import StepKey
from fastserve.errors import (
    ArgumentError,
    CheckpointError,
    ConfigError,
    StateError,
    UnknownNameError,
)
from fastserve.import_export import export_run
from fastserve.layers import Dense
from fastserve.layers.lora import LoRA, add_lora
from fastserve.merge_lora import merge_run
from fastserve.models import GPT
from fastserve.training.flops import flops_per_sample
from fastserve.training.step import Options

ALL = ("qkv", "output", "expand", "contract")


def gpt(dtype: str = "float32", variant: str = "gpt2", dropout: float = 0.0) -> GPT:
    return GPT(
        11, 12, 2, 2, 16, dropout, seed=5, dtype=dtype, variant=variant, n_kv_head=1
    )


def batch(samples: int = 12) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(2)
    x = rng.integers(0, 11, (samples, 12))
    return x, np.roll(x, 1, axis=1)


def shake(model: GPT, scale: float = 0.2) -> None:
    """Give the trained parameters, so B too, other values than their first."""
    rng = np.random.default_rng(6)
    for parameter in model.store.parameters:
        parameter.value[...] += scale * rng.standard_normal(parameter.shape)


def fit(model: GPT, epochs: int = 3, batch_size: int = 6) -> list[float]:
    model.compile("adamw")
    x, y = batch()
    return model.fit(x, y, batch_size, epochs, verbose=0).history["loss"]


@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_gradients_of_an_adapted_layer(dropout: float) -> None:
    """Those of A, B and the input; W is frozen, so it isn't among the parameters."""
    layer = Dense(5, "tanh", name="expand")
    layer.build_once((3, 4))
    from fastserve.layers import Chain

    chain = Chain(layer)
    chain.build_once((3, 4))
    add_lora(chain, 2, 3.0, ["expand"], dropout)
    store = prepare(chain, (3, 4))
    assert [p.path for p in store.parameters] == ["expand.lora.b", "expand.lora.a"]
    x = np.random.default_rng(0).standard_normal((2, 3, 4))
    check_layer(chain, store, x, StepKey(1, 2, 3))


def test_operations_of_frozen_matrices_have_no_gradient() -> None:
    model = gpt()
    matrices = [p for p in model.root.parameters() if p.path.endswith(".kernel")]
    before = flops_per_sample(model.root)
    model.add_lora(2, 4.0, ALL)
    table = 11 * 16  # of the tied head
    added = sum(p.size for p in model.store.parameters)
    frozen = sum(p.size for p in matrices) + table
    expected = before + 12 * 2 * (3 * added - frozen)
    assert flops_per_sample(model.root) == expected


def test_the_first_output_is_the_base_model() -> None:
    model = gpt()
    x, _ = batch()
    before, weights = model.forward(x).copy(), model.get_weights()
    model.add_lora(4, 8.0, ALL)
    np.testing.assert_array_equal(model.forward(x), before)
    assert model.count_params() == model.store.count + sum(w.size for w in weights)


@pytest.mark.parametrize("variant", ["gpt2", "llama"])
def test_the_base_stays_to_the_bit_and_merging_changes_no_logits(variant: str) -> None:
    model = gpt(variant=variant)
    targets = (*ALL, "gate") if variant == "llama" else ALL
    model.add_lora(3, 6.0, targets)
    frozen = model.store.frozen.tobytes()
    losses = fit(model)
    assert losses[-1] < losses[0]
    assert model.store.frozen.tobytes() == frozen
    assert all(np.abs(p.value).max() > 0 for p in model.store.parameters)
    x, _ = batch()
    shake(model)
    before = model.forward(x).copy()
    model.merge_lora()
    np.testing.assert_allclose(model.forward(x), before, atol=1e-5)
    assert not model.store.frozen_parameters
    assert [p.path for p in model.store.parameters] == [
        p.path for p in gpt(variant=variant).store.parameters
    ]
    assert fit(model)[-1] < losses[0]
    with pytest.raises(StateError):
        model.merge_lora()


def test_only_adapters_are_communicated_and_have_optimizer_state() -> None:
    sizes = []
    for lora in (False, True):
        model = gpt()
        if lora:
            model.add_lora(2)
        fit(model, 1)
        assert model.optimizer is not None
        state = sum(vector.nbytes for vector in model.optimizer.state.values())
        sizes.append((model.store.grads.nbytes, state))
    whole, small = sizes
    assert small[0] * 5 < whole[0]
    assert small[1] == 2 * small[0]


def test_ranks_train_the_same() -> None:
    def program(comm: Communicator) -> tuple[list[float], np.ndarray, int]:
        model = gpt("float64", dropout=0.1)
        if comm.rank:  # rank 0's base is everyone's
            model.store.values[...] = 0
        model.add_lora(2, 4.0, ALL, 0.2)
        losses = fit(model, batch_size=5)
        return losses, model.store.values.copy(), hash(model.store.frozen.tobytes())

    ((losses, values, frozen),) = run_threads(1, program)
    for other in run_threads(2, program):
        np.testing.assert_allclose(other[0], losses, rtol=1e-9)
        np.testing.assert_allclose(other[1], values, atol=1e-9)
        assert other[2] == frozen


def test_saving_the_whole_and_the_adapters(tmp_path: Path) -> None:
    model = gpt()
    model.add_lora(2, 4.0, ALL)
    fit(model)
    x, _ = batch()
    expected = model.forward(x).copy()
    model.save(tmp_path / "whole")
    np.testing.assert_array_equal(
        models.load_model(tmp_path / "whole").forward(x), expected
    )
    model.save_lora(tmp_path / "small")
    found = load_file(tmp_path / "small")
    assert len(found) == 2 * 2 * len(ALL)
    assert (tmp_path / "small").stat().st_size < (tmp_path / "whole").stat().st_size / 2
    base = gpt()
    for _ in range(2):  # without LoRA, and with
        base.load_lora(tmp_path / "small")
        np.testing.assert_array_equal(base.forward(x), expected)
    other = gpt()
    other.add_lora(3)
    with pytest.raises(CheckpointError, match="expected LoRA with the model's options"):
        other.load_lora(tmp_path / "small")
    with pytest.raises(CheckpointError, match="save_lora"):
        gpt().load_lora(tmp_path / "whole")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"rank": 0}, ArgumentError, "rank"),
        ({"rank": 17}, ArgumentError, "at most 16"),
        ({"alpha": 0.0}, ArgumentError, "alpha 0"),
        ({"dropout": 1.0}, ArgumentError, "rate"),
        ({"targets": ["head"]}, UnknownNameError, "head"),
        ({"targets": ["qkv", "gate"]}, ArgumentError, "targets gate"),
        ({"targets": []}, ArgumentError, "targets none"),
    ],
)
def test_options_that_cannot_be(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    model = gpt()
    with pytest.raises(error, match=message):
        model.add_lora(**options)
    assert not model.store.frozen_parameters
    model.add_lora()
    with pytest.raises(StateError, match="without LoRA"):
        model.add_lora()


def test_the_adapter_allocates_nothing_large_and_is_a_layer() -> None:
    layer = LoRA(6, 2, 4.0, 0.3)
    store = prepare(layer, (5, 4))
    x = np.random.default_rng(0).standard_normal((3, 5, 4))
    check_layer(layer, store, x, StepKey(1, 2, 3))


# -- whole jobs ------------------------------------------------------------------------

JOB = """
name: tuned
seed: 1
model: {type: gpt, init_from: base, dropout: 0.1,
        lora: {rank: 2, alpha: 8, targets: [qkv, output, expand], dropout: 0.1}}
data: {type: text, source: text.txt, validation_split: 0.2}
train: {global_batch: 6, steps: 12, eval_every: 5, log_every: 2, sample_tokens: 20}
optimizer: {type: adamw, lr: 3e-3}
checkpoint: {every: 4, keep: 9}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "job.yaml").write_text(JOB)
    (tmp_path / "text.txt").write_text("Pack my box with five dozen liquor jugs. " * 90)
    GPT(40, 16, 2, 2, 16, seed=3).save_pretrained(tmp_path / "base")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FASTSERVE_NO_SIGNALS", "1")
    return tmp_path


def test_a_job_resumes_and_merges(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert worker.main(["job.yaml"]) == 0
    assert "of them trained" in capsys.readouterr().out
    run = folder / "runs/tuned"
    last = run / "checkpoints/step-00000012/model.safetensors"
    whole = load_file(last)
    base = run / "checkpoints/base.safetensors"
    assert all(".lora." in name for name in whole)
    assert not any(".lora." in name for name in load_file(base))
    assert last.stat().st_size < base.stat().st_size
    before = base.read_bytes()
    start = GPT.from_pretrained("base").store
    for parameter in start.parameters:
        np.testing.assert_array_equal(parameter.value, load_file(base)[parameter.path])

    for step in (8, 12):
        shutil.rmtree(run / f"checkpoints/step-{step:08d}")
    assert worker.main(["job.yaml", "--resume", "auto"]) == 0
    again = load_file(last)
    assert base.read_bytes() == before
    for name, value in whole.items():
        np.testing.assert_array_equal(again[name], value)

    text = trained.generate("runs/tuned", "Pack", 30, 0)
    loss = trained.evaluate("runs/tuned")["loss"]
    merge_run("runs/tuned", "runs/merged")
    assert trained.generate("runs/merged", "Pack", 30, 0) == text
    capsys.readouterr()
    more = ["runs/merged/config.yaml", "--resume", "auto", "--overwrite"]
    assert worker.main(more) == 2  # in its own folder
    assert "a checkpoint of weights alone" in capsys.readouterr().err
    assert trained.evaluate("runs/merged")["loss"] == pytest.approx(loss, abs=1e-5)
    assert trained.open_job("runs/merged")[1].name == "merged"  # not the run it is of
    with pytest.raises(CheckpointError, match="isn't there yet"):
        merge_run("runs/tuned", "runs/merged")
    said = merge_run("runs/tuned", "runs/early", "4")
    assert said == "merged runs/tuned, the checkpoint of step 4, into runs/early"
    export_run("runs/tuned", "early", which="4")
    early = load_file("runs/early/checkpoints/step-00000004/model.safetensors")
    for parameter in GPT.from_pretrained("early").store.parameters:
        np.testing.assert_array_equal(parameter.value, early[parameter.path])
    assert "model.safetensors" in export_run("runs/tuned", "tuned")
    assert "model.safetensors" in export_run("runs/merged", "merged")
    for one, other in zip(
        *(GPT.from_pretrained(f).get_weights() for f in ("tuned", "merged")),
        strict=True,
    ):
        np.testing.assert_array_equal(one, other)
    with pytest.raises(CheckpointError, match="without it"):
        merge_run("runs/merged", "runs/x")
    capsys.readouterr()
    assert worker.main(["runs/merged/config.yaml", "--resume", "auto"]) == 2
    assert "a checkpoint of weights alone" in capsys.readouterr().err

    shutil.rmtree(folder / "base")  # the run has all that it needs
    trained.evaluate("runs/tuned")
    base.write_bytes(before[:-4] + b"\0\0\0\0")
    with pytest.raises(CheckpointError, match="SHA-256"):
        trained.evaluate("runs/tuned")


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"init_from: base, ": ""}, "model.lora: expected model.init_from beside it"),
        ({"expand]": "gate]"}, "targets without gate, which only swiglu has"),
        ({"rank: 2": "rank: 0"}, "model.lora.rank"),
        ({"rank: 2": "rang: 2"}, "did you mean 'rank'"),
        ({"[qkv": "[qvk"}, "model.lora.targets"),
        ({"{rank: 2, alpha: 8,": "8, x: {"}, "a section or null, received 8"),
    ],
)
def test_faults_of_the_job(folder: Path, change: dict[str, str], fault: str) -> None:
    text = JOB
    for old, new in change.items():
        assert old in text
        text = text.replace(old, new)
    (folder / "job.yaml").write_text(text)
    with pytest.raises(ConfigError) as error:
        load_job("job.yaml")
    assert fault in str(error.value)


def test_two_ranks_make_the_run_of_one(folder: Path) -> None:
    """Also with prompts and completions, whose losses aren't spread evenly."""
    lines = [
        json.dumps({"prompt": "Pack my"[:n], "completion": "box with"[: 9 - n]})
        for n in range(1, 8)
    ]
    (folder / "tasks.jsonl").write_text("\n".join(lines * 6))
    completions = "type: completions, file: tasks.jsonl"
    job = JOB.replace("type: text, source: text.txt", completions)
    (folder / "job.yaml").write_text(job)
    assert worker.main(["job.yaml"]) == 0
    python = str(require("openmpi") / "bin" / "python")
    command = [python, "-m", "launch.cli", "run", "job.yaml", "-n", "2"]
    command += ["--set", "name=both", "--launcher", "openmpi"]
    env = variables(FASTSERVE_CACHE_DIR=str(folder / "cache"))
    done = run(command, 90, cwd=folder, env=env)
    assert done.returncode == 0, done.stderr
    one, two = (folder / f"runs/{name}/checkpoints" for name in ("tuned", "both"))
    base = "base.safetensors"
    assert (one / base).read_bytes() == (two / base).read_bytes()
    last = "step-00000012/model.safetensors"
    other = load_file(two / last)
    for name, value in load_file(one / last).items():
        np.testing.assert_allclose(other[name], value, rtol=1e-3, atol=2e-5)


@pytest.mark.parametrize("options", [{"recompute": True}, {"micro_batch": 2}])
def test_other_ways_to_train_give_the_same(options: dict[str, Any]) -> None:
    """LoRA with dropout, on rows of several documents."""
    made = []
    for chosen in ({}, options):
        model = gpt("float64", dropout=0.1)
        model.reset_at = 3
        model.add_lora(2, 4.0, ALL, 0.2)
        model.options = Options(**chosen)
        losses = fit(model)
        made.append((losses, model.store.values.copy()))
    np.testing.assert_allclose(made[1][0], made[0][0], rtol=1e-9)
    np.testing.assert_allclose(made[1][1], made[0][1], atol=1e-9)
