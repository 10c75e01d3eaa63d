"""Make layers.npz with PyTorch, next to this file.

Run it with a Python that has PyTorch; the tests only load the arrays. Each case holds
``x``, ``y``, ``dy``, ``dx``, and for each weight by our name ``w.NAME`` and ``g.NAME``,
all float32; kernels are transposed to (inputs, outputs) as ours are.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

HERE = Path(__file__).parent
VOCABULARY, TIME, WIDTH, HEADS = 17, 10, 12, 3
Arrays = dict[str, np.ndarray]
Named = dict[str, tuple[Tensor, bool]]  # our name: (weight, whether to transpose)

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "threshold": lambda x: F.threshold(x, 0.0, 0.0),
    "relu6": F.relu6,
    "leaky_relu": lambda x: F.leaky_relu(x, 0.2),
    "hard_sigmoid": F.hardsigmoid,
    "hard_silu": F.hardswish,
    "hard_tanh": F.hardtanh,
    "hard_shrink": F.hardshrink,
    "soft_shrink": F.softshrink,
    "tanh_shrink": F.tanhshrink,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "exponential": torch.exp,
    "softplus": F.softplus,
    "log_sigmoid": F.logsigmoid,
    "softsign": F.softsign,
    "elu": F.elu,
    "celu": F.celu,
    "selu": F.selu,
    "silu": F.silu,
    "mish": F.mish,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "softmax": lambda x: F.softmax(x, -1),
    "log_softmax": lambda x: F.log_softmax(x, -1),
}


def case(
    name: str, x: Tensor, function: Callable[[Tensor], Tensor], weights: Named
) -> Arrays:
    """Return a case's arrays: forward, and backward from a random dy."""
    if x.is_floating_point():
        x = x.clone().requires_grad_()
    y = function(x)
    dy = torch.randn(y.shape)
    y.backward(dy)
    found = {"x": x.detach(), "y": y.detach(), "dy": dy}
    if x.grad is not None:
        found["dx"] = x.grad
    for key, (weight, transpose) in weights.items():
        assert weight.grad is not None
        for kind, tensor in (("w", weight.detach()), ("g", weight.grad)):
            found[f"{kind}.{key}"] = tensor.T if transpose else tensor
    return {
        f"{name}/{key}": np.ascontiguousarray(t.numpy()) for key, t in found.items()
    }


def linear(module: nn.Linear, prefix: str = "") -> Named:
    return {
        f"{prefix}kernel": (module.weight, True),
        f"{prefix}bias": (module.bias, False),
    }


def norm(module: nn.LayerNorm, prefix: str = "") -> Named:
    return {
        f"{prefix}gamma": (module.weight, False),
        f"{prefix}beta": (module.bias, False),
    }


def attention(module: nn.MultiheadAttention, prefix: str = "") -> Named:
    return {
        f"{prefix}qkv.kernel": (module.in_proj_weight, True),
        f"{prefix}qkv.bias": (module.in_proj_bias, False),
        f"{prefix}output.kernel": (module.out_proj.weight, True),
        f"{prefix}output.bias": (module.out_proj.bias, False),
    }


def heads() -> nn.MultiheadAttention:
    module = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
    nn.init.normal_(module.in_proj_bias, std=0.3)
    nn.init.normal_(module.out_proj.bias, std=0.3)
    return module


def attend(
    module: nn.MultiheadAttention, x: Tensor, causal: bool, keys: Tensor | None = None
) -> Tensor:
    """``keys`` (batch, time) is true where a position counts."""
    time = x.shape[1]
    later = torch.ones(time, time, dtype=torch.bool).triu(1) if causal else None
    padding = None if keys is None else ~keys
    return module(
        x, x, x, attn_mask=later, key_padding_mask=padding, need_weights=False
    )[0]


class Block(nn.Module):
    """GPT-2's: x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.heads = heads()
        self.expand = nn.Linear(WIDTH, 4 * WIDTH)
        self.contract = nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        x = x + attend(self.heads, self.first(x), causal=True)
        hidden = F.gelu(self.expand(self.second(x)), approximate="tanh")
        return x + self.contract(hidden)

    def named(self, prefix: str = "") -> Named:
        return {
            **norm(self.first, f"{prefix}attention.norm."),
            **attention(self.heads, f"{prefix}attention.heads."),
            **norm(self.second, f"{prefix}mlp.norm."),
            **linear(self.expand, f"{prefix}mlp.expand."),
            **linear(self.contract, f"{prefix}mlp.contract."),
        }


def gpt(index: Tensor) -> Arrays:
    """Two blocks between an embedding and the head that is tied to it."""
    tokens = nn.Embedding(VOCABULARY, WIDTH)
    positions = nn.Embedding(TIME, WIDTH)
    blocks, last = [Block(), Block()], nn.LayerNorm(WIDTH)
    names: Named = {
        "tokens.embeddings": (tokens.weight, False),
        "positions.embeddings": (positions.weight, False),
        **blocks[0].named("blocks0."),
        **blocks[1].named("blocks1."),
        **norm(last, "norm."),
    }

    def forward(x: Tensor) -> Tensor:
        h = tokens(x) + positions.weight[: x.shape[1]]
        for block in blocks:
            h = block(h)
        return last(h) @ tokens.weight.T

    return case("gpt", index, forward, names)


def main() -> None:
    torch.manual_seed(0)
    arrays: Arrays = {}
    z = 2 * torch.randn(8, 9)
    for name, function in ACTIVATIONS.items():
        arrays |= case(f"activation {name}", z, function, {})
    x = torch.randn(3, TIME, WIDTH)
    dense = nn.Linear(WIDTH, 7)
    arrays |= case("dense", x[:, 0], dense, linear(dense))
    dense = nn.Linear(WIDTH, 7)
    arrays |= case("dense relu", x, lambda v: F.relu(dense(v)), linear(dense))
    layer = nn.LayerNorm(WIDTH, eps=1e-3)
    nn.init.normal_(layer.weight)
    nn.init.normal_(layer.bias)
    arrays |= case("norm", 3 * x + 5, layer, norm(layer))
    index = torch.randint(0, VOCABULARY, (3, TIME))
    table = nn.Embedding(VOCABULARY, WIDTH)
    arrays |= case("embedding", index, table, {"embeddings": (table.weight, False)})
    mask = torch.arange(TIME) < torch.tensor([[TIME], [4], [7]])
    arrays["mask"] = mask.numpy()
    for name, causal, keys in (
        ("attention", False, None),
        ("attention causal", True, None),
        ("attention masked", False, mask),
        ("attention causal masked", True, mask),
    ):
        module = heads()
        arrays |= case(
            name,
            x,
            partial(attend, module, causal=causal, keys=keys),
            attention(module),
        )
    block = Block()
    arrays |= case("block", x, block, block.named())
    arrays |= gpt(index)
    np.savez_compressed(HERE / "layers.npz", **arrays)  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
