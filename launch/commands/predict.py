"""``fastserve predict``: classes or values from a trained model."""

from __future__ import annotations

import click

from .. import jobs
from . import options


@click.command("predict")
@click.argument("run", type=options.PATH)
@click.option(
    "--input",
    "inputs",
    multiple=True,
    type=options.PATH,
    metavar="FILE",
    help="An image or a folder of them, an array, a text file of a text a line, or a "
    "table, as the run was trained on (repeatable).",
)
@click.option("--text", "texts", multiple=True, help="A text itself (repeatable).")
@click.option(
    "--output",
    type=options.PATH,
    metavar="FILE",
    help="A .csv, .jsonl or .npy file to write to.",
)
@click.option(
    "--top",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Show so many classes, the likeliest first.",
)
@options.checkpoint
def predict_(
    run: str,
    inputs: tuple[str, ...],
    texts: tuple[str, ...],
    output: str | None,
    top: int,
    which: str | None,
) -> int:
    """Say what a run's model makes of images, texts or tables.

    \b
    Examples:
      fastserve predict runs/fashion-mnist --input boot.png --input more/ --top 3
      fastserve predict runs/spam --text "Win a free prize now"
      fastserve predict runs/diamonds --input new.csv --output prices.csv
    """
    jobs.prepare_process()
    from fastserve.predictions import predict

    predict(run, inputs, texts, output, top, which, click.echo, options.note_of(run))
    return 0
