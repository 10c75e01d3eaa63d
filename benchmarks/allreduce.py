"""Times the ring all-reduce against the MPI library's own, size by size.

    mpirun -n 2 python benchmarks/allreduce.py [--json] [--bytes 4194304 ...]

"ring" is the ring alone, without the crossover to the native collective, so that the
table shows where the crossover belongs. Both run in turn, so a disturbance hits both;
the medians are of the slowest rank's times.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import numpy as np

from fastserve.comm import Communicator, make_scratch, ring_allreduce, world
from fastserve.comm.base import Array
from fastserve.comm.ring import CROSSOVER_BYTES, PIECE_BYTES

SIZES = [1 << 12, 1 << 14, 1 << 16, 1 << 18, 1 << 19, 1 << 20, 1 << 22, 25 << 20]
SIZES += [43_000_000]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bytes", type=int, nargs="+", default=SIZES, metavar="B")
    parser.add_argument("--piece", type=int, default=PIECE_BYTES, metavar="B")
    parser.add_argument("--repeat", type=int, default=31, help="timed runs of each")
    parser.add_argument("--json", action="store_true", help="print JSON")
    args = parser.parse_args()
    comm = world()
    rows = [measure(comm, size, args.piece, args.repeat) for size in args.bytes]
    if comm.rank == 0:
        report(comm, rows, args.json)


def measure(
    comm: Communicator, size: int, piece: int, repeat: int
) -> dict[str, float | int]:
    """Return the median times of one size, in milliseconds."""
    array = np.ones(size // 4, np.float32)
    scratch = make_scratch(array, comm.size, piece)

    def ring() -> None:
        ring_allreduce(array, comm, scratch, crossover=0)

    def native() -> None:
        comm.allreduce(array)

    times: dict[str, list[float]] = {"ring_ms": [], "mpi_ms": []}
    for _ in range(repeat + 1):
        times["ring_ms"].append(sample(comm, array, ring))
        times["mpi_ms"].append(sample(comm, array, native))
    medians = {name: statistics.median(taken[1:]) for name, taken in times.items()}
    return {"bytes": size, **medians}


def sample(comm: Communicator, array: Array, function: Callable[[], None]) -> float:
    """Return the milliseconds of one call, from all ranks ready to all ranks done.

    The array is written first, as backward writes gradients: whose cache holds it
    changes the time by half. Short calls are repeated, because a clock and a barrier
    take microseconds.
    """
    calls = max(1, min(100, (1 << 20) // array.nbytes))
    array.fill(1)
    comm.barrier()
    start = time.perf_counter()
    for _ in range(calls):
        function()
    comm.barrier()
    return (time.perf_counter() - start) / calls * 1e3


def report(
    comm: Communicator, rows: list[dict[str, float | int]], as_json: bool
) -> None:
    if as_json:
        print(json.dumps({"ranks": comm.size, "dtype": "float32", "sizes": rows}))
        return
    print(f"all-reduce of float32, {comm.size} ranks (ratio = mpi / ring)")
    print(f"{'bytes':>12} {'ring ms':>10} {'mpi ms':>10} {'ratio':>7}")
    for row in rows:
        ratio = row["mpi_ms"] / row["ring_ms"] if row["ring_ms"] else float("nan")
        print(
            f"{row['bytes']:>12} {row['ring_ms']:>10.4f} {row['mpi_ms']:>10.4f} "
            f"{ratio:>7.2f}"
        )
    print(f"up to {CROSSOVER_BYTES} bytes, the ring leaves it to the MPI library")


if __name__ == "__main__":
    main()
