"""Make losses.npz, optimizers.npz and schedules.npz with PyTorch, next to this file.

Run it with a Python that has PyTorch; the tests only load the arrays.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

HERE = Path(__file__).parent
ROWS, CLASSES, STEPS = 7, 5, 12


def loss_inputs(rng: np.random.Generator) -> dict[str, np.ndarray]:
    soft = rng.random((ROWS, CLASSES), np.float32)
    logits = (3 * rng.standard_normal((ROWS, CLASSES))).astype(np.float32)
    logits[0] += 200  # so large that exp overflows without a shift
    logits[1] -= 200
    return {
        "logits": logits,
        "labels": rng.integers(0, CLASSES, ROWS),
        "soft": soft / soft.sum(1, keepdims=True),
        "binary": rng.integers(0, 2, (ROWS, CLASSES)).astype(np.float32),
        "weights": rng.random(ROWS, np.float32),
    }


def losses() -> dict[str, np.ndarray]:
    arrays = loss_inputs(np.random.default_rng(0))
    t = {name: torch.from_numpy(array) for name, array in arrays.items()}
    cross, binary = functional.cross_entropy, functional.binary_cross_entropy

    def sparse_probabilities(x: torch.Tensor) -> torch.Tensor:
        x = x / x.sum(1, keepdim=True)
        return functional.nll_loss(x.log(), t["labels"], reduction="none")

    cases: dict[str, tuple[str, Callable[[torch.Tensor], torch.Tensor]]] = {
        "sparse_logits": ("logits", lambda x: cross(x, t["labels"], reduction="none")),
        "soft_logits": ("logits", lambda x: cross(x, t["soft"], reduction="none")),
        "sparse_probabilities": ("soft", sparse_probabilities),
        "binary_logits": (
            "logits",
            lambda x: functional.binary_cross_entropy_with_logits(
                x, t["binary"], reduction="none"
            ).mean(1),
        ),
        "binary_probabilities": (
            "soft",
            lambda x: binary(x, t["binary"], reduction="none").mean(1),
        ),
        "mse": ("logits", lambda x: ((x - t["soft"]) ** 2).mean(1)),
        "mae": ("logits", lambda x: (x - t["soft"]).abs().mean(1)),
    }
    for name, (source, function) in cases.items():
        x = t[source].clone().requires_grad_(True)
        total = (function(x) * t["weights"]).sum()
        total.backward()
        arrays[f"{name}_sum"] = total.detach().numpy()
        arrays[f"{name}_grad"] = x.grad.numpy()
    return arrays


def optimizers() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    start = rng.standard_normal((6, 4)).astype(np.float32)
    grads = rng.standard_normal((STEPS, 6, 4)).astype(np.float32)
    grads += np.sign(grads) * 0.1  # away from 0, where only epsilon counts
    eps, o = 1e-10, torch.optim
    cases: dict[str, Callable[[list[torch.Tensor]], torch.optim.Optimizer]] = {
        "sgd": lambda p: o.SGD(p, lr=0.05),
        "momentum": lambda p: o.SGD(p, lr=0.05, momentum=0.9),
        "nesterov": lambda p: o.SGD(p, lr=0.05, momentum=0.9, nesterov=True),
        "rmsprop": lambda p: o.RMSprop(p, lr=0.01, alpha=0.9, eps=eps),
        "rmsprop_centered": lambda p: o.RMSprop(
            p, lr=0.01, alpha=0.9, eps=eps, momentum=0.8, centered=True
        ),
        "adam": lambda p: o.Adam(p, lr=0.01, betas=(0.9, 0.95), eps=eps),
        "adamw": lambda p: o.AdamW(
            p, lr=0.01, betas=(0.9, 0.999), eps=eps, weight_decay=0.1
        ),
    }
    arrays = {"start": start, "grads": grads}
    for name, make in cases.items():
        p = torch.from_numpy(start.copy()).requires_grad_(True)
        optimizer, values = make([p]), []
        for grad in grads:
            p.grad = torch.from_numpy(grad)
            optimizer.step()
            values.append(p.detach().numpy().copy())
        arrays[name] = np.stack(values)
    for name, most in (("clip_loose", 100.0), ("clip_tight", 0.5)):
        p = torch.from_numpy(start.copy()).requires_grad_(True)
        p.grad = torch.from_numpy(grads[0].copy())
        norm = torch.nn.utils.clip_grad_norm_([p], most)
        arrays[f"{name}_norm"], arrays[name] = norm.numpy(), p.grad.numpy()
    return arrays


def schedules() -> dict[str, np.ndarray]:
    s, lr, steps, warmup, least = torch.optim.lr_scheduler, 0.1, 40, 8, 0.01
    span = steps - warmup

    def warmed(after: Callable[..., object]) -> Callable[..., object]:
        def make(o: torch.optim.Optimizer) -> object:
            first = s.LinearLR(o, 1 / warmup, 1.0, warmup - 1)
            return s.SequentialLR(o, [first, after(o)], [warmup])

        return make

    cases: dict[str, Callable[..., object]] = {
        "cosine": lambda o: s.CosineAnnealingLR(o, span, eta_min=least),
        "linear": lambda o: s.LinearLR(o, 1.0, least / lr, span),
        "exponential": lambda o: s.ExponentialLR(o, 0.2 ** (1 / 10)),
        "step": lambda o: s.StepLR(o, 6, 0.5),
        "polynomial": lambda o: s.PolynomialLR(o, span, power=2.0),
        "piecewise": lambda o: s.MultiStepLR(o, [5, 11], 0.1),
    }
    cases |= {f"warm_{k}": warmed(cases[k]) for k in ("cosine", "linear", "step")}
    arrays = {}
    for name, make in cases.items():
        optimizer = torch.optim.SGD([torch.zeros(1)], lr=lr)
        scheduler, rates = make(optimizer), []
        for _ in range(steps if name.startswith("warm_") else span):
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
        arrays[name] = np.array(rates)
    return arrays


if __name__ == "__main__":
    # SequentialLR itself calls its parts in the way that PyTorch warns of
    warnings.filterwarnings("ignore", message="The epoch parameter")
    for make in (losses, optimizers, schedules):
        path = HERE / f"{make.__name__}.npz"
        np.savez_compressed(path, **make())
        print(path.name, path.stat().st_size, "bytes")
