"""Jobs inside of a Slurm allocation: its hosts, and the commands that use Slurm there.

Slurm starts the ranks, or the daemons of the MPI, as a step of its own job: no ssh is
needed, and whatever is left of them ends with the step.
"""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from fastserve.errors import LaunchError

from . import mpich, openmpi
from .hosts import Host, UnreachableError, is_here, parse_hosts, select, shown
from .mpi import FoundMPI, Network

if TYPE_CHECKING:
    from fastserve.config.schema import Launch

_SECONDS = 10.0  # for an answer of Slurm's controller
_COUNT = re.compile(r"(\d+)(?:\(x(\d+)\))?")
_STEP_OF_ITS_OWN = 1 << 31  # Slurm's numbers for batch scripts and salloc's shells
_MOST_TASKS = 1_000_000
# A rank's place is looked up in these: those of a batch script aren't a rank's.
_OF_A_RANK = ("SLURM_PROCID", "PMI_RANK", "PMIX_RANK")


@dataclass(frozen=True)
class Allocation:
    """What Slurm gave this job: ``hosts`` with a slot for each task.

    ``cpus`` are those of each host, ``cpus_per_task`` is None if nobody said.
    ``starter`` is what starts the ranks: 'mpirun', or the name that srun --mpi takes.
    With ``over_ssh`` the job runs on other hosts than these.
    """

    job: str
    hosts: tuple[Host, ...]
    cpus: tuple[int, ...] = ()
    cpus_per_task: int | None = None
    within_step: bool = False
    starter: str = "mpirun"
    over_ssh: bool = False
    note: str = ""

    @property
    def cores(self) -> dict[str, int]:
        """The cores of each host that are the job's, as far as they are known."""
        names = [host.name for host in self.hosts]
        if self.cpus_per_task:
            each = self.cpus_per_task
            return {host.name: host.slots * each for host in self.hosts}
        return dict(zip(names, self.cpus, strict=True)) if self.cpus else {}


def find(env: Mapping[str, str]) -> Allocation | None:
    """Return the allocation that this process runs in; None if there is none.

    Raises LaunchError if Slurm's variables contradict each other, as within a step.
    """
    job, listed = env.get("SLURM_JOB_ID"), env.get("SLURM_JOB_NODELIST")
    if not job or not listed:
        return None
    names = [host.name for host in parse_hosts(listed)]
    tasks = counts(env.get("SLURM_TASKS_PER_NODE", ""))
    if len(tasks) != len(names):
        raise LaunchError(
            f"expected SLURM_TASKS_PER_NODE to tell the tasks of {len(names)} nodes "
            f"({listed})",
            repr(env.get("SLURM_TASKS_PER_NODE", "")),
            "start it from the batch script or from salloc's shell, not from a step "
            "that srun has started; or name the hosts with -H",
        )
    cpus = counts(env.get("SLURM_JOB_CPUS_PER_NODE", ""))
    step = env.get("SLURM_STEP_ID", "")
    return Allocation(
        job=job,
        hosts=tuple(map(Host, names, tasks)),
        cpus=tuple(cpus) if len(cpus) == len(names) else (),
        cpus_per_task=_positive(env.get("SLURM_CPUS_PER_TASK", "")),
        within_step=step.isdecimal() and int(step) < _STEP_OF_ITS_OWN,
    )


def counts(text: str) -> list[int]:
    """Return the numbers of a list such as ``2(x2),1``; none if it is no such list."""
    found: list[int] = []
    for part in filter(None, text.split(",")):
        match = _COUNT.fullmatch(part.strip())
        if not match or int(match[2] or 1) > _MOST_TASKS:
            return []
        found += [int(match[1])] * int(match[2] or 1)
    return found


def join(
    launch: Launch, listed: Sequence[Host], env: Mapping[str, str]
) -> tuple[list[Host], Allocation | None]:
    """Return the hosts of a job, and the allocation if it runs inside of one.

    ``listed`` are the hosts that the user named, which win; none: all of the
    allocation's. A single rank that may run right here needs neither.

    Raises LaunchError for the launcher slurm where Slurm gave nothing.
    """
    found = None if launch.launcher == "local" else find(env)
    if found is None:
        if launch.launcher == "slurm":
            raise _outside()
        return list(listed), None
    own = {host.name for host in found.hosts}
    others = [host.name for host in listed if host.name not in own]
    if others and launch.launcher == "slurm":
        raise LaunchError(
            f"expected hosts of Slurm's job {found.job}: {shown(sorted(own))}",
            shown(others),
            "leave the list of hosts out, or take --launcher auto to use ssh",
        )
    if others:
        note = f"hosts: those of the list, over ssh, instead of Slurm's job {found.job}"
        return list(listed), replace(found, over_ssh=True, note=note)
    if listed:
        note = f"hosts: those of the list, out of Slurm's job {found.job}"
        return list(listed), replace(found, note=note)
    hosts = select(found.hosts, launch.include, launch.exclude)
    ranks = launch.ranks or sum(host.slots for host in hosts)
    if ranks == 1 and launch.launcher == "auto" and is_here(hosts[0].name):
        return [], None
    return hosts, found


def prepare(
    allocation: Allocation | None, launch: Launch, mpi: FoundMPI | None
) -> Allocation | None:
    """Return the allocation with what starts the ranks of this MPI in it.

    Raises LaunchError as :func:`choose_starter` does.
    """
    if allocation is None or allocation.over_ssh or mpi is None:
        return allocation
    wanted = launch.slurm.mpi
    types = [] if wanted in ("auto", "mpirun") else mpi_types()
    return replace(allocation, starter=choose_starter(wanted, mpi, types))


def choose_starter(wanted: str, mpi: FoundMPI, types: Iterable[str]) -> str:
    """Return what starts the ranks; ``types`` are those that srun --mpi knows.

    Raises LaunchError for a choice that this MPI or this Slurm doesn't have.
    """
    known = set(types)
    if wanted in ("auto", "mpirun"):
        # srun's PMI-2 cuts lines at 1,024 bytes, which MPICH's addresses may exceed
        return "mpirun"
    fits = {"pmi2": "Open MPI 5" not in mpi.version, "pmix": "MPICH" not in mpi.version}
    if not fits[wanted]:
        raise LaunchError(
            f"expected an MPI that srun --mpi={wanted} can start, for launch.slurm.mpi",
            mpi.version,
            f"take {'pmix' if wanted == 'pmi2' else 'pmi2'}, mpirun or auto",
        )
    if wanted not in known:
        raise LaunchError(
            f"expected {wanted} among the types of srun --mpi, for launch.slurm.mpi",
            ", ".join(sorted(known)) or "none",
            "take mpirun or auto",
        )
    return wanted


def mpi_types() -> list[str]:
    """Return what ``srun --mpi=list`` lists; nothing if there is no srun."""
    said = _ask("srun", "--mpi=list")
    lines = said.splitlines() if said else []
    return [word for line in lines if len(line.split()) == 1 for word in line.split()]


def step_name(token: str) -> str:
    """Return the name of the step that Slurm starts for a job of ours."""
    return f"fastserve-{token}"


def network(
    allocation: Allocation,
    hosts: Sequence[tuple[str, int]],
    interface: str | None,
    step: str,
) -> Network:
    """Return what an MPI is told of the hosts, when it uses srun instead of ssh."""
    return Network(tuple(hosts), tuple(_step_words(allocation, step)), interface)


def command(
    allocation: Allocation,
    mpi: FoundMPI,
    net: Network,
    ranks: int,
    program: Sequence[str],
    forward: Iterable[str],
) -> list[str]:
    """Return the command that starts ``ranks`` copies of ``program``."""
    if allocation.starter != "mpirun":
        return [*_srun(allocation, net, ranks), *program]
    if mpi.flavour == "mpich":
        return mpich.command(mpi.command, ranks, program, net)
    words = openmpi.command(mpi, ranks, [], forward, net)
    # The arguments of ssh are those of srun here.
    renamed = {"plm_ssh_args": "plm_slurm_args", "plm_rsh_args": "plm_slurm_args"}
    return [*(renamed.get(word, word) for word in words), *program]


def environment(
    allocation: Allocation, mpi: FoundMPI, net: Network, given: Mapping[str, str]
) -> dict[str, str]:
    """Return the variables that srun and the MPI need.

    Raises LaunchError for a network that MPICH can't be told here.
    """
    if mpi.flavour == "mpich" and "/" in (net.interface or ""):
        raise LaunchError(
            "expected the name of a network interface for MPICH, as launch.interface",
            str(net.interface),
            "take its name, such as eth0 (ip addr tells)",
        )
    # A site, or sbatch --export, may have told srun to pass nothing on.
    needed = {"SLURM_EXPORT_ENV": "ALL"}
    needed.update({name: "" for name in _OF_A_RANK if given.get(name)})
    if mpi.flavour == "mpich":
        needed.update(mpich.environment(net))
        if allocation.starter == "mpirun":
            needed["HYDRA_LAUNCHER"] = "slurm"
        else:
            del needed["HYDRA_LAUNCHER_EXTRA_ARGS"]
    elif allocation.starter != "mpirun":
        needed.update(_without_mpirun(net))
    return needed


def leave(mpi: FoundMPI, words: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Return a command, and variables for it, that uses ssh inside of an allocation."""
    if mpi.flavour == "mpich":
        return list(words), {"HYDRA_LAUNCHER": "ssh", "HYDRA_RMK": "user"}
    old = mpi.version.startswith("Open MPI 4.")
    option, starter = ("--mca", "rsh") if old else ("--prtemca", "ssh")
    away = [option, "plm", starter, option, "ras", "^slurm"]
    return [words[0], *away, *words[1:]], {}


def check_nodes(allocation: Allocation, names: Sequence[str]) -> None:
    """Start nothing on each node; raises UnreachableError for those that can't.

    Slurm itself may take minutes to find that a node is down.
    """
    words = ["srun", "--overlap", "--nodes=1", "--ntasks=1", "--export=ALL"]
    asked = {
        name: subprocess.Popen(
            [*words, f"--jobid={allocation.job}", f"--nodelist={name}", "true"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for us
        )
        for name in names
    }
    limit = time.monotonic() + _SECONDS
    missing = []
    for name, process in asked.items():
        try:
            if process.wait(max(0.0, limit - time.monotonic())):
                missing.append(name)
        except subprocess.TimeoutExpired:
            missing.append(name)
        finally:
            process.kill()
            process.wait()
    if missing:
        raise UnreachableError(
            missing,
            f"expected all nodes of Slurm's job {allocation.job} to be up",
            f"srun starts nothing on {shown(missing)}",
            "see sinfo",
        )


def end_step(job: str, step: str) -> bool:
    """Kill all processes of a job's step on its hosts; return whether Slurm answered.

    A srun that was killed leaves them running, and so may an mpirun.
    """
    listed = _ask("squeue", "--noheader", "--steps", f"--jobs={job}", "--format=%i %j")
    if listed is None:
        return False
    for line in listed.splitlines():
        number, _, name = line.strip().partition(" ")
        if name.strip() == step and _ask("scancel", "--signal=KILL", number) is None:
            return False
    return True


def _srun(allocation: Allocation, net: Network, ranks: int) -> list[str]:
    words = [
        "srun",
        f"--mpi={allocation.starter}",
        *net.ssh,
        "--kill-on-bad-exit=1",
        "--export=ALL",
        f"--nodes={len(net.hosts)}",
        f"--ntasks={ranks}",
    ]
    if allocation.cpus_per_task:
        words.append(f"--cpus-per-task={allocation.cpus_per_task}")
    slots = {host.name: host.slots for host in allocation.hosts}
    if any(count > slots.get(name, 0) for name, count in net.hosts):
        words.append("--overcommit")
    if dict(net.hosts) != slots:  # else Slurm places them just so by itself
        names = [name for name, count in net.hosts for _ in range(count)]
        words += ["--distribution=arbitrary", f"--nodelist={','.join(names)}"]
    return words


def _step_words(allocation: Allocation, step: str) -> list[str]:
    """Return arguments of any srun of ours; ranks pin themselves."""
    words = [f"--job-name={step}", "--cpu-bind=none"]
    if allocation.within_step:  # it holds all of the nodes, and this one would wait
        words.append("--overlap")
    return words


def _without_mpirun(net: Network) -> dict[str, str]:
    """Return what mpirun would have told the ranks of Open MPI."""
    told = {"PMIX_MCA_gds": "hash", "PMIX_MCA_psec": "native"}
    if net.interface:
        told["OMPI_MCA_btl_tcp_if_include"] = net.interface
    if len(net.hosts) > 1:
        told["OMPI_MCA_btl_tcp_links"] = "2"
        told["OMPI_MCA_btl_tcp_max_send_size"] = "1048576"
    return told


def _positive(text: str) -> int | None:
    return int(text) if text.isdecimal() and int(text) > 0 else None


def _outside() -> LaunchError:
    return LaunchError(
        "expected to be inside of a Slurm allocation for the launcher slurm",
        "no SLURM_JOB_ID",
        "submit the job with fastserve submit CONFIG, or get nodes with salloc first",
    )


def _ask(*words: str) -> str | None:
    """Return what one of Slurm's commands says; None if it fails."""
    try:
        done = subprocess.run(
            words,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_SECONDS,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return (
        done.stdout + (done.stderr if "list" in words[-1] else "")
        if done.returncode == 0
        else None
    )
