"""``fastserve generate``: text from a trained model."""

from __future__ import annotations

import click

from .. import jobs
from . import options


@click.command()
@click.argument("run", type=options.PATH)
@click.option(
    "--prompt", default="", help="The text to go on from; a line end if not given."
)
@click.option(
    "--tokens",
    default=200,
    type=click.IntRange(1),
    show_default=True,
    help="Number of new tokens.",
)
@click.option(
    "--temperature",
    default=1.0,
    type=click.FloatRange(0.0),
    show_default=True,
    help="0 always takes the likeliest token.",
)
@click.option("--top-k", type=click.IntRange(1), help="Choose among the k likeliest.")
@click.option(
    "--top-p",
    type=click.FloatRange(0.0, 1.0, min_open=True),
    help="Choose among the likeliest that together have this probability.",
)
@click.option(
    "--seed",
    default=0,
    type=click.IntRange(0),
    show_default=True,
    help="The same one gives the same text.",
)
@options.checkpoint
def generate(
    run: str,
    prompt: str,
    tokens: int,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    seed: int,
    which: str,
) -> int:
    """Generate text with the model of a run folder.

    \b
    Examples:
      fastserve generate runs/quickstart-gpt --prompt "The "
      fastserve generate runs/gcide --prompt "Sail" --temperature 0.7 --top-p 0.9
      fastserve generate runs/shakespeare --checkpoint latest --seed 3
    """
    jobs.prepare_process()
    from fastserve import trained

    chosen = temperature, top_k, top_p, seed, which
    click.echo(trained.generate(run, prompt, tokens, *chosen, options.note_of(run)))
    return 0
