"""Fits the model of a step's time (launch/step_time.py) to measurements, and tests it.

    for n in 1 2 3 4 6 8; do
        mpirun -n $n ... python benchmarks/scaling.py measure >>scaling.jsonl
    done
    python benchmarks/scaling.py fit scaling.jsonl

Measured are the sums of gradients of several sizes, and steps whose backward computes
for as long as told while the gradients are sent. Computing is slept, so that several
hosts of a test on one machine don't take each other's cores. The latency and bandwidth
are fitted to the sums alone; the steps test what the model says of both together.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from overlap import Store, timed

from fastserve.comm import GradientSync, world
from launch.step_time import BACKWARD, Link, exchange_seconds, step_seconds

SIZES = (1 << 20, 4 << 20, 16 << 20)
BUCKETS = 40  # of a store, see overlap.py
COMPUTES = (0.15, 0.45)  # seconds of a step


def measure(repeat: int) -> dict[str, Any]:
    """Return the medians of the slowest rank's seconds."""
    comm = world()
    sums, steps = [], []
    for size in SIZES:
        store = Store(size // BUCKETS)
        for overlap in (False, True):
            sync = GradientSync(store, comm, overlap=overlap)

            def step(compute: float) -> None:
                time.sleep(compute * (1 - BACKWARD))
                sync.begin()  # noqa: B023  called in this turn of the loop
                for layer in store.layers:  # noqa: B023
                    if compute:
                        time.sleep(compute * BACKWARD / BUCKETS)
                    sync.done(layer)  # noqa: B023
                sync.finish()  # noqa: B023

            for compute in (0.0, *COMPUTES):
                step(compute)
                run = partial(step, compute)
                taken = [timed(comm, run) for _ in range(repeat)]
                entry = {"bytes": size, "seconds": statistics.median(taken)}
                if compute:
                    steps.append({**entry, "compute": compute, "overlap": overlap})
                elif not overlap:
                    sums.append(entry)
    return {
        "ranks": comm.size,
        "hosts": len(comm.groups),
        "sums": sums,
        "steps": steps,
    }


def fit(runs: list[dict[str, Any]]) -> Link:
    """Return the latency and bandwidth that make relative errors least."""
    rows, targets = [], []
    for run in runs:
        n = run["hosts"]
        for entry in run["sums"] if n > 1 else ():
            row = np.array([2 * (n - 1), 2 * (n - 1) / n * entry["bytes"]])
            rows.append(row / entry["seconds"])
            targets.append(1.0)
    found = np.linalg.lstsq(np.array(rows), np.array(targets), rcond=None)[0]
    return Link(max(0.0, float(found[0])), 1 / float(found[1]), "fitted")


def report(runs: list[dict[str, Any]], link: Link) -> str:
    lines = [f"latency {link.latency * 1e6:.0f} us, {link.bandwidth / 1e6:.2f} MB/s"]
    lines.append(
        f"{'hosts':>5} {'MB':>5} {'compute':>8} {'how':>8} {'s':>8} {'model':>8}"
    )
    errors: dict[str, list[float]] = {"sums": [], "steps": []}
    for run in runs:
        n, each = run["hosts"], run["ranks"] // run["hosts"]
        for kind in ("sums", "steps"):
            for entry in run[kind]:
                if kind == "sums" and n == 1:
                    continue
                sent = exchange_seconds(entry["bytes"], n, each, link)
                compute = entry.get("compute", 0.0)
                overlap = entry.get("overlap", False)
                model = step_seconds(compute, sent, BUCKETS, overlap)
                errors[kind].append(model / entry["seconds"] - 1)
                how = "overlap" if overlap else "after"
                lines.append(
                    f"{n:>5} {entry['bytes'] / 2**20:>5.0f} {compute:>8.2f} {how:>8} "
                    f"{entry['seconds']:>8.3f} {model:>8.3f}"
                )
    for kind, found in errors.items():
        size = np.abs(found)
        lines.append(
            f"{kind}: mean error {size.mean():.1%}, largest {size.max():.1%} "
            f"of {len(found)}"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=["measure", "fit"])
    parser.add_argument("file", nargs="?", type=Path)
    parser.add_argument("--repeat", type=int, default=5)
    options = parser.parse_args()
    if options.what == "measure":
        result = measure(options.repeat)
        if world().rank == 0:
            print(json.dumps(result), flush=True)
        return
    if options.file is None:
        sys.exit("expected the file of the measurements")
    runs = [json.loads(line) for line in options.file.read_text().splitlines()]
    print(report(runs, fit(runs)))


if __name__ == "__main__":
    main()
