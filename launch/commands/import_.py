"""``fastserve import``: a folder in Hugging Face's layout into a run."""

from __future__ import annotations

import click

from .. import jobs
from . import options


@click.command("import")
@click.argument("folder", type=options.PATH)
@click.option(
    "--to", required=True, type=options.PATH, metavar="RUN", help="Run folder to make."
)
@options.overrides
def import_(folder: str, to: str, overrides: tuple[str, ...]) -> int:
    """Make a run of Hugging Face's folder of a GPT-2 or Llama.

    \b
    Examples:
      fastserve import gpt2-folder --to runs/gpt2
    """
    jobs.prepare_process()
    from fastserve.import_export import import_run

    click.echo(import_run(folder, to, overrides))
    return 0
