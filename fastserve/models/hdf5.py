"""What the HDF5 library doesn't examine in a file, and then doesn't come back from.

Groups of the older kind, which Keras' files have, keep the names of their members in
local heaps; texts of any length are in global heaps. HDF5 (2.0 at least) follows the
list of a local heap's free blocks until no memory is left if it leads back into itself,
and goes over a global heap forever if one of its objects takes no bytes.

Source: the HDF5 File Format Specification 3.0, II.A (superblock), III.D and III.E.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from pathlib import Path

_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_SIZES = {0: 13, 1: 13, 2: 9, 3: 9}  # where a superblock has them, by its version
_LOCAL = struct.Struct("<4sB3xQQQ")  # bytes, the first free block, where they are
_FREE_BLOCK = struct.Struct("<QQ")  # the next one, bytes
_LAST = 1  # instead of a next one
_GLOBAL = struct.Struct("<4sB3xQ")  # bytes with this header
_OBJECT = struct.Struct("<HHxxxxQ")  # number (0: free), references, bytes
_SIZE = 1 << 64  # HDF5 adds in 8 bytes


def check(path: Path) -> None:
    """Raise ValueError for a file that HDF5 might read without an end.

    All that looks like a heap is examined, in use or not: weights may look like its
    first five bytes by chance, and space that is free again may hold the beginning of
    one. So this refuses only what has no end, and leaves other damage to HDF5.
    """
    with path.open("rb") as file:
        head = file.read(16)
        if len(head) < 16 or not head.startswith(_SIGNATURE):
            raise ValueError("no HDF5 at its start")
        place = _SIZES.get(head[8])
        if place is None or head[place : place + 2] != b"\x08\x08":
            raise ValueError("not a superblock with sizes of 8 bytes")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            _check_local(content)
            _check_global(content)


def _heaps(content: mmap.mmap, header: struct.Struct, start: bytes) -> Iterator[int]:
    place = content.find(start)
    while 0 <= place <= len(content) - header.size:
        yield place
        place = content.find(start, place + 1)


def _check_local(content: mmap.mmap) -> None:
    # free blocks don't overlap, so a sound file has no more of them than this
    left = len(content) // _FREE_BLOCK.size
    for start in _heaps(content, _LOCAL, b"HEAP\0"):
        _, _, size, free, place = _LOCAL.unpack_from(content, start)
        last = min(size, len(content) - place) - _FREE_BLOCK.size
        while free != _LAST and free <= last:
            free, _ = _FREE_BLOCK.unpack_from(content, place + free)
            if free == 0:  # where no block is
                break
            left -= 1
            if left < 0:
                raise ValueError("a local heap's free blocks have no end")


def _check_global(content: mmap.mmap) -> None:
    left = len(content) // _OBJECT.size  # as above
    for start in _heaps(content, _GLOBAL, b"GCOL\1"):
        _, _, size = _GLOBAL.unpack_from(content, start)
        place, end = start + _GLOBAL.size, min(start + size, len(content))
        while place + _OBJECT.size <= end:
            number, _, taken = _OBJECT.unpack_from(content, place)
            if number:  # what is free counts its header and ends anywhere
                taken = (_OBJECT.size + (taken + 7) // 8 * 8) % _SIZE
            left -= 1
            if left < 0 or taken == 0:
                raise ValueError("a global heap's objects have no end")
            place += taken
