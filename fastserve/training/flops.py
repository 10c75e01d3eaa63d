"""The floating-point operations of a training step: what GFLOP/s are counted from."""

from __future__ import annotations

import math
from typing import Any

from fastserve.core import Layer, is_several
from fastserve.layers import (
    Conv1DTranspose,
    Conv2DTranspose,
    Embedding,
    MultiHeadAttention,
    PositionEmbedding,
)
from fastserve.layers.graph import Graph
from fastserve.layers.recurrent import Recurrent
from fastserve.layers.sequences import TimeDistributed


def flops_per_sample(root: Layer, time: int = 1) -> float:
    """Return the operations of the matrix products of one sample's training step.

    Two for each number of a matrix, or a filter, and position forward, twice that
    backward, or once if it isn't trained; of a causal attention only what lies below
    the diagonal. Look-ups, element-wise work and the optimizer don't count. Compare
    Kaplan et al., "Scaling laws for neural language models", 2020, section 2.1.

    Args:
        root: a built layer.
        time: length of a sample, for axes of unknown length.
    """
    inner = sum(flops_per_sample(part, time) for part in _inside(root))
    if isinstance(root, TimeDistributed):
        inner *= (root.input_shape or (None,))[0] or time
    return _own_flops(root, time) + inner


def _inside(layer: Layer) -> list[Layer]:
    """Return the layers that run in this one; one that is called twice comes twice."""
    if isinstance(layer, Graph):
        return [call.layer for call in layer.calls]
    return list(layer.children().values())


def _own_flops(layer: Layer, time: int) -> float:
    if isinstance(layer, (Embedding, PositionEmbedding)):
        return 0.0  # rows are looked up
    recurrent = isinstance(layer, Recurrent)  # its output may be the last step's alone
    by_input = recurrent or isinstance(layer, (Conv1DTranspose, Conv2DTranspose))
    shape: Any = (layer.input_shape if by_input else layer.output_shape) or ()
    if is_several(shape):
        shape = shape[0]
    shape = [time if n is None else n for n in shape]
    positions = math.prod(shape[:-1])
    matrices = [
        p
        for p in layer.own_parameters()
        if len(p.shape) == 2 or (len(p.shape) > 2 and p.name.endswith("kernel"))
    ]
    if recurrent:
        matrices = matrices[:2]  # without a GRU's two biases
    total = 2.0 * positions * sum(p.size * (3 if p.trainable else 2) for p in matrices)
    if isinstance(layer, MultiHeadAttention):
        width = layer.num_heads * (layer.key_dim or 0)
        seen = positions / 2 if layer.causal else positions
        total += 12.0 * positions * seen * width  # with keys, then with values
    return total
