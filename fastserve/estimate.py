"""``python -m fastserve.estimate``: what a step of a job costs one process.

Makes the job's data and model, times steps on some rows, and prints JSON. Nothing is
written; the weights are thrown away.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence
from typing import Any

from fastserve.environment import prepare_process

_STEPS = 3
_SECONDS = 5.0  # of all timed steps, unless the first alone takes longer


def estimate(config: str, overrides: Sequence[str], rows: int) -> dict[str, Any]:
    """Return parameters, and the median seconds of a step on ``rows`` rows."""
    from fastserve.assemble.data import make_data
    from fastserve.assemble.model import compile_model, make_model
    from fastserve.config import load_job
    from fastserve.data.sampler import Sampler

    job = load_job(config, overrides)
    data = make_data(job)
    model = make_model(job, data.vocab_size, data.train.input_shape, data.classes)
    compile_model(job, model, 1000)
    model.options.micro_batch = None
    trainer = model.prepare(data.train)
    rows = min(rows, data.train.samples)
    sampler = Sampler(data.train.samples, rows, job.seed, True, wrap=True)
    taken: list[float] = []
    trainer.train(data.train, sampler, 0)  # also makes all memory
    while len(taken) < _STEPS and sum(taken) < _SECONDS:
        start = time.perf_counter()
        trainer.train(data.train, sampler, len(taken) + 1)
        taken.append(time.perf_counter() - start)
    return {
        "parameters": sum(p.size for p in model.store.parameters),
        "rows": rows,
        "seconds": statistics.median(taken),
        "tokens": data.train.tokens_per_sample or 0,
    }


def main(argv: Sequence[str] | None = None) -> int:
    from fastserve.errors import FastserveError

    parser = argparse.ArgumentParser("python -m fastserve.estimate")
    parser.add_argument("config")
    parser.add_argument("--set", dest="overrides", action="append", default=[])
    parser.add_argument("--rows", type=int, required=True)
    options = parser.parse_args(argv)
    try:
        found = estimate(options.config, options.overrides, options.rows)
    except FastserveError as error:
        print(error, file=sys.stderr)
        return 2
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    prepare_process()
    sys.exit(main())
