"""``fastserve report``."""

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
    help="Where to write it. Without it: report.html in the run's folder; of several "
    "runs comparison.html in this folder.",
)
@click.option(
    "--evaluate/--no-evaluate",
    default=None,
    help="Whether to use the model: a classifier's confusion matrix, texts of a "
    "language model. By default where that takes seconds.",
)
@options.split
@options.checkpoint
@click.option(
    "--prompt",
    "prompts",
    multiple=True,
    help="What a language model goes on with (repeatable).",
)
@options.axis
@options.smooth
def report(
    runs: tuple[str, ...],
    output: Path | None,
    evaluate: bool | None,
    split: str,
    which: str | None,
    prompts: tuple[str, ...],
    axis: Any,
    smooth: int | None,
) -> int:
    """Write one HTML file of a run, or of several compared.

    It needs no network, and shows results, curves, what each rank's time went to,
    checkpoints, warnings, environment and config, and what the model does.

    \b
    Examples:
      fastserve report runs/digits
      fastserve report runs/digits --split test --output digits.html
      fastserve report runs/quickstart-gpt --prompt "The " --prompt "To "
      fastserve report runs/small runs/large
    """
    from .. import jobs
    from ..html_report.evaluation import Wish
    from ..html_report.report import report as write
    from ..runs import read_run

    found = [read_run(run) for run in runs]
    if len(found) == 1 and evaluate is not False:
        jobs.prepare_process(1)  # a busy machine makes more of them slower than one
    wish = Wish(evaluate, split, which, prompts)
    say = lambda text: click.echo(text, err=True)  # noqa: E731
    click.echo(write(found, output, axis, smooth, wish, say))
    return 0
