"""When each bucket of gradients was on its way."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Sequence
from time import perf_counter

# told (verb; number of the bucket, or None for all at once; bytes; start; end), in
# seconds of ``time.perf_counter``
Tell = Callable[[str, int | None, int, float, float], None]


class BucketWatch:
    """Hears when a sum begins and ends with each piece, and tells of whole buckets.

    Args:
        ends: of each bucket, the number of pieces up to its end.
        sizes: bytes of each bucket.

    Attributes:
        verb: what is done to the buckets.
    """

    def __init__(self, ends: Sequence[int], sizes: Sequence[int], tell: Tell) -> None:
        self._ends, self._sizes, self._tell = ends, sizes, tell
        self.verb = "all-reduce"
        self._starts: dict[int, float] = {}
        self._left: dict[int, int] = {}

    def begins(self, piece: int) -> None:
        bucket = bisect.bisect_right(self._ends, piece)
        if bucket not in self._starts:
            self._starts[bucket] = perf_counter()
            first = self._ends[bucket - 1] if bucket else 0
            self._left[bucket] = self._ends[bucket] - first

    def ends(self, piece: int) -> None:
        bucket = bisect.bisect_right(self._ends, piece)
        if bucket not in self._starts:
            return  # it began before anybody watched
        self._left[bucket] -= 1
        if not self._left[bucket]:
            start = self._starts.pop(bucket)
            nbytes = self._sizes[bucket]
            self._tell(self.verb, bucket, nbytes, start, perf_counter())
