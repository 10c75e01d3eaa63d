"""``fastserve verify``: the same bits on any number of ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from fastserve.config.run_folders import CONFIG, find_run
from fastserve.environment import NUMERIC_VARIABLES
from fastserve.errors import LaunchError

from .. import jobs
from ..verify import ALONE, kernel_words, parse_ranks, recorded
from ..verify import verify as verify_run
from . import options

_VARIABLES = {f"launch.env.{name}" for name in NUMERIC_VARIABLES}


@click.command()
@click.argument("run", type=options.PATH)
@click.option(
    "--ranks",
    "counts",
    default="1,2,3,4",
    show_default=True,
    metavar="LIST",
    help="Numbers of ranks to train with.",
)
@click.option(
    "--steps",
    default=5,
    type=click.IntRange(1),
    show_default=True,
    help="Steps to make with each.",
)
@options.elsewhere
@options.overrides
def verify(
    run: str, counts: str, steps: int, overrides: tuple[str, ...], **where: Any
) -> int:
    """Repeat a run's first steps on other ranks; compare the bits.

    Several numbers of ranks are compared with each other, and with the run itself if it
    has a checkpoint of one of these steps. For runs with comm.algorithm exact; others
    only agree to rounding.

    \b
    Examples:
      fastserve verify runs/job
      fastserve verify runs/job --ranks 1,2,8 --steps 20
      fastserve verify runs/job -H node1:2,node2:2
    """
    jobs.refuse_as_a_rank()
    config = find_run(run) / CONFIG
    ranks = parse_ranks(counts)
    job = jobs.load(str(config), (*ALONE, *overrides), ranks=max(ranks), **where)
    if job.comm.algorithm != "exact":
        raise LaunchError(
            "verify: expected a run with comm.algorithm exact",
            job.comm.algorithm,
            "add --set comm.algorithm=exact to see what it would give; sums of "
            "the others agree to rounding",
        )
    known = None
    arguments = jobs.set_words(overrides)
    for override in overrides:  # the others of launch.env may be secrets
        if override.partition("=")[0] in _VARIABLES:
            arguments += ["--set", override]
    if all(override.startswith("launch.") for override in overrides):
        known = recorded(config.parent, steps)
        arguments += kernel_words(known, job.launch.env)
    for name, value in where.items():
        if value:
            arguments.append(f"--{name}")
            arguments += [str(value)] if value is not True else []
    shared = Path(run).absolute() if job.launch.hosts or job.launch.hostfile else None
    same = verify_run(config, ranks, steps, arguments, click.echo, shared, known)
    return 0 if same else 1
