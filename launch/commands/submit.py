"""``fastserve submit``: put a job into Slurm's queue."""

from __future__ import annotations

from pathlib import Path

import click

from fastserve.config.run_folders import refuse_to_replace, run_folder
from fastserve.errors import LaunchError

from .. import jobs
from .. import submit as batch
from . import options


@click.command()
@click.argument("config", type=options.PATH)
@click.option("-n", "ranks", type=int, help="Number of ranks (tasks).")
@options.overrides
@click.option("--resume", type=click.Choice(["auto"]), help="Go on with a run.")
@click.option("--print", "only_print", is_flag=True, help="Print the script only.")
def submit(
    config: str,
    ranks: int | None,
    overrides: tuple[str, ...],
    resume: str | None,
    only_print: bool,
) -> int:
    """Submit a job to Slurm, with a warning in time and requeue.

    \b
    Examples:
      fastserve submit job.yaml
      fastserve submit job.yaml --print
      fastserve submit job.yaml -n 16 --set launch.slurm.time=2h
      fastserve submit job.yaml --resume auto
    """
    job = jobs.load(config, overrides, ranks=ranks)
    if job.launch.hosts is not None or job.launch.hostfile is not None:
        raise LaunchError(
            "expected a job without a list of hosts, as Slurm chooses them",
            "launch.hosts or launch.hostfile",
            "remove it, or override it: --set launch.hosts=null",
        )
    if job.launch.env and len(jobs.set_words(overrides)) < 2 * len(overrides):
        raise LaunchError(
            "expected launch.env in the job's file, as the batch script would show "
            "values that may be secrets",
            "--set launch.env",
            "write it into the file",
        )
    run_dir = run_folder(job, Path.cwd())
    arguments = jobs.rank_words(config, overrides)
    arguments += ["-n", str(ranks)] if ranks else []
    text = batch.script(job, run_dir, Path.cwd(), [*arguments, "--resume", "auto"])
    if only_print:
        click.echo(text, nl=False)
        return 0
    if not resume:
        refuse_to_replace(run_dir)
    click.echo(batch.submit(text, run_dir))
    click.echo(f"its output: {run_dir}/slurm-JOBID.out")
    return 0
