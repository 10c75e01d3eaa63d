"""``fastserve new``: write a job for one's own data."""

from __future__ import annotations

import click

from ..new import TEMPLATES
from ..new import new as make
from . import options


@click.command()
@click.argument("kind", type=click.Choice(list(TEMPLATES)))
@click.argument("folder", type=options.PATH, metavar="DIR")
@click.option("--name", help="Name of the run; by default that of DIR.")
def new(kind: str, folder: str, name: str | None) -> int:
    """Write a job for your own data into DIR, with a small sample.

    It runs on the sample at once.

    \b
    Examples:
      fastserve new gpt my-text
      fastserve new image photos --name cats-and-dogs
      fastserve run photos/job.yaml
    """
    click.echo(make(kind, folder, name))
    return 0
