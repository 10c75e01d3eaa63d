"""``fastserve run``: start a job and wait for its end."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from fastserve.config import trace as tracing
from fastserve.config.public_command import public_command
from fastserve.config.run_folders import find_checkpoints, refuse_to_replace
from fastserve.errors import FastserveError

from .. import blas, jobs, plan_text, restart, slurm, start, step_time
from ..plan import PROGRAM, LaunchPlan, count_ranks
from ..process import REFUSED as USAGE
from ..process import STOPPED_EARLY
from ..restart import Goal, Loss
from ..screen import JSON, QUIET, WORDS, Screen
from . import options

if TYPE_CHECKING:
    from fastserve.config import Job

# what a run that goes on isn't told again
_OF_A_START = {"resume", "overwrite", "stop_after", "trace"}


class _RunCommand(click.Command):
    """Lets ``--trace`` do without its value, and the config follow it."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, tracing.joined(args))


@click.command(cls=_RunCommand)
@click.argument("config", type=options.PATH)
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
@click.option(
    "--trace",
    metavar="[FIRST:COUNT]",
    help="Write what all ranks do in COUNT steps from step FIRST on (20 steps after a "
    "warm-up) to trace.json in the run folder, for ui.perfetto.dev.",
)
@click.option("--dry-run", is_flag=True, help="Only print what would be started.")
@click.option(
    "--quiet",
    "prints",
    flag_value=QUIET,
    help="Print warnings, errors and the result alone.",
)
@click.option(
    "--json",
    "prints",
    flag_value=JSON,
    help="Print what happens as JSON, an object a line, for programs.",
)
def run(prints: str | None, **given: Any) -> int:
    """Start the job of a YAML file and wait for its end.

    \b
    Examples:
      fastserve run configs/quickstart.yaml
      fastserve run job.yaml -n 4 --set train.steps=50 --set name=short
      fastserve run job.yaml -H node1:4,node2:4 --resume auto
      fastserve run job.yaml -n 2 --trace 101:20
      fastserve run job.yaml --json | jq 'select(.event == "validation")'
    """
    screen = Screen(prints or WORDS)
    try:
        status = _run(screen, **given)
    except FastserveError as error:
        if prints != JSON:
            raise
        screen.failed(error, USAGE)
        status = USAGE
    if status not in (0, STOPPED_EARLY):
        screen.event("end", {"state": "failed", "status": status})
    return status


def _run(
    screen: Screen,
    config: str,
    overrides: tuple[str, ...],
    resume: str | None,
    overwrite: bool,
    stop_after: int | None,
    trace: str | None,
    dry_run: bool,
    **where: Any,
) -> int:
    jobs.refuse_as_a_rank()
    if trace:
        tracing.steps_of(trace)
    job = jobs.load(config, overrides, **where)
    arguments = jobs.rank_words(config, overrides)
    arguments += ["--resume", resume] if resume else []
    arguments += ["--overwrite"] if overwrite else []
    arguments += ["--stop-after", str(stop_after)] if stop_after else []
    arguments += [f"--trace={trace}"] if trace else []
    arguments += [f"--{screen.mode}"] if screen.mode != WORDS else []
    hosts, allocation = start.where(job.launch)
    kernel = blas.choose_kernel(screen.note, kind=blas.kind_of(job.model))
    plan = jobs.planner(job, hosts, arguments, kernel, allocation)()
    if dry_run:
        words = jobs.rank_words(config, overrides)
        return _show_plan(screen, job, plan, words)
    if not resume and not overwrite:
        refuse_to_replace(plan.run_dir)
    if resume and resume != "auto" and not hosts:  # else the ranks look for it
        find_checkpoints(Path(resume))

    began = False

    def attempt(goal: Goal, loss: Loss, goes_on: bool) -> int:
        nonlocal began
        if began and allocation and not allocation.over_ssh:
            slurm.check_nodes(allocation, [host.name for host in goal.hosts])
        began, words = True, arguments
        if loss.before:
            os.environ["FASTSERVE_LOSS"] = " ".join(f"{t:.3f}" for t in loss.before)
        if goes_on:
            words = [*jobs.without_start(arguments), "--resume", "auto"]
        launch = job.launch.model_copy(update={"ranks": goal.ranks})
        wanted = job.model_copy(update={"launch": launch})
        make = jobs.planner(wanted, list(goal.hosts), words, kernel, allocation)
        return start.run(make(), make, screen, loss)

    wished = job.launch
    least = wished.min_ranks or count_ranks(wished, hosts)
    goal = Goal(tuple(hosts), wished.ranks, least, wished.oversubscribe)
    status = restart.run(goal, wished.max_restarts, attempt, plan.run_dir, screen)
    if status == STOPPED_EARLY and screen.mode == WORDS:
        # what Slurm runs may have been submitted by another command
        then = "the same command with --resume auto" if allocation else _going_on()
        screen.show(f"next     {then}\n".encode(), screen.out)
    return status


def _going_on() -> str:
    """Return the command that goes on with this run: the one that was typed, without
    what was about its start. Values of launch.env are left out, as logs keep this."""
    context = click.get_current_context()
    words = ["fastserve", "run"]
    for parameter in context.command.params:
        name = parameter.name or ""
        source = context.get_parameter_source(name)
        if source is not ParameterSource.COMMANDLINE or name in _OF_A_START:
            continue
        option = isinstance(parameter, click.Option)
        flag = [min(parameter.opts, key=len)] if option else []
        value = context.params[name]
        for one in value if isinstance(value, tuple) else [value]:
            words += flag if one is True else [*flag, str(one)]
    return shlex.join(public_command([*words, "--resume", "auto"]))


def _show_plan(
    screen: Screen, job: Job, plan: LaunchPlan, arguments: Sequence[str]
) -> int:
    """Print what would be started; return 2 if a step of the job fails, else 0."""
    found = step_time.measure(plan, PROGRAM, arguments)
    text = plan_text.full(plan, _prediction(job, plan, found))
    if screen.mode != JSON:
        click.echo(text)
    screen.event("plan", {"text": text, "command": list(plan.command)})
    if isinstance(found, step_time.Estimate | step_time.TooSlow):
        return 0
    screen.event("error", {"message": found, "status": USAGE})
    return USAGE


def _prediction(job: Job, plan: LaunchPlan, found: step_time.Estimate | str) -> str:
    """Return how long a step will take; the computing of a micro-batch was measured."""
    if isinstance(found, step_time.TooSlow):
        return f"prediction: none, as {found}"
    if isinstance(found, str):
        return f"prediction: none, as a step of the job fails here:\n  {found}"
    link = step_time.slowest_remembered([place.host.name for place in plan.places])
    lines = step_time.predict(plan, found, link, job.comm, job.train.steps)
    return "\n  ".join(["prediction:", *lines])
