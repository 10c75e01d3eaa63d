"""``fastserve preflight``: looks at the hosts of a job before it runs on them.

Each check is a row: what was found, and the cure where it isn't good. All of them are
made, also where an earlier one fails; a host that can't be reached is left out of those
that need it.
"""

from __future__ import annotations

import secrets
import textwrap
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastserve.config.checks import files_of

from . import cluster, step_time
from .hosts import Host, is_here, shown
from .plan import LaunchPlan
from .remote import Agents
from .step_time import Estimate, Link

if TYPE_CHECKING:
    from fastserve.config import Job

OK, NOTE, FAIL = "ok", "note", "FAIL"
_LINK_SECONDS = 1.0
_UNREACHED = "not known: no host of the ranks was reached"
_SKEW_NOTE, _SKEW_FAIL = 1.0, 60.0  # seconds between two clocks
_DISK_TIMES = 1.5  # of the checkpoints that are kept
_OF_A_FOLDER = 200  # files that are compared
_BUSY = 0.5  # load for each core that is said
# Weights, gradients, two moments of Adam, and about as much again of activations.
_COPIES = 8
# The messages of a bucket wait for each other's latency; so many times it, they don't
# feel it.
_LATENCIES = 20
_MOST_BUCKET, _LEAST_BUCKET = 64.0, 1.0  # MB


@dataclass(frozen=True)
class Row:
    """A check: ``state`` is 'ok', 'note' or 'FAIL'; ``cure`` is for the latter two."""

    check: str
    state: str
    found: str
    cure: str = ""


@dataclass(frozen=True)
class Report:
    """What was found; ``links`` are (from, to, Link), ``job`` is what they mean."""

    rows: tuple[Row, ...]
    links: tuple[tuple[str, str, Link], ...]
    job: tuple[str, ...]

    @property
    def passed(self) -> bool:
        return not any(row.state == FAIL for row in self.rows)

    def to_json(self) -> dict[str, Any]:
        return {
            "passed": self.passed,
            "checks": [asdict(row) for row in self.rows],
            "links": [{"from": a, "to": b, **asdict(k)} for a, b, k in self.links],
            "job": list(self.job),
        }


def look(
    job: Job | None,
    plan: LaunchPlan,
    measure: Callable[[], Estimate | str | None],
    env: Mapping[str, str] | None = None,
) -> Report:
    """Make all checks of the hosts of a plan; without a job, those of the hosts alone.

    ``measure`` returns what a step of the job costs a process; None without a job.
    ``env`` are variables that the helpers on the hosts need.
    """
    hosts = [part.host for part in plan.places] if plan.remote else [Host("localhost")]
    if not any(is_here(host.name) for host in hosts):
        hosts.append(Host("localhost"))  # mpirun runs here
    with ThreadPoolExecutor(4) as pool:
        estimate = pool.submit(measure)
        with Agents(
            hosts, plan.ssh, plan.python, plan.cwd, env, strict=False
        ) as agents:
            return _look(job, plan, hosts, agents, estimate, pool)


def table(report: Report, width: int = 88) -> str:
    """Return the report in words: the rows, then the links, then the job."""
    name = max(len(row.check) for row in report.rows)
    lines = []
    for row in report.rows:
        head = f"{row.check:<{name}}  {row.state:<4}  "
        lines += textwrap.wrap(
            row.found,
            width,
            initial_indent=head,
            subsequent_indent=" " * len(head),
            break_long_words=False,
        ) or [head.rstrip()]
        if row.state != OK and row.cure:
            lines += textwrap.wrap(
                f"to do: {row.cure}",
                width,
                initial_indent=" " * len(head),
                subsequent_indent=" " * (len(head) + 7),
                break_long_words=False,
                break_on_hyphens=False,
            )
    lines += [
        f"{f'{a} -> {b}':<{name}}        {link.latency * 1e6:.0f} us, "
        f"{link.bandwidth / 1e6:.4g} MB/s"
        for a, b, link in report.links
    ]
    for number, text in enumerate(report.job):
        head = f"{'' if number else 'this job':<{name}}        "
        lines += textwrap.wrap(
            text, width, initial_indent=head, subsequent_indent=" " * (len(head) + 2)
        )
    return "\n".join(lines)


def _look(
    job: Job | None,
    plan: LaunchPlan,
    hosts: Sequence[Host],
    agents: Agents,
    estimate: Future[Estimate | str | None],
    pool: ThreadPoolExecutor,
) -> Report:
    names = [host.name for host in hosts if host.name not in agents.failed]
    rows = [_ssh(hosts, agents.failed)]
    if not names:
        return Report(tuple(rows), (), ())
    kernels = pool.submit(agents.ask, "blas")
    resolved = pool.submit(agents.ask, "resolve", names=[h.name for h in hosts])
    files = _data_files(job) if job else []
    hashed = pool.submit(agents.ask, "hash", files=files)
    asked = time.time()
    facts = agents.ask("facts")
    skews = cluster.clock_skews(facts, asked)
    rows.append(_names(resolved.result()))
    rows += _versions(facts, kernels.result())
    rows.append(_folder(facts, plan.cwd))
    if job:
        rows.append(_files(files, hashed.result()))
    rows.append(_cores(plan, facts))
    cost = estimate.result()
    rows.append(_memory(plan, facts, cost))
    rows += _disk(job, plan, agents, cost)
    rows.append(_clocks(facts, skews))
    if len(names) == 1 < len(hosts):
        rows.append(Row("network", NOTE, "not known: no two hosts were reached"))
    else:
        rows.append(_network(agents, facts, plan.interface))
    links: list[tuple[str, str, Link]] = []
    if len(names) > 1 and rows[-1].state == OK:
        links = _links(agents, facts, plan.interface, names)
        step_time.remember({(a, b): link for a, b, link in links})
    if cost is not None:
        rows.append(_model(cost))
    meant: list[str] = []
    if job and isinstance(cost, Estimate):
        meant = _meaning(job, plan, cost, [link for _, _, link in links])
    return Report(tuple(rows), tuple(links), tuple(meant))


def _row(check: str, faults: Sequence[tuple[str, str]], good: str) -> Row:
    """Return the row of a check that finds faults, each with its cure."""
    if not faults:
        return Row(check, OK, good)
    found = "; ".join(text for text, _ in faults)
    return Row(check, FAIL, found, "; ".join(dict.fromkeys(cure for _, cure in faults)))


def _ssh(hosts: Sequence[Host], failed: Mapping[str, tuple[str, str]]) -> Row:
    faults = [(f"{name}: {text}", cure) for name, (text, cure) in failed.items()]
    others = sum(not is_here(host.name) for host in hosts)
    good = f"{others} host{'s' if others != 1 else ''} without a password"
    return _row("ssh", faults, good if others else "not needed: this host alone")


def _names(resolved: Mapping[str, Mapping[str, Sequence[str]]]) -> Row:
    """Return whether each name means the same reachable host everywhere."""
    faults = []
    for name in next(iter(resolved.values())):
        if name == "localhost":
            continue
        without = [host for host, known in resolved.items() if not known[name]]
        if without:
            cure = f"put {name} into /etc/hosts on each host, or into the DNS"
            faults.append((f"{name} has no address on {shown(without)}", cure))
        looped = [
            host
            for host, known in resolved.items()
            if host != name and any(a.startswith("127.") for a in known[name])
        ]
        if looped:
            cure = f"correct {name} in /etc/hosts there: others are reached by network"
            faults.append((f"{name} is 127.* on {shown(looped)}", cure))
    count = sum(name != "localhost" for name in next(iter(resolved.values())))
    return _row("names", faults, f"{count} on all hosts" if count else "this host")


def _versions(facts: cluster.Facts, kernels: Mapping[str, str]) -> list[Row]:
    faults = cluster.differences(facts)
    first = next(iter(facts.values()))
    good = (
        f"Python {first['python']}, NumPy {first['numpy']}, mpi4py {first['mpi4py']}, "
        f"fastserve {first['fastserve']}, {first['mpi']}, the same code"
    )
    rows = [_row("versions", faults, good)]
    kinds: dict[str, list[str]] = {}
    for name, text in kernels.items():
        kinds.setdefault(" ".join(text.split()), []).append(name)
    told = "; ".join(f"{text} on {shown(n)}" for text, n in kinds.items())
    if len(kinds) == 1:
        rows.append(Row("BLAS", OK, next(iter(kinds))))
    else:
        cure = "hosts of different CPUs add up in different orders, and wait for the "
        rows.append(Row("BLAS", NOTE, told, cure + "slowest"))
    return rows


def _folder(facts: cluster.Facts, cwd: Path) -> Row:
    return _row("folder", cluster.missing_folder(facts, cwd), str(cwd))


def _data_files(job: Job) -> list[str]:
    """Return the files that the job reads; of a folder the first in it."""
    files: list[str] = []
    for name in files_of(job):
        if Path(name).is_dir():
            inside = sorted(str(p) for p in Path(name).rglob("*") if p.is_file())
            files += inside[:_OF_A_FOLDER]
        else:
            files.append(name)
    return files


def _files(files: Sequence[str], hashed: Mapping[str, Mapping[str, Any]]) -> Row:
    faults = []
    for file in files:
        kinds: dict[str | None, list[str]] = {}
        for host, known in hashed.items():
            kinds.setdefault(known[file], []).append(host)
        if None in kinds:
            cure = f"copy {file} to each host, or share its folder"
            faults.append((f"no {file} on {shown(kinds[None])}", cure))
        elif len(kinds) > 1:
            fewest = min(kinds.values(), key=len)
            cure = f"copy {file} again, from one host to all others"
            faults.append((f"{file} differs on {shown(fewest)}", cure))
    good = f"{', '.join(files)} the same everywhere" if files else "none to compare"
    return _row("data files", faults, good)


def _cores(plan: LaunchPlan, facts: cluster.Facts) -> Row:
    crowded, busy, told = [], [], []
    for part in plan.places:
        known = facts.get(part.host.name if plan.remote else "localhost")
        if known is None:
            continue
        cores = int(known["cores"])
        needs = part.ranks * (part.threads or 1)
        told.append(f"{part.host.name} {part.ranks} of {cores}")
        if needs > cores:
            crowded.append(f"{part.host.name}: {needs} threads on {cores} cores")
        if known["load"] > _BUSY * cores:
            busy.append(f"{part.host.name}: load {known['load']:.1f}")
    if not told:
        return Row("cores", NOTE, _UNREACHED)
    if crowded:
        cure = "give these hosts fewer slots: ranks that take turns are slower"
        return Row("cores", NOTE, "; ".join(crowded), cure)
    if busy:
        cure = "see what runs there: all ranks wait for the slowest"
        return Row("cores", NOTE, "; ".join(busy), cure)
    return Row("cores", OK, f"ranks and cores: {', '.join(told)}")


def _memory(plan: LaunchPlan, facts: cluster.Facts, cost: Estimate | str | None) -> Row:
    each = cost.parameters * 4 * _COPIES if isinstance(cost, Estimate) else 0
    faults, least = [], None
    for part in plan.places:
        known = facts.get(part.host.name if plan.remote else "localhost")
        if known is None:
            continue
        free, needs = int(known["memory_free"]), each * part.ranks
        least = free if least is None else min(least, free)
        if needs > free:
            cure = "take fewer ranks on a host, or a smaller model"
            text = f"{part.host.name}: {_size(free)} free, about {_size(needs)} needed"
            faults.append((text, cure))
    if least is None:
        return Row("memory", NOTE, _UNREACHED)
    return _row("memory", faults, f"{_size(least)} free or more")


def _disk(
    job: Job | None, plan: LaunchPlan, agents: Agents, cost: Estimate | str | None
) -> list[Row]:
    """Return whether there is room, and whether all hosts see the run folder."""
    writer = plan.places[0].host.name if plan.remote else "localhost"
    if writer in agents.failed:
        return []
    rows = []
    free = agents.ask("disk", hosts=[writer], path=str(plan.run_dir))[writer]
    kept = _kept(job) if job else 0
    weights = cost.parameters * 4 * 3 if isinstance(cost, Estimate) else 0
    faults = []
    if free < _DISK_TIMES * kept * weights:
        text = f"{_size(free)} free, {kept} checkpoints take {_size(kept * weights)}"
        cure = "free some space, keep fewer (checkpoint.keep), or take another run_dir"
        faults.append((text, cure))
    rows.append(_row("disk", faults, f"{_size(free)} free at {plan.run_dir}"))
    above = plan.run_dir.parent if job else plan.cwd
    probe = above / f".preflight-{secrets.token_hex(8)}"
    try:
        probe = Path(
            agents.ask("touch", hosts=[writer], path=str(probe), text="")[writer]
        )
        seen = agents.ask("hash", files=[str(probe)])
        agents.ask("remove", hosts=[writer], path=str(probe))
    except Exception as error:  # noqa: BLE001  said in the table
        cure = "choose a folder that can be written to, with run_dir"
        return [*rows, Row("run folder", FAIL, str(error), cure)]
    blind = [name for name, known in seen.items() if not known[str(probe)]]
    if blind:
        cure = "logs of these hosts stay there; a shared folder has all in one place"
        found = f"{above} isn't shared with {shown(blind)}"
        return [*rows, Row("run folder", NOTE, found, cure)]
    shared = "writable" if len(seen) == 1 else "writable, and seen by all hosts"
    return [*rows, Row("run folder", OK, shared)]


def _kept(job: Job) -> int:
    """Return how many checkpoints lie on the disk at the same time."""
    kept = (job.checkpoint.keep or 1) + 1
    if job.checkpoint.keep_every:
        kept += (job.train.steps or 0) // job.checkpoint.keep_every
    return kept


def _clocks(facts: cluster.Facts, skews: Mapping[str, float]) -> Row:
    own = {name: skews[known["hostname"]] for name, known in facts.items()}
    usual = sorted(own.values())[len(own) // 2]
    off = {name: value - usual for name, value in own.items()}
    most = max((abs(value) for value in off.values()), default=0.0)
    if most <= _SKEW_NOTE:
        return Row("clocks", OK, f"within {max(most, 0.01):.2f} s")
    far = [f"{n}: {v:+.1f} s" for n, v in off.items() if abs(v) > _SKEW_NOTE]
    state = FAIL if most > _SKEW_FAIL else NOTE
    cure = "let all hosts take the time from one server (chrony, ntp)"
    return Row("clocks", state, "; ".join(far), cure)


def _network(agents: Agents, facts: cluster.Facts, interface: str | None) -> Row:
    if len(facts) == 1:
        return Row("network", OK, "not needed: one host")
    faults = cluster.missing_interface(facts, interface) if interface else []
    faults = faults or cluster.unreachable(agents, facts, interface)
    ends = cluster.dead_ends(facts)
    beside = f"; not by {', '.join(ends)}, which lead nowhere" if ends else ""
    by = f" by {interface}" if interface else ""
    return _row("network", faults, f"each host reaches the others{by}{beside}")


def _links(
    agents: Agents, facts: cluster.Facts, interface: str | None, names: Sequence[str]
) -> list[tuple[str, str, Link]]:
    """Measure all links of the ring at the same time, as it uses them."""
    ports = {name: a["port"] for name, a in agents.ask("listen").items()}
    addresses = cluster.addresses(facts, interface)
    pairs = list(zip(names, [*names[1:], names[0]], strict=True))
    pairs = pairs[:1] if len(names) == 2 else pairs
    asked = {}
    for source, target in pairs:
        place = cluster.reachable_address(
            agents, source, addresses[target], ports[target]
        )
        asked[source] = {
            "address": place,
            "port": ports[target],
            "seconds": _LINK_SECONDS,
        }
    answers = agents.ask_each("link", asked)
    return [
        (a, b, Link(answers[a]["latency"], answers[a]["bandwidth"])) for a, b in pairs
    ]


def _model(cost: Estimate | str) -> Row:
    if isinstance(cost, str):
        return Row(
            "model", FAIL, cost, "mend the job: fastserve check CONFIG says more"
        )
    return Row("model", OK, f"{cost.parameters:,} parameters; a step of it runs here")


def _meaning(
    job: Job, plan: LaunchPlan, cost: Estimate, links: Sequence[Link]
) -> list[str]:
    link = step_time.slowest(links) if links else step_time.ASSUMED
    lines = step_time.predict(plan, cost, link, job.comm, job.train.steps)
    hosts = len(plan.places)
    if hosts < 2 or not links:
        return lines
    width = 4 if job.comm.wire == "float32" else 2
    sent = 2 * (hosts - 1) / hosts * cost.parameters * width
    lines.append(f"each link carries {sent / 1e6:.1f} MB a step, each way")
    advised = advise_bucket(cost.parameters * 4, hosts, link)
    given = float(job.comm.bucket_mb)
    if not advised / 4 <= given <= advised * 4 and cost.parameters * 4 > 2**20:
        lines.append(f"advised: comm.bucket_mb: {advised:g}, the job has {given:g}")
    else:
        lines.append(f"comm.bucket_mb: {given:g} fits these links")
    return lines


def advise_bucket(nbytes: int, hosts: int, link: Link) -> float:
    """Return the size of a bucket in MB that hides latency, and leaves some to overlap.

    A power of two, of ``nbytes`` of gradients.
    """
    wanted = _LATENCIES * hosts * link.latency * link.bandwidth / 2**20
    most = min(_MOST_BUCKET, nbytes / 4 / 2**20)
    size = _LEAST_BUCKET
    while size < wanted and size * 2 <= most:
        size *= 2
    return size


def _size(nbytes: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if nbytes < 1000:
            return f"{nbytes:.3g} {unit}"
        nbytes /= 1000
    return f"{nbytes:.3g} TB"
