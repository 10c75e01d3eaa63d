"""Whether a model's last activation suits its loss."""

from __future__ import annotations

from typing import Any

from fastserve.core import Layer
from fastserve.errors import ArgumentError
from fastserve.layers.graph import Graph


def check_activation(loss: Any, root: Layer) -> None:
    """Raise ArgumentError if a loss of logits would get probabilities, or the reverse.

    Both train without an error, but badly: a softmax of a softmax, or the logarithm of
    a number that may be negative. ``root`` is a network of one output.
    """
    ending = root.fused_loss
    if loss.from_logits and ending:
        raise ArgumentError(
            f"{loss.name}: expected logits, as from_logits=True says",
            f"probabilities: the last layer ends in a {ending}",
            "leave out from_logits=True, or the last layer's activation",
        )
    wanted, last = loss.fused_loss, _last(root)
    activation = getattr(getattr(last, "activation", None), "name", None)
    if wanted and activation == "linear":
        raise ArgumentError(
            f"{loss.name}: expected probabilities, as from_logits=True isn't given",
            f"a last layer ({last.label}) without activation",
            f"give it activation={wanted!r}, or the loss from_logits=True",
        )


def _last(layer: Layer) -> Layer:
    """Return the layer that makes the output of a network."""
    while True:
        if isinstance(layer, Graph) and len(layer.outputs) == 1:
            layer = layer.outputs[0].node.layer
        elif getattr(layer, "layers", None):
            layer = layer.layers[-1]  # type: ignore[attr-defined]
        else:
            return layer
