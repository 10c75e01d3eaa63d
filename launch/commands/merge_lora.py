"""``fastserve merge-lora``: LoRA's corrections into the weights."""

from __future__ import annotations

import click

from .. import jobs
from . import options


@click.command("merge-lora")
@click.argument("run")
@click.option("--to", required=True, metavar="RUN", help="Run folder to make.")
@options.checkpoint
def merge_lora(run: str, to: str, which: str) -> int:
    """Make a run whose model has the corrections of a run's LoRA merged."""
    jobs.prepare_process()
    from fastserve.merge import merge_run

    click.echo(merge_run(run, to, which))
    return 0
