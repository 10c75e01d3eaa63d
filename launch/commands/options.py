"""Options that several commands have."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import click
from click.shell_completion import CompletionItem


class _Path(click.ParamType):
    """A path, taken as it is: the commands tell what is wrong. Shells complete it."""

    name = "path"

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        return [CompletionItem(incomplete, type="file")]


PATH = _Path()

overrides = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Override a key of the job, for example train.steps=50 (repeatable).",
)
launcher = click.option(
    "--launcher",
    type=click.Choice(["auto", "local", "openmpi", "mpich", "slurm"]),
    help="What starts the ranks; auto takes the MPI of this environment.",
)
checkpoint = click.option(
    "--checkpoint",
    "which",
    metavar="best|latest|N",
    help="Which checkpoint: of the lowest validation loss, the newest, or of step N. "
    "The best one, where the run kept one, if not given; else the newest.",
)
split = click.option(
    "--split",
    type=click.Choice(["train", "validation", "test"]),
    default="validation",
    show_default=True,
    help="Which part of the data to evaluate on.",
)


def note_of(run: str) -> Callable[[str], None]:
    """Return what says something of a run on standard error: on standard output is the
    result alone."""
    return lambda text: click.echo(f"{run}: {text}", err=True)


as_json = click.option(
    "--json", "as_json", is_flag=True, help="Print JSON, for programs."
)
SHAPES = "A GPT of 0.8, 10.8 or 124 M weights."
repeats = click.option(
    "--repeats",
    default=5,
    type=click.IntRange(1),
    show_default=True,
    help="Measurements of each; shown is their median.",
)
threads = click.option(
    "--threads",
    default=1,
    type=click.IntRange(1),
    show_default=True,
    help="Of the BLAS, in each process.",
)
runs = click.argument("runs", nargs=-1, required=True, metavar="RUN...")
axis = click.option(
    "--x",
    "axis",
    type=click.Choice(["step", "time", "epoch"]),
    default="step",
    show_default=True,
    help="The horizontal axis; time is since the run's first line of metrics.",
)
smooth = click.option(
    "--smooth",
    type=click.IntRange(0),
    metavar="LINES",
    help="Lines of metrics in each mean of the training's curve; 0: none. A 25th of "
    "all if not given.",
)
_Command = TypeVar("_Command", bound=Callable[..., int])


def where(command: _Command) -> _Command:
    """Add the options that say where the ranks run; the command gets ``where``."""
    for option in reversed(_WHERE):
        command = option(command)
    return command


def elsewhere(command: _Command) -> _Command:
    """As ``where``, without the number of ranks."""
    for option in reversed(_WHERE[1:]):
        command = option(command)
    return command


_WHERE = (
    click.option("-n", "ranks", type=int, help="Number of ranks (processes)."),
    click.option(
        "-H", "--host", metavar="LIST", help="Hosts and slots, as node1:2,node2:4."
    ),
    click.option(
        "--hostfile", type=PATH, metavar="FILE", help="File with a host a line."
    ),
    click.option("--include", metavar="NAMES", help="The only hosts to use of them."),
    click.option("--exclude", metavar="NAMES", help="Hosts not to use."),
    click.option(
        "--oversubscribe",
        is_flag=True,
        help="Allow more ranks than the hosts have slots; they share cores.",
    ),
    launcher,
)
