"""``fastserve preflight``: look at all hosts of a job."""

from __future__ import annotations

import json
from typing import Any

import click

from .. import blas, jobs, start, step_time
from .. import preflight as checks
from ..plan import PROGRAM
from . import options


@click.command()
@click.argument("config", type=options.PATH)
@options.where
@options.overrides
@options.as_json
def preflight(
    config: str, overrides: tuple[str, ...], as_json: bool, **where: Any
) -> int:
    """Look at all hosts of a job: what would fail there, and how fast it will be.

    \b
    Examples:
      fastserve preflight job.yaml -H node1:4,node2:4
      fastserve preflight job.yaml --hostfile hostfiles/openmpi.txt --json
    """
    job = jobs.load(config, overrides, **where)
    hosts, allocation = start.where(job.launch)
    arguments = jobs.rank_words(config, overrides)
    kernel = blas.choose_kernel(jobs.say, kind=blas.kind_of(job.model))
    plan = jobs.planner(job, hosts, arguments, kernel, allocation)()
    report = checks.look(
        job,
        plan,
        lambda: step_time.measure(plan, PROGRAM, arguments),
        start.agent_variables(plan),
    )
    click.echo(json.dumps(report.to_json()) if as_json else checks.table(report))
    return 0 if report.passed else 1
