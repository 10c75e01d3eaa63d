"""Times a step whose gradients are sent while backward computes.

    mpirun -n 2 -H node1,node2 python benchmarks/overlap.py [--wire bfloat16] [--json]

A step is a number of matrix products, and after each fortieth of them a bucket of
gradients is ready, as in backward. There are as many of them as take the time that the
sum of the gradients takes alone. "ideal" is the longer of the two, "ratio" the step's
time to it. All in turns, medians of the slowest rank's times.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from fastserve.comm import Communicator, GradientSync, world

BUCKETS = 40


class Weight:
    users = 1
    trainable = True


class Bucket:
    """Looks like a layer with one parameter, whose gradient is a bucket."""

    def __init__(self) -> None:
        self.weight = Weight()

    def own_parameters(self) -> list[Weight]:
        return [self.weight]

    def walk(self) -> list[tuple[str, Bucket]]:
        return [("", self)]


class Store:
    def __init__(self, nbytes: int) -> None:
        length = nbytes // 4
        self.layers = [Bucket() for _ in range(BUCKETS)]
        self.grads = np.ones(length * BUCKETS, np.float32)
        self.buckets = [slice(i * length, (i + 1) * length) for i in range(BUCKETS)]

    def parameters_of_bucket(self, index: int) -> list[Weight]:
        return [self.layers[index].weight]

    def move_grads(self, vector: Any) -> None:
        vector[...] = self.grads
        self.grads = vector


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bucket", type=int, default=1 << 20, metavar="BYTES")
    parser.add_argument("--wire", default="float32")
    parser.add_argument("--repeat", type=int, default=9)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    comm = world()
    result = measure(comm, args.bucket, args.wire, args.repeat)
    if comm.rank == 0:
        print(json.dumps(result) if args.json else table(result))


def measure(
    comm: Communicator, bucket: int, wire: str, repeat: int
) -> dict[str, float | int]:
    """Return seconds of communication, compute, and of both with and without."""
    a, out = np.ones((512, 512), np.float32), np.empty((512, 512), np.float32)

    def products(count: int) -> None:
        for _ in range(count):
            np.matmul(a, a, out=out)

    stores = {overlap: Store(bucket) for overlap in (False, True)}
    syncs = {
        overlap: GradientSync(store, comm, overlap=overlap, wire=wire)
        for overlap, store in stores.items()
    }

    def step(overlap: bool, each: int) -> Callable[[], None]:
        def run() -> None:
            syncs[overlap].begin()
            for layer in stores[overlap].layers:
                products(each)
                syncs[overlap].done(layer)
            syncs[overlap].finish()

        return run

    alone = step(False, 0)
    alone()
    send = statistics.median(timed(comm, alone) for _ in range(repeat))
    products(50)
    one = statistics.median(timed(comm, lambda: products(50)) for _ in range(5)) / 50
    each = max(1, round(send / one / BUCKETS))
    runs = {
        "communication": alone,
        "compute": lambda: products(each * BUCKETS),
        "one_after_the_other": step(False, each),
        "overlapped": step(True, each),
    }
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeat):
        for name, run in runs.items():
            times[name].append(timed(comm, run))
    before = resource.getrusage(resource.RUSAGE_SELF)
    alone()
    after = resource.getrusage(resource.RUSAGE_SELF)
    medians = {name: statistics.median(taken) for name, taken in times.items()}
    ideal = max(medians["communication"], medians["compute"])
    return {
        "ranks": comm.size,
        "hosts": len(comm.groups),
        "bytes": bucket * BUCKETS,
        **medians,
        "ideal": ideal,
        "ratio": medians["overlapped"] / ideal,
        "ratio_without": medians["one_after_the_other"] / ideal,
        "cpu_of_communication": (after.ru_utime - before.ru_utime)
        + (after.ru_stime - before.ru_stime),
    }


def timed(comm: Communicator, run: Callable[[], None]) -> float:
    """Return the seconds of a call, the slowest rank's."""
    comm.barrier()
    start = time.perf_counter()
    run()
    taken = np.zeros(comm.size)
    taken[comm.rank] = time.perf_counter() - start
    comm.allreduce(taken)
    return float(taken.max())


def table(result: dict[str, float | int]) -> str:
    names = ("communication", "compute", "one_after_the_other", "overlapped")
    lines = [f"{name:20} {result[name] * 1e3:8.1f} ms" for name in names]
    return "\n".join(
        [
            f"{result['bytes'] / 1e6:.1f} MB in {BUCKETS} buckets, {result['ranks']} "
            f"ranks on {result['hosts']} hosts",
            *lines,
            f"ratio to the longer  {result['ratio']:8.3f}    "
            f"without overlap {result['ratio_without']:.3f}",
        ]
    )


if __name__ == "__main__":
    main()
