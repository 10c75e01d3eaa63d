"""``fastserve evaluate``: loss and metrics of a trained model."""

from __future__ import annotations

import click

from fastserve.formatting import number

from .. import jobs
from . import options


@click.command()
@click.argument("run", type=options.PATH)
@options.checkpoint
@options.split
@options.overrides
def evaluate(run: str, which: str, split: str, overrides: tuple[str, ...]) -> int:
    """Evaluate the model of a run on its validation or test data.

    \b
    Examples:
      fastserve evaluate runs/quickstart-gpt
      fastserve evaluate runs/digits --split test
      fastserve evaluate runs/digits --checkpoint latest
    """
    jobs.prepare_process()
    from fastserve import trained

    found = trained.evaluate(run, which, overrides, split, options.note_of(run))
    for name, value in found.items():
        if isinstance(value, float):
            click.echo(f"{name} {number(value)}")
            continue
        click.echo(name)  # an array, such as a confusion matrix: a line for each row
        for row in value.reshape(-1, value.shape[-1]).tolist():
            click.echo("  " + "  ".join(f"{count:.6g}" for count in row))
    return 0
