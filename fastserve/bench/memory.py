"""``fastserve bench memory``: the most memory that training takes, beside PyTorch's.

Each side trains the same GPT for three steps with AdamW, in float32, in a process of
its own. Reported is the peak of the process' resident memory (VmHWM), and what of it
was added since the imports. PyTorch runs eagerly, with its fused attention and fused
AdamW. Where it isn't installed only our figures are shown.
"""

from __future__ import annotations

import importlib.util
import json as json_module
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from fastserve.bench.step import (
    BATCHES,
    SHAPES,
    compiled_gpt,
    our_step,
    random_tokens,
)
from fastserve.bench.torch_gpt import INSTALL, import_torch, torch_gpt, torch_step

SIDES = ("fastserve", "recompute", "pytorch")
STEPS = 3
_MB = 1 << 20


def memory(
    shape: str = "medium", batch: int | None = None, json: bool = False
) -> dict[str, Any]:
    """Measure all sides, print the result, and return it as a dict."""
    batch = batch or BATCHES[shape]
    sides = {}
    for side in SIDES:
        if side == "pytorch" and importlib.util.find_spec("torch") is None:
            continue
        words = [sys.executable, "-m", __name__, side, shape, str(batch)]
        done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True)
        sides[side] = json_module.loads(done.stdout)
    result = {"shape": shape, "batch": batch, "steps": STEPS, "sides": sides}
    print(json_module.dumps(result) if json else _table(result))
    return result


def _table(result: dict[str, Any]) -> str:
    shape = SHAPES[result["shape"]]
    lines = [
        f"GPT '{result['shape']}': {shape['n_layer']} layers of {shape['n_embd']}, "
        f"{result['batch']} x {shape['block_size']} tokens, vocabulary of "
        f"{shape['vocab_size']}; AdamW, float32",
        f"{'':10}{'peak MiB':>10}{'of it added':>13}{'s/step':>9}",
    ]
    for name, side in result["sides"].items():
        lines.append(
            f"{name:10}{side['peak'] / _MB:10.0f}{side['added'] / _MB:13.0f}"
            f"{side['seconds']:9.2f}"
        )
    if "pytorch" not in result["sides"]:
        lines.append(INSTALL)
    return "\n".join(lines)


def peak_memory() -> int:
    """Return the most bytes of memory that this process has had (Linux)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise OSError("no VmHWM in /proc/self/status")


def _side(side: str, shape: str, batch: int) -> dict[str, float]:
    options = SHAPES[shape]
    x, y = random_tokens(options, batch)
    torch = import_torch() if side == "pytorch" else None
    before = peak_memory()  # what it takes to import isn't counted
    if torch is not None:
        run = torch_step(torch, torch_gpt(torch, options, None), x, y)
    else:
        model = compiled_gpt(options)
        model.options.recompute = side == "recompute"
        run = our_step(model, x, y)
    seconds = []
    for _ in range(STEPS):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    peak = peak_memory()
    return {
        "peak": peak,
        "added": peak - before,
        "seconds": min(seconds[1:]),
    }


if __name__ == "__main__":
    print(json_module.dumps(_side(sys.argv[1], sys.argv[2], int(sys.argv[3]))))
