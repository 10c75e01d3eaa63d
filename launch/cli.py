"""The ``fastserve`` command."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import click

import fastserve
from fastserve.errors import FastserveError

from .commands.bench import bench
from .commands.check import check
from .commands.completion import completion
from .commands.datasets import datasets
from .commands.env import env
from .commands.evaluate import evaluate
from .commands.export import export
from .commands.generate import generate
from .commands.import_ import import_
from .commands.merge_lora import merge_lora
from .commands.new import new
from .commands.plot import plot
from .commands.predict import predict_
from .commands.preflight import preflight
from .commands.prepare import prepare
from .commands.report import report
from .commands.run import run
from .commands.runs import runs
from .commands.schema import schema
from .commands.submit import submit
from .commands.top import top
from .commands.verify import verify

USAGE = 2
COMMANDS = (
    bench,
    check,
    completion,
    datasets,
    env,
    evaluate,
    export,
    generate,
    import_,
    merge_lora,
    new,
    plot,
    predict_,
    preflight,
    prepare,
    report,
    run,
    runs,
    schema,
    submit,
    top,
    verify,
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; errors of the user end with status 2 and without traceback."""
    _open_closed_streams()
    try:
        status = cli.main(
            args=None if arguments is None else list(arguments),
            prog_name="fastserve",
            standalone_mode=False,
        )
    except click.ClickException as error:
        error.show()
        status = error.exit_code
    except click.Abort:
        status = 130
    except FastserveError as error:
        click.echo(str(error), err=True)
        status = USAGE
    sys.exit(status)


def _open_closed_streams() -> None:
    """Let what is shown go nowhere where the shell has closed a stream (``>&-``)."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120}
)
@click.version_option(fastserve.__version__, prog_name="fastserve")
def cli() -> None:
    """Train neural networks on CPU clusters with NumPy and MPI.

    \b
    Examples:
      fastserve new gpt my-text             # a job for your own data, with a sample
      fastserve run my-text/job.yaml -n 2   # trains it, here on two ranks
      fastserve COMMAND --help              # what a command takes, with examples
    """


for command in COMMANDS:
    cli.add_command(command)


if __name__ == "__main__":
    main()
