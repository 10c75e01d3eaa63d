"""``fastserve bench``: measure this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import click

from .. import jobs, slurm
from . import options


@click.group()
def bench() -> None:
    """Measure this machine.

    \b
    Examples:
      fastserve bench step
      fastserve bench layers
      fastserve bench allreduce -H node1:4,node2:4
    """


@bench.command()
@options.where
@click.option(
    "--shape",
    default="medium",
    type=click.Choice(["small", "medium", "gpt2"]),
    show_default=True,
    help=options.SHAPES,
)
@click.option(
    "--batch",
    type=click.IntRange(1),
    help="Samples over all ranks; default: 12, 16 or 2 by shape.",
)
@options.repeats
@options.threads
@options.as_json
def step(
    shape: str,
    batch: int | None,
    repeats: int,
    threads: int,
    as_json: bool,
    ranks: int | None,
    **given: Any,
) -> int:
    """Time a training step of a GPT, beside PyTorch's if it is there.

    \b
    Examples:
      fastserve bench step
      fastserve bench step --shape gpt2 --threads 2
      fastserve bench step -n 2 --shape small --json
    """
    said = jobs.launch_keys(**given)
    if (ranks or 1) == 1 and not said["hosts"] and not said["hostfile"]:
        jobs.prepare_process(threads)
        from fastserve.bench.step import step as measure

        measure(shape, json=as_json, repeats=repeats, batch=batch)
        return 0
    words = ["step", "--shape", shape, "--repeats", str(repeats)]
    words += ["--batch", str(batch)] if batch else []
    words += ["--json"] if as_json else []
    from fastserve.bench.ranks import share_of
    from fastserve.bench.step import BATCHES

    return jobs.start_program(
        "fastserve.bench",
        words,
        {**said, "threads": threads, "ranks": ranks},
        check=lambda count: share_of(batch or BATCHES[shape], count),
    )


@bench.command("layers")
@click.option(
    "--only", multiple=True, metavar="NAME", help="A case; may be given several times."
)
@options.repeats
@options.as_json
def bench_layers(only: tuple[str, ...], repeats: int, as_json: bool) -> int:
    """Time layers and small networks on one core, beside PyTorch's.

    Each has the kernel family that a job of its kind would have, so there is a process
    for each kind.

    \b
    Examples:
      fastserve bench layers
      fastserve bench layers --only cnn --repeats 20
    """
    from fastserve.bench.kinds import by_kind

    groups = by_kind(only)
    if len(groups) > 1:
        return _layers_of_kinds(groups, repeats, as_json)
    [(kind, names)] = groups.items()
    jobs.prepare_process(1, kind)
    from fastserve.bench.layers import layers as measure

    measure(names, repeats, as_json)
    return 0


def _layers_of_kinds(groups: dict[str, list[str]], repeats: int, as_json: bool) -> int:
    """Run this command once for each kind; of JSON print all kinds together."""
    result: dict[str, Any] = {}
    for names in groups.values():
        words = [word for name in names for word in ("--only", name)]
        words += ["--repeats", str(repeats), *(["--json"] if as_json else [])]
        command = [sys.executable, "-m", "launch.cli", "bench", "layers", *words]
        out = subprocess.PIPE if as_json else None
        done = subprocess.run(command, stdout=out, text=True, check=False)
        if done.returncode:
            return done.returncode
        if as_json:
            found = json.loads(done.stdout)
            result = {**found, "cases": {**result.get("cases", {}), **found["cases"]}}
    if as_json:
        click.echo(json.dumps(result))
    return 0


@bench.command("generate")
@click.option(
    "--shape",
    type=click.Choice(["small", "medium", "gpt2"]),
    default="medium",
    show_default=True,
    help=options.SHAPES,
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
@options.as_json
@options.repeats
@options.threads
def bench_generate(
    shape: str,
    variant: str,
    tokens: int | None,
    as_json: bool,
    repeats: int,
    threads: int,
) -> int:
    """Time generation with a GPT, beside PyTorch's if it is there.

    \b
    Examples:
      fastserve bench generate
      fastserve bench generate --shape small --variant llama --tokens 100
    """
    jobs.prepare_process(threads)
    from fastserve.bench.generate import generate as measure

    measure(shape, variant, tokens, repeats, threads, as_json)
    return 0


@bench.command()
@click.option(
    "--shape",
    type=click.Choice(["small", "medium", "gpt2"]),
    default="medium",
    show_default=True,
    help=f"{options.SHAPES} gpt2 needs about 5 GiB of memory.",
)
@click.option(
    "--batch", type=click.IntRange(1), help="Samples; default: 12, 16 or 2 by shape."
)
@options.threads
@options.as_json
def memory(shape: str, batch: int | None, threads: int, as_json: bool) -> int:
    """Show the peak memory of training a GPT, beside PyTorch's.

    \b
    Examples:
      fastserve bench memory --shape small
    """
    jobs.prepare_process(threads)
    from fastserve.bench.memory import memory as measure

    measure(shape, batch, as_json)
    return 0


@bench.command()
@options.where
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
@options.as_json
def allreduce(
    interface: str | None,
    bind: str | None,
    as_json: bool,
    ranks: int | None,
    **given: Any,
) -> int:
    """Time the sum over all ranks: ours, the MPI's, and gloo's.

    \b
    Examples:
      fastserve bench allreduce -n 2
      fastserve bench allreduce -H node1:1,node2:1 --sizes 1M,64M --interface eth1
    """
    from fastserve.bench.allreduce import parse_algorithms, parse_sizes

    parse_sizes(given["sizes"] or "")  # the ranks would only say it later
    parse_algorithms(given["algorithms"])
    words = ["allreduce", *(["--json"] if as_json else [])]
    for name in ("sizes", "algorithms", "seconds", "chunk", "crossover"):
        value = given.pop(name)
        words += [f"--{name}", str(value)] if value is not None else []
    said = {**jobs.launch_keys(**given), "interface": interface, "bind": bind}
    listed = said["hosts"] or said["hostfile"] or slurm.find(os.environ)
    said["ranks"] = ranks or (None if listed else 2)
    return jobs.start_program("fastserve.bench", words, said)
