"""``fastserve evaluate``: loss and metrics of a trained model."""

from __future__ import annotations

import click

from .. import jobs
from . import options


@click.command()
@click.argument("run", type=options.PATH)
@options.checkpoint
@click.option(
    "--split",
    type=click.Choice(["train", "validation", "test"]),
    default="validation",
    show_default=True,
    help="Which part of the data.",
)
@options.overrides
def evaluate(run: str, which: str, split: str, overrides: tuple[str, ...]) -> int:
    """Evaluate the model of a run folder on its validation data, or its test data.

    \b
    Examples:
      fastserve evaluate runs/quickstart-gpt
      fastserve evaluate runs/digits --split test --checkpoint best
      fastserve evaluate runs/digits --set data.validation_split=0.2
    """
    jobs.prepare_process()
    from fastserve import trained

    for name, value in trained.evaluate(run, which, overrides, split).items():
        if isinstance(value, float):
            click.echo(f"{name} {value:.6g}")
            continue
        click.echo(name)  # an array, such as a confusion matrix: a line for each row
        for row in value.reshape(-1, value.shape[-1]).tolist():
            click.echo("  " + "  ".join(f"{number:.6g}" for number in row))
    return 0
