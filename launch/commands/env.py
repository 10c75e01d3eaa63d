"""``fastserve env``: what a bug report needs."""

from __future__ import annotations

import click

from fastserve import environment

from .. import environment_report


@click.command()
def env() -> int:
    """Print what a bug report needs: versions, BLAS, MPI, CPU.

    \b
    Examples:
      fastserve env
    """
    environment.prepare_process()
    click.echo(environment_report.environment_report())
    return 0
