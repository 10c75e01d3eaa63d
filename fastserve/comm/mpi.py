"""``MpiCommunicator``: the ranks of an MPI job. The only file that imports MPI."""

from __future__ import annotations

import contextlib
import functools
import os
import pickle
import re
import socket
import sys
import time
from collections.abc import Callable
from typing import Any, NoReturn, ParamSpec, TypeVar

from mpi4py import MPI

from fastserve.comm.base import (
    MESSAGE_BYTES,
    Array,
    Communicator,
    Pending,
    check_object,
    check_rank,
    check_received,
    octets,
    summable,
)
from fastserve.comm.departures import Departures
from fastserve.comm.shared import HostMemory, share
from fastserve.errors import ArgumentError, CommError

# Seconds for the launcher to pass on what this rank has printed. MPICH's lost the
# message in 2 of 441 aborts without this pause and in 0 of 441 with it: too rare to
# prove that the pause is what helps.
_FORWARDED = 0.2

P = ParamSpec("P")
T = TypeVar("T")


def _translated(verb: Callable[P, T]) -> Callable[P, T]:
    """Turn what MPI raises in a verb into a CommError."""

    @functools.wraps(verb)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return verb(*args, **kwargs)
        except MPI.Exception as error:
            raise CommError(
                f"{verb.__name__}: expected MPI to complete the call",
                error.Get_error_string(),
                "give every rank the same calls, with arrays of the same length and "
                "type",
            ) from error

    return call


def library_name(told: str) -> str:
    """Return ``Open MPI 5.0.11`` of what an MPI tells of itself in many words."""
    words = told.split("\n")[0].split(",")[0].replace("Version:", "").split()
    numbered = re.compile(r"v\d")
    return " ".join(w[1:] if numbered.match(w) else w for w in words)


class MpiCommunicator(Communicator):
    """All ranks of ``MPI.COMM_WORLD``, on communicators of its own.

    ``on_departure`` is called on a thread of its own.

    Args:
        limit: bytes of the largest message; longer arrays go in several.
    """

    def __init__(self, limit: int = MESSAGE_BYTES) -> None:
        if limit < 8:
            raise ArgumentError("expected messages of 8 bytes or more", str(limit))
        world = MPI.COMM_WORLD
        self.rank, self.size = world.Get_rank(), world.Get_size()
        self.host = socket.gethostname()
        self.library = library_name(MPI.Get_library_version())
        self._on_host = world.Split_type(MPI.COMM_TYPE_SHARED)
        self.local_rank = self._on_host.Get_rank()
        self.local_size = self._on_host.Get_size()
        self._limit = limit
        self._comm, self._control = world.Dup(), world.Dup()
        self._started = world.Dup()  # of ``start``, whose tags are the callers'
        self._closed = False
        if MPI.Query_thread() < MPI.THREAD_MULTIPLE:
            raise CommError(
                "expected an MPI library that several threads may call",
                f"{self.library} with thread level "
                f"{MPI.Query_thread()} of {MPI.THREAD_MULTIPLE}",
                "use Open MPI or MPICH as built by default, and leave "
                "MPI4PY_RC_THREAD_LEVEL unset",
            )
        self.hosts = self._control.allgather(self.host)
        firsts = self._control.allgather(self._on_host.bcast(self.rank))
        self.groups = [
            [rank for rank, first in enumerate(firsts) if first == leader]
            for leader in dict.fromkeys(firsts)
        ]
        self._departures = Departures(
            self._control, self.hosts, self._end_job, lambda: self.timeout
        )

    @_translated
    def allreduce(self, array: Array) -> None:
        flat = summable(array, "allreduce")
        step = max(1, self._limit // flat.itemsize)
        with self._departures.collective("allreduce"):
            for start in range(0, flat.size, step):
                self._comm.Allreduce(MPI.IN_PLACE, flat[start : start + step])

    @_translated
    def broadcast(self, array: Array, root: int = 0) -> None:
        check_rank(root, self.size, "broadcast")
        flat = octets(array, "broadcast", writes=True)
        with self._departures.collective("broadcast"):
            for start in range(0, flat.size, self._limit):
                self._comm.Bcast(flat[start : start + self._limit], root)

    @_translated
    def sendrecv(self, send: Array, dest: int, recv: Array, source: int) -> None:
        check_rank(dest, self.size, "sendrecv")
        check_rank(source, self.size, "sendrecv")
        out = octets(send, "sendrecv", writes=False)
        into = octets(recv, "sendrecv", writes=True)
        if dest == source == self.rank:  # Open MPI cuts these off without an error
            check_received(into.size, out.size, source)
            into[...] = out
            return
        with self._departures.exchange(dest, source):
            arriving = [self._comm.Irecv(part, source) for part in self._parts(into)]
            leaving = [self._comm.Isend(part, dest) for part in self._parts(out)]
            received = 0
            status = MPI.Status()
            for request in arriving:
                request.Wait(status)
                received += status.Get_count(MPI.BYTE)
            for request in leaving:
                request.Wait()
        check_received(into.size, received, source)

    @_translated
    def start(
        self, send: Array, dest: int, recv: Array, source: int, tag: int
    ) -> Pending:
        arriving = self._started.Irecv(recv, source, tag)
        return _Requests([arriving, self._started.Isend(send, dest, tag)])

    @_translated
    def share(self, size: int, dtype: Any, pieces: int) -> HostMemory | None:
        memory = None
        with self._departures.collective("share"):
            with contextlib.suppress(OSError):
                memory = share(
                    size,
                    dtype,
                    pieces,
                    self.local_size,
                    self.local_rank,
                    self._on_host.bcast,
                    self._on_host.Barrier,
                )
            everyone = self._comm.allreduce(memory is not None, MPI.LAND)
        return memory if everyone else None

    def waiting(self, verb: str) -> contextlib.AbstractContextManager[None]:
        return self._departures.collective(verb)

    def progressed(self) -> None:
        self._departures.progressed()

    @_translated
    def barrier(self) -> None:
        with self._departures.collective("barrier"):
            self._comm.Barrier()

    @_translated
    def gather_obj(self, obj: Any, root: int = 0) -> list[Any] | None:
        check_rank(root, self.size, "gather_obj")
        payload = self._pickled(obj, "gather_obj")
        with self._departures.collective("gather_obj"):
            parts = self._comm.gather(payload, root)
        return None if parts is None else [pickle.loads(part) for part in parts]

    @_translated
    def broadcast_obj(self, obj: Any, root: int = 0) -> Any:
        check_rank(root, self.size, "broadcast_obj")
        payload = self._pickled(obj, "broadcast_obj") if self.rank == root else None
        with self._departures.collective("broadcast_obj"):
            payload = self._comm.bcast(payload, root)
        return pickle.loads(payload)

    def abort(self, status: int) -> NoReturn:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        time.sleep(_FORWARDED)
        status = status if 0 < status < 256 else 1  # others would read as success
        MPI.COMM_WORLD.Abort(status)
        os._exit(status)

    def close(self) -> None:
        """Wait until all ranks have called this, or have ended."""
        if self._closed or MPI.Is_finalized():
            return
        self._closed = True
        self._departures.leave()
        for comm in (self._comm, self._control, self._started, self._on_host):
            comm.Free()

    def _parts(self, flat: Array) -> list[Array]:
        """Cut into messages; an empty array is one too, so that lengths are checked."""
        if flat.size <= self._limit:
            return [flat]
        starts = range(0, flat.size, self._limit)
        return [flat[start : start + self._limit] for start in starts]

    def _pickled(self, obj: Any, verb: str) -> bytes:
        check_object(obj, verb)
        payload = pickle.dumps(obj)
        if len(payload) > self._limit:
            raise ArgumentError(
                f"{verb}: expected an object of at most {self._limit} bytes",
                f"{len(payload)} bytes",
                "send its arrays with broadcast or sendrecv",
            )
        return payload

    def _end_job(self, error: CommError) -> None:
        (self.on_departure or self._print)(error)
        self.abort(1)

    def _print(self, error: CommError) -> None:
        lines = str(error).splitlines()
        text = "".join(f"[rank {self.rank} {self.host}] {line}\n" for line in lines)
        sys.stderr.write(text)


class _Requests:
    """Messages on their way."""

    __slots__ = ("_requests",)

    def __init__(self, requests: list[Any]) -> None:
        self._requests = requests

    def done(self) -> bool:
        return bool(MPI.Request.Testall(self._requests))
