"""The options of a GPT: against Hugging Face's models, their weights, saved configs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gradcheck import check_layer, frozen

import fastserve as fs
from fastserve.assemble.model import make_model
from fastserve.config import load_job
from fastserve.core import StepKey
from fastserve.data import TokenSource
from fastserve.errors import ArgumentError, UnknownNameError
from fastserve.models import GPT, load_model
from fastserve.training.flops import flops_per_sample

REFERENCE: dict[str, np.ndarray[Any, Any]] = dict(
    np.load(Path(__file__).parent / "references" / "gpt.npz")
)
SHAPE: dict[str, Any] = {
    "vocab_size": 17,
    "block_size": 12,
    "n_layer": 2,
    "n_head": 4,
    "n_embd": 16,
}
LLAMA: dict[str, Any] = {"variant": "llama", "n_kv_head": 2, "ff_dim": 24}
CASES: dict[str, dict[str, Any]] = {"gpt2": {}, "llama": LLAMA}
OPTIONS: list[dict[str, Any]] = [
    {},
    {"variant": "llama"},
    {"n_kv_head": 1},
    {"ff_dim": 20},
    {"positions": "rotary"},
    {"norm": "rms"},
    {"mlp": "swiglu"},
    {"bias": False},
    {"tied": False},
    {"epsilon": 0.1, "norm": "rms"},
    {"variant": "llama", "rope_theta": 10.0, "n_kv_head": 2},
    {"variant": "llama", "positions": "learned", "tied": True, "bias": True},
    {"variant": "llama", "norm": "layer", "mlp": "gelu"},
]
options = pytest.mark.parametrize("keys", OPTIONS, ids=str)


def close(ours: Any, theirs: Any, what: str) -> None:
    tolerance = 1e-5 * max(1.0, float(np.abs(theirs).max()))
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=tolerance, err_msg=what)


@pytest.mark.parametrize("name", CASES)
def test_is_hugging_faces(name: str) -> None:
    arrays = {
        key.removeprefix(f"{name}/"): value
        for key, value in REFERENCE.items()
        if key.startswith(f"{name}/")
    }
    model = GPT(**SHAPE, **CASES[name])
    parameters = model.store.parameters
    assert {p.path for p in parameters} == {k[2:] for k in arrays if k[:2] == "w."}
    for parameter in parameters:
        parameter.assign(arrays[f"w.{parameter.path}"])
    close(model.root.forward(frozen(arrays["x"]), StepKey()), arrays["y"], "logits")
    model.root.backward(frozen(arrays["dy"]))
    for parameter in parameters:
        close(parameter.grad, arrays[f"g.{parameter.path}"], parameter.path)


@options
def test_gradients(keys: dict[str, Any]) -> None:
    model = GPT(**SHAPE, **keys, dropout=0.2, dtype="float64", seed=1)
    rng = np.random.default_rng(0)
    for parameter in model.store.parameters:
        parameter.value[...] += 0.3 * rng.standard_normal(parameter.shape)
    x = rng.integers(0, 17, (3, 12))
    check_layer(model.root, model.store, x, StepKey(5, 3, 2))


@options
def test_the_config_makes_it_again(keys: dict[str, Any], tmp_path: Path) -> None:
    model = GPT(**SHAPE, **keys, dropout=0.1, seed=3)
    config = model.get_config()
    again = GPT.from_config(config)
    assert again.get_config() == config
    assert None not in config.values()
    assert np.array_equal(again.store.values, model.store.values)
    for parameter in model.store.parameters:
        parameter.value[...] += 1
    model.save(tmp_path / "model.safetensors")
    loaded = load_model(tmp_path / "model.safetensors")
    assert np.array_equal(loaded.store.values, model.store.values)


def test_a_config_of_before_the_options_still_loads() -> None:
    config = {"class": "GPT", "seed": 3, "dtype": "float32", "dropout": 0.1, **SHAPE}
    model = GPT.from_config(config)
    assert model.options_of_gpt["variant"] == "gpt2"
    assert np.array_equal(model.store.values, GPT(**SHAPE, seed=3).store.values)


def test_options_of_the_variants() -> None:
    gpt2, llama = (GPT(**SHAPE, variant=name) for name in ("gpt2", "llama"))
    assert gpt2.options_of_gpt == {
        **SHAPE,
        "dropout": 0.0,
        "variant": "gpt2",
        "n_kv_head": 4,
        "ff_dim": 64,
        "positions": "learned",
        "norm": "layer",
        "mlp": "gelu",
        "bias": True,
        "tied": True,
        "epsilon": 1e-5,
        "rope_theta": 10000.0,
    }
    assert llama.options_of_gpt == gpt2.options_of_gpt | {
        "variant": "llama",
        "positions": "rotary",
        "norm": "rms",
        "mlp": "swiglu",
        "bias": False,
        "tied": False,
    }
    wide = GPT(**(SHAPE | {"n_embd": 384}), variant="llama")
    assert wide.options_of_gpt["ff_dim"] == 1024


def test_weights_of_llama() -> None:
    model = GPT(**(SHAPE | {"n_embd": 64}), **LLAMA)
    paths = {p.path: p for p in model.store.parameters}
    block = "blocks.1."
    assert {p.removeprefix(block): w.shape for p, w in paths.items() if block in p} == {
        "attention.norm.gamma": (64,),
        "attention.heads.qkv.kernel": (64, 8 * 16),
        "attention.heads.output.kernel": (64, 64),
        "mlp.norm.gamma": (64,),
        "mlp.gate.kernel": (64, 24),
        "mlp.expand.kernel": (64, 24),
        "mlp.contract.kernel": (24, 64),
    }
    assert paths["head.kernel"].shape == (64, 17)
    assert "positions.embeddings" not in paths
    for name, deviation in (
        ("attention.heads.output", 0.01),  # 0.02 / sqrt(2 x 2 layers)
        ("mlp.contract", 0.01),
        ("mlp.gate", 0.02),
        ("mlp.expand", 0.02),
    ):
        std = paths[f"{block}{name}.kernel"].value.std()
        assert std == pytest.approx(deviation, rel=0.1), name


def test_without_biases_there_are_none() -> None:
    model = GPT(**SHAPE, bias=False)
    kinds = {p.path.rpartition(".")[2] for p in model.store.parameters}
    assert kinds == {"embeddings", "kernel", "gamma"}


def test_rotary_positions_are_relative() -> None:
    shape = SHAPE | {"n_layer": 1}
    model = GPT(**shape, variant="llama", dtype="float64")
    x = np.random.default_rng(0).integers(0, 17, (1, 8))
    y = model.forward(x).copy()
    heads = model.root.layers[2].layers[0].heads  # type: ignore[attr-defined]
    turned = heads.qkv.logits().copy()
    model.forward(np.roll(x, 3, axis=1))
    q, k = heads.qkv.logits()[0, :, :16], heads.qkv.logits()[0, :, 16:32]
    before = turned[0, 4, :4] @ turned[0, 2, 16:20]
    np.testing.assert_allclose(q[7, :4] @ k[5, :4], before, rtol=1e-10)
    assert not np.allclose(turned[0, 4], heads.qkv.logits()[0, 7])
    assert np.isfinite(y).all()


@pytest.mark.parametrize("keys", [{"variant": "llama", "n_kv_head": 2}, {}], ids=str)
def test_it_learns(keys: dict[str, Any]) -> None:
    tokens = np.tile(np.arange(10), 60)
    model = GPT(**SHAPE, **keys, dropout=0.1, seed=1)
    model.compile(fs.optimizers.AdamW(1e-2))
    history = model.fit(TokenSource(tokens, 12), batch_size=10, epochs=12, verbose=0)
    assert history.history["loss"][-1] < 0.2


@pytest.mark.parametrize(
    ("keys", "kind", "part"),
    [
        ({"variant": "lama"}, UnknownNameError, "did you mean 'llama'"),
        ({"positions": "rope"}, UnknownNameError, "learned, rotary"),
        ({"norm": "batch"}, UnknownNameError, "layer, rms"),
        ({"mlp": "relu"}, UnknownNameError, "gelu, swiglu"),
        ({"n_kv_head": 3}, ArgumentError, "n_kv_head=3, n_head=4"),
        ({"n_kv_head": 0}, ArgumentError, "n_kv_head to be an integer above 0"),
        ({"n_head": 0}, ArgumentError, "n_head to be an integer above 0"),
        ({"n_head": 3}, ArgumentError, "n_embd to be a multiple of n_head"),
        ({"n_layer": 1.5}, ArgumentError, "n_layer to be an integer above 0"),
        ({"n_head": 16, "variant": "llama"}, ArgumentError, "even width"),
        ({"ff_dim": -4}, ArgumentError, "ff_dim to be an integer above 0"),
        ({"bias": "no"}, ArgumentError, "bias to be True or False"),
        ({"tied": 1}, ArgumentError, "tied to be True or False"),
        ({"epsilon": 0.0}, ArgumentError, "epsilon above 0"),
        ({"rope_theta": float("nan")}, ArgumentError, "rope_theta above 0"),
        ({"dropout": 1.0}, ArgumentError, "rate from 0"),
        ({"vocab_size": 0}, ArgumentError, "vocab_size to be an integer above 0"),
    ],
    ids=str,
)
def test_wrong_options(keys: dict[str, Any], kind: type[Exception], part: str) -> None:
    with pytest.raises(kind) as error:
        GPT(**(SHAPE | keys))
    assert part in str(error.value)
    assert "expected" in str(error.value)
    assert "received" in str(error.value)


@options
def test_every_product_is_counted(keys: dict[str, Any]) -> None:
    model = GPT(**SHAPE, **keys)
    used = [p for p in model.store.parameters if len(p.shape) == 2]
    tied = model.options_of_gpt["tied"]
    looked_up = {"positions.embeddings"} | (set() if tied else {"tokens.embeddings"})
    weights = sum(p.size for p in used if p.path not in looked_up)
    attention = 2 * 16 * 12 * 2  # queries x keys, weights x values; half of each
    expected = 3 * 12 * (2 * weights + attention)
    assert flops_per_sample(model.root) == expected


def test_a_job_gives_all_options_to_the_model(tmp_path: Path) -> None:
    given = LLAMA | {"norm": "layer", "bias": True, "tied": True, "epsilon": 1e-4}
    keys = ", ".join(f"{k}: {json.dumps(v)}" for k, v in given.items())
    path = tmp_path / "job.yaml"
    path.write_text(
        f"name: j\nmodel: {{type: gpt, n_embd: 16, rope_theta: 50.0, {keys}}}\n"
        "data: {type: text, source: pydoc-topics}\ntrain: {steps: 1}\n"
    )
    model = make_model(load_job(path), 17)
    assert isinstance(model, GPT)
    wanted = given | {"positions": "rotary", "rope_theta": 50.0, "mlp": "swiglu"}
    assert wanted.items() <= model.options_of_gpt.items()
