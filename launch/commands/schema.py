"""``fastserve schema``: the JSON Schema of a job."""

from __future__ import annotations

import json

import click


@click.command()
def schema() -> int:
    """Print the JSON Schema of a job's YAML file, for editors.

    \b
    Examples:
      fastserve schema > fastserve.schema.json
    """
    from fastserve.config import json_schema

    click.echo(json.dumps(json_schema(), indent=2))
    return 0
