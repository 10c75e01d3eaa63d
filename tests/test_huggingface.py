"""Folders of Hugging Face's: models that ``transformers`` wrote, and bad folders."""

from __future__ import annotations

import json
import re
import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer

import fastserve as fs
from fastserve.data.tokenizers import ByteTokenizer, CharTokenizer
from fastserve.errors import ArgumentError, CheckpointError, UnknownNameError
from fastserve.models import GPT
from fastserve.models.huggingface import load_weights, parse_size

REFERENCES = Path(__file__).parent / "references"
FOLDERS = REFERENCES / "huggingface"
LOGITS = np.load(REFERENCES / "huggingface.npz")
TOKENS = LOGITS["tokens"]
NAMES = sorted(p.name for p in FOLDERS.iterdir())


def logits_of(model: GPT) -> np.ndarray:
    return model.predict(TOKENS)


@pytest.mark.parametrize("name", NAMES)
def test_logits_are_those_of_transformers(name: str) -> None:
    model = GPT.from_pretrained(FOLDERS / name)
    np.testing.assert_allclose(logits_of(model), LOGITS[name], atol=1e-5)


def test_every_kind_of_folder_is_there() -> None:
    assert [*LOGITS.files[1:]] == [n for n in LOGITS.files if n != "tokens"]
    assert set(NAMES) == set(LOGITS.files) - {"tokens"}
    for name in NAMES:
        assert np.abs(LOGITS[name]).max() > 1  # so that an error would be seen


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", ["5GB", "6KB"])
def test_what_was_exported_has_the_tensors_that_transformers_wrote(
    tmp_path: Path, name: str, size: str
) -> None:
    dtype = json.loads((FOLDERS / name / "config.json").read_text())["dtype"]
    model = GPT.from_pretrained(FOLDERS / name)
    model.save_pretrained(tmp_path / "x", dtype=dtype, max_shard_size=size)
    found, wanted = (tensors(folder) for folder in (tmp_path / "x", FOLDERS / name))
    assert found == wanted
    assert (size == "6KB") == (tmp_path / "x/model.safetensors.index.json").is_file()
    again = GPT.from_pretrained(tmp_path / "x")
    np.testing.assert_array_equal(logits_of(again), logits_of(model))
    assert again.options_of_gpt == model.options_of_gpt


def tensors(folder: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Return type, shape and bytes of all tensors of a folder."""
    found = {}
    for path in folder.glob("*.safetensors"):
        content = path.read_bytes()
        start = 8 + int.from_bytes(content[:8], "little")
        header = json.loads(content[8:start])
        assert header.pop("__metadata__") == {"format": "pt"}
        for name, entry in header.items():
            first, end = (start + offset for offset in entry["data_offsets"])
            shape = tuple(entry["shape"])
            found[name] = entry["dtype"], shape, content[first:end]
    return found


def test_names_without_prefix_and_computed_tables(folder: Path) -> None:
    # as in the folder of the first GPT-2: its base model, with the masks
    found = load_file(folder / "model.safetensors")
    found = {name.removeprefix("transformer."): a for name, a in found.items()}
    found["h.0.attn.bias"] = np.ones((1, 1, 12, 12), np.float32)
    found["h.1.attn.masked_bias"] = np.array([-1e4], np.float32)
    found["lm_head.weight"] = found["wte.weight"]
    save_file(found, folder / "model.safetensors")
    model = GPT.from_pretrained(folder)
    np.testing.assert_allclose(logits_of(model), LOGITS["gpt2"], atol=1e-5)


def test_a_shorter_context(folder: Path) -> None:
    model = GPT.from_pretrained(folder, block_size=5)
    found = model.predict(TOKENS[:, :5])
    np.testing.assert_allclose(found, LOGITS["gpt2"][:, :5], atol=1e-5)
    with pytest.raises(CheckpointError, match="from 1 to the folder's 12"):
        GPT.from_pretrained(folder, block_size=13)


def test_the_folders_dropout_and_another() -> None:
    assert GPT.from_pretrained(FOLDERS / "gpt2").options_of_gpt["dropout"] == 0.1
    model = GPT.from_pretrained(FOLDERS / "gpt2", dropout=0.3)
    assert model.options_of_gpt["dropout"] == 0.3


def test_weights_for_a_model_that_is_there(folder: Path) -> None:
    model = GPT(40, 12, 2, 4, 16, dropout=0.2, dtype="float64")
    load_weights(model, folder)
    np.testing.assert_allclose(logits_of(model), LOGITS["gpt2"], atol=1e-5)
    with pytest.raises(CheckpointError, match="n_layer 3"):
        load_weights(GPT(40, 12, 3, 4, 16), folder)


def test_a_loaded_model_trains(folder: Path) -> None:
    model = GPT.from_pretrained(folder, dropout=0.0)
    model.compile(fs.optimizers.AdamW(1e-2))
    following = np.roll(TOKENS, -1, axis=1)
    first = model.train_on_batch(TOKENS, following)
    for _ in range(20):
        last = model.train_on_batch(TOKENS, following)
    assert last < first / 2


def test_loading_takes_hardly_more_memory_than_the_model(tmp_path: Path) -> None:
    GPT(1000, 64, 4, 4, 256).save_pretrained(tmp_path / "x", dtype="bfloat16")
    size = sum(w.nbytes for w in GPT(1000, 64, 4, 4, 256).get_weights())
    tracemalloc.start()
    try:
        GPT.from_pretrained(tmp_path / "x")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert size > 13e6
    assert peak < 2 * size + 9e6  # values and gradients, and pieces of 1 Mi numbers


# -- writing ---------------------------------------------------------------------------


def test_export_refuses(tmp_path: Path) -> None:
    model = GPT(11, 8, 1, 2, 8)
    (tmp_path / "there").mkdir()
    for options, kind, message in (
        ({"folder": tmp_path / "there"}, CheckpointError, "isn't there yet"),
        ({"dtype": "int8"}, UnknownNameError, "type of weights"),
        ({"max_shard_size": "big"}, ArgumentError, "size of shards"),
        ({"folder": __file__ + "/x"}, CheckpointError, "able to write"),
    ):
        given: dict[str, Any] = {"folder": tmp_path / "x"} | options
        with pytest.raises(kind, match=message):
            model.save_pretrained(**given)
    mixed = GPT(11, 8, 1, 2, 8, norm="rms")
    with pytest.raises(CheckpointError, match="norm rms"):
        mixed.save_pretrained(tmp_path / "x")
    wider = GPT(11, 8, 1, 2, 8)
    wider.store.parameters[0].path += ".adapter"
    with pytest.raises(CheckpointError, match="1 others, such as"):
        wider.save_pretrained(tmp_path / "x")
    model.set_weights([w * np.nan for w in model.get_weights()])
    with pytest.raises(CheckpointError, match="finite numbers in transformer"):
        model.save_pretrained(tmp_path / "x")
    assert [p.name for p in tmp_path.iterdir()] == ["there"]


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("300MB", 300 * 10**6),
        ("5gb", 5 * 10**9),
        ("2 GiB", 2 << 30),
        (1000, 1000),
        ("1T", 10**12),
    ],
)
def test_sizes(text: str | int, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "0", "1.5GB", "5iB", "5XB", -3])
def test_sizes_that_are_none(text: str | int) -> None:
    with pytest.raises(ArgumentError):
        parse_size(text)


@pytest.mark.parametrize(
    "tokenizer", [ByteTokenizer(), CharTokenizer.train("abc äöü\n€")]
)
def test_tokenizers_go_out_and_in(tmp_path: Path, tokenizer: Any) -> None:
    from fastserve.data.tokenizer_folders import read_tokenizer

    model = GPT(tokenizer.vocab_size, 8, 1, 2, 8)
    model.save_pretrained(tmp_path / "x", tokenizer=tokenizer)
    text = "c äü\n€ab"
    made = Tokenizer.from_file(str(tmp_path / "x/tokenizer.json"))
    ids = tokenizer.encode(text).tolist()
    assert made.encode(text).ids == ids
    assert made.decode(ids) == text
    again = read_tokenizer(tmp_path / "x")
    assert again is not None
    assert again.encode(text).tolist() == ids
    assert again.decode(ids) == text


# -- bad folders -----------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(FOLDERS / "gpt2", tmp_path / "gpt2"))


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    return Path(shutil.copytree(FOLDERS / "llama", tmp_path / "llama"))


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    source = FOLDERS / "llama-grouped-sharded"
    return Path(shutil.copytree(source, tmp_path / "sharded"))


def refused(folder: Path, *texts: str) -> None:
    with pytest.raises(CheckpointError) as error:
        GPT.from_pretrained(folder)
    for text in texts:
        assert text in str(error.value)
    assert error.value.received
    assert error.value.todo


def set_keys(folder: Path, **keys: Any) -> None:
    path = folder / "config.json"
    values = json.loads(path.read_text()) | keys
    path.write_text(json.dumps(values))


GPT2_FAULTS: list[tuple[dict[str, Any], str]] = [
    ({"architectures": ["GPTNeoForCausalLM"]}, "GPTNeoForCausalLM"),
    ({"architectures": "GPT2LMHeadModel"}, "architectures"),
    ({"architectures": None, "model_type": "gpt_neo"}, "gpt_neo"),
    ({"model_type": "llama"}, "model_type"),
    ({"activation_function": "gelu"}, "activation_function"),
    ({"activation_function": "relu"}, "activation_function"),
    ({"scale_attn_weights": False}, "scale_attn_weights"),
    ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
    ({"add_cross_attention": True}, "add_cross_attention"),
    ({"quantization_config": {"bits": 4}}, "quantization_config"),
    ({"a_new_option": 3}, "a_new_option"),
    ({"n_embd": None}, "n_embd"),
    ({"n_layer": 0}, "n_layer"),
    ({"n_layer": "2"}, "n_layer"),
    ({"n_layer": 2.5}, "n_layer"),
    ({"n_layer": True}, "n_layer"),
    ({"n_layer": 10**9}, "tensors for 1000000000 layers"),
    ({"n_layer": 10**10}, "n_layer"),
    ({"n_layer": 3}, "transformer.h.2.ln_1.weight is missing"),
    ({"n_layer": 1}, "transformer.h.1.attn.c_attn.bias isn't in such a model"),
    ({"n_head": 5}, "n_head"),
    ({"vocab_size": 41}, "transformer.wte.weight is (40, 16) instead of (41, 16)"),
    ({"n_positions": 13}, "(12, 16) instead of (13, 16)"),
    ({"n_inner": 20}, "instead of (16, 20)"),
    ({"layer_norm_epsilon": 0}, "layer_norm_epsilon"),
    ({"layer_norm_epsilon": float("nan")}, "layer_norm_epsilon"),
    ({"attn_pdrop": 0.2}, "attn_pdrop"),
    ({"attn_pdrop": 1.0}, "attn_pdrop"),
    ({"tie_word_embeddings": 1}, "tie_word_embeddings"),
    ({"tie_word_embeddings": False}, "lm_head.weight is missing"),
]


@pytest.mark.parametrize(("keys", "text"), GPT2_FAULTS, ids=str)
def test_config_of_gpt2(folder: Path, keys: dict[str, Any], text: str) -> None:
    set_keys(folder, **keys)
    kind = ArgumentError if "n_head" in keys else CheckpointError
    with pytest.raises(kind, match=re.escape(text)):
        GPT.from_pretrained(folder)


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        (
            {"rope_parameters": {"rope_type": "llama3", "factor": 8}},
            "rope_parameters",
        ),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling"),
        ({"rope_scaling": {"factor": 2.0}}, "rope_scaling"),
        ({"rope_scaling": 2}, "rope_scaling"),
        ({"rope_parameters": {"rope_theta": "x"}}, "rope_parameters.rope_theta"),
        ({"rope_theta": -1}, "rope_theta"),
        ({"attention_bias": True}, "attention_bias"),
        ({"mlp_bias": True}, "mlp_bias"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"head_dim": 8}, "head_dim"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"sliding_window": 4096}, "sliding_window"),
        ({"attention_dropout": 0.1}, "attention_dropout"),
        ({"num_key_value_heads": 2}, "self_attn.k_proj.weight is (16, 16)"),
        ({"intermediate_size": 32}, "instead of (32, 16)"),
    ],
    ids=str,
)
def test_config_of_llama(llama: Path, keys: dict[str, Any], text: str) -> None:
    set_keys(llama, **keys)
    refused(llama, text)


def test_rope_theta_of_older_configs(llama: Path) -> None:
    for keys in (
        {"rope_parameters": None, "rope_theta": 500.0},
        {"rope_parameters": None, "rope_theta": 500, "rope_scaling": None},
        {"rope_parameters": {"rope_theta": 500.0, "type": "default"}},
    ):
        set_keys(llama, **keys)
        assert GPT.from_pretrained(llama).options_of_gpt["rope_theta"] == 500.0


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "\xff", "[" * 100_000])
def test_config_that_is_no_json_object(folder: Path, text: str) -> None:
    (folder / "config.json").write_bytes(text.encode("latin-1"))
    refused(folder, "config.json")


def test_folders_that_lack_something(folder: Path, tmp_path: Path) -> None:
    refused(tmp_path / "none", "which is not there")
    refused(tmp_path, "without a config.json")
    (tmp_path / "config.yaml").touch()
    refused(tmp_path, "the folder of a run", "fastserve export")
    (folder / "model.safetensors").unlink()
    refused(folder, "model.safetensors")
    for name in ("pytorch_model.bin", "model.pt"):
        (folder / name).write_bytes(b"\x80\x04.")
        refused(folder, name, "pickle", "convert it")
        (folder / name).unlink()


def rewritten(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    found = load_file(folder / "model.safetensors")
    change(found)
    save_file(found, folder / "model.safetensors")


def test_tensors_that_are_wrong(folder: Path) -> None:
    name = "transformer.h.1.mlp.c_fc.weight"
    content = (folder / "model.safetensors").read_bytes()
    for change, text in (
        (lambda t: t.pop(name), f"{name} is missing"),
        (lambda t: t.update(more=t[name]), "more isn't in such a model"),
        (lambda t: t.update({name: t[name].T.copy()}), "(64, 16) instead of (16, 64)"),
        (lambda t: t.update({name[12:]: t[name]}), "there twice"),
        (lambda t: t[name].__setitem__((3, 2), np.nan), f"nan in {name} at (3, 2)"),
        (lambda t: t[name].__setitem__((0, 0), np.inf), "inf"),
        (lambda t: t.update({name: t[name].astype(np.int32)}), "I32"),
        (
            lambda t: t.update({"lm_head.weight": t["transformer.wte.weight"] + 1}),
            "tie_word_embeddings",
        ),
    ):
        (folder / "model.safetensors").write_bytes(content)
        rewritten(folder, change)
        refused(folder, text)
    (folder / "model.safetensors").write_bytes(content[:-100])
    refused(folder, "cut short")


def set_shards(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    change(index["weight_map"])
    path.write_text(json.dumps(index))


@pytest.mark.parametrize(
    "name",
    ["../x.safetensors", "/etc/x.safetensors", "a/b.safetensors", "..", "", "x.bin", 3],
)
def test_an_index_that_leads_outside(sharded: Path, name: Any) -> None:
    set_shards(sharded, lambda shards: shards.update({"model.norm.weight": name}))
    refused(sharded, "index.json", "in the same folder")


def test_an_index_that_is_wrong(sharded: Path) -> None:
    path = sharded / "model.safetensors.index.json"
    whole = path.read_text()
    set_shards(sharded, lambda shards: shards.pop("model.norm.weight"))
    refused(sharded, "model.norm.weight isn't in the index")
    path.write_text(whole)
    first = "model-00001-of-00003.safetensors"
    set_shards(sharded, lambda shards: shards.update({"model.norm.weight": first}))
    refused(sharded, "model.norm.weight is in model-00003")
    for text in ("", "[]", "{}", '{"weight_map": 3}', '{"weight_map": {}}'):
        path.write_text(text)
        refused(sharded, "index.json", "weight_map")
    path.write_text(whole)
    (sharded / first).unlink()
    refused(sharded, first, "no such file")


def test_the_reference_files_are_as_their_script_says() -> None:
    script = (REFERENCES / "make_huggingface.py").read_text()
    for name in NAMES:
        assert f'"{name}"' in script
        with safe_open(next((FOLDERS / name).glob("*.safetensors")), "np") as file:
            assert file.metadata() == {"format": "pt"}
