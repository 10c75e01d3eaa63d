"""``fastserve export``: a run into a folder in Hugging Face's layout."""

from __future__ import annotations

import click

from .. import jobs
from . import options


@click.command()
@click.argument("run", type=options.PATH)
@click.option(
    "--to", required=True, type=options.PATH, metavar="DIR", help="Folder to make."
)
@click.option(
    "--dtype",
    default="float32",
    type=click.Choice(["float32", "float16", "bfloat16"]),
    show_default=True,
    help="Type of the weights in it.",
)
@click.option(
    "--max-shard-size",
    default="5GB",
    metavar="SIZE",
    show_default=True,
    help="Weights that need more go into several files.",
)
@options.checkpoint
def export(run: str, to: str, dtype: str, max_shard_size: str, which: str) -> int:
    """Write the model of a run folder in Hugging Face's layout.

    \b
    Examples:
      fastserve export runs/gcide --to gcide-gpt2
      fastserve export runs/gpt2 --to folder --dtype float16 --max-shard-size 2GB
    """
    jobs.prepare_process()
    from fastserve.import_export import export_run

    click.echo(export_run(run, to, dtype, max_shard_size, which))
    return 0
