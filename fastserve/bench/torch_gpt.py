"""The same GPT in PyTorch, as it is written there, to compare with.

PyTorch is no dependency: where it isn't installed there is no peer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastserve.core import Array
from fastserve.models import GPT

INSTALL = "to compare with PyTorch: pip install torch"


def import_torch() -> Any:
    """Return PyTorch, on as many threads as the BLAS here has; None without it."""
    try:
        import torch
    except ImportError:
        return None
    from threadpoolctl import threadpool_info

    pools = [p["num_threads"] for p in threadpool_info() if p["user_api"] == "blas"]
    torch.set_num_threads(max(pools, default=1))
    return torch


def torch_adamw(
    torch: Any,
    net: Any,
    rate: float,
    betas: tuple[float, float] = (0.9, 0.95),
    decay: float = 0.1,
) -> Any:
    """Return PyTorch's fused AdamW that decays matrices alone."""
    decayed = [p for p in net.parameters() if p.dim() >= 2]
    others = [p for p in net.parameters() if p.dim() < 2]
    return torch.optim.AdamW(
        [{"params": decayed, "weight_decay": decay}, {"params": others}],
        lr=rate,
        betas=betas,
        weight_decay=0.0,
        fused=True,
    )


def torch_step(
    torch: Any, net: Any, x: Array, y: Array, bfloat16: bool = False
) -> Callable[[], float]:
    """Return a function that makes a training step and returns its loss.

    Eager, with fused attention and fused AdamW; ``bfloat16``: under autocast.
    """
    optimizer = torch_adamw(torch, net, rate=1e-4)
    tx, ty = torch.from_numpy(x), torch.from_numpy(y).reshape(-1)

    def run() -> float:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            logits = net(tx)
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ty)
        loss.backward()
        torch.nn.utils.get_total_norm([p.grad for p in net.parameters()])
        optimizer.step()
        return float(loss.detach())

    return run


def torch_gpt(torch: Any, shape: dict[str, Any], model: GPT | None) -> Any:
    """Return a GPT-2 in PyTorch, with the weights that ``model`` has now, if any."""
    nn, functional = torch.nn, torch.nn.functional
    heads = shape["n_head"]

    class Block(nn.Module):  # type: ignore[name-defined]
        def __init__(self, width: int) -> None:
            super().__init__()
            self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
            self.qkv = nn.Linear(width, 3 * width)
            self.output = nn.Linear(width, width)
            self.expand = nn.Linear(width, 4 * width)
            self.contract = nn.Linear(4 * width, width)

        def forward(self, x: Any) -> Any:
            b, t, d = x.shape
            parts = self.qkv(self.norm_1(x)).split(d, dim=2)
            q, k, v = (p.view(b, t, heads, d // heads).transpose(1, 2) for p in parts)
            a = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + self.output(a.transpose(1, 2).reshape(b, t, d))
            hidden = functional.gelu(self.expand(self.norm_2(x)), approximate="tanh")
            return x + self.contract(hidden)

    class Net(nn.Module):  # type: ignore[name-defined]
        def __init__(self) -> None:
            super().__init__()
            width = shape["n_embd"]
            self.tokens = nn.Embedding(shape["vocab_size"], width)
            self.positions = nn.Embedding(shape["block_size"], width)
            self.blocks = nn.ModuleList(Block(width) for _ in range(shape["n_layer"]))
            self.norm = nn.LayerNorm(width)

        def forward(self, tokens: Any) -> Any:
            x = self.tokens(tokens) + self.positions.weight[: tokens.shape[1]]
            for block in self.blocks:
                x = block(x)
            return functional.linear(self.norm(x), self.tokens.weight)

    net = Net()
    if model is not None:
        _copy_weights(torch, net, model, shape["n_layer"])
    return net


def _copy_weights(torch: Any, net: Any, model: GPT, layers: int) -> None:
    ours = {p.path: p.value for p in model.store.parameters}
    names = {"tokens": "tokens", "positions": "positions", "norm": "norm"}
    for i in range(layers):
        for peer, part in (
            ("norm_1", "attention.norm"),
            ("qkv", "attention.heads.qkv"),
            ("output", "attention.heads.output"),
            ("norm_2", "mlp.norm"),
            ("expand", "mlp.expand"),
            ("contract", "mlp.contract"),
        ):
            names[f"blocks.{i}.{peer}"] = f"blocks.{i}.{part}"
    kinds = {"kernel": "weight", "embeddings": "weight", "gamma": "weight"}
    state = {}
    for peer, part in names.items():
        for path, value in ours.items():
            if path.rpartition(".")[0] == part:
                kind = path.rpartition(".")[2]
                array = value.T if kind == "kernel" else value
                other = kinds.get(kind, "bias")
                state[f"{peer}.{other}"] = torch.from_numpy(array.copy())
    net.load_state_dict(state)
