"""The floating-point operations of a training step: what GFLOP/s are counted from."""

from __future__ import annotations

import math

from fastserve.core import Layer
from fastserve.layers import Embedding, MultiHeadAttention, PositionEmbedding


def flops_per_sample(root: Layer, time: int = 1) -> float:
    """Return the operations of the matrix products of one sample's training step.

    Two for each number of a matrix and position forward, twice that backward, or once
    if the matrix isn't trained; of a causal attention only what lies below the
    diagonal. Look-ups, element-wise work and the optimizer don't count. Compare Kaplan
    et al., "Scaling laws for neural language models", 2020, section 2.1.

    Args:
        root: a built layer.
        time: length of a sample, for axes of unknown length.
    """
    total = 0.0
    for _, layer in root.walk():
        if isinstance(layer, (Embedding, PositionEmbedding)):
            continue  # rows are looked up
        shape = [time if n is None else n for n in layer.output_shape or ()]
        positions = math.prod(shape[:-1])
        matrices = [p for p in layer.own_parameters() if len(p.shape) == 2]
        parts = sum(p.size * (3 if p.trainable else 2) for p in matrices)
        total += 2.0 * positions * parts
        if isinstance(layer, MultiHeadAttention):
            width = layer.num_heads * (layer.key_dim or 0)
            seen = positions / 2 if layer.causal else positions
            total += 12.0 * positions * seen * width  # with keys, then with values
    return total
