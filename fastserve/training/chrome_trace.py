"""The events of all ranks in Chrome's trace event format.

That is what chrome://tracing and Perfetto read (Duca, Sinclair, "Trace Event Format").
Events of a thread must nest: they may contain one another, but not overlap in part.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from fastserve.comm.clocks import Offset

# thread, name, kind, start, end in seconds of ``time.perf_counter``, what else to tell
Event = tuple[str, str, str, float, float, dict[str, Any] | None]

# The order in which they are shown; what each thread of a rank is called.
THREADS = {
    "training": "training",
    "communication": "communication",
    "prefetch": "data prefetch",
    "saver": "saver",
}
_LANES = 100  # numbers of a thread's lanes
_SHORTEST_WAIT = 20e-6  # seconds that are told


class RankEvents(NamedTuple):
    """What a rank has recorded.

    Attributes:
        began: when it began. dropped: events that were left out.
        clocks: the rank's clock beside rank 0's at the beginning and at the end.
    """

    rank: int
    host: str
    began: float
    events: list[Event]
    dropped: int
    clocks: tuple[Offset, Offset]


def chrome_trace(ranks: Sequence[RankEvents]) -> dict[str, Any]:
    """Return the JSON object: a process a rank, on rank 0's clock, in microseconds.

    What a rank spends in a sum until the last rank has come to it is shown as waiting
    for that one. Events that overlap, such as buckets on their way, are put in lanes
    beside each other.
    """
    aligned = [_aligned(rank) for rank in ranks]
    for events, waits in zip(aligned, _waits(aligned), strict=True):
        events += [
            ("training", f"waiting for rank {late}", "waiting", start, end, None)
            for late, start, end in waits
        ]
    zero = min((e[3] for events in aligned for e in events), default=0)
    made: list[dict[str, Any]] = []
    for rank, events in zip(ranks, aligned, strict=True):
        made += _metadata(rank)
        made += _of_rank(rank.rank, events, zero)
    clocks = [
        {
            "rank": rank.rank,
            "host": rank.host,
            "ahead_us": [round(clock.seconds * 1e6, 3) for clock in rank.clocks],
            "error_us": [round(clock.error * 1e6, 3) for clock in rank.clocks],
            "dropped_events": rank.dropped,
        }
        for rank in ranks
    ]
    return {
        "traceEvents": made,
        "displayTimeUnit": "ms",
        "otherData": {"made by": "fastserve", "ranks": len(ranks), "clocks": clocks},
    }


# an event with its times in whole nanoseconds of rank 0's clock, so that what nests
# goes on to do so
_Aligned = tuple[str, str, str, int, int, dict[str, Any] | None]


def _aligned(rank: RankEvents) -> list[_Aligned]:
    first, second = rank.clocks
    span = max(second.at - first.at, 1e-9)
    drift = (second.seconds - first.seconds) / span

    def place(time: float) -> int:
        ahead = first.seconds + (time - first.at) * drift
        return round((time - ahead) * 1e9)

    return [
        (thread, name, kind, place(start), place(end), args)
        for thread, name, kind, start, end, args in rank.events
    ]


def _waits(ranks: Sequence[list[_Aligned]]) -> list[list[tuple[int, int, int]]]:
    """Return for each rank (the last rank to come, from, to) of each sum in which it
    waited: number n of a rank's sums is number n of all ranks'."""
    sums = [
        sorted((e[3], e[4]) for e in events if e[0] == "training" and e[2] == "sums")
        for events in ranks
    ]
    found: list[list[tuple[int, int, int]]] = [[] for _ in ranks]
    if len({len(mine) for mine in sums}) != 1:
        return found
    for times in zip(*sums, strict=True):
        starts = [start for start, _ in times]
        last = max(starts)
        late = starts.index(last)
        for rank, (start, end) in enumerate(times):
            until = min(last, end)
            if rank != late and until - start >= _SHORTEST_WAIT * 1e9:
                found[rank].append((late, start, until))
    return found


def _metadata(rank: RankEvents) -> list[dict[str, Any]]:
    name = f"rank {rank.rank} {rank.host}"
    return [
        _meta("process_name", rank.rank, 0, name=name),
        _meta("process_sort_index", rank.rank, 0, sort_index=rank.rank),
    ]


def _meta(what: str, pid: int, tid: int, **args: Any) -> dict[str, Any]:
    return {"ph": "M", "name": what, "pid": pid, "tid": tid, "args": args}


def _of_rank(pid: int, events: list[_Aligned], zero: int) -> list[dict[str, Any]]:
    made: list[dict[str, Any]] = []
    for place, (thread, title) in enumerate(THREADS.items()):
        mine = [event for event in events if event[0] == thread]
        for lane, nested in enumerate(_lanes(mine)):
            # never the number of the process: that would be its main thread
            tid = 1 + pid * 1000 + place * _LANES + min(lane, _LANES - 1)
            name = title if lane == 0 else f"{title} {lane + 1}"
            made.append(_meta("thread_name", pid, tid, name=name))
            made.append(_meta("thread_sort_index", pid, tid, sort_index=tid))
            for _, name, kind, start, end, args in nested:
                event = {
                    "ph": "X",
                    "name": name,
                    "cat": kind,
                    "pid": pid,
                    "tid": tid,
                    "ts": (start - zero) / 1000,
                    "dur": (end - start) / 1000,
                }
                made.append(event | {"args": args} if args else event)
    return made


def _lanes(events: list[_Aligned]) -> list[list[_Aligned]]:
    """Put events that overlap, but don't nest, beside each other."""
    lanes: list[list[_Aligned]] = []
    inside: list[list[int]] = []  # of each lane, ends of what contains the next event
    for event in sorted(events, key=lambda e: (e[3], -e[4])):
        _, _, _, start, end, _ = event
        for ends in inside:
            while ends and ends[-1] <= start:
                ends.pop()
        fits = (i for i, ends in enumerate(inside) if not ends or end <= ends[-1])
        place = next(fits, len(lanes))
        if place == len(lanes):
            lanes.append([])
            inside.append([])
        lanes[place].append(event)
        inside[place].append(end)
    return lanes
