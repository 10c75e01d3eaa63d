"""The options of a GPT: two standard sets, and each option by itself."""

from __future__ import annotations

import math
from typing import Any

from fastserve.errors import ArgumentError, UnknownNameError

# What an option is if it isn't given. gpt2: Radford et al., 2019. llama: Touvron et
# al., "LLaMA", 2023, with the options of what followed it.
VARIANTS: dict[str, dict[str, Any]] = {
    "gpt2": {
        "positions": "learned",
        "norm": "layer",
        "mlp": "gelu",
        "bias": True,
        "tied": True,
    },
    "llama": {
        "positions": "rotary",
        "norm": "rms",
        "mlp": "swiglu",
        "bias": False,
        "tied": False,
    },
}
CHOICES = {
    "positions": ("learned", "rotary"),
    "norm": ("layer", "rms"),
    "mlp": ("gelu", "swiglu"),
}


MOST_LAYERS = 1000  # a file of somebody else may ask for any number


def hidden_width(n_embd: int, mlp: str) -> int:
    """Return the MLP's width where none is given.

    4 x n_embd; two thirds of it with a gate, so that three matrices have the weights
    of two (Shazeer, 2020), rounded up to whole cache lines of 64 numbers.
    """
    return 4 * n_embd if mlp == "gelu" else -(-8 * n_embd // (3 * 64)) * 64


def resolve(options: dict[str, Any]) -> dict[str, Any]:
    """Return all options of ``GPT`` with None replaced; raise ArgumentError or
    UnknownNameError for what can't be."""
    o = dict(options)
    if o["variant"] not in VARIANTS:
        raise UnknownNameError("variant of GPT", o["variant"], VARIANTS)
    for name, default in VARIANTS[o["variant"]].items():
        o[name] = default if o[name] is None else o[name]
    for name, known in CHOICES.items():
        if o[name] not in known:
            raise UnknownNameError(f"kind of {name}", o[name], known)
    o["n_kv_head"] = o["n_head"] if o["n_kv_head"] is None else o["n_kv_head"]
    for name in ("vocab_size", "block_size", "n_layer", "n_head", "n_kv_head"):
        o[name] = _count(name, o[name])
    o["n_embd"] = _count("n_embd", o["n_embd"])
    if o["n_layer"] > MOST_LAYERS:
        raise ArgumentError(
            f"GPT: expected n_layer of at most {MOST_LAYERS}",
            str(o["n_layer"]),
            "large models have about 100 layers; take wider ones",
        )
    if o["ff_dim"] is None:
        o["ff_dim"] = hidden_width(o["n_embd"], o["mlp"])
    o["ff_dim"] = _count("ff_dim", o["ff_dim"])
    for name in ("bias", "tied"):
        if not isinstance(o[name], bool):
            raise ArgumentError(
                f"GPT: expected {name} to be True or False", repr(o[name])
            )
    for name in ("epsilon", "rope_theta"):
        if not (o[name] > 0 and math.isfinite(o[name])):
            raise ArgumentError(f"GPT: expected {name} above 0", repr(o[name]))
        o[name] = float(o[name])
    o["dropout"] = float(o["dropout"])
    _check_heads(o)
    return o


def _count(name: str, value: Any) -> int:
    if isinstance(value, bool) or not hasattr(value, "__index__") or value < 1:
        raise ArgumentError(
            f"GPT: expected {name} to be an integer above 0",
            repr(value),
            f"change {name}",
        )
    return int(value.__index__())


def _check_heads(o: dict[str, Any]) -> None:
    heads, width = o["n_head"], o["n_embd"]
    if width % heads:
        raise ArgumentError(
            "GPT: expected n_embd to be a multiple of n_head",
            f"n_embd={width}, n_head={heads}",
            "change one of them",
        )
    if heads % o["n_kv_head"]:
        raise ArgumentError(
            "GPT: expected n_kv_head to divide n_head",
            f"n_kv_head={o['n_kv_head']}, n_head={heads}",
            "change one of them",
        )
    if o["positions"] == "rotary" and width // heads % 2:
        raise ArgumentError(
            "GPT: expected heads of even width for rotary positions",
            f"n_embd / n_head = {width // heads}",
            "change one of them, or take positions='learned'",
        )
