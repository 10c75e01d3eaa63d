"""A GPT in PyTorch that generates with a key/value cache, to compare with.

Written as eager PyTorch is: modules, fused attention, a cache that is made once and
written in place, no gradients. PyTorch is no dependency: without it there is no peer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastserve.models import GPT

Generate = Callable[[list[int], int], list[int]]


def torch_generate(model: GPT, threads: int) -> Generate | None:
    """Return a greedy ``generate(prompt, tokens)`` with the weights of ``model``."""
    try:
        import torch
    except ImportError:
        return None
    torch.set_num_threads(threads)
    net = _network(torch, model)

    def generate(prompt: list[int], tokens: int) -> list[int]:
        made: list[int] = []
        with torch.inference_mode():
            caches = net.caches(len(prompt) + tokens)
            x, position = torch.tensor([prompt]), 0
            for _ in range(tokens):
                logits = net(x, caches, position)
                position += x.shape[1]
                made.append(int(logits.argmax()))
                x = torch.tensor([[made[-1]]])
        return made

    return generate


def _network(torch: Any, model: GPT) -> Any:
    nn, functional = torch.nn, torch.nn.functional
    o: dict[str, Any] = model.options_of_gpt
    width, heads, kept = o["n_embd"], o["n_head"], o["n_kv_head"]
    size, hidden, bias = width // heads, o["ff_dim"], o["bias"]

    def norm() -> Any:
        if o["norm"] == "rms":
            return nn.RMSNorm(width, o["epsilon"])
        return nn.LayerNorm(width, o["epsilon"], bias=bias)

    class Block(nn.Module):  # type: ignore[name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.norm_1, self.norm_2 = norm(), norm()
            self.qkv = nn.Linear(width, (heads + 2 * kept) * size, bias)
            self.output = nn.Linear(width, width, bias)
            if o["mlp"] == "swiglu":
                self.gate = nn.Linear(width, hidden, bias)
            self.expand = nn.Linear(width, hidden, bias)
            self.contract = nn.Linear(hidden, width, bias)

        def forward(self, x: Any, cache: Any, position: int, turn: Any) -> Any:
            time = x.shape[1]
            qkv = self.qkv(self.norm_1(x)).view(1, time, -1, size).transpose(1, 2)
            q, k, v = qkv.split((heads, kept, kept), dim=1)
            if turn is not None:
                q, k = turn(q), turn(k)
            end = position + time
            cache[0][:, :, position:end] = k
            cache[1][:, :, position:end] = v
            a = functional.scaled_dot_product_attention(
                q,
                cache[0][:, :, :end],
                cache[1][:, :, :end],
                is_causal=time > 1,
                enable_gqa=heads != kept,
            )
            x = x + self.output(a.transpose(1, 2).reshape(1, time, width))
            h = self.norm_2(x)
            if o["mlp"] == "swiglu":
                return x + self.contract(functional.silu(self.gate(h)) * self.expand(h))
            h = functional.gelu(self.expand(h), approximate="tanh")
            return x + self.contract(h)

    class Net(nn.Module):  # type: ignore[name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.tokens = nn.Embedding(o["vocab_size"], width)
            if o["positions"] == "learned":
                self.positions = nn.Embedding(o["block_size"], width)
            else:
                rate = o["rope_theta"] ** (-torch.arange(0, size, 2) / size)
                angle = torch.outer(torch.arange(o["block_size"]), rate).repeat(1, 2)
                self.cos, self.sin = angle.cos(), angle.sin()
            self.blocks = nn.ModuleList(Block() for _ in range(o["n_layer"]))
            self.norm = norm()
            self.head = nn.Linear(width, o["vocab_size"], bias=False)
            if o["tied"]:
                self.head.weight = self.tokens.weight

        def caches(self, length: int) -> list[Any]:
            return [torch.empty(2, 1, kept, length, size) for _ in self.blocks]

        def forward(self, tokens: Any, caches: list[Any], position: int) -> Any:
            x, turn = self.tokens(tokens), None
            part = slice(position, position + tokens.shape[1])
            if o["positions"] == "learned":
                x = x + self.positions.weight[part]
            else:
                cos, sin = self.cos[part], self.sin[part]

                def turn(y: Any) -> Any:
                    one, two = y.chunk(2, dim=-1)
                    return y * cos + torch.cat((-two, one), dim=-1) * sin

            for block, cache in zip(self.blocks, caches, strict=True):
                x = block(x, cache, position, turn)
            return self.head(self.norm(x[:, -1:]))

    net = Net()
    net.load_state_dict(_weights(torch, model), strict=True)
    return net


def _weights(torch: Any, model: GPT) -> dict[str, Any]:
    """Return our weights by the peer's names."""
    renamed = (
        (".attention.norm.", ".norm_1."),
        (".mlp.norm.", ".norm_2."),
        (".attention.heads.", "."),
        (".mlp.", "."),
    )
    kinds = {"kernel": "weight", "embeddings": "weight", "gamma": "weight"}
    state = {}
    for parameter in model.store.parameters:
        path = parameter.path
        for ours, theirs in renamed:
            path = path.replace(ours, theirs)
        place, _, kind = path.rpartition(".")
        value = parameter.value.T if kind == "kernel" else parameter.value
        state[f"{place}.{kinds.get(kind, 'bias')}"] = torch.from_numpy(value.copy())
    if model.options_of_gpt["tied"]:
        state["head.weight"] = state["tokens.weight"]
    return state
