"""How long a step will take: a model of computing, latency and bandwidth.

The sum of the gradients goes round a ring of hosts (Patarasuk and Yuan, 2009): each
host sends 2(n-1)/n of the bytes, in 2(n-1) messages that wait for each other. Compare
Hockney's model of a message, latency + bytes / bandwidth. benchmarks/scaling.py fits it
to measurements.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from fastserve.formatting import precise_time

from . import remembered
from .plan import LaunchPlan

BACKWARD = 2 / 3  # of a step's computing: two products for each one of forward
# Bytes a second that go through the memory of a host while its ranks add up: measured
# as 12 GB/s of gradients for 2 ranks, and in proportion to the ranks.
HOST_BANDWIDTH = 24e9
GIGABIT = 0.956 * 1e9 / 8  # what 1 Gbit/s carries in frames of 1500 bytes
_FILE = "links.json"
_SECONDS = 60.0  # for a measurement of the computing


@dataclass(frozen=True)
class Link:
    """The slowest link of the ring: seconds of a message, bytes a second."""

    latency: float
    bandwidth: float
    source: str = "measured by fastserve preflight"


ASSUMED = Link(50e-6, GIGABIT, "assumed; fastserve preflight measures it")


def slowest(links: Sequence[Link]) -> Link:
    """Return the longest latency and the smallest bandwidth of several links."""
    return Link(
        max(link.latency for link in links), min(link.bandwidth for link in links)
    )


def remember(links: Mapping[tuple[str, str], Link]) -> None:
    """Keep measured links between hosts for later predictions."""
    entries = {
        f"{source} {target}": [link.latency, link.bandwidth]
        for (source, target), link in links.items()
    }
    with suppress(OSError):  # without it, a prediction assumes a link
        remembered.add(_FILE, entries)


def slowest_remembered(hosts: Sequence[str]) -> Link:
    """Return the slowest link of a ring of hosts; the assumed one if not all are
    known."""
    known = remembered.read(_FILE)
    found = []
    for source, target in zip(hosts, [*hosts[1:], *hosts[:1]], strict=True):
        entry = known.get(f"{source} {target}") or known.get(f"{target} {source}")
        if not (isinstance(entry, list) and len(entry) == 2):
            return ASSUMED
        found.append(Link(float(entry[0]), float(entry[1])))
    return slowest(found) if found else ASSUMED


@dataclass(frozen=True)
class Estimate:
    """What a job's step costs one process: see ``fastserve/estimate.py``.

    ``seconds`` are those of ``rows`` rows; ``tokens`` are in a row, 0 if it has none.
    """

    parameters: int
    rows: int
    seconds: float
    tokens: int = 0


def exchange_seconds(
    nbytes: float, hosts: int, ranks_per_host: int, link: Link
) -> float:
    """Return the seconds of the sum of ``nbytes`` over all ranks."""
    seconds = 0.0
    if hosts > 1:
        share = 2 * (hosts - 1) / hosts
        seconds += 2 * (hosts - 1) * link.latency + share * nbytes / link.bandwidth
    if ranks_per_host > 1:
        seconds += ranks_per_host * nbytes / HOST_BANDWIDTH
    return seconds


def step_seconds(
    compute: float, exchange: float, buckets: int = 1, overlap: bool = False
) -> float:
    """Return the seconds of a step.

    With ``overlap`` the first bucket leaves once backward has filled it, and the last
    one when backward is over.
    """
    if not overlap:
        return compute + exchange
    backward = BACKWARD * compute
    part = 1 / max(1, buckets)
    together = max(backward + exchange * part, backward * part + exchange)
    return compute - backward + together


def predict(
    plan: LaunchPlan, estimate: Estimate, link: Link, comm: Any, steps: int | None
) -> list[str]:
    """Return the prediction for a job in words; ``comm`` is its section comm."""
    assert plan.split is not None
    rows = max(plan.split.rows)
    compute = estimate.seconds / estimate.rows * rows
    nbytes = estimate.parameters * (4 if comm.wire == "float32" else 2)
    hosts = len(plan.places)
    most = max(place.ranks for place in plan.places)
    buckets = max(1, round(estimate.parameters * 4 / (comm.bucket_mb * 2**20)))
    overlap = comm.overlap == "on" or (comm.overlap == "auto" and hosts > 1)
    exchange = exchange_seconds(nbytes, hosts, most, link)
    step = step_seconds(compute, exchange, buckets, overlap and comm.algorithm != "mpi")
    alone = estimate.seconds / estimate.rows * plan.split.global_batch
    per_second = plan.split.global_batch * (estimate.tokens or 1) / step
    unit = "tokens" if estimate.tokens else "samples"
    lines = [
        f"{precise_time(step)} a step, {per_second:.3g} {unit}/s"
        + (f", {_long(step * steps)} for {steps} steps" if steps else ""),
        f"computing {precise_time(compute)} of {rows} rows, as {estimate.rows} rows "
        f"took {precise_time(estimate.seconds)} here just now",
    ]
    if plan.ranks > 1:
        how = "while backward computes" if overlap else "after backward"
        over = f" at {link.bandwidth / 1e6:.4g} MB/s ({link.source})"
        lines.append(
            f"sum of {nbytes / 1e6:.1f} MB of gradients {precise_time(exchange)}, {how}"
            + (over if hosts > 1 else ", in the host's memory")
        )
        lines.append(
            f"{plan.ranks} ranks have {alone / step:.2f} times the speed of one process"
        )
    return lines


class TooSlow(str):
    """Why there is no estimate of a step that may well be right."""


def measure(
    plan: LaunchPlan, program: Sequence[str], arguments: Sequence[str]
) -> Estimate | str:
    """Measure the computing of a job in a process of its own; or say why not."""
    assert plan.split is not None
    rows = min(max(plan.split.rows), plan.split.micro_batch)
    # threads, kernels, launch.env: all but what makes a process a rank of a job
    own = {k: v for k, v in plan.environment.items() if not k.startswith("FASTSERVE_")}
    words = [program[0], "-m", "fastserve.estimate", *arguments, "--rows", str(rows)]
    try:
        done = subprocess.run(
            words,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_SECONDS,
            cwd=plan.cwd,
            env={**os.environ, **own},
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired:
        return TooSlow(f"a step of {rows} rows took more than {_SECONDS:g} s")
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        return "\n".join(lines[-4:])
    return Estimate(**json.loads(done.stdout.splitlines()[-1]))


def _long(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
