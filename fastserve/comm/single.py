"""``SingleCommunicator``: a job of one process, without MPI."""

from __future__ import annotations

import socket
from typing import Any, NoReturn

from fastserve.comm.base import (
    Array,
    Communicator,
    Pending,
    check_object,
    check_rank,
    check_received,
    octets,
    summable,
)
from fastserve.comm.shared import HostMemory, share


class SingleCommunicator(Communicator):
    """The only rank. It checks its arguments as if there were others."""

    def __init__(self) -> None:
        self.rank, self.size = 0, 1
        self.local_rank, self.local_size = 0, 1
        self.host = socket.gethostname()
        self.hosts, self.groups = [self.host], [[0]]

    def allreduce(self, array: Array) -> None:
        summable(array, "allreduce")

    def broadcast(self, array: Array, root: int = 0) -> None:
        check_rank(root, 1, "broadcast")
        octets(array, "broadcast", writes=True)

    def sendrecv(self, send: Array, dest: int, recv: Array, source: int) -> None:
        check_rank(dest, 1, "sendrecv")
        check_rank(source, 1, "sendrecv")
        out = octets(send, "sendrecv", writes=False)
        into = octets(recv, "sendrecv", writes=True)
        check_received(into.size, out.size, source)
        into[...] = out

    def start(
        self, send: Array, dest: int, recv: Array, source: int, tag: int
    ) -> Pending:
        self.sendrecv(send, dest, recv, source)
        return _Done()

    def share(self, size: int, dtype: Any, pieces: int) -> HostMemory | None:
        return share(size, dtype, pieces, 1, 0, lambda value: value, lambda: None)

    def barrier(self) -> None:
        pass

    def gather_obj(self, obj: Any, root: int = 0) -> list[Any] | None:
        check_rank(root, 1, "gather_obj")
        check_object(obj, "gather_obj")
        return [obj]

    def broadcast_obj(self, obj: Any, root: int = 0) -> Any:
        check_rank(root, 1, "broadcast_obj")
        check_object(obj, "broadcast_obj")
        return obj

    def abort(self, status: int) -> NoReturn:
        raise SystemExit(status)

    def close(self) -> None:
        pass


class _Done:
    def done(self) -> bool:
        return True
