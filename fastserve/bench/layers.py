"""``fastserve bench layers``: layers and small networks beside PyTorch's, in one run.

Each case is a whole training step, or forward and backward of one layer, in float32 on
one core. The sides take turns in blocks of many runs. PyTorch runs eagerly, once for
each way of writing the same that can be the faster one: layouts of images, of
sequences, kinds of Adam. Where it isn't installed only our figures are shown.

What is counted is the processor's time of this process: with one thread that is the
time that passes, but for the moments in which others had the core.

The cases are in ``cases.py``, what PyTorch does in ``torch_cases.py``.
"""

from __future__ import annotations

import contextlib
import json as json_module
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from fastserve.bench.cases import CASES, Case
from fastserve.bench.step import sgemm_peak
from fastserve.bench.torch_cases import torch_sides
from fastserve.bench.torch_gpt import INSTALL, import_torch
from fastserve.errors import UnknownNameError

OURS = "fastserve"
BLOCK = 0.1  # seconds of runs of one side between two looks at the clock

Run = Callable[[], Any]


def layers(
    only: Sequence[str] = (), repeats: int = 5, json: bool = False
) -> dict[str, Any]:
    """Time the cases, print the result, and return it as a dict.

    Args:
        only: names of cases; all if there are none.
        repeats: blocks of runs of each side; their median is shown.

    Raises UnknownNameError for a case that isn't known.
    """
    for name in only:
        if name not in CASES:
            raise UnknownNameError("case of bench layers", name, CASES)
    with _one_core():
        return _layers(only or list(CASES), repeats, json)


def _layers(names: Sequence[str], repeats: int, json: bool) -> dict[str, Any]:
    torch = import_torch()
    result: dict[str, Any] = {
        "repeats": repeats,
        "pytorch": None if torch is None else torch.__version__,
        "sgemm_gflops": sgemm_peak(clock=time.process_time),
        "cases": {},
    }
    if not json:
        print(_head(result), flush=True)
    for name in names:
        case = CASES[name]
        sides = {OURS: case.make()}
        if torch is not None:
            sides |= torch_sides(torch, name)
        measured = _case(case, time_sides(sides, repeats), result["sgemm_gflops"])
        result["cases"][name] = measured
        if not json:
            print(_row(name, measured), flush=True)
    if json:
        print(json_module.dumps(result))
    elif torch is None:
        print(INSTALL)
    return result


def time_sides(sides: dict[str, Run], repeats: int) -> dict[str, list[float]]:
    """Return for each side the seconds of a run, the mean of each of its blocks."""
    runs = {name: _block(run) for name, run in sides.items()}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    order = list(sides)
    for _ in range(repeats):
        order = [*order[1:], order[0]]  # nobody always follows the same one
        for name in order:
            seconds[name].append(_seconds(sides[name], runs[name]))
    return seconds


def _block(run: Run) -> int:
    """Return how many runs make a block; the first ones are the warm-up."""
    for _ in range(3):
        run()
    return max(1, round(BLOCK / max(1e-6, _seconds(run, 1))))


def _seconds(run: Run, count: int) -> float:
    start = time.process_time()
    for _ in range(count):
        run()
    return (time.process_time() - start) / count


@contextlib.contextmanager
def _one_core() -> Iterator[None]:
    """Stay on one core: moving to another one empties the caches."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(cores)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)


def _case(case: Case, seconds: dict[str, list[float]], peak: float) -> dict[str, Any]:
    """Return the medians; ``ratio`` is that of the best of PyTorch's to ours."""
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    gflop = case.flop / 1e9
    result: dict[str, Any] = {
        "about": case.about,
        "gflop": gflop,
        "sides": {
            name: {
                "seconds": median,
                "fastest": min(seconds[name]),
                "gflops": gflop / median,
                "share_of_peak": gflop / median / peak,
            }
            for name, median in medians.items()
        },
    }
    peers = [name for name in medians if name != OURS]
    if peers:
        best = min(peers, key=lambda name: medians[name])
        pairs = zip(seconds[best], seconds[OURS], strict=True)
        result["best_peer"] = best
        result["ratio"] = statistics.median(peer / ours for peer, ours in pairs)
    return result


def _head(result: dict[str, Any]) -> str:
    version = result["pytorch"]
    peer = f"PyTorch {version}" if version else "no PyTorch"
    return (
        f"float32, one core, SGEMM peak {result['sgemm_gflops']:.0f} GFLOP/s, {peer}\n"
        f"{'':11}{'ours, ms':>9}{'GFLOP/s':>9}{'of peak':>9}{'faster':>9}"
        "  PyTorch, ms"
    )


def _row(name: str, case: dict[str, Any]) -> str:
    ours = case["sides"][OURS]
    ratio = f"{case['ratio']:.2f}x" if "ratio" in case else ""
    peers = "  ".join(
        f"{side} {figures['seconds'] * 1e3:.3g}"
        for side, figures in case["sides"].items()
        if side != OURS
    )
    return (
        f"{name:11}{ours['seconds'] * 1e3:9.3g}{ours['gflops']:9.1f}"
        f"{ours['share_of_peak']:9.0%}{ratio:>9}  {peers}"
    ).rstrip()
