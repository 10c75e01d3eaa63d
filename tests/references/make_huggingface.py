"""Makes the folders in ``huggingface/`` and ``huggingface.npz``.

They are models that Hugging Face's ``transformers`` wrote, and the logits that it
computes for some tokens:

    python tests/references/make_huggingface.py

needs torch, transformers and this project; made with torch 2.14.1 and transformers
5.24.0. Weights are random, biases and norms too, and large enough that each has an
influence on the logits. At the end ``transformers`` loads what this project exports,
and must compute the same logits.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

import numpy as np
import torch
import transformers

from fastserve.models import GPT

HERE = Path(__file__).parent
FOLDERS = HERE / "huggingface"
VOCABULARY, CONTEXT = 40, 12
GPT2 = {
    "vocab_size": VOCABULARY,
    "n_positions": CONTEXT,
    "n_embd": 16,
    "n_layer": 2,
    "n_head": 4,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
LLAMA = {
    "vocab_size": VOCABULARY,
    "max_position_embeddings": CONTEXT,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "rms_norm_eps": 1e-5,
}
# name -> (options, type of the weights, size of a shard)
MODELS: dict[str, tuple[dict, str, str]] = {
    "gpt2": (GPT2, "float32", "5GB"),
    "gpt2-narrow-float16": (GPT2 | {"n_inner": 24}, "float16", "5GB"),
    "gpt2-untied": (GPT2 | {"tie_word_embeddings": False}, "float16", "5GB"),
    "llama": (LLAMA, "float32", "5GB"),
    "llama-grouped-sharded": (
        LLAMA | {"num_key_value_heads": 2, "rope_theta": 500.0},
        "float32",
        "8KB",
    ),
    "llama-tied-bfloat16": (
        LLAMA | {"num_key_value_heads": 1, "tie_word_embeddings": True},
        "bfloat16",
        "5GB",
    ),
}


def make(name: str) -> torch.nn.Module:
    options, dtype, shard = MODELS[name]
    if name.startswith("gpt2"):
        model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**options))
    else:
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**options))
    torch.manual_seed(len(name))
    with torch.no_grad():
        for key, value in model.named_parameters():
            value.normal_(0.0, 0.3)
            if "norm" in key or ".ln_" in key:
                value += 1.0
    model.to(getattr(torch, dtype)).save_pretrained(
        FOLDERS / name, max_shard_size=shard
    )
    load = transformers.AutoModelForCausalLM.from_pretrained
    return load(FOLDERS / name, dtype=torch.float32).eval()


def main() -> None:
    shutil.rmtree(FOLDERS, ignore_errors=True)
    tokens = np.random.default_rng(1).integers(0, VOCABULARY, (2, CONTEXT))
    arrays: dict[str, np.ndarray] = {"tokens": tokens}
    for name in MODELS:
        with torch.no_grad():
            logits = make(name)(torch.from_numpy(tokens)).logits
        arrays[name] = logits.numpy()
        (FOLDERS / name / "generation_config.json").unlink()
        config = FOLDERS / name / "config.json"
        config.write_text(json.dumps(json.loads(config.read_text()), indent=1) + "\n")
    np.savez_compressed(HERE / "huggingface.npz", **arrays)
    for name in ("gpt2", "llama"):
        check_export(name, tokens)


def check_export(variant: str, tokens: np.ndarray) -> None:
    """Raise AssertionError unless ``transformers`` agrees about a model of ours."""
    heads = 4 if variant == "gpt2" else 2
    model = GPT(VOCABULARY, CONTEXT, 2, 4, 16, variant=variant, n_kv_head=heads)
    rng = np.random.default_rng(0)
    model.set_weights([w + rng.normal(0, 0.3, w.shape) for w in model.get_weights()])
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(Path(folder, "x"), max_shard_size="9KB")
        other, info = transformers.AutoModelForCausalLM.from_pretrained(
            Path(folder, "x"), output_loading_info=True
        )
    assert not any(info.values()), info
    with torch.no_grad():
        found = other.eval()(torch.from_numpy(tokens)).logits.numpy()
    difference = abs(found - model.forward(tokens)).max()
    assert difference < 1e-4, difference
    print(f"{variant}: exported, loaded by transformers, logits differ by {difference}")


if __name__ == "__main__":
    main()
