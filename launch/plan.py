"""Works out how a job is started: a pure function from the job to its command line."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fastserve import environment
from fastserve.errors import LaunchError

from . import local, mpich, openmpi
from .mpi import FoundMPI

if TYPE_CHECKING:
    from fastserve.config import Job

PROGRAM = (sys.executable, "-m", "fastserve")
_FORWARDED = ("PYTHONPATH", "OPENBLAS_CORETYPE")


@dataclass(frozen=True)
class Host:
    """A host of the job and how many ranks fit on it."""

    name: str
    slots: int


@dataclass(frozen=True)
class Machine:
    """What the plan depends on besides the job: facts of this process and host."""

    cores: tuple[int, ...]
    environ: Mapping[str, str]
    cwd: Path
    root: bool = False
    columns: int | None = None  # of the terminal that shows the output, if it is one


@dataclass(frozen=True)
class Split:
    """How the global batch is divided among the ranks."""

    global_batch: int
    micro_batch: int
    rows: tuple[int, ...]  # of each rank

    @property
    def accumulation(self) -> int:
        """The micro-batches that the fullest rank adds up for one step."""
        return -(-max(self.rows) // self.micro_batch)

    def __str__(self) -> str:
        ranks, least, most = len(self.rows), min(self.rows), max(self.rows)
        start = f"global {self.global_batch} = {ranks} rank{'s' if ranks > 1 else ''}"
        if least * ranks == self.global_batch and most % self.micro_batch == 0:
            return f"{start} x {self.micro_batch} x {self.accumulation} accumulation"
        rows = f"{least}" if least == most else f"{least} to {most}"
        plural = "es" if self.accumulation > 1 else ""
        return (
            f"{start} x {rows} rows in {self.accumulation} micro-batch{plural} "
            f"of up to {self.micro_batch}"
        )


@dataclass(frozen=True)
class LaunchPlan:
    """Everything that is needed to start a job and to judge how it ended.

    ``environment`` holds what is set beyond the launcher's own environment.
    ``rank_cores`` holds each rank's cores; empty if ranks aren't pinned.
    """

    launcher: str
    title: str
    command: tuple[str, ...]
    environment: Mapping[str, str]
    cwd: Path
    run_dir: Path
    token: str
    ranks: int
    threads: int
    split: Split
    rank_cores: tuple[tuple[int, ...], ...] = ()
    notes: tuple[str, ...] = ()
    details: tuple[str, ...] = ()


def make_plan(
    job: Job,
    hosts: Sequence[Host],
    found_mpi: FoundMPI | None,
    machine: Machine,
    token: str,
    arguments: Sequence[str] = (),
    program: Sequence[str] = PROGRAM,
    kernel: str | None = None,
) -> LaunchPlan:
    """Return the plan of a job on this host; nothing is read, started or written.

    ``found_mpi`` is None for a job of a single process. ``arguments`` follow the
    program on every rank, ``kernel`` is the BLAS kernel family to use ('' or None:
    OpenBLAS' own choice).

    Raises LaunchError if the job can't be started so.
    """
    assert len(hosts) == 1, "jobs of one host only"
    ranks = job.launch.ranks
    if found_mpi is None and ranks > 1:
        raise LaunchError(
            "expected one rank for the launcher 'local', which is a single process",
            f"{ranks} ranks",
            "take -n 1, or --launcher auto, openmpi or mpich",
        )
    given = {**machine.environ, **_job_variables(job)}
    threads, note = _threads(job, machine, given)
    rank_cores = _pinning(job, machine, ranks, threads) if found_mpi else ()
    run_dir = run_folder(job, machine.cwd)
    variables = {
        **_job_variables(job),
        **_missing(environment.thread_variables(threads), given),
        **_missing(environment.kernel_variable(kernel), given),
        **_own_variables(machine, run_dir, token, ranks, bool(rank_cores)),
    }
    command, needed, details = _command(
        found_mpi, ranks, [*program, *arguments], variables, machine
    )
    return LaunchPlan(
        launcher=found_mpi.flavour if found_mpi else "local",
        title=found_mpi.version if found_mpi else "one process without MPI",
        command=tuple(command),
        environment={**variables, **needed},
        cwd=machine.cwd,
        run_dir=run_dir,
        token=token,
        ranks=ranks,
        threads=threads,
        split=split_batch(job.train.global_batch, job.train.micro_batch, ranks),
        rank_cores=rank_cores,
        notes=_notes(found_mpi, ranks, hosts[0], threads, note),
        details=details,
    )


def run_folder(job: Job, cwd: Path) -> Path:
    """Return the absolute path of the job's run folder."""
    return cwd / (job.run_dir or Path("runs") / job.name)


def split_batch(global_batch: int, micro_batch: int | None, ranks: int) -> Split:
    """Return each rank's rows of a global batch; the first ranks get the remainder."""
    each, rest = divmod(global_batch, ranks)
    rows = tuple(each + (rank < rest) for rank in range(ranks))
    return Split(global_batch, min(micro_batch or rows[0], rows[0]), rows)


def _threads(
    job: Job, machine: Machine, given: Mapping[str, str]
) -> tuple[int, str | None]:
    """Return the threads of each rank, and what to say about it."""
    chosen = environment.user_threads(given)
    if chosen:
        return chosen[0], f"threads: {chosen[1]} is set"
    if job.launch.threads != "auto":
        return job.launch.threads, None
    cores = len(machine.cores)
    return environment.threads_per_rank(cores, job.launch.ranks), None


def _pinning(
    job: Job, machine: Machine, ranks: int, threads: int
) -> tuple[tuple[int, ...], ...]:
    """Return each rank's cores; empty if unwanted, or if there aren't enough cores."""
    if job.launch.bind != "core" or ranks * threads > len(machine.cores):
        return ()
    cores = list(machine.cores)
    return tuple(
        tuple(environment.core_slice(cores, rank, threads)) for rank in range(ranks)
    )


def _job_variables(job: Job) -> dict[str, str]:
    """Return the variables of the job's ``launch.env``, after a check of their names.

    Raises LaunchError for a name that no environment can hold.
    """
    for name in job.launch.env:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise LaunchError(
                "expected names of environment variables in launch.env",
                repr(name),
                "use letters, digits and _, not beginning with a digit",
            )
    return dict(job.launch.env)


def _missing(wanted: Mapping[str, str], given: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in wanted.items() if not given.get(name)}


def _own_variables(
    machine: Machine, run_dir: Path, token: str, ranks: int, pinned: bool
) -> dict[str, str]:
    """Return what the launcher tells the ranks."""
    variables = {
        "FASTSERVE_JOB": token,
        "FASTSERVE_RUN_DIR": str(run_dir),
        "FASTSERVE_RANKS": str(ranks),
        "FASTSERVE_BIND": "core" if pinned else "none",
        # Ranks print line by line; unbuffered, they would mix within lines.
        "PYTHONUNBUFFERED": "",
    }
    if machine.columns:
        variables["FASTSERVE_TERMINAL"] = str(machine.columns)
    return variables


def _command(
    mpi: FoundMPI | None,
    ranks: int,
    program: Sequence[str],
    variables: Mapping[str, str],
    machine: Machine,
) -> tuple[list[str], dict[str, str], tuple[str, ...]]:
    """Return the command, the variables that its launcher needs, and remarks."""
    if mpi is None:
        return local.command(program), local.environment(), ()
    if mpi.flavour == "mpich":
        return mpich.command(mpi.command, ranks, program), {}, ()
    forward = _forwarded(variables, machine.environ)
    command = openmpi.command(mpi.command, ranks, program, forward)
    needed = openmpi.environment(machine.root)
    details = (f"running as root: {' and '.join(needed)} are set",) if needed else ()
    return command, needed, details


def _forwarded(variables: Mapping[str, str], environ: Mapping[str, str]) -> list[str]:
    """Return the names of the variables that ranks on every host must get."""
    threads = environment.thread_variables(1)
    inherited = {
        name
        for name in environ
        if name in _FORWARDED or name in threads or name.startswith("FASTSERVE_")
    }
    return sorted(inherited | variables.keys())


def _notes(
    mpi: FoundMPI | None, ranks: int, host: Host, threads: int, note: str | None
) -> tuple[str, ...]:
    notes = [mpi.note] if mpi and mpi.note else []
    if note:
        notes.append(note)
    if ranks > host.slots:
        notes.append(
            f"{ranks} ranks share {host.slots} core{'s' if host.slots > 1 else ''} of "
            f"{host.name}: they take turns, so this is slower than {host.slots}"
        )
    elif ranks * threads > host.slots:
        notes.append(
            f"{ranks} ranks with {threads} threads each share {host.slots} cores of "
            f"{host.name}: ranks aren't pinned"
        )
    return tuple(notes)
