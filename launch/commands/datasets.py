"""``fastserve datasets``: where the data sets are."""

from __future__ import annotations

import click

from .. import datasets as known


@click.command()
@click.option(
    "--commands", is_flag=True, help="Only the commands that get what is missing."
)
def datasets(commands: bool) -> int:
    """List the data sets: where each is, or what command gets it.

    \b
    Examples:
      fastserve datasets
      fastserve datasets --commands
    """
    text = known.commands() if commands else known.listing()
    if text:
        click.echo(text)
    return 0
