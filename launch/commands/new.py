"""``fastserve new``: write a job for one's own data."""

from __future__ import annotations

import click

from ..new import TEMPLATES
from ..new import new as make


@click.command(
    epilog="""\b
Examples:
  fastserve new gpt my-text
  fastserve run my-text/job.yaml
  fastserve new image photos --name cats-and-dogs
"""
)
@click.argument("kind", type=click.Choice(list(TEMPLATES)))
@click.argument("folder", metavar="DIR")
@click.option("--name", help="Name of the run; by default that of DIR.")
def new(kind: str, folder: str, name: str | None) -> int:
    """Write a job for your own data into DIR, with a sample that it runs on at once."""
    click.echo(make(kind, folder, name))
    return 0
