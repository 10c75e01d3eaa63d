"""``fastserve top``: a live view of a running job."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from fastserve import environment


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--once", is_flag=True, help="Print what there is once, for scripts.")
def top(run: Path, once: bool) -> int:
    """Watch a job over all ranks: progress, rate, loss, slow ranks.

    It reads the run folder alone, so it works wherever that is seen. q leaves.

    \b
    Examples:
      fastserve top runs/quickstart-gpt
      fastserve top runs/quickstart-gpt --once
      watch -n 60 fastserve top runs/quickstart-gpt --once
    """
    from .. import top as screen

    terminal = environment.is_terminal(sys.stdout)
    colours = terminal and environment.wants_colour()
    screen.watch(run, once or not terminal, colours)
    return 0
