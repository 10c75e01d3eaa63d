"""The cases of ``fastserve bench layers`` in PyTorch, as they are written there.

PyTorch is no dependency: its module comes as an argument.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

from fastserve.bench import cases
from fastserve.core import Array

Run = Callable[[], Any]


def torch_sides(torch: Any, case: str) -> dict[str, Run]:
    """Return the ways to make one run of a case, by name."""
    return _SIDES[case](torch)


def _step(
    torch: Any, net: Any, x: Any, y: Array, loss: Any = None, **adam: bool
) -> Run:
    """Return what makes a training step with Adam, of one kind of its loops."""
    optimizer = torch.optim.Adam(net.parameters(), lr=cases.RATE, **adam)
    target = torch.from_numpy(y)
    loss = loss or torch.nn.functional.cross_entropy

    def run() -> float:
        optimizer.zero_grad(set_to_none=True)
        value = loss(net(x), target)
        value.backward()
        optimizer.step()
        return float(value.detach())

    return run


def _mlp(torch: Any, sizes: tuple[int, ...]) -> Any:
    nn = torch.nn
    parts: list[Any] = []
    for a, b in itertools.pairwise(sizes):
        parts += [nn.ReLU()] if parts else []
        parts += [nn.Linear(a, b)]
    return nn.Sequential(*parts)


def _mlp_step(torch: Any) -> dict[str, Run]:
    x, y = cases.images(cases.MLP_BATCH, cases.MLP[0])
    tx = torch.from_numpy(x)
    return {
        "fused": _step(torch, _mlp(torch, cases.MLP), tx, y, fused=True),
        "foreach": _step(torch, _mlp(torch, cases.MLP), tx, y, foreach=True),
    }


def _fit(torch: Any, sizes: tuple[int, ...], batch: int) -> dict[str, Run]:
    """An epoch of a user's loop: tensors in memory, batches by index, accuracy."""
    x, y = map(torch.from_numpy, cases.images(cases.FIT_ROWS, sizes[0]))
    net = _mlp(torch, sizes)
    optimizer = torch.optim.Adam(net.parameters(), lr=cases.RATE, fused=True)

    def run() -> float:
        total, hits = torch.zeros(()), torch.zeros((), dtype=torch.long)
        for rows in torch.randperm(len(x)).split(batch):
            optimizer.zero_grad(set_to_none=True)
            target = y[rows]
            logits = net(x[rows])
            loss = torch.nn.functional.cross_entropy(logits, target)
            loss.backward()
            optimizer.step()
            total += loss.detach() * len(rows)
            hits += (logits.detach().argmax(1) == target).sum()
        return float(total) / len(x) + float(hits)

    return {"loop": run}


_SIDES: dict[str, Callable[[Any], dict[str, Run]]] = {
    "mlp": _mlp_step,
    "mlp-fit": lambda torch: _fit(torch, cases.MLP, cases.MLP_BATCH),
    "small-fit": lambda torch: _fit(torch, cases.SMALL, cases.SMALL_BATCH),
}
