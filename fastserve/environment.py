"""What the process's environment says: ranks, threads, cores, and fastserve's settings.

This is the only file of the library that reads environment variables. It needs nothing
but the standard library, because most of what it does has to happen before NumPy or
MPI are loaded.
"""

from __future__ import annotations

import ctypes
import io
import os
import platform
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from fastserve.json_object import read_object

_THREAD_VARIABLES = (
    "OPENBLAS_NUM_THREADS",
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
)
# In front of a whole line: the launcher keeps it as the last one on the terminal, and
# shows what else there is to show above it. It may not hold back text until a line
# ends, and an MPI does.
STATUS_LINE = "\r\x1b[K"
_KERNEL_VARIABLE = "OPENBLAS_CORETYPE"
# What the bits of a result depend on, and that no secret is in
NUMERIC_VARIABLES = (
    _KERNEL_VARIABLE,
    "NPY_DISABLE_CPU_FEATURES",
    "NPY_ENABLE_CPU_FEATURES",
    *_THREAD_VARIABLES,
)
Numerics = dict[str, str]  # of a process, as ``training/numerics.py`` finds it
# where each of it is in environment.json
NUMERICS_KEYS = {
    "NumPy": "numpy",
    "SIMD": "simd",
    "BLAS": "blas",
    "library": "blas_library",
    "build": "blas_build",
    "threading layer": "threading_layer",
    "kernels": "kernels",
    "threads": "threads",
}
KERNEL_FILE = "blas.json"  # in the cache folder: the measured kernel families
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Ranks:
    """This process's place in its job, as the launcher's variables tell it.

    ``launcher`` is 'openmpi', 'mpich', 'pmix', 'slurm' or 'none'. Under a bare PMIx
    launcher that tells no size, ``size`` is only a lower bound.
    """

    rank: int
    size: int
    local_rank: int
    local_size: int
    launcher: str


# The order matters: Open MPI's mpirun also sets PMIX_RANK, and inside of a Slurm job
# every launcher's ranks see Slurm's variables too.
_LAUNCHERS = (
    ("openmpi", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    ("mpich", "PMI_RANK", "PMI_SIZE"),
    ("pmix", "PMIX_RANK", ""),
    ("mpich", "MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE"),
)
_LOCAL = (
    ("OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"),
    ("MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
    ("MV2_COMM_WORLD_LOCAL_RANK", "MV2_COMM_WORLD_LOCAL_SIZE"),
)


def expected_ranks(env: Mapping[str, str] = os.environ) -> Ranks:
    """Return the place of this process, before MPI is loaded.

    Of Slurm only a step started by srun with more than one task counts: a batch
    script, or ``srun -n 1``, is a single process.
    """
    for launcher, rank_name, size_name in _LAUNCHERS:
        rank = _integer(env, rank_name)
        if rank is not None:
            size = _integer(env, size_name) or _slurm_tasks(env) or rank + 1
            return Ranks(rank, size, *_local_place(env, rank, size), launcher)
    task, tasks = _integer(env, "SLURM_PROCID"), _slurm_tasks(env)
    if task is not None and tasks is not None and tasks > 1:
        return Ranks(task, tasks, *_local_place(env, task, tasks), "slurm")
    return Ranks(0, 1, 0, 1, "none")


def setting(
    name: str, default: str | None = None, env: Mapping[str, str] = os.environ
) -> str | None:
    """Return the variable ``FASTSERVE_<name>``, or ``default`` if unset or empty."""
    return env.get(f"FASTSERVE_{name}") or default


def terminal_width(env: Mapping[str, str] = os.environ) -> int | None:
    """Return the columns of the terminal that standard output ends in, or None.

    A terminal that can't move its cursor back (TERM=dumb) counts as none. Under an MPI
    launcher output passes through pipes, or through a terminal of the launcher's own;
    FASTSERVE_TERMINAL then says what is at the end.
    """
    columns = setting("TERMINAL", env=env)
    if columns is not None:
        return int(columns) if columns.isdecimal() and int(columns) > 0 else None
    if expected_ranks(env).launcher == "none" and is_terminal(sys.stdout, env):
        return shutil.get_terminal_size().columns
    return None


def is_terminal(stream: IO[Any] | None, env: Mapping[str, str] = os.environ) -> bool:
    """Return whether a stream is a terminal on which lines can be drawn again; None:
    one that was closed when Python started."""
    return stream is not None and stream.isatty() and env.get("TERM") != "dumb"


def wants_colour(env: Mapping[str, str] = os.environ) -> bool:
    """Return whether text on terminals may have colours: NO_COLOR isn't set."""
    return not env.get("NO_COLOR")


def affinity_cores(pid: int = 0) -> list[int]:
    """Return the cores that a process may run on, in order (0: this process)."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(pid))
    return list(range(os.cpu_count() or 1))


def process_start(pid: int | None = None) -> float | None:
    """Return the unix time at which a process (None: this one) was started.

    None if it has ended, also if nobody has asked for a zombie's status yet, and where
    there is no /proc.
    """
    stat = process_stat(os.getpid() if pid is None else pid)
    if stat is None:
        return None
    ticks = float(stat[1])  # from the machine's start to the process'
    age = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    return time.time() - age


def process_stat(pid: int) -> tuple[str, str] | None:
    """Return a process's parent, and its start in ticks of the clock since the boot.

    None as from ``process_start``.
    """
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()  # proc(5), from its third field on
    return None if fields[0] in "ZX" else (fields[1], fields[19])


def threads_per_rank(cores: int, local_size: int) -> int:
    """Return how many threads each of ``local_size`` ranks gets on one host."""
    return max(1, cores // local_size)


def thread_variables(threads: int) -> dict[str, str]:
    """Return the variables that give each thread pool of NumPy's libraries its size."""
    return dict.fromkeys(_THREAD_VARIABLES, str(threads))


def user_threads(env: Mapping[str, str] = os.environ) -> tuple[int, str] | None:
    """Return the number of threads that the user set, and the variable's name.

    OpenBLAS' own variable counts first, as it does for OpenBLAS. A list such as
    OMP_NUM_THREADS=4,2 counts by its first number.
    """
    for name in _THREAD_VARIABLES:
        match = re.match(r"\s*(\d+)", env.get(name, ""))
        if match and int(match[1]) > 0:
            return int(match[1]), name
    return None


def cpu_model() -> str:
    """Return the CPU's name with what tells apart CPUs of the same name."""
    machine = platform.machine() or "unknown"
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return platform.processor() or machine
    return _cpu_model(text, machine)


def numpy_version() -> str:
    """Return the version of the NumPy that is installed, without loading it."""
    return version("numpy") or "none"


def version(package: str) -> str | None:
    """Return the version of a package that is installed, without loading it."""
    from importlib import metadata  # takes as long to load as a tenth of the library

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def cache_dir(env: Mapping[str, str] = os.environ) -> Path:
    """Return the folder for what fastserve remembers between runs; it may not exist."""
    own = setting("CACHE_DIR", env=env)
    base = env.get("XDG_CACHE_HOME") or "~/.cache"
    path = Path(own) if own else Path(base) / "fastserve"
    try:
        return path.expanduser()
    except RuntimeError:  # a user without a home, as in containers
        return Path(tempfile.gettempdir()) / f"fastserve-{os.getuid()}"


def kernel_key(kind: str = "") -> str:
    """Return the name under which the fastest kernel family is remembered.

    ``kind`` is that of the job, as ``launch/blas.py`` tells them apart; '' if nobody
    knows it, and for models whose products are large.
    """
    name = f"{cpu_model()} | numpy {numpy_version()}"
    return f"{name} | {kind}" if kind else name


def chosen_kernel(env: Mapping[str, str] = os.environ) -> str | None:
    """Return the kernel family that the environment asks OpenBLAS for, if any."""
    return env.get(_KERNEL_VARIABLE) or None


def kernel_variable(kernel: str | None) -> dict[str, str]:
    """Return the variable that selects a kernel family; none for the own choice."""
    return {_KERNEL_VARIABLE: kernel} if kernel else {}


def numeric_variables(env: Mapping[str, str]) -> dict[str, str]:
    """Return those of the variables that the bits of a result depend on."""
    return {name: env[name] for name in NUMERIC_VARIABLES if name in env}


def differences(one: Numerics, other: Numerics) -> str:
    """Return what differs, like ``threads: 2 instead of 1``; '' if nothing does."""
    return ", ".join(
        f"{name}: {other.get(name, 'none')} instead of {one.get(name, 'none')}"
        for name in sorted(one | other)
        if one.get(name) != other.get(name)
    )


def differences_from_recorded(recorded: Numerics, own: Numerics) -> str:
    """As ``differences``, of what was recorded: an older version recorded less."""
    return differences(recorded, {k: v for k, v in own.items() if k in recorded})


def without_kernel(env: Mapping[str, str]) -> dict[str, str]:
    """Return a copy of the variables that leaves the kernel family to OpenBLAS."""
    return {name: value for name, value in env.items() if name != _KERNEL_VARIABLE}


def remembered_kernel(kind: str = "") -> str | None:
    """Return the fastest kernel family that was measured for this CPU and NumPy, and
    for this kind of job.

    '' means that OpenBLAS' own choice is best, None that nothing was measured yet.
    """
    entry = read_object(cache_dir() / KERNEL_FILE).get(kernel_key(kind))
    kernel = entry.get("kernel") if isinstance(entry, dict) else None
    return kernel if isinstance(kernel, str) else None


def prepare_process(kernel: str | None = None) -> None:
    """Set up this process before NumPy loads: threads, kernel family, cores.

    What the user or the launcher set already stays as it is. With FASTSERVE_BIND=core
    the rank is pinned to its own slice of the cores that it may use, if there are
    enough. A rank of a launched job dies with the process that started it, and passes
    each line that it prints on at once.

    ``kernel`` is the family to take, '' for OpenBLAS' own choice; None: in a launched
    job that of the launcher, otherwise what is remembered for large products.
    """
    place = expected_ranks()
    given = user_threads()
    threads = given[0] if given else _own_threads(place)
    for name, value in thread_variables(threads).items():
        os.environ.setdefault(name, value)
    if chosen_kernel() is None:
        if kernel is None and not setting("JOB"):
            kernel = remembered_kernel()
        os.environ.update(kernel_variable(kernel))
    if setting("BIND") == "core":
        _pin(place, threads)
    if setting("JOB"):
        die_with_parent(signal.SIGKILL)
        _print_by_line()


def core_slice(cores: list[int], local_rank: int, threads: int) -> list[int]:
    """Return the cores of one rank out of those of its host."""
    return cores[local_rank * threads : (local_rank + 1) * threads]


def die_with_parent(number: int) -> None:
    """Ask the kernel to send a signal to this process when its parent ends (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(number), 0, 0, 0)


def _print_by_line() -> None:
    """Flush at each line's end: an MPI abort loses what a process hasn't written yet.

    Not at each write, as PYTHONUNBUFFERED does, which mixes the lines of the ranks.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)


def _pin(place: Ranks, threads: int) -> None:
    cores = affinity_cores()
    if not hasattr(os, "sched_setaffinity") or place.local_size * threads > len(cores):
        return
    os.sched_setaffinity(0, core_slice(cores, place.local_rank, threads))


def _own_threads(place: Ranks) -> int:
    """Return the threads for a rank that nobody told how many it should use.

    mpirun may have bound this rank to a part of the host's cores. Its parent, which is
    not bound, shows the host's whole share: divide that one, never a share twice.
    """
    own = len(affinity_cores())
    if place.launcher in ("slurm", "pmix"):
        per_task = _integer(os.environ, "SLURM_CPUS_PER_TASK")
        return min(own, per_task or threads_per_rank(own, place.local_size))
    if place.launcher == "none":
        return own
    try:
        host = len(affinity_cores(os.getppid()))
    except OSError:
        host = own
    return min(own, threads_per_rank(host, place.local_size))


def _local_place(env: Mapping[str, str], rank: int, size: int) -> tuple[int, int]:
    for rank_name, size_name in _LOCAL:
        local_rank, local_size = _integer(env, rank_name), _integer(env, size_name)
        if local_rank is not None and local_size:
            return local_rank, local_size
    local_rank, local_size = _integer(env, "SLURM_LOCALID"), _slurm_local_size(env)
    if local_rank is not None and local_size:
        return local_rank, local_size
    return rank, size


def _slurm_tasks(env: Mapping[str, str]) -> int | None:
    return _integer(env, "SLURM_STEP_NUM_TASKS") or (
        _integer(env, "SLURM_NTASKS") if "SLURM_STEP_ID" in env else None
    )


def _slurm_local_size(env: Mapping[str, str]) -> int | None:
    """Return this node's tasks, from a list such as '4(x2),3' and the node's number."""
    counts: list[int] = []
    listed = env.get("SLURM_STEP_TASKS_PER_NODE") or env.get("SLURM_TASKS_PER_NODE", "")
    for count, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", listed):
        counts += [int(count)] * int(times or 1)
    node = _integer(env, "SLURM_NODEID") or 0
    return counts[node] if node < len(counts) else None


def _integer(env: Mapping[str, str], name: str) -> int | None:
    value = env.get(name, "")
    return int(value) if value.isdecimal() else None


def _cpu_model(cpuinfo: str, machine: str) -> str:
    """Return the CPU's name from the text of /proc/cpuinfo.

    Virtual machines hide the exact name and may hide instructions, so family, model
    and the widest vector instructions are part of it.
    """
    fields: dict[str, str] = {}
    for line in cpuinfo.splitlines():
        name, _, value = line.partition(":")
        fields.setdefault(name.strip().lower(), value.strip())
    names = ("model name", "cpu implementer", "cpu part", "cpu family", "model")
    parts = [fields[name] for name in names if fields.get(name)]
    flags = set((fields.get("flags") or fields.get("features") or "").split())
    wide = ("amx_tile", "avx512_bf16", "avx512f", "avx2", "sve2", "sve", "asimd")
    parts += [flag for flag in wide if flag in flags][:1]
    return " ".join([*parts, machine])
