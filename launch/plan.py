"""Works out how a job is started: a pure function from the job to its command line."""

from __future__ import annotations

import itertools
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from fastserve import environment
from fastserve.config.run_folders import run_folder
from fastserve.errors import LaunchError

from . import local, mpich, openmpi, slurm
from .hosts import Host, place, shown
from .mpi import FoundMPI, Network
from .slurm import Allocation

if TYPE_CHECKING:
    from fastserve.config import Job
    from fastserve.config.schema import Launch

PROGRAM = (sys.executable, "-m", "fastserve")
THIS_HOST = "this host"
_FORWARDED = ("PYTHONPATH", "OPENBLAS_CORETYPE")
# What the MPIs write into the command for a remote shell, within double quotes at best.
_MPI_VARIABLE = re.compile(r"(PRTE|PMIX|OMPI|ORTE|OPAL|HYDRA|MPIEXEC)_")
_SHELL_TEXT = re.compile(r"[^\w./:=@%+,~^ -]")


@dataclass(frozen=True)
class Machine:
    """What the plan depends on besides the job: facts of this process and host.

    ``names`` are those that this machine has among the hosts of the job.
    """

    cores: tuple[int, ...]
    environ: Mapping[str, str]
    cwd: Path
    root: bool = False
    columns: int | None = None  # of the terminal that shows the output, if it is one
    names: frozenset[str] = frozenset()


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
class Place:
    """A host's part of a job: ``ranks`` ranks from number ``first`` on.

    Of ``threads``, None leaves the number to each rank, which counts its host's cores.
    """

    host: Host
    ranks: int
    first: int
    here: bool
    threads: int | None
    pinned: bool


@dataclass(frozen=True)
class LaunchPlan:
    """Everything that is needed to start a job and to judge how it ended.

    ``environment`` holds what is set beyond the launcher's own environment.
    ``places`` are the hosts that get ranks. ``cores`` are this host's. ``split`` is
    None for a program that trains nothing. ``allocation`` is the number of the Slurm
    job that the ranks are a step of; None outside of Slurm. ``hidden`` are the names of
    variables whose values may be secrets.
    """

    launcher: str
    title: str
    command: tuple[str, ...]
    environment: Mapping[str, str]
    cwd: Path
    run_dir: Path
    token: str
    ranks: int
    places: tuple[Place, ...]
    cores: tuple[int, ...]
    split: Split | None = None
    ssh: tuple[str, ...] = ()
    python: str = sys.executable
    interface: str | None = None
    start_timeout: float = 30.0
    allocation: str | None = None
    notes: tuple[str, ...] = ()
    details: tuple[str, ...] = ()
    hidden: frozenset[str] = frozenset()

    @property
    def remote(self) -> bool:
        """Whether ranks run on other hosts than this one."""
        return any(not place.here for place in self.places)

    @property
    def threads(self) -> int | None:
        """The threads of each rank; None if that isn't the same on all hosts."""
        return _common(self.places)

    def place_of(self, rank: int) -> Place:
        """Return the place of a rank."""
        return next(p for p in reversed(self.places) if p.first <= rank)

    def cores_of(self, rank: int) -> tuple[int, ...]:
        """Return the cores of a rank; none if it isn't pinned, or on another host."""
        place = self.place_of(rank)
        if not place.pinned or not place.here or place.threads is None:
            return ()
        local = rank - place.first
        return tuple(environment.core_slice(list(self.cores), local, place.threads))


def make_plan(
    job: Job,
    hosts: Sequence[Host],
    found_mpi: FoundMPI | None,
    machine: Machine,
    token: str,
    arguments: Sequence[str] = (),
    program: Sequence[str] = PROGRAM,
    kernel: str | None = None,
    cores: Mapping[str, int] | None = None,
    interface: str | None = None,
    allocation: Allocation | None = None,
    avoid: Sequence[str] = (),
) -> LaunchPlan:
    """Return the plan of a training job; see :func:`plan_program`.

    ``arguments`` follow the program on every rank.
    """
    train = job.train
    ranks = count_ranks(job.launch, hosts)
    plan = plan_program(
        job.launch,
        [*program, *arguments],
        hosts,
        found_mpi,
        machine,
        token,
        run_folder(job, machine.cwd),
        kernel,
        cores,
        interface,
        allocation,
        avoid,
    )
    if job.shard_rows is not None:
        split = split_shards(train.global_batch, job.shard_rows, ranks)
    else:
        split = split_batch(train.global_batch, train.micro_batch, ranks)
    return replace(plan, split=split)


def plan_program(
    launch: Launch,
    program: Sequence[str],
    hosts: Sequence[Host],
    found_mpi: FoundMPI | None,
    machine: Machine,
    token: str,
    run_dir: Path,
    kernel: str | None = None,
    cores: Mapping[str, int] | None = None,
    interface: str | None = None,
    allocation: Allocation | None = None,
    avoid: Sequence[str] = (),
) -> LaunchPlan:
    """Return how a program is started on all ranks; nothing is read or started.

    ``hosts`` is empty for this host alone, ``found_mpi`` is None for a single process
    without MPI. ``cores`` tells how many cores other hosts have, as far as it is known.
    ``kernel`` is the BLAS kernel family to use ('' or None: OpenBLAS' own choice).
    ``interface`` replaces that of the launch section, for an MPI that takes no subnet;
    ``avoid`` are subnets that don't lead to other hosts.
    ``allocation`` is that of Slurm, which then starts the ranks on these hosts.

    Raises LaunchError if the program can't be started so.
    """
    ranks = count_ranks(launch, hosts)
    if found_mpi is None and (ranks > 1 or hosts):
        raise LaunchError(
            "expected one rank for the launcher 'local', which is a single process",
            f"{ranks} rank{'s' if ranks > 1 else ''}"
            + (" on a list of hosts" if hosts else ""),
            "take -n 1, or --launcher auto, openmpi or mpich",
        )
    inside = allocation if allocation and not allocation.over_ssh else None
    if inside:  # Slurm starts the ranks on this host as on the others
        machine, cores = replace(machine, names=frozenset()), inside.cores
    given = {**machine.environ, **_launch_variables(launch)}
    chosen = environment.user_threads(given)
    places = _places(launch, hosts, ranks, machine, cores or {}, chosen, found_mpi)
    threads = _common(places)
    net: Network | None
    if inside:
        listed = [(part.host.name, part.ranks) for part in places]
        net = slurm.network(inside, listed, launch.interface, slurm.step_name(token))
    else:
        net = _network(launch, places, interface, avoid)
        if net and found_mpi:
            _refuse_shell_text(launch, found_mpi)
    variables = {
        **_launch_variables(launch),
        **_missing(environment.thread_variables(threads) if threads else {}, given),
        **_missing(environment.kernel_variable(kernel), given),
        **_own_variables(machine, run_dir, token, ranks, any(p.pinned for p in places)),
    }
    python = launch.python or program[0]
    command, needed, details = _command(
        found_mpi, net, ranks, [python, *program[1:]], variables, machine, allocation
    )
    return LaunchPlan(
        launcher=_launcher(found_mpi, inside),
        title=_title(found_mpi, inside),
        command=tuple(command),
        environment={**variables, **needed},
        cwd=machine.cwd,
        run_dir=run_dir,
        token=token,
        ranks=ranks,
        places=places,
        cores=machine.cores,
        ssh=tuple(launch.ssh),
        python=python,
        interface=launch.interface,
        start_timeout=launch.start_timeout,
        allocation=inside.job if inside else None,
        notes=(
            *([allocation.note] if allocation and allocation.note else []),
            *_idle(hosts, places, ranks),
            *_notes(found_mpi, places, machine, cores or {}, chosen),
        ),
        details=details,
        hidden=frozenset(launch.env),
    )


def count_ranks(launch: Launch, hosts: Sequence[Host]) -> int:
    """Return the number of ranks: what was asked for, else every slot, else one."""
    return launch.ranks or sum(host.slots for host in hosts) or 1


def split_batch(global_batch: int, micro_batch: int | None, ranks: int) -> Split:
    """Return each rank's rows of a global batch; the first ranks get the remainder."""
    each, rest = divmod(global_batch, ranks)
    rows = tuple(each + (rank < rest) for rank in range(ranks))
    return Split(global_batch, min(micro_batch or rows[0], rows[0]), rows)


def split_shards(global_batch: int, shard: int, ranks: int) -> Split:
    """As ``split_batch`` where each rank has whole shards, of ``shard`` rows."""
    shards = split_batch(-(-global_batch // shard), None, ranks).rows
    ends = [min(global_batch, shard * end) for end in itertools.accumulate(shards)]
    rows = tuple(b - a for a, b in itertools.pairwise([0, *ends]))
    return Split(global_batch, shard, rows)


def _launcher(mpi: FoundMPI | None, inside: Allocation | None) -> str:
    """Return who tells how a job ended: the MPI's flavour, 'slurm' or 'local'."""
    if mpi is None:
        return "local"
    return "slurm" if inside and inside.starter != "mpirun" else mpi.flavour


def _title(mpi: FoundMPI | None, inside: Allocation | None) -> str:
    if mpi is None:
        return "one process without MPI"
    if inside is None:
        return mpi.version
    how = mpi.command.name if inside.starter == "mpirun" else "srun"
    return f"{mpi.version} by {how} in Slurm's job {inside.job}"


def _places(
    launch: Launch,
    hosts: Sequence[Host],
    ranks: int,
    machine: Machine,
    cores: Mapping[str, int],
    chosen: tuple[int, str] | None,
    mpi: FoundMPI | None,
) -> tuple[Place, ...]:
    """Return the hosts that get ranks, and what each rank gets there."""
    alone = [Host(THIS_HOST, ranks)]
    counts = place(hosts, ranks, launch.oversubscribe) if hosts else (ranks,)
    first, found = 0, []
    for host, count in zip(hosts or alone, counts, strict=True):
        here = not hosts or host.name in machine.names
        known = len(machine.cores) if here else cores.get(host.name)
        threads = _threads(launch, chosen, known, count) if count else None
        enough = known is None or count * (threads or 1) <= known
        pinned = mpi is not None and launch.bind == "core" and enough
        found.append(Place(host, count, first, here, threads, pinned))
        first += count
    return tuple(part for part in found if part.ranks)


def _threads(
    launch: Launch, chosen: tuple[int, str] | None, cores: int | None, ranks: int
) -> int | None:
    """Return the threads of each of a host's ranks; None if its cores aren't known."""
    if chosen:
        return chosen[0]
    if launch.threads != "auto":
        return launch.threads
    return environment.threads_per_rank(cores, ranks) if cores else None


def _common(places: Sequence[Place]) -> int | None:
    counts = {part.threads for part in places}
    return counts.pop() if len(counts) == 1 else None


def _network(
    launch: Launch,
    places: Sequence[Place],
    interface: str | None,
    avoid: Sequence[str],
) -> Network | None:
    """Return what the MPI must know to reach other hosts; None if there are none.

    Raises LaunchError for what neither MPI can be told.
    """
    others = [part.host for part in places if not part.here]
    if not others:
        return None
    addresses = [part.host.name for part in places if ":" in part.host.name]
    if addresses:
        raise LaunchError(
            "expected hosts by their names or IPv4 addresses, as the MPIs do",
            shown(addresses),
            "give the host a name in /etc/hosts or in ~/.ssh/config",
        )
    logins = {(host.user, host.port) for host in others}
    if len(logins) > 1:
        raise LaunchError(
            "expected the same user and port of ssh for all other hosts",
            shown([_login(host) for host in others]),
            "put them into ~/.ssh/config, as User and Port of each Host",
        )
    user, port = logins.pop()
    login = [*(["-l", user] if user else []), *(["-p", str(port)] if port else [])]
    # Of an option that is given twice, ssh takes the first: the user's own.
    ssh = [*launch.ssh, *login, "-o", "BatchMode=yes", "-o", "ConnectTimeout=10"]
    listed = tuple((part.host.name, part.ranks) for part in places)
    return Network(listed, tuple(ssh), interface or launch.interface, tuple(avoid))


def _refuse_shell_text(launch: Launch, mpi: FoundMPI) -> None:
    """Raise LaunchError for what the MPI would let a remote shell run or take apart."""
    path = str(mpi.command)
    if _SHELL_TEXT.search(path) or " " in path:
        raise LaunchError(
            "expected a path of the MPI without blanks and signs that a shell knows, "
            "for other hosts",
            repr(path),
            "put the environment into a folder of letters, digits, '.', '_' and '-'",
        )
    for name, value in launch.env.items():
        if _MPI_VARIABLE.match(name) and _SHELL_TEXT.search(value):
            raise LaunchError(
                "expected no signs that a shell knows in a variable of the MPI, for "
                "other hosts",
                f"launch.env.{name}",
                "write it into the MPI's own file of parameters on the hosts",
            )


def _login(host: Host) -> str:
    port = f" port {host.port}" if host.port else ""
    return f"{f'{host.user}@' if host.user else ''}{host.name}{port}"


def _launch_variables(launch: Launch) -> dict[str, str]:
    """Return the variables of ``launch.env``, after a check of their names.

    Raises LaunchError for a name that no environment can hold.
    """
    for name in launch.env:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise LaunchError(
                "expected names of environment variables in launch.env",
                repr(name),
                "use letters, digits and _, not beginning with a digit",
            )
    return dict(launch.env)


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
    net: Network | None,
    ranks: int,
    program: Sequence[str],
    variables: Mapping[str, str],
    machine: Machine,
    allocation: Allocation | None = None,
) -> tuple[list[str], dict[str, str], tuple[str, ...]]:
    """Return the command, the variables that its launcher needs, and remarks."""
    if mpi is None:
        return local.command(program), local.environment(), ()
    forward = _forwarded(variables, machine.environ)
    rooted = openmpi.environment(machine.root) if mpi.flavour == "openmpi" else {}
    details = (f"running as root: {' and '.join(rooted)} are set",) if rooted else ()
    if allocation and not allocation.over_ssh and net:
        command = slurm.command(allocation, mpi, net, ranks, program, forward)
        needed = slurm.environment(allocation, mpi, net, machine.environ)
    elif mpi.flavour == "mpich":
        command = mpich.command(mpi.command, ranks, program, net)
        needed = mpich.environment(net)
    else:
        command = openmpi.command(mpi, ranks, program, forward, net)
        needed = {}
    if allocation and allocation.over_ssh:
        command, away = slurm.leave(mpi, command)
        needed = {**needed, **away}
    return command, {**needed, **rooted}, details


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
    mpi: FoundMPI | None,
    places: Sequence[Place],
    machine: Machine,
    cores: Mapping[str, int],
    chosen: tuple[int, str] | None,
) -> tuple[str, ...]:
    notes = [mpi.note] if mpi and mpi.note else []
    if chosen:
        notes.append(f"threads: {chosen[1]} is set")
    crowded = []
    for part in places:
        known = len(machine.cores) if part.here else cores.get(part.host.name)
        if known is not None and (note := _crowd(part, known)):
            crowded.append(note)
    if len(crowded) > 1:
        crowded = [f"{crowded[0]} (and so on {len(crowded) - 1} more hosts)"]
    return (*notes, *crowded)


def _idle(hosts: Sequence[Host], places: Sequence[Place], ranks: int) -> list[str]:
    """Say which of the hosts that were asked for take no part."""
    used = {part.host.name for part in places}
    left = [host.name for host in hosts if host.name not in used]
    if not left:
        return []
    slots = sum(host.slots for host in hosts)
    several = f"{ranks} rank{'s' if ranks > 1 else ''}"
    return [f"no rank on {shown(left)}: the job has {several}; -n {slots} fills all"]


def _crowd(part: Place, cores: int) -> str:
    """Return what to say of a host with more threads than cores; '' if it has none."""
    of = f"{cores} core{'s' if cores > 1 else ''} of {part.host.name}"
    if part.ranks > cores:
        return (
            f"{part.ranks} ranks share {of}: they take turns, so this is slower than "
            f"{cores}"
        )
    if part.ranks * (part.threads or 1) > cores:
        return (
            f"{part.ranks} ranks with {part.threads} threads each share {of}: ranks "
            "aren't pinned"
        )
    return ""
