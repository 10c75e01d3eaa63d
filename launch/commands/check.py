"""``fastserve check``: what is wrong with a job, or what it would start."""

from __future__ import annotations

from typing import Any

import click

from .. import jobs, plan_text, start
from . import options


@click.command()
@click.argument("config", type=options.PATH)
@options.where
@options.overrides
def check(config: str, overrides: tuple[str, ...], **where: Any) -> int:
    """Check a job's YAML file and print what it would start.

    \b
    Examples:
      fastserve check configs/quickstart.yaml
      fastserve check job.yaml -n 8 --set train.global_batch=64
      fastserve check job.yaml -H node1:4,node2:4
    """
    from fastserve.assemble.model import check_model

    job = jobs.load(config, overrides, **where)
    check_model(job)
    hosts, allocation = start.where(job.launch)
    plan = jobs.planner(job, hosts, jobs.rank_words(config, ()), None, allocation)()
    click.echo(f"{config}: no faults")
    click.echo(plan_text.overview(plan))
    return 0
