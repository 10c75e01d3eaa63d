"""The cases of ``fastserve bench layers`` in PyTorch, as they are written there.

PyTorch is no dependency: its module comes as an argument.
"""

from __future__ import annotations

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
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3, **adam)
    target = torch.from_numpy(y)
    loss = loss or torch.nn.functional.cross_entropy

    def run() -> float:
        optimizer.zero_grad(set_to_none=True)
        value = loss(net(x), target)
        value.backward()
        optimizer.step()
        return float(value.detach())

    return run


def _mlp(torch: Any) -> dict[str, Run]:
    nn = torch.nn
    x, y = cases.images(cases.MLP_BATCH, cases.MLP[0])
    a, b, c, d = cases.MLP

    def net() -> Any:
        return nn.Sequential(
            nn.Linear(a, b), nn.ReLU(), nn.Linear(b, c), nn.ReLU(), nn.Linear(c, d)
        )

    tx = torch.from_numpy(x)
    return {
        "fused": _step(torch, net(), tx, y, fused=True),
        "foreach": _step(torch, net(), tx, y, foreach=True),
    }


_SIDES: dict[str, Callable[[Any], dict[str, Run]]] = {"mlp": _mlp}
