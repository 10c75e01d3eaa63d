"""Looks at the hosts of a job before it starts: what must be the same, and reachable.

All faults are found before any rank runs, and told at once.
"""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from fastserve.errors import LaunchError

from .hosts import Host, shown

Facts = Mapping[str, Mapping[str, Any]]
_SAME = {
    "python": "Python",
    "numpy": "NumPy",
    "mpi4py": "mpi4py",
    "fastserve": "fastserve",
    "code": "the code of fastserve",
    "mpi": "MPI",
}
_MOST_PAIRS = 8  # hosts that each host must reach, of many


class Asks(Protocol):
    """The part of :class:`launch.remote.Agents` that the look at the hosts needs."""

    def ask(
        self,
        what: str,
        hosts: Sequence[str] | None = None,
        timeout: float = 10.0,
        **arguments: Any,
    ) -> dict[str, Any]: ...

    def ask_each(
        self,
        what: str,
        arguments: Mapping[str, Mapping[str, Any]],
        timeout: float = 10.0,
    ) -> dict[str, Any]: ...


def check_hosts(
    agents: Asks, facts: Facts, hosts: Sequence[Host], interface: str | None, cwd: Path
) -> None:
    """See that the hosts fit together; ``hosts`` are those that get ranks.

    Raises LaunchError that tells everything that doesn't.
    """
    faults = [*differences(facts), *missing_folder(facts, cwd)]
    if interface:
        faults += missing_interface(facts, interface)
    if not faults:
        faults = unreachable(agents, facts, interface)
    if faults:
        raise LaunchError(
            f"expected {len(hosts)} hosts that a job can run on together",
            "\n    ".join(text for text, _ in faults),
            "\n    ".join(dict.fromkeys(cure for _, cure in faults)),
        )


Fault = tuple[str, str]  # what is wrong, and its cure


def differences(facts: Facts) -> list[Fault]:
    """Return what differs between the hosts but must not, each with its cure."""
    faults = []
    for key, title in _SAME.items():
        found: dict[str, list[str]] = {}
        for name, known in facts.items():
            found.setdefault(str(known.get(key)), []).append(name)
        if len(found) > 1:
            told = (f"{_short(value)} on {shown(n)}" for value, n in found.items())
            cure = "install the same on all hosts, or share one environment"
            faults.append((f"{title}: {'; '.join(told)}", cure))
    return faults


def missing_folder(facts: Facts, cwd: Path) -> list[Fault]:
    """Return the fault of hosts without the working folder."""
    without = [n for n, known in facts.items() if not known.get("cwd_exists", True)]
    if not without:
        return []
    cure = "start from a folder that all hosts share, such as one below /home"
    return [(f"no folder {cwd} on {shown(without)}", cure)]


def missing_interface(facts: Facts, interface: str) -> list[Fault]:
    """Return the fault of hosts without a network interface, or without a subnet."""
    without = [n for n, known in facts.items() if not _addresses(known, interface)]
    if not without:
        return []
    names = sorted({i["name"] for known in facts.values() for i in known["interfaces"]})
    cure = f"set launch.interface to one that all hosts have: {', '.join(names)}"
    return [(f"no interface {interface} on {shown(without)}", cure)]


def interface_name(facts: Facts, interface: str | None) -> str | None:
    """Return the interface's name, also for a subnet, which MPICH doesn't take.

    Raises LaunchError if the hosts' interfaces in the subnet have several names.
    """
    if interface is None or "/" not in interface:
        return interface
    network = ipaddress.ip_network(interface, strict=False)
    names = {
        part["name"]
        for known in facts.values()
        for part in known["interfaces"]
        if ipaddress.ip_address(part["address"].partition("%")[0]) in network
    }
    if len(names) > 1:
        raise LaunchError(
            f"expected one name of the hosts' interfaces in {interface}, as MPICH "
            "takes names alone",
            ", ".join(sorted(names)),
            "take Open MPI, or give the interfaces the same name",
        )
    return names.pop() if names else interface


def dead_ends(facts: Facts) -> tuple[str, ...]:
    """Return the subnets in which several hosts have one address, such as docker0's.

    Messages to such an address don't leave the host that sends them.
    """
    shared = _shared({name: _addresses(known, None) for name, known in facts.items()})
    found = {
        ipaddress.ip_network(f"{part['address']}/{part['prefix']}", strict=False)
        for known in facts.values()
        for part in known["interfaces"]
        if part["address"] in shared
    }
    return tuple(sorted(str(network) for network in found if network.version == 4))


def unreachable(agents: Asks, facts: Facts, interface: str | None) -> list[Fault]:
    """Return which hosts can't connect to which others, over TCP."""
    ports = {name: answer["port"] for name, answer in agents.ask("listen").items()}
    own = {name: _addresses(known, interface) for name, known in facts.items()}
    shared = _shared(own)
    names = list(facts)
    others = {
        name: [*names[place + 1 :], *names[:place]][:_MOST_PAIRS]
        for place, name in enumerate(names)
    }
    reached = _reached(agents, others, own, shared, ports)
    pairs: dict[str, list[str]] = {}
    for name, wanted in others.items():
        for other in wanted:
            if other not in reached[name]:
                pairs.setdefault(other, []).append(name)
    cure = (
        "open the TCP ports between the hosts (a firewall often lets only ssh "
        "through), or choose their network with launch.interface"
    )
    return [
        (f"{other} can't be reached over TCP from {shown(sources)}", cure)
        for other, sources in pairs.items()
    ]


def addresses(facts: Facts, interface: str | None) -> dict[str, list[str]]:
    """Return the addresses at which others may reach each host."""
    own = {name: _addresses(known, interface) for name, known in facts.items()}
    shared = _shared(own)
    return {name: [a for a in found if a not in shared] for name, found in own.items()}


def reachable_address(
    agents: Asks, source: str, choices: Sequence[str], port: int
) -> str:
    """Return the first of a host's addresses that another host reaches."""
    wanted = [[address, port] for address in choices]
    answer = agents.ask("reach", hosts=[source], addresses=wanted)[source]
    return next(a for a, took in zip(choices, answer, strict=True) if took is not None)


def clock_skews(facts: Facts, asked: float) -> dict[str, float]:
    """Return by how many seconds the clocks are ahead, by the hosts' own names.

    ``asked`` is when the facts were asked for (unix time); the answers came just now.
    """
    middle = (asked + time.time()) / 2
    return {known["hostname"]: known["time"] - middle for known in facts.values()}


def _reached(
    agents: Asks,
    others: Mapping[str, Sequence[str]],
    own: Mapping[str, Sequence[str]],
    shared: set[str],
    ports: Mapping[str, int],
) -> dict[str, set[str]]:
    """Return which of its others each host reaches; all of them try at the same time,
    as each that is blocked takes seconds."""
    targets = {
        source: [
            (other, address)
            for other in wanted
            for address in own[other]
            if address not in shared
        ]
        for source, wanted in others.items()
    }
    asked = {
        source: {"addresses": [[address, ports[other]] for other, address in tried]}
        for source, tried in targets.items()
    }
    answers = agents.ask_each("reach", asked)
    return {
        source: {
            other
            for (other, _), took in zip(tried, answers[source], strict=True)
            if took is not None
        }
        for source, tried in targets.items()
    }


def _addresses(known: Mapping[str, Any], interface: str | None) -> list[str]:
    """Return a host's addresses that others may use: all, or those of an interface."""
    found = []
    for part in known["interfaces"]:
        address = ipaddress.ip_address(part["address"].partition("%")[0])
        if interface is None:
            wanted = not (address.is_loopback or address.is_link_local)
        elif "/" in interface:
            wanted = address in ipaddress.ip_network(interface, strict=False)
        else:
            wanted = part["name"] == interface
        if wanted:
            found.append(part["address"])
    return found


def _shared(own: Mapping[str, Sequence[str]]) -> set[str]:
    """Return the addresses that several hosts have, such as docker0's."""
    every = [address for addresses in own.values() for address in set(addresses)]
    return {address for address in every if every.count(address) > 1}


def _short(text: str) -> str:
    return text if len(text) <= 40 else f"{text[:12]}..."
