"""From what a command line says to a job, its plan, and its ranks."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fastserve import environment
from fastserve.errors import LaunchError

from . import blas, slurm, start
from .hosts import Host, is_here, split
from .mpi import FoundMPI, find_mpi
from .plan import PROGRAM, LaunchPlan, Machine, count_ranks, make_plan, plan_program
from .slurm import Allocation

if TYPE_CHECKING:
    from fastserve.config import Job
    from fastserve.config.schema import Launch


def load(
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
    said = launch_keys(host=host, hostfile=hostfile, **where)
    launch = [f"launch.{k}={json.dumps(v)}" for k, v in said.items() if v is not None]
    if bool(host) != bool(hostfile):  # one of them replaces whatever the job says
        launch.append("launch.hostfile=null" if host else "launch.hosts=null")
    return load_job(config, [*overrides, *launch])


def rank_words(config: str, overrides: Sequence[str]) -> list[str]:
    """Return the words that tell the ranks their job."""
    return [str(Path(config).absolute()), *set_words(overrides)]


def set_words(overrides: Sequence[str]) -> list[str]:
    """Return the words of overrides for the ranks, but not those of ``launch.env``.

    All users of a host may read the words of its processes, and values may be secrets;
    ranks find these in their environment.
    """
    keys = [override.partition("=")[0] for override in overrides]
    if "launch" in keys:
        raise LaunchError(
            "expected --set of single keys of launch, as its env may hold secrets, "
            "and anybody may read the words of a command",
            "--set launch=...",
            "write --set launch.ranks=4 and so on, or put the section into the file",
        )
    kept = [
        override
        for key, override in zip(keys, overrides, strict=True)
        if not f"{key}.".startswith("launch.env.")
    ]
    return [word for override in kept for word in ("--set", override)]


def launch_keys(
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


def planner(
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


def start_program(
    module: str,
    words: Sequence[str],
    said: dict[str, Any],
    check: Callable[[int], object] = lambda count: None,
) -> int:
    """Run ``python -m module`` with these words on all ranks; 1 if none are said.

    ``said`` is of the launch section; ``check`` gets the number of ranks, to refuse it
    before they start.
    """
    refuse_as_a_rank()
    make = program_planner(said, [sys.executable, "-m", module, *words], check)
    return start.run(make(), make, say)


def program_planner(
    said: dict[str, Any],
    program: Sequence[str],
    check: Callable[[int], object] = lambda count: None,
) -> Callable[..., LaunchPlan]:
    """Return what makes the plan of a program, as ``planner`` does for a job."""
    from fastserve.config.schema import Launch

    launch = Launch(
        **{"threads": 1, **{k: v for k, v in said.items() if v is not None}}
    )
    hosts, allocation = start.where(launch)
    check(count_ranks(launch, hosts))
    mpi = _needed_mpi(launch, hosts)
    return partial(
        plan_program,
        launch,
        program,
        hosts=hosts,
        found_mpi=mpi,
        machine=_machine(hosts),
        token=secrets.token_hex(8),
        run_dir=Path.cwd(),
        kernel=blas.choose_kernel(say),
        allocation=slurm.prepare(allocation, launch, mpi),
    )


def without_start(arguments: Sequence[str]) -> list[str]:
    """Return the words for the ranks without those about how a run begins."""
    words = [word for word in arguments if word != "--overwrite"]
    if "--resume" in words:
        place = words.index("--resume")
        words = words[:place] + words[place + 2 :]
    return words


def _machine(hosts: Sequence[Host]) -> Machine:
    terminal = environment.is_terminal(sys.stdout)
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


def refuse_as_a_rank() -> None:
    """Refuse to start a job in each of the ranks of another launcher."""
    place = environment.expected_ranks()
    if place.size > 1:
        raise LaunchError(
            "expected `fastserve run` as a single process: it starts the ranks itself",
            f"{place.size} copies of it, started by {place.launcher}",
            f"leave that launcher out and add -n {place.size}, or start the ranks "
            "with it: python -m fastserve CONFIG",
        )


def prepare_process(threads: int | None = None, kind: str = blas.LARGE) -> None:
    """Set threads and kernel family of this process, before NumPy is loaded.

    ``kind`` is that of the job; see ``launch/blas.py``.
    """
    if threads is not None and environment.user_threads() is None:
        os.environ.update(environment.thread_variables(threads))
    kernel = blas.choose_kernel(say, kind=kind)
    environment.prepare_process(kernel)


def say(line: str) -> None:
    click.echo(line, err=True)
