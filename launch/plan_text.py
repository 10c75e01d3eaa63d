"""Says in words what a plan will do."""

from __future__ import annotations

import shlex

from .plan import LaunchPlan

_SHOWN = 8  # hosts that one line names


def summary(plan: LaunchPlan) -> str:
    """Return the one line that is shown when a job starts."""
    ranks = f"{plan.ranks} rank{'s' if plan.ranks > 1 else ''}"
    pinned = ", pinned to cores" if all(p.pinned for p in plan.places) else ""
    where = f"{_hosts(plan)}, {plan.title}, " if plan.remote else f" ({plan.title}), "
    return f"{ranks}{where}{_each(plan)}{pinned}"


def overview(plan: LaunchPlan) -> str:
    """Return the plan without its command: ranks, split, threads, folder, notes."""
    threads = f"{plan.threads} per rank" if plan.threads else _each(plan)
    rows = [
        ("ranks", f"{plan.ranks} ({plan.title})"),
        *([("hosts", _hosts(plan).removeprefix(" on "))] if plan.remote else []),
        *([("split", str(plan.split))] if plan.split else []),
        ("threads", threads),
        ("run folder", str(plan.run_dir)),
        *(("note", note) for note in (*plan.notes, *plan.details)),
    ]
    return "\n".join(f"{name:<12}{value}" for name, value in rows)


def full(plan: LaunchPlan, prediction: str = "") -> str:
    """Return the plan with each rank's part, the environment and the exact command."""
    lines = [overview(plan)]
    lines += [f"{f'rank {rank}':<12}{_rank(plan, rank)}" for rank in range(plan.ranks)]
    lines += [prediction] if prediction else []
    lines.append("environment, beyond what is set already:")
    lines += [
        f"  {name}={'(hidden)' if name in plan.hidden else shlex.quote(value)}"
        for name, value in sorted(plan.environment.items())
    ]
    lines.append("command:")
    lines.append(f"  {shlex.join(plan.command)}")
    return "\n".join(lines)


def _hosts(plan: LaunchPlan) -> str:
    """Return `` on 2 hosts (node1:2 node2:2)``; of many hosts only the first."""
    count = len(plan.places)
    listed = [f"{part.host.name}:{part.ranks}" for part in plan.places[:_SHOWN]]
    listed += [f"and {count - _SHOWN} more"] if count > _SHOWN else []
    return f" on {count} host{'s' if count > 1 else ''} ({' '.join(listed)})"


def _rank(plan: LaunchPlan, rank: int) -> str:
    place = plan.place_of(rank)
    parts = [place.host.name] if plan.remote else []
    if plan.split:
        rows = plan.split.rows[rank]
        parts.append(f"{rows} row{'s' if rows != 1 else ''} a step")
    parts.append(_threads(place.threads))
    if cores := plan.cores_of(rank):
        parts.append(f"core{'s' if len(cores) > 1 else ''} {' '.join(map(str, cores))}")
    elif place.pinned:
        parts.append("pinned to cores")
    return ", ".join(parts)


def _each(plan: LaunchPlan) -> str:
    counts = {part.threads for part in plan.places}
    if len(counts) == 1:
        return f"{_threads(plan.threads)} each"
    least, most = min(c or 1 for c in counts), max(c or 1 for c in counts)
    return f"{least} to {most} threads each"


def _threads(count: int | None) -> str:
    if count is None:
        return "its host's cores divided"
    return f"{count} thread{'s' if count > 1 else ''}"
