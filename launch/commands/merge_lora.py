"""``fastserve merge-lora``: LoRA's corrections into the weights."""

from __future__ import annotations

import click

from .. import jobs
from . import options


@click.command("merge-lora")
@click.argument("run", type=options.PATH)
@click.option(
    "--to", required=True, type=options.PATH, metavar="RUN", help="Run folder to make."
)
@options.checkpoint
def merge_lora(run: str, to: str, which: str) -> int:
    """Make a run with the corrections of a run's LoRA merged in.

    \b
    Examples:
      fastserve merge-lora runs/finetune-lora --to runs/merged
    """
    jobs.prepare_process()
    from fastserve.merge_lora import merge_run

    click.echo(merge_run(run, to, which))
    return 0
