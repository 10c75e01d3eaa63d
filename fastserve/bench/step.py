"""``fastserve bench step``: our training step beside PyTorch's, in one run.

Both train the same GPT from the same weights on the same batch, in float32, on the same
number of threads, in turns; PyTorch runs eagerly, with its fused attention and fused
AdamW. Where it isn't installed only our figures are shown.
"""

from __future__ import annotations

import json as json_module
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from fastserve.core import Array
from fastserve.data.sources import Batch, Source
from fastserve.models import GPT
from fastserve.models.gpt_options import OPTIONAL, resolve
from fastserve.optimizers import AdamW

SHAPE: dict[str, Any] = {
    "vocab_size": 65,
    "block_size": 256,
    "n_layer": 6,
    "n_head": 6,
    "n_embd": 384,
}
INSTALL = "to compare with PyTorch: pip install torch"


def sgemm_peak(size: int = 2048, repeats: int = 5) -> float:
    """Return the GFLOP/s of float32 matrix products in this process, best of some."""
    a = np.ones((size, size), np.float32)
    out = np.empty_like(a)
    np.matmul(a, a, out=out)
    seconds = [_time(lambda: np.matmul(a, a, out=out)) for _ in range(repeats)]
    return float(2e-9 * size**3 / min(seconds))


def step_flops(batch: int, shape: dict[str, Any]) -> float:
    """Return the floating-point operations of a step's matrix products.

    Two for each weight and token forward, twice that backward; of the attention only
    what lies below the diagonal. Look-ups and element-wise work don't count.
    ``shape`` holds options of ``GPT``; those left out have their defaults.
    """
    given = {"variant": "gpt2", "dropout": 0.0, "epsilon": 1e-5, "rope_theta": 1e4}
    unset = dict.fromkeys(OPTIONAL) | given | shape
    o = resolve(unset)
    width, time_, layers = o["n_embd"], o["block_size"], o["n_layer"]
    heads = o["n_head"] + 2 * o["n_kv_head"]
    qkv_and_output = width * (width // o["n_head"] * heads + width)
    mlp = (3 if o["mlp"] == "swiglu" else 2) * width * o["ff_dim"]
    weights = layers * (qkv_and_output + mlp) + o["vocab_size"] * width
    attention = 2 * layers * width * time_
    return 3.0 * batch * time_ * (2 * weights + attention)


def step(json: bool = False, repeats: int = 5, batch: int = 16) -> dict[str, Any]:
    """Time training steps, print the result, and return it as a dict."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, SHAPE["vocab_size"], (batch, SHAPE["block_size"] + 1))
    x, y = np.ascontiguousarray(tokens[:, :-1]), np.ascontiguousarray(tokens[:, 1:])
    model = GPT(seed=1, **SHAPE)
    model.compile(AdamW(1e-4, weight_decay=0.1, beta_2=0.95))
    sides: dict[str, Callable[[], float]] = {}
    peer = torch_step(SHAPE, model, x, y)  # takes the weights as they are now
    sides["fastserve"] = our_step(model, x, y)
    if peer is not None:
        sides["pytorch"] = peer
    losses = {name: [run()] for name, run in sides.items()}  # the warm-up
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(repeats):
        for name, run in sides.items():
            start = time.perf_counter()
            losses[name].append(run())
            seconds[name].append(time.perf_counter() - start)
    result = _result(batch, seconds, losses, model.count_params)
    print(json_module.dumps(result) if json else _table(result))
    return result


def our_step(model: GPT, x: Array, y: Array) -> Callable[[], float]:
    """Return what makes a step on one batch, and returns its loss."""
    batch = Batch(x, y, None)
    trainer = model.prepare(_One(batch))
    mine = slice(0, len(x))
    return lambda: trainer.train_batch(batch, mine, len(x), 0).loss


class _One(Source):
    """A source of one batch, always the same."""

    def __init__(self, batch: Batch) -> None:
        self._batch, self.samples = batch, len(batch.x)

    @property
    def input_shape(self) -> tuple[int, ...]:
        return self._batch.x.shape[1:]

    def batch(self, rows: Array, epochs: Array) -> Batch:
        return self._batch


def torch_step(
    shape: dict[str, Any], model: GPT | None, x: Array, y: Array
) -> Callable[[], float] | None:
    """Return PyTorch's step, from the weights of ``model`` if there is one.

    None where PyTorch isn't installed.
    """
    try:
        import torch
    except ImportError:
        return None
    from threadpoolctl import threadpool_info

    pools = [p["num_threads"] for p in threadpool_info() if p["user_api"] == "blas"]
    torch.set_num_threads(max(pools, default=1))
    peer = _torch_gpt(torch, shape)
    if model is not None:
        _copy_weights(torch, peer, model, shape["n_layer"])
    decayed = [p for p in peer.parameters() if p.dim() >= 2]
    others = [p for p in peer.parameters() if p.dim() < 2]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.1}, {"params": others}],
        lr=1e-4,
        betas=(0.9, 0.95),
        weight_decay=0.0,
        fused=True,
    )
    tx, ty = torch.from_numpy(x), torch.from_numpy(y).reshape(-1)

    def run() -> float:
        optimizer.zero_grad(set_to_none=True)
        logits = peer(tx)
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ty)
        loss.backward()
        torch.nn.utils.get_total_norm([p.grad for p in peer.parameters()])
        optimizer.step()
        return float(loss.detach())

    return run


def _torch_gpt(torch: Any, shape: dict[str, Any]) -> Any:
    """Return the same GPT in PyTorch, as it is written there."""
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
            return self.norm(x) @ self.tokens.weight.T

    return Net()


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


def _result(
    batch: int,
    seconds: dict[str, list[float]],
    losses: dict[str, list[float]],
    weights: int,
) -> dict[str, Any]:
    tokens, flops = batch * SHAPE["block_size"], step_flops(batch, SHAPE)
    peak = sgemm_peak()
    sides = {}
    for name, times in seconds.items():
        median = statistics.median(times)
        sides[name] = {
            "seconds": median,
            "fastest": min(times),
            "tokens_per_s": tokens / median,
            "gflops": flops / median / 1e9,
            "share_of_peak": flops / median / 1e9 / peak,
            "loss": losses[name][-1],
        }
    result = {
        "model": {**SHAPE, "weights": weights},
        "batch": batch,
        "repeats": len(seconds["fastserve"]),
        "sgemm_gflops": peak,
        "sides": sides,
    }
    if "pytorch" in seconds:
        pairs = zip(seconds["pytorch"], seconds["fastserve"], strict=True)
        result["ratio"] = statistics.median(p / o for p, o in pairs)
    return result


def _table(result: dict[str, Any]) -> str:
    tokens = result["batch"] * SHAPE["block_size"]
    lines = [
        f"GPT of {result['model']['weights'] / 1e6:.1f} M weights, {tokens} tokens a "
        f"step, float32; SGEMM peak {result['sgemm_gflops']:.0f} GFLOP/s",
        f"{'':10}{'s/step':>9}{'tokens/s':>10}{'GFLOP/s':>9}{'of peak':>9}{'loss':>9}",
    ]
    for name, side in result["sides"].items():
        lines.append(
            f"{name:10}{side['seconds']:9.3f}{side['tokens_per_s']:10.0f}"
            f"{side['gflops']:9.1f}{side['share_of_peak']:9.0%}{side['loss']:9.4f}"
        )
    if "ratio" in result:
        lines.append(f"fastserve is {result['ratio']:.2f} times as fast (median pair)")
    else:
        lines.append(INSTALL)
    return "\n".join(lines)


def _time(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start
