"""Says in words what a plan will do."""

from __future__ import annotations

import shlex

from .plan import LaunchPlan


def summary(plan: LaunchPlan) -> str:
    """Return the one line that is shown when a job starts."""
    ranks = f"{plan.ranks} rank{'s' if plan.ranks > 1 else ''}"
    pinned = ", pinned to cores" if plan.rank_cores else ""
    return (
        f"{ranks} ({plan.title}), {_threads(plan.threads)} each{pinned}; {plan.split}"
    )


def overview(plan: LaunchPlan) -> str:
    """Return the plan without its command: ranks, split, threads, folder, notes."""
    rows = [
        ("ranks", f"{plan.ranks} ({plan.title})"),
        ("split", str(plan.split)),
        ("threads", f"{plan.threads} per rank"),
        ("run folder", str(plan.run_dir)),
        *(("note", note) for note in (*plan.notes, *plan.details)),
    ]
    return "\n".join(f"{name:<12}{value}" for name, value in rows)


def full(plan: LaunchPlan) -> str:
    """Return the plan with each rank's part, the environment and the exact command."""
    lines = [overview(plan)]
    lines += [f"{f'rank {rank}':<12}{_rank(plan, rank)}" for rank in range(plan.ranks)]
    lines.append("environment, beyond what is set already:")
    lines += [
        f"  {name}={shlex.quote(value)}"
        for name, value in sorted(plan.environment.items())
    ]
    lines.append("command:")
    lines.append(f"  {shlex.join(plan.command)}")
    return "\n".join(lines)


def _rank(plan: LaunchPlan, rank: int) -> str:
    rows = plan.split.rows[rank]
    text = f"{rows} row{'s' if rows != 1 else ''} a step, {_threads(plan.threads)}"
    if plan.rank_cores:
        cores = plan.rank_cores[rank]
        text += f", core{'s' if len(cores) > 1 else ''} {' '.join(map(str, cores))}"
    return text


def _threads(count: int) -> str:
    return f"{count} thread{'s' if count > 1 else ''}"
