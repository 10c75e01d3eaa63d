"""``fastserve bench allreduce``: the sum over all ranks, ours beside those of others.

``ring`` is what a training with ``comm.algorithm: ring`` does, ``mpi`` is the MPI
library's MPI_Allreduce, ``gloo`` is PyTorch's, where PyTorch is installed. All work in
turn on float32 vectors, so what disturbs one disturbs the others.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fastserve.bench.gloo import init_gloo
from fastserve.comm import Communicator
from fastserve.comm.allreduce import CHUNK_BYTES, AllReduce
from fastserve.comm.base import Array
from fastserve.comm.sync import CROSSOVER_BYTES
from fastserve.errors import ArgumentError

ALGORITHMS = ("ring", "mpi", "gloo")
SIZES = [4, 1 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20, 4 << 20, 16 << 20]
SIZES += [43_000_000, 64 << 20, 256 << 20]
_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}
_LEAST = 5  # samples of each algorithm and size
# of the time of a sample; a sample of many calls doesn't see the clock's steps
_SAMPLE_SECONDS = 2e-3
_MOST_CALLS = 200
Run = Callable[[Array], None]


def parse_size(text: str) -> int:
    """Return 4096 for ``4k``; units are k, M and G, of 1024 each.

    Raises ArgumentError for anything else, and for what isn't a multiple of 4.
    """
    number, unit = text.rstrip("kKmMgG"), text[len(text.rstrip("kKmMgG")) :].lower()
    size = int(number) * _UNITS[unit] if number.isdecimal() and unit in _UNITS else 0
    if size < 4 or size % 4:
        raise ArgumentError(
            "--sizes: expected bytes, multiples of 4, such as 4, 64k or 16M", repr(text)
        )
    return size


def parse_sizes(text: str) -> list[int]:
    """Return the sizes of a list such as ``4,64k,16M``; all of SIZES for none."""
    return [parse_size(part.strip()) for part in text.split(",") if part] or SIZES


def parse_algorithms(text: str) -> list[str]:
    """Return the names of a list such as ``ring,mpi``; raises ArgumentError."""
    names = [part.strip() for part in text.split(",") if part]
    unknown = [name for name in names if name not in ALGORITHMS]
    if unknown or not names:
        raise ArgumentError(
            f"--algorithms: expected some of {', '.join(ALGORITHMS)}", repr(text)
        )
    return names


def measure(
    comm: Communicator,
    sizes: Sequence[int] = SIZES,
    algorithms: Sequence[str] = ALGORITHMS,
    seconds: float = 1.0,
    chunk: int = CHUNK_BYTES,
    crossover: int = CROSSOVER_BYTES,
) -> dict[str, Any]:
    """Return the times of all sizes; every rank calls it.

    Args:
        seconds: for each size and algorithm, about; at least 5 samples are taken.
        chunk: bytes of our messages between hosts.
        crossover: up to so many bytes the ring leaves the sum to the MPI library.

    ``calls`` are the sums that our ring has made; ``ms`` are the medians of the
    samples, from all ranks ready to all ranks done;
    ``share`` is the median of a peer's time over ours, sample by sample.
    """
    gloo = _gloo(comm) if "gloo" in algorithms else None
    wanted = [a for a in algorithms if a != "gloo" or gloo is not None]
    rows = []
    for size in sizes:
        sides: dict[str, tuple[Array, Run]] = {}
        for name in wanted:
            if name == "ring":
                sides[name] = _ring(comm, size, chunk, crossover)
            elif name == "mpi":
                sides[name] = (np.zeros(size // 4, np.float32), comm.allreduce)
            elif gloo is not None:
                sides[name] = (np.zeros(size // 4, np.float32), gloo)
        rows.append({"bytes": size, **_compare(comm, sides, seconds)})
    return {
        "ranks": comm.size,
        "hosts": len(comm.groups),
        "algorithms": wanted,
        "crossover": crossover,
        "sizes": rows,
    }


def table(result: dict[str, Any]) -> str:
    """Return the result in words.

    ``GB/s`` is what a link carries each way while our ring works: 2(n-1)/n of the
    bytes, for n hosts, or ranks where there is one host.
    """
    names = result["algorithms"]
    ring = "ring" in names
    n = result["hosts"] if result["hosts"] > 1 else result["ranks"]
    head = f"{'bytes':>10}" + "".join(f"{name + ' ms':>12}" for name in names)
    if ring:
        head += "".join(f"{f'{name}/ring':>12}" for name in names if name != "ring")
        head += f"{'GB/s':>9}"
    lines = [
        f"sum of float32 over {result['ranks']} ranks on {result['hosts']} "
        f"host{'s' if result['hosts'] > 1 else ''}",
        head,
    ]
    for row in result["sizes"]:
        line = f"{row['bytes']:>10}"
        line += "".join(f"{row['ms'][name]:>12.4f}" for name in names)
        if ring:
            line += "".join(
                f"{row['share'][name]:>12.2f}" for name in names if name != "ring"
            )
            rate = 2 * (n - 1) / n * row["bytes"] / (row["ms"]["ring"] * 1e-3)
            line += f"{rate / 1e9:>9.3f}"
        lines.append(line)
    lines.append(f"up to {result['crossover']} bytes, the ring leaves it to the MPI")
    if "gloo" not in names:
        lines.append("to compare with gloo: pip install torch")
    return "\n".join(lines)


def _compare(
    comm: Communicator, sides: dict[str, tuple[Array, Run]], seconds: float
) -> dict[str, Any]:
    """Time the sides in turn, sample by sample."""
    for _ in range(2):  # the first call also allocates
        once = {name: _sample(comm, *side, 1) for name, side in sides.items()}
    once = comm.broadcast_obj(once)  # all ranks have to come to the same numbers
    calls = {
        name: max(1, min(_MOST_CALLS, int(_SAMPLE_SECONDS / taken)))
        for name, taken in once.items()
    }
    longest = max(once[name] * calls[name] for name in sides)
    samples = max(_LEAST, min(101, int(seconds / longest)))
    taken: dict[str, list[float]] = {name: [] for name in sides}
    order = list(sides)
    for _ in range(samples):
        order = [*order[1:], order[0]]  # nobody always follows the same one
        for name in order:
            taken[name].append(_sample(comm, *sides[name], calls[name]))
    ours = taken.get("ring")
    return {
        "calls": 2 + samples * calls.get("ring", 0),
        "ms": {name: statistics.median(t) * 1e3 for name, t in taken.items()},
        "share": {
            name: statistics.median(a / b for a, b in zip(t, ours, strict=True))
            for name, t in taken.items()
            if ours and name != "ring"
        },
    }


def _sample(comm: Communicator, array: Array, run: Run, calls: int) -> float:
    """Return the seconds of a call, from all ranks ready to all ranks done.

    The array is written first, as backward writes gradients: whose cache holds it
    changes the time by half.
    """
    array.fill(1)
    comm.barrier()
    start = time.perf_counter()
    for _ in range(calls):
        run(array)
    comm.barrier()
    return (time.perf_counter() - start) / calls


def _ring(
    comm: Communicator, size: int, chunk: int, crossover: int
) -> tuple[Array, Run]:
    array = np.zeros(size // 4, np.float32)
    if size <= crossover:
        return array, comm.allreduce
    reduce = AllReduce(array, [slice(0, array.size)], comm, chunk=chunk)

    def run(array: Array) -> None:
        reduce.begin()
        reduce.release(1)
        reduce.finish()

    return reduce.vector, run


def _gloo(comm: Communicator) -> Run | None:
    """Return PyTorch's sum over the same ranks; None if a rank has no PyTorch."""
    if not init_gloo(comm):
        return None
    import torch
    import torch.distributed as distributed

    def run(array: Array) -> None:
        distributed.all_reduce(torch.from_numpy(array))

    return run


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--sizes", default="", help="such as 4,64k,16M")
    parser.add_argument("--algorithms", default=",".join(ALGORITHMS))
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--chunk", type=int, default=CHUNK_BYTES)
    parser.add_argument("--crossover", type=int, default=CROSSOVER_BYTES)
    parser.add_argument("--json", action="store_true")


def report(comm: Communicator, options: argparse.Namespace) -> str:
    """Measure, and return what is to be printed."""
    result = measure(
        comm,
        parse_sizes(options.sizes),
        parse_algorithms(options.algorithms),
        options.seconds,
        options.chunk,
        options.crossover,
    )
    return json.dumps(result) if options.json else table(result)
