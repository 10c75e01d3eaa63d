"""``fastserve bench step -n 2``: a step over several ranks, beside PyTorch's DDP.

All train the same GPT on the same global batch, an equal share a rank, in turns: ours;
with ``comm.algorithm: exact``, whose result has the same bits on any number of ranks;
rank 0 alone on its share, for the rate of one rank; PyTorch's DistributedDataParallel
over gloo, in float32 and under bfloat16 autocast. Times are from all ranks ready to all
done.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

from fastserve.bench.gloo import init_gloo
from fastserve.bench.step import (
    BATCHES,
    SHAPES,
    compiled_gpt,
    our_step,
    random_tokens,
)
from fastserve.bench.torch_gpt import INSTALL, import_torch, torch_gpt, torch_step
from fastserve.comm import Communicator
from fastserve.comm.single import SingleCommunicator
from fastserve.comm.world import in_thread
from fastserve.errors import ArgumentError
from fastserve.models import GPT
from fastserve.training.exact import make_shards
from fastserve.training.step import Options

Run = Callable[[], float]
ALONE = "rank 0 alone"


def share_of(batch: int, ranks: int) -> int:
    """Return a rank's samples; raises ArgumentError unless all have as many."""
    if batch % ranks:
        raise ArgumentError(
            f"bench step: expected a batch that {ranks} ranks divide evenly",
            f"{batch}",
            f"give another --batch, for example {-(-batch // ranks) * ranks}",
        )
    return batch // ranks


def measure(
    comm: Communicator,
    shape: str = "medium",
    batch: int | None = None,
    repeats: int = 5,
) -> dict[str, Any]:
    """Return the seconds of a step of each side; every rank calls it."""
    options = SHAPES[shape]
    batch = batch or BATCHES[shape]
    rows = share_of(batch, comm.size)
    first = comm.rank * rows
    x, y = (part[first : first + rows] for part in random_tokens(options, batch))
    model = compiled_gpt(options)
    peers = _ddp(comm, options, model, x, y)  # they take the weights as they are now
    sides: dict[str, Run] = {"fastserve": our_step(model, x, y, first, batch)}
    shards = make_shards(batch, batch, None, comm.size)
    if rows % shards.rows == 0:  # each rank has the same rows as with the others
        exact = compiled_gpt(options)
        exact.options = Options(algorithm="exact")
        sides["exact"] = our_step(exact, x, y, first, batch)
    with in_thread(SingleCommunicator()):
        alone = our_step(compiled_gpt(options), x, y)
    sides[ALONE] = lambda: alone() if comm.rank == 0 else 0.0
    sides |= peers
    for run in sides.values():  # the warm-up
        run()
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    order = list(sides)
    for _ in range(repeats):
        order = [*order[1:], order[0]]  # nobody always follows the same one
        for name in order:
            comm.barrier()
            start = time.perf_counter()
            sides[name]()
            comm.barrier()
            seconds[name].append(time.perf_counter() - start)
    return _result(options, batch, comm, seconds)


def _ddp(
    comm: Communicator, options: dict[str, Any], model: GPT, x: Any, y: Any
) -> dict[str, Run]:
    if not init_gloo(comm):
        return {}
    torch = import_torch()
    sides = {}
    for name, bfloat16 in (("pytorch ddp", False), ("its bfloat16", True)):
        net = torch_gpt(torch, options, model)
        net = torch.nn.parallel.DistributedDataParallel(net)
        sides[name] = torch_step(torch, net, x, y, bfloat16)
    return sides


def _result(
    options: dict[str, Any],
    batch: int,
    comm: Communicator,
    seconds: dict[str, list[float]],
) -> dict[str, Any]:
    ours = seconds["fastserve"]
    return {
        "model": options,
        "batch": batch,
        "ranks": comm.size,
        "hosts": len(comm.groups),
        "repeats": len(ours),
        "sides": {
            name: {
                "seconds": statistics.median(times),
                "fastest": min(times),
                "ratio": statistics.median(
                    t / o for t, o in zip(times, ours, strict=True)
                ),
            }
            for name, times in seconds.items()
        },
    }


def table(result: dict[str, Any]) -> str:
    """Return the result in words."""
    ranks, tokens = result["ranks"], result["batch"] * result["model"]["block_size"]
    lines = [
        f"{tokens} tokens a step over {ranks} ranks on {result['hosts']} "
        f"host{'s' if result['hosts'] > 1 else ''}, float32",
        f"{'':14}{'s/step':>9}{'tokens/s':>10}{'time':>8}",
    ]
    for name, side in result["sides"].items():
        made = tokens / (ranks if name == ALONE else 1)
        lines.append(
            f"{name:14}{side['seconds']:9.4f}{made / side['seconds']:10.0f}"
            f"{side['ratio']:7.2f}x"
        )
    share = result["sides"][ALONE]["ratio"]
    lines.append(f"{ranks} ranks make {share:.1%} of {ranks} times what one makes")
    if not any(name.startswith("pytorch") for name in result["sides"]):
        lines.append(INSTALL)
    return "\n".join(lines)


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--shape", default="medium", choices=SHAPES)
    parser.add_argument("--batch", type=int)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", action="store_true")


def report(comm: Communicator, options: argparse.Namespace) -> str:
    """Measure, and return what is to be printed."""
    result = measure(comm, options.shape, options.batch, options.repeats)
    return json.dumps(result) if options.json else table(result)
