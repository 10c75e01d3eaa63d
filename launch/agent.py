"""What runs on each host of a job besides its ranks: tells, watches, and cleans up.

    python -u -m launch.agent FOLDER

Started over ssh by ``launch.remote``. Requests come as lines of JSON on standard input;
answers, events and a heartbeat each second go to standard output, each line behind a
mark, so that what a shell prints at login does no harm. When the other side is silent
for some seconds or gone, the agent kills what the job has running here and ends.

The standard library alone, so that it starts fast and NumPy's threads aren't.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.metadata
import json
import os
import platform
import selectors
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import fastserve
from fastserve import environment
from fastserve.errors import LaunchError

from .mpi import find_mpi
from .watch import Watch

MARK = "@fastserve-agent "
BEAT = 1.0  # seconds between heartbeats
PATIENCE = 5.0  # seconds of silence after which the other side is given up
_LOOK = 0.1
_SIOCGIFADDR, _SIOCGIFNETMASK = 0x8915, 0x891B
_WHOLE = 256 << 20  # bytes up to which files are hashed as a whole
_EDGE = 1 << 20
_BLOCK = 1 << 20
_CONNECT_SECONDS = 2.0


class Agent:
    """Answers requests until its input ends or is silent."""

    def __init__(self, cwd: Path) -> None:
        self._cwd = cwd
        self._watch: Watch | None = None
        self._looking = threading.Lock()
        self._writing = threading.Lock()
        self._tell({"ready": os.getpid()})

    def run(self) -> NoReturn:
        """Serve; ends the process."""
        for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._signalled)
        selector = selectors.DefaultSelector()
        selector.register(0, selectors.EVENT_READ)
        heard = beaten = time.monotonic()
        pending = b""
        while time.monotonic() - heard < PATIENCE:
            if selector.select(_LOOK):
                data = os.read(0, 1 << 16)
                if not data:
                    break
                heard = time.monotonic()
                *lines, pending = (pending + data).split(b"\n")
                for line in lines:
                    self._request(json.loads(line))
            if time.monotonic() - beaten > BEAT:
                beaten = time.monotonic()
                self._tell({"beat": time.time()})
            self._look()
        self._end()

    def _end(self) -> NoReturn:
        if self._watch is not None:
            self._watch.kill()
        os._exit(0)

    def _signalled(self, number: int, frame: FrameType | None) -> NoReturn:
        self._end()

    def _look(self) -> None:
        if self._watch is None:
            return
        with self._looking:
            for seen in self._watch.poll():
                kind = "ended" if seen.ended else "started"
                self._tell({"event": kind, "rank": seen.rank, "pid": seen.pid})

    def _request(self, request: dict[str, Any]) -> None:
        if "do" in request:  # else it is a heartbeat
            threading.Thread(target=self._answer, args=(request,), daemon=True).start()

    def _answer(self, request: dict[str, Any]) -> None:
        arguments = request.get("arguments", {})
        try:
            if request["do"] == "watch":
                self._watch = Watch(arguments["token"])
                result: Any = None
            elif request["do"] == "kill":
                self._kill(arguments["token"])
                result = None
            else:
                result = REQUESTS[request["do"]](self._cwd, **arguments)
            self._tell({"id": request["id"], "result": result})
        except Exception as error:  # noqa: BLE001  told to the other side
            text = f"{type(error).__name__}: {error}"
            self._tell({"id": request["id"], "error": text})

    def _kill(self, token: str) -> None:
        watch = self._watch or Watch(token)
        with self._looking:
            # who had which process id is told, also of those that end now
            watch.kill()
        self._look()

    def _tell(self, message: dict[str, Any]) -> None:
        line = f"{MARK}{json.dumps(message)}\n".encode()
        try:
            with self._writing:
                os.write(1, line)
        except OSError:
            self._end()


def facts(cwd: Path) -> dict[str, Any]:
    """Return what this host is, and which software the ranks would find on it."""
    memory = _memory()
    return {
        "python": platform.python_version(),
        "executable": sys.executable,
        "numpy": environment.numpy_version(),
        "mpi4py": _version("mpi4py"),
        "fastserve": fastserve.__version__,
        "code": code_hash(),
        "mpi": _mpi(),
        "cpu": environment.cpu_model(),
        "cores": len(environment.affinity_cores()),
        "hostname": socket.gethostname(),
        "time": time.time(),
        "memory_total": memory.get("MemTotal", 0),
        "memory_free": memory.get("MemAvailable", 0),
        "load": os.getloadavg()[0],
        "user": os.environ.get("USER") or str(os.getuid()),
        "interfaces": interfaces(),
        "cwd_exists": cwd.is_dir(),
    }


def blas(cwd: Path) -> str:
    """Return NumPy's BLAS library and its kernels, which needs NumPy to be loaded."""
    program = (
        "import numpy, threadpoolctl as t\n"
        "for p in t.threadpool_info():\n"
        "    if p['user_api'] == 'blas':\n"
        "        print(p['internal_api'], p['version'], p.get('architecture'))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=10
    )
    return done.stdout.strip() or done.stderr.strip()[-200:]


def hashes(cwd: Path, files: Sequence[str]) -> dict[str, str | None]:
    """Return a SHA-256 of each file's contents, None where there is none.

    Of a file of more than 256 MiB it is that of its size and its first and last MiB.
    """
    return {name: _file_hash(cwd / name) for name in files}


def disk(cwd: Path, path: str) -> int:
    """Return the bytes that are free in the nearest folder that exists."""
    place = cwd / path
    while not place.exists() and place != place.parent:
        place = place.parent
    state = os.statvfs(place)
    return state.f_bavail * state.f_frsize


def touch(cwd: Path, path: str, text: str) -> str:
    """Write a file, or one of its name in the nearest folder above that is there.

    Return where it is.
    """
    place = cwd / path
    while not place.parent.exists():
        place = place.parent.parent / place.name
    place.write_text(text, "utf-8")
    return str(place)


def remove(cwd: Path, path: str) -> None:
    """Remove a file, if it is there."""
    (cwd / path).unlink(missing_ok=True)


def resolve(cwd: Path, names: Sequence[str]) -> dict[str, list[str]]:
    """Return the addresses that each name has on this host; none if it has none."""
    return {name: _addresses(name) for name in names}


def route(cwd: Path, addresses: Sequence[str]) -> list[str | None]:
    """Return this host's own address on the way to each of the addresses."""
    return [_source(address) for address in addresses]


def listen(cwd: Path) -> dict[str, int]:
    """Take connections from other agents from now on; return the port."""
    family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET
    dual = family == socket.AF_INET6
    server = socket.create_server(
        ("", 0), family=family, dualstack_ipv6=dual, backlog=128
    )
    threading.Thread(target=_serve, args=(server,), daemon=True).start()
    return {"port": server.getsockname()[1]}


def reach(cwd: Path, addresses: Sequence[tuple[str, int]]) -> list[float | None]:
    """Return the milliseconds of an exchange with each agent; None where it fails."""
    with ThreadPoolExecutor(32) as pool:
        return list(pool.map(lambda place: _ping(*place), addresses))


def link(cwd: Path, address: str, port: int, seconds: float) -> dict[str, float]:
    """Send to another agent for ``seconds``.

    Returns the seconds that a byte takes one way, and the bytes that arrive a second.
    """
    with _connect(address, port) as connection:
        times = [_exchange(connection) for _ in range(20)]
        connection.sendall(b"S")
        block = bytes(_BLOCK)
        limit = time.monotonic() + seconds
        while time.monotonic() < limit:
            connection.sendall(block)
        connection.shutdown(socket.SHUT_WR)
        answer = connection.makefile().readline()
    return {"latency": min(times) / 2, "bandwidth": float(answer)}


REQUESTS: dict[str, Callable[..., Any]] = {
    "facts": facts,
    "blas": blas,
    "hash": hashes,
    "disk": disk,
    "touch": touch,
    "remove": remove,
    "resolve": resolve,
    "route": route,
    "listen": listen,
    "reach": reach,
    "link": link,
}


def code_hash() -> str:
    """Return a hash of the source files of fastserve and of its launcher."""
    digest = hashlib.sha256()
    for package in (Path(fastserve.__file__).parent, Path(__file__).parent):
        for path in sorted(package.rglob("*.py")):
            digest.update(f"{package.name}/{path.relative_to(package)}".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()


def interfaces() -> list[dict[str, Any]]:
    """Return name, address and length of the prefix of each network interface."""
    found: list[dict[str, Any]] = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            request = struct.pack("256s", name.encode()[:15])
            try:
                address = fcntl.ioctl(probe, _SIOCGIFADDR, request)[20:24]
                mask = fcntl.ioctl(probe, _SIOCGIFNETMASK, request)[20:24]
            except OSError:  # it has no IPv4 address
                continue
            prefix = int.from_bytes(mask, "big").bit_count()
            text = socket.inet_ntoa(address)
            found.append({"name": name, "address": text, "prefix": prefix})
    try:
        lines = Path("/proc/net/if_inet6").read_text().splitlines()
    except OSError:
        return found
    for line in lines:
        digits, _, prefix_digits, _, _, name = line.split()
        text = socket.inet_ntop(socket.AF_INET6, bytes.fromhex(digits))
        found.append({"name": name, "address": text, "prefix": int(prefix_digits, 16)})
    return found


def _serve(server: socket.socket) -> None:
    while True:
        connection, _ = server.accept()
        threading.Thread(target=_converse, args=(connection,), daemon=True).start()


def _converse(connection: socket.socket) -> None:
    """Echo single bytes P; after an S count what comes, and tell bytes a second."""
    with connection:
        while (byte := connection.recv(1)) == b"P":
            connection.sendall(b"P")
        if byte != b"S":
            return
        buffer = bytearray(_BLOCK)
        count, seen = 0, []
        while got := connection.recv_into(buffer):
            count += got
            seen.append((time.perf_counter(), count))
        connection.sendall(f"{_rate(seen)}\n".encode())


def _rate(seen: Sequence[tuple[float, int]]) -> float:
    """Return bytes a second, out of (time, bytes until then).

    The first third of the time is left out: TCP begins slowly, and with an empty queue.
    """
    if len(seen) < 2:
        return 0.0
    (begin, _), (end, last) = seen[0], seen[-1]
    late = (s for s in seen[:-1] if s[0] >= begin + (end - begin) / 3)
    start, before = next(late, seen[0])
    return (last - before) / max(end - start, 1e-9)


def _connect(address: str, port: int) -> socket.socket:
    connection = socket.create_connection((address, port), _CONNECT_SECONDS)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def _ping(address: str, port: int) -> float | None:
    try:
        with _connect(address, port) as connection:
            return _exchange(connection) * 1e3
    except OSError:
        return None


def _exchange(connection: socket.socket) -> float:
    start = time.perf_counter()
    connection.sendall(b"P")
    if connection.recv(1) != b"P":
        raise ConnectionError("expected another agent to answer")
    return time.perf_counter() - start


def _addresses(name: str) -> list[str]:
    try:
        found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):  # the latter for a label that no name can have
        return []
    return sorted({str(entry[4][0]) for entry in found})


def _source(address: str) -> str | None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((address, 9))  # of UDP: it only looks up the route
        except OSError:
            return None
        return str(probe.getsockname()[0])


def _file_hash(path: Path) -> str | None:
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            digest = hashlib.sha256(f"{size}:".encode())
            if size > _WHOLE:
                digest.update(file.read(_EDGE))
                file.seek(-_EDGE, os.SEEK_END)
            while block := file.read(_BLOCK):
                digest.update(block)
            return digest.hexdigest()
    except OSError:
        return None


def _memory() -> dict[str, int]:
    """Return the entries of /proc/meminfo in bytes."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return {}
    pairs = (line.split()[:2] for line in lines)
    return {name.rstrip(":"): int(kilobytes) * 1024 for name, kilobytes in pairs}


def _mpi() -> str:
    try:
        return find_mpi().version
    except LaunchError as error:
        return f"none: {error.received}"


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "none"


def main() -> None:
    """Serve in the folder that is given, if there is one on this host."""
    cwd = Path(sys.argv[1])
    if cwd.is_dir():
        os.chdir(cwd)
    Agent(cwd).run()


if __name__ == "__main__":
    main()
