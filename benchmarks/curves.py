"""Trains the same GPT here and in PyTorch, and compares loss curves and times.

    python benchmarks/curves.py [--source shakespeare] [--steps 2000] [--plot FILE.png]

The setting is that of nanoGPT's recipe for CPUs (Karpathy, 2022): 4 layers, 4 heads,
width 128, context 64, batch 12, AdamW with betas (0.9, 0.99), 100 steps of warm-up and
half a cosine from 1e-3 to 1e-4, decay 0.1 of matrices, gradient norm clipped at 1, no
dropout. Both sides start from the same weights and see the same batches, in float32
on one thread, in turns of 50 steps. Needs PyTorch; --plot needs matplotlib.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from fastserve.bench.torch_gpt import INSTALL, import_torch, torch_adamw, torch_gpt
from fastserve.data.sampler import Sampler
from fastserve.data.sources import Batch, Source, TokenSource
from fastserve.data.text import load_text, split
from fastserve.data.tokenizers import CharTokenizer
from fastserve.models import GPT
from fastserve.optimizers import AdamW
from fastserve.schedules import from_config

SHAPE = {"n_layer": 4, "n_head": 4, "n_embd": 128, "block_size": 64}
BATCH = 12
RATE, LEAST, WARMUP, BETAS = 1e-3, 1e-4, 100, (0.9, 0.99)
TURN = 50  # steps of one side before the other's
EVALUATED = 200  # batches of the validation text

Run = Callable[[int, Batch], float]


def main() -> int:
    options = parse()
    threadpool_limits(1)
    torch = import_torch()
    if torch is None:
        print(INSTALL, file=sys.stderr)
        return 1
    text = load_text(options.source)
    tokenizer = CharTokenizer.train(text)
    train, held = split(tokenizer.encode(text), 0.1)
    source = TokenSource(train, SHAPE["block_size"], seed=1)
    validation = TokenSource(held, SHAPE["block_size"], shift=False)
    sampler = Sampler(source.samples, BATCH, 1, True, wrap=True)

    rate = from_config(
        type="cosine", lr=RATE, steps=options.steps, warmup_steps=WARMUP, min_lr=LEAST
    )
    model = GPT(tokenizer.vocab_size, seed=1, **SHAPE)
    model.compile(AdamW(rate, weight_decay=0.1, beta_1=BETAS[0], beta_2=BETAS[1]))
    model.clip_norm = 1.0
    net = torch_gpt(
        torch, model.options_of_gpt, model
    )  # takes the weights as they are now
    trainer = model.prepare(source)
    sides: dict[str, Run] = {
        "fastserve": lambda i, b: (
            trainer.train_batch(b, slice(0, BATCH), BATCH, i).loss
        ),
        "pytorch": torch_run(torch, net, rate),
    }
    losses: dict[str, list[float]] = {name: [] for name in sides}
    seconds = dict.fromkeys(sides, 0.0)
    for first in range(0, options.steps, TURN):
        batches = [
            copy(source, sampler, step)
            for step in range(first, min(first + TURN, options.steps))
        ]
        for name, run in sides.items():
            start = time.perf_counter()
            losses[name] += [run(first + i, b) for i, b in enumerate(batches)]
            seconds[name] += time.perf_counter() - start
        print(
            f"step {first + len(batches)}: "
            + ", ".join(f"{name} {loss[-1]:.5f}" for name, loss in losses.items()),
            file=sys.stderr,
        )
    evaluated = {
        "fastserve": evaluate(validation, lambda b: model_loss(trainer, b)),
        "pytorch": evaluate(
            validation, lambda b: float(torch_loss(torch, net, b).detach())
        ),
    }
    ours, theirs = (np.array(losses[name]) for name in sides)
    result = {
        "source": options.source,
        "steps": options.steps,
        "largest_difference": {
            str(n): float(abs(ours - theirs)[:n].max())
            for n in (200, options.steps)
            if n <= options.steps
        },
        "validation": evaluated,
        "seconds": seconds,
        "ratio": seconds["pytorch"] / seconds["fastserve"],
    }
    print(json.dumps(result, indent=2))
    if options.plot:
        plot(options.plot, losses, seconds, options.source)
    return 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--source", default="shakespeare", help="text or its file")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--plot", type=Path, metavar="FILE.png")
    return parser.parse_args()


def copy(source: Source, sampler: Sampler, step: int) -> Batch:
    """Return the step's batch, in memory of its own."""
    batch = source.batch(*sampler.step(step))
    return Batch(batch.x.copy(), batch.y.copy(), None)


def torch_loss(torch: Any, net: Any, batch: Batch) -> Any:
    logits = net(torch.from_numpy(batch.x))
    return torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), torch.from_numpy(batch.y).reshape(-1)
    )


def torch_run(torch: Any, net: Any, rate: Any) -> Run:
    optimizer = torch_adamw(torch, net, RATE, betas=BETAS)

    def run(step: int, batch: Batch) -> float:
        for group in optimizer.param_groups:
            group["lr"] = rate(step)
        optimizer.zero_grad(set_to_none=True)
        loss = torch_loss(torch, net, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        return float(loss.detach())

    return run


def model_loss(trainer: Any, batch: Batch) -> float:
    logits = trainer.root.forward(batch.x, False)
    total = trainer.loss.sum_and_gradient(batch.y, logits, None, 1.0, None)
    return float(total) / batch.y.size


def evaluate(source: Source, loss: Callable[[Batch], float]) -> float:
    """Return the mean loss of the first batches of ``source``."""
    sampler = Sampler(source.samples, BATCH, 0, shuffle=False, wrap=False)
    steps = min(EVALUATED, source.samples // BATCH)
    return float(np.mean([loss(copy(source, sampler, step)) for step in range(steps)]))


def plot(
    path: Path, losses: dict[str, list[float]], seconds: dict[str, float], source: str
) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (above, below) = pyplot.subplots(
        2, 1, sharex=True, figsize=(7, 6), height_ratios=(3, 1), layout="constrained"
    )
    for (name, values), style in zip(losses.items(), ("-", "--"), strict=True):
        steps = range(1, len(values) + 1)
        label = f"{name}, {seconds[name]:.0f} s"
        above.plot(steps, values, style, label=label, linewidth=1.2)
    above.set(ylabel="training loss, nats a character", title=f"GPT on {source}")
    above.legend()
    ours, theirs = (np.array(values) for values in losses.values())
    below.semilogy(steps, np.maximum(abs(ours - theirs), 1e-9), linewidth=0.8)
    below.set(xlabel="step", ylabel="difference")
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    sys.exit(main())
