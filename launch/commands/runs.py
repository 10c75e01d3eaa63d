"""``fastserve runs``: the runs of a folder with their results."""

from __future__ import annotations

import json
from pathlib import Path

import click

from fastserve import environment
from fastserve.errors import LaunchError

from . import options


@click.command()
@click.argument(
    "folder", default="runs", type=click.Path(path_type=Path), metavar="[FOLDER]"
)
@click.option(
    "--sort",
    type=click.Choice(["when", "name", "best"]),
    default="when",
    show_default=True,
    help="The newest first, by name, or the lowest validation loss first.",
)
@options.as_json
def runs(folder: Path, sort: str, as_json: bool) -> int:
    """List the runs in a folder (runs/), their state and results.

    \b
    Examples:
      fastserve runs
      fastserve runs experiments --sort best
      fastserve runs --json | jq '.[] | select(.state == "failed")'
    """
    from .. import run_list

    if not folder.is_dir():
        raise LaunchError(
            "expected a folder with runs",
            f"{folder}, which doesn't exist",
            "give the folder, as fastserve runs FOLDER, or train: fastserve run",
        )
    found = run_list.list_runs(folder, sort)
    if as_json:
        rows = [run_list.as_json(name, run) for name, run in found]
        click.echo(json.dumps(rows, indent=1))
    elif found:
        click.echo(run_list.listing(found, environment.terminal_width()))
    else:
        click.echo(f"no runs in {folder}")
    return 0
