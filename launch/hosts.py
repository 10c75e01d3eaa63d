"""The hosts of a job: lists and host files, which of them to use, ranks on each."""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from fastserve.errors import LaunchError

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_SCOPE = re.compile(r"[A-Za-z0-9_.-]+")
_ENTRY = re.compile(
    r"(?:(?P<user>[^@]*)@)?"
    r"(?:\[(?P<address>[^\[\]]*:[^\[\]]*)\]|(?P<name>(?:[^:\[\]]|\[[^\[\]]*\])+))"
    r"(?::(?P<slots>[^:]*))?"
)
_RANGE = re.compile(r"\[([^\[\]]*)\]")
_MOST_HOSTS = 10_000
_EXAMPLES = "write entries such as node1, node1:4, user@node2:4, node[1-4]:2"


class UnreachableError(LaunchError):
    """There are hosts that can't be reached, or have stopped to answer.

    Attributes:
        hosts: their names.
    """

    def __init__(self, hosts: Iterable[str], *parts: str) -> None:
        super().__init__(*parts)
        self.hosts = frozenset(hosts)


@dataclass(frozen=True)
class Host:
    """A host of the job, how many ranks fit on it, and how ssh logs in there.

    Of ``user`` and ``port``, None leaves the choice to the user's ssh configuration.
    """

    name: str
    slots: int = 1
    user: str | None = None
    port: int | None = None


def parse_hosts(text: str) -> list[Host]:
    """Return the hosts of a list such as ``node1:2,node[03-05]:4,[fe80::1]``.

    A host that is listed several times has the sum of its slots.

    Raises LaunchError for what is no host, and for an empty list.
    """
    entries = [entry.strip() for entry in split(text)]
    hosts = [host for entry in entries if entry for host in _entry(entry)]
    if not hosts:
        raise LaunchError("expected a list of hosts", repr(text), _EXAMPLES)
    return _merged(hosts)


def split(text: str) -> list[str]:
    """Return the entries of a list: it is split at commas that aren't in brackets."""
    return re.split(r",(?![^\[\]]*\])", text)


def read_hostfile(path: str | Path) -> list[Host]:
    """Return the hosts of a file in the format of Open MPI, of MPICH, or mixed.

    A line holds ``node1``, ``node1 slots=4`` or ``node1:4``, optionally with
    ``max_slots=N``, which decides nothing, and ``port=N``, that of its ssh server.
    What follows a # is a comment. A host on several lines has the sum of its slots.

    Raises LaunchError that names every line at fault, or if there is no host at all.
    """
    try:
        lines = Path(path).read_text("utf-8").splitlines()
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or "not a text file"
        raise LaunchError(
            "expected a host file that can be read",
            f"{path}: {reason}",
            "give a file with a host a line, such as hostfiles/lab.txt",
        ) from error
    hosts: list[Host] = []
    faults = []
    for number, line in enumerate(lines, 1):
        try:
            hosts += _line(line.partition("#")[0].split())
        except LaunchError as error:
            faults.append(f"{path}:{number}: {error.received}: {error.expected}")
    if faults:
        expected = "expected a host file with a host a line"
        raise LaunchError(expected, "\n    ".join(faults), _EXAMPLES)
    if not hosts:
        raise LaunchError("expected a host file with hosts", f"{path}: none", _EXAMPLES)
    return _merged(hosts)


def select(
    hosts: Sequence[Host], include: Sequence[str] = (), exclude: Sequence[str] = ()
) -> list[Host]:
    """Return the hosts to use: those of ``include`` (all if empty) but ``exclude``.

    Raises LaunchError for a name that isn't among the hosts, or if no host is left.
    """
    names = [host.name for host in hosts]
    wanted, unwanted = _names(include), _names(exclude)
    unknown = [name for name in (*wanted, *unwanted) if name not in names]
    if unknown:
        raise LaunchError(
            "expected include and exclude to name hosts of the job",
            ", ".join(unknown),
            f"choose among {shown(names)}",
        )
    left = [
        host
        for host in hosts
        if host.name not in unwanted and (not wanted or host.name in wanted)
    ]
    if not left:
        raise LaunchError(
            "expected a host that is left to run on",
            f"all of {shown(names)} excluded",
            "exclude fewer hosts",
        )
    return left


def place(
    hosts: Sequence[Host], ranks: int, oversubscribe: bool = False
) -> tuple[int, ...]:
    """Return how many of the ranks each host gets; the hosts are filled in order.

    With ``oversubscribe``, ranks beyond the slots start again at the first host.

    Raises LaunchError for more ranks than slots without it.
    """
    slots = sum(host.slots for host in hosts)
    if ranks > slots and not oversubscribe:
        listed = shown([f"{host.name}:{host.slots}" for host in hosts])
        raise LaunchError(
            f"expected at most {slots} rank{'s' if slots > 1 else ''}, the slots of "
            f"the hosts ({listed})",
            f"{ranks} ranks",
            "give the hosts more slots, take fewer ranks with -n, or let ranks share "
            "cores with --oversubscribe",
        )
    rounds, left = divmod(ranks, slots)
    placed = []
    for host in hosts:
        more = min(host.slots, left)
        left -= more
        placed.append(rounds * host.slots + more)
    return tuple(placed)


@lru_cache(maxsize=4096)
def is_here(name: str) -> bool:
    """Return whether a host is this machine, by its names and its addresses."""
    own = socket.gethostname()
    if name.lower() in ("localhost", own.lower(), own.split(".")[0].lower()):
        return True
    try:
        found = socket.getaddrinfo(name, 0, type=socket.SOCK_DGRAM)
    except (OSError, UnicodeError):
        return False
    return any(_is_own(family, address) for family, _, _, _, address in found)


def shown(names: Sequence[str], most: int = 8) -> str:
    """Return names for a message; of many only the first."""
    rest = [f"and {len(names) - most} more"] if len(names) > most else []
    return ", ".join([*names[:most], *rest])


def _is_own(family: int, address: tuple[object, ...]) -> bool:
    """Return whether this machine has an address: only then can it be bound."""
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind(address)
    except OSError:
        return False
    return True


def _names(listed: Sequence[str]) -> list[str]:
    """Return names of hosts with their ranges written out."""
    return [host.name for entry in listed for host in parse_hosts(entry)]


def _line(words: Sequence[str]) -> list[Host]:
    """Return the hosts of a line of a host file, which is given as its words."""
    if not words:
        return []
    hosts = _entry(words[0])
    for word in words[1:]:
        key, _, value = word.partition("=")
        key = key.lower().replace("-", "_")
        if key == "slots" and ":" in words[0].rpartition("]")[2]:
            raise LaunchError("slots either after ':' or as slots=N", word)
        if key == "slots":
            hosts = [replace(host, slots=_count(value, word)) for host in hosts]
        elif key == "port":
            hosts = [replace(host, port=_count(value, word, 65535)) for host in hosts]
        elif key == "max_slots":
            _count(value, word)
        else:
            raise LaunchError("expected slots=N, max_slots=N or port=N", repr(word))
    return hosts


def _entry(text: str) -> list[Host]:
    """Return the hosts of ``[user@]name[:slots]``; several if it has a range."""
    match = _ENTRY.fullmatch(text)
    if not match:
        raise LaunchError("expected a host", repr(text), _EXAMPLES)
    user, slots = match["user"], match["slots"]
    if user is not None and not _USER.fullmatch(user):
        raise LaunchError("expected a user's name before the @", repr(text), _EXAMPLES)
    count = 1 if slots is None else _count(slots, text)
    if match["address"] is not None:
        return [Host(_address(match["address"], text), count, user)]
    names = _expand(match["name"], text)
    for name in names:
        if not _NAME.fullmatch(name):
            expected = "expected names of hosts of letters, digits, '-', '_' and '.'"
            raise LaunchError(expected, repr(text), _EXAMPLES)
    return [Host(name, count, user) for name in names]


def _address(text: str, entry: str) -> str:
    plain, _, scope = text.partition("%")
    try:
        ipaddress.IPv6Address(plain)
        valid = "%" not in text or bool(_SCOPE.fullmatch(scope))
    except ValueError:
        valid = False
    if not valid:
        raise LaunchError("expected an IPv6 address in [ ]", repr(entry), _EXAMPLES)
    return text


def _count(text: str, entry: str, most: int = 1_000_000) -> int:
    if not re.fullmatch(r"[0-9]{1,7}", text) or not 1 <= int(text) <= most:
        raise LaunchError(f"expected a number from 1 to {most}", repr(entry), _EXAMPLES)
    return int(text)


def _expand(text: str, entry: str) -> list[str]:
    """Return the names that ``node[01-03,7]`` stands for; zeros in front are kept."""
    match = _RANGE.search(text)
    if not match:
        return [text]
    before, after = text[: match.start()], text[match.end() :]
    numbers = [number for part in match[1].split(",") for number in _range(part, entry)]
    rest = _expand(after, entry)
    if len(numbers) * len(rest) > _MOST_HOSTS:
        raise LaunchError(f"expected at most {_MOST_HOSTS} hosts", repr(entry))
    return [f"{before}{number}{tail}" for number in numbers for tail in rest]


def _range(text: str, entry: str) -> list[str]:
    match = re.fullmatch(r"([0-9]{1,9})(?:-([0-9]{1,9}))?", text.strip())
    first, last = (match[1], match[2] or match[1]) if match else ("1", "0")
    if int(first) > int(last):
        expected = "expected numbers or a range in [ ], such as [1-4] or [01-04,7]"
        raise LaunchError(expected, repr(entry), _EXAMPLES)
    if int(last) - int(first) >= _MOST_HOSTS:
        raise LaunchError(f"expected at most {_MOST_HOSTS} hosts", repr(entry))
    return [f"{i:0{len(first)}d}" for i in range(int(first), int(last) + 1)]


def _merged(hosts: Sequence[Host]) -> list[Host]:
    """Add up the slots of hosts that are listed several times."""
    found: dict[str, Host] = {}
    for host in hosts:
        first = found.setdefault(host.name, host)
        if first is host:
            continue
        if (first.user, first.port) != (host.user, host.port):
            raise LaunchError(
                "expected one user and one port of ssh for each host",
                f"several for {host.name}",
                "give the same with each mention of the host",
            )
        found[host.name] = replace(first, slots=first.slots + host.slots)
    return list(found.values())
