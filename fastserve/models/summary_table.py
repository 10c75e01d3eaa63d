"""The table that ``Model.summary`` prints."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastserve.core.layer import is_several
from fastserve.layers.graph import Graph

if TYPE_CHECKING:
    from fastserve.models.model import Model


def describe(model: Model) -> str:
    """Return the layers with their output shapes and numbers of weights."""
    root = model._built_root()
    graph = root if isinstance(root, Graph) else None
    rows = [("layer", "output", "weights", "connected to")]
    for layer in model.layers if graph else root.children().values():
        name = next(n for n, part in root.children().items() if part is layer)
        size = sum(p.size for p in {id(p): p for p in layer.parameters()}.values())
        shape = _shapes(layer.output_shape)
        before = ", ".join(graph.before(layer)) if graph else ""
        rows.append((f"{name} ({layer.label})", shape, f"{size:,}", before))
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    lines = [
        f"{a:{widths[0]}}  {b:{widths[1]}}  {c:>{widths[2]}}"
        + (f"  {d}" if graph and d else "")
        for a, b, c, d in rows
    ]
    lines.insert(1, "─" * max(map(len, lines)))
    lines.append(f"{model.count_params():,} weights in {model.dtype}")
    if model.store.frozen_parameters:
        rest = model.count_params() - model.store.count
        lines[-1] += f", {model.store.count:,} of them trained, {rest:,} not"
    return "\n".join(lines)


def _shapes(shape: Any) -> str:
    """Return a layer's output shape, or shapes, with the batch."""
    if is_several(shape or ()):
        return ", ".join(map(_shapes, shape))
    return f"({', '.join(['batch', *(str(n or 'None') for n in shape or ())])})"
