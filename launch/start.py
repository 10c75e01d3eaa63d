"""From a plan to a running job: on this host, or on several once they fit together."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from fastserve.errors import LaunchError

from . import cluster, plan_text, slurm
from .hosts import Host, parse_hosts, read_hostfile, select
from .plan import LaunchPlan
from .process import Cluster, run_plan
from .restart import Loss
from .screen import Screen
from .slurm import Allocation

if TYPE_CHECKING:
    from fastserve.config.schema import Launch

_HERE = "localhost"


def hosts_of(launch: Launch) -> list[Host]:
    """Return the hosts of a launch section; none if it lists none.

    Raises LaunchError for faults in the list or in the host file.
    """
    if launch.hosts is not None:
        hosts = parse_hosts(",".join(launch.hosts))
    elif launch.hostfile is not None:
        hosts = read_hostfile(launch.hostfile)
    else:
        return []
    return select(hosts, launch.include, launch.exclude)


def where(launch: Launch) -> tuple[list[Host], Allocation | None]:
    """Return the hosts that the job may use, and the Slurm allocation it is in, if any.

    Raises LaunchError for faults in what lists the hosts.
    """
    return slurm.join(launch, hosts_of(launch), os.environ)


def run(
    plan: LaunchPlan,
    make: Callable[..., LaunchPlan],
    say: Callable[[str], None],
    loss: Loss | None = None,
) -> int:
    """Run a plan and return the job's exit status; ``say`` shows a line of ours.

    For other hosts the plan is a draft: ``make`` makes it again with what the hosts
    tell of themselves.

    Raises LaunchError if the hosts can't run the job together.
    """
    if plan.allocation or not plan.remote:  # Slurm looks after the hosts of its jobs
        _announce(plan, say)
        return run_plan(plan, say, loss=loss)
    from .remote import Agents

    # mpirun runs here, so this host has to fit even if it gets no ranks.
    extra = [] if any(part.here for part in plan.places) else [Host(_HERE)]
    hosts = [*(part.host for part in plan.places), *extra]
    agents = Agents(
        hosts,
        ssh=plan.ssh,
        python=plan.python,
        cwd=plan.cwd,
        env=agent_variables(plan),
    )
    with agents:
        asked = time.time()
        facts = agents.ask("facts")
        skews = cluster.clock_skews(facts, asked)
        cluster.check_hosts(agents, facts, hosts, plan.interface, plan.cwd)
        blind = _blind_hosts(agents, plan) if plan.split else ()
        name = None
        if plan.launcher == "mpich":
            name = cluster.interface_name(facts, plan.interface)
        avoid = cluster.dead_ends(facts)
        plan = make(cores=_cores(facts), interface=name, avoid=avoid)
        _announce(plan, say)
        return run_plan(plan, say, Cluster(agents, skews, blind), loss)


def _announce(plan: LaunchPlan, say: Callable[[str], None]) -> None:
    note = say.note if isinstance(say, Screen) else say
    for line in (*plan.notes, plan_text.summary(plan)):
        note(line)


def _cores(facts: Mapping[str, Mapping[str, Any]]) -> dict[str, int]:
    return {name: int(known["cores"]) for name, known in facts.items()}


def agent_variables(plan: LaunchPlan) -> dict[str, str]:
    """Return what an agent needs to find the same modules and kernels as the ranks."""
    given = {**os.environ, **plan.environment}
    names = ("PYTHONPATH", "OPENBLAS_CORETYPE")
    return {name: given[name] for name in names if given.get(name)}


def _blind_hosts(agents: cluster.Asks, plan: LaunchPlan) -> tuple[str, ...]:
    """Return the hosts that don't see the run folder of this one.

    Raises LaunchError if rank 0 is on one: its record of completion would not be seen.
    """
    probe = plan.run_dir / f".shared-{plan.token}"
    try:
        plan.run_dir.mkdir(parents=True, exist_ok=True)
        probe.write_text(plan.token, "utf-8")
    except OSError as error:
        raise LaunchError(
            "expected a run folder that can be written to",
            f"{plan.run_dir}: {error.strerror}",
            "choose another folder with --set run_dir=FOLDER",
        ) from error
    try:
        answers = agents.ask("hash", files=[str(probe)])
    finally:
        probe.unlink(missing_ok=True)
    blind = tuple(n for n, found in answers.items() if not found.get(str(probe)))
    if plan.places[0].host.name in blind:
        raise LaunchError(
            "expected a run folder that all hosts share, to see there how the job ends",
            f"{plan.run_dir} isn't shared with {', '.join(blind)}",
            "choose a shared folder with --set run_dir=FOLDER",
        )
    return blind
