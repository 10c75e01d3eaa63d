"""``fastserve bench step``: our training step beside PyTorch's, in one run.

All sides train the same GPT from the same weights on the same batch, on the same number
of threads, in turns; PyTorch runs eagerly, with its fused attention and fused AdamW, in
float32 as we do and under bfloat16 autocast. Where it isn't installed only our figures
are shown.
"""

from __future__ import annotations

import json as json_module
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from fastserve.bench.torch_gpt import INSTALL, import_torch, torch_gpt, torch_step
from fastserve.core import Array
from fastserve.data.prefetch import Share
from fastserve.data.sources import Batch, Source
from fastserve.models import GPT
from fastserve.models.model import Model
from fastserve.optimizers import AdamW
from fastserve.training.flops import flops_per_sample

SHAPES: dict[str, dict[str, Any]] = {
    # nanoGPT's recipe for CPUs, its one for a GPU, and GPT-2's smallest
    "small": {
        "vocab_size": 65,
        "block_size": 64,
        "n_layer": 4,
        "n_head": 4,
        "n_embd": 128,
    },
    "medium": {
        "vocab_size": 65,
        "block_size": 256,
        "n_layer": 6,
        "n_head": 6,
        "n_embd": 384,
    },
    "gpt2": {
        "vocab_size": 50257,
        "block_size": 1024,
        "n_layer": 12,
        "n_head": 12,
        "n_embd": 768,
    },
}
BATCHES = {"small": 12, "medium": 16, "gpt2": 2}


def sgemm_peak(
    size: int = 2048, repeats: int = 5, clock: Callable[[], float] = time.perf_counter
) -> float:
    """Return the GFLOP/s of float32 matrix products in this process, best of some."""
    a = np.ones((size, size), np.float32)
    out = np.empty_like(a)
    np.matmul(a, a, out=out)
    seconds = []
    for _ in range(repeats):
        start = clock()
        np.matmul(a, a, out=out)
        seconds.append(clock() - start)
    return float(2e-9 * size**3 / min(seconds))


def step(
    shape: str = "medium",
    json: bool = False,
    repeats: int = 5,
    batch: int | None = None,
) -> dict[str, Any]:
    """Time training steps, print the result, and return it as a dict."""
    options = SHAPES[shape]
    batch = batch or BATCHES[shape]
    x, y = random_tokens(options, batch)
    model = compiled_gpt(options)
    torch = import_torch()
    peers: dict[str, Callable[[], float]] = {}
    if torch is not None:  # they take the weights as they are now
        for name, bfloat16 in (("pytorch", False), ("its bfloat16", True)):
            net = torch_gpt(torch, options, model)
            peers[name] = torch_step(torch, net, x, y, bfloat16)
    sides = {"fastserve": our_step(model, x, y), **peers}
    losses = {name: [run()] for name, run in sides.items()}  # the warm-up
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(repeats):
        for name, run in sides.items():
            start = time.perf_counter()
            losses[name].append(run())
            seconds[name].append(time.perf_counter() - start)
    result = _result(options, batch, seconds, losses, model)
    print(json_module.dumps(result) if json else _table(result))
    return result


def random_tokens(options: dict[str, Any], batch: int) -> tuple[Array, Array]:
    """Return inputs and targets (batch, block_size), the same at every call."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, options["vocab_size"], (batch, options["block_size"] + 1))
    return np.ascontiguousarray(tokens[:, :-1]), np.ascontiguousarray(tokens[:, 1:])


def compiled_gpt(options: dict[str, Any]) -> GPT:
    model = GPT(seed=1, **options)
    model.compile(AdamW(1e-4, weight_decay=0.1, beta_2=0.95))
    return model


def our_step(
    model: Model, x: Array, y: Array, first_row: int = 0, total: int | None = None
) -> Callable[[], float]:
    """Return what makes a step on one batch, and returns its loss.

    The batch is these rows, or with ``total`` this rank's rows of so many in all.
    """
    batch, mine = Batch(x, y, None), slice(first_row, first_row + len(x))
    trainer = model.prepare(_One(batch))
    rows = total or len(x)
    share = Share(batch, mine, rows, rows)
    return lambda: trainer.train_share(share, 0).loss


class _One(Source):
    """A source of one batch, always the same."""

    def __init__(self, batch: Batch) -> None:
        self._batch, self.samples = batch, len(batch.x)

    @property
    def input_shape(self) -> tuple[int, ...]:
        return self._batch.x.shape[1:]

    def batch(self, rows: Array, epochs: Array) -> Batch:
        return self._batch


def _result(
    shape: dict[str, Any],
    batch: int,
    seconds: dict[str, list[float]],
    losses: dict[str, list[float]],
    model: GPT,
) -> dict[str, Any]:
    tokens = batch * shape["block_size"]
    flops = batch * flops_per_sample(model.root)
    peak = sgemm_peak()
    ours = seconds["fastserve"]
    sides = {}
    for name, times in seconds.items():
        median = statistics.median(times)
        sides[name] = {
            "seconds": median,
            "fastest": min(times),
            "tokens_per_s": tokens / median,
            "gflops": flops / median / 1e9,
            "share_of_peak": flops / median / 1e9 / peak,
            "ratio": statistics.median(t / o for t, o in zip(times, ours, strict=True)),
            "loss": losses[name][-1],
        }
    return {
        "model": {**shape, "weights": model.count_params()},
        "batch": batch,
        "repeats": len(ours),
        "sgemm_gflops": peak,
        "sides": sides,
    }


def _table(result: dict[str, Any]) -> str:
    tokens = result["batch"] * result["model"]["block_size"]
    lines = [
        f"GPT of {result['model']['weights'] / 1e6:.1f} M weights, {tokens} tokens a "
        f"step, float32; SGEMM peak {result['sgemm_gflops']:.0f} GFLOP/s",
        f"{'':12}{'s/step':>9}{'tokens/s':>10}{'GFLOP/s':>9}{'of peak':>9}"
        f"{'time':>8}{'loss':>10}",
    ]
    for name, side in result["sides"].items():
        lines.append(
            f"{name:12}{side['seconds']:9.4f}{side['tokens_per_s']:10.0f}"
            f"{side['gflops']:9.1f}{side['share_of_peak']:9.0%}"
            f"{side['ratio']:7.2f}x{side['loss']:10.4f}"
        )
    if len(result["sides"]) == 1:
        lines.append(INSTALL)
    return "\n".join(lines)
