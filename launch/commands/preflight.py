"""``fastserve preflight``: look at all hosts of a job."""

from __future__ import annotations

import json
import sys
from typing import Any

import click

from fastserve.errors import LaunchError

from .. import blas, jobs, start, step_time
from .. import preflight as checks
from ..plan import PROGRAM
from . import options


@click.command()
@click.argument("config", type=options.PATH, required=False)
@options.where
@options.overrides
@options.as_json
def preflight(
    config: str | None, overrides: tuple[str, ...], as_json: bool, **where: Any
) -> int:
    """Look at a job's hosts: what would fail, how fast it will be.

    Without a CONFIG the hosts alone are looked at.

    \b
    Examples:
      fastserve preflight -H node1:4,node2:4
      fastserve preflight job.yaml -H node1:4,node2:4
      fastserve preflight job.yaml --hostfile hostfiles/openmpi.txt --json
    """
    if config is None:
        report = _look_at_hosts(overrides, where)
    else:
        report = _look_at_job(config, overrides, where)
    click.echo(json.dumps(report.to_json()) if as_json else checks.table(report))
    return 0 if report.passed else 1


def _look_at_job(
    config: str, overrides: tuple[str, ...], where: dict[str, Any]
) -> checks.Report:
    job = jobs.load(config, overrides, **where)
    hosts, allocation = start.where(job.launch)
    arguments = jobs.rank_words(config, overrides)
    kernel = blas.choose_kernel(jobs.say, kind=blas.kind_of(job.model))
    plan = jobs.planner(job, hosts, arguments, kernel, allocation)()
    return checks.look(
        job,
        plan,
        lambda: step_time.measure(plan, PROGRAM, arguments),
        start.agent_variables(plan),
    )


def _look_at_hosts(overrides: tuple[str, ...], where: dict[str, Any]) -> checks.Report:
    if overrides:
        raise LaunchError(
            "expected the job that --set changes",
            f"no CONFIG, and --set {overrides[0]}",
            "name the job's YAML file, or leave --set out",
        )
    plan = jobs.program_planner(jobs.launch_keys(**where), [sys.executable])()
    return checks.look(None, plan, lambda: None, start.agent_variables(plan))
