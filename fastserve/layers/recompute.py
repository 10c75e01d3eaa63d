"""Activations that are computed again in backward instead of being kept.

Chen, Xu, Zhang, Guestrin, "Training deep nets with sublinear memory cost", 2016.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fastserve.core import Array, Done, Layer, Training, nothing
from fastserve.errors import ArgumentError, StateError
from fastserve.layers.chain import Chain


class _Turns:
    """Whose values are in the buffers that several blocks use in turn."""

    def __init__(self) -> None:
        self.owner: Block | None = None


class Block(Chain):
    """A chain that can do without what its layers keep for backward.

    As it stands it is a ``Chain``. After ``recompute_blocks`` it keeps its input and
    its output alone, and the layers inside write to buffers that all blocks of a kind
    use in turn; backward runs forward once more, unless they still hold its values.
    The gradients are the same, to the bit, with dropout too: its random numbers are
    functions of the step, the sample and the layer.
    """

    _turns: _Turns | None = None
    _x: Array | None = None
    _training: Training = False

    def forward(self, x: Array, training: Training = False) -> Array:
        y = super().forward(x, training)
        if self._turns is None:
            return y
        self._turns.owner = self
        self._x, self._training = x, training
        out = self.buffer("y", y.shape)
        np.copyto(out, y)  # the next block writes to where y is
        return out

    def backward(self, dy: Array, done: Done = nothing) -> Any:
        if self._turns is not None and self._turns.owner is not self:
            super().forward(self.saved(self._x), self._training)
            self._turns.owner = self
        return super().backward(dy, done)

    def kind(self) -> tuple[Any, ...]:
        """Return what blocks must have in common to use the same buffers."""
        return tuple((path, type(part), part.output_shape) for path, part in _in(self))

    def take_turns(self, turns: _Turns, like: Block) -> None:
        """Use the buffers of ``like``, a block of the same kind, from now on."""
        self._turns = turns
        for (_, mine), (_, other) in zip(_in(self), _in(like), strict=True):
            mine.share_buffers(other)


def recompute_blocks(root: Layer) -> None:
    """Let the blocks in ``root``, which is built, keep their inputs and outputs only.

    Raises ArgumentError if there are none.
    """
    blocks = [layer for _, layer in root.walk() if isinstance(layer, Block)]
    if not root.built:
        raise StateError(
            "recompute: expected a model that is built", repr(root), "build it first"
        )
    if not blocks:
        raise ArgumentError(
            "recompute: expected a model with transformer blocks, whose activations "
            "can be computed again one block at a time",
            "a model without any",
            "set recompute to false, or lower micro_batch to save memory",
        )
    kinds: dict[tuple[Any, ...], tuple[_Turns, Block]] = {}
    for block in blocks:
        turns, first = kinds.setdefault(block.kind(), (_Turns(), block))
        block.take_turns(turns, first)


def _in(block: Block) -> list[tuple[str, Layer]]:
    return [(path, layer) for path, layer in block.walk() if layer is not block]
