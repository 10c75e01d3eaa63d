"""Make gpt.npz with PyTorch and Hugging Face's transformers, next to this file.

Run it with a Python that has both; the tests only load the arrays. Each case holds
``x`` (tokens), ``y`` (logits), ``dy``, and for each weight by our name ``w.NAME`` and
``g.NAME``, all float32; kernels are (inputs, outputs) as ours are.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

HERE = Path(__file__).parent
VOCABULARY, TIME, WIDTH, LAYERS, HEADS, KV_HEADS, HIDDEN = 17, 12, 16, 2, 4, 2, 24
Names = dict[str, tuple[list[str], bool]]  # ours: (theirs, to be joined), transposed


def gpt2() -> tuple[torch.nn.Module, Names]:
    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=TIME,
        n_embd=WIDTH,
        n_layer=LAYERS,
        n_head=HEADS,
        attn_implementation="eager",
    )
    names: Names = {
        "tokens.embeddings": (["transformer.wte.weight"], False),
        "positions.embeddings": (["transformer.wpe.weight"], False),
        "norm.gamma": (["transformer.ln_f.weight"], False),
        "norm.beta": (["transformer.ln_f.bias"], False),
    }
    for i in range(LAYERS):
        for ours, theirs, kinds in (
            ("attention.norm", "ln_1", ("gamma", "beta")),
            ("attention.heads.qkv", "attn.c_attn", ("kernel", "bias")),
            ("attention.heads.output", "attn.c_proj", ("kernel", "bias")),
            ("mlp.norm", "ln_2", ("gamma", "beta")),
            ("mlp.expand", "mlp.c_fc", ("kernel", "bias")),
            ("mlp.contract", "mlp.c_proj", ("kernel", "bias")),
        ):
            for kind, name in zip(kinds, ("weight", "bias"), strict=True):
                full = f"transformer.h.{i}.{theirs}.{name}"
                names[f"blocks.{i}.{ours}.{kind}"] = ([full], False)
    return GPT2LMHeadModel(config), names


def llama() -> tuple[torch.nn.Module, Names]:
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        max_position_embeddings=TIME,
        hidden_size=WIDTH,
        intermediate_size=HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        rms_norm_eps=1e-5,
        rope_theta=10000.0,
        attn_implementation="eager",
    )
    names: Names = {
        "tokens.embeddings": (["model.embed_tokens.weight"], False),
        "norm.gamma": (["model.norm.weight"], False),
        "head.kernel": (["lm_head.weight"], True),
    }
    for i in range(LAYERS):
        for ours, theirs in (
            ("attention.norm.gamma", ["input_layernorm"]),
            (
                "attention.heads.qkv.kernel",
                [f"self_attn.{part}_proj" for part in "qkv"],
            ),
            ("attention.heads.output.kernel", ["self_attn.o_proj"]),
            ("mlp.norm.gamma", ["post_attention_layernorm"]),
            ("mlp.gate.kernel", ["mlp.gate_proj"]),
            ("mlp.expand.kernel", ["mlp.up_proj"]),
            ("mlp.contract.kernel", ["mlp.down_proj"]),
        ):
            full = [f"model.layers.{i}.{part}.weight" for part in theirs]
            names[f"blocks.{i}.{ours}"] = (full, ours.endswith("kernel"))
    return LlamaForCausalLM(config), names


def case(name: str, model: torch.nn.Module, names: Names) -> dict[str, np.ndarray]:
    weights = dict(model.named_parameters())
    with torch.no_grad():
        for weight in weights.values():
            # larger than at the start of training, so that every part counts
            weight.add_(0.3 * torch.randn(weight.shape))
    x = torch.randint(0, VOCABULARY, (2, TIME))
    model.eval()
    y = model(x).logits
    dy = torch.randn(y.shape)
    y.backward(dy)
    arrays = {"x": x.numpy(), "y": y.detach().numpy(), "dy": dy.numpy()}
    for ours, (theirs, transposed) in names.items():
        values = torch.cat([weights[t] for t in theirs]).detach().numpy()
        gradients = torch.cat([weights[t].grad for t in theirs]).numpy()
        arrays[f"w.{ours}"] = values.T if transposed else values
        arrays[f"g.{ours}"] = gradients.T if transposed else gradients
    return {f"{name}/{key}": value for key, value in arrays.items()}


def main() -> None:
    torch.manual_seed(0)
    arrays = case("gpt2", *gpt2()) | case("llama", *llama())
    np.savez_compressed(HERE / "gpt.npz", **arrays)  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
