"""The table that ``Model.summary`` prints."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from fastserve.core import Layer
from fastserve.core.layer import is_several
from fastserve.layers.chain import Chain
from fastserve.layers.graph import Graph

if TYPE_CHECKING:
    from fastserve.models.model import Model


def describe(
    model: Model, expand_nested: bool = False, show_trainable: bool = False
) -> str:
    """Return the layers with their output shapes and numbers of weights; see
    ``Model.summary``."""
    root = model._built_root()
    graph = root if isinstance(root, Graph) else None
    rows = [("layer", "output", "weights", "connected to"), *_rows(root, expand_nested)]
    if show_trainable:
        trained = ["trained", *_trained(root, expand_nested)]
        rows = [
            (a, b, f"{c}  {t:7}", d)
            for (a, b, c, d), t in zip(rows, trained, strict=True)
        ]
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    lines = [
        f"{a:{widths[0]}}  {b:{widths[1]}}  {c:>{widths[2]}}"
        + (f"  {d}" if graph and d else "")
        for a, b, c, d in rows
    ]
    lines = [line.rstrip() for line in lines]
    lines.insert(1, "─" * max(map(len, lines)))
    lines.append(f"{model.count_params():,} weights in {model.dtype}")
    if model.store.frozen_parameters:
        rest = model.count_params() - model.store.count
        lines[-1] += f", {model.store.count:,} of them trained, {rest:,} not"
    return "\n".join(lines)


def _layers(
    root: Layer, inside: bool, depth: int = 0
) -> Iterator[tuple[Layer, Layer, int]]:
    """Yield (layer, what it is a part of, how deep), with ``inside`` also the layers of
    graphs and chains."""
    known = root.layers if isinstance(root, Graph) else root.children().values()
    for layer in known:
        yield layer, root, depth
        if inside and isinstance(layer, (Graph, Chain)):
            yield from _layers(layer, inside, depth + 1)


def _rows(root: Layer, inside: bool) -> Iterator[tuple[str, str, str, str]]:
    for layer, parent, depth in _layers(root, inside):
        name = next(n for n, part in parent.children().items() if part is layer)
        size = sum(p.size for p in {id(p): p for p in layer.parameters()}.values())
        before = ", ".join(parent.before(layer)) if isinstance(parent, Graph) else ""
        name = f"{'  ' * depth}{name} ({layer.label})"
        yield name, _shapes(layer.output_shape), f"{size:,}", before


def _trained(root: Layer, inside: bool) -> Iterator[str]:
    for layer, _, _ in _layers(root, inside):
        has = any(True for _ in layer.parameters())
        yield ("yes" if layer.trainable else "no") if has else ""


def _shapes(shape: Any) -> str:
    """Return a layer's output shape, or shapes, with the batch."""
    if is_several(shape or ()):
        return ", ".join(map(_shapes, shape))
    return f"({', '.join(['batch', *(str(n or 'None') for n in shape or ())])})"
