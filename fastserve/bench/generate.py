"""``fastserve bench generate``: tokens a second, ours beside PyTorch's, in one run.

Both generate greedily from the same weights and prompt, each with a key/value cache, in
float32, on the same number of threads, in turns; PyTorch runs eagerly. Where it isn't
installed only our figures are shown.
"""

from __future__ import annotations

import json as json_module
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from fastserve.bench.step import SHAPES
from fastserve.bench.torch_decoder import torch_generate
from fastserve.bench.torch_gpt import INSTALL
from fastserve.errors import ArgumentError
from fastserve.models import GPT

NEW = {"small": 48, "medium": 240, "gpt2": 64}  # tokens after the prompt
PROMPT = 16  # tokens


def generate(
    shape: str = "medium",
    variant: str = "gpt2",
    tokens: int | None = None,
    repeats: int = 5,
    threads: int = 1,
    json: bool = False,
) -> dict[str, Any]:
    """Time generation, print the result, and return it as a dict.

    Raises ArgumentError for more ``tokens`` than the context has room for.
    """
    options = SHAPES[shape]
    tokens = NEW[shape] if tokens is None else tokens
    context = options["block_size"]
    if not 1 <= tokens <= context - PROMPT:
        raise ArgumentError(
            f"bench generate: expected 1 to {context - PROMPT} tokens, so that they "
            f"fit into the context of {context} after a prompt of {PROMPT}",
            str(tokens),
            "change --tokens",
        )
    model = GPT(**options, seed=1, variant=variant)
    prompt = (
        np.random.default_rng(0).integers(0, options["vocab_size"], PROMPT).tolist()
    )
    sides: dict[str, Callable[[], list[int]]] = {
        "fastserve": lambda: model.generate(prompt, tokens, temperature=0)
    }
    peer = torch_generate(model, threads)
    if peer is not None:
        sides["pytorch"] = lambda: peer(prompt, tokens)
    made = {name: run() for name, run in sides.items()}  # the warm-up
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(repeats):
        for name, run in sides.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    result = _result(model, shape, tokens, seconds, made)
    print(json_module.dumps(result) if json else _table(result))
    return result


def read_bandwidth(size: int = 1 << 26, repeats: int = 5) -> float:
    """Return the bytes a second that a product reads from memory, best of some."""
    a = np.ones(size, np.float32)
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        np.dot(a, a)
        best = min(best, time.perf_counter() - start)
    return a.nbytes / best


def bytes_read(model: GPT, seen: float) -> float:
    """Return the bytes of weights, keys and values that one token needs.

    ``seen`` is the mean number of positions before it.
    """
    o: dict[str, Any] = model.options_of_gpt
    looked_up = ["positions.embeddings"] + ([] if o["tied"] else ["tokens.embeddings"])
    weights = sum(p.size for p in model.store.parameters if p.path not in looked_up)
    kept = 2 * o["n_layer"] * o["n_kv_head"] * (o["n_embd"] // o["n_head"])
    return float(model.dtype.itemsize * (weights + kept * seen))


def _result(
    model: GPT,
    shape: str,
    tokens: int,
    seconds: dict[str, list[float]],
    made: dict[str, list[int]],
) -> dict[str, Any]:
    bandwidth = read_bandwidth()
    floor = bytes_read(model, PROMPT + tokens / 2) / bandwidth
    result: dict[str, Any] = {
        "shape": shape,
        "model": {**model.options_of_gpt, "weights": model.count_params()},
        "prompt": PROMPT,
        "tokens": tokens,
        "repeats": len(seconds["fastserve"]),
        "read_gb_per_s": bandwidth / 1e9,
        "floor_ms": floor * 1e3,
        "sides": {
            name: {
                "tokens_per_s": tokens / statistics.median(times),
                "fastest": tokens / min(times),
                "ms_per_token": statistics.median(times) / tokens * 1e3,
            }
            for name, times in seconds.items()
        },
    }
    if "pytorch" in seconds:
        pairs = zip(seconds["pytorch"], seconds["fastserve"], strict=True)
        result["ratio"] = statistics.median(p / o for p, o in pairs)
        same = zip(made["pytorch"], made["fastserve"], strict=True)
        result["same_tokens"] = sum(a == b for a, b in same) / tokens
    return result


def _table(result: dict[str, Any]) -> str:
    o = result["model"]
    lines = [
        f"{o['variant']} of {o['weights'] / 1e6:.1f} M weights, {result['tokens']} "
        f"tokens after {result['prompt']}, float32",
        f"{'':10}{'tokens/s':>10}{'fastest':>10}{'ms/token':>10}",
    ]
    for name, side in result["sides"].items():
        lines.append(
            f"{name:10}{side['tokens_per_s']:10.1f}{side['fastest']:10.1f}"
            f"{side['ms_per_token']:10.3f}"
        )
    lines.append(
        f"reading all weights once at the memory's {result['read_gb_per_s']:.1f} GB/s: "
        f"{result['floor_ms']:.3f} ms"
    )
    if "ratio" in result:
        lines.append(
            f"fastserve is {result['ratio']:.2f} times as fast (median pair), "
            f"{result['same_tokens']:.0%} of the tokens are the same"
        )
    else:
        lines.append(INSTALL)
    return "\n".join(lines)
