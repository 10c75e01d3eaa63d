"""The ``fastserve`` command."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

import fastserve
from fastserve import environment
from fastserve.errors import FastserveError, LaunchError

from . import blas, describe, predict, report, restart, slurm, start
from .hosts import Host, is_here, split
from .mpi import FoundMPI, find_mpi
from .plan import (
    PROGRAM,
    LaunchPlan,
    Machine,
    count_ranks,
    make_plan,
    plan_program,
    run_folder,
)
from .restart import Goal, Loss
from .slurm import Allocation

if TYPE_CHECKING:
    from fastserve.config import Job
    from fastserve.config.schema import Launch

USAGE = 2
_overrides = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Override a key of the job, for example train.steps=50 (repeatable).",
)
_launcher = click.option(
    "--launcher",
    type=click.Choice(["auto", "local", "openmpi", "mpich", "slurm"]),
    help="What starts the ranks; auto takes the MPI of this environment.",
)
_checkpoint = click.option(
    "--checkpoint",
    "which",
    default="latest",
    show_default=True,
    metavar="best|latest|N",
    help="Which checkpoint: of the lowest validation loss, the newest, or of step N.",
)
_SHAPES = "A GPT of 0.8, 10.8 or 124 M weights."
_repeats = click.option(
    "--repeats",
    default=5,
    type=click.IntRange(1),
    show_default=True,
    help="Measurements of each; shown is their median.",
)
_threads = click.option(
    "--threads",
    default=1,
    type=click.IntRange(1),
    show_default=True,
    help="Of the BLAS, in each process.",
)
_Command = TypeVar("_Command", bound=Callable[..., int])


def _where(command: _Command) -> _Command:
    """Add the options that say where the ranks run; the command gets ``where``."""
    for option in reversed(_WHERE):
        command = option(command)
    return command


def _elsewhere(command: _Command) -> _Command:
    """As ``_where``, without the number of ranks."""
    for option in reversed(_WHERE[1:]):
        command = option(command)
    return command


_WHERE = (
    click.option("-n", "ranks", type=int, help="Number of ranks (processes)."),
    click.option(
        "-H", "--host", metavar="LIST", help="Hosts and slots, as node1:2,node2:4."
    ),
    click.option("--hostfile", metavar="FILE", help="File with a host a line."),
    click.option("--include", metavar="NAMES", help="The only hosts to use of them."),
    click.option("--exclude", metavar="NAMES", help="Hosts not to use."),
    click.option("--oversubscribe", is_flag=True, help="More ranks than slots."),
    _launcher,
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; errors of the user end with status 2 and without traceback."""
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
        _say(str(error))
        status = USAGE
    sys.exit(status)


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120}
)
@click.version_option(fastserve.__version__, prog_name="fastserve")
def cli() -> None:
    """Train neural networks on CPU clusters with NumPy and MPI.

    A first run: fastserve run configs/quickstart.yaml
    """


@cli.command()
@click.argument("config")
@_where
@_overrides
@click.option("--resume", metavar="auto|PATH", help="Go on from a checkpoint.")
@click.option("--overwrite", is_flag=True, help="Replace what the run folder holds.")
@click.option(
    "--stop-after",
    type=click.IntRange(1),
    metavar="STEPS",
    help="Save and end after the step of this number, as at SIGTERM.",
)
@click.option("--dry-run", is_flag=True, help="Only print what would be started.")
def run(
    config: str,
    overrides: tuple[str, ...],
    resume: str | None,
    overwrite: bool,
    stop_after: int | None,
    dry_run: bool,
    **where: Any,
) -> int:
    """Start the job of a YAML file and wait for its end."""
    _refuse_as_a_rank()
    job = _load(config, overrides, **where)
    arguments = [str(Path(config).absolute())]
    for override in overrides:
        arguments += ["--set", override]
    arguments += ["--resume", resume] if resume else []
    arguments += ["--overwrite"] if overwrite else []
    arguments += ["--stop-after", str(stop_after)] if stop_after else []
    hosts, allocation = start.where(job.launch)
    kernel = blas.choose_kernel(_say)
    plan = _planner(job, hosts, arguments, kernel, allocation)()
    if dry_run:
        click.echo(describe.full(plan, _prediction(job, plan, arguments)))
        return 0
    if not resume and not overwrite:
        _refuse_to_replace(plan.run_dir)

    def attempt(goal: Goal, loss: Loss, goes_on: bool) -> int:
        words = arguments
        if goes_on:
            words = [*_without_start(arguments), "--resume", "auto"]
        launch = job.launch.model_copy(update={"ranks": goal.ranks})
        wanted = job.model_copy(update={"launch": launch})
        make = _planner(wanted, list(goal.hosts), words, kernel, allocation)
        return start.run(make(), make, _say, loss)

    wished = job.launch
    least = wished.min_ranks or count_ranks(wished, hosts)
    goal = Goal(tuple(hosts), wished.ranks, least, wished.oversubscribe)
    return restart.run(goal, wished.max_restarts, attempt, plan.run_dir, _say)


def _without_start(arguments: Sequence[str]) -> list[str]:
    """Return the words for the ranks without those about how a run begins."""
    words = [word for word in arguments if word != "--overwrite"]
    if "--resume" in words:
        place = words.index("--resume")
        words = words[:place] + words[place + 2 :]
    return words


@cli.command()
@click.argument("config")
@_where
@_overrides
def check(config: str, overrides: tuple[str, ...], **where: Any) -> int:
    """Check a job's YAML file and print what it would start."""
    from fastserve.assemble.model import check_model

    job = _load(config, overrides, **where)
    check_model(job)
    hosts, allocation = start.where(job.launch)
    program = [str(Path(config).absolute())]
    plan = _planner(job, hosts, program, None, allocation)()
    click.echo(f"{config}: no faults")
    click.echo(describe.overview(plan))
    return 0


@cli.command()
@click.argument("config")
@click.option("-n", "ranks", type=int, help="Number of ranks (tasks).")
@_overrides
@click.option("--resume", type=click.Choice(["auto"]), help="Go on with a run.")
@click.option("--print", "only_print", is_flag=True, help="Print the script only.")
def submit(
    config: str,
    ranks: int | None,
    overrides: tuple[str, ...],
    resume: str | None,
    only_print: bool,
) -> int:
    """Submit a job to Slurm, with a warning before its time is over, and requeue."""
    from . import submit as batch

    job = _load(config, overrides, ranks=ranks)
    if job.launch.hosts is not None or job.launch.hostfile is not None:
        raise LaunchError(
            "expected a job without a list of hosts, as Slurm chooses them",
            "launch.hosts or launch.hostfile",
            "remove it, or override it: --set launch.hosts=null",
        )
    run_dir = run_folder(job, Path.cwd())
    arguments = [str(Path(config).absolute())]
    for override in overrides:
        arguments += ["--set", override]
    arguments += ["-n", str(ranks)] if ranks else []
    text = batch.script(job, run_dir, Path.cwd(), [*arguments, "--resume", "auto"])
    if only_print:
        click.echo(text, nl=False)
        return 0
    if not resume:
        _refuse_to_replace(run_dir)
    click.echo(batch.submit(text, run_dir))
    click.echo(f"its output: {run_dir}/slurm-JOBID.out")
    return 0


@cli.command()
@click.argument("config")
@_where
@_overrides
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for machines.")
def preflight(
    config: str, overrides: tuple[str, ...], as_json: bool, **where: Any
) -> int:
    """Look at all hosts of a job: what would fail there, and how fast it will be."""
    from . import preflight as checks

    job = _load(config, overrides, **where)
    hosts, allocation = start.where(job.launch)
    arguments = [str(Path(config).absolute())]
    for override in overrides:
        arguments += ["--set", override]
    plan = _planner(job, hosts, arguments, blas.choose_kernel(_say), allocation)()
    report = checks.look(
        job,
        plan,
        lambda: predict.measure(plan, PROGRAM, arguments),
        start.agent_variables(plan),
    )
    click.echo(json.dumps(report.to_json()) if as_json else checks.table(report))
    return 0 if report.passed else 1


@cli.command()
def schema() -> int:
    """Print the JSON Schema of a job's YAML file, for editors."""
    from fastserve.config import json_schema

    click.echo(json.dumps(json_schema(), indent=2))
    return 0


@cli.command()
def env() -> int:
    """Print what a bug report needs: versions, BLAS, threads, MPI, CPU."""
    environment.prepare_process()
    click.echo(report.environment_report())
    return 0


@cli.command()
@click.argument("run")
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
@_checkpoint
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
    """Generate text with the model of a run folder."""
    _prepare()
    from fastserve import worker

    text = worker.generate(run, prompt, tokens, temperature, top_k, top_p, seed, which)
    click.echo(text)
    return 0


@cli.command()
@click.argument("run")
@_checkpoint
@click.option(
    "--split",
    type=click.Choice(["train", "validation", "test"]),
    default="validation",
    show_default=True,
    help="Which part of the data.",
)
@_overrides
def evaluate(run: str, which: str, split: str, overrides: tuple[str, ...]) -> int:
    """Evaluate the model of a run folder on its validation data, or its test data."""
    _prepare()
    from fastserve import worker

    for name, value in worker.evaluate(run, which, overrides, split).items():
        if isinstance(value, float):
            click.echo(f"{name} {value:.6g}")
            continue
        click.echo(name)  # an array, such as a confusion matrix: a line for each row
        for row in value.reshape(-1, value.shape[-1]).tolist():
            click.echo("  " + "  ".join(f"{number:.6g}" for number in row))
    return 0


@cli.command("predict")
@click.argument("run")
@click.option(
    "--input",
    "inputs",
    multiple=True,
    metavar="FILE",
    help="An image or a folder of them, an array, a text file of a text a line, or a "
    "table, as the run was trained on (repeatable).",
)
@click.option("--text", "texts", multiple=True, help="A text itself (repeatable).")
@click.option(
    "--output", metavar="FILE", help="A .csv, .jsonl or .npy file to write to."
)
@click.option(
    "--top",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Show so many classes, the likeliest first.",
)
@click.option(
    "--checkpoint",
    "which",
    metavar="best|latest|N",
    help="Which checkpoint; by default the best one if there is one.",
)
def predict_(
    run: str,
    inputs: tuple[str, ...],
    texts: tuple[str, ...],
    output: str | None,
    top: int,
    which: str | None,
) -> int:
    """Say what the model of a run folder makes of images, texts or tables."""
    _prepare()
    from fastserve.predictions import predict

    predict(run, inputs, texts, output, top, which, click.echo)
    return 0


@cli.command()
@click.option(
    "--commands", is_flag=True, help="Only the commands that get what is missing."
)
def datasets(commands: bool) -> int:
    """List the data sets: where each was found, or the command that gets it."""
    from . import datasets as known

    text = known.commands() if commands else known.listing()
    if text:
        click.echo(text)
    return 0


@cli.command("merge-lora")
@click.argument("run")
@click.option("--to", required=True, metavar="RUN", help="Run folder to make.")
@_checkpoint
def merge_lora(run: str, to: str, which: str) -> int:
    """Make a run whose model has the corrections of a run's LoRA merged."""
    _prepare()
    from fastserve.merge import merge_run

    click.echo(merge_run(run, to, which))
    return 0


@cli.command()
@click.argument("inputs", nargs=-1, required=True, metavar="INPUT...")
@click.option("--to", required=True, metavar="FOLDER", help="The folder to make.")
@click.option(
    "--tokenizer",
    default="bpe",
    show_default=True,
    metavar="char|byte|bpe|PATH",
    help="What a token is; a path of a tokenizer.json, or of a folder with one.",
)
@click.option(
    "--vocab-size", type=click.IntRange(257), help="Of bpe; 8192 if not given."
)
@click.option(
    "--validation-split",
    type=click.FloatRange(0.0, 1.0, max_open=True),
    default=0.0,
    show_default=True,
    help="Share of the text, at its end, to validate on.",
)
@click.option(
    "--jsonl-key", default="text", show_default=True, help="Key of a line's text."
)
@click.option(
    "--errors",
    type=click.Choice(["strict", "replace"]),
    default="strict",
    show_default=True,
    help="What to do with bytes that aren't UTF-8.",
)
@click.option("--overwrite", is_flag=True, help="Replace a folder that is there.")
@_where
def prepare(
    inputs: tuple[str, ...],
    to: str,
    tokenizer: str,
    vocab_size: int | None,
    validation_split: float,
    jsonl_key: str,
    errors: str,
    overwrite: bool,
    **where: Any,
) -> int:
    """Turn text, JSONL, or folders of them into token files, in parallel over ranks."""
    words = ["--to", to, "--tokenizer", tokenizer, "--jsonl-key", jsonl_key]
    words += ["--validation-split", str(validation_split), "--errors", errors]
    words += ["--vocab-size", str(vocab_size)] if vocab_size is not None else []
    words += ["--overwrite"] if overwrite else []
    one = {"TOKENIZERS_PARALLELISM": "false"}  # the ranks are what is parallel
    words += ["--", *inputs]
    said = {**_said(**where), "env": one}
    return _start_program("fastserve.data.prepare", words, said)


@cli.command()
@click.argument("run")
@click.option(
    "--ranks",
    "counts",
    default="1,2,3,4",
    show_default=True,
    metavar="LIST",
    help="Numbers of ranks to train with.",
)
@click.option(
    "--steps",
    default=5,
    type=click.IntRange(1),
    show_default=True,
    help="Steps to make with each.",
)
@_elsewhere
@_overrides
def verify(
    run: str, counts: str, steps: int, overrides: tuple[str, ...], **where: Any
) -> int:
    """Make a run's first steps again on other numbers of ranks, and compare the bits.

    For runs with comm.algorithm exact; others only agree to rounding.
    """
    from .verify import ALONE, parse_ranks
    from .verify import verify as verify_run

    _refuse_as_a_rank()
    config = Path(run, "config.yaml")
    ranks = parse_ranks(counts)
    job = _load(str(config), (*ALONE, *overrides), ranks=max(ranks), **where)
    if job.comm.algorithm != "exact":
        raise LaunchError(
            "verify: expected a run with comm.algorithm exact",
            job.comm.algorithm,
            "add --set comm.algorithm=exact to see what it would give; sums of "
            "the others agree to rounding",
        )
    arguments = [word for override in overrides for word in ("--set", override)]
    for name, value in where.items():
        if value:
            arguments.append(f"--{name}")
            arguments += [str(value)] if value is not True else []
    shared = Path(run).absolute() if job.launch.hosts or job.launch.hostfile else None
    same = verify_run(config, ranks, steps, arguments, click.echo, shared)
    return 0 if same else 1


@cli.command("import")
@click.argument("folder")
@click.option("--to", required=True, metavar="RUN", help="Run folder to make.")
@_overrides
def import_(folder: str, to: str, overrides: tuple[str, ...]) -> int:
    """Make a run folder of a GPT-2 or Llama folder in Hugging Face's layout."""
    _prepare()
    from fastserve.exchange import import_run

    click.echo(import_run(folder, to, overrides))
    return 0


@cli.command()
@click.argument("run")
@click.option("--to", required=True, metavar="DIR", help="Folder to make.")
@click.option(
    "--dtype",
    default="float32",
    type=click.Choice(["float32", "float16", "bfloat16"]),
    show_default=True,
    help="Type of the weights in it.",
)
@click.option(
    "--max-shard-size",
    default="5GB",
    metavar="SIZE",
    show_default=True,
    help="Weights that need more go into several files.",
)
@_checkpoint
def export(run: str, to: str, dtype: str, max_shard_size: str, which: str) -> int:
    """Write the model of a run folder in Hugging Face's layout."""
    _prepare()
    from fastserve.exchange import export_run

    click.echo(export_run(run, to, dtype, max_shard_size, which))
    return 0


@cli.group()
def bench() -> None:
    """Measure this machine."""


@bench.command()
@_where
@click.option(
    "--shape",
    default="medium",
    type=click.Choice(["small", "medium", "gpt2"]),
    show_default=True,
    help=_SHAPES,
)
@click.option(
    "--batch",
    type=click.IntRange(1),
    help="Samples over all ranks; default: 12, 16 or 2 by shape.",
)
@_repeats
@_threads
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for machines.")
def step(
    shape: str,
    batch: int | None,
    repeats: int,
    threads: int,
    as_json: bool,
    ranks: int | None,
    **given: Any,
) -> int:
    """Time a training step of a GPT, beside PyTorch's where it is installed."""
    said = _said(**given)
    if (ranks or 1) == 1 and not said["hosts"] and not said["hostfile"]:
        _prepare(threads)
        from fastserve.bench.step import step as measure

        measure(shape, json=as_json, repeats=repeats, batch=batch)
        return 0
    words = ["step", "--shape", shape, "--repeats", str(repeats)]
    words += ["--batch", str(batch)] if batch else []
    words += ["--json"] if as_json else []
    from fastserve.bench.ranks import share_of
    from fastserve.bench.step import BATCHES

    return _start_program(
        "fastserve.bench",
        words,
        {**said, "threads": threads, "ranks": ranks},
        check=lambda count: share_of(batch or BATCHES[shape], count),
    )


@bench.command("layers")
@click.option(
    "--only", multiple=True, metavar="NAME", help="A case; may be given several times."
)
@_repeats
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for machines.")
def bench_layers(only: tuple[str, ...], repeats: int, as_json: bool) -> int:
    """Time layers and small networks on one core, beside PyTorch's."""
    _prepare(1)
    from fastserve.bench.layers import layers as measure

    measure(only, repeats, as_json)
    return 0


@bench.command("generate")
@click.option(
    "--shape",
    type=click.Choice(["small", "medium", "gpt2"]),
    default="medium",
    show_default=True,
    help=_SHAPES,
)
@click.option(
    "--variant",
    type=click.Choice(["gpt2", "llama"]),
    default="gpt2",
    show_default=True,
    help="The model's set of options.",
)
@click.option(
    "--tokens",
    type=click.IntRange(1),
    help="Number of new tokens; default: 48, 240 or 64 by shape.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for machines.")
@_repeats
@_threads
def bench_generate(
    shape: str,
    variant: str,
    tokens: int | None,
    as_json: bool,
    repeats: int,
    threads: int,
) -> int:
    """Time generation with a GPT, beside PyTorch's where it is installed."""
    _prepare(threads)
    from fastserve.bench.generate import generate as measure

    measure(shape, variant, tokens, repeats, threads, as_json)
    return 0


@bench.command()
@click.option(
    "--shape",
    type=click.Choice(["small", "medium", "gpt2"]),
    default="medium",
    show_default=True,
    help=f"{_SHAPES} gpt2 needs about 5 GiB of memory.",
)
@click.option(
    "--batch", type=click.IntRange(1), help="Samples; default: 12, 16 or 2 by shape."
)
@_threads
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for machines.")
def memory(shape: str, batch: int | None, threads: int, as_json: bool) -> int:
    """Show the peak memory of training a GPT, beside PyTorch's."""
    _prepare(threads)
    from fastserve.bench.memory import memory as measure

    measure(shape, batch, as_json)
    return 0


@bench.command()
@_where
@click.option("--interface", help="Network interface, or subnet, to use.")
@click.option("--bind", type=click.Choice(["core", "none"]), help="Pin ranks to cores.")
@click.option(
    "--sizes", metavar="LIST", help="Sizes, as 4,64k,16M; default: 4 to 256M."
)
@click.option(
    "--algorithms",
    default="ring,mpi,gloo",
    show_default=True,
    metavar="LIST",
    help="What to time.",
)
@click.option("--seconds", default=1.0, show_default=True, help="For each measurement.")
@click.option("--chunk", type=click.IntRange(8), help="Bytes of a message of the ring.")
@click.option("--crossover", type=click.IntRange(0), help="Bytes left to the MPI.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for machines.")
def allreduce(
    interface: str | None,
    bind: str | None,
    as_json: bool,
    ranks: int | None,
    **given: Any,
) -> int:
    """Time the sum over all ranks: ours, the MPI library's, and gloo's."""
    from fastserve.bench.allreduce import parse_algorithms, parse_sizes

    parse_sizes(given["sizes"] or "")  # the ranks would only say it later
    parse_algorithms(given["algorithms"])
    words = ["allreduce", *(["--json"] if as_json else [])]
    for name in ("sizes", "algorithms", "seconds", "chunk", "crossover"):
        value = given.pop(name)
        words += [f"--{name}", str(value)] if value is not None else []
    said = {**_said(**given), "interface": interface, "bind": bind}
    listed = said["hosts"] or said["hostfile"] or slurm.find(os.environ)
    said["ranks"] = ranks or (None if listed else 2)
    return _start_program("fastserve.bench", words, said)


def _start_program(
    module: str,
    words: Sequence[str],
    said: dict[str, Any],
    check: Callable[[int], object] = lambda count: None,
) -> int:
    """Run ``python -m module`` with these words on all ranks; 1 if none are said.

    ``said`` is of the launch section; ``check`` gets the number of ranks, to refuse it
    before they start.
    """
    from fastserve.config.schema import Launch

    _refuse_as_a_rank()
    launch = Launch(
        **{"threads": 1, **{k: v for k, v in said.items() if v is not None}}
    )
    hosts, allocation = start.where(launch)
    check(count_ranks(launch, hosts))
    mpi = _needed_mpi(launch, hosts)
    make = partial(
        plan_program,
        launch,
        [sys.executable, "-m", module, *words],
        hosts=hosts,
        found_mpi=mpi,
        machine=_machine(hosts),
        token=secrets.token_hex(8),
        run_dir=Path.cwd(),
        allocation=slurm.prepare(allocation, launch, mpi),
    )
    return start.run(make(), make, _say)


def _load(
    config: str,
    overrides: Sequence[str],
    host: str | None = None,
    hostfile: str | None = None,
    **where: Any,
) -> Job:
    """Return the checked job, with what the command line says of the launch."""
    from fastserve.config import load_job

    if not Path(config).is_file():
        what = "a folder" if Path(config).is_dir() else "where no file is"
        raise LaunchError(
            "expected the path of a job's YAML file",
            f"{config!r}, {what}",
            "give a file such as configs/quickstart.yaml",
        )
    said = _said(host=host, hostfile=hostfile, **where)
    launch = [f"launch.{k}={json.dumps(v)}" for k, v in said.items() if v is not None]
    if bool(host) != bool(hostfile):  # one of them replaces whatever the job says
        launch.append("launch.hostfile=null" if host else "launch.hosts=null")
    return load_job(config, [*overrides, *launch])


def _said(
    ranks: int | None = None,
    launcher: str | None = None,
    host: str | None = None,
    hostfile: str | None = None,
    include: str | None = None,
    exclude: str | None = None,
    oversubscribe: bool = False,
) -> dict[str, Any]:
    """Return what the command line says of the launch section; None: nothing."""
    return {
        "ranks": ranks,
        "launcher": launcher,
        "hosts": split(host) if host else None,
        "hostfile": hostfile,
        "include": split(include) if include else None,
        "exclude": split(exclude) if exclude else None,
        "oversubscribe": oversubscribe or None,
    }


def _planner(
    job: Job,
    hosts: Sequence[Host],
    arguments: Sequence[str],
    kernel: str | None,
    allocation: Allocation | None,
) -> Callable[..., LaunchPlan]:
    """Return what makes the job's plan, once or again with more known of the hosts."""
    mpi = _needed_mpi(job.launch, hosts)
    return partial(
        make_plan,
        job,
        hosts=hosts,
        found_mpi=mpi,
        machine=_machine(hosts),
        token=secrets.token_hex(8),
        arguments=arguments,
        program=PROGRAM,
        kernel=kernel,
        allocation=slurm.prepare(allocation, job.launch, mpi),
    )


def _prediction(job: Job, plan: LaunchPlan, arguments: Sequence[str]) -> str:
    """Return how long a step will take; the computing of a micro-batch is measured."""
    found = predict.measure(plan, PROGRAM, _without_start(arguments))
    if isinstance(found, str):
        return f"prediction: none, as a step of the job fails here:\n  {found}"
    link = predict.remembered([place.host.name for place in plan.places])
    lines = predict.predict(plan, found, link, job.comm, job.train.steps)
    return "\n  ".join(["prediction:", *lines])


def _machine(hosts: Sequence[Host]) -> Machine:
    terminal = sys.stdout.isatty()
    return Machine(
        cores=tuple(environment.affinity_cores()),
        environ=dict(os.environ),
        cwd=Path.cwd(),
        root=os.geteuid() == 0,
        columns=shutil.get_terminal_size().columns if terminal else None,
        names=frozenset(host.name for host in hosts if is_here(host.name)),
    )


def _needed_mpi(launch: Launch, hosts: Sequence[Host]) -> FoundMPI | None:
    wanted = launch.launcher
    single = count_ranks(launch, hosts) == 1 and not hosts
    if wanted == "local" or (wanted == "auto" and single):
        return None
    return find_mpi("auto" if wanted == "slurm" else wanted)


def _refuse_as_a_rank() -> None:
    """Refuse to start a job in each of the ranks of another launcher."""
    place = environment.expected_ranks()
    if place.size > 1:
        raise LaunchError(
            "expected `fastserve run` as a single process: it starts the ranks itself",
            f"{place.size} copies of it, started by {place.launcher}",
            f"leave that launcher out and add -n {place.size}, or start the ranks "
            "with it: python -m fastserve CONFIG",
        )


def _refuse_to_replace(run_dir: Path) -> None:
    if any(run_dir.glob("checkpoints/step-*")) or any(run_dir.glob("checkpoints/best")):
        raise LaunchError(
            "expected a run folder without checkpoints for a new run",
            str(run_dir),
            "go on with --resume auto, replace it with --overwrite, or take another "
            "name with --set name=NAME",
        )


def _prepare(threads: int | None = None) -> None:
    """Set threads and kernel family of this process, before NumPy is loaded."""
    if threads is not None and environment.user_threads() is None:
        os.environ.update(environment.thread_variables(threads))
    kernel = blas.choose_kernel(_say)
    os.environ.update(environment.kernel_variable(kernel))
    environment.prepare_process()


def _say(line: str) -> None:
    click.echo(line, err=True)


if __name__ == "__main__":
    main()
