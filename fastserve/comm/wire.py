"""16-bit floats on the wire: how float32 numbers are packed for a message.

Only messages are packed. Sums are taken in float32, and a number is rounded twice on
its way, whatever the number of ranks: once when it is sent to be summed, and once when
the sum is handed on.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from fastserve.comm.base import Array
from fastserve.errors import UnknownNameError

_BLOCK = 1 << 15  # elements that stay in the cache while they are converted
# float16's largest number is 65504. With the largest magnitude scaled to 2048 to 4096,
# sums of rounding never overflow, and numbers 2^-36 times as large are still kept.
_TOP = 12


class Wire(Protocol):
    """Packs float32 arrays of n elements into uint16 arrays of ``length(n)``."""

    def length(self, count: int) -> int: ...

    def pack(self, values: Array, packed: Array) -> None: ...

    def unpack(self, packed: Array, values: Array) -> None: ...

    def add(self, packed: Array, values: Array) -> None: ...


class Float16:
    """IEEE half precision, 11 significant bits, scaled by a power of two.

    Gradients are small: unscaled, those below 6e-8 would become zero. The scale of a
    message is its last two elements.
    """

    def __init__(self) -> None:
        self._half = np.empty(_BLOCK, np.float32)

    def length(self, count: int) -> int:
        return count + 2

    def pack(self, values: Array, packed: Array) -> None:
        largest = max(float(values.max(initial=0)), -float(values.min(initial=0)))
        exponent = 0
        if np.isfinite(largest) and largest > 0:
            exponent = min(_TOP - int(np.frexp(largest)[1]), 120)
        scale = np.float32(2.0**exponent)
        packed[-2:] = np.float32(1 / scale).reshape(1).view(np.uint16)
        halves = packed[:-2].view(np.float16)
        for start in range(0, values.size, _BLOCK):
            part = values[start : start + _BLOCK]
            scaled = self._half[: part.size]
            np.multiply(part, scale, out=scaled)
            halves[start : start + _BLOCK] = scaled

    def unpack(self, packed: Array, values: Array) -> None:
        scale = packed[-2:].view(np.float32)[0]
        np.copyto(values, packed[:-2].view(np.float16))
        np.multiply(values, scale, out=values)

    def add(self, packed: Array, values: Array) -> None:
        scale = packed[-2:].view(np.float32)[0]
        halves = packed[:-2].view(np.float16)
        for start in range(0, values.size, _BLOCK):
            part = values[start : start + _BLOCK]
            arrived = self._half[: part.size]
            np.multiply(halves[start : start + _BLOCK], scale, out=arrived)
            np.add(part, arrived, out=part)


class BFloat16:
    """The upper half of a float32: its whole range, 8 significant bits."""

    def __init__(self) -> None:
        self._bits = np.empty(_BLOCK, np.uint32)
        self._odd = np.empty(_BLOCK, np.uint32)

    def length(self, count: int) -> int:
        return count

    def pack(self, values: Array, packed: Array) -> None:
        bits = values.view(np.uint32)
        for start in range(0, values.size, _BLOCK):
            part = bits[start : start + _BLOCK]
            rounded, odd = self._bits[: part.size], self._odd[: part.size]
            # to nearest, ties to even; the exponent takes up the carry
            np.right_shift(part, 16, out=odd)
            np.bitwise_and(odd, 1, out=odd)
            np.add(part, np.uint32(0x7FFF), out=rounded)
            np.add(rounded, odd, out=rounded)
            np.right_shift(rounded, 16, out=rounded)
            # a NaN of low bits alone would round to infinity or wrap
            nan = np.isnan(values[start : start + _BLOCK])
            if nan.any():
                rounded[nan] = 0x7FC0
            packed[start : start + _BLOCK] = rounded

    def unpack(self, packed: Array, values: Array) -> None:
        np.left_shift(packed, 16, out=values.view(np.uint32), dtype=np.uint32)

    def add(self, packed: Array, values: Array) -> None:
        for start in range(0, values.size, _BLOCK):
            part = values[start : start + _BLOCK]
            arrived = self._bits[: part.size]
            np.left_shift(
                packed[start : start + _BLOCK], 16, out=arrived, dtype=np.uint32
            )
            np.add(part, arrived.view(np.float32), out=part)


WIRES = ("float32", "float16", "bfloat16")


def make_wire(name: str) -> Wire | None:
    """Return the way to pack by name; None for float32, which is sent as it is."""
    if name not in WIRES:
        raise UnknownNameError("comm wire", name, WIRES)
    kinds: dict[str, type[Float16] | type[BFloat16]]
    kinds = {"float16": Float16, "bfloat16": BFloat16}
    return kinds[name]() if name in kinds else None
