"""The recurrent layers of rnn.npz, for the script that makes it and for the tests."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

TIME, FEATURES, UNITS, VOCABULARY = 5, 3, 4, 9
# right, left and middle padding, nothing and everything masked
MASK = np.array(
    [
        [1, 1, 1, 0, 0],
        [0, 0, 1, 1, 1],
        [1, 0, 1, 0, 1],
        [1, 1, 1, 1, 1],
        [0, 0, 0, 0, 0],
    ],
    bool,
)


def pack(arrays: dict[str, Any]) -> dict[str, Any]:
    """Return the arrays as one of all numbers: a file of a thousand is mostly names."""
    index = [f"{name}:{','.join(map(str, a.shape))}" for name, a in arrays.items()]
    values = [np.ravel(a).astype(np.float32) for a in arrays.values()]
    return {"index": np.array("\n".join(index)), "values": np.concatenate(values)}


def unpack(packed: Any) -> dict[str, Any]:
    """Return what ``pack`` was given."""
    arrays, start = {}, 0
    for line in str(packed["index"]).splitlines():
        name, sizes = line.rsplit(":", 1)
        shape = tuple(map(int, filter(None, sizes.split(","))))
        stop = start + int(np.prod(shape))
        arrays[name] = packed["values"][start:stop].reshape(shape)
        start = stop
    return arrays


@dataclass(frozen=True)
class Case:
    kind: str
    options: dict[str, Any] = field(default_factory=dict)
    masked: bool = False
    states: int = 0  # initial states that are given
    wrapper: str = ""
    wrapped: dict[str, Any] = field(default_factory=dict)


SEQUENCES: dict[str, Any] = {"return_sequences": True}
BOTH = SEQUENCES | {"return_state": True}
_OPTIONS: dict[str, tuple[dict[str, Any], bool, bool]] = {  # masked, initial states
    "last": ({}, False, False),
    "sequences, state": (BOTH, False, False),
    "backwards": (BOTH | {"go_backwards": True}, False, False),
    "masked": (BOTH, True, False),
    "masked last": ({"return_state": True}, True, False),
    "backwards, masked": (BOTH | {"go_backwards": True}, True, False),
    "initial, masked": (BOTH, True, True),
    "initial, backwards": (BOTH | {"go_backwards": True}, False, True),
    "zeros, masked": (BOTH | {"zero_output_for_mask": True}, True, False),
    "without bias": (BOTH | {"use_bias": False}, False, False),
    "relu": (BOTH | {"activation": "relu"}, True, False),
}
_MORE: dict[str, list[dict[str, Any]]] = {
    "SimpleRNN": [{"activation": "silu"}],
    "LSTM": [{"recurrent_activation": "hard_sigmoid"}, {"unit_forget_bias": False}],
    "GRU": [
        {"recurrent_activation": "hard_sigmoid"},
        {"reset_after": False},
        {"reset_after": False, "activation": "gelu"},
        {"reset_after": False, "use_bias": False},
    ],
}
CASES = {
    f"{kind}: {name}": Case(kind, options, masked, states if initial else 0)
    for kind, states in (("SimpleRNN", 1), ("LSTM", 2), ("GRU", 1))
    for name, (options, masked, initial) in _OPTIONS.items()
}
CASES |= {
    f"{kind}: {' '.join(map(str, more.values()))} {masked}": Case(
        kind, BOTH | more, masked
    )
    for kind, several in _MORE.items()
    for more in several
    for masked in (False, True)
}
CASES |= {
    f"Bidirectional {kind}: {mode} {' '.join(options)} {masked}": Case(
        kind, options, masked, 0, "Bidirectional", {"merge_mode": mode}
    )
    for kind, mode, options, masked in (
        ("LSTM", "concat", SEQUENCES, False),
        ("LSTM", "concat", SEQUENCES, True),
        ("LSTM", "concat", {}, True),
        ("GRU", "sum", SEQUENCES, True),
        ("GRU", "mul", SEQUENCES, True),
        ("SimpleRNN", "ave", SEQUENCES, True),
        ("SimpleRNN", None, BOTH, False),
        ("LSTM", "concat", BOTH, False),
    )
}
