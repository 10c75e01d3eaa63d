"""``fastserve plot``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click


@click.command()
@click.argument("runs", nargs=-1, required=True, metavar="RUN...")
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
@click.option(
    "--x",
    "axis",
    type=click.Choice(["step", "time", "epoch"]),
    default="step",
    show_default=True,
    help="The horizontal axis; time is since the run's first line of metrics.",
)
@click.option("--log", is_flag=True, help="Logarithmic y axes, where values are > 0.")
@click.option(
    "--smooth",
    type=click.IntRange(0),
    metavar="LINES",
    help="Lines of metrics in each mean of the training's curve; 0: none. A 25th of "
    "all if not given.",
)
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
