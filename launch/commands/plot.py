"""``fastserve plot``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from . import options


@click.command()
@options.runs
@click.option(
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="One picture, .png, .svg or .pdf. Without it: plots/*.png in the run's "
    "folder; of several runs comparison.png in this folder.",
)
@click.option(
    "--metrics",
    metavar="LIST",
    help="What to draw, as loss,accuracy,learning_rate; all if not given.",
)
@options.axis
@click.option("--log", is_flag=True, help="Logarithmic y axes, where values are > 0.")
@options.smooth
def plot(
    runs: tuple[str, ...],
    output: Path | None,
    metrics: str | None,
    axis: Any,
    log: bool,
    smooth: int | None,
) -> int:
    """Draw loss, metrics and rate of runs as pictures.

    \b
    Examples:
      fastserve plot runs/quickstart-gpt
      fastserve plot runs/digits --metrics loss,accuracy --x epoch --log
      fastserve plot runs/small runs/large --output small-large.png
    """
    from .. import plots
    from ..runs import read_run

    names = [name for name in (metrics or "").replace(",", " ").split() if name]
    found = [read_run(run) for run in runs]
    for path in plots.plot(found, output, names, axis, log, smooth):
        click.echo(path)
    return 0
