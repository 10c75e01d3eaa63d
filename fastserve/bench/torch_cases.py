"""The cases of ``fastserve bench layers`` in PyTorch, as they are written there.

PyTorch is no dependency: its module comes as an argument.
"""

from __future__ import annotations

import functools
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


def _layouts(torch: Any, make: Callable[[Any], Run]) -> dict[str, Run]:
    """Of images: both orders in memory."""
    return {"nchw": make(torch.contiguous_format), "nhwc": make(torch.channels_last)}


def _gradients(torch: Any, layer: Any, x: Any, dy: Any) -> Run:
    """Forward and backward of one layer, with the gradient of its input."""
    x.requires_grad_()
    parts = [x, *layer.parameters()]

    def run() -> Any:
        y = layer(x)
        y = y[0] if isinstance(y, tuple) else y
        return torch.autograd.grad(y, parts, dy)

    return run


def _convolution(torch: Any, name: str) -> dict[str, Run]:
    batch, size, channels, filters, padding = cases.CONVOLUTIONS[name]
    out = size if padding == "same" else size - 2

    def make(layout: Any) -> Run:
        layer = torch.nn.Conv2d(channels, filters, 3, padding=padding)
        x = torch.randn(batch, channels, size, size).to(memory_format=layout)
        dy = torch.randn(batch, filters, out, out).to(memory_format=layout)
        return _gradients(torch, layer.to(memory_format=layout), x, dy)

    return _layouts(torch, make)


def _image_step(
    torch: Any, net: Callable[[Any], Any], batch: int, *shape: int
) -> dict[str, Run]:
    x, y = cases.images(batch, *shape)

    def make(layout: Any) -> Run:
        tx = torch.from_numpy(x).permute(0, 3, 1, 2).contiguous(memory_format=layout)
        made = net(torch.nn).to(memory_format=layout)
        return _step(torch, made, tx, y, fused=True)

    return _layouts(torch, make)


def _lenet(nn: Any) -> Any:
    return nn.Sequential(
        nn.Conv2d(1, 6, 5, padding="same"),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(400, 120),
        nn.ReLU(),
        nn.Linear(120, 84),
        nn.ReLU(),
        nn.Linear(84, 10),
    )


def _cnn(nn: Any) -> Any:
    return nn.Sequential(
        nn.Conv2d(1, 32, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(1600, 10),
    )


def _resnet(nn: Any) -> Any:
    def convolution(channels: int, filters: int, kernel: int, stride: int) -> Any:
        return nn.Sequential(
            nn.Conv2d(channels, filters, kernel, stride, kernel // 2, bias=False),
            nn.BatchNorm2d(filters),
        )

    class Block(nn.Module):
        def __init__(self, channels: int, filters: int, stride: int) -> None:
            super().__init__()
            self.one = convolution(channels, filters, 3, stride)
            self.two = convolution(filters, filters, 3, 1)
            self.shortcut = nn.Identity()
            if stride > 1:
                self.shortcut = convolution(channels, filters, 1, stride)
            self.relu = nn.ReLU(inplace=True)

        def forward(self, x: Any) -> Any:
            return self.relu(self.two(self.relu(self.one(x))) + self.shortcut(x))

    parts, channels = [convolution(3, 16, 3, 1), nn.ReLU(inplace=True)], 16
    for filters, size in cases.STAGES:
        stride = 2 if size < 32 else 1
        parts += [Block(channels, filters, stride), Block(filters, filters, 1)]
        channels = filters
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)]
    return nn.Sequential(*parts, *head)


def _recurrent(torch: Any, kind: str, shape: str) -> dict[str, Run]:
    batch, time, features, units = cases.SEQUENCES[shape]

    def make(batch_first: bool) -> Run:
        axes = (batch, time) if batch_first else (time, batch)
        layer = getattr(torch.nn, kind)(features, units, batch_first=batch_first)
        x, dy = torch.randn(*axes, features), torch.randn(*axes, units)
        return _gradients(torch, layer, x, dy)

    return {"batch first": make(True), "time first": make(False)}


def _classifier(torch: Any) -> dict[str, Run]:
    _, _, size, width = cases.CLASSIFIER
    nn = torch.nn

    class Net(nn.Module):  # type: ignore[name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.words = nn.Embedding(size, width)
            self.lstm = nn.LSTM(width, width, batch_first=True)
            self.output = nn.Linear(width, 1)

        def forward(self, x: Any) -> Any:
            _, (hidden, _) = self.lstm(self.words(x))
            return self.output(hidden[-1])

    x, y = cases.words()
    loss = nn.functional.binary_cross_entropy_with_logits
    tx = torch.from_numpy(x)
    return {
        "fused": _step(torch, Net(), tx, y, loss, fused=True),
        "foreach": _step(torch, Net(), tx, y, loss, foreach=True),
    }


_SIDES: dict[str, Callable[[Any], dict[str, Run]]] = {
    "mlp": _mlp_step,
    "mlp-fit": lambda torch: _fit(torch, cases.MLP, cases.MLP_BATCH),
    "small-fit": lambda torch: _fit(torch, cases.SMALL, cases.SMALL_BATCH),
    **{name: functools.partial(_convolution, name=name) for name in cases.CONVOLUTIONS},
    "lenet": lambda torch: _image_step(torch, _lenet, cases.LENET_BATCH, 28, 28, 1),
    "cnn": lambda torch: _image_step(torch, _cnn, cases.CNN_BATCH, 28, 28, 1),
    "resnet": lambda torch: _image_step(torch, _resnet, cases.RESNET_BATCH, 32, 32, 3),
    **{
        f"{kind.lower()}-{shape}": functools.partial(_recurrent, kind=kind, shape=shape)
        for kind in ("LSTM", "GRU")
        for shape in cases.SEQUENCES
    },
    "classifier": _classifier,
}
