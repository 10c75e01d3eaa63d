"""``fastserve run``: start a job and wait for its end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from .. import blas, describe, jobs, predict, restart, start
from ..plan import PROGRAM, LaunchPlan, count_ranks
from ..restart import Goal, Loss
from . import options

if TYPE_CHECKING:
    from fastserve.config import Job


@click.command()
@click.argument("config")
@options.where
@options.overrides
@click.option("--resume", metavar="auto|PATH", help="Go on from a checkpoint.")
@click.option("--overwrite", is_flag=True, help="Replace what the run folder holds.")
@click.option(
    "--stop-after",
    type=click.IntRange(1),
    metavar="STEPS",
    help="Save and end after the step of this number, as at SIGTERM.",
)
@click.option("--dry-run", is_flag=True, help="Only print what would be started.")
def run(
    config: str,
    overrides: tuple[str, ...],
    resume: str | None,
    overwrite: bool,
    stop_after: int | None,
    dry_run: bool,
    **where: Any,
) -> int:
    """Start the job of a YAML file and wait for its end."""
    jobs.refuse_as_a_rank()
    job = jobs.load(config, overrides, **where)
    arguments = jobs.rank_words(config, overrides)
    arguments += ["--resume", resume] if resume else []
    arguments += ["--overwrite"] if overwrite else []
    arguments += ["--stop-after", str(stop_after)] if stop_after else []
    hosts, allocation = start.where(job.launch)
    kernel = blas.choose_kernel(jobs.say, kind=blas.kind_of(job.model))
    plan = jobs.planner(job, hosts, arguments, kernel, allocation)()
    if dry_run:
        click.echo(describe.full(plan, _prediction(job, plan, arguments)))
        return 0
    if not resume and not overwrite:
        jobs.refuse_to_replace(plan.run_dir)

    def attempt(goal: Goal, loss: Loss, goes_on: bool) -> int:
        words = arguments
        if goes_on:
            words = [*jobs.without_start(arguments), "--resume", "auto"]
        launch = job.launch.model_copy(update={"ranks": goal.ranks})
        wanted = job.model_copy(update={"launch": launch})
        make = jobs.planner(wanted, list(goal.hosts), words, kernel, allocation)
        return start.run(make(), make, jobs.say, loss)

    wished = job.launch
    least = wished.min_ranks or count_ranks(wished, hosts)
    goal = Goal(tuple(hosts), wished.ranks, least, wished.oversubscribe)
    return restart.run(goal, wished.max_restarts, attempt, plan.run_dir, jobs.say)


def _prediction(job: Job, plan: LaunchPlan, arguments: Sequence[str]) -> str:
    """Return how long a step will take; the computing of a micro-batch is measured."""
    found = predict.measure(plan, PROGRAM, jobs.without_start(arguments))
    if isinstance(found, str):
        return f"prediction: none, as a step of the job fails here:\n  {found}"
    link = predict.remembered([place.host.name for place in plan.places])
    lines = predict.predict(plan, found, link, job.comm, job.train.steps)
    return "\n  ".join(["prediction:", *lines])
